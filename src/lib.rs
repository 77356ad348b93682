//! keyward: a local daemon that answers whether an API key may do this, now.

pub mod admin;
pub mod clock;
pub mod config;
pub mod connection;
pub mod key_format;
pub mod limiter;
pub mod now;
pub mod publish;
pub mod record;
pub mod reload;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod systemd;
pub mod verify;
