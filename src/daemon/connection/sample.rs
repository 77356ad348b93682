//! Measures a sample of the turns: how long they took, and how many requests they answered.
//!
//! One turn in [`MEAN_GAP`] is measured on average. The gaps between measured turns are pseudo-random:
//! with a fixed gap, a client with a periodic load would always be measured at the same place of its
//! period. Other turns cost a decrement and a branch, and the clock is not read for them.

use std::cell::Cell;

use crate::histogram::{Histogram, NANOSECONDS};
use keyward_admin::message;
use tokio::time::Instant;

/// The mean number of turns from one that is measured to the next.
const MEAN_GAP: u32 = 64;

/// Upper bounds of the time of a turn in nanoseconds: 1 us to 1 s. A request alone takes some
/// microseconds, and a full buffer some hundred.
const DURATION_BOUNDS: [u64; 19] = {
    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;
    [
        US,
        2 * US + US / 2,
        5 * US,
        10 * US,
        25 * US,
        50 * US,
        100 * US,
        250 * US,
        500 * US,
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
    ]
};

/// Upper bounds of the requests of a turn. A full buffer has some 680 of the most common form.
const REQUESTS_BOUNDS: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Decides which turns of a worker are measured.
pub(super) struct Sampler {
    /// Turns until the next one that is measured, which is the last of them.
    left: Cell<u32>,
    random: Cell<u32>,
}

/// What was measured on a worker. Only the worker's thread records.
#[derive(Debug)]
pub struct Samples {
    duration: Histogram<{ DURATION_BOUNDS.len() }>,
    requests: Histogram<{ REQUESTS_BOUNDS.len() }>,
}

impl Sampler {
    pub(super) fn new() -> Self {
        let sampler = Self { left: Cell::new(0), random: Cell::new(0x9e37_79b9) };
        sampler.begin_gap();
        sampler
    }

    /// Whether the turn that has ended is to be measured. To be called once for each turn.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        let left = self.left.get() - 1;
        self.left.set(left);
        left == 0 && self.begin_gap()
    }

    /// Chooses the next gap, from 1 to twice the mean. Returns true.
    #[cold]
    fn begin_gap(&self) -> bool {
        // Marsaglia's xorshift: its state is never 0.
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random.set(random);
        self.left.set(1 + random % (2 * MEAN_GAP - 1));
        true
    }
}

impl Samples {
    /// Records a turn that has ended now, with the time when its requests were read. A turn that has
    /// read less than one request answers none, and is not recorded.
    pub(super) fn record(&self, read_at: Instant, requests: usize) {
        if requests > 0 {
            self.duration.record(u64::try_from(read_at.elapsed().as_nanos()).unwrap_or(u64::MAX));
            self.requests.record(requests as u64);
        }
    }

    /// The times of several workers in seconds, and their requests.
    pub fn total<'s>(
        samples: impl IntoIterator<Item = &'s Self> + Clone,
    ) -> (message::Histogram, message::Histogram) {
        let durations = samples.clone().into_iter().map(|samples| &samples.duration);
        let requests = samples.into_iter().map(|samples| &samples.requests);
        (
            Histogram::total(&DURATION_BOUNDS, NANOSECONDS, durations),
            Histogram::total(&REQUESTS_BOUNDS, 1.0, requests),
        )
    }
}

impl Default for Samples {
    fn default() -> Self {
        Self { duration: Histogram::new(&DURATION_BOUNDS), requests: Histogram::new(&REQUESTS_BOUNDS) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TURNS: u32 = 1_000_000;

    #[test]
    fn one_turn_in_64_is_measured() {
        let sampler = Sampler::new();
        let measured = (0..TURNS).filter(|_| sampler.is_due()).count();
        let expected = (TURNS / MEAN_GAP) as usize;
        assert!(measured.abs_diff(expected) < expected / 20, "{measured} of {TURNS}");
    }

    /// Clients repeat themselves with all periods. Each place of a period is measured as often as the
    /// others.
    #[test]
    fn periodic_load_is_measured_at_every_place() {
        for period in [2, 4, 16, 63, 64, 65, 128] {
            let sampler = Sampler::new();
            let mut measured = vec![0_u32; period];
            for turn in 0..TURNS as usize {
                measured[turn % period] += u32::from(sampler.is_due());
            }
            let expected = TURNS / MEAN_GAP / period as u32;
            let tolerance = 6 * expected.isqrt();
            assert!(
                measured.iter().all(|count| count.abs_diff(expected) <= tolerance),
                "period {period}, {expected} each: {measured:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn turn_is_recorded_with_its_time_and_requests() {
        let samples = Samples::default();
        let read_at = Instant::now();
        tokio::time::advance(Duration::from_micros(250)).await;
        samples.record(read_at, 3);
        samples.record(read_at, 0);
        samples.record(read_at, 1_000);
        let (duration, requests) = Samples::total([&samples]);
        assert_eq!(duration.buckets.iter().find(|(_, count)| *count > 0), Some(&(250e-6, 2)));
        assert!((duration.sum - 500e-6).abs() < 1e-12 && duration.above == 0);
        assert_eq!(requests.buckets.iter().find(|(_, count)| *count > 0), Some(&(4.0, 1)));
        assert_eq!((requests.above, requests.sum), (1, 1_003.0));
    }
}
