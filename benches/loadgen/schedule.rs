//! When requests are due in an open loop: at a fixed rate, whatever the server does.
//!
//! A closed loop asks the next question when it has an answer; where the server stops for a second, that second holds
//! one slow request, though a thousand were kept from being asked (*coordinated omission*). Here request n is due at
//! n / rate after the start, its latency counts from then on, and one that could not be sent in time has waited.
//!
//! Threads share the rate: thread t of T has the requests t, t + T, t + 2T, …, and deals them out to its connections in
//! turn.

/// The arrivals of one thread.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    /// Nanoseconds between two arrivals of all threads together.
    interval: f64,
    /// Number of the next arrival among those of all threads.
    next: u64,
    /// Arrivals of all threads for each of this one's.
    step: u64,
}

impl Schedule {
    /// Of thread `thread` among `threads`, which ask `rate` requests a second together.
    pub(super) fn new(rate: f64, thread: usize, threads: usize) -> Self {
        Self { interval: 1e9 / rate, next: thread as u64, step: threads as u64 }
    }

    /// When the next is due, in nanoseconds since the start.
    pub(super) fn next_due(&self) -> u64 {
        (self.next as f64 * self.interval) as u64
    }

    /// Takes the next, if it is due before `now`; when it was.
    pub(super) fn arrival(&mut self, now: u64) -> Option<u64> {
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

    fn arrivals(mut schedule: Schedule, until: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.arrival(until)).collect()
    }

    #[test]
    fn threads_together_have_the_rate() {
        let mut all: Vec<u64> =
            (0..3).flat_map(|thread| arrivals(Schedule::new(1_000.0, thread, 3), 10_000_000)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).map(|number| number * 1_000_000).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_missed_is_due_when_it_was_due() {
        let mut schedule = Schedule::new(4.0, 0, 1);
        assert_eq!(schedule.arrival(0), None);
        assert_eq!(schedule.arrival(1), Some(0));
        assert_eq!(schedule.arrival(2), None);
        assert_eq!(schedule.next_due(), 250_000_000);
        // Nothing was sent for a second: the arrivals are where they would have been.
        assert_eq!(arrivals(schedule, 1_000_000_000), [250_000_000, 500_000_000, 750_000_000]);
    }
}
