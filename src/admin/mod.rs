//! The admin socket: status, reload, version, for whoever operates the daemon.

mod client;
pub mod message;

pub use client::{AskError, ask};
