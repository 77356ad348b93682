//! The report of a load: its figures as text and as JSON, and the conditions that they apply to.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::driver::Measurement;
use crate::error::LoadError;
use crate::latency::{LatencyHistogram, Percentiles};
use crate::load::LoadConfig;
use crate::processors::{CpuPlacement, Machine, Server};
use crate::target::{Tally, Target};

/// Columns of the longest bar.
const BAR_COLUMNS: f64 = 40.0;

/// Block characters of 0 to 7 eighths of a column.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// The figures of a load. `--json` prints this struct.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Name of the target.
    pub(crate) target: String,
    /// Number of connections.
    pub(crate) connections: usize,
    /// Closed loop: requests that each connection issues at once. Open loop: most requests in
    /// flight on it.
    pub(crate) depth: usize,
    /// Requests a second of an open loop; null for a closed loop.
    pub(crate) rate: Option<f64>,
    /// Whether the client spins while it waits.
    pub(crate) busy_poll: bool,
    /// Whether the load was ended early.
    pub(crate) interrupted: bool,
    /// Length of the measurement in seconds.
    pub(crate) seconds: f64,
    /// Answers during the measurement, including errors.
    pub(crate) answers: u64,
    /// Answers a second.
    pub(crate) throughput: f64,
    /// Mean size of a request and of an answer in bytes.
    pub(crate) bytes: [f64; 2],
    /// Answers by outcome.
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// Answers that are errors, by the name of the error.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Requests of an open loop that were due but could not be sent.
    pub(crate) unsent: u64,
    /// Requests without an answer a second after the measurement.
    pub(crate) unanswered: u64,
    /// Latencies in nanoseconds. In an open loop, they count from when a request was due.
    pub(crate) latency_ns: Percentiles,
    /// The whole histogram: the largest latency of each bucket, and the number of answers.
    pub(crate) histogram_ns: Vec<(u64, u64)>,
    /// Where the client's threads ran.
    pub(crate) client: Vec<CpuPlacement>,
    /// Where the server's threads ran; null if they are not visible.
    pub(crate) server: Option<Server>,
    /// The machine.
    pub(crate) machine: Machine,
    /// Version of the client.
    pub(crate) version: &'static str,
    #[serde(skip)]
    latency: LatencyHistogram,
}

impl Report {
    /// Combines the measurements of all threads.
    ///
    /// # Errors
    /// When the histogram cannot be allocated.
    pub(crate) fn new(
        target: &dyn Target,
        config: &LoadConfig,
        measurements: &[Measurement],
        server: Option<Server>,
        interrupted: bool,
    ) -> Result<Self, LoadError> {
        let (mut tally, mut latency) = (Tally::default(), LatencyHistogram::new()?);
        for part in measurements {
            tally.add(&part.tally);
            latency.add(&part.latency);
        }
        let sum = |of: fn(&Measurement) -> u64| measurements.iter().map(of).sum::<u64>();
        let answers = sum(|part| part.answers);
        let rates = measurements.iter().filter(|part| !part.time.is_zero());
        let throughput = rates.map(|part| part.answers as f64 / part.time.as_secs_f64()).sum();
        let outcomes = tally.outcomes().map(|(outcome, count)| (target.outcome_name(outcome), count));
        Ok(Self {
            target: target.name().to_owned(),
            connections: config.connections,
            depth: config.depth,
            rate: config.rate,
            busy_poll: config.busy_poll,
            interrupted,
            seconds: measurements.iter().map(|part| part.time.as_secs_f64()).fold(0.0, f64::max),
            answers,
            throughput,
            bytes: [
                target.requests().mean_size(),
                sum(|part| part.bytes_received) as f64 / answers.max(1) as f64,
            ],
            outcomes: outcomes.collect(),
            errors: tally.errors,
            unsent: sum(|part| part.unsent),
            unanswered: sum(|part| part.unanswered),
            latency_ns: latency.percentiles(),
            histogram_ns: latency.buckets(),
            client: measurements.iter().map(|part| part.placement.clone()).collect(),
            server,
            machine: Machine::current(),
            version: env!("CARGO_PKG_VERSION"),
            latency,
        })
    }

    fn write_header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(f, "{}: {} connection{}", self.target, self.connections, plural(self.connections))?;
        match self.rate {
            Some(rate) => write!(f, ", open loop at {rate} a second, at most {} on their way", self.depth)?,
            None => write!(f, ", {} request{} at once", self.depth, plural(self.depth))?,
        }
        let end = if self.interrupted { ", interrupted" } else { "" };
        writeln!(f, " on each, {:.1} s{end}", self.seconds)
    }

    fn write_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [request, answer] = self.bytes;
        writeln!(
            f,
            "throughput   {} a second ({request:.0} B in, {answer:.0} B out)",
            Grouped(self.throughput as u64)
        )?;
        writeln!(f, "answers      {}", list(&self.outcomes))?;
        if !self.errors.is_empty() {
            writeln!(f, "ERRORS       {}", list(&self.errors))?;
        }
        if self.unsent > 0 {
            writeln!(
                f,
                "BEHIND       {} requests were due and could not be sent: the server does not keep up with the rate",
                Grouped(self.unsent)
            )?;
        }
        if self.unanswered > 0 {
            writeln!(f, "UNANSWERED   {} requests", Grouped(self.unanswered))?;
        }
        Ok(())
    }

    fn write_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { min, p50, p90, p99, p99_9, max, .. } = self.latency_ns;
        let from = if self.rate.is_some() { ", from when each was due" } else { "" };
        writeln!(
            f,
            "latency      min {}   p50 {}   p90 {}   p99 {}   p99.9 {}   max {}{from}\n",
            Time(min as f64),
            Time(p50 as f64),
            Time(p90 as f64),
            Time(p99 as f64),
            Time(p99_9 as f64),
            Time(max as f64),
        )?;
        let rows = self.latency.rows();
        let most = rows.iter().map(|row| row.count).max().unwrap_or(1).max(1) as f64;
        for row in &rows {
            match row.count {
                0 => writeln!(f, "           ⋮")?,
                count => {
                    let share = 100.0 * count as f64 / self.latency.count().max(1) as f64;
                    let from = Time(row.from).to_string();
                    writeln!(f, "  {from:>9} {:<40} {share:>6.2} %", bar(count as f64 / most))?;
                }
            }
        }
        writeln!(f)
    }

    fn write_placement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, placement) in self.client.iter().enumerate() {
            let how = if self.busy_poll { "spinning" } else { "sleeping" };
            let pinned = if placement.allowed.len() == 1 { ", pinned" } else { "" };
            writeln!(
                f,
                "client       thread {number} on {}{pinned}, {how} while it waits",
                processors(placement.ran_on)
            )?;
        }
        match &self.server {
            Some(server) => {
                for thread in &server.threads {
                    let (name, ran) = (&thread.name, thread.ran_for * 10);
                    let allowed = &thread.allowed;
                    writeln!(
                        f,
                        "server       {} (pid {}), {name} on {}, may use {allowed}, ran for {ran} ms",
                        server.name,
                        server.pid,
                        processors(thread.ran_on)
                    )?;
                }
                if server.threads.is_empty() {
                    writeln!(
                        f,
                        "server       {} (pid {}), no thread is visible that ran for 10 ms",
                        server.name, server.pid
                    )?;
                }
            }
            None => writeln!(f, "server       its process is not visible from here")?,
        }
        let Machine { processor, processors, kernel } = &self.machine;
        write!(f, "machine      {processor}, {processors} usable, {kernel}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_header(f)?;
        self.write_counts(f)?;
        self.write_latency(f)?;
        self.write_placement(f)
    }
}

fn processors([start, end]: [usize; 2]) -> String {
    if start == end { format!("processor {end}") } else { format!("processors {start} and then {end}") }
}

fn list(counts: &BTreeMap<String, u64>) -> String {
    let texts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{name} {}", Grouped(*count))).collect();
    if texts.is_empty() { "none".into() } else { texts.join(", ") }
}

/// A bar for a share of the longest one, with a resolution of an eighth of a column. Its minimum is
/// an eighth.
fn bar(share: f64) -> String {
    let eighths = ((share * BAR_COLUMNS * 8.0).round() as usize).max(1);
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// Nanoseconds, displayed with three digits.
struct Time(f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            nanoseconds if nanoseconds < 999.5 => return write!(f, "{nanoseconds:.0} ns"),
            nanoseconds if nanoseconds < 999.5e3 => (nanoseconds / 1e3, "µs"),
            nanoseconds if nanoseconds < 999.5e6 => (nanoseconds / 1e6, "ms"),
            nanoseconds => (nanoseconds / 1e9, "s"),
        };
        match value {
            value if value < 9.995 => write!(f, "{value:.2} {unit}"),
            value if value < 99.95 => write!(f, "{value:.1} {unit}"),
            value => write!(f, "{value:.0} {unit}"),
        }
    }
}

/// A number, displayed with commas between groups of three digits.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_displayed_with_three_digits() {
        let times = [0.0, 7.0, 999.0, 1_000.0, 9_999.0, 12_340.0, 999_600.0, 5_670_000.0, 1.5e9, 3.6e12];
        assert_eq!(
            times.map(|time| Time(time).to_string()),
            [
                "0 ns", "7 ns", "999 ns", "1.00 µs", "10.0 µs", "12.3 µs", "1.00 ms", "5.67 ms", "1.50 s",
                "3600 s"
            ]
        );
    }

    #[test]
    fn digits_are_grouped_in_threes() {
        let numbers = [0, 999, 1_000, 12_345_678].map(|number| Grouped(number).to_string());
        assert_eq!(numbers, ["0", "999", "1,000", "12,345,678"]);
    }

    #[test]
    fn length_of_a_bar_is_proportional_to_its_share() {
        assert_eq!([bar(1.0), bar(0.5)].map(|bar| bar.chars().count()), [40, 20]);
        assert_eq!([bar(0.0), bar(1.0 / 320.0), bar(9.0 / 320.0)], ["▏", "▏", "█▏"]);
    }
}
