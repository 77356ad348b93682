//! A listening socket: adopted from systemd, or bound here.

use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use crate::config::{Group, GroupError};
use crate::server::socket_file::{Identity, Lock, SocketFile, remove_stale};

/// What a socket that is bound here needs.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Where to bind it.
    pub(super) path: PathBuf,
    /// Its permissions.
    pub(super) mode: u32,
    /// The group that may open it.
    pub(super) gid: Option<u32>,
}

/// A listening socket, and what has to be undone at the end.
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    /// `None`: systemd opened it.
    pub(super) own: Option<Bound>,
}

/// A socket that this process bound: unlinked when it is dropped, while the lock is still held.
pub(super) struct Bound {
    wanted: Wanted,
    pub(super) file: SocketFile,
    lock: Lock,
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
    /// Something that is not a regular file is in the place of the lock.
    #[error(
        "{}: the lock beside the socket must be a regular file, and this is a link, a directory, a pipe or a device; remove it, \
         or name a socket elsewhere (--socket, --admin-socket)",
        path.display()
    )]
    NotALock {
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

impl Wanted {
    /// A socket at `path`.
    ///
    /// # Errors
    /// When `group` is not known.
    pub(super) fn new(path: &Path, mode: u32, group: Option<&Group>) -> Result<Self, ListenError> {
        let gid = group.map(Group::resolve).transpose();
        let gid = gid.map_err(|error| ListenError::Group { path: path.to_path_buf(), error })?;
        Ok(Self { path: path.to_path_buf(), mode, gid })
    }
}

impl Listener {
    /// One that systemd opened.
    pub(super) fn adopt(socket: UnixListener) -> Self {
        Self { socket, own: None }
    }

    /// Binds a new one.
    ///
    /// # Errors
    /// When it cannot be bound; see [`ListenError`].
    pub(super) fn bind(wanted: Wanted) -> Result<Self, ListenError> {
        let lock = Lock::take(&wanted.path)?;
        let (socket, file) = bind(&wanted)?;
        Ok(Self { socket, own: Some(Bound { wanted, file, lock }) })
    }

    /// The connections that wait to be accepted; call it inside a runtime, once it is [registered](register).
    pub(super) fn waiting(&self) -> impl Iterator<Item = tokio::net::UnixStream> {
        std::iter::from_fn(|| self.socket.accept().ok()).filter_map(|(stream, _)| {
            stream.set_nonblocking(true).ok()?;
            tokio::net::UnixStream::from_std(stream).ok()
        })
    }
}

impl Bound {
    /// Binds a new socket in the place of one whose file is gone.
    ///
    /// # Errors
    /// As [`Listener::bind`]; also when another process has put a socket of its own in that place.
    pub(super) fn bind_again(&mut self) -> Result<UnixListener, ListenError> {
        if !self.lock.is_in_place() {
            self.lock = Lock::take(&self.wanted.path)?;
        }
        let (socket, file) = bind(&self.wanted)?;
        self.file = file;
        Ok(socket)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.file.remove();
    }
}

/// The socket for tokio; call it inside a runtime.
///
/// # Errors
/// When it cannot be registered.
pub(super) fn register(socket: &UnixListener) -> Result<tokio::net::UnixListener, ListenError> {
    let registered = socket.try_clone().and_then(|socket| {
        socket.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(socket)
    });
    registered.map_err(|error| {
        let address = socket.local_addr().ok();
        let path =
            address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(Path::new("(socket)"));
        ListenError::Io { path: path.to_path_buf(), what: "listen", error }
    })
}

fn bind(wanted: &Wanted) -> Result<(UnixListener, SocketFile), ListenError> {
    let path = wanted.path.as_path();
    let io = |what| move |error| ListenError::Io { path: path.to_path_buf(), what, error };
    remove_stale(path)?;
    // No one may connect between bind and chmod: the file is created with no more than its mode.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let socket = bound.map_err(io("listen"))?;
    let identity = Identity::of(path).and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()));
    let file = SocketFile { path: path.to_path_buf(), identity: identity.map_err(io("look at it"))? };
    let opened = match wanted.gid {
        Some(gid) => lchown(path, None, Some(gid)).map_err(io("give the socket to its group")),
        None => Ok(()),
    };
    let opened = opened.and_then(|()| {
        let mode = PermissionsExt::from_mode(wanted.mode);
        std::fs::set_permissions(path, mode).map_err(io("set its permissions"))
    });
    match opened {
        Ok(()) => Ok((socket, file)),
        Err(error) => {
            file.remove();
            Err(error)
        }
    }
}
