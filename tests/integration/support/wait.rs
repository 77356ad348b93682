//! Waiting for a condition, with one time limit for all tests.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Interval between two evaluations of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Polls `ready` until it returns a value. Panics after [`TIMEOUT`].
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Polls `condition` until it holds. Panics after [`TIMEOUT`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}
