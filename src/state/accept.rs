//! One-time acceptances: decisions of an operator, made while the daemon is stopped, for the next
//! start.
//!
//! `keyward state accept` writes a marker file to the state directory. The next start removes it
//! durably before it acts on it, even if it is not needed, so an acceptance applies to one start. A
//! marker is ignored and removed, with a warning, if it is older than [`MAX_AGE`], cannot be read,
//! or belongs to a user other than root and the daemon's own.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::dir::{LOCK, read_pid};
use super::{FileError, O_NOFOLLOW, O_NONBLOCK, StateDir, current_second, disk, failed, replace};

/// The maximum age of a marker. An operator starts the daemon right after the command; a forgotten
/// marker must not apply to a later loss.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(1);

/// How far a marker may be in the future: the clock may be adjusted between the command and the
/// start.
const MAX_AHEAD: SignedDuration = SignedDuration::from_mins(1);

/// How long to wait for the lock of a daemon that fails to start repeatedly. A running daemon holds
/// it longer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval between two attempts to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Maximum number of bytes of a marker that are read. A marker has some 70.
const MAX_BYTES: u64 = 4096;

/// The daemon's user must be able to read a marker that root has written. It has no secrets.
const MARKER_MODE: u32 = 0o644;

/// What can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acceptance {
    /// Continue with the remaining revocations after a loss.
    LostRevocations,
    /// Let calendar quotas and credits begin unspent after a loss of balances.
    LostBalances,
    /// Accept the source at the next start without comparing it.
    Source,
}

impl Acceptance {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostRevocations => "lost-revocations",
            Self::LostBalances => "lost-balances",
            Self::Source => "source",
        }
    }

    /// The name of the marker.
    const fn file(self) -> &'static str {
        match self {
            Self::LostRevocations => "accept-lost-revocations",
            Self::LostBalances => "accept-lost-balances",
            Self::Source => "accept-source",
        }
    }

    /// What to do instead if the daemon is running.
    const fn while_running(self) -> &'static str {
        match self {
            Self::LostRevocations => {
                "It has its list of revocations in memory and writes it anew when the file is damaged or lost, so that there \
                 is nothing to accept; keyward status --revocations lists what is revoked"
            }
            Self::LostBalances => "To have it serve its source now, use keyward reload --force",
            Self::Source => "To have it believe its source now, use keyward reload --force",
        }
    }
}

/// Whether the next start would find a valid marker in `directory`, as far as this user can tell. The
/// daemon's user owns the directory.
pub fn is_accepted(directory: &Path, acceptance: Acceptance) -> bool {
    let path = directory.join(acceptance.file());
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let daemon = std::fs::metadata(directory).map(|directory| directory.uid());
    opened.and_then(|file| Ok(read_marker(&file, acceptance, daemon?).is_ok())).unwrap_or(false)
}

/// An acceptance by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptanceRecord {
    /// The user that gave the command: the owner of the marker.
    pub by_uid: u32,
    /// The time of the command, to the second.
    pub at: Timestamp,
}

/// Why an acceptance could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The state directory does not exist.
    #[error(
        "{}: there is no state directory; name the daemon's (--state-dir), or its configuration (--config)",
        path.display()
    )]
    Missing {
        /// The path of the directory.
        path: PathBuf,
    },
    /// A daemon is using the directory.
    #[error(
        "{}: a daemon is running with this state directory{}. {}. An acceptance is for the next start: stop the daemon first",
        path.display(),
        pid.map(|pid| format!(", pid {pid}")).unwrap_or_default(),
        acceptance.while_running()
    )]
    Running {
        /// The directory.
        path: PathBuf,
        /// The daemon's process id, if it is known.
        pid: Option<u32>,
        /// The requested acceptance.
        acceptance: Acceptance,
    },
    /// The marker cannot be written.
    #[error("{0}; run the command as root or as the daemon's user")]
    File(#[from] FileError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    accepts: Acceptance,
    /// RFC 3339, in UTC.
    at: String,
}

/// Records an acceptance in `directory` for the next start of the daemon.
///
/// # Errors
/// See [`AcceptError`].
pub fn accept(directory: &Path, acceptance: Acceptance) -> Result<AcceptanceRecord, AcceptError> {
    if !directory.is_dir() {
        return Err(AcceptError::Missing { path: directory.to_path_buf() });
    }
    // Held until the marker is written, so that no daemon starts meanwhile.
    let _lock = lock(directory, acceptance)?;
    let at = current_second();
    let path = directory.join(acceptance.file());
    replace(&path, |writer| {
        writer.get_ref().set_permissions(Permissions::from_mode(MARKER_MODE))?;
        serde_json::to_writer(writer, &Marker { accepts: acceptance, at: at.to_string() })
            .map_err(io::Error::from)
    })?;
    Ok(AcceptanceRecord { by_uid: rustix::process::geteuid().as_raw(), at })
}

/// Takes the daemon's lock, if the file exists. The file is not created: the daemon could not open
/// one that root owns.
fn lock(directory: &Path, acceptance: Acceptance) -> Result<Option<File>, AcceptError> {
    let path = directory.join(LOCK);
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&path);
    let mut lock = match opened {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&path, "open the lock")(error).into()),
    };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(LOCK_RETRY),
            Err(Errno::WOULDBLOCK) => {
                let pid = read_pid(&mut lock);
                return Err(AcceptError::Running { path: directory.to_path_buf(), pid, acceptance });
            }
            Err(error) => return Err(failed(&path, "take the lock")(error.into()).into()),
        }
    }
}

impl StateDir {
    /// Takes the acceptance, if there is a valid one. The marker is removed durably
    /// before this returns. Call it at every start, even if the acceptance is not needed.
    ///
    /// # Errors
    /// When there is a marker that cannot be read or removed.
    pub fn take_acceptance(&self, acceptance: Acceptance) -> Result<Option<AcceptanceRecord>, FileError> {
        let path = self.path(acceptance.file());
        let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&path);
        let read = match opened {
            Ok(file) => read_marker(&file, acceptance, rustix::process::geteuid().as_raw()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, "read the acceptance")(error)),
        };
        disk::remove_file(&path)
            .and_then(|()| disk::sync_directory(&path))
            .map_err(failed(&path, "remove the acceptance"))?;
        match read {
            Ok(accepted) => Ok(Some(accepted)),
            Err(problem) => {
                warn!(
                    file = %path.display(),
                    problem,
                    "an acceptance is ignored and has been removed; if it is still meant: keyward state accept {}",
                    acceptance.name()
                );
                Ok(None)
            }
        }
    }
}

/// Reads and validates the marker for a daemon of the user `own`. The error is a message about what is
/// wrong with it.
fn read_marker(file: &File, acceptance: Acceptance, own: u32) -> Result<AcceptanceRecord, String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let by_uid = metadata.uid();
    if by_uid != 0 && by_uid != own {
        return Err(format!("it belongs to user {by_uid}: only root and user {own} may accept"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let Marker { accepts, at } = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let at: Timestamp = at.parse().map_err(|error| format!("at: {error}"))?;
    if accepts != acceptance {
        return Err(format!("it accepts {}", accepts.name()));
    }
    let age = current_second().duration_since(at);
    if age > MAX_AGE || age < -MAX_AHEAD {
        return Err(format!("it was made at {at}, and is valid for an hour"));
    }
    Ok(AcceptanceRecord { by_uid, at })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const LOST: Acceptance = Acceptance::LostRevocations;

    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn open(directory: &TempDir) -> StateDir {
        StateDir::open(directory.path(), true).expect("opens").expect("there")
    }

    fn write(directory: &TempDir, acceptance: Acceptance, at: Timestamp) {
        let marker = serde_json::to_vec(&Marker { accepts: acceptance, at: at.to_string() }).expect("JSON");
        fs::write(directory.path().join(LOST.file()), marker).expect("a marker");
    }

    #[test]
    fn acceptance_applies_to_one_start_and_one_decision() {
        let directory = directory();
        // First without a lock file, then with one.
        for _ in 0..2 {
            let given = accept(directory.path(), LOST).expect("accepted");
            let state = open(&directory);
            assert_eq!(state.take_acceptance(Acceptance::Source).expect("none"), None);
            assert_eq!(state.take_acceptance(LOST).expect("one"), Some(given));
            assert_eq!(state.take_acceptance(LOST).expect("none"), None);
        }
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1, "only the lock is left");
    }

    #[test]
    fn acceptance_is_refused_while_a_daemon_runs_or_without_a_directory() {
        let directory = directory();
        let state = open(&directory);
        for (acceptance, instead) in
            [(LOST, "nothing to accept"), (Acceptance::Source, "keyward reload --force")]
        {
            let refused = accept(directory.path(), acceptance).expect_err("running").to_string();
            let pid = format!("pid {}", std::process::id());
            assert!(refused.contains(&pid) && refused.contains(instead), "{refused}");
            assert_eq!(state.take_acceptance(acceptance).expect("none"), None);
        }
        let refused = accept(&directory.path().join("missing"), LOST).expect_err("missing");
        assert!(matches!(refused, AcceptError::Missing { .. }));
    }

    #[test]
    fn invalid_marker_is_removed_and_ignored() {
        let directory = directory();
        let state = open(&directory);
        let shifts = [MAX_AGE + SignedDuration::from_secs(2), -MAX_AHEAD - SignedDuration::from_secs(5)];
        for shift in shifts {
            write(&directory, LOST, current_second() - shift);
            assert!(!is_accepted(directory.path(), LOST), "{shift:?}");
            assert_eq!(state.take_acceptance(LOST).expect("ignored"), None, "{shift:?}");
            assert!(!directory.path().join(LOST.file()).exists());
        }
        write(&directory, Acceptance::Source, current_second());
        assert_eq!(state.take_acceptance(LOST).expect("ignored"), None, "it accepts something else");
        fs::write(directory.path().join(LOST.file()), "{}").expect("a marker");
        assert_eq!(state.take_acceptance(LOST).expect("ignored"), None);
        write(&directory, LOST, current_second() - MAX_AGE + SignedDuration::from_secs(5));
        assert!(is_accepted(directory.path(), LOST), "and it stays");
        assert!(state.take_acceptance(LOST).expect("one").is_some(), "just in time");
    }

    #[test]
    fn symbolic_link_is_no_acceptance() {
        let directory = directory();
        let state = open(&directory);
        let elsewhere = directory.path().join("elsewhere");
        fs::write(
            &elsewhere,
            serde_json::to_vec(&Marker { accepts: LOST, at: current_second().to_string() }).expect("JSON"),
        )
        .expect("a file");
        symlink(&elsewhere, directory.path().join(LOST.file())).expect("a link");
        assert!(state.take_acceptance(LOST).is_err());
    }
}
