//! The latencies of a load: an HDR histogram in nanoseconds, its percentiles, and its rows for a
//! chart.

use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::LoadError;

/// The largest latency of the histogram, an hour.
const MAX_NANOSECONDS: u64 = 3_600_000_000_000;

/// Significant digits of a latency: a recorded latency is at most 0.1 % off.
const DIGITS: u8 = 3;

/// Most rows of a chart, so that the whole report fits on a terminal.
const MAX_ROWS: usize = 20;

/// The possible widths of a row, as binary logarithms: the lower bound of the next row is `2^step`
/// times as high. [`LatencyHistogram::rows`] uses the first with which [`MAX_ROWS`] rows suffice.
/// With the last one, 16 rows cover the latencies up to 2^64.
const ROW_STEPS: [f64; 7] = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0];

/// A histogram of latencies.
#[derive(Clone, Debug)]
pub(crate) struct LatencyHistogram(Histogram<u64>);

/// Statistics of a histogram, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// Minimum.
    pub(crate) min: u64,
    /// Median.
    pub(crate) p50: u64,
    /// 90th percentile.
    pub(crate) p90: u64,
    /// 99th percentile.
    pub(crate) p99: u64,
    /// 99.9th percentile.
    pub(crate) p99_9: u64,
    /// Maximum.
    pub(crate) max: u64,
    /// Mean.
    pub(crate) mean: f64,
}

/// A row of a chart: answers that took at least `from`, and less than `from` of the next row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// Lower bound in nanoseconds.
    pub(crate) from: f64,
    /// Number of answers.
    pub(crate) count: u64,
}

impl LatencyHistogram {
    /// An empty histogram.
    ///
    /// # Errors
    /// When it cannot be allocated.
    pub(crate) fn new() -> Result<Self, LoadError> {
        Histogram::new_with_bounds(1, MAX_NANOSECONDS, DIGITS)
            .map(Self)
            .map_err(|error| LoadError::system("make a histogram")(io::Error::other(error)))
    }

    /// Records that `count` answers took `nanoseconds` each.
    pub(crate) fn record(&mut self, nanoseconds: u64, count: u64) {
        self.0.saturating_record_n(nanoseconds, count);
    }

    /// Removes all latencies.
    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    /// Adds the latencies of another histogram.
    pub(crate) fn add(&mut self, other: &Self) {
        // This fails only if the bounds of the histograms differ, and all have the same.
        let _ = self.0.add(&other.0);
    }

    /// Number of latencies.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The statistics; all 0 if the histogram is empty.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.0.value_at_quantile(quantile);
        let (min, max, mean) = (self.0.min(), self.0.max(), self.0.mean());
        Percentiles { min, p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max, mean }
    }

    /// The buckets that are not empty: the largest latency of each, in nanoseconds, and its number
    /// of answers.
    pub(crate) fn buckets(&self) -> Vec<(u64, u64)> {
        self.0
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .collect()
    }

    /// The histogram in at most [`MAX_ROWS`] rows, on a logarithmic scale. Consecutive empty rows
    /// are combined into one.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for step in ROW_STEPS {
            rows = self.rows_by(step);
            if rows.len() <= MAX_ROWS {
                break;
            }
        }
        rows
    }

    fn rows_by(&self, step: f64) -> Vec<Row> {
        let row_of = |value: u64| ((value.max(1) as f64).log2() / step).floor() as i64;
        let mut rows: Vec<(i64, u64)> = Vec::new();
        for (value, count) in self.buckets() {
            let row = row_of(value);
            match rows.last_mut() {
                Some((last, sum)) if *last == row => *sum += count,
                last => {
                    // One empty row replaces any number of them.
                    if last.is_some_and(|(last, _)| *last + 1 < row) {
                        rows.push((row - 1, 0));
                    }
                    rows.push((row, count));
                }
            }
        }
        rows.into_iter().map(|(row, count)| Row { from: (row as f64 * step).exp2(), count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(times: &[(u64, u64)]) -> LatencyHistogram {
        let mut latency = LatencyHistogram::new().expect("memory");
        for (time, count) in times {
            latency.record(*time, *count);
        }
        latency
    }

    #[test]
    fn percentiles_are_accurate_to_a_thousandth() {
        let mut latency = histogram(&[]);
        (1..=10_000).for_each(|time| latency.record(time * 1_000, 1));
        let found = latency.percentiles();
        for (found, exact) in [
            (found.min, 1_000.0),
            (found.p50, 5_000_000.0),
            (found.p90, 9_000_000.0),
            (found.p99, 9_900_000.0),
            (found.p99_9, 9_990_000.0),
            (found.max, 10_000_000.0),
        ] {
            assert!((found as f64 / exact - 1.0).abs() < 0.001, "{found} of {exact}");
        }
        assert_eq!(latency.count(), 10_000);
    }

    #[test]
    fn latency_over_the_maximum_is_counted() {
        assert_eq!(histogram(&[(u64::MAX, 1)]).count(), 1);
        assert_eq!(histogram(&[]).percentiles().max, 0);
    }

    #[test]
    fn sum_of_histograms_has_the_latencies_of_both() {
        let mut sum = histogram(&[(1_000, 2)]);
        sum.add(&histogram(&[(1_000, 3), (9_000, 1)]));
        assert_eq!(sum.buckets().iter().map(|(_, count)| count).collect::<Vec<_>>(), [&5, &1]);
        sum.clear();
        assert_eq!((sum.count(), sum.buckets().len(), sum.rows().len()), (0, 0, 0));
    }

    #[test]
    fn rows_are_few_and_contain_every_latency() {
        for times in [
            &[(5_000, 1)][..],
            &[(5_000, 1), (5_100, 5), (6_000, 2)],
            &[(1, 1), (10, 1), (1_000, 7), (50_000, 1), (1_000_000, 1), (MAX_NANOSECONDS, 1)],
        ] {
            let rows = histogram(times).rows();
            assert!((1..=MAX_ROWS).contains(&rows.len()), "{rows:?}");
            let total: u64 = times.iter().map(|(_, count)| count).sum();
            assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), total);
            assert!(rows.windows(2).all(|pair| pair[0].from < pair[1].from), "{rows:?}");
            assert!(rows[0].from <= times[0].0 as f64, "{rows:?}");
        }
        let many = histogram(&(0..40).map(|power| (1 << power, 1)).collect::<Vec<_>>());
        assert!(many.rows().len() <= MAX_ROWS, "{}", many.rows().len());
    }
}
