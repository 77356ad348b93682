//! The file of takeaways that refused sources have applied, for a restart that serves the last good
//! keys.
//!
//! Each takeaway records the generation of the snapshot that it was applied to. The next accepted
//! source makes it outdated. It is removed once the keys of that source are stored: until then, a
//! restart may serve the older keys.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::{error, info};

use super::{LastGoodStore, SealedError, SharedStore, sealed};
use crate::revocation::Durability;
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
    /// Whether the file could not be written or removed, and so differs.
    is_dirty: bool,
    /// Why some of the takeaways are not in the file.
    unstored: Option<Arc<str>>,
    /// Whether the file could not be read. It is left as it is until it is outdated.
    is_unread: bool,
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
        let mut file = self.shared.takeaways();
        if let Err(error) = self.read_takeaway_file(&mut file) {
            error!(%error, "the takeaways of refused sources before the restart cannot be read: the last good keys cannot be served");
            file.is_unread = true;
        }
    }

    fn read_takeaway_file(&self, file: &mut TakeawayFile) -> Result<(), SealedError> {
        let mut entries: Vec<Entry> =
            sealed::read(&self.shared.directory.path(TAKEAWAYS_FILE))?.unwrap_or_default();
        let (stored, read) = (self.generation(), entries.len());
        entries.retain(|entry| entry.generation >= stored);
        // A crash left outdated takeaways behind.
        file.is_dirty |= entries.len() < read;
        file.entries.extend(entries);
        file.is_unread = false;
        Ok(())
    }

    /// The takeaways that apply to the last good keys.
    ///
    /// # Errors
    /// When the file cannot be read, neither before nor now.
    pub(in crate::reload) fn applied_takeaways(&self) -> Result<AppliedTakeaways, SealedError> {
        let mut file = self.shared.takeaways();
        if file.is_unread {
            self.read_takeaway_file(&mut file)?;
        }
        let mut applied = AppliedTakeaways::default();
        // Decoding cannot fail: the checksum shows that this daemon wrote the hash.
        let takeaway = |entry: &Entry| Some((const_hex::decode_to_array(&entry.hash).ok()?, entry.takeaway));
        applied.extend(file.entries.iter().filter_map(takeaway));
        Ok(applied)
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
        file.unstored = self.shared.write_takeaways(&mut file).err();
    }

    /// Writes or removes the file again if that has failed.
    pub(in crate::reload) fn retry_takeaways(&self) {
        let mut file = self.shared.takeaways();
        if file.is_dirty
            && let Err(error) = self.shared.write_takeaways(&mut file)
        {
            file.unstored = file.unstored.take().map(|_| error);
        }
    }

    /// Whether a restart keeps the takeaways.
    pub fn takeaway_durability(&self) -> Durability {
        let error = self.shared.takeaways().unstored.clone();
        error.map_or(Durability::Durable, Durability::NotDurable)
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
        let was_unread = std::mem::take(&mut file.is_unread);
        if file.entries.len() < before || file.is_dirty || was_unread {
            // If that fails, the file has more than the takeaways that apply, which is harmless.
            let _ = self.write_takeaways(&mut file);
        }
    }

    /// Writes or removes the file. The caller holds the lock, because only one thread at a time may
    /// replace a file.
    ///
    /// # Errors
    /// When that fails. The error has been reported.
    fn write_takeaways(&self, file: &mut TakeawayFile) -> Result<(), Arc<str>> {
        let path = self.directory.path(TAKEAWAYS_FILE);
        let written = if file.is_unread {
            // It applies to the last good keys until others are stored.
            Err(format!(
                "{TAKEAWAYS_FILE}: it cannot be read, and is not overwritten until the keys of an accepted source are stored"
            ))
        } else if file.entries.is_empty() {
            state::remove(&path).map_err(|error| error.to_string())
        } else {
            sealed::write(&path, &file.entries).map_err(|error| error.to_string())
        };
        file.is_dirty = written.is_err();
        let health = self.directory.health();
        match written {
            Ok(()) => {
                health.written(TAKEAWAYS_FILE);
                file.unstored = None;
                if file.entries.is_empty() {
                    info!(
                        file = TAKEAWAYS_FILE,
                        "the takeaways of refused sources are removed: the keys of an accepted source are stored"
                    );
                }
                Ok(())
            }
            Err(error) => {
                health.failed(TAKEAWAYS_FILE, &error);
                Err(error.into())
            }
        }
    }
}
