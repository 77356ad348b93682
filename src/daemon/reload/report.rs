//! Telling what came of a reload: the audit trail first, then the log, systemd and `keyward status`.

use std::sync::{Arc, PoisonError};

use tracing::{debug, error, info, warn};

use crate::audit::{self, Event};
use crate::reload::trigger::Cause;
use crate::reload::{AcceptedReload, Outcome, ReloadError, ReloadLoop, SetAside, TakeawayReport, counts};
use crate::systemd;
use keyward_engine::record::Quoted;
use keyward_engine::snapshot::{Diff, Example};
use keyward_source::Diagnostics;

/// Keys that the log and the audit trail name: enough to find out what they have in common.
const NAMED: usize = 3;

fn ids(examples: &[Example]) -> Vec<&str> {
    examples.iter().take(NAMED).map(|example| &*example.key_id).collect()
}

/// What a reload changed, or would have changed if the guard had let it.
fn diff(outcome: &Outcome) -> Option<&Diff> {
    match &outcome.result {
        Ok(accepted) => Some(&accepted.diff),
        Err(failure) => failure.diff(),
    }
}

/// The keys that a reload has disabled or restricted because of rows that cannot be understood.
fn withheld(outcome: &Outcome) -> audit::Withheld {
    let set_aside = outcome.result.as_ref().ok().and_then(|accepted| accepted.set_aside.as_deref());
    let taken = outcome.taken.as_ref();
    let few = |ids: &[Box<str>]| ids.iter().take(NAMED).cloned().collect();
    audit::Withheld {
        bad_rows: set_aside.map(|set_aside| set_aside.rows),
        unreadable_rows: set_aside.map(|set_aside| set_aside.unreadable),
        set_aside: set_aside.map(|set_aside| set_aside.keys),
        set_aside_keys: set_aside.map(|set_aside| few(&set_aside.first)).unwrap_or_default(),
        taken_away: taken.map(|taken| taken.total),
        taken_away_keys: taken.map(|taken| few(&taken.first)).unwrap_or_default(),
        takeaways_refused: taken.is_some_and(|taken| taken.refused.is_some()),
    }
}

fn warn_of_set_aside(set_aside: &SetAside) {
    let SetAside { rows, unreadable, keys, first, findings } = set_aside;
    let finding =
        findings.as_ref().and_then(|findings| findings.kept().first().map(|first| (findings, first)));
    let finding = finding.map(|(findings, first)| first.display(findings.source()).to_string());
    warn!(
        rows,
        unreadable,
        keys_disabled = keys,
        keys = listed(first),
        finding,
        "rows of the source cannot be understood: they are SET ASIDE, and their keys are disabled"
    );
}

fn warn_of_taken(TakeawayReport { added, first, total, refused }: &TakeawayReport) {
    match refused {
        Some(refused) => warn!(reason = refused, "the refused source takes no access away"),
        None if *added == 0 => {}
        None => warn!(
            keys = listed(first),
            added,
            total,
            "the refused source TAKES AWAY access: what it revokes, disables or lets end earlier is in force until a source is \
             accepted"
        ),
    }
}

fn listed(ids: &[Box<str>]) -> String {
    ids.iter().take(NAMED).map(|key_id| Quoted(key_id).to_string()).collect::<Vec<_>>().join(", ")
}

impl ReloadLoop {
    /// Whether the log has said so already: a failure that passes by itself is tried again at every poll.
    fn is_old_news(&self, failure: &ReloadError) -> bool {
        let before = self.reloader.history.last();
        let before = before.as_ref().and_then(|outcome| outcome.result.as_ref().err());
        failure.is_passing() && before.is_some_and(|before| before.to_string() == failure.to_string())
    }

    /// Before anyone is told: an outcome that is acknowledged is in the audit trail.
    pub(super) fn record(&self, cause: &Cause, outcome: &Outcome) {
        let refused = match &outcome.result {
            Ok(_) => None,
            Err(failure) if self.is_old_news(failure) && cause.askers.is_empty() => return,
            Err(failure) => Some(failure),
        };
        let diff = diff(outcome);
        let changes = diff.map(Diff::counts);
        let examples = diff.map(|diff| audit::AccessExamples {
            stopping: ids(&diff.examples.stopping),
            starting: ids(&diff.examples.starting),
            loosened: ids(&diff.examples.loosened),
        });
        self.reloader.audit.record(&Event::Reload(audit::Reload {
            trigger: cause.trigger,
            peers: &cause.askers.peers,
            force: cause.force,
            accepted: refused.is_none(),
            keys: self.current.as_ref().map_or(0, |snapshot| snapshot.len()),
            changes,
            examples: examples.unwrap_or_default(),
            reason: refused.map(ReloadError::kind),
            withheld: Box::new(withheld(outcome)),
            place: refused.and_then(ReloadError::place),
            findings: refused.and_then(ReloadError::findings).map(Diagnostics::total),
            took_ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        }));
    }

    pub(super) fn report(&self, outcome: &Arc<Outcome>) {
        let took_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        match &outcome.result {
            Ok(AcceptedReload {
                generation,
                keys,
                diff: Diff { added, removed, changed, revoked, impact, examples },
                revocations_agreed,
                stale,
                revocations_conflicting,
                set_aside,
            }) => {
                info!(
                    generation,
                    keys,
                    added,
                    removed,
                    changed,
                    revoked,
                    stopping = impact.stopping(),
                    starting = impact.starting(),
                    loosened = impact.loosened(),
                    revocations_agreed,
                    revocations_conflicting,
                    took_ms,
                    "source loaded"
                );
                if impact.starting() + impact.loosened() > 0 {
                    let counts = counts(impact);
                    let keys = ids(&examples.starting).into_iter().chain(ids(&examples.loosened));
                    let keys = keys.map(|key_id| Quoted(key_id).to_string()).collect::<Vec<_>>().join(", ");
                    warn!(generation, keys, "the source widens access: {counts}");
                }
                set_aside.iter().for_each(|set_aside| warn_of_set_aside(set_aside));
                match stale {
                    Some(stale) => {
                        error!("{stale}");
                        systemd::status(&format!("serving no keys: {stale}"));
                    }
                    None => systemd::status(&format!("serving {keys} keys, generation {generation}")),
                }
            }
            Err(failure) if self.is_old_news(failure) => debug!(error = %failure, "source refused again"),
            Err(failure) => {
                let serving = self.generation;
                error!(error = %failure, serving_generation = serving, "source refused");
                outcome.taken.iter().for_each(warn_of_taken);
                systemd::status(&format!("source refused, serving generation {serving}: {failure}"));
            }
        }
        if self.current.is_none() && self.reloader.history.last().is_none() {
            warn!("no keys are loaded: every request is answered NOT_READY");
        }
        let buckets = self.reloader.allocator.lock().unwrap_or_else(PoisonError::into_inner).in_use();
        let taken = self.all_taken(outcome.taken.as_ref());
        let mut last = self.reloader.history.lock();
        (last.set_aside, last.taken) = (self.set_aside.clone(), taken);
        last.buckets = buckets;
        last.source = self.reloader.settings.source.path.clone();
        if outcome.result.is_ok() {
            last.accepted = Some(Arc::clone(outcome));
        }
        last.outcome = Some(Arc::clone(outcome));
    }
}
