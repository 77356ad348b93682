//! A journal for disks that may be full or read-only at the start.

use std::io;
use std::path::PathBuf;

use super::journal::{Journal, OpenedJournal, Rotation, last_line_of, numbered};
use super::{FileError, StateDir};

/// A [`Journal`] that is opened at the first write if the disk is full or read-only at the start.
/// So a daemon can start and serve on such a disk.
#[derive(Debug)]
pub struct LazyJournal {
    path: PathBuf,
    rotation: Rotation,
    journal: Option<Journal>,
}

impl LazyJournal {
    /// Opens the journal `name` in `directory`, and returns its last line. A full or read-only disk
    /// is reported as a failed write.
    ///
    /// # Errors
    /// When it cannot be opened for any other reason.
    pub fn open(
        directory: &StateDir,
        name: &str,
        rotation: Rotation,
    ) -> Result<(Self, Option<Vec<u8>>), FileError> {
        let path = directory.path(name);
        let (journal, last_line) = match Journal::open(path.clone(), rotation) {
            Ok(OpenedJournal { journal, last_line }) => (Some(journal), last_line),
            Err(error) if is_full_or_read_only(&error.error) => {
                directory.health().failed(name, &error);
                (None, last_line_of(&path).or_else(|| last_line_of(&numbered(&path, 1))))
            }
            Err(error) => return Err(error),
        };
        Ok((Self { path, rotation, journal }, last_line))
    }

    /// As [`Journal::append`].
    ///
    /// # Errors
    /// When it cannot be opened or written. The same lines can be appended again.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), FileError> {
        let journal = match &mut self.journal {
            Some(journal) => journal,
            journal => journal.insert(Journal::open(self.path.clone(), self.rotation)?.journal),
        };
        journal.append(lines)
    }

    /// As [`Journal::sync`].
    ///
    /// # Errors
    /// When the sync fails.
    pub fn sync(&self) -> Result<(), FileError> {
        self.journal.as_ref().map_or(Ok(()), Journal::sync)
    }
}

/// Whether the disk is full or read-only, in contrast to a wrong set-up.
pub(super) fn is_full_or_read_only(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}
