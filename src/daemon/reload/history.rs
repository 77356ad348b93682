//! The outcomes of reloads that `keyward status` shows: the latest, and the latest that was
//! accepted. Metrics have the number of all, and how long they took.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::reload::durations::Durations;
use crate::reload::{ReloadError, SetAside, Stale, TakeawayReport};
use keyward_admin::message;
use keyward_engine::snapshot::Diff;

/// The outcome of a reload.
#[derive(Debug)]
pub struct Outcome {
    /// When the reload ended.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What was published, or why nothing was.
    pub result: Result<AcceptedReload, ReloadError>,
    /// The takeaways of a source that was refused.
    pub takeaways: Option<TakeawayReport>,
}

/// A reload whose snapshot is in force on every connection.
#[derive(Clone, Debug)]
pub struct AcceptedReload {
    /// The snapshot's number.
    pub generation: u64,
    /// Its keys.
    pub keys: usize,
    /// What it changed.
    pub diff: Diff,
    /// Revocations that the source confirms, and that have left the list for that reason.
    pub revocations_confirmed: usize,
    /// Set if the source is too old to be served: every request is answered STALE_SNAPSHOT.
    pub stale: Option<Stale>,
    /// Revocations that the source contradicts, and that stay in force.
    pub revocations_conflicting: usize,
    /// Rows that were set aside.
    pub set_aside: Option<Arc<SetAside>>,
}

impl AcceptedReload {
    /// Whether the reload has added, removed or changed a row.
    pub fn has_changes(&self) -> bool {
        let Diff { added, removed, changed, .. } = self.diff;
        added + removed + changed > 0
    }
}

impl HistoryState {
    /// Adds an outcome.
    pub(super) fn add(&mut self, outcome: &Arc<Outcome>) {
        self.durations.record(outcome);
        if outcome.result.is_ok() {
            self.last_accepted = Some(Arc::clone(outcome));
            self.last_accepted_unix_s = UNIX_EPOCH.elapsed().ok().map(|now| now.as_secs_f64());
        }
        self.last = Some(Arc::clone(outcome));
    }
}

/// What `keyward status` shows of reloads. Clones share it.
#[derive(Clone)]
pub struct History {
    state: Arc<Mutex<HistoryState>>,
}

pub(super) struct HistoryState {
    pub(super) last: Option<Arc<Outcome>>,
    pub(super) last_accepted: Option<Arc<Outcome>>,
    last_accepted_unix_s: Option<f64>,
    durations: Durations,
    pub(super) buckets: u64,
    pub(super) source: Box<Path>,
    pub(super) configuration_refused: Option<String>,
    pub(super) set_aside: Option<Arc<SetAside>>,
    pub(super) takeaways: Option<TakeawayReport>,
}

impl History {
    /// The history before the first load of `source`.
    pub fn new(source: &Path) -> Self {
        let state = HistoryState {
            last: None,
            last_accepted: None,
            last_accepted_unix_s: None,
            durations: Durations::new(),
            buckets: 0,
            source: source.into(),
            configuration_refused: None,
            set_aside: None,
            takeaways: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The latest reload.
    pub fn last(&self) -> Option<Arc<Outcome>> {
        self.lock().last.clone()
    }

    /// The latest reload that was accepted.
    pub fn last_accepted(&self) -> Option<Arc<Outcome>> {
        self.lock().last_accepted.clone()
    }

    /// When a reload was last accepted, in Unix seconds.
    pub fn last_accepted_unix_s(&self) -> Option<f64> {
        self.lock().last_accepted_unix_s
    }

    /// How long reloads took in seconds, by result.
    pub fn durations(&self) -> BTreeMap<String, message::Histogram> {
        self.lock().durations.report()
    }

    /// Why the configuration that was read last is not in force: it is wrong, or the source that
    /// was read by it is.
    pub fn configuration_refused(&self) -> Option<String> {
        self.lock().configuration_refused.clone()
    }

    /// The path of the source.
    pub fn source(&self) -> Box<Path> {
        self.lock().source.clone()
    }

    /// The rows of the current source that were set aside.
    pub fn set_aside(&self) -> Option<Arc<SetAside>> {
        self.lock().set_aside.clone()
    }

    /// The takeaways of refused sources since a source was accepted.
    pub fn takeaways(&self) -> Option<TakeawayReport> {
        self.lock().takeaways.clone()
    }

    /// Token buckets in use.
    pub fn buckets(&self) -> u64 {
        self.lock().buckets
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HistoryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
