//! Reports the outcome of a reload: to the audit trail first, then to the log, systemd and
//! `keyward status`.

use std::sync::{Arc, PoisonError};

use tracing::{debug, error, info, warn};

use crate::audit::{self, Event};
use crate::reload::trigger::Cause;
use crate::reload::{
    AcceptedReload, LastGoodStore, NAMED_KEYS, Outcome, ReloadError, ReloadLoop, SetAside, TakeawayReport,
    counts,
};
use crate::revocation::Durability;
use keyward_engine::record::Quoted;
use keyward_engine::snapshot::{Diff, Example};
use keyward_service::notify;
use keyward_source::Diagnostics;

fn ids(examples: &[Example]) -> Vec<&str> {
    examples.iter().take(NAMED_KEYS).map(|example| &*example.key_id).collect()
}

/// What a reload has changed, or would have changed if the guard had accepted it.
fn diff(outcome: &Outcome) -> Option<&Diff> {
    match &outcome.result {
        Ok(accepted) => Some(&accepted.diff),
        Err(error) => error.diff(),
    }
}

/// The keys that a reload has disabled or restricted because of bad rows.
fn withheld(outcome: &Outcome) -> audit::Withheld {
    let set_aside = outcome.result.as_ref().ok().and_then(|accepted| accepted.set_aside.as_deref());
    let takeaways = outcome.takeaways.as_ref();
    let few = |ids: &[Box<str>]| ids.iter().take(NAMED_KEYS).cloned().collect();
    audit::Withheld {
        bad_rows: set_aside.map(|set_aside| set_aside.rows),
        unreadable_rows: set_aside.map(|set_aside| set_aside.unreadable),
        set_aside: set_aside.map(|set_aside| set_aside.keys),
        set_aside_keys: set_aside.map(|set_aside| few(&set_aside.first)).unwrap_or_default(),
        taken_away: takeaways.map(|takeaways| takeaways.total),
        taken_away_keys: takeaways.map(|takeaways| few(&takeaways.first)).unwrap_or_default(),
        takeaways_refused: takeaways.is_some_and(|takeaways| takeaways.refused.is_some()),
    }
}

fn log_set_aside(set_aside: &SetAside) {
    let SetAside { rows, unreadable, keys, first, diagnostics } = set_aside;
    let finding = diagnostics.as_ref().and_then(|diagnostics| {
        let first = diagnostics.retained().first()?;
        Some(first.display(diagnostics.source()).to_string())
    });
    warn!(
        rows,
        unreadable,
        keys_disabled = keys,
        keys = joined(first),
        finding,
        "rows of the source cannot be understood: they are SET ASIDE, and their keys are disabled"
    );
}

fn log_takeaways(TakeawayReport { added, first, total, refused }: &TakeawayReport) {
    match refused {
        Some(refused) => warn!(reason = refused, "the refused source takes no access away"),
        None if *added == 0 => {}
        None => warn!(
            keys = joined(first),
            added,
            total,
            "the refused source TAKES AWAY access: its revocations, disabled keys and earlier expiry times apply until a \
             source is accepted"
        ),
    }
}

fn joined(ids: &[Box<str>]) -> String {
    ids.iter().take(NAMED_KEYS).map(|key_id| Quoted(key_id).to_string()).collect::<Vec<_>>().join(", ")
}

impl ReloadLoop {
    /// Whether the error has been logged already: a transient error is retried at every poll.
    fn is_repeated(&self, error: &ReloadError) -> bool {
        let before = self.reloader.history.last();
        let before = before.as_ref().and_then(|outcome| outcome.result.as_ref().err());
        error.is_transient() && before.is_some_and(|before| before.to_string() == error.to_string())
    }

    /// Writes the outcome to the audit trail. This precedes the answer to any client: an outcome
    /// that is acknowledged is in the trail.
    pub(super) fn record(&self, cause: &Cause, outcome: &Outcome) {
        let refused = match &outcome.result {
            Ok(_) => None,
            Err(error) if self.is_repeated(error) && cause.waiters.is_empty() => return,
            Err(error) => Some(error),
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
            peers: &cause.waiters.peers,
            force: cause.force,
            accepted: refused.is_none(),
            keys: self.current.as_ref().map_or(0, |snapshot| snapshot.len()),
            changes,
            examples: examples.unwrap_or_default(),
            reason: refused.map(ReloadError::kind),
            withheld: Box::new(withheld(outcome)),
            location: refused.and_then(ReloadError::location),
            diagnostics: refused.and_then(ReloadError::diagnostics).map(Diagnostics::total),
            took_ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        }));
    }

    /// Logs the outcome, and updates systemd's status line and the history.
    pub(super) fn report(&self, outcome: &Arc<Outcome>) {
        let took_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        match &outcome.result {
            Ok(AcceptedReload {
                generation,
                keys,
                diff: Diff { added, removed, changed, access_changed: _, deactivated, impact, examples },
                revocations_confirmed,
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
                    revoked = deactivated,
                    stopping = impact.stopping(),
                    starting = impact.starting(),
                    loosened = impact.loosened(),
                    revocations_agreed = revocations_confirmed,
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
                set_aside.iter().for_each(|set_aside| log_set_aside(set_aside));
                let durability = self.reloader.last_good.as_ref().map(LastGoodStore::durability);
                if let Some(Durability::NotDurable(reason)) = durability {
                    error!(
                        generation,
                        %reason,
                        "the keys are in force, but NOT DURABLE: until the accepted source is recorded, a restart with a \
                         source that is refused serves older keys, and gives back what has been taken away since"
                    );
                }
                match stale {
                    Some(stale) => {
                        error!("{stale}");
                        notify::status(&format!("serving no keys: {stale}"));
                    }
                    None => notify::status(&format!("serving {keys} keys, generation {generation}")),
                }
            }
            Err(error) if self.is_repeated(error) => debug!(%error, "source refused again"),
            Err(error) => {
                let serving = self
                    .reloader
                    .publisher
                    .reader()
                    .published()
                    .map_or(0, |published| published.generation());
                error!(%error, serving_generation = serving, "source refused");
                outcome.takeaways.iter().for_each(log_takeaways);
                let has_taken_away = outcome.takeaways.as_ref().is_some_and(|takeaways| takeaways.total > 0);
                let durability = self.reloader.last_good.as_ref().map(LastGoodStore::takeaway_durability);
                if let Some(Durability::NotDurable(reason)) = durability.filter(|_| has_taken_away) {
                    error!(
                        %reason,
                        "what refused sources have taken away is in force, but NOT DURABLE: until it is written, a restart \
                         gives it back, unless the source takes it away again"
                    );
                }
                notify::status(&format!("source refused, serving generation {serving}: {error}"));
            }
        }
        if self.current.is_none() && self.reloader.history.last().is_none() {
            warn!("no keys are loaded: every request is answered NOT_READY");
        }
        let buckets = self.reloader.allocator.lock().unwrap_or_else(PoisonError::into_inner).in_use();
        let takeaways = self.report_takeaways(outcome.takeaways.as_ref());
        let mut history = self.reloader.history.lock();
        (history.set_aside, history.takeaways) = (self.set_aside.clone(), takeaways);
        history.buckets = buckets;
        history.source = self.reloader.settings.source.path.clone();
        history.add(outcome);
    }
}
