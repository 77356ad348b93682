//! Reading the saved balances at a start, and what to do if they are lost.
//!
//! A lost file must not refill calendar quotas and credits quietly: a bucket is full again soon
//! anyway, but credits would be granted twice. So keys with such limits are refused, until an
//! operator accepts the loss. A directory without a file of balances has lost it if a daemon has
//! served from it: the first start writes the file before any other file but the list of
//! revocations.
//!
//! Keys without such limits are served meanwhile, and their balances saved. The file
//! [`LOSS_FILE`] tells later starts that the loss has not been accepted, although there is a file of
//! balances again.

use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, warn};

use keyward_engine::limiter::ClockReading;
use keyward_engine::limiter::persist::{DecodeError, SavedBalances, decode, encode};
use keyward_state::{self as state, Acceptance, AcceptanceRecord, FileError, StateDir, disk};

use super::{DAMAGED, FILE};

/// The file that exists while a loss has not been accepted.
pub(super) const LOSS_FILE: &str = "lost_balances";

/// Bytes of the file that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// What was read from the state directory.
#[derive(Default)]
pub struct LoadedBalances {
    /// `None`: there are none.
    pub(super) saved: Option<SavedBalances>,
    /// Why there are none, although a daemon has saved some.
    loss: Option<BalanceLoss>,
    accepted: Option<AcceptanceRecord>,
    /// Whether [`LOSS_FILE`] exists.
    is_recorded: bool,
}

/// Balances that a daemon has saved and that are not there any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalanceLoss {
    /// The file is gone.
    #[error("{}: the saved balances are missing, although a daemon has used this directory", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("{}: the saved balances cannot be used: {problem}; {renamed}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// Where the file is now.
        renamed: String,
    },
    /// They were lost before, and balances have been saved since.
    #[error("{}: saved balances were lost, and no operator has accepted that yet", path.display())]
    Earlier {
        /// [`LOSS_FILE`].
        path: PathBuf,
    },
}

impl LoadedBalances {
    /// The loss that prevents keys with calendar quotas or credits from being served, unless an
    /// operator has accepted it.
    pub fn pending_loss(&self) -> PendingLoss {
        let loss = self.loss.clone().filter(|_| self.accepted.is_none());
        PendingLoss { loss: Arc::new(Mutex::new(loss)), is_recorded: self.is_recorded }
    }

    pub(super) fn has_loss_file(&self) -> bool {
        self.is_recorded
    }

    /// The acceptance of a loss, if there was one.
    pub fn accepted_loss(&self) -> Option<AcceptanceRecord> {
        self.accepted.filter(|_| self.loss.is_some())
    }
}

/// A loss that no operator has accepted yet, shared by the threads that reload and that save.
#[derive(Clone, Debug, Default)]
pub struct PendingLoss {
    loss: Arc<Mutex<Option<BalanceLoss>>>,
    is_recorded: bool,
}

impl PendingLoss {
    /// The loss, if there is one.
    pub fn get(&self) -> Option<BalanceLoss> {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is one.
    pub(super) fn is_pending(&self) -> bool {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether nothing may be saved: without [`LOSS_FILE`], a file of balances would hide the loss
    /// from the next start.
    pub(super) fn prevents_saving(&self) -> bool {
        !self.is_recorded && self.is_pending()
    }

    /// An operator has accepted the loss.
    pub fn accept(&self) {
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Reads the balances in `directory`. Call it after the list of revocations has been read, and before
/// any other file of the directory is created: it creates the first file of a new directory.
///
/// # Errors
/// When the file exists and cannot be read.
pub fn load(directory: &StateDir) -> Result<LoadedBalances, FileError> {
    let accepted = directory.take_acceptance(Acceptance::LostBalances)?;
    let path = directory.path(FILE);
    let (saved, loss) = match read(&path)? {
        Found::Balances(saved) => (Some(saved), None),
        Found::Damaged(problem) => {
            let renamed = set_aside(&path, &directory.path(DAMAGED));
            (None, Some(BalanceLoss::Damaged { path, problem, renamed }))
        }
        Found::Nothing if directory.first_state_file().is_some() => {
            (None, Some(BalanceLoss::Missing { path }))
        }
        Found::Nothing => {
            write_first(directory, &path);
            (None, None)
        }
    };
    let mut is_recorded = exists(&directory.path(LOSS_FILE));
    let loss = loss.or(is_recorded.then(|| BalanceLoss::Earlier { path: directory.path(LOSS_FILE) }));
    if let Some(loss) = &loss {
        error!(loss = loss.to_string(), "saved balances are lost: buckets began full");
        match accepted {
            Some(AcceptanceRecord { by_uid, at }) => {
                warn!(by_uid, %at, "a loss of balances has been accepted: calendar quotas and credits begin unspent");
            }
            None => is_recorded = is_recorded || record_loss(directory, loss),
        }
    }
    Ok(LoadedBalances { saved, loss, accepted, is_recorded })
}

/// Whether there is a file at `path`, or that cannot be determined.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true)
}

/// Creates [`LOSS_FILE`]. Returns whether that was possible.
fn record_loss(directory: &StateDir, loss: &BalanceLoss) -> bool {
    let written = state::replace(&directory.path(LOSS_FILE), |file| writeln!(file, "{loss}"));
    match &written {
        Ok(()) => directory.health().written(LOSS_FILE),
        // Until an operator decides, no balances are saved. The next start finds the loss again.
        Err(error) => directory.health().failed(LOSS_FILE, error),
    }
    written.is_ok()
}

/// Removes [`LOSS_FILE`]: an operator has accepted the loss, and balances have been saved since.
///
/// # Errors
/// When it exists and cannot be removed durably. The next start finds the loss again.
pub(super) fn forget_loss(directory: &StateDir) -> Result<(), FileError> {
    let path = directory.path(LOSS_FILE);
    let removed = disk::remove_file(&path).and_then(|()| disk::sync_directory(&path));
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError { path, action: "remove it", error })
        }
        _ => Ok(()),
    }
}

/// The loss that the next start in `directory` would find and no operator has accepted. Changes no
/// file.
///
/// # Errors
/// When the file exists and cannot be read.
pub fn preview(directory: &Path) -> Result<Option<BalanceLoss>, FileError> {
    let path = directory.join(FILE);
    let loss = match read(&path)? {
        Found::Balances(_) => None,
        Found::Damaged(problem) => {
            let renamed = format!("a start renames it to {DAMAGED}");
            Some(BalanceLoss::Damaged { path, problem, renamed })
        }
        Found::Nothing => state::first_state_file(directory).map(|_| BalanceLoss::Missing { path }),
    };
    let earlier = directory.join(LOSS_FILE);
    let loss = loss.or_else(|| exists(&earlier).then_some(BalanceLoss::Earlier { path: earlier }));
    Ok(loss.filter(|_| !state::is_accepted(directory, Acceptance::LostBalances)))
}

enum Found {
    Balances(SavedBalances),
    Damaged(String),
    Nothing,
}

fn read(path: &Path) -> Result<Found, FileError> {
    let unreadable = |error| FileError { path: path.to_owned(), action: "read it", error };
    match state::open_to_read(path) {
        // Decoded while it is read: a file that is damaged may have any length.
        Ok(file) => match decode(&mut BufReader::with_capacity(READ_BYTES, file)) {
            Ok(saved) => Ok(Found::Balances(saved)),
            Err(DecodeError::Io(error)) => Err(unreadable(error)),
            Err(error) => Ok(Found::Damaged(error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        // It is not a regular file, so it holds no balances.
        Err(error) if error.kind() == io::ErrorKind::Other => Ok(Found::Damaged(error.to_string())),
        Err(error) => Err(unreadable(error)),
    }
}

/// Renames a file that cannot be used.
fn set_aside(path: &Path, aside: &Path) -> String {
    match disk::rename(path, aside) {
        Ok(()) => format!("it is now {}", aside.display()),
        Err(error) => format!("it cannot be renamed to {}: {error}", aside.display()),
    }
}

/// Writes an empty file, which shows later that no balances have been lost.
fn write_first(directory: &StateDir, path: &Path) {
    let never = ClockReading { boot_id: None, boottime: 0, boottime_offset: None, realtime: 0 };
    match state::replace(path, |file| encode(&never, 0, std::iter::empty(), file)) {
        Ok(()) => directory.health().written(FILE),
        // It is written again with the first save.
        Err(error) => directory.health().failed(FILE, &error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use keyward_state::accept;

    /// Loads as a start does, and returns whether a loss is pending, and whether one was accepted.
    fn load_once(directory: &Path) -> (bool, bool) {
        let state = StateDir::open(directory, true).expect("opens").expect("there is one");
        let loaded = load(&state).expect("reads");
        (loaded.pending_loss().is_pending(), loaded.accepted_loss().is_some())
    }

    #[test]
    fn acceptance_applies_to_one_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        assert_eq!(load_once(path), (false, false), "a new directory");
        assert!(path.join(FILE).exists(), "its first file");
        fs::write(path.join("usage.jsonl"), "x").expect("writes");
        let lose = || fs::remove_file(path.join(FILE)).expect("removes");
        let accept = || accept(path, Acceptance::LostBalances).expect("accepts");

        accept();
        assert_eq!(load_once(path), (false, false), "nothing is lost");
        lose();
        assert_eq!(load_once(path), (true, false), "the acceptance is used up");
        accept();
        assert_eq!(load_once(path), (false, true));
        assert_eq!(load_once(path), (true, false), "it is not used twice");
        fs::write(path.join(FILE), "damaged").expect("writes");
        assert_eq!(load_once(path), (true, false));
        assert_eq!(fs::read_to_string(path.join(DAMAGED)).expect("reads"), "damaged");
    }

    #[test]
    fn nothing_is_saved_over_a_loss_that_cannot_be_recorded() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("usage.jsonl"), "x").expect("writes");
        fs::create_dir(directory.path().join(format!("{LOSS_FILE}.new"))).expect("creates an obstacle");
        let state = StateDir::open(directory.path(), true).expect("opens").expect("there is one");
        let pending = load(&state).expect("reads").pending_loss();
        assert!(pending.is_pending() && pending.prevents_saving());
        pending.accept();
        assert!(!pending.prevents_saving());
    }
}
