//! Last good keys: the keys in force outlive the daemon, so a restart with a bad source is not an
//! outage.
//!
//! * Before a reload is answered, the accepted source is recorded ([`accepted`]).
//! * After that, a background thread writes the keys to the state directory, as a compiled file and
//!   a small [`manifest`] that names it ([`writer`]).
//! * A start reads the source first, and the guard compares it with the last good keys
//!   ([`start_guard`]), which [`recover`](mod@recover) reads from the state directory.
//! * If the source is refused, the last good keys are served instead, under the plans and the
//!   global policy of the current configuration ([`fallback`]), unless a source that was accepted
//!   later took access away.
//!
//! There are at most two compiled files on disk: the one that the manifest names, and the one that
//! is being written. The order is: write the new file, sync, rename, replace the manifest, and only
//! then unlink the older file. A daemon that is killed at any moment leaves a manifest whose file
//! is complete.
//!
//! A compiled source is not hard-linked: writing to it in place would damage the last good keys as
//! well, and they would have its owner and mode. It is cloned if the file system can share blocks,
//! and copied otherwise.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::{info, warn};

use crate::reload::{FileState, SourceFile};
use crate::revocation::Durability;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_state::{Acceptance, AcceptanceRecord, FileError, StateDir, disk, time};

mod accepted;
mod fallback;
mod manifest;
mod paced;
mod parse_settings;
mod recover;
mod sealed;
mod start_guard;
mod takeaway_file;
#[cfg(test)]
mod tests;
mod writer;

use accepted::{ACCEPTED_FILE, AcceptedSource};
use manifest::{MANIFEST, Manifest};
pub(super) use parse_settings::parse_settings_digest;
pub use recover::{RecoverError, Recovered, Superseded, recover};
pub use sealed::SealedError;
pub(in crate::reload) use takeaway_file::AppliedTakeaways;
use takeaway_file::{TAKEAWAYS_FILE, TakeawayFile};
pub(super) use writer::Job;
use writer::Writing;

/// The last good keys of a state directory. Clones share it.
#[derive(Clone)]
pub struct LastGoodStore {
    shared: Arc<SharedStore>,
}

struct SharedStore {
    directory: Arc<StateDir>,
    state: Mutex<State>,
    changed: Condvar,
    takeaways: Mutex<TakeawayFile>,
    /// Set at shutdown: the writer must not pause any more.
    stopping: AtomicBool,
}

/// The state of the store. Its lock is never held during I/O.
#[derive(Default)]
struct State {
    /// The manifest on disk.
    stored: Option<Manifest>,
    /// Whether it is not certain which manifest is on disk: it could not be read, or a loss of power
    /// may undo its replacement. Then no file is removed that one of them may name.
    is_manifest_uncertain: bool,
    /// The compiled file that this process has written, or has read from beginning to end. The file
    /// of an earlier process may be damaged.
    checked_file: Option<String>,
    /// The record of the source that was accepted last. Its keys may not be written yet.
    accepted: Option<AcceptedSource>,
    /// Why that record is not on disk, if it could not be written.
    record_error: Option<Arc<str>>,
    /// The keys to be written next.
    pending: Option<Job>,
    /// When to write again after a failure.
    retry_at: Option<time::Instant>,
    /// Consecutive failures.
    failures: u32,
    /// Consecutive writes that newer keys have cancelled.
    cancellations: u32,
    writing: Option<Writing>,
    in_use: Option<InUse>,
    unusable: Option<String>,
}

/// The last good keys are in use: they are served instead of the source.
#[derive(Clone, Debug)]
pub struct InUse {
    /// Since when.
    pub since: Instant,
    /// Why the source was refused.
    pub why: String,
}

/// The keys on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKeys {
    /// The generation of the snapshot with these keys.
    pub generation: u64,
    /// The number of keys.
    pub keys: usize,
    /// The path of the source.
    pub source: String,
    /// Unix second at which the source was written.
    pub written_at: u32,
    /// Unix second at which they came into force.
    pub accepted_at: u32,
}

/// The status of the store, for `keyward status`.
#[derive(Clone, Debug, Default)]
pub struct LastGoodStatus {
    /// The keys on disk, if there are any.
    pub stored: Option<StoredKeys>,
    /// Set while they are served.
    pub in_use: Option<InUse>,
    /// Why they cannot be served.
    pub unusable: Option<String>,
}

impl LastGoodStore {
    /// Opens the store in `directory` and starts its writer. `None`: there is no directory, or
    /// `keep` is false. In the latter case stored keys are removed, because they would grow stale.
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
        let accepted = AcceptedSource::read(&root).unwrap_or_else(|error| {
            warn!(%error, "which source was accepted last is not known; a source other than that of the last good keys is compared with them");
            None
        });
        let mut state = State { accepted, ..State::default() };
        // A manifest that cannot be used stays until other keys are stored. It is reported when it
        // is needed.
        match Manifest::read(&root) {
            Ok(stored) => {
                writer::remove_leftover_files(&root, stored.as_ref());
                state.stored = stored;
            }
            Err(_) => state.is_manifest_uncertain = true,
        }
        let shared = SharedStore {
            directory: Arc::clone(directory),
            state: Mutex::new(state),
            changed: Condvar::new(),
            takeaways: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        let last_good = Self { shared: Arc::new(shared) };
        last_good.read_takeaways();
        let writer = Arc::clone(&last_good.shared);
        std::thread::Builder::new().name("keys-writer".into()).spawn(move || writer.run())?;
        Ok(Some(last_good))
    }

    /// The generation of the keys on disk; 0 if there are none.
    pub fn generation(&self) -> u64 {
        self.shared.state().stored_generation()
    }

    /// The status of the store.
    pub fn status(&self) -> LastGoodStatus {
        let state = self.shared.state();
        LastGoodStatus {
            stored: state.stored.as_ref().map(StoredKeys::from),
            in_use: state.in_use.clone(),
            unusable: state.unusable.clone(),
        }
    }

    /// Records that a source is accepted, and whether it takes access away from keys that were in
    /// force. This precedes the answer to the reload, and waits for the disk.
    pub(super) fn record_accepted(
        &self,
        generation: u64,
        file_state: FileState,
        source: &SourceFile,
        global_policy: &GlobalPolicy,
        takes_away: bool,
    ) {
        let parse_settings = parse_settings_digest(source);
        let (takes_away, has_stored) = {
            let state = self.shared.state();
            let known = state.accepted.as_ref();
            let is_known =
                known.is_some_and(|known| known.matches(&file_state, &parse_settings, global_policy));
            if is_known && state.record_error.is_none() {
                return;
            }
            // Sources since the stored keys count together.
            let generation = state.stored_generation();
            let is_stored =
                state.stored.as_ref().is_some_and(|stored| stored.is_of(&file_state, &parse_settings));
            // Others may take their place.
            let is_storing = state.writing.is_some() || state.pending.is_some();
            let takes_away = takes_away || known.is_some_and(|known| known.takes_away_since(generation));
            // In a new directory there was nothing to take away.
            let is_first = known.is_none() && state.stored.is_none() && !state.is_manifest_uncertain;
            let has_stored = state.has_stored() || known.is_some_and(|known| known.has_stored);
            (takes_away && (!is_stored || is_storing) && !is_first, has_stored)
        };
        self.write_record(AcceptedSource::new(
            generation,
            file_state,
            parse_settings,
            global_policy,
            takes_away,
            has_stored,
        ));
    }

    /// Writes the record of the accepted source again, if that has failed, or if it does not say yet
    /// that there are keys on disk.
    pub(super) fn retry_record(&self) {
        let accepted = {
            let state = self.shared.state();
            let has_stored = state.has_stored();
            let is_due = |accepted: &AcceptedSource| {
                state.record_error.is_some() || (has_stored && !accepted.has_stored)
            };
            let accepted = state.accepted.clone().filter(is_due);
            accepted.map(|accepted| if has_stored { accepted.after_storing() } else { accepted })
        };
        if let Some(accepted) = accepted {
            self.write_record(accepted);
        }
    }

    fn write_record(&self, accepted: AcceptedSource) {
        let written = accepted.write(&self.directory());
        let health = self.shared.directory.health();
        match &written {
            Ok(()) => health.written(ACCEPTED_FILE),
            Err(error) => health.failed(ACCEPTED_FILE, error),
        }
        let mut state = self.shared.state();
        // What it says must be part of the next record, also if it is not on disk.
        state.accepted = Some(accepted);
        state.record_error = written.err().map(|error| error.to_string().into());
    }

    /// Whether a restart keeps what accepted sources have taken away. Without their record, a start
    /// that refuses the source serves the keys on disk, which may be older. It is not durable
    /// either if the latest source took nothing away: that was found in a comparison with the keys
    /// that were in force, and not with those on disk.
    pub fn durability(&self) -> Durability {
        let error = self.shared.state().record_error.clone();
        error.map_or(Durability::Durable, Durability::NotDurable)
    }

    /// Whether the source was accepted before, and so need not be compared: the record of accepted
    /// sources or the manifest names it.
    fn has_accepted(
        &self,
        file_state: &FileState,
        source: &SourceFile,
        global_policy: &GlobalPolicy,
    ) -> bool {
        let state = self.shared.state();
        is_recorded(state.stored.as_ref(), state.accepted.as_ref(), file_state, source, global_policy)
    }

    /// The manifest has been read, after it could not be at the start.
    fn manifest_read(&self, manifest: &Manifest) {
        let mut state = self.shared.state();
        if std::mem::take(&mut state.is_manifest_uncertain) {
            state.stored = Some(manifest.clone());
        }
    }

    pub(super) fn directory(&self) -> std::path::PathBuf {
        self.shared.directory.path("")
    }

    /// Takes an operator's acceptance of the source for this start, if there is one.
    fn take_acceptance(&self) -> Result<Option<AcceptanceRecord>, FileError> {
        self.shared.directory.take_acceptance(Acceptance::Source)
    }

    /// The last good keys are served. `why` is the reason why the source was refused.
    pub(super) fn set_in_use(&self, why: String) {
        let mut state = self.shared.state();
        (state.in_use, state.unusable) = (Some(InUse { since: Instant::now(), why }), None);
    }

    /// The last good keys cannot be served. Returns whether `why` is a new reason.
    pub(super) fn set_unusable(&self, why: &str) -> bool {
        let before = self.shared.state().unusable.replace(why.to_owned());
        before.as_deref() != Some(why)
    }
}

impl SharedStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The generation of the keys on disk; 0 if there are none.
    /// Whether there are keys on disk, as far as is known.
    fn has_stored(&self) -> bool {
        self.stored.is_some() || self.is_manifest_uncertain
    }

    fn stored_generation(&self) -> u64 {
        self.stored.as_ref().map_or(0, |stored| stored.generation)
    }
}

impl From<&Manifest> for StoredKeys {
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

/// Whether a start would serve the source in the state `state` without comparing it with the last
/// good keys in `directory`, because it was accepted before.
pub fn was_accepted(
    directory: &Path,
    state: &FileState,
    source: &SourceFile,
    global_policy: &GlobalPolicy,
) -> bool {
    let stored = Manifest::read(directory).ok().flatten();
    let accepted = AcceptedSource::read(directory).ok().flatten();
    is_recorded(stored.as_ref(), accepted.as_ref(), state, source, global_policy)
}

/// Whether the manifest or the record of the accepted source names the source.
fn is_recorded(
    stored: Option<&Manifest>,
    accepted: Option<&AcceptedSource>,
    file_state: &FileState,
    source: &SourceFile,
    global_policy: &GlobalPolicy,
) -> bool {
    let parse_settings = parse_settings_digest(source);
    // A record older than the keys on disk could not be replaced when they were accepted.
    let generation = stored.map_or(0, |stored| stored.generation);
    let record = accepted.filter(|accepted| accepted.generation >= generation);
    // The stored keys are not accepted again after a source that took access away from them.
    let is_superseded = accepted.is_some_and(|accepted| accepted.takes_away_since(generation));
    record.is_some_and(|accepted| accepted.matches(file_state, &parse_settings, global_policy))
        || stored.filter(|_| !is_superseded).is_some_and(|stored| {
            stored.is_of(file_state, &parse_settings) && stored.retained_hashes(global_policy).current
        })
}

/// Removes the last good keys in `directory`, if there are any.
fn remove_all(directory: &Path) {
    for name in [ACCEPTED_FILE, TAKEAWAYS_FILE, MANIFEST] {
        let file = directory.join(name);
        match disk::remove_file(&file) {
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
    writer::remove_leftover_files(directory, None);
}
