//! The state directory: there, writable, and one daemon's.
//!
//! A lock on a file in it (flock, gone with the process whatever becomes of it) keeps two daemons from writing the same
//! files. A daemon that is replaced by its successor may be draining still, so the lock is waited for.

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

use super::late::is_full_or_read_only;
use super::{FileError, O_NOFOLLOW, O_NONBLOCK, WriteHealth, disk, failed, open};

/// The name of the file that is locked. It holds the process id of who has the lock.
pub(super) const LOCK: &str = "lock";

/// What a daemon leaves in the directory, beside its list of revocations: where one of these is, so must be the list.
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

/// Permissions of a directory that is made here.
const DIRECTORY_MODE: u32 = 0o700;

/// How long a daemon that has the directory may take to end: as long as it drains, unless set otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the lock is tried meanwhile.
const RETRY: Duration = Duration::from_millis(20);

/// Most bytes of a process id in the lock file.
const PID_BYTES: u64 = 20;

/// A state directory that is this process's until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    health: WriteHealth,
    is_new: bool,
    lock: Mutex<File>,
}

/// Why there is no state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another daemon has it.
    #[error(
        "{}: the state directory is in use by another daemon{}; stop it, or give this one a directory of its own (--state-dir)",
        path.display(), with_pid(*pid)
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Process id of who has the lock, if it says so.
        pid: Option<u32>,
    },
    /// It cannot be made or used.
    #[error(
        "{0}; let the daemon's user write to its state directory, or name another (--state-dir, server.state_dir)"
    )]
    Unusable(#[from] FileError),
}

fn with_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", pid {pid}")).unwrap_or_default()
}

impl StateDir {
    /// Makes the directory at `path` if it is missing, and locks it. Where the directory is the default (`explicit` is
    /// false), cannot be used, and no daemon has used it before, that is said in the log and there is none: a daemon
    /// that is tried out has no /var/lib/keyward, and answers all the same.
    ///
    /// # Errors
    /// When another daemon has it, or it was chosen and cannot be used.
    pub fn open(path: &Path, explicit: bool) -> Result<Option<Self>, StateDirError> {
        Self::open_reporting(path, explicit, WriteHealth::default())
    }

    /// As [`open`](Self::open); `health` has the files of the directory that are not being written, and says so where
    /// there is no directory.
    ///
    /// # Errors
    /// When another daemon has it, or it was chosen and cannot be used.
    pub fn open_reporting(
        path: &Path,
        explicit: bool,
        health: WriteHealth,
    ) -> Result<Option<Self>, StateDirError> {
        Self::open_within(path, explicit, health, PATIENCE)
    }

    pub(super) fn open_within(
        path: &Path,
        explicit: bool,
        health: WriteHealth,
        patience: Duration,
    ) -> Result<Option<Self>, StateDirError> {
        match Self::lock(path, health.clone(), patience) {
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

    fn lock(path: &Path, health: WriteHealth, patience: Duration) -> Result<Self, StateDirError> {
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
        let deadline = Instant::now() + patience;
        let mut said = false;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(StateDirError::Locked { path: path.to_path_buf(), pid: read_pid(&mut lock) });
                }
                Err(error) => return Err(failed(&lock_path, "take the lock")(error.into()).into()),
            }
            if !said {
                info!(directory = %path.display(), "waiting for another daemon to leave the state directory");
                said = true;
            }
            sleep(RETRY);
        }
        if let Err(error) = write_pid(&mut lock) {
            // The lock is held all the same.
            debug!(file = %lock_path.display(), %error, "the process id cannot be written");
        }
        Ok(Self { path: path.to_path_buf(), health, is_new, lock: Mutex::new(lock) })
    }

    /// Whether the lock still keeps other daemons away: its file is in the directory.
    pub fn has_lock(&self) -> bool {
        self.is_in_place(&self.held())
    }

    /// Takes the lock again where its file was removed or replaced, alone or with the directory.
    ///
    /// # Errors
    /// When another daemon has taken it meanwhile.
    pub fn keep_lock(&self) -> Result<(), FileError> {
        let mut held = self.held();
        if self.is_in_place(&held) {
            return Ok(());
        }
        let path = self.path(LOCK);
        // Where it cannot be opened, neither can the other files, which is reported with them.
        let Ok(mut lock) = open_lock(&self.path, &path) else { return Ok(()) };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                warn!(file = %path.display(), "the lock was removed or replaced by another program; it is taken again");
                let _is_for_people = write_pid(&mut lock);
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

    /// Whether it is the lock file, or the directory itself ([`open_lock`]).
    fn is_in_place(&self, lock: &File) -> bool {
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        let Ok(held) = lock.metadata().map(identity) else { return false };
        let [file, directory] = [std::fs::symlink_metadata(self.path(LOCK)), std::fs::metadata(&self.path)];
        [file, directory].into_iter().flatten().any(|found| identity(found) == held)
    }

    /// Where the outcome of writes is reported.
    pub fn health(&self) -> &WriteHealth {
        &self.health
    }

    /// Whether the directory was missing, and has been made by this process.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// A file with something in it that a daemon has left in the directory, other than its list of revocations.
    pub fn first_state_file(&self) -> Option<&'static str> {
        let has_content = |name: &&str| std::fs::metadata(self.path(name)).is_ok_and(|there| there.len() > 0);
        STATE_FILES.iter().copied().find(has_content)
    }

    /// Where the file called `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Opens the file that is locked. On a full or read-only disk, where it cannot be made or written, the lock is taken on the
/// existing file, or else on the directory itself.
fn open_lock(directory: &Path, path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true).write(true)).or_else(|error| {
        if !is_full_or_read_only(&error) || !may_hold_state(directory) {
            return Err(error);
        }
        let read_only = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
        read_only.or_else(|_| File::open(directory)).map_err(|_| error)
    })
}

/// Whether a daemon may have used the directory: it has, or that cannot be found out. Then its revocations must not be left out.
fn may_hold_state(directory: &Path) -> bool {
    let may_be_there = |name| match std::fs::symlink_metadata(directory.join(name)) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    // A link that leads nowhere was made for a directory, which can be on a disk that is not mounted.
    let leads_nowhere = directory.is_symlink() && !directory.exists();
    leads_nowhere || may_be_there(LOCK) || may_be_there("revocations.jsonl")
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
