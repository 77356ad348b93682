//! The sockets: adopted from systemd by name, or bound here.
//!
//! A socket file that nobody listens on is left over from a daemon that was killed, and is replaced; one that
//! somebody listens on is not. A lock beside the file decides between two daemons that start at the same moment: asking
//! the socket whether it is alive and replacing it are two steps.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};

use crate::config::{Group, GroupError};
use crate::systemd::Passed;

/// What the socket of a name needs.
pub(super) struct Wanted<'a> {
    /// systemd's `FileDescriptorName=`.
    pub(super) name: &'a str,
    /// Where to bind it, if systemd did not.
    pub(super) path: &'a Path,
    /// Its permissions.
    pub(super) mode: u32,
    /// The group that may open it.
    pub(super) group: Option<&'a Group>,
}

/// A listening socket, and what has to be undone at the end.
pub(super) struct Listener {
    socket: UnixListener,
    own: Option<Bound>,
}

/// A socket that this process bound: unlinked when it is dropped, while the lock is still held.
struct Bound {
    path: PathBuf,
    _lock: File,
}

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon has it.
    #[error("{}: another daemon is listening there; stop it, or name another socket (--socket, --admin-socket)", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{}: there is a file that is not a socket; move it away, or name another socket (--socket, --admin-socket)", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// There is no such directory.
    #[error("{}: there is no such directory to put a socket in; create it, or name another socket (--socket)", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The system says no.
    #[error("{}: cannot {what}: {error}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The group is not known.
    #[error("{}: {error}", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: GroupError,
    },
}

impl Listener {
    /// The socket of `wanted`: the one that systemd passed under its name, or a new one.
    ///
    /// # Errors
    /// When it cannot be bound; see [`ListenError`].
    pub(super) fn open(wanted: &Wanted<'_>, passed: &mut Vec<Passed>) -> Result<Self, ListenError> {
        match passed.iter().position(|passed| passed.name == wanted.name) {
            Some(index) => Ok(Self { socket: passed.swap_remove(index).listener, own: None }),
            None => bind(wanted),
        }
    }

    /// The socket for tokio; call it inside a runtime.
    ///
    /// # Errors
    /// When it cannot be registered.
    pub(super) fn for_tokio(&self) -> io::Result<tokio::net::UnixListener> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(socket)
    }

    /// The connections that wait to be accepted, if this process bound the socket; call it inside a runtime.
    pub(super) fn waiting(&self) -> impl Iterator<Item = tokio::net::UnixStream> {
        let own = self.own.iter().flat_map(|_| std::iter::from_fn(|| self.socket.accept().ok()));
        own.filter_map(|(stream, _)| {
            stream.set_nonblocking(true).ok()?;
            tokio::net::UnixStream::from_std(stream).ok()
        })
    }

    /// Whether systemd opened it, and keeps it open when the daemon ends.
    pub(super) fn is_adopted(&self) -> bool {
        self.own.is_none()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_file(&self.path);
    }
}

fn bind(wanted: &Wanted<'_>) -> Result<Listener, ListenError> {
    let path = wanted.path;
    let io = |what| move |error| ListenError::Io { path: path.to_path_buf(), what, error };
    let lock = lock(path)?;
    clear(path)?;
    // Nobody may connect between bind and chmod: the file is created with no more than its mode.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let socket = bound.map_err(io("listen"))?;
    let own = Bound { path: path.to_path_buf(), _lock: lock };
    if let Some(group) = wanted.group {
        let gid = group.resolve().map_err(|error| ListenError::Group { path: path.to_path_buf(), error })?;
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(io("give the socket to its group"))?;
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(wanted.mode))
        .map_err(io("set its permissions"))?;
    Ok(Listener { socket, own: Some(own) })
}

fn lock(path: &Path) -> Result<File, ListenError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
        && !directory.is_dir()
    {
        return Err(ListenError::NoDirectory { path: directory.to_path_buf() });
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| ListenError::Io { path: lock_path.clone(), what: "create the lock", error })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ListenError::InUse { path: path.to_path_buf() }),
        Err(error) => Err(ListenError::Io { path: lock_path, what: "take the lock", error: error.into() }),
    }
}

/// Removes a socket that nobody listens on.
fn clear(path: &Path) -> Result<(), ListenError> {
    let io = |what| move |error| ListenError::Io { path: path.to_path_buf(), what, error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at it")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io("remove the stale socket"))
        }
        // It answers, or its queue is full, or it is not ours to open: somebody is there.
        Ok(_) | Err(_) => Err(ListenError::InUse { path: path.to_path_buf() }),
    }
}
