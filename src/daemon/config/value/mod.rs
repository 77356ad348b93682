//! Settings that are more than a number, a text or a duration.

mod byte_size;
mod fraction;
mod log;
mod socket_mode;
mod source;

pub(super) use byte_size::{BufferSize, FileSize};
pub use fraction::Fraction;
pub use log::{LogFormat, LogLevel};
pub use socket_mode::SocketMode;
pub(super) use source::{BadRowAction, ColumnName, NullTextList};
