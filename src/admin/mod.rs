//! The admin socket: status, reload, revocations, version, for whoever operates the daemon.

mod client;
pub mod message;
mod serve;

pub use client::{AskError, ask, ask_within};
pub use serve::{Operate, Peer, serve};
