//! The frames that the daemon sends: WELCOME, ANSWER and ERROR.

use crate::answer::Answer;
use crate::error::{ErrorCode, ProtocolError};
use crate::error_frame::ErrorFrame;
use crate::frame::{FrameHeader, FrameKind};
use crate::welcome::Welcome;

/// A response that borrows from the buffer it was read into.
///
/// ```
/// use keyward_protocol::{Answer, MAX_ANSWER_LENGTH, ParsedFrame, Response, Verdict, parse_frame};
///
/// let mut buffer = Vec::new();
/// let answer = Answer { key_id: "k1", owner: "acme", ..Answer::without_key(7, Verdict::Allowed, 3) };
/// answer.encode(&mut buffer);
/// assert_eq!(parse_frame(&buffer[..20], MAX_ANSWER_LENGTH), ParsedFrame::Incomplete);
///
/// let ParsedFrame::Complete { header, body, .. } = parse_frame(&buffer, MAX_ANSWER_LENGTH) else {
///     panic!("the frame is complete");
/// };
/// let Response::Answer(answer) = Response::decode(&header, body)? else {
///     panic!("the frame is an ANSWER");
/// };
/// assert!(answer.verdict.is_allowed());
/// assert_eq!((answer.request_id, answer.owner), (7, "acme"));
/// # Ok::<(), keyward_protocol::ProtocolError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// The response to HELLO.
    Welcome(Welcome<'a>),
    /// The response to VERIFY, REFUND and DEBIT.
    Answer(Answer<'a>),
    /// The response to a request that the daemon cannot answer.
    Error(ErrorFrame<'a>),
}

impl<'a> Response<'a> {
    /// Decodes a frame that [`parse_frame`](crate::parse_frame) returned.
    ///
    /// # Errors
    /// If a daemon must not send this frame.
    pub fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        header.check_version()?;
        if header.kind == FrameKind::Answer as u8 {
            Answer::decode(header, body).map(Self::Answer)
        } else if header.kind == FrameKind::Welcome as u8 {
            Welcome::decode(header, body).map(Self::Welcome)
        } else if header.kind == FrameKind::Error as u8 {
            ErrorFrame::decode(header, body).map(Self::Error)
        } else {
            Err(header.error(ErrorCode::UnknownKind, u32::from(header.kind)))
        }
    }

    /// The request that this responds to.
    pub fn request_id(&self) -> u32 {
        match self {
            Self::Welcome(welcome) => welcome.request_id,
            Self::Answer(answer) => answer.request_id,
            Self::Error(error) => error.request_id,
        }
    }
}
