//! Conversions from the daemon's types to the messages of the admin socket. The command line uses
//! them for the same reports.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::admin::message::{
    AccessExamples, Check, CheckDiff, Diagnostic, Diagnostics, Example, Examples, LastGood, LogStatus,
    Reload, Revoked, Target, Unwritten, Withheld,
};
use crate::log;
use crate::reload::last_good::LastGoodStatus;
use crate::reload::{Evaluation, NAMED_KEYS, Outcome, Preview, ReloadError, SetAside, TakeawayReport};
use crate::revocation;
use keyward_engine::snapshot::{Diff, Snapshot};
use keyward_source::{self as source, Column};
use keyward_state as state;

impl From<&Preview> for Check {
    fn from(preview: &Preview) -> Self {
        let Preview { source, generation, serving, took, result, takeaways } = preview;
        let diagnostics = result.as_ref().err().and_then(ReloadError::diagnostics).map(Into::into);
        let set_aside = result.as_ref().ok().and_then(|evaluation| evaluation.set_aside.as_ref());
        Self {
            source: source.display().to_string(),
            error: result.as_ref().err().map(ToString::to_string),
            diagnostics,
            withheld: withheld(set_aside, takeaways.as_ref()),
            diff: result.as_ref().ok().map(|evaluation| diff(evaluation, *generation, *serving)),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The effects of bad rows. `None` if there are none.
pub fn withheld(set_aside: Option<&SetAside>, taken: Option<&TakeawayReport>) -> Option<Withheld> {
    let texts = |ids: &[Box<str>]| ids.iter().map(|key_id| key_id.to_string()).collect();
    let mut withheld = Withheld::default();
    if let Some(SetAside { rows, diagnostics, unreadable, keys, first }) = set_aside {
        let retained = diagnostics.iter().flat_map(|diagnostics| diagnostics.retained());
        withheld = Withheld {
            bad_rows: *rows,
            unreadable_rows: *unreadable,
            set_aside: *keys,
            set_aside_keys: texts(first),
            diagnostics: retained.map(Diagnostic::from).collect(),
            ..withheld
        };
    }
    if let Some(TakeawayReport { total, first, refused, added: _ }) = taken {
        withheld.taken_away = *total;
        withheld.taken_away_keys = texts(first);
        withheld.takeaways_refused = refused.clone();
    }
    (withheld != Withheld::default()).then_some(withheld)
}

/// The effect of publishing `evaluation` in place of `serving` keys, which belong to `generation`,
/// or to a file if that is 0.
pub fn diff(evaluation: &Evaluation, generation: u64, serving: usize) -> CheckDiff {
    let Evaluation { keys, diff, refused, stale, set_aside: _ } = evaluation;
    CheckDiff {
        accepted: refused.is_none(),
        refused: refused.as_ref().map(ToString::to_string),
        stale: stale.as_ref().map(ToString::to_string),
        generation,
        serving,
        keys: *keys,
        unchanged: diff.is_unchanged(),
        changes: diff.counts(),
        examples: diff.examples.clone(),
    }
}

/// The report of a reload, as of now. `in_force` is what is served: a refused reload does not
/// change it.
pub(super) fn reload(outcome: &Outcome, in_force: Option<&Snapshot>) -> Reload {
    let took_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
    let age_s = outcome.at.elapsed().as_secs();
    match &outcome.result {
        Ok(accepted) => Reload {
            accepted: true,
            generation: accepted.generation,
            keys: accepted.keys,
            changes: Some(accepted.diff.counts()),
            examples: (&accepted.diff.examples).into(),
            withheld: withheld(accepted.set_aside.as_deref(), None),
            error: None,
            stale: accepted.stale.as_ref().map(ToString::to_string),
            unchanged: accepted.diff.is_unchanged(),
            revocations_agreed: accepted.revocations_confirmed,
            revocations_conflicting: accepted.revocations_conflicting,
            took_ms,
            age_s,
        },
        Err(failure) => Reload {
            accepted: false,
            generation: in_force.map_or(0, Snapshot::generation),
            keys: in_force.map_or(0, Snapshot::len),
            changes: failure.diff().map(Diff::counts),
            examples: failure.diff().map(|diff| (&diff.examples).into()).unwrap_or_default(),
            withheld: withheld(None, outcome.takeaways.as_ref()),
            error: Some(failure.to_string()),
            stale: None,
            unchanged: false,
            revocations_agreed: 0,
            revocations_conflicting: 0,
            took_ms,
            age_s,
        },
    }
}

impl From<LastGoodStatus> for LastGood {
    fn from(LastGoodStatus { stored, in_use, unusable }: LastGoodStatus) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = |second: u32| now.saturating_sub(Duration::from_secs(second.into())).as_secs();
        Self {
            in_use: in_use.is_some(),
            in_use_s: in_use.as_ref().map(|in_use| in_use.since.elapsed().as_secs()),
            why: in_use.map(|in_use| in_use.why),
            generation: stored.as_ref().map_or(0, |stored| stored.generation),
            keys: stored.as_ref().map_or(0, |stored| stored.keys),
            accepted_age_s: stored.as_ref().map(|stored| age(stored.accepted_at)),
            source_age_s: stored.as_ref().map(|stored| age(stored.written_at)),
            source: stored.map(|stored| stored.source),
            unusable,
        }
    }
}

impl From<(revocation::Target, revocation::RevocationRecord)> for Revoked {
    fn from((target, record): (revocation::Target, revocation::RevocationRecord)) -> Self {
        Self {
            target: Target {
                key_id: target.key_id().map(str::to_owned),
                owner: target.owner().map(str::to_owned),
            },
            when: record.when.to_string(),
            by_uid: record.by_uid,
            durable: record.durable,
            agreed_since: record.confirmed_since().map(|since| since.to_string()),
            conflict_since: record.conflict_since().map(|since| since.to_string()),
        }
    }
}

impl From<state::Unwritten> for Unwritten {
    fn from(unwritten: state::Unwritten) -> Self {
        Self {
            file: unwritten.file.into(),
            since: unwritten.since.to_string(),
            since_s: unwritten.lasting.as_secs(),
            error: unwritten.error,
            dropped: unwritten.dropped,
        }
    }
}

impl From<log::Health> for LogStatus {
    fn from(log::Health { dropped, failing_since, error }: log::Health) -> Self {
        Self { dropped, failing_since: failing_since.map(|since| since.to_string()), error }
    }
}

impl From<&Examples> for AccessExamples {
    fn from(examples: &Examples) -> Self {
        let first = |examples: &[Example]| examples.iter().take(NAMED_KEYS).cloned().collect();
        Self {
            stopping: first(&examples.stopping),
            starting: first(&examples.starting),
            loosened: first(&examples.loosened),
        }
    }
}

impl From<&source::Diagnostics> for Diagnostics {
    fn from(diagnostics: &source::Diagnostics) -> Self {
        Self {
            total: diagnostics.total(),
            first: diagnostics.retained().iter().map(Diagnostic::from).collect(),
        }
    }
}

impl From<&source::Diagnostic> for Diagnostic {
    fn from(diagnostic: &source::Diagnostic) -> Self {
        let location = match diagnostic.location.column() {
            // The message contains the name of an unknown field.
            None | Some(Column::Unknown(_)) => Self::default(),
            Some(Column::Numbered { number, name }) => {
                Self { column: Some(*number), name: name.as_deref().map(str::to_owned), ..Self::default() }
            }
            Some(Column::Named(name)) => Self { name: Some(name.to_string()), ..Self::default() },
            Some(Column::Byte(byte)) => Self { byte: Some(*byte), ..Self::default() },
        };
        let line = diagnostic.location.line();
        Self { line, message: diagnostic.message.clone(), count: diagnostic.count, ..location }
    }
}
