//! The state directory and its lock.
//!
//! An flock on a file in the directory prevents two daemons from writing the same files. The kernel
//! releases it when the process ends. A daemon may still be draining when its successor starts, so
//! opening waits for the lock.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::{debug, info, warn};

use super::lazy_journal::is_full_or_read_only;
use super::{FileError, O_NOFOLLOW, O_NONBLOCK, WriteHealth, disk, failed, open};

/// The name of the lock file. It contains the process id of the lock's holder.
pub(super) const LOCK: &str = "lock";

/// Files that a daemon writes besides its list of revocations. If one of these exists, so must the
/// list.
const STATE_FILES: &[&str] = &[
    "balances",
    "balances.damaged",
    "usage.jsonl",
    "usage.jsonl.1",
    "audit.jsonl",
    "audit.jsonl.1",
    "last_good.json",
    "accepted_source.json",
    "generation",
];

/// The permissions of a new state directory.
const DIRECTORY_MODE: u32 = 0o700;

/// How long to wait for another daemon to end: the default time of draining.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval between two attempts to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Maximum number of bytes of a process id in the lock file.
const PID_BYTES: u64 = 20;

/// A state directory that this process has locked until this is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    health: WriteHealth,
    is_new: bool,
    lock: Mutex<File>,
}

/// Why a state directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another daemon has locked it.
    #[error(
        "{}: the state directory is in use by another daemon{}; stop it, or give this one a directory of its own (--state-dir)",
        path.display(), with_pid(*pid)
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process id of the lock's holder, if it is known.
        pid: Option<u32>,
    },
    /// It cannot be created or used.
    #[error(
        "{0}; let the daemon's user write to its state directory, or name another (--state-dir, server.state_dir)"
    )]
    Unusable(#[from] FileError),
}

fn with_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", pid {pid}")).unwrap_or_default()
}

impl StateDir {
    /// Creates the directory at `path` if it is missing, and locks it. A default directory
    /// (`explicit` is false) that cannot be used and that no daemon has used before is logged, and
    /// the result is `None`: keyward can be tried out without /var/lib/keyward.
    ///
    /// # Errors
    /// When another daemon has locked it, or an explicit directory cannot be used.
    pub fn open(path: &Path, explicit: bool) -> Result<Option<Self>, StateDirError> {
        Self::open_reporting(path, explicit, WriteHealth::default())
    }

    /// As [`open`](Self::open). Failed writes, and a missing directory, are reported to `health`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_reporting(
        path: &Path,
        explicit: bool,
        health: WriteHealth,
    ) -> Result<Option<Self>, StateDirError> {
        Self::open_within(path, explicit, health, LOCK_TIMEOUT)
    }

    /// Whether [`open`](Self::open) would find the directory at `path`, or could make it, as far as
    /// this user can see. Nothing is created, and no lock is taken.
    ///
    /// # Errors
    /// When it could not, or this user may not see that (`PermissionDenied`).
    pub fn preview(path: &Path) -> Result<(), StateDirError> {
        let not_a_directory = || io::Error::from(io::ErrorKind::NotADirectory);
        let (action, error) = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => ("use it as the state directory", not_a_directory()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                match std::fs::metadata(parent.unwrap_or(Path::new("."))) {
                    Ok(found) if found.is_dir() => return Ok(()),
                    Ok(_) => ("make the directory", not_a_directory()),
                    Err(error) => ("make the directory", error),
                }
            }
            Err(error) => ("use it as the state directory", error),
        };
        Err(failed(path, action)(error).into())
    }

    pub(super) fn open_within(
        path: &Path,
        explicit: bool,
        health: WriteHealth,
        timeout: Duration,
    ) -> Result<Option<Self>, StateDirError> {
        match Self::lock(path, health.clone(), timeout) {
            Ok(directory) => Ok(Some(directory)),
            Err(StateDirError::Unusable(error)) if !explicit && !may_hold_state(path) => {
                health.absent(&path.display().to_string(), &error);
                warn!(
                    %error,
                    "no state directory: usage, audit, revocations and balances are not kept; name one with --state-dir"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn lock(path: &Path, health: WriteHealth, timeout: Duration) -> Result<Self, StateDirError> {
        let is_new = match disk::create_directory(path, DirBuilder::new().mode(DIRECTORY_MODE)) {
            Ok(()) => {
                disk::sync_directory(path).map_err(failed(path, "make its name durable"))?;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(path, "make the directory")(error).into()),
        };
        let lock_path = path.join(LOCK);
        let mut lock = open_lock(path, &lock_path).map_err(failed(&lock_path, "open the lock"))?;
        let deadline = Instant::now() + timeout;
        let mut is_logged = false;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(StateDirError::Locked { path: path.to_path_buf(), pid: read_pid(&mut lock) });
                }
                Err(error) => return Err(failed(&lock_path, "take the lock")(error.into()).into()),
            }
            if !is_logged {
                info!(directory = %path.display(), "waiting for another daemon to leave the state directory");
                is_logged = true;
            }
            sleep(LOCK_RETRY);
        }
        if let Err(error) = write_pid(&mut lock) {
            // The lock is held anyway.
            debug!(file = %lock_path.display(), %error, "the process id cannot be written");
        }
        Ok(Self { path: path.to_path_buf(), health, is_new, lock: Mutex::new(lock) })
    }

    /// Whether the locked file is still in the directory, so the lock excludes other daemons.
    pub fn has_lock(&self) -> bool {
        self.is_in_place(&self.held())
    }

    /// Takes the lock again if its file, or the directory, was removed or replaced.
    ///
    /// # Errors
    /// When another daemon has taken it meanwhile.
    pub fn ensure_lock(&self) -> Result<(), FileError> {
        let mut held = self.held();
        if self.is_in_place(&held) {
            return Ok(());
        }
        let path = self.path(LOCK);
        // If the lock cannot be opened, neither can the other files, and those report it.
        let Ok(mut lock) = open_lock(&self.path, &path) else { return Ok(()) };
        // Its metadata could not be read a moment ago.
        if identity(&lock).is_some_and(|opened| identity(&held) == Some(opened)) {
            return Ok(());
        }
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                warn!(file = %path.display(), "the lock was removed or replaced by another program; it is taken again");
                // The process id is informational.
                let _ = write_pid(&mut lock);
                *held = lock;
                Ok(())
            }
            Err(Errno::WOULDBLOCK) => {
                let error = io::Error::other("another daemon has taken it, and writes to this directory now");
                Err(failed(&path, "take the lock again")(error))
            }
            Err(_) => Ok(()),
        }
    }

    fn held(&self) -> MutexGuard<'_, File> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the locked file is the one in the directory, or the directory itself
    /// ([`open_lock`]).
    fn is_in_place(&self, lock: &File) -> bool {
        let Some(held) = identity(lock) else { return false };
        let [file, directory] = [std::fs::symlink_metadata(self.path(LOCK)), std::fs::metadata(&self.path)];
        [file, directory].into_iter().flatten().any(|found| (found.dev(), found.ino()) == held)
    }

    /// The registry that writes report to.
    pub fn health(&self) -> &WriteHealth {
        &self.health
    }

    /// Whether this process has created the directory.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// As [`first_state_file`], in this directory.
    pub fn first_state_file(&self) -> Option<&'static str> {
        first_state_file(&self.path)
    }

    /// The path of the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// The name of a file in `directory` that a daemon has written, other than its list of revocations.
/// An empty file does not count. A symbolic link does, and so does a file of which it cannot be
/// determined: what it was may be on a disk that is not mounted.
pub fn first_state_file(directory: &Path) -> Option<&'static str> {
    let is_absent =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let may_have_content = |name: &&str| match std::fs::symlink_metadata(directory.join(name)) {
        Ok(found) => found.len() > 0,
        Err(error) => !is_absent(&error),
    };
    STATE_FILES.iter().copied().find(may_have_content)
}

/// The file system and the inode of an open file.
fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|found| (found.dev(), found.ino()))
}

/// Opens the lock file. On a full or read-only disk, where it cannot be created or written, the
/// existing file is opened for reading, or else the directory itself.
fn open_lock(directory: &Path, path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true).write(true)).or_else(|error| {
        if !is_full_or_read_only(&error) || !may_hold_state(directory) {
            return Err(error);
        }
        let read_only = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
        read_only.or_else(|_| File::open(directory)).map_err(|_| error)
    })
}

/// Whether a daemon has used the directory, or that cannot be determined. Then its revocations must
/// not be ignored.
fn may_hold_state(directory: &Path) -> bool {
    let may_exist = |name| match std::fs::symlink_metadata(directory.join(name)) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    // The target of a dangling link may be on a disk that is not mounted.
    let is_dangling = directory.is_symlink() && !directory.exists();
    is_dangling || may_exist(LOCK) || may_exist("revocations.jsonl")
}

pub(super) fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(PID_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all(format!("{}\n", std::process::id()).as_bytes())
}
