//! The admin socket: status, reload, version, for whoever operates the daemon.

mod client;
pub mod message;
mod serve;

pub use client::{AskError, ask, ask_within};
pub use serve::{Operate, serve};
