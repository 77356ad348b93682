//! The configuration of the companion: a TOML file.
//!
//! Parse, don't validate: every value of a [`Config`] is in range and every default is resolved.
//! `systemd/http.toml` lists every setting with its default and its reason; a test compares it with
//! this module.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use keyward_settings::file::{self as settings_file, FileError};
use keyward_settings::{Group, Log, SocketMode, SocketPath};

use crate::check::CheckRules;
use crate::limits::ServerLimits;
use crate::settlement::SettlementRules;

mod file;
mod resolve;
mod value;

#[cfg(test)]
mod tests;

/// The file that is read by default.
pub const DEFAULT_FILE: &str = "/etc/keyward/http.toml";

/// Maximum number of threads. One answers some ten thousand checks a second.
pub const MAX_WORKERS: u32 = 64;

/// Maximum number of connections of one listener. Each has buffers of up to the size of its headers.
pub const MAX_CONNECTIONS: u32 = 100_000;

/// The configuration, complete and valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[[gateways]]`, at least one.
    pub gateways: Vec<GatewayListener>,
    /// `[metrics]`. `None`: none are served.
    pub metrics: Option<MetricsListener>,
    /// `[settlement]`. `None`: there is none.
    pub settlement: Option<SettlementListener>,
    /// `[log]`
    pub log: Log,
}

/// `[server]`: how the daemon is asked, and the bounds of all listeners.
#[derive(Clone, Debug)]
pub struct Server {
    /// The daemon's socket.
    pub keyward: SocketPath,
    /// Time within which the daemon has to answer.
    pub deadline: Duration,
    /// The number of threads, `1..=`[`MAX_WORKERS`].
    pub workers: usize,
    /// The bounds of each listener, before its connections are divided between the threads.
    pub limits: ServerLimits,
}

/// A listener for the subrequests of one gateway.
#[derive(Clone, Debug)]
pub struct GatewayListener {
    /// Its name in logs and metrics, and systemd's name for its socket.
    pub name: String,
    /// Where it listens.
    pub listen: ListenSettings,
    /// How its requests are checked.
    pub rules: CheckRules,
}

/// A listener for a monitoring system: metrics and health.
#[derive(Clone, Debug)]
pub struct MetricsListener {
    /// Where it listens.
    pub listen: ListenSettings,
    /// The daemon's admin socket.
    pub admin: SocketPath,
}

/// A listener for settlements.
#[derive(Clone, Debug)]
pub struct SettlementListener {
    /// Where it listens: a Unix socket.
    pub listen: ListenSettings,
    /// Which requests are carried out.
    pub rules: SettlementRules,
}

/// Systemd's name for the socket of [`MetricsListener`]. No gateway has it.
pub const METRICS_NAME: &str = "metrics";

/// Systemd's name for the socket of [`SettlementListener`]. No gateway has it.
pub const SETTLEMENT_NAME: &str = "settlement";

/// Where a listener listens, unless systemd has opened the socket.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// The path or the address.
    pub address: ListenAddress,
    /// Permissions of a Unix socket.
    pub socket_mode: SocketMode,
    /// Group of a Unix socket. `None`: the group of the process.
    pub socket_group: Option<Group>,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// The path of a Unix socket.
    Unix(SocketPath),
    /// An address of the loopback interface.
    Tcp(SocketAddr),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.as_path().display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`].
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn load(file: Option<&Path>) -> Result<Self, FileError> {
        let file = file.unwrap_or(Path::new(DEFAULT_FILE));
        Self::parse(file, &settings_file::read(file)?)
    }

    /// As [`load`](Self::load), from `text`. Errors name `file`.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, FileError> {
        resolve::resolve(file, settings_file::parse(file, text)?)
    }
}
