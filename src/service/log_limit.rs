//! Limits repeated log lines: a refused peer can return thousands of times a second.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Minimum interval between two lines.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Lets one line a second pass.
#[derive(Default)]
pub struct LogLimit {
    last_logged: Cell<Option<Instant>>,
}

impl LogLimit {
    /// Whether a line may be logged now. If so, the interval begins again.
    pub fn may_log(&self) -> bool {
        let is_due = self.last_logged.get().is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
        if is_due {
            self.last_logged.set(Some(Instant::now()));
        }
        is_due
    }
}
