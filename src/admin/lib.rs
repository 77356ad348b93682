//! The admin socket, as its clients see it: the [messages](message), and the client that sends a command
//! and waits for the answer. The daemon's side is in `keyward-daemon`.

mod client;
pub mod message;

pub use client::{CommandError, send_command, send_command_within};
