//! The record of the source that was accepted last. It is written before a reload is answered; the
//! keys themselves are written in the background.
//!
//! A daemon that is killed between the two leaves keys on disk that are older than those it served.
//! Without the record, the next start would compare the source with these keys again. It would
//! refuse a source that an operator had forced, and one whose changes were accepted in several
//! steps.
//!
//! The record identifies the source by its [`FileState`], not by its content. A damaged or missing
//! record costs only a comparison, so it has no checksum.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::manifest::{pepper_fingerprints, retained_hashes};
use crate::reload::FileState;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_state::{self as state, FileError};

/// The name of the file.
pub(super) const ACCEPTED_FILE: &str = "accepted_source.json";

/// A source that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptedSource {
    /// The generation of the snapshot that it became.
    pub(super) generation: u64,
    state: FileState,
    #[serde(rename = "reading")]
    parse_settings: String,
    peppers: Vec<String>,
}

impl AcceptedSource {
    /// A source in the state `state`, parsed with the settings that have the digest
    /// `parse_settings`.
    pub(super) fn new(
        generation: u64,
        state: FileState,
        parse_settings: String,
        global_policy: &GlobalPolicy,
    ) -> Self {
        Self { generation, state, parse_settings, peppers: pepper_fingerprints(global_policy) }
    }

    /// The record in `directory`, if there is one that can be read.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let path = directory.join(ACCEPTED_FILE);
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
    /// When it cannot be written; then the previous record is still there.
    pub(super) fn write(&self, directory: &Path) -> Result<(), FileError> {
        state::replace(&directory.join(ACCEPTED_FILE), |file| {
            serde_json::to_writer(&mut *file, self)?;
            file.write_all(b"\n")
        })
    }

    /// Whether a file in this state, parsed with these settings, is the accepted source, and its
    /// hashes are still found.
    pub(super) fn matches(
        &self,
        state: &FileState,
        parse_settings: &str,
        global_policy: &GlobalPolicy,
    ) -> bool {
        self.state == *state
            && self.parse_settings == parse_settings
            && retained_hashes(&self.peppers, global_policy).current
    }
}
