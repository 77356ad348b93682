//! What can go wrong on the way to an answer. A denial is not here: it is an answer.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward_protocol::{ErrorCode, ErrorFrame, FieldTooLongError};

/// Why there is no answer. keyward's advice is to deny then.
///
/// Whether the key may have been charged is in [`may_have_been_charged`](Self::may_have_been_charged); the client has
/// by itself repeated whatever is safe to repeat.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection to the daemon; nothing was sent.
    #[error(
        "cannot connect to keyward at {}: {source}; is the daemon running, and may this user open its socket?",
        path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The deadline passed first.
    #[error(
        "no answer from keyward within {deadline:?}; the request was {}",
        fate(*written)
    )]
    Deadline {
        /// How long the whole request was allowed to take.
        deadline: Duration,
        /// Whether the request, or a part of it, had been written by then.
        written: bool,
    },
    /// The connection ended before the answer.
    #[error("the connection to keyward ended before its answer; the request was {}", fate(*written))]
    ConnectionLost {
        /// Whether the request, or a part of it, had been written by then.
        written: bool,
    },
    /// What the peer sends is not what SPEC.md says; the connection has been dropped.
    #[error(
        "the peer does not keep to keyward's protocol: {0}; is the socket keyward's, and of this version?"
    )]
    Protocol(String),
    /// The daemon refused to answer.
    #[error("keyward refused the request: {0}")]
    Daemon(DaemonError),
    /// A field is longer than the protocol allows; nothing was sent.
    #[error("{field} is {length} bytes long, and may have {max}; shorten it{}", hint(field))]
    FieldTooLong {
        /// SPEC.md's name of the field.
        field: &'static str,
        /// How long it is, in bytes.
        length: usize,
        /// How long it may be.
        max: usize,
    },
    /// A required scope is empty or has a space in it, or there is none to choose from; nothing was sent.
    #[error("{name:?} is not the name of a scope: give at least one, none empty, none with a space")]
    InvalidScope {
        /// The name; empty where there is no name at all.
        name: String,
    },
    /// A refund of 0; nothing was sent.
    #[error("a refund gives back at least 1; a request of cost 0, a peek, has charged nothing")]
    EmptyRefund,
    /// The async client was used outside of a tokio runtime; nothing was sent.
    #[error(
        "keyward's async client needs a tokio runtime with I/O and time enabled; elsewhere use the blocking one"
    )]
    NoRuntime,
}

fn fate(written: bool) -> &'static str {
    if written {
        "sent, and may have been charged (or given back, if it is a refund)"
    } else {
        "not sent and changes nothing: it can be repeated"
    }
}

fn hint(field: &str) -> &'static str {
    if field == "key" { ", or use a daemon that takes digests: they have no limit" } else { "" }
}

impl Error {
    /// Whether the key may have been charged although there is no answer (or, for a [`Refund`](crate::Refund), given
    /// back to). Where this is `false`, asking again cannot do it twice.
    pub fn may_have_been_charged(&self) -> bool {
        match self {
            Self::Deadline { written, .. } | Self::ConnectionLost { written } => *written,
            Self::Protocol(_) => true,
            Self::Connect { .. }
            | Self::Daemon(_)
            | Self::FieldTooLong { .. }
            | Self::InvalidScope { .. }
            | Self::EmptyRefund
            | Self::NoRuntime => false,
        }
    }
}

impl From<FieldTooLongError> for Error {
    fn from(FieldTooLongError { field, length, max }: FieldTooLongError) -> Self {
        Self::FieldTooLong { field, length, max }
    }
}

/// An ERROR frame (SPEC.md section 8): why the daemon did not answer. It has charged nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonError {
    /// The code's number; [`code`](Self::code) names those that this version knows.
    pub value: u8,
    /// The offending value; what it is depends on the code.
    pub detail: u32,
    /// Whether the daemon ended the connection with it.
    pub closing: bool,
    /// The daemon's sentence for people.
    pub message: String,
}

impl DaemonError {
    /// The code, if this version knows it.
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_u8(self.value)
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

/// What became of one request that got no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// To be told to the caller.
    Final(Error),
    /// The daemon has not processed it, and never will: it can be sent again. The error is for when there is no time.
    Retry(Error),
    /// The deadline has passed; how long it was is known to the client.
    Late {
        /// Whether something of the request had been written by then.
        written: bool,
    },
}

impl Failure {
    /// What to tell a caller who allowed `deadline`.
    pub(crate) fn into_error(self, deadline: Duration) -> Error {
        match self {
            Self::Final(error) | Self::Retry(error) => error,
            Self::Late { written } => Error::Deadline { deadline, written },
        }
    }
}

/// The connection ended before the request was written.
pub(crate) const ENDED: Failure = Failure::Retry(Error::ConnectionLost { written: false });

/// What became of one request.
pub(crate) type Outcome = Result<crate::Decision, Failure>;
