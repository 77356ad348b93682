//! Last good keys: what was in force outlives the daemon, so that a restart beside a bad source is no outage.
//!
//! * After each accepted reload, a thread of its own writes the keys to the state directory, as a compiled file beside a small
//!   [`manifest`] that names it ([`writer`]).
//! * At a start the source is read first, and judged against the last good keys. If it is refused, they are served in its
//!   place, under the plans and rules of the configuration as it is now ([`recover`]).
//! * Which source was accepted is recorded before that, and before the reload is answered ([`accepted`]).
//!
//! On the disk are at most two compiled files: the one that the manifest names, and the one that is being written. The order is:
//! write the new file, sync, rename, replace the manifest, and only then unlink the older file. A daemon that is killed at any
//! moment leaves a manifest whose file is whole.
//!
//! A compiled source is not hard-linked: writing to it in place would damage the last good keys with it, and its owner and its
//! mode would be theirs. It is cloned where the file system can share blocks, and copied otherwise.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::{info, warn};

use crate::reload::{FileState, SourceFile};
use keyward_engine::rules::GlobalPolicy;
use keyward_state::{Acceptance, AcceptanceRecord, FileError, StateDir};

mod accepted;
mod manifest;
mod recover;
mod sealed;
mod taken_away;
#[cfg(test)]
mod tests;
mod writer;

use accepted::{ACCEPTED, AcceptedSource};
pub(super) use manifest::reading;
use manifest::{MANIFEST, Manifest};
pub use recover::{Recovered, Unusable, recover};
pub(in crate::reload) use taken_away::AppliedTakeaways;
use taken_away::TAKEN_AWAY;
pub(super) use writer::Job;
use writer::Writing;

/// The last good keys of a state directory; clones are the same.
#[derive(Clone)]
pub struct LastGood {
    shared: Arc<Shared>,
}

struct Shared {
    directory: Arc<StateDir>,
    slot: Mutex<Slot>,
    changed: Condvar,
    taken_away: Mutex<taken_away::Kept>,
    /// The daemon ends: what is being written is not to pause.
    stopping: AtomicBool,
}

/// Held for moments: no disk is waited for under it.
#[derive(Default)]
struct Slot {
    /// What is on the disk.
    stored: Option<Manifest>,
    /// The source that was accepted last, as far as it is recorded. Its keys may still have to be written.
    accepted: Option<AcceptedSource>,
    /// What is to be written next.
    pending: Option<Job>,
    /// When that failed before, when it is tried again.
    retry_at: Option<Instant>,
    /// Attempts that failed one after another.
    failures: u32,
    writing: Option<Writing>,
    in_use: Option<InUse>,
    unusable: Option<String>,
}

/// The last good keys are served in place of the source.
#[derive(Clone, Debug)]
pub struct InUse {
    /// Since when.
    pub since: Instant,
    /// What was wrong with the source.
    pub why: String,
}

/// What is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The snapshot that the keys were accepted as.
    pub generation: u64,
    /// How many there are.
    pub keys: usize,
    /// Where they came from.
    pub source: String,
    /// Unix second at which the source was written.
    pub written_at: u32,
    /// Unix second at which they came into force.
    pub accepted_at: u32,
}

/// How it is, for `keyward status`.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What is on the disk, if there is anything.
    pub stored: Option<Stored>,
    /// Whether it is served, and why.
    pub in_use: Option<InUse>,
    /// Why it cannot be served.
    pub unusable: Option<String>,
}

impl LastGood {
    /// The last good keys of `directory`, and the thread that writes the next ones. `None`: there is no directory, or they are
    /// not to be kept; then what is there is removed, because it would be older from day to day.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn open(directory: Option<&Arc<StateDir>>, keep: bool) -> io::Result<Option<Self>> {
        let Some(directory) = directory else { return Ok(None) };
        let root = directory.path("");
        if !keep {
            remove_all(&root);
            return Ok(None);
        }
        let mut slot = Slot { accepted: AcceptedSource::read(&root), ..Slot::default() };
        // What cannot be used is left as it is until there are other keys to be kept, and reported when it is needed.
        if let Ok(stored) = Manifest::read(&root) {
            writer::clean(&root, stored.as_ref());
            slot.stored = stored;
        }
        let shared = Shared {
            directory: Arc::clone(directory),
            slot: Mutex::new(slot),
            changed: Condvar::new(),
            taken_away: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        let last_good = Self { shared: Arc::new(shared) };
        last_good.read_taken_away();
        let writer = Arc::clone(&last_good.shared);
        std::thread::Builder::new().name("keys-writer".into()).spawn(move || writer.run())?;
        Ok(Some(last_good))
    }

    /// The generation that the keys on the disk had; 0 if there are none.
    pub fn generation(&self) -> u64 {
        self.shared.slot().stored.as_ref().map_or(0, |stored| stored.generation)
    }

    /// How it is.
    pub fn state(&self) -> State {
        let slot = self.shared.slot();
        State {
            stored: slot.stored.as_ref().map(Stored::from),
            in_use: slot.in_use.clone(),
            unusable: slot.unusable.clone(),
        }
    }

    /// Records that a source is accepted, before the reload is answered. Waits for the disk.
    pub(super) fn record_accepted(
        &self,
        generation: u64,
        state: FileState,
        source: &SourceFile,
        global_policy: &GlobalPolicy,
    ) {
        let reading = reading(source);
        if self.shared.slot().accepted.as_ref().is_some_and(|known| known.is(&state, &reading, global_policy))
        {
            return;
        }
        let accepted = AcceptedSource::new(generation, state, reading, global_policy);
        let health = self.shared.directory.health();
        match accepted.write(&self.directory()) {
            Ok(()) => {
                health.written(ACCEPTED);
                self.shared.slot().accepted = Some(accepted);
            }
            Err(error) => health.failed(ACCEPTED, &error),
        }
    }

    /// Whether a source was accepted before, so that it need not be compared: recorded as such, or kept with its keys.
    fn has_accepted(&self, state: &FileState, source: &SourceFile, global_policy: &GlobalPolicy) -> bool {
        let (slot, reading) = (self.shared.slot(), reading(source));
        // An older record was not replaced when the keys on the disk were accepted.
        let stored = slot.stored.as_ref().map_or(0, |stored| stored.generation);
        let record = slot.accepted.as_ref().filter(|accepted| accepted.generation >= stored);
        let is_recorded = record.is_some_and(|accepted| accepted.is(state, &reading, global_policy));
        let is_stored =
            |stored: &Manifest| stored.is_of(state, &reading) && stored.usable_hashes(global_policy).current;
        is_recorded || slot.stored.as_ref().is_some_and(is_stored)
    }

    fn manifest(&self) -> Option<Manifest> {
        self.shared.slot().stored.clone()
    }

    pub(super) fn directory(&self) -> std::path::PathBuf {
        self.shared.directory.path("")
    }

    /// The decision of an operator for this start, if there is one; there is none after that.
    fn take_acceptance(&self) -> Result<Option<AcceptanceRecord>, FileError> {
        self.shared.directory.take_acceptance(Acceptance::Source)
    }

    /// They are served, because of what was wrong with the source.
    pub(super) fn set_in_use(&self, why: String) {
        let mut slot = self.shared.slot();
        (slot.in_use, slot.unusable) = (Some(InUse { since: Instant::now(), why }), None);
    }

    /// They cannot be served. Returns whether that was not known.
    pub(super) fn set_unusable(&self, why: &str) -> bool {
        let before = self.shared.slot().unusable.replace(why.to_owned());
        before.as_deref() != Some(why)
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Manifest> for Stored {
    fn from(manifest: &Manifest) -> Self {
        let Manifest { generation, keys, source, written_at, accepted_at, .. } = manifest;
        Self {
            generation: *generation,
            keys: *keys,
            source: source.clone(),
            written_at: *written_at,
            accepted_at: *accepted_at,
        }
    }
}

/// Removes the last good keys in `directory`, if there are any.
fn remove_all(directory: &Path) {
    for name in [ACCEPTED, TAKEN_AWAY, MANIFEST] {
        let file = directory.join(name);
        match std::fs::remove_file(&file) {
            Ok(()) if name == MANIFEST => {
                info!("state.keep_snapshot is false: the last good keys have been removed")
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let file = file.display();
                warn!(%file, %error, "state.keep_snapshot is false, but the last good keys cannot be removed");
            }
        }
    }
    writer::clean(directory, None);
}
