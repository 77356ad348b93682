//! keyward's wire protocol: frames, limits and codec.
//!
//! `SPEC.md` beside this crate is normative, and the code names the section that it implements.
//!
//! * [`parse_frame`] finds the frames in a stream of bytes.
//! * [`Request`] is what a client sends: [`Hello`], [`Verify`], [`Refund`] or [`Debit`].
//! * [`Response`] is what the daemon sends: [`Welcome`], [`Answer`] or [`ErrorFrame`].
//! * [`ProtocolError`] is a violation of the protocol, with the code that an ERROR frame reports.
//!
//! Decoding borrows from the buffer and allocates nothing; every length is checked before it is
//! used. Encoding appends to a buffer.
//!
//! ```
//! use keyward_protocol::{Answer, Credential, Verdict, Verify};
//!
//! let mut requests = Vec::new();
//! Verify::new(1, Credential::RawKey(b"acme_live_0123456789")).encode(&mut requests)?;
//! Verify { environment: Some("live"), ..Verify::new(2, Credential::Digest([0; 32])) }.encode(&mut requests)?;
//!
//! let mut responses = Vec::new();
//! Answer::without_key(1, Verdict::UnknownKey, 9).encode(&mut responses);
//! # Ok::<(), keyward_protocol::FieldTooLongError>(())
//! ```

mod adjustment;
mod answer;
mod balances;
mod codec;
mod costs;
mod credential;
mod error;
mod error_frame;
mod frame;
mod hello;
mod layout;
mod limits;
mod prepared_answer;
mod request;
mod response;
mod verdict;
mod verify;
mod welcome;

pub use adjustment::{Adjustment, Debit, Refund, adjustment_flag};
pub use answer::{Answer, LimitState, answer_flag};
pub use balances::{Balances, BalancesBuf, LimitBalance, LimitKind, UnknownLimitKind};
pub use costs::{Costs, CostsBuf, InvalidCostError};
pub use credential::{CREDENTIAL_DIGEST, CREDENTIAL_RAW, Credential};
pub use error::{ErrorCode, FieldTooLongError, ProtocolError};
pub use error_frame::{ErrorFrame, error_flag};
pub use frame::{FrameHeader, FrameKind, ParsedFrame, parse_frame, truncated_frame};
pub use hello::Hello;
pub use limits::*;
pub use prepared_answer::{AnswerTexts, PreparedAnswer};
pub use request::Request;
pub use response::Response;
pub use verdict::{UnknownVerdict, VERDICT_LIMIT, Verdict};
pub use verify::{FAST_PATH_BYTES, ScopeMode, Scopes, Verify, verify_flag};
pub use welcome::Welcome;

/// The socket of the daemon by default (SPEC.md section 1).
pub const DEFAULT_SOCKET: &str = "/run/keyward/keyward.sock";
