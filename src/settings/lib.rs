//! Configuration files: values that are checked while they are parsed, and errors that say where a
//! wrong one is and what to write instead.
//!
//! The daemon and its companions have a file each. [`mod@file`] reads one into the types that describe it;
//! those have fields of the types here. [`text`] deserializes strings, integers and durations.

pub mod file;
pub mod text;

mod byte_size;
mod group;
mod id;
mod log;
mod path;
mod socket_mode;

pub use byte_size::ByteSize;
pub use group::{Group, GroupError};
pub use id::{Id, MAX_ID};
pub use log::{Log, LogFormat, LogLevel};
pub use path::{AbsolutePath, MAX_SOCKET_PATH, SocketPath, SocketPathError, check_usable};
pub use socket_mode::SocketMode;
