//! A journal whose disk can be full or read-only at the start.

use std::io;
use std::path::PathBuf;

use super::lines::{Journal, OpenedJournal, Rotation, last_line_of, numbered};
use super::{FileError, StateDir};

/// A [`Journal`] that is opened at the first write where a read-only or full disk prevents it at the start. A daemon that is
/// started again on such a disk serves on without what it cannot write.
#[derive(Debug)]
pub struct LazyJournal {
    path: PathBuf,
    rotation: Rotation,
    journal: Option<Journal>,
}

impl LazyJournal {
    /// The journal called `name` in `directory`, and its last line. That it cannot be written is reported.
    ///
    /// # Errors
    /// When it cannot be opened for another reason than that the disk takes nothing.
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
    /// When it cannot be opened or written; the same lines can be given again.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), FileError> {
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(Journal::open(self.path.clone(), self.rotation)?.journal),
        };
        journal.append(lines)
    }

    /// As [`Journal::sync`].
    ///
    /// # Errors
    /// When the system cannot say that the lines are durable.
    pub fn sync(&self) -> Result<(), FileError> {
        self.journal.as_ref().map_or(Ok(()), Journal::sync)
    }
}

/// Whether the disk is full or read-only, rather than set up in a wrong way.
pub(super) fn is_full_or_read_only(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}
