//! The file of takeaways that refused sources have applied, for a restart that serves the last good
//! keys.
//!
//! Each takeaway records the generation of the snapshot that it was applied to. The next accepted
//! source makes it outdated. It is removed once the keys of that source are stored: until then, a
//! restart may serve the older keys.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::error;

use super::{LastGoodStore, SharedStore, sealed};
use keyward_engine::record::Digest;
use keyward_engine::snapshot::Takeaway;
use keyward_state as state;

/// The name of the file.
pub(super) const TAKEAWAYS_FILE: &str = "taken_away.json";

/// Takeaways, by the hash of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::reload) struct AppliedTakeaways {
    pub(in crate::reload) keys: HashMap<Digest, Takeaway>,
}

/// The content of the file, as it is or is to be written.
#[derive(Default)]
pub(super) struct TakeawayFile {
    entries: Vec<Entry>,
    /// Whether the file could not be written or read, and so may differ.
    is_dirty: bool,
}

/// A takeaway in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    hash: String,
    takeaway: Takeaway,
    /// The snapshot that it was applied to.
    generation: u64,
}

impl AppliedTakeaways {
    /// Adds takeaways. Of two for one key, the narrower one is retained.
    pub(in crate::reload) fn extend(&mut self, takeaways: impl IntoIterator<Item = (Digest, Takeaway)>) {
        for (hash, takeaway) in takeaways {
            let known = self.keys.entry(hash).or_insert(takeaway);
            *known = known.or_stricter(takeaway);
        }
    }
}

impl LastGoodStore {
    /// Reads the takeaways that were applied before the daemon was started.
    pub(super) fn read_takeaways(&self) {
        let read = sealed::read(&self.shared.directory.path(TAKEAWAYS_FILE));
        let mut file = self.shared.takeaways();
        match read {
            Ok(entries) => file.entries = entries.unwrap_or_default(),
            Err(error) => {
                error!(%error, "the takeaways of refused sources before the restart are LOST: they are no longer in force");
                self.shared.directory.health().failed(TAKEAWAYS_FILE, &error);
                file.is_dirty = true;
            }
        }
        let (stored, read) = (self.generation(), file.entries.len());
        file.entries.retain(|entry| entry.generation >= stored);
        // A crash left outdated takeaways behind.
        file.is_dirty |= file.entries.len() < read;
    }

    /// The takeaways that apply to the last good keys.
    pub(in crate::reload) fn applied_takeaways(&self) -> AppliedTakeaways {
        let mut applied = AppliedTakeaways::default();
        // Decoding cannot fail: the checksum shows that this daemon wrote the hash.
        let takeaway = |entry: &Entry| Some((const_hex::decode_to_array(&entry.hash).ok()?, entry.takeaway));
        applied.extend(self.shared.takeaways().entries.iter().filter_map(takeaway));
        applied
    }

    /// Stores the takeaways that apply to the snapshot `generation`, durably.
    pub(in crate::reload) fn store_takeaways(&self, generation: u64, applied: &AppliedTakeaways) {
        let mut file = self.shared.takeaways();
        // Takeaways from earlier snapshots stay until the keys of this snapshot are stored.
        let mut entries: HashMap<String, Entry> =
            file.entries.drain(..).map(|entry| (entry.hash.clone(), entry)).collect();
        for (hash, takeaway) in &applied.keys {
            let hash = const_hex::encode(hash);
            let before = entries.get(&hash).map_or(*takeaway, |entry| entry.takeaway);
            let takeaway = takeaway.or_stricter(before);
            entries.insert(hash.clone(), Entry { hash, takeaway, generation });
        }
        file.entries = entries.into_values().collect();
        self.shared.write_takeaways(&mut file);
    }

    /// Writes the file again if that has failed.
    pub(in crate::reload) fn retry_takeaways(&self) {
        let mut file = self.shared.takeaways();
        if file.is_dirty && !file.entries.is_empty() {
            self.shared.write_takeaways(&mut file);
        }
    }
}

impl SharedStore {
    fn takeaways(&self) -> MutexGuard<'_, TakeawayFile> {
        self.takeaways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes outdated takeaways after the keys of the snapshot `generation` have been stored.
    pub(super) fn remove_takeaways_before(&self, generation: u64) {
        let mut file = self.takeaways();
        let before = file.entries.len();
        file.entries.retain(|entry| entry.generation >= generation);
        if file.entries.len() < before || file.is_dirty {
            self.write_takeaways(&mut file);
        }
    }

    /// Writes or removes the file. The caller holds the lock, because only one thread at a time may
    /// replace a file.
    fn write_takeaways(&self, file: &mut TakeawayFile) {
        let path = self.directory.path(TAKEAWAYS_FILE);
        let written =
            if file.entries.is_empty() { state::remove(&path) } else { sealed::write(&path, &file.entries) };
        file.is_dirty = written.is_err();
        match written {
            Ok(()) => self.directory.health().written(TAKEAWAYS_FILE),
            Err(error) => self.directory.health().failed(TAKEAWAYS_FILE, &error),
        }
    }
}
