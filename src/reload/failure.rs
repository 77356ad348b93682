//! Why a reload changed nothing.

use std::io;
use std::path::PathBuf;

use crate::source::Findings;

/// Why an export was not published. The snapshot before it goes on being served (promise 3).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file could not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Not a file that can be read to an end.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Somebody was writing it.
    #[error("{}: the file changed while it was read; it is read again when it holds still. Write a new file and rename it over this one", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// Rows are wrong.
    #[error("{0}")]
    Findings(Findings),
    /// No rows.
    #[error("{}: no keys in it. If that is meant, reload with --force", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Too many rows are gone.
    #[error(
        "{}: {new} keys where {old} are served: it shrank by more than max_shrink ({:.0} %) allows. If that is meant, reload with --force",
        path.display(), max_shrink * 100.0
    )]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Keys being served.
        old: usize,
        /// Keys in the file.
        new: usize,
        /// The largest part that may go.
        max_shrink: f64,
    },
    /// More limits than there is room for.
    #[error("{}: {error}", path.display())]
    TooManyBuckets {
        /// The file.
        path: PathBuf,
        /// How many.
        error: crate::snapshot::TooManyBuckets,
    },
    /// The configuration, which is read again with the source, is wrong.
    #[error("{0}")]
    Configuration(String),
    /// The system has no randomness to give.
    #[error("no random seed for the table: {0}")]
    Random(getrandom::Error),
}

impl Failure {
    /// Whether the same file may well be accepted the next time: what failed is not what is in it.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Changing { .. } | Self::Random(_))
    }
}
