//! Why a compiled file cannot be loaded.

use std::{fmt, io};

use crate::record::UnknownPlanError;
use crate::snapshot::build::Conflict;
use crate::snapshot::compiled::format::{Section, VERSION};

/// Why a compiled file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file has another format.
    #[error(
        "it is not a compiled snapshot; write one with `keyward compile`, or name the format that it has"
    )]
    NotCompiled,
    /// Less of the file is on the disk than its length says.
    #[error("it has holes: it was not written to its end; compile the source again")]
    Holes,
    /// An older or a newer version of keyward has written the file.
    #[error(
        "it is a compiled snapshot of version {0}, and this keyward reads version {VERSION}; compile the source again"
    )]
    Version(u32),
    /// The file is not as it was written.
    #[error("{section}{}: {problem}; the file is damaged: compile the source again", Numbered(*block))]
    #[expect(missing_docs, reason = "the names say it; blocks count from 0 within their section")]
    Damaged { section: Section, block: Option<u32>, problem: &'static str },
    /// The file is intact, but a row cannot be served.
    #[error("{section}, block {block}: {problem}")]
    #[expect(missing_docs, reason = "the names say it; blocks count from 0 within their section")]
    Row {
        section: Section,
        block: u32,
        #[source]
        problem: RowProblem,
    },
}

/// Why a row of an intact file cannot be served. Rows of a compiled file have no line numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// The plans of the configuration may have changed since the file was written.
    #[error(
        "two rows have the same key_id and different limits, of their own or by their plans; rows that share a \
         key_id share its limits"
    )]
    OtherLimits,
    /// The writer checks this, so the file has been forged.
    #[error("two rows have the same key_id and different owners: compile the source again")]
    OtherOwner,
    /// The plan is not defined in the configuration.
    #[error(transparent)]
    UnknownPlan(#[from] UnknownPlanError),
}

impl From<Conflict> for RowProblem {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Limits => Self::OtherLimits,
            Conflict::Owner => Self::OtherOwner,
        }
    }
}

impl ReadError {
    pub(super) fn damaged(section: Section, block: Option<u32>, problem: &'static str) -> Self {
        Self::Damaged { section, block, problem }
    }

    pub(super) fn row(section: Section, block: u32, problem: impl Into<RowProblem>) -> Self {
        Self::Row { section, block, problem: problem.into() }
    }

    /// The error of a read within a section: a file that ends there is damaged.
    pub(super) fn from_read(error: io::Error, section: Section, block: Option<u32>) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::damaged(section, block, CUT_SHORT),
            _ => Self::Io(error),
        }
    }
}

// Problems that are found in several places.
pub(super) const CUT_SHORT: &str = "truncated";
pub(super) const OUT_OF_ORDER: &str = "the rows are not in the order of the table, or one is there twice";
pub(super) const CROWDED: &str = "too many rows share one index position";
pub(super) const OTHER_SIZES: &str = "row counts or string sizes do not match the header";

struct Numbered(Option<u32>);

impl fmt::Display for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |number| write!(f, ", block {number}"))
    }
}
