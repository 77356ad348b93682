//! How long answers took: an HDR histogram of nanoseconds, and what is read off it.

use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::fault::Fault;

/// Longest time that is told from longer ones: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// Significant digits of a time: within 0.1 %.
const DIGITS: u8 = 3;

/// Rows of a drawing, at most: what fits on a terminal with the rest of the report.
const MAX_ROWS: usize = 20;

/// How much longer each row's times may be than the row's before, as powers of 2: the smallest that leaves no more than
/// [`MAX_ROWS`] is taken, and the last always does (2^64 is longer than everything).
const STEPS: [f64; 7] = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0];

/// Times between a request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u64>);

/// What people ask of a latency, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// Shortest.
    pub(crate) min: u64,
    /// Half were not longer.
    pub p50: u64,
    /// 90 % were not longer.
    pub p90: u64,
    /// 99 % were not longer.
    pub p99: u64,
    /// 99.9 % were not longer.
    pub p99_9: u64,
    /// Longest.
    pub(crate) max: u64,
    /// Average.
    pub(crate) mean: f64,
}

/// A row of a drawing: so many answers took at least `from` and less than the next row's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// Nanoseconds.
    pub(crate) from: f64,
    /// How many.
    pub(crate) count: u64,
}

impl Latency {
    /// No times yet.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn new() -> Result<Self, Fault> {
        Histogram::new_with_bounds(1, LONGEST, DIGITS)
            .map(Self)
            .map_err(|error| Fault::system("make a histogram")(io::Error::other(error)))
    }

    /// `count` answers took `nanoseconds`.
    pub(crate) fn record(&mut self, nanoseconds: u64, count: u64) {
        self.0.saturating_record_n(nanoseconds, count);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    /// Adds the times of another, which has the same bounds.
    pub(crate) fn add(&mut self, other: &Self) {
        // Only bounds that differ could be refused.
        let _same_bounds = self.0.add(&other.0);
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Where they lie; all 0 where there are none.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.0.value_at_quantile(quantile);
        let (min, max, mean) = (self.0.min(), self.0.max(), self.0.mean());
        Percentiles { min, p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max, mean }
    }

    /// Every bucket that has something in it: the longest time in it (nanoseconds), and how many.
    pub(crate) fn buckets(&self) -> Vec<(u64, u64)> {
        self.0
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .collect()
    }

    /// The same in few rows, each longer than the one before by the same factor. Rows with nothing in them are left out
    /// where there are several in a row.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for step in STEPS {
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
                    // One empty row stands for any number of them.
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

    fn latency(times: &[(u64, u64)]) -> Latency {
        let mut latency = Latency::new().expect("memory");
        for (time, count) in times {
            latency.record(*time, *count);
        }
        latency
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latency = latency(&[]);
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
            assert!((found as f64 / exact - 1.0).abs() < 0.002, "{found} of {exact}");
        }
        assert_eq!(latency.count(), 10_000);
    }

    #[test]
    fn a_time_beyond_all_bounds_is_counted_as_the_longest() {
        assert_eq!(latency(&[(u64::MAX, 1)]).count(), 1);
        assert_eq!(latency(&[]).percentiles().max, 0);
    }

    #[test]
    fn two_histograms_add_up() {
        let mut sum = latency(&[(1_000, 2)]);
        sum.add(&latency(&[(1_000, 3), (9_000, 1)]));
        assert_eq!(sum.buckets().iter().map(|(_, count)| count).collect::<Vec<_>>(), [&5, &1]);
        sum.clear();
        assert_eq!((sum.count(), sum.buckets().len(), sum.rows().len()), (0, 0, 0));
    }

    #[test]
    fn few_rows_hold_all_however_far_apart_the_times_are() {
        for times in [
            &[(5_000, 1)][..],
            &[(5_000, 1), (5_100, 5), (6_000, 2)],
            &[(1, 1), (10, 1), (1_000, 7), (50_000, 1), (1_000_000, 1), (LONGEST, 1)],
        ] {
            let rows = latency(times).rows();
            assert!((1..=MAX_ROWS).contains(&rows.len()), "{rows:?}");
            let total: u64 = times.iter().map(|(_, count)| count).sum();
            assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), total);
            assert!(rows.windows(2).all(|pair| pair[0].from < pair[1].from), "{rows:?}");
            assert!(rows[0].from <= times[0].0 as f64, "{rows:?}");
        }
        let many = latency(&(0..40).map(|power| (1 << power, 1)).collect::<Vec<_>>());
        assert!(many.rows().len() <= MAX_ROWS, "{}", many.rows().len());
    }
}
