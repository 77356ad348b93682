//! HELLO and WELCOME: what the two sides agree on when a connection begins (SPEC.md section 4).

use std::time::Duration;

use keyward_protocol::{
    CREDENTIAL_DIGEST, CREDENTIAL_RAW, ErrorCode, Hello, MAX_REQUEST_LENGTH, Response, VERSION, Welcome,
};

use crate::error::{DaemonError, Error, ProtocolViolationError};
use crate::failure::Failure;
use crate::retry::max_silence;
use crate::sequence::{HELLO_SEQUENCE, check_request_id, request_id};

/// What WELCOME said about a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    /// How keys may be sent: the value of WELCOME's field of this name.
    pub(crate) credentials: u8,
    /// Largest `length` of a request.
    pub(crate) max_length: u32,
    /// How long the connection may have been silent and still be written to; `None` means for any
    /// time.
    pub(crate) max_silence: Option<Duration>,
}

/// The frame with which every connection begins.
pub(crate) fn hello_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    Hello { request_id: request_id(HELLO_SEQUENCE), min_version: VERSION, max_version: VERSION }
        .encode(&mut frame);
    frame
}

impl Session {
    /// Interprets the first response of a connection.
    pub(crate) fn from_response(response: &Response<'_>) -> Result<Self, Failure> {
        match response {
            Response::Welcome(welcome) => {
                Self::from_welcome(welcome).map_err(|violation| Failure::Final(Error::Protocol(violation)))
            }
            Response::Error(frame) => Err(refusal(frame.into())),
            Response::Answer(_) => {
                Err(Failure::Final(Error::Protocol(ProtocolViolationError::AnswerBeforeWelcome)))
            }
        }
    }

    fn from_welcome(welcome: &Welcome<'_>) -> Result<Self, ProtocolViolationError> {
        check_request_id(HELLO_SEQUENCE, welcome.request_id)?;
        if welcome.version != VERSION {
            return Err(ProtocolViolationError::UnsupportedVersion(welcome.version));
        }
        if welcome.credentials & (CREDENTIAL_DIGEST | CREDENTIAL_RAW) == 0 {
            return Err(ProtocolViolationError::NoCredentials);
        }
        Ok(Self {
            credentials: welcome.credentials,
            max_length: welcome.max_length.min(MAX_REQUEST_LENGTH),
            max_silence: max_silence(welcome.idle_timeout_ms),
        })
    }
}

/// The failure of a connection that the daemon refused. A full daemon, or one that shuts down, may
/// accept the next connection; any other refusal is final.
fn refusal(error: DaemonError) -> Failure {
    match error.code() {
        Some(ErrorCode::TooManyConnections | ErrorCode::ShuttingDown | ErrorCode::QuotaExceeded) => {
            Failure::Retryable(Error::Daemon(error))
        }
        _ => Failure::Final(Error::Daemon(error)),
    }
}
