//! What refused exports have taken away from the keys in force, for a restart that serves the last good keys again.
//!
//! The file is removed as soon as a source is accepted. One that was left behind is told by its generation: it is older than the
//! last good keys.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tracing::error;

use super::{LastGood, sealed};
use crate::record::Digest;
use crate::snapshot::Takeaway;
use crate::state;

/// The name of the file.
pub(super) const TAKEN_AWAY: &str = "taken_away.json";

/// What was taken away, by the hash of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::reload) struct TakenAway {
    pub(in crate::reload) keys: HashMap<Digest, Takeaway>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// The snapshot that they were taken away from.
    generation: u64,
    keys: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    hash: String,
    takeaway: Takeaway,
}

impl TakenAway {
    /// Adds to it. What is narrower holds.
    pub(in crate::reload) fn extend(&mut self, takeaways: impl IntoIterator<Item = (Digest, Takeaway)>) {
        for (hash, takeaway) in takeaways {
            let known = self.keys.entry(hash).or_insert(takeaway);
            *known = known.or_narrower(takeaway);
        }
    }
}

impl LastGood {
    /// What was taken away from the last good keys before the daemon was started.
    pub(in crate::reload) fn taken_away(&self) -> TakenAway {
        let read = sealed::read::<Content>(&self.shared.directory.path(TAKEN_AWAY));
        let content = read.unwrap_or_else(|error| {
            error!(%error, "what refused exports had taken away before the restart is not known any more");
            None
        });
        let content = content.filter(|content| content.generation >= self.generation());
        let keys = content.into_iter().flat_map(|content| content.keys);
        // What is sealed was written here.
        let key = |key: Key| Some((const_hex::decode_to_array(key.hash).ok()?, key.takeaway));
        TakenAway { keys: keys.filter_map(key).collect() }
    }

    /// Keeps what was taken away from the snapshot `generation`, durably. Nothing is left of what was kept before.
    pub(in crate::reload) fn keep_taken_away(&self, generation: u64, taken_away: &TakenAway) {
        let path = self.shared.directory.path(TAKEN_AWAY);
        let kept = if taken_away.keys.is_empty() {
            state::remove(&path)
        } else {
            let keys = taken_away
                .keys
                .iter()
                .map(|(hash, takeaway)| Key { hash: const_hex::encode(hash), takeaway: *takeaway });
            sealed::write(&path, &Content { generation, keys: keys.collect() })
        };
        match kept {
            Ok(()) => self.shared.directory.health().written(TAKEN_AWAY),
            Err(error) => self.shared.directory.health().failed(TAKEN_AWAY, &error),
        }
    }
}
