//! How long the reloads since the start took, by result.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::histogram::{Histogram, NANOSECONDS};
use crate::reload::Outcome;
use keyward_admin::message;

/// Upper bounds in nanoseconds: 1 ms to 600 s.
const BOUNDS: [u64; 18] = {
    const MS: u64 = 1_000_000;
    [
        MS,
        2 * MS + MS / 2,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        1_000 * MS,
        2_500 * MS,
        5_000 * MS,
        10_000 * MS,
        25_000 * MS,
        50_000 * MS,
        100_000 * MS,
        250_000 * MS,
        600_000 * MS,
    ]
};

/// The durations by result.
#[derive(Debug)]
pub(super) struct Durations {
    accepted: Histogram<{ BOUNDS.len() }>,
    unchanged: Histogram<{ BOUNDS.len() }>,
    refused: Histogram<{ BOUNDS.len() }>,
}

impl Durations {
    pub(super) fn new() -> Self {
        let [accepted, unchanged, refused] = [(); 3].map(|()| Histogram::new(&BOUNDS));
        Self { accepted, unchanged, refused }
    }

    /// Counts a reload. One that was accepted and has added, removed or changed no row is unchanged.
    pub(super) fn record(&self, outcome: &Outcome) {
        let histogram = match &outcome.result {
            Ok(accepted) if accepted.has_changes() => &self.accepted,
            Ok(_) => &self.unchanged,
            Err(_) => &self.refused,
        };
        let Outcome { took, .. } = outcome;
        histogram.record(nanoseconds(*took));
    }

    /// The durations in seconds.
    pub(super) fn report(&self) -> BTreeMap<String, message::Histogram> {
        let all = [("accepted", &self.accepted), ("unchanged", &self.unchanged), ("refused", &self.refused)];
        all.into_iter().map(|(name, histogram)| (name.to_owned(), histogram.report(NANOSECONDS))).collect()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
