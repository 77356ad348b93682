//! Waiting for the daemon, with one time limit.

use std::thread;
use std::time::{Duration, Instant};

/// How long the daemon may take for anything. It is longer than any wait of the daemon.
pub const HANG: Duration = Duration::from_secs(20);

/// Interval between two evaluations of a condition.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Waits until the condition holds. Returns false if it does not within [`HANG`].
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + HANG;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
    true
}
