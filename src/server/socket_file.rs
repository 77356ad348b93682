//! Files of sockets in the file system: which one it is, the lock beside it, and what may be removed.
//!
//! A socket file that no process listens on is left over from a daemon that was killed, and is replaced; one that a
//! process listens on is not. A lock beside the file decides between two daemons that start at the same moment: asking
//! the socket whether it is alive and replacing it are two steps.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::listener::ListenError;

/// No link is followed, and a named pipe in the place of the lock does not wait for its reader.
const LOCK_FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).bits() as i32;

/// Which file it is, whatever its mode and owner have become. A number of an inode can be used again; the time of birth
/// tells the two files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    born: Option<SystemTime>,
}

impl Identity {
    /// Of the file called `path`; links are not followed. `None`: there is none.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(Self::from(&metadata))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() }
    }
}

/// A socket file that this process made.
#[derive(Clone, Debug)]
pub(super) struct SocketFile {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
}

impl SocketFile {
    /// Removes it, unless its name belongs to another file by now.
    pub(super) fn remove(&self) {
        if matches!(Identity::of(&self.path), Ok(Some(found)) if found == self.identity) {
            let _already_gone = std::fs::remove_file(&self.path);
        }
    }
}

/// The lock beside a socket file.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock of the socket at `path`.
    ///
    /// # Errors
    /// When another daemon has it, or it cannot be made.
    pub(super) fn take(path: &Path) -> Result<Self, ListenError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
            && !directory.is_dir()
        {
            return Err(ListenError::NoDirectory { path: directory.to_path_buf() });
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        // Opening a device can have effects of its own, so that this is asked first as well.
        let unfit = || ListenError::NotALock { path: lock.clone() };
        if std::fs::symlink_metadata(&lock).is_ok_and(|found| !found.is_file()) {
            return Err(unfit());
        }
        let io = |what| {
            let path = lock.clone();
            move |error| ListenError::Io { path, what, error }
        };
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(LOCK_FLAGS);
        let file = match options.open(&lock) {
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => return Err(unfit()),
            opened => opened.map_err(io("open the lock"))?,
        };
        if !file.metadata().map_err(io("look at the lock"))?.is_file() {
            return Err(unfit());
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: lock, file }),
            Err(Errno::WOULDBLOCK) => Err(ListenError::InUse { path: path.to_path_buf() }),
            Err(error) => Err(io("take the lock")(error.into())),
        }
    }

    /// Whether its name still belongs to it: otherwise it keeps no other daemon away.
    pub(super) fn is_in_place(&self) -> bool {
        let own = self.file.metadata().map(|metadata| Identity::from(&metadata));
        matches!((own, Identity::of(&self.path)), (Ok(own), Ok(Some(found))) if own == found)
    }
}

/// Removes a socket that no process listens on.
///
/// # Errors
/// When there is anything else.
pub(super) fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |what| move |error| ListenError::Io { path: path.to_path_buf(), what, error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at it")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    match is_listened_on(path) {
        Ok(false) => std::fs::remove_file(path).map_err(io("remove the stale socket")),
        // Its queue may be full, or it may be closed to this user: then too a process listens.
        Ok(true) | Err(_) => Err(ListenError::InUse { path: path.to_path_buf() }),
    }
}

/// Whether a process listens on the socket at `path`. Does not wait: a queue of connections that is full would be waited for.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
