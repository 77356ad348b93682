//! What came of reloads: the latest, and the latest that was accepted.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::reload::{ReloadError, SetAside, Stale, TakeawayReport};
use keyward_engine::snapshot::Diff;

/// A reload that ended.
#[derive(Debug)]
pub struct Outcome {
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What it did.
    pub result: Result<AcceptedReload, ReloadError>,
    /// What a source that was refused has taken away.
    pub taken: Option<TakeawayReport>,
}

/// A snapshot that is in force on every connection.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AcceptedReload {
    /// Its number.
    pub generation: u64,
    /// Its keys.
    pub keys: usize,
    /// What it changed.
    #[serde(flatten)]
    pub diff: Diff,
    /// Revocations that it says itself, and that are off the list for that.
    pub revocations_agreed: usize,
    /// That it is too old to be served: every request is answered STALE_SNAPSHOT.
    pub stale: Option<Stale>,
    /// Revocations that it contradicts, and that stay in force.
    pub revocations_conflicting: usize,
    /// Rows that were set aside.
    #[serde(skip)]
    pub set_aside: Option<Arc<SetAside>>,
}

/// What is known of reloads, for `keyward status`.
#[derive(Clone)]
pub struct History {
    last: Arc<Mutex<Last>>,
}

pub(super) struct Last {
    pub(super) outcome: Option<Arc<Outcome>>,
    pub(super) accepted: Option<Arc<Outcome>>,
    pub(super) buckets: u64,
    pub(super) source: Box<Path>,
    pub(super) configuration_refused: Option<String>,
    pub(super) set_aside: Option<Arc<SetAside>>,
    pub(super) taken: Option<TakeawayReport>,
}

impl History {
    /// Nothing loaded yet from `source`.
    pub fn new(source: &Path) -> Self {
        let last = Last {
            outcome: None,
            accepted: None,
            buckets: 0,
            source: source.into(),
            configuration_refused: None,
            set_aside: None,
            taken: None,
        };
        Self { last: Arc::new(Mutex::new(last)) }
    }

    /// The latest reload.
    pub fn last(&self) -> Option<Arc<Outcome>> {
        self.lock().outcome.clone()
    }

    /// The latest reload that was accepted.
    pub fn last_accepted(&self) -> Option<Arc<Outcome>> {
        self.lock().accepted.clone()
    }

    /// Why the configuration as it was last read is not in force, if it is not: it, or the source that was read by it, is wrong.
    pub fn configuration_refused(&self) -> Option<String> {
        self.lock().configuration_refused.clone()
    }

    /// Where the keys come from.
    pub fn source(&self) -> Box<Path> {
        self.lock().source.clone()
    }

    /// The rows that were set aside of the source that is served.
    pub fn set_aside(&self) -> Option<Arc<SetAside>> {
        self.lock().set_aside.clone()
    }

    /// What refused sources have taken away since a source was accepted.
    pub fn taken(&self) -> Option<TakeawayReport> {
        self.lock().taken.clone()
    }

    /// Token buckets in use.
    pub fn buckets(&self) -> u64 {
        self.lock().buckets
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
