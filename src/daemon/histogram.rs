//! A histogram that one thread writes, and any thread may read.

use std::sync::atomic::{AtomicU64, Ordering};

use keyward_admin::message;

/// The unit of a histogram of nanoseconds that is reported in seconds.
pub const NANOSECONDS: f64 = 1e9;

/// Counts of values by upper bounds, in ascending order, and their sum. All are integers, of which
/// the report divides bounds and sum by a unit.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// A histogram without values.
    pub const fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value. To be called by one thread at a time: a plain load and store suffice then.
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        add(self.counts.get(bucket).unwrap_or(&self.above), 1);
        add(&self.sum, value);
    }

    /// The report of this histogram. `unit` is the number that stands for 1.
    pub fn report(&self, unit: f64) -> message::Histogram {
        Self::total(self.bounds, unit, [self])
    }

    /// The report of several histograms with the same bounds together.
    pub fn total<'h>(
        bounds: &[u64; N],
        unit: f64,
        histograms: impl IntoIterator<Item = &'h Self>,
    ) -> message::Histogram {
        let (mut counts, mut above, mut sum) = ([0; N], 0, 0.0);
        for histogram in histograms {
            for (total, count) in counts.iter_mut().zip(&histogram.counts) {
                *total += count.load(Ordering::Relaxed);
            }
            above += histogram.above.load(Ordering::Relaxed);
            sum += histogram.sum.load(Ordering::Relaxed) as f64 / unit;
        }
        let buckets = bounds.iter().zip(counts).map(|(bound, count)| (*bound as f64 / unit, count)).collect();
        message::Histogram { sum, buckets, above }
    }
}

fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_counted_at_the_first_bound_that_is_not_below_it() {
        let histogram = Histogram::new(&[1, 10, 100]);
        for value in [0, 1, 2, 10, 11, 100, 101, 1_000] {
            histogram.record(value);
        }
        let report = histogram.report(1.0);
        assert_eq!((report.buckets, report.above), (vec![(1.0, 2), (10.0, 2), (100.0, 2)], 2));
        assert_eq!(report.sum, 1_225.0);
    }

    #[test]
    fn report_is_in_the_unit_and_adds_histograms() {
        const BOUNDS: [u64; 2] = [2_500, 1_000_000_000];
        let [one, other] = [Histogram::new(&BOUNDS), Histogram::new(&BOUNDS)];
        one.record(2_500);
        other.record(2_000);
        other.record(500_000_000);
        let report = Histogram::total(&BOUNDS, NANOSECONDS, [&one, &other]);
        assert_eq!(report.buckets, [(2.5e-6, 2), (1.0, 1)]);
        assert!((report.sum - 0.500_004_5).abs() < 1e-12, "{report:?}");
        assert_eq!(Histogram::total(&BOUNDS, NANOSECONDS, []).buckets, [(2.5e-6, 0), (1.0, 0)]);
    }
}
