//! Options of a client: the socket of the daemon, and limits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keyward_protocol::DEFAULT_SOCKET;

/// How long a call may take by default, connecting included. An answer takes a thousandth of this;
/// the request of the application that waits for it usually takes longer (SPEC.md section 9).
pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// How many requests of one connection may be without an answer by default: 200 KB of requests with
/// digests, about what a socket holds.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 4096;

/// Longest deadline, so that the arithmetic of instants cannot overflow.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest busy polling. Being woken takes about 50 us: a longer spin saves next to nothing, and
/// keeps the processor from other threads.
const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

/// Most requests in flight. More would only wait in buffers, and each needs memory.
const MAX_IN_FLIGHT: usize = 1 << 20;

/// The socket of the daemon, and limits that have sensible defaults.
///
/// ```
/// use std::time::Duration;
///
/// use keyward_client::{Client, Options};
///
/// let options = Options::new("/run/keyward/keyward.sock").deadline(Duration::from_millis(20));
/// let client = Client::with_options(options); // Connects on first use.
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) socket: PathBuf,
    pub(crate) deadline: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) busy_poll: Duration,
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

    /// Sets how long a call may take from its beginning to its answer, connecting included: at most
    /// a day. The default is [`DEFAULT_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// Sets how many requests of the connection may be without an answer, from 1 to 1,048,576. The
    /// default is [`DEFAULT_MAX_IN_FLIGHT`]. Further requests wait within their deadlines.
    #[must_use]
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = requests.clamp(1, MAX_IN_FLIGHT);
        self
    }

    /// Sets how long to poll for an answer before sleeping, at most a millisecond. The default is
    /// zero: no busy polling.
    ///
    /// Together with the daemon's `server.busy_poll`, this avoids both wake-ups of a single
    /// request, and uses a whole processor while requests follow each other. It pays if the
    /// daemon's worker runs on another processor; if polling does not find answers in time, the
    /// client sleeps again.
    #[must_use]
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = time.min(MAX_BUSY_POLL);
        self
    }
}

/// The daemon at [`DEFAULT_SOCKET`].
impl Default for Options {
    fn default() -> Self {
        Self::new(DEFAULT_SOCKET)
    }
}
