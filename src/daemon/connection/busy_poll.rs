//! Busy polling: reading from a socket in a loop for a while before sleeping on it.
//!
//! Where a client and its worker each have a processor, sleeping and waking costs several times as
//! much as an answer. After an answer, a connection may therefore spin for up to
//! `server.busy_poll`: it calls a non-blocking `recv` itself, because tokio has cleared the
//! socket's readiness and would not ask the kernel.
//!
//! Spinning does not starve other connections. Every few reads the task yields to the worker's
//! other tasks, and the worker polls epoll. Spinning stops where it does not pay ([`SpinBackoff`]):
//! a connection sleeps as if there were no busy polling when it is idle, when its requests come
//! later than the spin is long, or when its client needs the same processor. A spin without this
//! back-off is slower there than no spin (`benches/profile.md`).
//!
//! The thread itself does not yield (`sched_yield`). If the client shares its processor, yielding
//! would find most requests; but any other process on that processor, even one of the lowest
//! priority, would then run for milliseconds before the worker reads again.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::yield_now;

use super::Connection;

/// Connections of a worker that may spin at the same time. Each spinning connection delays the
/// others; connections beyond the limit fall back to epoll, which spinning connections keep
/// polling.
pub(super) const MAX_SPINNING: usize = 4;

/// Reads between two yields to the worker's other tasks: some three microseconds, less than the
/// latency of an answer.
const READS_PER_YIELD: u32 = 16;

/// Maximum number of answers after which a connection does not spin, before it tries again. At 50
/// us a spin, a connection that is always too slow costs the worker less than a thousandth of its
/// time, regardless of its request rate.
const MAX_SKIP: u32 = 1023;

/// One skipped answer in [`SpinBackoff::penalty`], as a fixed-point number with room for eighths.
const PENALTY_UNIT: u32 = 64;

/// How many connections of a worker spin.
#[derive(Default)]
pub(super) struct SpinPermits {
    in_use: Cell<usize>,
}

/// The permission to spin; dropping it returns the permit.
struct SpinPermit<'a>(&'a SpinPermits);

impl SpinPermits {
    fn acquire(&self) -> Option<SpinPermit<'_>> {
        let in_use = self.in_use.get();
        (in_use < MAX_SPINNING).then(|| {
            self.in_use.set(in_use + 1);
            SpinPermit(self)
        })
    }

    /// The number of spinning connections.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.get()
    }
}

impl Drop for SpinPermit<'_> {
    fn drop(&mut self) {
        self.0.in_use.set(self.0.in_use.get().saturating_sub(1));
    }
}

/// Decides after each answer whether a connection spins, from how its previous spins ended.
///
/// A spin that times out, or finds its request late because another thread had the processor,
/// doubles the penalty: the number of answers after which the connection does not spin. A spin that
/// finds its request in time lowers the penalty by an eighth. Spinning therefore continues where
/// five of six spins succeed: a failed spin costs more than a successful one saves.
#[derive(Default)]
pub(super) struct SpinBackoff {
    /// Set by an answer, cleared when the connection first waits after it, so that each answer is
    /// spun for or skipped once.
    has_answered: bool,
    /// Answers still to be skipped.
    skip: u32,
    /// The most recent value of `skip` at its start, in [`PENALTY_UNIT`]s, less the reductions
    /// since.
    penalty: u32,
    /// Whether the connection has spun for the next request.
    has_spun: bool,
    /// Reads since the last yield.
    reads: u32,
}

impl SpinBackoff {
    /// Begins a spin for the next request, if the connection should spin, and returns the permit.
    /// Otherwise, the answer counts as skipped if a permit was available.
    fn begin_spin<'a>(&mut self, permits: &'a SpinPermits) -> Option<SpinPermit<'a>> {
        if !std::mem::take(&mut self.has_answered) {
            return None;
        }
        let permit = permits.acquire()?;
        self.has_spun = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        self.has_spun.then_some(permit)
    }

    /// Records the arrival of a request, and whether a spin would have found it.
    pub(super) fn record(&mut self, in_time: bool) {
        self.has_answered = true;
        if !std::mem::take(&mut self.has_spun) {
            // A request found after sleeping says nothing about spinning. A client on the same
            // processor may be quick only because the worker sleeps.
        } else if in_time {
            self.penalty -= self.penalty / 8;
        } else {
            self.penalty = (2 * self.penalty + PENALTY_UNIT).min(MAX_SKIP * PENALTY_UNIT);
            self.skip = self.penalty / PENALTY_UNIT;
        }
    }
}

impl Connection {
    /// Spins for the next request if that may pay; returns the number of bytes read. `None`: the
    /// connection should sleep.
    pub(super) async fn spin(&mut self) -> io::Result<Option<usize>> {
        let context = Rc::clone(&self.context);
        let limit = context.timeouts.busy_poll;
        if limit == Duration::ZERO {
            return Ok(None);
        }
        let Some(_permit) = self.spin_backoff.begin_spin(&context.spin_permits) else {
            return Ok(None);
        };
        loop {
            let reads_per_yield = if context.spin_permits.in_use() > 1 { 1 } else { READS_PER_YIELD };
            if self.spin_backoff.reads >= reads_per_yield {
                self.spin_backoff.reads = 0;
                yield_now().await;
                context.turns.record_poll();
                if self.silence.last_read().elapsed() > limit || context.timers.is_draining() {
                    return Ok(None);
                }
            }
            if !context.turns.is_uncontended() {
                return Ok(None);
            }
            self.spin_backoff.reads += 1;
            if let Some(bytes) = self.try_read(self.turn.read_limit())? {
                return Ok(Some(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `answers` to a peer whose requests come `in_time` were followed by a spin.
    fn spins(backoff: &mut SpinBackoff, answers: u32, in_time: bool) -> u32 {
        let mut spins = 0;
        for _ in 0..answers {
            spins += u32::from(backoff.begin_spin(&SpinPermits::default()).is_some());
            backoff.record(in_time);
        }
        spins
    }

    #[test]
    fn late_requests_make_spins_ever_rarer() {
        let mut backoff = SpinBackoff::default();
        assert_eq!(spins(&mut backoff, 1, false), 0, "a new connection has no answer yet");
        assert_eq!(spins(&mut backoff, 1 + 1 + 3 + 7 + 5, false), 4);
        spins(&mut backoff, 100_000, false);
        assert!((8..=10).contains(&spins(&mut backoff, 10_000, false)), "spinning never stops entirely");
    }

    #[test]
    fn requests_in_time_end_the_backoff() {
        let mut backoff = SpinBackoff::default();
        spins(&mut backoff, 100_000, false);
        assert!(spins(&mut backoff, 2_000, true) > 900, "after the skipped answers");
        assert_eq!(spins(&mut backoff, 3, false), 2, "one late request costs one skipped answer");
    }

    #[test]
    fn three_of_four_requests_in_time_do_not_keep_it_spinning() {
        let mut backoff = SpinBackoff::default();
        let mut total = 0;
        for _ in 0..1_000 {
            total += spins(&mut backoff, 3, true) + spins(&mut backoff, 1, false);
        }
        assert!(total < 400, "{total} of 4,000");
    }

    #[test]
    fn requests_after_a_sleep_do_not_change_the_backoff() {
        let mut backoff = SpinBackoff { has_answered: true, skip: 5, ..SpinBackoff::default() };
        assert_eq!(spins(&mut backoff, 5, true), 0);
        assert_eq!(spins(&mut backoff, 5, true), 5);
    }

    /// A timer ends a wait, and another wait begins.
    #[test]
    fn timers_are_neither_answers_nor_requests() {
        let permits = SpinPermits::default();
        let never_spins =
            |backoff: &mut SpinBackoff| (0..100).all(|_| backoff.begin_spin(&permits).is_none());
        let mut backoff = SpinBackoff::default();
        assert!(never_spins(&mut backoff), "a new connection has no answer yet");
        backoff.record(true);
        assert_eq!(spins(&mut backoff, 1, false), 1);
        assert_eq!(backoff.skip, 1);
        assert!(backoff.begin_spin(&permits).is_none() && never_spins(&mut backoff));
        assert_eq!(backoff.skip, 0, "one answer was skipped");
        backoff.record(false);
        assert_eq!(backoff.skip, 0, "the connection did not spin for that request");
        assert!(backoff.begin_spin(&permits).is_some() && never_spins(&mut backoff));
        backoff.record(false);
        assert_eq!(backoff.skip, 3, "the connection spun for that request, before the timers");
    }

    #[test]
    fn missing_permit_skips_no_answer() {
        let permits = SpinPermits::default();
        let acquired: Vec<_> = (0..MAX_SPINNING).filter_map(|_| permits.acquire()).collect();
        let mut backoff = SpinBackoff { has_answered: true, skip: 1, ..SpinBackoff::default() };
        assert!(backoff.begin_spin(&permits).is_none());
        backoff.record(false);
        assert_eq!(backoff.skip, 1);
        drop(acquired);
        assert_eq!(spins(&mut backoff, 2, true), 1);
    }

    #[test]
    fn permits_are_limited_and_returned() {
        let permits = SpinPermits::default();
        let mut acquired: Vec<_> = (0..MAX_SPINNING).filter_map(|_| permits.acquire()).collect();
        assert!(acquired.len() == MAX_SPINNING && permits.in_use() == MAX_SPINNING);
        assert!(permits.acquire().is_none());
        acquired.truncate(1);
        assert!(permits.in_use() == 1 && permits.acquire().is_some());
    }
}
