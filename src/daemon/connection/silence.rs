//! How long a connection has waited for its peer, and when that is too long (SPEC.md section 1).
//!
//! Two periods end a connection, each after the idle timeout: the peer is silent, or the frame that
//! it has begun stays incomplete. Bytes that complete no frame extend neither. A third one, in which
//! the peer does not read its answers, is measured where answers are sent. Time is an argument, and
//! is not read for this purpose while a peer keeps up.

use std::time::Duration;

use tokio::time::Instant;

use super::timers::NEVER;

/// How long after a read a connection reads again without having been woken. A read that stops at a
/// passed descriptor (SCM_RIGHTS) leaves bytes behind, for which epoll reports nothing.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// The silence of one connection.
pub(super) struct Silence {
    /// The idle timeout. `None`: unlimited.
    idle: Option<Duration>,
    last_read: Instant,
    /// When the last complete frame was received, or the kernel took the last byte of an answer:
    /// the later of the two.
    since: Instant,
    /// When the first byte of the incomplete frame was received, if there is one.
    frame_begun: Option<Instant>,
    /// Whether a probe since the last read has found the socket empty.
    is_probed: bool,
}

impl Silence {
    /// A connection that was accepted at `now`.
    pub(super) fn new(idle: Option<Duration>, now: Instant) -> Self {
        Self { idle, last_read: now, since: now, frame_begun: None, is_probed: true }
    }

    /// When the connection last read something.
    pub(super) fn last_read(&self) -> Instant {
        self.last_read
    }

    /// Records that something was read.
    pub(super) fn read(&mut self, now: Instant) {
        self.last_read = now;
        self.is_probed = false;
    }

    /// Records what the last read has led to: whether it has completed a frame, and whether an
    /// incomplete one follows.
    pub(super) fn received(&mut self, has_completed: bool, is_incomplete: bool) {
        if has_completed {
            // Later if the answers had to wait for the peer.
            self.since = self.since.max(self.last_read);
        }
        self.frame_begun = match self.frame_begun {
            _ if !is_incomplete => None,
            // While answers wait for the peer, nothing is read.
            _ if has_completed => Some(self.since),
            None => Some(self.last_read),
            begun => begun,
        };
    }

    /// Records that the kernel has taken the last byte of answers that had to wait for the peer.
    pub(super) fn delivered(&mut self, now: Instant) {
        self.since = now;
    }

    /// Records that the socket is empty.
    pub(super) fn probed(&mut self) {
        self.is_probed = true;
    }

    /// Whether the last read has come too late for the frame that is still incomplete.
    pub(super) fn is_frame_late(&self) -> bool {
        self.frame_begun.is_some() && self.is_over(self.last_read)
    }

    /// Whether the connection is to be closed, unless there is input that was not read yet.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.idle.is_some() && now >= self.end()
    }

    /// When the connection next has to be probed or closed.
    pub(super) fn next_deadline(&self) -> Instant {
        if self.is_probed {
            return self.end();
        }
        let probe = self.last_read + PROBE_AFTER;
        // Each byte of an incomplete frame postpones the probe.
        if self.frame_begun.is_some() { probe.min(self.end()) } else { probe }
    }

    fn end(&self) -> Instant {
        self.frame_begun.unwrap_or(self.since) + self.idle.unwrap_or(NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    /// A connection of a simulated clock.
    struct Simulation {
        start: Instant,
        silence: Silence,
    }

    impl Simulation {
        fn new() -> Self {
            let start = Instant::now();
            Self { start, silence: Silence::new(Some(IDLE), start) }
        }

        fn at(&self, seconds: u32) -> Instant {
            self.start + seconds * SECOND
        }

        fn receive(&mut self, second: u32, has_completed: bool, is_incomplete: bool) {
            self.silence.read(self.at(second));
            self.silence.received(has_completed, is_incomplete);
        }

        /// The second at which the connection is closed if nothing more is received.
        fn closes_at(&mut self) -> u32 {
            let mut deadline = self.silence.next_deadline();
            for _ in 0..3 {
                if self.silence.is_over(deadline) {
                    let whole = (0..).find(|second| self.at(*second) >= deadline).expect("a second");
                    assert_eq!(self.at(whole), deadline);
                    assert!(!self.silence.is_over(deadline - Duration::from_nanos(1)));
                    return whole;
                }
                self.silence.probed();
                deadline = self.silence.next_deadline();
            }
            panic!("never closed");
        }
    }

    #[test]
    fn silence_counts_from_the_last_complete_frame() {
        let mut connection = Simulation::new();
        assert_eq!(connection.closes_at(), 10, "nothing was received");
        connection.receive(3, true, false);
        assert_eq!(connection.closes_at(), 13);
        connection.receive(9, true, false);
        connection.receive(12, true, false);
        assert_eq!(connection.closes_at(), 22);
    }

    #[test]
    fn silence_counts_from_the_end_of_answers_that_waited_for_the_peer() {
        let mut connection = Simulation::new();
        connection.silence.read(connection.at(3));
        connection.silence.delivered(connection.at(40));
        connection.silence.received(true, false);
        assert!(!connection.silence.is_over(connection.at(49)));
        assert_eq!(connection.closes_at(), 50);
    }

    #[test]
    fn incomplete_frame_has_the_timeout_from_its_first_byte() {
        let mut connection = Simulation::new();
        // Begun late in the silence, and continued with a byte a second.
        for second in 9..19 {
            assert!(!connection.silence.is_frame_late(), "second {second}");
            connection.receive(second, false, true);
            assert_eq!(connection.silence.next_deadline(), connection.at((second + 1).min(19)));
        }
        assert_eq!(connection.closes_at(), 19);
        connection.receive(19, false, true);
        assert!(connection.silence.is_frame_late());
    }

    #[test]
    fn completed_frame_begins_a_new_silence() {
        let mut connection = Simulation::new();
        connection.receive(9, false, true);
        connection.receive(18, true, false);
        assert!(!connection.silence.is_frame_late());
        assert_eq!(connection.closes_at(), 28);
    }

    #[test]
    fn frame_that_follows_complete_ones_begins_with_them() {
        let mut connection = Simulation::new();
        connection.receive(4, false, true);
        connection.receive(9, true, true);
        assert_eq!(connection.closes_at(), 19);
        connection.receive(18, false, true);
        assert_eq!(connection.closes_at(), 19);
    }

    /// The rest of the frame may have waited in the socket, unread, for the same time.
    #[test]
    fn frame_that_follows_answers_begins_when_they_are_delivered() {
        let mut connection = Simulation::new();
        connection.silence.read(connection.at(3));
        connection.silence.delivered(connection.at(40));
        connection.silence.received(true, true);
        assert_eq!(connection.closes_at(), 50);
    }

    #[test]
    fn connection_without_a_timeout_is_probed_and_never_closed() {
        let start = Instant::now();
        let mut silence = Silence::new(None, start);
        silence.read(start);
        silence.received(false, true);
        assert_eq!(silence.next_deadline(), start + PROBE_AFTER);
        silence.probed();
        assert!(!silence.is_over(start + 2 * NEVER));
    }
}
