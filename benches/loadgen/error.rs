//! The errors that end a load. A load that fails reports no figures.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keyward_protocol::FieldTooLongError;

use crate::encoded_requests::NoRequestsError;

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// No server accepts connections at the socket.
    #[error("cannot connect to {target} at {}: {source}", .path.display())]
    Connect {
        /// Name of the target.
        target: &'static str,
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The server refused the connection or the requests.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// A key is too long for a request.
    #[error("--keys: {0}")]
    KeyTooLong(#[source] FieldTooLongError),
    /// There are no requests to send.
    #[error(transparent)]
    NoRequests(#[from] NoRequestsError),
    /// A thread cannot be pinned.
    #[error("--pin: processor {processor} does not exist, or this process may not use it: {source}")]
    Pin {
        /// Number of the processor.
        processor: usize,
        /// The cause.
        source: io::Error,
    },
    /// The server sent bytes that are not an answer, or not the next one.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The server closed a connection before it had answered all requests.
    #[error("the server ended a connection with {unanswered} requests unanswered")]
    Closed {
        /// Requests without an answer on that connection.
        unanswered: usize,
    },
    /// The server did not answer any request for this long.
    #[error("the server has not answered for {} s", .0.as_secs())]
    Stalled(Duration),
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted, in the infinitive.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl LoadError {
    /// Makes a function for `map_err` that adds what was attempted.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { action, source: error.into() }
    }
}
