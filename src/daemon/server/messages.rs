//! Conversions from the daemon's types to the messages of the admin socket. The command line uses
//! them for the same reports.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::publish::Published;
use crate::reload::last_good::LastGoodStatus;
use crate::reload::{
    Evaluation, LastGoodStore, NAMED_KEYS, Outcome, Preview, ReloadError, SetAside, TakeawayReport,
};
use crate::revocation::{self, Durability};
use keyward_admin::message::{
    AccessExamples, Check, CheckDiff, Diagnostic, Diagnostics, Example, Examples, LastGood, LogStatus,
    Reload, Revoked, Target, Unwritten, Withheld,
};
use keyward_engine::snapshot::Diff;
use keyward_service::log;
use keyward_source::{self as source, Column};
use keyward_state as state;

impl From<&Preview> for Check {
    fn from(preview: &Preview) -> Self {
        let Preview { source, generation, serving, took, result, takeaways } = preview;
        let found = result.as_ref().err().and_then(ReloadError::diagnostics);
        let set_aside = result.as_ref().ok().and_then(|evaluation| evaluation.set_aside.as_ref());
        Self {
            source: source.display().to_string(),
            error: result.as_ref().err().map(ToString::to_string),
            diagnostics: found.map(diagnostics),
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
            diagnostics: retained.map(diagnostic).collect(),
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

/// Why a change is not durable.
pub(super) fn not_durable(durability: Durability) -> Option<String> {
    match durability {
        Durability::Durable => None,
        Durability::NotDurable(reason) => Some(reason.to_string()),
    }
}

/// States whether the takeaways in `withheld` survive a restart.
pub(super) fn set_takeaway_durability(withheld: Option<&mut Withheld>, last_good: Option<&LastGoodStore>) {
    if let Some((withheld, last_good)) = withheld.zip(last_good)
        && withheld.taken_away > 0
    {
        withheld.takeaways_not_durable = not_durable(last_good.takeaway_durability());
    }
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
pub(super) fn reload(
    outcome: &Outcome,
    in_force: Option<&Published>,
    last_good: Option<&LastGoodStore>,
) -> Reload {
    let took_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
    let age_s = outcome.at.elapsed().as_secs();
    match &outcome.result {
        Ok(accepted) => {
            let not_durable = last_good.map(LastGoodStore::durability).and_then(not_durable);
            Reload {
                accepted: true,
                generation: accepted.generation,
                keys: accepted.keys,
                changes: Some(accepted.diff.counts()),
                examples: access_examples(&accepted.diff.examples),
                withheld: withheld(accepted.set_aside.as_deref(), None),
                error: None,
                stale: accepted.stale.as_ref().map(ToString::to_string),
                unchanged: accepted.diff.is_unchanged(),
                revocations_agreed: accepted.revocations_confirmed,
                revocations_conflicting: accepted.revocations_conflicting,
                durable: not_durable.is_none(),
                not_durable,
                took_ms,
                age_s,
            }
        }
        Err(failure) => {
            let mut withheld = withheld(None, outcome.takeaways.as_ref());
            set_takeaway_durability(withheld.as_mut(), last_good);
            let not_durable = withheld.as_ref().and_then(|withheld| withheld.takeaways_not_durable.clone());
            Reload {
                accepted: false,
                generation: in_force.map_or(0, Published::generation),
                keys: in_force.map_or(0, |published| published.snapshot().len()),
                changes: failure.diff().map(Diff::counts),
                examples: failure.diff().map(|diff| access_examples(&diff.examples)).unwrap_or_default(),
                withheld,
                error: Some(failure.to_string()),
                stale: None,
                unchanged: false,
                revocations_agreed: 0,
                revocations_conflicting: 0,
                durable: not_durable.is_none(),
                not_durable,
                took_ms,
                age_s,
            }
        }
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

/// An entry of the list of revocations.
pub(super) fn revoked((target, record): (revocation::Target, revocation::RevocationRecord)) -> Revoked {
    Revoked {
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

/// A file that cannot be written.
pub(super) fn unwritten(unwritten: state::Unwritten) -> Unwritten {
    Unwritten {
        file: unwritten.file.into(),
        since: unwritten.since.to_string(),
        since_s: unwritten.lasting.as_secs(),
        error: unwritten.error,
        dropped: unwritten.dropped,
    }
}

pub(super) fn log_status(log::Health { dropped, failing_since, error }: log::Health) -> LogStatus {
    LogStatus { dropped, failing_since: failing_since.map(|since| since.to_string()), error }
}

/// The first keys of each change.
fn access_examples(examples: &Examples) -> AccessExamples {
    let first = |examples: &[Example]| examples.iter().take(NAMED_KEYS).cloned().collect();
    AccessExamples {
        stopping: first(&examples.stopping),
        starting: first(&examples.starting),
        loosened: first(&examples.loosened),
    }
}

/// What is wrong with a source.
pub fn diagnostics(diagnostics: &source::Diagnostics) -> Diagnostics {
    Diagnostics { total: diagnostics.total(), first: diagnostics.retained().iter().map(diagnostic).collect() }
}

fn diagnostic(diagnostic: &source::Diagnostic) -> Diagnostic {
    let location = match diagnostic.location.column() {
        // The message contains the name of an unknown field.
        None | Some(Column::Unknown(_)) => Diagnostic::default(),
        Some(Column::Numbered { number, name }) => Diagnostic {
            column: Some(*number),
            name: name.as_deref().map(str::to_owned),
            ..Diagnostic::default()
        },
        Some(Column::Named(name)) => Diagnostic { name: Some(name.to_string()), ..Diagnostic::default() },
        Some(Column::Byte(byte)) => Diagnostic { byte: Some(*byte), ..Diagnostic::default() },
    };
    let line = diagnostic.location.line();
    Diagnostic { line, message: diagnostic.message.clone(), count: diagnostic.count, ..location }
}
