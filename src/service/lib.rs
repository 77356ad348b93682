//! What every service of keyward needs from its host: the daemon and its companions have it in common.
//!
//! * [`listener`] binds a Unix socket, which [`socket_file`] protects from other processes, and
//!   [`passed_sockets`] takes those that systemd has opened.
//! * [`descriptors`] raises the limit of open files.
//! * [`process`] reads what the kernel reports about the process.
//! * [`notify`] tells systemd what the service does.
//! * [`log`] writes to standard error without ever waiting for it, and [`log_limit`] limits lines that
//!   repeat.

pub mod descriptors;
pub mod listener;
pub mod log;
pub mod log_limit;
pub mod notify;
pub mod passed_sockets;
pub mod process;
pub mod socket_file;
