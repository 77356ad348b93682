//! The record of the source that was accepted last. It is written before a reload is answered; the
//! keys themselves are written in the background.
//!
//! A daemon that is killed between the two leaves keys on disk that are older than those it served.
//! Without the record, the next start would compare the source with these keys again. It would
//! refuse a source that an operator had forced, and one whose changes were accepted in several
//! steps.
//!
//! The record also says whether the source took access away. Then the older keys on disk are not
//! served in place of it.
//!
//! The record identifies the source by its [`FileState`], not by its content. Without a record, or
//! with a damaged one, a source other than that of the keys on disk is compared with them. They are
//! not served beside a damaged record.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::manifest::{pepper_fingerprints, retained_hashes};
use crate::reload::FileState;
use crate::reload::last_good::sealed::{self, SealedError};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_state::FileError;

/// The name of the file.
pub(super) const ACCEPTED_FILE: &str = "accepted_source.json";

/// A source that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptedSource {
    /// The generation of the snapshot that it became.
    pub(super) generation: u64,
    state: FileState,
    parse_settings: String,
    peppers: Vec<String>,
    /// Whether a key may do less by this source than by the keys on disk.
    takes_away: bool,
    /// Whether there were keys on disk when the record was written. Then they are not missing because
    /// the daemon was killed before its first save.
    #[serde(default)]
    pub(super) has_stored: bool,
}

impl AcceptedSource {
    /// A source in the state `state`, parsed with the settings that have the digest
    /// `parse_settings`.
    pub(super) fn new(
        generation: u64,
        state: FileState,
        parse_settings: String,
        global_policy: &GlobalPolicy,
        takes_away: bool,
        has_stored: bool,
    ) -> Self {
        let peppers = pepper_fingerprints(global_policy);
        Self { generation, state, parse_settings, peppers, takes_away, has_stored }
    }

    /// The same record, of a directory that has keys on disk.
    pub(super) fn after_storing(self) -> Self {
        Self { has_stored: true, ..self }
    }

    /// Whether the source was written after a file in the state `state`.
    pub(super) fn is_newer_than(&self, state: &FileState) -> bool {
        state.is_older_than(&self.state)
    }

    /// Whether serving keys of the generation `stored` in place of its own would give access back.
    pub(super) fn takes_away_since(&self, stored: u64) -> bool {
        self.takes_away && self.generation > stored
    }

    /// The record in `directory`, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, SealedError> {
        sealed::read(&directory.join(ACCEPTED_FILE))
    }

    /// Replaces the record in `directory`, durably.
    ///
    /// # Errors
    /// When it cannot be written; then the previous record is still there.
    pub(super) fn write(&self, directory: &Path) -> Result<(), FileError> {
        sealed::write(&directory.join(ACCEPTED_FILE), self)
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
