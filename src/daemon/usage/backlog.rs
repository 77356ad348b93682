//! How old the oldest usage is that is not in a written line.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The usage that is not written. Clones share it. Without a file, nothing is ever added.
#[derive(Clone, Default)]
pub(super) struct Backlog {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// When the oldest event arrived that the next interval's lines will have.
    pending: Option<Instant>,
    /// When the oldest event arrived of the lines that are being written.
    writing: Option<Instant>,
    /// Lines that were lost.
    lost: u64,
}

impl Backlog {
    /// Events have arrived.
    pub(super) fn add(&self, now: Instant) {
        self.state().pending.get_or_insert(now);
    }

    /// The lines of everything that has arrived are being written.
    pub(super) fn begin_write(&self) {
        let mut state = self.state();
        let pending = state.pending.take();
        state.writing = state.writing.or(pending);
    }

    /// The last of these lines is written.
    pub(super) fn end_write(&self) {
        self.state().writing = None;
    }

    /// Lines could not be written, and are not tried again.
    pub(super) fn lose(&self, lines: u64) {
        self.state().lost += lines;
    }

    /// The age of the oldest event that is not written; zero if there is none.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let state = self.state();
        let oldest = state.writing.or(state.pending);
        oldest.map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest))
    }

    /// The number of lines that were lost.
    pub(super) fn lost(&self) -> u64 {
        self.state().lost
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_event_counts_until_its_line_is_written() {
        let backlog = Backlog::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let age = |seconds| backlog.clone().age(at(seconds)).as_secs();
        assert_eq!(age(5), 0);
        backlog.add(at(10));
        backlog.add(at(12));
        assert_eq!(age(15), 5);
        backlog.begin_write();
        backlog.add(at(16));
        assert_eq!(age(17), 7, "it is not written yet");
        backlog.end_write();
        assert_eq!(age(18), 2, "an event that arrived meanwhile");
        backlog.begin_write();
        backlog.end_write();
        assert_eq!(age(20), 0);
        backlog.begin_write();
        assert_eq!(age(20), 0, "nothing is written");
    }
}
