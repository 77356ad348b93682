//! Busy polling: receiving without blocking for a while before blocking.
//!
//! If the daemon has a processor of its own, sleeping and being woken takes several times as long
//! as the answer. Spinning backs off if it does not pay: after a spin that found nothing, or found
//! an answer too late because another thread had the processor, the client blocks for the next
//! answers, twice as many each time. Each answer found in time reduces that number by an eighth.
//! The client therefore continues to spin if about five of six spins succeed, and spins rarely if
//! it shares a processor with the daemon.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Calls of `recv` between two readings of the clock; together they take about three microseconds.
const CALLS_PER_ROUND: u32 = 16;

/// Largest number of answers that are received without spinning before the next spin.
const MAX_SKIP: u32 = 1023;

/// One answer in the unit of [`BusyPoll::penalty`], which has to resolve eighths.
const PENALTY_UNIT: u32 = 64;

/// Decides whether to spin for the next answer, and for how long.
pub(crate) struct BusyPoll {
    limit: Duration,
    /// When the spin for the next answer began.
    spin_start: Option<Instant>,
    /// Whether the next answer is received without spinning.
    blocking: bool,
    /// How many more answers are received without spinning.
    skip: u32,
    /// The last value of `skip`, in units of 1/[`PENALTY_UNIT`], reduced by the successes since.
    penalty: u32,
}

impl BusyPoll {
    /// Spins for up to `limit`; zero disables busy polling.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, spin_start: None, blocking: false, skip: 0, penalty: 0 }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Receives without blocking, in a few attempts. Returns `WouldBlock` if there was nothing, and
    /// `None` if it is time to block.
    pub(crate) fn try_recv(&mut self, socket: impl AsFd, space: &mut [u8]) -> Option<io::Result<usize>> {
        if !self.should_spin() {
            return None;
        }
        for _ in 0..CALLS_PER_ROUND {
            match recv(&socket, &mut *space, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                read => return Some(read.map(|(_, count)| count).map_err(Into::into)),
            }
        }
        Some(Err(io::ErrorKind::WouldBlock.into()))
    }

    /// Records that an answer has been received.
    pub(crate) fn record_answer(&mut self) {
        self.blocking = false;
        match self.spin_start.take() {
            Some(start) if start.elapsed() > self.limit => self.record_miss(),
            Some(_) => self.penalty -= self.penalty / 8,
            None => {}
        }
    }

    fn should_spin(&mut self) -> bool {
        if self.blocking || !self.is_enabled() {
            return false;
        }
        match self.spin_start {
            Some(start) if start.elapsed() > self.limit => {
                self.record_miss();
                self.spin_start = None;
                self.blocking = true;
            }
            Some(_) => {}
            None if self.skip > 0 => {
                self.skip -= 1;
                self.blocking = true;
            }
            None => self.spin_start = Some(Instant::now()),
        }
        !self.blocking
    }

    fn record_miss(&mut self) {
        self.penalty = (2 * self.penalty + PENALTY_UNIT).min(MAX_SKIP * PENALTY_UNIT);
        self.skip = self.penalty / PENALTY_UNIT;
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Receives answers until the next spin, and returns how many were received without spinning.
    fn answers_until_spin(busy_poll: &mut BusyPoll, socket: &UnixStream) -> u32 {
        for answers in 0..=MAX_SKIP {
            if busy_poll.try_recv(socket, &mut [0; 8]).is_some() {
                return answers;
            }
            busy_poll.record_answer();
        }
        panic!("no spin after {MAX_SKIP} answers");
    }

    #[test]
    fn spin_receives_available_data() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let mut busy_poll = BusyPoll::new(Duration::from_secs(60));
        let nothing = busy_poll.try_recv(&socket, &mut [0; 8]).unwrap().unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        peer.write_all(b"abc").unwrap();
        assert_eq!(busy_poll.try_recv(&socket, &mut [0; 8]).unwrap().unwrap(), 3);
        assert!(BusyPoll::new(Duration::ZERO).try_recv(&socket, &mut [0; 8]).is_none());
    }

    #[test]
    fn skip_doubles_after_each_miss() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut busy_poll = BusyPoll::new(Duration::from_nanos(1));
        let mut skipped = Vec::new();
        for _ in 0..5 {
            skipped.push(answers_until_spin(&mut busy_poll, &socket));
            let ends = (0..100).any(|_| busy_poll.try_recv(&socket, &mut [0; 8]).is_none());
            assert!(ends, "the spin does not end");
            busy_poll.record_answer();
        }
        assert_eq!(skipped, [0, 1, 3, 7, 15]);
    }

    #[test]
    fn skip_is_bounded_and_shrinks_with_successes() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let mut busy_poll = BusyPoll::new(Duration::from_secs(60));
        (0..100).for_each(|_| busy_poll.record_miss());
        assert_eq!(answers_until_spin(&mut busy_poll, &socket), MAX_SKIP);
        busy_poll.record_answer();
        for _ in 0..100 {
            peer.write_all(b"abc").unwrap();
            assert_eq!(busy_poll.try_recv(&socket, &mut [0; 8]).unwrap().unwrap(), 3);
            busy_poll.record_answer();
        }
        busy_poll.record_miss();
        assert_eq!(answers_until_spin(&mut busy_poll, &socket), 1);
    }

    #[test]
    fn late_answer_counts_as_a_miss() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        peer.write_all(b"abc").unwrap();
        let mut busy_poll = BusyPoll::new(Duration::from_nanos(1));
        assert_eq!(busy_poll.try_recv(&socket, &mut [0; 8]).unwrap().unwrap(), 3);
        busy_poll.record_answer();
        assert_eq!(answers_until_spin(&mut busy_poll, &socket), 1);
    }
}
