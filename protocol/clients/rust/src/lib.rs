//! Rust client for keyward: asks the daemon of this host whether an API key may do something, now.
//!
//! There are two clients with one vocabulary. [`Client`] is for tokio: it is cheap to clone, and all clones, tasks and
//! threads share one connection on which their requests are pipelined. [`blocking::Client`] needs no runtime.
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
//! and without a runtime:
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
//! What both promise:
//!
//! * **A denial is a value.** `Err` is only for what kept the daemon from answering. Decide, explicitly, whether that
//!   means denial; keyward's advice is that it does.
//! * **The key stays here.** Its SHA-256 is sent, unless the daemon takes raw keys only: it says so when a connection
//!   begins, or refuses a digest later (then the request is sent again, raw). Copies that the client makes are
//!   overwritten.
//! * **Every call ends by its deadline** (50 ms unless the [`Options`] say otherwise), connecting included.
//! * **Nothing is charged twice.** A request is sent again only where nothing of it was written, or where the daemon
//!   said that it was not processed. [`Error::may_have_been_charged`] tells the rest. What was charged for nothing can
//!   be given [back](Refund), and that is not done twice either.
//! * A connection is made on first use, and again when it has ended or been silent for too long.
//!
//! Where to read on: `wire` turns requests into bytes and bytes into answers, without any I/O; `forms` decides how keys
//! are sent; `busy` when to look for an answer and not to sleep; `retry` has the rules for trying again; `pipeline` and `blocking` are the two ways to move the bytes.

mod busy;
mod decision;
mod error;
mod forms;
mod options;
mod pipeline;
mod refund;
mod request;
mod retry;
mod socket;
mod wire;

pub mod blocking;

pub use decision::{Decision, Limit};
pub use error::{DaemonError, Error};
pub use keyward_protocol::{ErrorCode, Verdict};
pub use options::{DEFAULT_DEADLINE, DEFAULT_MAX_IN_FLIGHT, DEFAULT_SOCKET, Options};
pub use pipeline::Client;
pub use refund::Refund;
pub use request::Request;
