//! Rows that cannot be understood: whether they refuse the source, or are set aside.

use std::collections::BTreeSet;

use crate::reload::ReloadError;
use keyward_engine::snapshot::{Builder, KeyTable};
use keyward_source::{BadRow, Diagnostics, Location};

/// What a row that cannot be understood does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadRowPolicy {
    /// It refuses the source.
    #[default]
    Refuse,
    /// It is set aside: its key is disabled, and all other rows take effect.
    SetAside {
        /// How many there may be. More refuse the source.
        max: u32,
    },
}

/// Ids that are told.
const NAMED: usize = 20;

/// Rows that were set aside.
#[derive(Clone, Debug, Default)]
pub struct SetAside {
    /// How many; 0: these are last good keys, which have nothing of the rows but their keys.
    pub rows: u64,
    /// What is wrong with them.
    pub findings: Option<Diagnostics>,
    /// Rows whose hash cannot be read, so that their keys are not known.
    pub unreadable: usize,
    /// Keys that are disabled.
    pub keys: usize,
    /// The first of them, by id.
    pub first: Vec<Box<str>>,
}

impl SetAside {
    /// The keys that are disabled in `keys`.
    fn of(keys: &KeyTable) -> Self {
        let first = keys.set_aside().take(NAMED).map(Into::into).collect();
        Self { keys: keys.set_aside().count(), first, ..Self::default() }
    }

    /// What last good keys have of rows that were set aside.
    pub(super) fn of_last_good(keys: &KeyTable) -> Option<Self> {
        Some(Self::of(keys)).filter(|set_aside| set_aside.keys > 0)
    }

    /// The rows of a source that have `findings`.
    pub(super) fn of_source(keys: &KeyTable, findings: Diagnostics) -> Self {
        let unreadable = findings.retained_bad_rows().iter().filter(|row| row.hash.is_none()).count();
        Self { rows: findings.bad_row_count(), unreadable, findings: Some(findings), ..Self::of(keys) }
    }
}

/// What has come of rows that cannot be understood.
pub(super) enum BadRows {
    /// Their keys are disabled.
    SetAside(Diagnostics),
    /// The source is refused. What was read are all other rows.
    Refuse(ReloadError),
}

impl BadRowPolicy {
    /// How many of them are to be remembered.
    pub(super) fn kept(self) -> usize {
        match self {
            Self::Refuse => 0,
            Self::SetAside { max } => max as usize,
        }
    }

    /// What comes of the findings, where all other rows are in `builder`; `contradicting` are ids of which rows contradict each
    /// other. `None`: there are none.
    ///
    /// # Errors
    /// When it is not certain that all other rows are there.
    pub(super) fn judge(
        self,
        findings: Diagnostics,
        builder: &mut Builder,
        contradicting: &BTreeSet<String>,
    ) -> Result<Option<BadRows>, ReloadError> {
        if findings.is_empty() {
            return Ok(None);
        }
        if !findings.are_confined_to_rows() {
            return Err(ReloadError::Findings(findings));
        }
        Ok(Some(match self {
            Self::Refuse => BadRows::Refuse(ReloadError::Findings(findings)),
            Self::SetAside { max } if findings.bad_row_count() > max.into() => {
                BadRows::Refuse(ReloadError::TooManyBadRows { findings, max })
            }
            Self::SetAside { .. } => {
                let findings = set_aside(findings, builder)?;
                builder.set_aside_ids(contradicting.iter().map(String::as_str));
                BadRows::SetAside(findings)
            }
        }))
    }
}

fn set_aside(mut findings: Diagnostics, builder: &mut Builder) -> Result<Diagnostics, ReloadError> {
    builder.note_set_aside();
    for BadRow { line, hash, key_id } in findings.retained_bad_rows().to_vec() {
        let Some(hash) = hash else { continue };
        if let Err(error) = builder.set_aside(line, hash, key_id.as_deref()) {
            findings.add(Location::Row { line }, error);
            return Err(ReloadError::Findings(findings));
        }
    }
    Ok(findings)
}
