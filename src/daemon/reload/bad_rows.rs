//! Bad rows: they refuse the source, or are set aside.

use std::collections::BTreeSet;

use crate::reload::REPORTED_KEYS;
use crate::reload::ReloadError;
use keyward_engine::snapshot::{Builder, KeyTable};
use keyward_source::{BadRow, Diagnostics, Location};

/// What a bad row does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadRowPolicy {
    /// It refuses the source.
    #[default]
    Refuse,
    /// It is set aside: its key is disabled, and all other rows take effect.
    SetAside {
        /// How many rows may be set aside. More refuse the source.
        max: u32,
    },
}

/// Rows that were set aside.
#[derive(Clone, Debug, Default)]
pub struct SetAside {
    /// The number of rows; 0 for last good keys, which retain only the disabled keys.
    pub rows: u64,
    /// What is wrong with the rows.
    pub diagnostics: Option<Diagnostics>,
    /// Rows whose hash cannot be read, so their keys are unknown.
    pub unreadable: usize,
    /// Keys that are disabled.
    pub keys: usize,
    /// The ids of the first of these keys.
    pub first: Vec<Box<str>>,
}

impl SetAside {
    /// The report of the keys that are disabled in `keys`.
    fn of(keys: &KeyTable) -> Self {
        let first = keys.set_aside().take(REPORTED_KEYS).map(Into::into).collect();
        Self { keys: keys.set_aside().count(), first, ..Self::default() }
    }

    /// The report of last good keys, if any of them is disabled.
    pub(super) fn of_last_good(keys: &KeyTable) -> Option<Self> {
        Some(Self::of(keys)).filter(|set_aside| set_aside.keys > 0)
    }

    /// The report of a source with `diagnostics`.
    pub(super) fn of_source(keys: &KeyTable, diagnostics: Diagnostics) -> Self {
        let unreadable = diagnostics.retained_bad_rows().iter().filter(|row| row.hash.is_none()).count();
        Self {
            rows: diagnostics.bad_row_count(),
            unreadable,
            diagnostics: Some(diagnostics),
            ..Self::of(keys)
        }
    }
}

/// The effect of the bad rows.
pub(super) enum BadRowOutcome {
    /// Their keys are disabled.
    SetAside(Diagnostics),
    /// The source is refused. All other rows have been read.
    Refuse(ReloadError),
}

impl BadRowPolicy {
    /// How many bad rows are to be retained while the source is read.
    pub(super) fn retained_rows(self) -> usize {
        match self {
            Self::Refuse => 0,
            Self::SetAside { max } => max as usize,
        }
    }

    /// Applies the policy to `builder`, which has all other rows. `contradicting` lists key ids
    /// whose rows contradict each other. Returns `None` if there are no bad rows.
    ///
    /// # Errors
    /// When the diagnostics do not guarantee that all other rows are there.
    pub(super) fn apply(
        self,
        diagnostics: Diagnostics,
        builder: &mut Builder,
        contradicting: &BTreeSet<String>,
    ) -> Result<Option<BadRowOutcome>, ReloadError> {
        if diagnostics.is_empty() {
            return Ok(None);
        }
        if !diagnostics.are_confined_to_rows() {
            return Err(ReloadError::Diagnostics(diagnostics));
        }
        Ok(Some(match self {
            Self::Refuse => BadRowOutcome::Refuse(ReloadError::Diagnostics(diagnostics)),
            Self::SetAside { max } if diagnostics.bad_row_count() > max.into() => {
                BadRowOutcome::Refuse(ReloadError::TooManyBadRows { diagnostics, max })
            }
            Self::SetAside { .. } => {
                let diagnostics = set_aside(diagnostics, builder)?;
                builder.set_aside_ids(contradicting.iter().map(String::as_str));
                BadRowOutcome::SetAside(diagnostics)
            }
        }))
    }
}

fn set_aside(mut diagnostics: Diagnostics, builder: &mut Builder) -> Result<Diagnostics, ReloadError> {
    builder.note_set_aside();
    for BadRow { line, hash, key_id } in diagnostics.retained_bad_rows().to_vec() {
        let Some(hash) = hash else { continue };
        if let Err(error) = builder.set_aside(line, hash, key_id.as_deref()) {
            diagnostics.add(Location::Row { line }, error);
            return Err(ReloadError::Diagnostics(diagnostics));
        }
    }
    Ok(diagnostics)
}
