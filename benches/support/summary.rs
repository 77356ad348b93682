//! The table at the end of a run: medians per request, and their ratios to a baseline of the same run.
//!
//! Medians are read from the `estimates.json` that criterion leaves; what this run has not measured (a filter,
//! `--test`) is left out.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One benchmark: criterion's group, function and parameter, none of which may hold a `/`.
#[derive(Clone)]
pub(crate) struct Id {
    pub(crate) group: String,
    pub(crate) function: String,
    pub(crate) parameter: String,
    /// Requests in one iteration.
    pub(crate) requests: u64,
}

/// What a run has measured.
pub(crate) struct Summary {
    start: SystemTime,
    /// A benchmark, and what it is compared with.
    rows: Vec<(Id, Id)>,
}

impl Summary {
    pub(crate) fn new() -> Self {
        Self { start: SystemTime::now(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, id: Id, baseline: Id) {
        self.rows.push((id, baseline));
    }

    /// Prints the rows that this run has measured; `unit` says what one request and the baseline are.
    pub(crate) fn print(&self, unit: &str) {
        let mut header = Some(format!("{:<68} {:>12} {:>12} {:>8}", unit, "median", "a second", "ratio"));
        for (id, baseline) in &self.rows {
            let Some(median) = self.median(id) else {
                continue;
            };
            if let Some(header) = header.take() {
                println!("\n{header}");
            }
            let ratio = self.median(baseline).map_or("-".into(), |base| format!("{:.2}", median / base));
            let name = format!("{} / {} / {}", id.group, id.function, id.parameter);
            println!("{name:<68} {:>9.1} ns {:>10.3} M {ratio:>8}", median, 1e3 / median);
        }
    }

    /// Nanoseconds per request.
    fn median(&self, id: &Id) -> Option<f64> {
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

/// Where criterion writes to: its own rule.
fn criterion_directory() -> PathBuf {
    match std::env::var_os("CRITERION_HOME") {
        Some(home) => home.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("criterion"),
    }
}
