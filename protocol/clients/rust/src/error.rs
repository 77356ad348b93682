//! Errors of the client: why a request has no answer. A denial is an answer, not an error.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward_protocol::{ErrorCode, ErrorFrame, FieldTooLongError, InvalidCostError, ProtocolError};

/// Why there is no answer. keyward recommends to deny the request in this case.
///
/// [`may_have_been_charged`](Self::may_have_been_charged) tells whether the key may have been
/// charged. The client has already repeated whatever is safe to repeat.
///
/// The message includes the cause. Print it alone, not followed by the chain of its sources.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client could not connect to the daemon; nothing was sent.
    #[error(
        "cannot connect to keyward at {}: {source}; is the daemon running, and may this user open its socket?",
        path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The deadline passed before there was an answer.
    #[error("no answer from keyward within {deadline:?}; the request was {}", describe_delivery(*written))]
    Deadline {
        /// The time that the whole call was allowed to take.
        deadline: Duration,
        /// Whether any part of the request had been written.
        written: bool,
    },
    /// The connection ended before the answer.
    #[error("the connection to keyward ended before its answer; the request was {}", describe_delivery(*written))]
    ConnectionLost {
        /// Whether any part of the request had been written.
        written: bool,
    },
    /// The peer violates the protocol; the connection has been closed.
    #[error(
        "the peer does not follow keyward's protocol: {0}; is the socket keyward's, and of this version?"
    )]
    Protocol(#[source] ProtocolViolationError),
    /// The daemon refused to answer.
    #[error("keyward refused the request: {0}")]
    Daemon(#[source] DaemonError),
    /// A field is longer than the protocol allows; nothing was sent.
    #[error("{0}; shorten it{hint}", hint = too_long_hint(.0))]
    FieldTooLong(#[from] FieldTooLongError),
    /// The request as a whole is longer than the daemon accepts; nothing was sent.
    #[error("the whole request is {length} bytes long; the daemon allows {max}; shorten it")]
    RequestTooLong {
        /// Length of the request in bytes.
        length: usize,
        /// The daemon's limit in bytes.
        max: usize,
    },
    /// The name of a required scope is empty or contains a space, or `any_scope` got no name;
    /// nothing was sent.
    #[error("{name:?} is not the name of a scope: give at least one name, none empty, none with a space")]
    InvalidScope {
        /// The name; empty if there is none.
        name: String,
    },
    /// A limit cannot have a cost of its own; nothing was sent.
    #[error("{limit:?} cannot have a cost of its own: {source}")]
    InvalidCost {
        /// The name of the limit.
        limit: String,
        /// Why not.
        source: InvalidCostError,
    },
    /// A refund or debit of 0; nothing was sent.
    #[error("a refund or debit is at least 1; a request of cost 0, a peek, has charged nothing")]
    ZeroAdjustment,
    /// The async client was used outside of a tokio runtime; nothing was sent.
    #[error(
        "keyward's async client needs a tokio runtime with I/O and time enabled; elsewhere use the blocking client"
    )]
    NoRuntime,
}

fn describe_delivery(written: bool) -> &'static str {
    if written {
        "sent, and may have been charged (or given back, if it is a refund)"
    } else {
        "not sent and changes nothing: it can be repeated"
    }
}

fn too_long_hint(error: &FieldTooLongError) -> &'static str {
    if error.field == "key" { ", or use a daemon that accepts digests: they have no limit" } else { "" }
}

impl Error {
    /// Whether the key may have been charged although there is no answer, or refunded if the request
    /// was a [`Refund`](crate::Refund). If this is `false`, repeating the request cannot do
    /// so twice.
    pub fn may_have_been_charged(&self) -> bool {
        match self {
            Self::Deadline { written, .. } | Self::ConnectionLost { written } => *written,
            Self::Protocol(_) => true,
            Self::Connect { .. }
            | Self::Daemon(_)
            | Self::FieldTooLong(_)
            | Self::RequestTooLong { .. }
            | Self::InvalidScope { .. }
            | Self::InvalidCost { .. }
            | Self::ZeroAdjustment
            | Self::NoRuntime => false,
        }
    }
}

/// How a peer violated the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolViolationError {
    /// The peer sent bytes that are not a valid frame.
    // The message of the ProtocolError is addressed to clients of the daemon, so only its code and
    // detail are shown.
    #[error("a frame from the daemon is {} ({})", .0.code.name(), .0.detail)]
    InvalidFrame(#[source] ProtocolError),
    /// The first response of a connection was an ANSWER instead of WELCOME.
    #[error("the daemon sent an ANSWER before WELCOME")]
    AnswerBeforeWelcome,
    /// A WELCOME came after the first response of a connection.
    #[error("the daemon sent a WELCOME that was not requested")]
    UnexpectedWelcome,
    /// WELCOME chose a version that the client does not speak.
    #[error("WELCOME chose version {0}")]
    UnsupportedVersion(u8),
    /// WELCOME accepts keys neither as digests nor raw.
    #[error("WELCOME accepts keys neither as digests nor raw")]
    NoCredentials,
    /// A response came although no request was waiting for one.
    #[error("the daemon answered request {request_id}, but no answer was due")]
    UnexpectedResponse {
        /// The request id of the response.
        request_id: u32,
    },
    /// A response came out of order.
    #[error("the daemon answered request {actual}, but the answer to {expected} was due")]
    WrongRequestId {
        /// The request id whose response was due.
        expected: u32,
        /// The request id of the response.
        actual: u32,
    },
}

/// An ERROR frame (SPEC.md section 8): why the daemon did not answer. The request has charged
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonError {
    /// The number of the code; [`code`](Self::code) returns it if this version knows it.
    pub value: u8,
    /// The offending value; its meaning depends on the code.
    pub detail: u32,
    /// Whether the daemon closed the connection.
    pub closing: bool,
    /// The daemon's message for people.
    pub message: String,
}

impl DaemonError {
    /// The code, if this version knows it.
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_value(self.value)
    }
}

impl From<&ErrorFrame<'_>> for DaemonError {
    fn from(frame: &ErrorFrame<'_>) -> Self {
        Self {
            value: frame.code,
            detail: frame.detail,
            closing: frame.closing,
            message: frame.message.to_owned(),
        }
    }
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{}: {}", code.name(), self.message),
            None => write!(f, "error {}: {}", self.value, self.message),
        }
    }
}

impl std::error::Error for DaemonError {}
