//! keyward: a local daemon that answers whether an API key may do this, now.

pub mod limiter;
pub mod record;
pub mod source;
