//! The state directory: there, writable, and one daemon's.
//!
//! A lock on a file in it (flock, gone with the process whatever becomes of it) keeps two daemons from writing the same
//! files. A daemon that is replaced by its successor may be draining still, so the lock is waited for.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::{info, warn};

use super::{FileError, WriteHealth, failed, open};

/// The name of the file that is locked. It holds the process id of who has the lock.
pub(super) const LOCK: &str = "lock";

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
    _lock: File,
}

/// Why there is no state directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
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
    /// It cannot be made or written to.
    #[error(
        "{0}; let the daemon's user write to its state directory, or name another (--state-dir, server.state_dir)"
    )]
    Unusable(#[from] FileError),
}

fn with_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", pid {pid}")).unwrap_or_default()
}

impl StateDir {
    /// Makes the directory at `path` if it is missing, and locks it. Where nobody chose the directory (`explicit` is
    /// false) and it cannot be used, that is said in the log and there is none: a daemon that somebody tries out has no
    /// /var/lib/keyward, and answers all the same.
    ///
    /// # Errors
    /// When another daemon has it, or it was chosen and cannot be used.
    pub fn open(path: &Path, explicit: bool) -> Result<Option<Self>, OpenError> {
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
    ) -> Result<Option<Self>, OpenError> {
        Self::open_within(path, explicit, health, PATIENCE)
    }

    pub(super) fn open_within(
        path: &Path,
        explicit: bool,
        health: WriteHealth,
        patience: Duration,
    ) -> Result<Option<Self>, OpenError> {
        match Self::lock(path, health.clone(), patience) {
            Ok(directory) => Ok(Some(directory)),
            Err(OpenError::Unusable(error)) if !explicit => {
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

    fn lock(path: &Path, health: WriteHealth, patience: Duration) -> Result<Self, OpenError> {
        match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(path, "make the directory")(error).into()),
        }
        let lock_path = path.join(LOCK);
        let mut lock = open(&lock_path, OpenOptions::new().read(true).write(true))
            .map_err(failed(&lock_path, "open the lock"))?;
        let deadline = Instant::now() + patience;
        let mut said = false;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(OpenError::Locked { path: path.to_path_buf(), pid: read_pid(&mut lock) });
                }
                Err(error) => return Err(failed(&lock_path, "take the lock")(error.into()).into()),
            }
            if !said {
                info!(directory = %path.display(), "waiting for another daemon to leave the state directory");
                said = true;
            }
            sleep(RETRY);
        }
        write_pid(&mut lock).map_err(failed(&lock_path, "write the process id"))?;
        Ok(Self { path: path.to_path_buf(), health, _lock: lock })
    }

    /// Where the outcome of writes is reported.
    pub fn health(&self) -> &WriteHealth {
        &self.health
    }

    /// Where the file called `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
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
