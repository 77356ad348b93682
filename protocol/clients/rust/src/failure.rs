//! Internal results of a request that has no answer: whether it can be sent again.
//!
//! [`Failure`] is the result of one attempt, from which the retry loops decide. [`CloseReason`] is
//! why a connection ended, and implies the failure of every request that was waiting on it.

use std::time::Duration;

use crate::Decision;
use crate::error::{DaemonError, Error, ProtocolViolationError};

/// The result of one attempt to get a request answered.
pub(crate) type Outcome = Result<Decision, Failure>;

/// Why an attempt has no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The caller gets this error.
    Final(Error),
    /// The daemon has not processed the request and never will, so it can be sent again. The caller
    /// gets the error if there is no time or no attempt left.
    Retryable(Error),
    /// The deadline has passed. The client knows how long it was.
    DeadlinePassed {
        /// Whether any part of the request had been written.
        written: bool,
    },
}

/// The connection ended before the request was written.
pub(crate) const CONNECTION_ENDED: Failure = Failure::Retryable(Error::ConnectionLost { written: false });

impl Failure {
    /// The error for a caller whose deadline was `deadline`.
    pub(crate) fn into_error(self, deadline: Duration) -> Error {
        match self {
            Self::Final(error) | Self::Retryable(error) => error,
            Self::DeadlinePassed { written } => Error::Deadline { deadline, written },
        }
    }
}

/// Why a connection ended.
pub(crate) enum CloseReason {
    /// The stream ended without an ERROR.
    Lost,
    /// The daemon sent a closing ERROR; requests without an answer have not been processed.
    ClosedByDaemon(DaemonError),
    /// The peer violated the protocol.
    Violation(ProtocolViolationError),
    /// The client does not need the connection any more.
    Retired,
}

impl CloseReason {
    /// The failure of a request that has no answer; `written` tells whether any part of it had been
    /// written.
    pub(crate) fn failure(&self, written: bool) -> Failure {
        match self {
            Self::ClosedByDaemon(error) => Failure::Retryable(Error::Daemon(error.clone())),
            _ if !written => CONNECTION_ENDED,
            Self::Violation(error) => Failure::Final(Error::Protocol(error.clone())),
            Self::Lost | Self::Retired => Failure::Final(Error::ConnectionLost { written }),
        }
    }
}

impl From<ProtocolViolationError> for CloseReason {
    fn from(error: ProtocolViolationError) -> Self {
        Self::Violation(error)
    }
}
