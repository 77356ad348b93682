//! Which source was accepted last: recorded before a reload is answered, in contrast to the keys themselves, which are
//! written in the background.
//!
//! A daemon that is killed between the two finds keys on the disk that are older than those it served. Without the record, the
//! source would be compared with them again at the next start: one that an operator had forced would be refused, and so
//! would one whose changes were accepted in several steps.
//!
//! The record says nothing of the source's content but its [`FileState`]. A record that is damaged or missing costs a
//! comparison, so it has no checksum.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::manifest::{peppers, usable_hashes};
use crate::reload::FileState;
use keyward_engine::rules::GlobalPolicy;
use keyward_state::{self as state, FileError};

/// The name of the record.
pub(super) const ACCEPTED: &str = "accepted_source.json";

/// A source that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptedSource {
    /// The snapshot that it was accepted as.
    pub(super) generation: u64,
    state: FileState,
    reading: String,
    peppers: Vec<String>,
}

impl AcceptedSource {
    /// A source in the state `state`, read as `reading` says.
    pub(super) fn new(
        generation: u64,
        state: FileState,
        reading: String,
        global_policy: &GlobalPolicy,
    ) -> Self {
        Self { generation, state, reading, peppers: peppers(global_policy) }
    }

    /// The record in `directory`, if there is one that can be read.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let path = directory.join(ACCEPTED);
        let content = state::read(&path).map_err(|error| error.to_string());
        let record = content.and_then(|content| {
            content
                .map(|content| serde_json::from_slice(&content))
                .transpose()
                .map_err(|error| error.to_string())
        });
        record.unwrap_or_else(|error| {
            let file = path.display();
            warn!(%file, error, "which source was accepted last is not known; it is compared with the last good keys");
            None
        })
    }

    /// Replaces the record in `directory`, durably.
    ///
    /// # Errors
    /// When it cannot be written; then the one before is there.
    pub(super) fn write(&self, directory: &Path) -> Result<(), FileError> {
        state::replace(&directory.join(ACCEPTED), |file| {
            serde_json::to_writer(&mut *file, self)?;
            file.write_all(b"\n")
        })
    }

    /// Whether it is this source, in this state and read in this way, and its hashes are found by `rules`.
    pub(super) fn is(&self, state: &FileState, reading: &str, global_policy: &GlobalPolicy) -> bool {
        self.state == *state && self.reading == reading && usable_hashes(&self.peppers, global_policy).current
    }
}
