//! Reading the saved balances at a start, and what to do if they are lost.
//!
//! A lost file must not refill calendar quotas and credits quietly: a bucket is full again soon
//! anyway, but credits would be granted twice. So keys with such limits are refused, until an
//! operator accepts the loss. A directory without a file of balances has lost it if a daemon has
//! served from it: the first start writes the file before any other file but the list of
//! revocations.
//!
//! Keys without such limits are served meanwhile, and their balances saved. The file [`LOSS_FILE`]
//! then tells later starts that the loss has not been accepted, although there is a file of balances
//! again. The first save over the loss writes it, and no start does: if the file of balances is back
//! at the next start (it was on a disk that was not mounted), nothing has been lost.

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
        PendingLoss(Arc::new(Mutex::new(loss)))
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
pub struct PendingLoss(Arc<Mutex<Option<BalanceLoss>>>);

impl PendingLoss {
    /// The loss, if there is one.
    pub fn get(&self) -> Option<BalanceLoss> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is one.
    pub(super) fn is_pending(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// An operator has accepted the loss.
    pub fn accept(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Reads the balances in `directory`. Call it after the list of revocations has been read, and before
/// any other file of the directory is created: it creates the first file of a new directory.
/// `has_served`: whether that list shows that a daemon has served from the directory.
///
/// # Errors
/// When the file exists and cannot be read.
pub fn load(directory: &StateDir, has_served: bool) -> Result<LoadedBalances, FileError> {
    let accepted = directory.take_acceptance(Acceptance::LostBalances)?;
    let mut found = FoundBalances::read(&directory.path(""), has_served)?;
    match &mut found {
        FoundBalances { loss: Some(BalanceLoss::Damaged { path, renamed, .. }), .. } => {
            *renamed = set_aside(path, &directory.path(DAMAGED));
        }
        FoundBalances { saved: None, loss: None, .. } => write_first(directory),
        FoundBalances { .. } => {}
    }
    let FoundBalances { saved, loss, is_recorded } = found;
    if let Some(loss) = &loss {
        error!(loss = loss.to_string(), "saved balances are lost: buckets began full");
        if let Some(AcceptanceRecord { by_uid, at }) = accepted {
            warn!(by_uid, %at, "a loss of balances has been accepted: calendar quotas and credits begin unspent");
        }
    }
    Ok(LoadedBalances { saved, loss, accepted, is_recorded })
}

/// The loss that the next start in `directory` would find and no operator has accepted. Changes no
/// file. `has_served` is as in [`load`].
///
/// # Errors
/// When the file exists and cannot be read, so a start would fail.
pub fn preview(directory: &Path, has_served: bool) -> Result<Option<BalanceLoss>, FileError> {
    let loss = FoundBalances::read(directory, has_served)?.loss;
    Ok(loss.filter(|_| !state::is_accepted(directory, Acceptance::LostBalances)))
}

/// What a start finds in a state directory.
struct FoundBalances {
    saved: Option<SavedBalances>,
    loss: Option<BalanceLoss>,
    /// Whether [`LOSS_FILE`] exists.
    is_recorded: bool,
}

impl FoundBalances {
    fn read(directory: &Path, has_served: bool) -> Result<Self, FileError> {
        let [path, record] = [FILE, LOSS_FILE].map(|name| directory.join(name));
        // A damaged file may have been empty, and an empty file is not counted.
        let has_served =
            || has_served || state::first_state_file(directory).is_some() || exists(&directory.join(DAMAGED));
        let (saved, loss) = match read(&path)? {
            Content::Balances(saved) => (Some(saved), None),
            Content::Unusable(problem) => {
                let renamed = format!("a start renames it to {DAMAGED}");
                (None, Some(BalanceLoss::Damaged { path, problem, renamed }))
            }
            Content::Nothing => (None, has_served().then_some(BalanceLoss::Missing { path })),
        };
        let is_recorded = exists(&record);
        let loss = loss.or_else(|| is_recorded.then_some(BalanceLoss::Earlier { path: record }));
        Ok(Self { saved, loss, is_recorded })
    }
}

/// Whether there is a file at `path`, or that cannot be determined.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true)
}

/// Creates [`LOSS_FILE`], before balances are saved over the loss.
///
/// # Errors
/// When that fails. Then nothing may be saved: it would hide the loss from the next start.
pub(super) fn record_loss(directory: &StateDir, loss: &BalanceLoss) -> Result<(), FileError> {
    state::replace(&directory.path(LOSS_FILE), |file| writeln!(file, "{loss}"))
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

/// What the file has.
enum Content {
    Balances(SavedBalances),
    /// Why it cannot be used.
    Unusable(String),
    Nothing,
}

fn read(path: &Path) -> Result<Content, FileError> {
    let unreadable = |error| FileError { path: path.to_owned(), action: "read it", error };
    match state::open_to_read(path) {
        // Decoded while it is read: a file that is damaged may have any length.
        Ok(file) => match decode(&mut BufReader::with_capacity(READ_BYTES, file)) {
            Ok(saved) => Ok(Content::Balances(saved)),
            Err(DecodeError::Io(error)) => Err(unreadable(error)),
            Err(error @ DecodeError::Version(_)) => Ok(Content::Unusable(format!(
                "{error}. It is not damaged: start the keyward that wrote it, with the file under its own name ({FILE}), \
                 or accept that these balances are lost"
            ))),
            Err(error) => Ok(Content::Unusable(error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::Nothing),
        // It is not a regular file, so it holds no balances.
        Err(error) if error.kind() == io::ErrorKind::Other => Ok(Content::Unusable(error.to_string())),
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
fn write_first(directory: &StateDir) {
    let never = ClockReading { boot_id: None, boottime: 0, boottime_offset: None, realtime: 0 };
    match state::replace(&directory.path(FILE), |file| encode(&never, 0, std::iter::empty(), file)) {
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
        let loaded = load(&state, false).expect("reads");
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

    /// The file is on a disk that is mounted late.
    #[test]
    fn missing_file_that_is_back_at_the_next_start_is_no_loss() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        assert_eq!(load_once(path), (false, false), "a new directory");
        fs::write(path.join("usage.jsonl"), "x").expect("writes");
        fs::rename(path.join(FILE), path.join("away")).expect("renames");
        assert_eq!(load_once(path), (true, false));
        assert_eq!(load_once(path), (true, false), "it is still missing");
        fs::rename(path.join("away"), path.join(FILE)).expect("renames");
        assert_eq!(load_once(path), (false, false));
    }

    /// Whatever the start finds next: the damaged file has been renamed.
    #[test]
    fn damaged_file_is_a_loss_at_every_start() {
        for content in ["damaged", ""] {
            let directory = tempfile::tempdir().expect("a directory");
            fs::write(directory.path().join(FILE), content).expect("writes");
            for _ in 0..3 {
                assert_eq!(load_once(directory.path()), (true, false), "{content:?}");
                assert!(!directory.path().join(FILE).exists() && directory.path().join(DAMAGED).exists());
            }
        }
    }

    /// The list of revocations is older than the file of balances only in a directory of which a
    /// first start has not got further.
    #[test]
    fn list_of_revocations_that_has_changed_shows_that_balances_are_lost() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("opens").expect("there is one");
        assert_eq!(preview(directory.path(), false).expect("reads"), None);
        assert!(preview(directory.path(), true).expect("reads").is_some());
        assert!(load(&state, true).expect("reads").pending_loss().is_pending());
        assert!(!directory.path().join(FILE).exists());
        assert!(!load(&state, false).expect("reads").pending_loss().is_pending());
        assert!(directory.path().join(FILE).exists());
    }
}
