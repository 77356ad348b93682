//! The admin socket: its messages, the daemon's side and the command line's side.

mod client;
mod connection_slots;
pub mod message;
mod server;

pub use client::{CommandError, send_command, send_command_within};
pub use server::{CommandHandler, Peer, serve};
