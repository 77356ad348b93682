//! keyward's wire protocol, and nothing else. `SPEC.md` beside this crate is normative; the section that a piece
//! of code implements is named where it stands.
//!
//! * [`Header`] and [`split`] find the frames in a stream of bytes ([`frame`](mod@frame)).
//! * [`Request`] is what a client sends: [`Hello`], [`Verify`], [`Refund`].
//! * [`Response`] is what the daemon sends: [`Welcome`], [`Answer`], [`ErrorFrame`].
//! * [`Fault`] says why bytes are not a frame, in the protocol's own error codes.
//!
//! Decoding borrows from the buffer and allocates nothing; a length is checked before anything is believed.
//! Encoding appends to a buffer.

mod codec;
mod fault;
pub mod frame;
mod limits;
mod prepared;
mod refund;
mod request;
mod response;

pub use fault::{ErrorCode, Fault};
pub use frame::{Header, Kind, Split, split, truncated};
pub use limits::*;
pub use prepared::{AnswerTexts, PreparedAnswer};
pub use refund::{Refund, refund_field, refund_flag};
pub use request::{
    Credential, FieldTooLong, Hello, ORDINARY_BYTES, Request, ScopeMode, Scopes, Verify, field, verify_flag,
};
pub use response::{
    ANSWER_METADATA, ANSWER_SHADOW, Answer, CREDENTIAL_DIGEST, CREDENTIAL_RAW, ERROR_CLOSING, ErrorFrame,
    LimitState, Response, Verdict, Welcome,
};
