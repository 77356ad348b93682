//! keyward: a local daemon that answers whether an API key may do this, now.

pub mod clock;
pub mod config;
pub mod key_format;
pub mod limiter;
pub mod now;
pub mod record;
