//! Rust client for keyward: asks the daemon of this host whether an API key may do something now.
//!
//! There are two clients with the same requests and answers. [`Client`] is for tokio: it is cheap
//! to clone, and all clones, tasks and threads share one connection on which their requests are
//! pipelined. [`blocking::Client`] needs no runtime.
//!
//! ```no_run
//! use keyward_client::{Client, Error, Request};
//!
//! # async fn example(key: &str) -> Result<(), Error> {
//! let keyward = Client::new("/run/keyward/keyward.sock");
//! let decision = keyward.verify(&Request::new(key).scopes(["invoices:read"])).await?;
//! if decision.is_allowed() {
//!     println!("owner {:?}", decision.owner());
//! } else {
//!     println!("denied: {}", decision.verdict().name());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Without a runtime:
//!
//! ```no_run
//! use keyward_client::{Request, blocking};
//!
//! # fn example(key: &str) -> Result<(), keyward_client::Error> {
//! let mut keyward = blocking::Client::new("/run/keyward/keyward.sock");
//! let decision = keyward.verify(&Request::new(key))?;
//! # let _ = decision;
//! # Ok(())
//! # }
//! ```
//!
//! Both clients guarantee:
//!
//! * **A denial is a value.** An `Err` means that there is no answer. Decide explicitly whether
//!   that means denial; keyward recommends that it does.
//! * **The key stays in this process.** The client sends its SHA-256, unless the daemon accepts raw
//!   keys only: the daemon says so when a connection begins, or refuses a digest later (then the
//!   client sends the raw key). Copies that the client makes of the key are wiped.
//! * **Every call ends by its deadline** (50 ms unless the [`Options`] say otherwise), connecting
//!   included.
//! * **Nothing is charged twice.** A request is sent again only if no part of it was written, or if
//!   the daemon said that it was not processed. For other requests, see
//!   [`Error::may_have_been_charged`]. A [`Refund`] gives back what was charged for a request that
//!   came to nothing, and a [`Debit`] charges what a response has cost; neither is carried out twice.
//! * **Connections are managed.** The client connects on first use, and again if the connection has
//!   ended or has been silent for too long.
//!
//! # Structure
//!
//! `session`, `send_buffer`, `receive_buffer`, `event` and `sequence` convert between requests,
//! answers and bytes, without I/O. `credential_mode` decides how keys are sent, `retry` when to try
//! again, and `busy_poll` when to spin for an answer. `pipeline` and `blocking` are the two
//! clients, and do the I/O.

mod adjustment;
pub mod blocking;
mod busy_poll;
mod credential_mode;
mod decision;
mod error;
mod event;
mod failure;
mod options;
mod pipeline;
mod receive_buffer;
mod request;
mod retry;
mod send_buffer;
mod sequence;
mod session;
mod socket;

pub use adjustment::{Adjustment, Debit, Refund};
pub use decision::{Balance, Decision, Limit};
pub use error::{DaemonError, Error, ProtocolViolationError};
pub use keyward_protocol::{
    DEFAULT_SOCKET, ErrorCode, FieldTooLongError, InvalidCostError, LimitKind, ProtocolError,
    UnknownLimitKind, UnknownVerdict, Verdict,
};
pub use options::{DEFAULT_DEADLINE, DEFAULT_MAX_IN_FLIGHT, Options};
pub use pipeline::Client;
pub use request::Request;
