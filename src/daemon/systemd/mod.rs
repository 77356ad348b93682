//! The interface to systemd: notifications and socket activation.

mod notify;
mod sockets;

pub use notify::{ready, reloading, status, stopping, unwritten};
pub use sockets::{ADMIN, Passed, Sockets, SocketsError, VERIFY, take_sockets};
