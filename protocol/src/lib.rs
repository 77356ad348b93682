//! keyward's wire protocol, and nothing else. `SPEC.md` beside this crate is normative; the section that a piece
//! of code implements is named where it stands.
//!
//! * [`FrameHeader`] and [`parse_frame`] find the frames in a stream of bytes ([`frame`](mod@frame)).
//! * [`Request`] is what a client sends: [`Hello`], [`Verify`], [`Refund`].
//! * [`Response`] is what the daemon sends: [`Welcome`], [`Answer`], [`ErrorFrame`].
//! * [`ProtocolError`] says why bytes are not a frame, in the protocol's own error codes.
//!
//! Decoding borrows from the buffer and allocates nothing; a length is checked before anything is believed.
//! Encoding appends to a buffer.

mod codec;
mod error;
pub mod frame;
mod limits;
mod prepared;
mod refund;
mod request;
mod response;

pub use error::{ErrorCode, ProtocolError};
pub use frame::{FrameHeader, FrameKind, ParsedFrame, parse_frame, truncated_frame};
pub use limits::*;
pub use prepared::{AnswerTexts, PreparedAnswer};
pub use refund::{Refund, refund_field, refund_flag};
pub use request::{
    Credential, FAST_PATH_BYTES, FieldTooLongError, Hello, Request, ScopeMode, Scopes, Verify, verify_field,
    verify_flag,
};
pub use response::{
    Answer, CREDENTIAL_DIGEST, CREDENTIAL_RAW, ErrorFrame, LimitState, Response, Verdict, Welcome,
    answer_flag, error_flag,
};
