//! The table at the end of a run: medians per request, and their ratios to a reference of the same
//! run.
//!
//! Medians are read from criterion's `estimates.json`. Benchmarks that this run has not measured
//! (because of a filter or `--test`) are left out.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A benchmark: criterion's group, function and parameter, none of which may contain a `/`.
#[derive(Clone)]
pub(crate) struct BenchId {
    pub(crate) group: String,
    pub(crate) function: String,
    pub(crate) parameter: String,
    /// Requests in one iteration.
    pub(crate) requests: u64,
}

/// The benchmarks of a run.
pub(crate) struct Summary {
    start: SystemTime,
    /// (benchmark, reference)
    rows: Vec<(BenchId, BenchId)>,
}

impl Summary {
    pub(crate) fn new() -> Self {
        Self { start: SystemTime::now(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, id: BenchId, reference: BenchId) {
        self.rows.push((id, reference));
    }

    /// Prints the rows that this run has measured under a title, such as "one request, against
    /// SHA-256".
    pub(crate) fn print(&self, title: &str) {
        let mut header = Some(format!("{:<68} {:>12} {:>12} {:>8}", title, "median", "a second", "ratio"));
        for (id, reference) in &self.rows {
            let Some(median) = self.median(id) else {
                continue;
            };
            if let Some(header) = header.take() {
                println!("\n{header}");
            }
            let ratio = self.median(reference).map_or("-".into(), |value| format!("{:.2}", median / value));
            let name = format!("{} / {} / {}", id.group, id.function, id.parameter);
            println!("{name:<68} {:>9.1} ns {:>10.3} M {ratio:>8}", median, 1e3 / median);
        }
    }

    /// Nanoseconds per request; `None` if this run has not measured it.
    fn median(&self, id: &BenchId) -> Option<f64> {
        let directory = criterion_directory().join(&id.group).join(&id.function).join(&id.parameter);
        let file = directory.join("new").join("estimates.json");
        if std::fs::metadata(&file).ok()?.modified().ok()? < self.start {
            return None;
        }
        let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        let iteration = estimates.get("median")?.get("point_estimate")?.as_f64()?;
        Some(iteration / id.requests as f64)
    }
}

/// criterion's output directory, by criterion's own rule.
fn criterion_directory() -> PathBuf {
    match std::env::var_os("CRITERION_HOME") {
        Some(home) => home.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("criterion"),
    }
}
