//! The admin socket: status, reload, version, for whoever operates the daemon.

mod client;
pub mod message;
mod serve;

pub use client::{AskError, ask};
pub use serve::{Operate, serve};
