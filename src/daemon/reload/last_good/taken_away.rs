//! What refused sources have taken away from the keys in force, for a restart that serves the last good keys again.
//!
//! Each takeaway has the number of the snapshot that it was applied to. The next accepted source drops it, but not before that
//! source's keys are the last good ones: a restart may serve those before them until then.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::error;

use super::{LastGood, Shared, sealed};
use keyward_engine::record::Digest;
use keyward_engine::snapshot::Takeaway;
use keyward_state as state;

/// The name of the file.
pub(super) const TAKEN_AWAY: &str = "taken_away.json";

/// What was taken away, by the hash of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::reload) struct AppliedTakeaways {
    pub(in crate::reload) keys: HashMap<Digest, Takeaway>,
}

/// The file as it is, or is to be.
#[derive(Default)]
pub(super) struct Kept {
    keys: Vec<Key>,
    /// The file could not be written, or not be read, and is not like this.
    is_dirty: bool,
}

/// As the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    hash: String,
    takeaway: Takeaway,
    /// The snapshot that it was taken away from.
    generation: u64,
}

impl AppliedTakeaways {
    /// Adds takeaways. Of two for one key, the narrower one is kept.
    pub(in crate::reload) fn extend(&mut self, takeaways: impl IntoIterator<Item = (Digest, Takeaway)>) {
        for (hash, takeaway) in takeaways {
            let known = self.keys.entry(hash).or_insert(takeaway);
            *known = known.or_stricter(takeaway);
        }
    }
}

impl LastGood {
    /// Reads what was taken away before the daemon was started.
    pub(super) fn read_taken_away(&self) {
        let read = sealed::read(&self.shared.directory.path(TAKEN_AWAY));
        let mut kept = self.shared.taken_away();
        match read {
            Ok(keys) => kept.keys = keys.unwrap_or_default(),
            Err(error) => {
                error!(%error, "what refused exports had taken away before the restart is LOST: it is in force no more");
                self.shared.directory.health().failed(TAKEN_AWAY, &error);
                kept.is_dirty = true;
            }
        }
        let (stored, read) = (self.generation(), kept.keys.len());
        kept.keys.retain(|key| key.generation >= stored);
        // The file was left behind by a crash.
        kept.is_dirty |= kept.keys.len() < read;
    }

    /// What was taken away from the last good keys.
    pub(in crate::reload) fn taken_away(&self) -> AppliedTakeaways {
        let mut taken_away = AppliedTakeaways::default();
        // What is sealed was written here.
        let key = |key: &Key| Some((const_hex::decode_to_array(&key.hash).ok()?, key.takeaway));
        taken_away.extend(self.shared.taken_away().keys.iter().filter_map(key));
        taken_away
    }

    /// Keeps what was taken away from the snapshot `generation`, durably.
    pub(in crate::reload) fn keep_taken_away(&self, generation: u64, taken_away: &AppliedTakeaways) {
        let mut kept = self.shared.taken_away();
        // What was taken from a key before it was taken from this snapshot holds until the last good keys are these.
        let mut keys: HashMap<String, Key> = kept.keys.drain(..).map(|key| (key.hash.clone(), key)).collect();
        for (hash, takeaway) in &taken_away.keys {
            let hash = const_hex::encode(hash);
            let before = keys.get(&hash).map_or(*takeaway, |key| key.takeaway);
            let takeaway = takeaway.or_stricter(before);
            keys.insert(hash.clone(), Key { hash, takeaway, generation });
        }
        kept.keys = keys.into_values().collect();
        self.shared.write_taken_away(&mut kept);
    }

    /// Writes the file again, if that failed before.
    pub(in crate::reload) fn retry_taken_away(&self) {
        let mut kept = self.shared.taken_away();
        if kept.is_dirty && !kept.keys.is_empty() {
            self.shared.write_taken_away(&mut kept);
        }
    }
}

impl Shared {
    fn taken_away(&self) -> MutexGuard<'_, Kept> {
        self.taken_away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys of the snapshot `generation` are the last good ones now.
    pub(super) fn drop_taken_away_before(&self, generation: u64) {
        let mut kept = self.taken_away();
        let before = kept.keys.len();
        kept.keys.retain(|key| key.generation >= generation);
        if kept.keys.len() < before || kept.is_dirty {
            self.write_taken_away(&mut kept);
        }
    }

    /// Held meanwhile: one thread at a time may replace a file.
    fn write_taken_away(&self, kept: &mut Kept) {
        let path = self.directory.path(TAKEN_AWAY);
        let written = match kept.keys.is_empty() {
            true => state::remove(&path),
            false => sealed::write(&path, &kept.keys),
        };
        kept.is_dirty = written.is_err();
        match written {
            Ok(()) => self.directory.health().written(TAKEN_AWAY),
            Err(error) => self.directory.health().failed(TAKEN_AWAY, &error),
        }
    }
}
