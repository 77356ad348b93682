//! The admin socket: status, reload, check, revocations, version, for whoever operates the daemon.

pub mod check;
mod client;
pub mod message;
mod places;
mod serve;
pub mod withheld;

pub use client::{AskError, ask, ask_within};
pub use serve::{Operate, Peer, serve};
