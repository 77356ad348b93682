//! Waiting for a condition, with one time limit for all tests.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

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

/// Removes a directory in which the daemon may still create files.
#[track_caller]
pub(crate) fn remove_dir_in_use(path: &Path) {
    wait_until("the directory to be empty and removed", || {
        let removed = fs::remove_dir_all(path);
        let is_refilled = |error: &io::Error| error.kind() == io::ErrorKind::DirectoryNotEmpty;
        assert!(removed.as_ref().map_or_else(is_refilled, |()| true), "{removed:?}");
        removed.is_ok()
    });
}
