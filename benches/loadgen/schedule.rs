//! When the requests of an open loop are due: at a fixed rate, whatever the server does.
//!
//! A closed loop issues a request when it has the answer to the one before. If the server pauses
//! for a second, only one request is slow, although a thousand would have been issued (*coordinated
//! omission*). In an open loop, request n is due n / rate after the start and its latency counts
//! from then, even if it could not be sent in time.
//!
//! Threads share the rate: thread t of T takes requests t, t + T, t + 2T, …, and distributes them
//! to its connections in turn.

/// The requests of one thread.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    /// Nanoseconds between two requests, counting all threads.
    interval: f64,
    /// Number of the next request, counting all threads.
    next: u64,
    /// Distance between the numbers of two requests of this thread.
    step: u64,
}

impl Schedule {
    /// The schedule of thread number `thread`. All `threads` together issue `rate` requests a
    /// second.
    pub(crate) fn new(rate: f64, thread: usize, threads: usize) -> Self {
        Self { interval: 1e9 / rate, next: thread as u64, step: threads as u64 }
    }

    /// When the next request is due, in nanoseconds since the start.
    pub(crate) fn next_due(&self) -> u64 {
        (self.next as f64 * self.interval) as u64
    }

    /// Takes the next request if it was due before `now`, and returns when it was due.
    pub(crate) fn take_due(&mut self, now: u64) -> Option<u64> {
        let due = self.next_due();
        (due < now).then(|| {
            self.next += self.step;
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_before(mut schedule: Schedule, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take_due(now)).collect()
    }

    #[test]
    fn threads_share_the_rate() {
        let mut all: Vec<u64> =
            (0..3).flat_map(|thread| due_before(Schedule::new(1_000.0, thread, 3), 10_000_000)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).map(|number| number * 1_000_000).collect::<Vec<_>>());
    }

    #[test]
    fn delay_does_not_move_due_times() {
        let mut schedule = Schedule::new(4.0, 0, 1);
        assert_eq!(schedule.take_due(0), None);
        assert_eq!(schedule.take_due(1), Some(0));
        assert_eq!(schedule.take_due(2), None);
        assert_eq!(schedule.next_due(), 250_000_000);
        // No request was taken for a second.
        assert_eq!(due_before(schedule, 1_000_000_000), [250_000_000, 500_000_000, 750_000_000]);
    }
}
