//! The daemon's side of the admin socket. `keyward-admin` has the messages.

mod connection_slots;
mod server;

pub use server::{CommandHandler, Peer, serve};
