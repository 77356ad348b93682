//! The file of a listening socket: its identity, its lock, and the removal of a stale one.
//!
//! A socket file on which no process listens was left behind by a service that was killed, and is
//! replaced. A file on which a process listens is not. Probing a socket and replacing it are two
//! steps, so a lock file beside the socket decides between two services that start at the same
//! moment.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::listener::ListenError;

/// Symbolic links are not followed, and opening a named pipe does not block.
const LOCK_FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).bits() as i32;

/// Identifies a file independently of its mode and owner. Inode numbers are reused; the birth time
/// tells such files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    birth_time: Option<SystemTime>,
}

impl FileId {
    /// Identifies the file at `path`; symbolic links are not followed. `None`: there is no file.
    ///
    /// # Errors
    /// When the file cannot be examined.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(Self::from(&metadata))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), birth_time: metadata.created().ok() }
    }
}

/// A socket file that this process made.
#[derive(Clone, Debug)]
pub struct SocketFile {
    /// Its path.
    pub path: PathBuf,
    /// What tells it from another file that takes its path.
    pub id: FileId,
}

impl SocketFile {
    /// Removes the file, unless another file has taken its name.
    pub fn remove(&self) {
        if matches!(FileId::of(&self.path), Ok(Some(found)) if found == self.id) {
            // The file may be gone already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The lock file beside a socket file, held until it is dropped.
pub struct SocketLock {
    path: PathBuf,
    file: File,
}

/// Whether there is no directory at `path`. If that cannot be determined, opening a file in it shows
/// why.
fn is_missing(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(found) => !found.is_dir(),
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

impl SocketLock {
    /// Takes the lock of the socket at `path`.
    ///
    /// # Errors
    /// When another process holds the lock, or the lock file cannot be created.
    pub fn take(path: &Path) -> Result<Self, ListenError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
            && is_missing(directory)
        {
            return Err(ListenError::NoDirectory { path: directory.to_path_buf() });
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        // Checked before opening too, because opening a device can have side effects.
        let not_a_lock = || ListenError::NotALock { path: lock.clone() };
        if std::fs::symlink_metadata(&lock).is_ok_and(|found| !found.is_file()) {
            return Err(not_a_lock());
        }
        let io = |what| {
            let path = lock.clone();
            move |source| ListenError::Io { path, what, source }
        };
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(LOCK_FLAGS);
        let file = match options.open(&lock) {
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Err(not_a_lock());
            }
            opened => opened.map_err(io("open the lock"))?,
        };
        if !file.metadata().map_err(io("examine the lock"))?.is_file() {
            return Err(not_a_lock());
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: lock, file }),
            Err(Errno::WOULDBLOCK) => Err(ListenError::InUse { path: path.to_path_buf() }),
            Err(error) => Err(io("take the lock")(error.into())),
        }
    }

    /// Whether the lock file still has its name. A lock without a name does not exclude another
    /// process.
    pub fn is_in_place(&self) -> bool {
        let own = self.file.metadata().map(|metadata| FileId::from(&metadata));
        matches!((own, FileId::of(&self.path)), (Ok(own), Ok(Some(found))) if own == found)
    }
}

/// Removes a socket file on which no process listens.
///
/// # Errors
/// When a process listens on the socket, or the file is not a socket.
pub fn remove_leftover(path: &Path) -> Result<(), ListenError> {
    let io = |what| move |source| ListenError::Io { path: path.to_path_buf(), what, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("examine the file")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    match is_listened_on(path) {
        Ok(false) => std::fs::remove_file(path).map_err(io("remove the stale socket")),
        // An error counts as listening: the socket may be closed to this user.
        Ok(true) | Err(_) => Err(ListenError::InUse { path: path.to_path_buf() }),
    }
}

/// Whether a process listens on the socket at `path`. Does not block if the backlog is full.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
