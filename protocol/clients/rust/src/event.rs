//! Responses, interpreted for the requests that wait for them.

use keyward_protocol::{ErrorCode, Response};

use crate::Decision;
use crate::error::{DaemonError, Error, ProtocolViolationError};

/// A response of the daemon.
#[derive(Debug)]
pub(crate) enum Event {
    /// The request with this id has been answered, or refused.
    Reply(u32, Result<Decision, Error>),
    /// The connection ends; requests without an answer have not been processed. The id is that of
    /// the request that caused the error, if one did.
    Closing(Option<u32>, DaemonError),
}

impl Event {
    pub(crate) fn from_response(response: &Response<'_>) -> Result<Self, ProtocolViolationError> {
        match response {
            Response::Answer(answer) => Ok(Self::Reply(answer.request_id, Ok(Decision::new(answer)))),
            Response::Error(frame) if frame.closing => Ok(Self::closing(frame.request_id, frame.into())),
            Response::Error(frame) => Ok(Self::Reply(frame.request_id, Err(Error::Daemon(frame.into())))),
            Response::Welcome(_) => Err(ProtocolViolationError::UnexpectedWelcome),
        }
    }

    /// A frame that caused the error would cause it again, so its request must not be retried.
    /// Other errors concern the connection only.
    fn closing(id: u32, error: DaemonError) -> Self {
        use ErrorCode::{FrameTooLong, FrameTooShort, TruncatedFrame};
        let caused_by_frame = matches!(error.code(), Some(FrameTooShort | FrameTooLong | TruncatedFrame));
        Self::Closing((caused_by_frame && id != 0).then_some(id), error)
    }
}
