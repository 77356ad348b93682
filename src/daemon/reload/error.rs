//! Why a reload was refused: it granted nothing, and took away only what
//! `source.apply_takeaways_of_refused` allows.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audit::FileLocation;
use crate::balances::BalanceLoss;
use crate::reload::ConfigLoadError;
use crate::reload::last_good::RecoverError;
use crate::reload::memory_limits::MemoryError;
use crate::reload::pepper_in_use::PepperInUse;
use crate::reload::refusal::{Refusal, RefusalList};
use keyward_engine::snapshot::{BucketError, Diff};
use keyward_source::{Column, Diagnostics};

/// What to change if this user may not read the file.
fn permission_advice(error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let uid = rustix::process::geteuid().as_raw();
    format!(
        ". It is read by uid {uid}: give that user, or its group, permission to read the file (chgrp, chmod 640) and to search \
         every directory above it. An export needs this before it is renamed into place"
    )
}

/// Why a source was not published. The previous snapshot stays in force.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "every `path` is that of the source")]
pub enum ReloadError {
    /// The file cannot be read.
    #[error("{}: {error}{}", path.display(), permission_advice(error))]
    Io {
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// Memory does not hold two sets of keys at the same time.
    #[error(
        "{}: there is not enough memory for its keys beside those that are served: {limit}. Raise that limit, or serve fewer keys",
        path.display()
    )]
    Memory {
        path: PathBuf,
        /// The limit in the way.
        #[source]
        limit: MemoryError,
    },
    /// The path does not lead to a regular file.
    #[error("{}: not a regular file but {found}: name a file as source.path", path.display())]
    NotAFile {
        path: PathBuf,
        /// What it leads to.
        found: &'static str,
    },
    /// The path leads to a file whose directory entry is gone.
    #[error(
        "{}: this file has been deleted, or replaced by another, behind the mount that the path leads through: what can be read \
         there is what it was before, and every later version will be missed. Mount the directory that the file is in, and not the \
         file by itself (in Kubernetes: no subPath), and name the file in it as source.path",
        path.display()
    )]
    Unlinked { path: PathBuf },
    /// The file was written to during the reading.
    #[error("{}: the file changed while it was read; it is read again when it holds still. Write a new file and rename it over this one", path.display())]
    Changing { path: PathBuf },
    /// Rows or columns of the file are wrong.
    #[error("{0}")]
    Diagnostics(Diagnostics),
    /// More rows are wrong than may be set aside.
    #[error("{diagnostics}\n{}", too_many_bad_rows(diagnostics, *max))]
    TooManyBadRows {
        /// What is wrong with the rows.
        diagnostics: Diagnostics,
        /// How many rows may be set aside.
        max: u32,
    },
    /// A compiled file cannot be decoded.
    #[error("{}: {error}", path.display())]
    Compiled {
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: keyward_engine::snapshot::compiled::ReadError,
    },
    /// The file has no rows.
    #[error("{}: no keys in it. If that is meant, reload with --force (before a start: keyward state accept source)", path.display())]
    Empty { path: PathBuf },
    /// The guard refuses the changes of access: they are more likely a mistake than a decision.
    #[error("{}: {}. If that is meant, reload with --force (before a start: keyward state accept source)", path.display(), RefusalList(refusals))]
    Guarded {
        path: PathBuf,
        /// What it would change.
        diff: Box<Diff>,
        /// Why the guard refuses it.
        refusals: Vec<Refusal>,
    },
    /// The keys that the guard has to compare with at a start are damaged or cannot be read.
    #[error(
        "{}: it cannot be compared with the last good keys: {error}. If it is right, reload with --force (before a start: keyward state accept source)",
        path.display()
    )]
    NotCompared {
        path: PathBuf,
        /// What is wrong with the last good keys.
        #[source]
        error: Arc<RecoverError>,
    },
    /// The source is an earlier one than that which was accepted last.
    #[error(
        "{}: it is older than the source that was accepted last, or has the keys from before it, and that source took access \
         away from some keys. If it is right, reload with --force (before a start: keyward state accept source)",
        path.display()
    )]
    EarlierSource { path: PathBuf },
    /// Keys with calendar quotas or credits, whose balances are lost.
    #[error(
        "{}: it has calendar quotas or credits, and what was spent of them is lost: {loss}. Restore the balances while the daemon is stopped, or accept \
         that they begin unspent: reload with --force (before a start: keyward state accept lost-balances)",
        path.display()
    )]
    LostBalances {
        path: PathBuf,
        /// How they were lost.
        #[source]
        loss: BalanceLoss,
    },
    /// A pepper is gone that rows of the file are, or may be, hashed with.
    #[error("{}: {keys}", path.display())]
    PepperInUse {
        path: PathBuf,
        /// The keys that need the pepper.
        keys: Box<PepperInUse>,
    },
    /// The limits of the keys cannot be given buckets.
    #[error("{}: {error}", path.display())]
    Buckets {
        path: PathBuf,
        /// What prevents the allocation.
        #[source]
        error: BucketError,
    },
    /// The configuration, which is read again with the source, is wrong.
    #[error("{0}")]
    Configuration(#[source] ConfigLoadError),
    /// The system provides no randomness.
    #[error("no random seed for the table: {0}")]
    Random(#[source] getrandom::Error),
}

impl ReloadError {
    /// The error of reading `path`: [`Memory`](Self::Memory) if memory has run out, or else
    /// [`Io`](Self::Io).
    pub(super) fn from_io(path: &Path, error: io::Error) -> Self {
        let path = path.to_path_buf();
        if error.kind() == io::ErrorKind::OutOfMemory {
            Self::Memory { path, limit: MemoryError::from_io(error) }
        } else {
            Self::Io { path, error }
        }
    }

    /// Whether the same file may be accepted at the next attempt: the error is not about its
    /// content.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Memory { .. } | Self::Changing { .. } | Self::Random(_) => true,
            Self::NotCompared { error, .. } => error.is_transient(),
            _ => false,
        }
    }

    /// Why the configuration that was read with the source is not in force; `None` if it equals the
    /// one in force, which `settings_differ` says. This outlives the error: the source may be
    /// corrected and then read by the configuration in force.
    pub fn config_error(&self, settings_differ: bool) -> Option<String> {
        match self {
            Self::Configuration(_) | Self::PepperInUse { .. } => Some(self.to_string()),
            error => settings_differ.then(|| {
                format!(
                    "it was read with a source that was refused; keyward reload reads both again. What was wrong:\n{error}"
                )
            }),
        }
    }

    /// A code for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "unreadable",
            Self::Memory { .. } => "memory",
            Self::NotAFile { .. } => "not_a_file",
            Self::Unlinked { .. } => "unlinked",
            Self::Changing { .. } => "changing",
            Self::Diagnostics(_) => "findings",
            Self::TooManyBadRows { .. } => "bad_rows",
            Self::Compiled { .. } => "compiled",
            Self::Empty { .. } => "empty",
            Self::Guarded { refusals, .. } => refusals.first().map_or("guarded", Refusal::kind),
            Self::NotCompared { .. } => "not_compared",
            Self::EarlierSource { .. } => "earlier_source",
            Self::LostBalances { .. } => "lost_balances",
            Self::PepperInUse { .. } => "pepper",
            Self::Buckets { error: BucketError::TooMany, .. } => "too_many_limits",
            Self::Buckets { error: BucketError::Inconsistent, .. } => "internal",
            Self::Configuration(_) => "configuration",
            Self::Random(_) => "no_randomness",
        }
    }

    /// The location of the error, for the audit trail: numbers only. Column names and messages are
    /// text of the export, and what looks like a header may be a row of keys.
    pub fn location(&self) -> Option<FileLocation> {
        match self {
            Self::Io { path, .. }
            | Self::Memory { path, .. }
            | Self::NotAFile { path, .. }
            | Self::Unlinked { path }
            | Self::Changing { path }
            | Self::Empty { path }
            | Self::Compiled { path, .. }
            | Self::Guarded { path, .. }
            | Self::NotCompared { path, .. }
            | Self::EarlierSource { path }
            | Self::LostBalances { path, .. }
            | Self::PepperInUse { path, .. }
            | Self::Buckets { path, .. } => {
                Some(FileLocation { file: path.display().to_string(), line: None, column: None })
            }
            Self::Diagnostics(diagnostics) | Self::TooManyBadRows { diagnostics, .. } => {
                let first = diagnostics.retained().first();
                let column = first.and_then(|first| match first.location.column() {
                    Some(Column::Numbered { number, .. }) | Some(Column::Byte(number)) => {
                        u64::try_from(*number).ok()
                    }
                    Some(Column::Named(_) | Column::Unknown(_)) | None => None,
                });
                let line = first.and_then(|first| first.location.line());
                Some(FileLocation { file: diagnostics.source().to_owned(), line, column })
            }
            Self::Configuration(_) | Self::Random(_) => None,
        }
    }

    /// What the source would have changed, if the guard has evaluated it.
    pub fn diff(&self) -> Option<&Diff> {
        match self {
            Self::Guarded { diff, .. } => Some(diff),
            _ => None,
        }
    }

    /// The message without the diagnostics; `None` if there is nothing else to say.
    pub fn message_beside_diagnostics(&self) -> Option<String> {
        match self {
            Self::Diagnostics(_) => None,
            Self::TooManyBadRows { diagnostics, max } => Some(too_many_bad_rows(diagnostics, *max)),
            error => Some(error.to_string()),
        }
    }

    /// What is wrong with the rows of the source.
    pub fn diagnostics(&self) -> Option<&Diagnostics> {
        match self {
            Self::Diagnostics(diagnostics) | Self::TooManyBadRows { diagnostics, .. } => Some(diagnostics),
            _ => None,
        }
    }
}

fn too_many_bad_rows(diagnostics: &Diagnostics, max: u32) -> String {
    let (source, rows) = (diagnostics.source(), diagnostics.bad_row_count());
    format!("{source}: {rows} rows cannot be understood, and source.max_bad_rows lets {max} be set aside")
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn refused_configuration_is_the_source_of_the_error() {
        let error =
            ReloadError::Configuration(MemoryError::from_io(io::ErrorKind::OutOfMemory.into()).into());
        let source = error.source().expect("a source");
        assert!(source.is::<MemoryError>(), "{source:?}");
        assert_eq!(error.to_string(), source.to_string());
    }

    #[test]
    fn unreadable_source_is_reported_with_the_uid() {
        let message = |kind: io::ErrorKind| {
            ReloadError::Io { path: "/keys.csv".into(), error: kind.into() }.to_string()
        };
        let uid = format!("It is read by uid {}: ", rustix::process::geteuid().as_raw());
        let denied = message(io::ErrorKind::PermissionDenied);
        assert!(denied.starts_with("/keys.csv: permission denied. ") && denied.contains(&uid), "{denied}");
        assert!(!message(io::ErrorKind::NotFound).contains("uid"));
    }
}
