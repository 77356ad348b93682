//! A listening socket, bound by this process or adopted from systemd.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::Shutdown;

use crate::socket_file::{FileId, SocketFile, SocketLock, remove_leftover};
use keyward_settings::{Group, GroupError};

/// The path, permissions and group of a socket to bind.
#[derive(Clone, Debug)]
pub struct ListenerSpec {
    /// The path of the socket.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// The group that owns the socket; `None`: the group of the process.
    pub gid: Option<u32>,
}

/// A listening socket.
pub struct Listener {
    /// The socket.
    pub socket: UnixListener,
    /// The socket's file. `None`: systemd owns it.
    pub bound: Option<BoundSocket>,
}

/// The file of a socket that this process has bound. It is removed on drop, while the lock is still
/// held.
pub struct BoundSocket {
    spec: ListenerSpec,
    /// The file.
    pub file: SocketFile,
    lock: SocketLock,
}

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages show what the fields are")]
pub enum ListenError {
    /// Another process uses the socket.
    #[error("{}: another process is listening there; stop it, or name another socket", path.display())]
    InUse { path: PathBuf },
    /// The path names a file that is not a socket.
    #[error("{}: there is a file that is not a socket; move it away, or name another socket", path.display())]
    NotASocket { path: PathBuf },
    /// The path of the lock names something other than a regular file.
    #[error(
        "{}: the lock beside the socket must be a regular file, and this is a link, a directory, a pipe or a device; remove it, \
         or name a socket elsewhere",
        path.display()
    )]
    NotALock { path: PathBuf },
    /// The directory of the socket does not exist.
    #[error("{}: there is no such directory to put a socket in; create it, or name another socket", path.display())]
    NoDirectory { path: PathBuf },
    /// A system call failed.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    /// The group does not exist.
    #[error("{}: {source}", path.display())]
    Group { path: PathBuf, source: GroupError },
}

impl ListenError {
    /// Whether this user may not see what it is about.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl ListenerSpec {
    /// A socket at `path` with permissions `mode`.
    ///
    /// # Errors
    /// When `group` does not exist.
    pub fn new(path: &Path, mode: u32, group: Option<&Group>) -> Result<Self, ListenError> {
        let gid = group.map(Group::resolve).transpose();
        let gid = gid.map_err(|source| ListenError::Group { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), mode, gid })
    }
}

impl Listener {
    /// A socket that systemd opened.
    pub fn adopt(socket: UnixListener) -> Self {
        Self { socket, bound: None }
    }

    /// Binds a new socket.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(spec: ListenerSpec) -> Result<Self, ListenError> {
        let lock = SocketLock::take(&spec.path)?;
        let (socket, file) = bind(&spec)?;
        Ok(Self { socket, bound: Some(BoundSocket { spec, file, lock }) })
    }

    /// Accepts a connection of the backlog. `None`: there is none. To be called inside a runtime,
    /// once the socket is [registered](register).
    pub fn accept_pending(&self) -> Option<io::Result<tokio::net::UnixStream>> {
        let accepted = match self.socket.accept() {
            // The latter: the socket is shut down.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidInput) => None,
            accepted => Some(accepted),
        };
        accepted.map(|accepted| {
            let (stream, _) = accepted?;
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        })
    }
}

impl BoundSocket {
    /// Binds a new socket in place of one whose file is gone.
    ///
    /// # Errors
    /// As [`Listener::bind`]; also when another process listens at the path.
    pub fn rebind(&mut self) -> Result<UnixListener, ListenError> {
        if !self.lock.is_in_place() {
            self.lock = SocketLock::take(&self.spec.path)?;
        }
        let (socket, file) = bind(&self.spec)?;
        self.file = file;
        Ok(socket)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        self.file.remove();
    }
}

/// Refuses further connections to a listening socket (ECONNREFUSED), in all processes that have it.
/// Those in its backlog can still be accepted.
pub fn shut_down(socket: &UnixListener) {
    // If it fails, connections that arrive before the socket is closed are reset.
    let _ = rustix::net::shutdown(socket, Shutdown::Read);
}

/// Registers the socket with the current runtime.
///
/// # Errors
/// When it cannot be registered.
pub fn register(socket: &UnixListener) -> Result<tokio::net::UnixListener, ListenError> {
    let registered = socket.try_clone().and_then(|socket| {
        socket.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(socket)
    });
    registered.map_err(|error| {
        let address = socket.local_addr().ok();
        let path =
            address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(Path::new("(socket)"));
        ListenError::Io { path: path.to_path_buf(), what: "listen", source: error }
    })
}

fn bind(spec: &ListenerSpec) -> Result<(UnixListener, SocketFile), ListenError> {
    let path = spec.path.as_path();
    let io = |what| move |source| ListenError::Io { path: path.to_path_buf(), what, source };
    remove_leftover(path)?;
    // The umask keeps clients from connecting between bind and chmod.
    let previous = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(previous);
    let socket = bound.map_err(io("listen"))?;
    let id = FileId::of(path).and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()));
    let file = SocketFile { path: path.to_path_buf(), id: id.map_err(io("examine the file"))? };
    let configured = match spec.gid {
        Some(gid) => lchown(path, None, Some(gid)).map_err(io("give the socket to its group")),
        None => Ok(()),
    };
    let configured = configured.and_then(|()| {
        let mode = PermissionsExt::from_mode(spec.mode);
        std::fs::set_permissions(path, mode).map_err(io("set its permissions"))
    });
    match configured {
        Ok(()) => Ok((socket, file)),
        Err(error) => {
            file.remove();
            Err(error)
        }
    }
}
