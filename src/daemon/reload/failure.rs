//! Why a reload changed nothing.

use std::io;
use std::path::{Path, PathBuf};

use crate::audit::FileLocation;
use crate::reload::guard::{Reasons, Refusal};
use crate::reload::peppers::{KeySample, stranding};
use crate::reload::room::MemoryError;
use keyward_engine::snapshot::Diff;
use keyward_source::{Column, Diagnostics};

/// Why an export was not published. The snapshot before it goes on being served (promise 3).
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file could not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Two sets of keys do not fit into memory at the same time.
    #[error(
        "{}: there is not enough memory for its keys beside those that are served: {shortage}. Raise that limit, or serve fewer keys",
        path.display()
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        shortage: MemoryError,
    },
    /// Not a file that can be read to an end.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The path leads to a file whose directory entry is gone.
    #[error(
        "{}: this file has been deleted, or replaced by another, behind the mount that the path leads through: what can be read \
         there is what it was before, and every later version will be missed. Mount the directory that the file is in, and not the \
         file by itself (in Kubernetes: no subPath), and name the file in it as source.path",
        path.display()
    )]
    Unlinked {
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
    Findings(Diagnostics),
    /// More rows are wrong than may be set aside.
    #[error(
        "{findings}\n{}",
        too_many(findings, *max)
    )]
    TooManyBadRows {
        /// What is wrong with them.
        findings: Diagnostics,
        /// How many may be.
        max: u32,
    },
    /// A compiled file is not what it should be.
    #[error("{}: {error}", path.display())]
    Compiled {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        error: keyward_engine::snapshot::compiled::ReadError,
    },
    /// No rows.
    #[error("{}: no keys in it. If that is meant, reload with --force (before a start: keyward state accept source)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It would change access in a way that is more likely a mistake than meant.
    #[error("{}: {}. If that is meant, reload with --force (before a start: keyward state accept source)", path.display(), Reasons(refusals))]
    Guarded {
        /// The file.
        path: PathBuf,
        /// What it would change.
        diff: Box<Diff>,
        /// What speaks against it.
        refusals: Vec<Refusal>,
    },
    /// A pepper is gone, and there are rows that were hashed with it, or may have been.
    #[error("{}: {}", path.display(), stranding(*old, stranded, unknown))]
    Stranded {
        /// The file.
        path: PathBuf,
        /// Keys being served.
        old: usize,
        /// Those of them that the file still lists with the same hash, and that need that pepper.
        stranded: KeySample,
        /// Those that it lists, and that may need it.
        unknown: KeySample,
    },
    /// More limits than there is room for.
    #[error("{}: {error}", path.display())]
    TooManyBuckets {
        /// The file.
        path: PathBuf,
        /// How many.
        error: keyward_engine::snapshot::TooManyBuckets,
    },
    /// The configuration, which is read again with the source, is wrong.
    #[error("{0}")]
    Configuration(String),
    /// The system has no randomness to give.
    #[error("no random seed for the table: {0}")]
    Random(getrandom::Error),
}

impl ReloadError {
    /// Whether the same file may well be accepted the next time: what failed is not what is in it.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Memory { .. } | Self::Changing { .. } | Self::Random(_))
    }

    /// Why the configuration that was read with the source is not in force; `None` if it says what the one in force says. `is_other`:
    /// it says anything else. This outlives the failure: the source may be mended, and read by the configuration in force.
    pub fn of_configuration(&self, is_other: bool) -> Option<String> {
        match self {
            Self::Configuration(_) | Self::Stranded { .. } => Some(self.to_string()),
            failure => is_other.then(|| {
                format!(
                    "it was read with a source that was refused; keyward reload reads both again. What was wrong:\n{failure}"
                )
            }),
        }
    }

    /// What it is, in a word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "unreadable",
            Self::Memory { .. } => "memory",
            Self::NotAFile { .. } => "not_a_file",
            Self::Unlinked { .. } => "unlinked",
            Self::Changing { .. } => "changing",
            Self::Findings(_) => "findings",
            Self::TooManyBadRows { .. } => "bad_rows",
            Self::Compiled { .. } => "compiled",
            Self::Empty { .. } => "empty",
            Self::Guarded { refusals, .. } => refusals.first().map_or("guarded", Refusal::kind),
            Self::Stranded { .. } => "pepper",
            Self::TooManyBuckets { .. } => "too_many_limits",
            Self::Configuration(_) => "configuration",
            Self::Random(_) => "no_randomness",
        }
    }

    /// Where it is: numbers only. A column's name and a finding's message are texts of the export, and what looks like a
    /// header may be a row of keys.
    pub fn place(&self) -> Option<FileLocation> {
        let of =
            |path: &Path| Some(FileLocation { file: path.display().to_string(), line: None, column: None });
        match self {
            Self::Io { path, .. }
            | Self::Memory { path, .. }
            | Self::NotAFile { path }
            | Self::Unlinked { path }
            | Self::Changing { path }
            | Self::Empty { path }
            | Self::Compiled { path, .. }
            | Self::Guarded { path, .. }
            | Self::Stranded { path, .. }
            | Self::TooManyBuckets { path, .. } => of(path),
            Self::Findings(findings) | Self::TooManyBadRows { findings, .. } => {
                let first = findings.retained().first();
                let column = first.and_then(|first| match first.location.column() {
                    Some(Column::Numbered { number, .. }) | Some(Column::Byte(number)) => {
                        u64::try_from(*number).ok()
                    }
                    Some(Column::Named(_) | Column::Unknown(_)) | None => None,
                });
                let line = first.and_then(|first| first.location.line());
                Some(FileLocation { file: findings.source().to_owned(), line, column })
            }
            Self::Configuration(_) | Self::Random(_) => None,
        }
    }

    /// What it would change, where the guard has weighed that.
    pub fn diff(&self) -> Option<&Diff> {
        match self {
            Self::Guarded { diff, .. } => Some(diff),
            _ => None,
        }
    }

    /// What there is to be said beside the findings.
    pub fn beside_findings(&self) -> Option<String> {
        match self {
            Self::Findings(_) => None,
            Self::TooManyBadRows { findings, max } => Some(too_many(findings, *max)),
            failure => Some(failure.to_string()),
        }
    }

    /// What is wrong with its rows.
    pub fn findings(&self) -> Option<&Diagnostics> {
        match self {
            Self::Findings(findings) | Self::TooManyBadRows { findings, .. } => Some(findings),
            _ => None,
        }
    }
}

fn too_many(findings: &Diagnostics, max: u32) -> String {
    let (source, rows) = (findings.source(), findings.bad_row_count());
    format!("{source}: {rows} rows cannot be understood, and source.max_bad_rows lets {max} be set aside")
}
