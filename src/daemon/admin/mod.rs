//! The daemon's side of the admin socket. `keyward-admin` has the messages.

mod connection_slots;
mod permissions;
mod server;

pub use permissions::AdminUsers;
pub use server::{CommandHandler, Peer, serve};
