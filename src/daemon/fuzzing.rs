//! Entry points for the fuzz targets (`tests/fuzz`): parts of the daemon that are private in a normal
//! build, which has nothing of this module.

use std::sync::Arc;

use keyward_state::{FileError, Rotation, StateDir};

pub use crate::connection::Exchange;
use crate::revocation::{self, LoadError, RevocationRecord, Target};
use crate::usage;

/// Loads the list of revocations in `directory` as a start does, and returns its entries in the
/// order of their names.
///
/// # Errors
/// When a daemon would not start with the list.
pub fn load_revocations(directory: Arc<StateDir>) -> Result<Vec<(Target, RevocationRecord)>, LoadError> {
    Ok(revocation::load(Some(directory))?.entries())
}

/// Opens `usage.jsonl` in `directory` as a start does, and returns the number of its last line.
/// Then appends `lines` lines, each in a write of its own.
///
/// # Errors
/// When the file cannot be opened or written.
pub fn continue_usage(directory: &StateDir, files: Rotation, lines: usize) -> Result<u64, FileError> {
    usage::continue_file(directory, files, lines)
}
