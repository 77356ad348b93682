//! Where the daemon is, and how long it may take.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::busy::Busy;

/// Where the daemon listens unless it is told otherwise (SPEC.md section 1).
pub const DEFAULT_SOCKET: &str = "/run/keyward/keyward.sock";

/// How long one request may take, connecting included: a thousand times what an answer takes, and still short beside
/// the request that waits for it (SPEC.md section 9).
pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// Requests on one connection without an answer: 200 KB of ordinary requests, about what a socket holds.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 4096;

/// Longer is never: this keeps the arithmetic of points in time from overflowing.
pub(crate) const LONGEST_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// To be woken takes some 50 us: whoever spins 20 times that saves next to nothing, and keeps a processor from others.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(1);

/// More than this in flight only waits in buffers, and each request that waits takes memory.
const MOST_IN_FLIGHT: usize = 1 << 20;

/// What a client is made from: the socket, and limits that have sensible defaults.
#[derive(Clone, Debug)]
pub struct Options {
    socket: PathBuf,
    deadline: Duration,
    max_in_flight: usize,
    busy_poll: Duration,
}

impl Options {
    /// A daemon that listens at `socket`.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_owned(),
            deadline: DEFAULT_DEADLINE,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            busy_poll: Duration::ZERO,
        }
    }

    /// How long a call may take, from its beginning to its answer, (re)connecting included: at most a day, and
    /// [`DEFAULT_DEADLINE`] unless this is called.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(LONGEST_DEADLINE);
        self
    }

    /// How many requests may be without an answer on the connection, from 1 to 1,048,576;
    /// [`DEFAULT_MAX_IN_FLIGHT`] unless this is called. More wait, within their deadlines.
    #[must_use]
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = requests.clamp(1, MOST_IN_FLIGHT);
        self
    }

    /// How long to look for an answer before sleeping on it, at most a millisecond; zero, which is never, unless this is called.
    ///
    /// Together with the daemon's `server.busy_poll` it saves both wake-ups of a request that is asked alone, and costs a
    /// processor while requests follow each other. It pays where the daemon's worker runs on another processor; where
    /// looking proves to be in vain, the client goes back to sleeping by itself.
    #[must_use]
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = time.min(LONGEST_BUSY_POLL);
        self
    }

    pub(crate) fn busy(&self) -> Busy {
        Busy::new(self.busy_poll)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn time(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.max_in_flight
    }
}

/// The daemon at [`DEFAULT_SOCKET`].
impl Default for Options {
    fn default() -> Self {
        Self::new(DEFAULT_SOCKET)
    }
}
