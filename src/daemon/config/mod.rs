//! The configuration: a TOML file, and the command line options that override it.
//!
//! Parse, don't validate: every value of a [`Config`] is in range and every default is resolved, so
//! that no other code checks again. `systemd/keyward.toml` lists every setting with its default and
//! its reason; a test compares it with this module.
//!
//! A configuration is read in two steps. serde fills the types of `file` from the text. `resolve`
//! applies the options, and checks settings that depend on each other.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::admin::AdminUsers;
use crate::connection::{Permissions, UidQuotas};
use crate::reload::BadRowPolicy;
use crate::revocation::Retention;
use crate::usage;
use keyward_engine::key_format::Prefix;
use keyward_engine::record::Plans;
use keyward_settings::file::{self as settings_file, FileError};
use keyward_settings::{Group, Log, SocketMode, SocketPath};
use keyward_source::{ColumnMapping, Format};
use keyward_state::Rotation;

mod conversion;
mod error;
mod file;
mod pepper_file;
mod plan;
mod resolve;
mod value;

#[cfg(test)]
mod tests;

pub use conversion::read_pepper;
pub use error::ConfigError;
pub use keyward_protocol::DEFAULT_SOCKET;
pub use pepper_file::PepperFileError;
pub use value::Fraction;

/// The file that is read by default.
pub const DEFAULT_FILE: &str = "/etc/keyward/keyward.toml";
/// The default admin socket: beside [`DEFAULT_SOCKET`].
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/keyward/admin.sock";
/// The default state directory. The daemon runs without one if it cannot be written.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/keyward";

/// Maximum number of worker threads: more processors than one socket can keep busy.
pub const MAX_WORKERS: u32 = 256;
/// Maximum number of connections. The kernel's default limit of descriptors is 2^20, and the daemon
/// needs some itself.
pub const MAX_CONNECTIONS: u32 = 1_000_000;

/// The configuration, complete and valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file that was read. `None`: only options were given.
    pub file: Option<PathBuf>,
    /// `[server]`
    pub server: Server,
    /// `[uid_quotas]`: the maximum number of connections of one uid. `None`: seven eighths of
    /// `server.max_connections`.
    pub max_connections_per_uid: Option<usize>,
    /// `[uid_quotas]`: the other quotas.
    pub uid_quotas: UidQuotas,
    /// `[source]`
    pub source: Source,
    /// `[keys]`
    pub keys: Keys,
    /// `[plans.NAME]`, and `keys.default_plan`.
    pub plans: Arc<Plans>,
    /// `[state]`: the interval between saves of the balances, at least 100 ms.
    pub save_interval: Duration,
    /// `[state]`: whether the keys in force are kept for the next start.
    pub keep_snapshot: bool,
    /// `[revocation]`: how long a revocation stays on the list after the source confirms it.
    pub revocation_retention: Retention,
    /// `[usage]`: the interval between writes, at least 100 ms, and the maximum size of
    /// `usage.jsonl`.
    pub usage: usage::UsagePolicy,
    /// `[audit]`: the maximum size of `audit.jsonl`.
    pub audit: Rotation,
    /// `[log]`
    pub log: Log,
}

/// `[server]`: the sockets, their limits and their permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The verify socket.
    pub socket: SocketPath,
    /// Permission bits of the verify socket.
    pub socket_mode: SocketMode,
    /// Group of the verify socket. `None`: the group of the daemon.
    pub socket_group: Option<Group>,
    /// The admin socket. Its path differs from that of `socket`.
    pub admin_socket: SocketPath,
    /// The state directory.
    pub state_dir: PathBuf,
    /// Whether `state_dir` was configured. The daemon does not start if it cannot use a configured
    /// directory.
    pub state_dir_is_explicit: bool,
    /// The number of worker threads, `1..=`[`MAX_WORKERS`]. By default one for each processor that
    /// the daemon may use.
    pub workers: usize,
    /// How long a connection spins for the next request before it sleeps, at most a millisecond.
    /// Zero disables spinning.
    pub busy_poll: Duration,
    /// Whether to request huge pages for the keys and their buckets.
    pub huge_pages: bool,
    /// Maximum number of open connections, `1..=`[`MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// How long a connection may be silent, an incomplete frame may take, and answers may stay
    /// unread, at least a second. `None`: unlimited.
    pub idle_timeout: Option<Duration>,
    /// How long the daemon answers requests and waits for clients to read when it is stopped. Zero
    /// closes connections at once.
    pub drain_timeout: Duration,
    /// Which processes may send requests, beyond the permissions of the socket.
    pub clients: Clients,
    /// Which of them may send REFUND and DEBIT.
    pub adjusters: Adjusters,
    /// Users that may use the admin socket besides root and the daemon's own user.
    pub admin_users: AdminUsers,
}

/// Users and groups whose processes may send requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    uids: Box<[u32]>,
    gids: Box<[u32]>,
}

/// Users whose processes may change what a request was charged. The lists are sorted. `None`: every
/// process that may send requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjusters {
    /// Users that may send REFUND.
    pub refund_uids: Option<Box<[u32]>>,
    /// Users that may send DEBIT.
    pub debit_uids: Option<Box<[u32]>>,
}

/// `[source]`: where the keys come from, and which changes are accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The exported file. A relative path comes from the command line.
    pub path: PathBuf,
    /// The format of the file.
    pub format: Format,
    /// The interval between checks for a change that the watcher has missed, at least 100 ms.
    pub poll: Duration,
    /// How long a changed file must be unchanged before it is read, at most a minute. Zero reads it
    /// at once.
    pub settle: Duration,
    /// The maximum fraction of the working keys that one reload may stop.
    pub max_shrink: Fraction,
    /// The maximum fraction of the revoked, disabled or expired keys that one reload may
    /// reactivate.
    pub max_reactivated: Fraction,
    /// The maximum fraction of the keys with a restriction that may lose it in one reload.
    pub max_loosened: Fraction,
    /// How bad rows are treated.
    pub on_bad_row: BadRowPolicy,
    /// Whether a source that is refused because of bad rows still takes access away.
    pub apply_takeaways_of_refused: bool,
    /// The age after which keys are not served (STALE_SNAPSHOT), counted from the last write of
    /// their file. Longer than `poll`. `None`: unlimited.
    pub max_staleness: Option<Duration>,
    /// Which column holds which field.
    pub mapping: ColumnMapping,
}

/// `[keys]`: the form of the keys, and the peppers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Prefixes of the keys that keyward mints, without duplicates. A key with such a prefix and a
    /// wrong checksum is denied without a look-up.
    pub minted_prefixes: Vec<Prefix>,
    /// The time zone of calendar quotas.
    pub time_zone: TimeZone,
    /// The file with the secret that keys are hashed with.
    pub pepper_file: Option<PathBuf>,
    /// The file with the previous secret, as long as rows use it.
    pub previous_pepper_file: Option<PathBuf>,
}

/// Command line options that override settings. A relative path is relative to the working
/// directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--source`, for `source.path`. Its extension determines the format; `source.format` applies
    /// if it does not.
    pub source: Option<PathBuf>,
    /// `--socket`, for `server.socket`.
    pub socket: Option<PathBuf>,
    /// `--admin-socket`, for `server.admin_socket`.
    pub admin_socket: Option<PathBuf>,
    /// `--state-dir`, for `server.state_dir`.
    pub state_dir: Option<PathBuf>,
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`] if it exists, and applies `overrides`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::load_with_default(file, Path::new(DEFAULT_FILE), overrides)
    }

    /// The state directory of a daemon that is started with `file`, and with `option` for
    /// `--state-dir`. Does not require a source, because the daemon may be started with `--source`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn state_dir(file: Option<&Path>, option: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
        let placeholder = Some(PathBuf::from("keys.csv"));
        let overrides = Overrides { source: placeholder, state_dir: option, ..Overrides::default() };
        Ok(Self::load(file, overrides)?.server.state_dir)
    }

    /// The configuration in `file`, for commands that do not read the source. Does not require one:
    /// `source` has a placeholder. `socket` overrides the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_without_source(file: &Path, socket: Option<PathBuf>) -> Result<Self, ConfigError> {
        let source = Some(PathBuf::from("keys.csv"));
        Self::load(Some(file), Overrides { source, socket, ..Overrides::default() })
    }

    /// The configuration without a file: the defaults and `overrides`.
    ///
    /// # Errors
    /// [`ConfigError::NoSource`] without a source, [`ConfigError::Option`] for a path that cannot
    /// be used.
    pub fn from_options(overrides: Overrides) -> Result<Self, ConfigError> {
        resolve::resolve(None, file::ConfigFile::default(), overrides)
    }

    /// As [`load`](Self::load), from `text`. Errors name `file`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(file: &Path, text: &str, overrides: Overrides) -> Result<Self, ConfigError> {
        let settings = settings_file::parse(file, text)?;
        resolve::resolve(Some(file), settings, overrides)
    }

    fn load_with_default(
        file: Option<&Path>,
        default: &Path,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        match settings_file::read(file.unwrap_or(default)) {
            Ok(text) => Self::parse(file.unwrap_or(default), &text, overrides),
            Err(FileError::Unreadable { source, .. })
                if file.is_none() && source.kind() == io::ErrorKind::NotFound =>
            {
                Self::from_options(overrides)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Clients {
    /// Whether a process with this user and primary group may send requests: if either is listed,
    /// or the lists are empty.
    pub fn allows(&self, uid: u32, gid: u32) -> bool {
        let allows_everyone = self.uids.is_empty() && self.gids.is_empty();
        allows_everyone || self.uids.binary_search(&uid).is_ok() || self.gids.binary_search(&gid).is_ok()
    }
}

impl Adjusters {
    /// What a process of this user may send, if it may send requests.
    pub fn permissions(&self, uid: u32) -> Permissions {
        let is_listed = |uids: Option<&[u32]>| uids.is_none_or(|uids| uids.binary_search(&uid).is_ok());
        Permissions {
            refund: is_listed(self.refund_uids.as_deref()),
            debit: is_listed(self.debit_uids.as_deref()),
        }
    }
}

/// Refuses a configuration that a reload would have to wait for. A daemon may be started with a pipe,
/// but nothing is written to it a second time. `file` is [`DEFAULT_FILE`] if there is none.
///
/// # Errors
/// When it leads to a pipe or a socket.
pub fn refuse_pipe(file: Option<&Path>) -> Result<(), ConfigError> {
    let file = file.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.file_type().is_fifo() || metadata.file_type().is_socket() => {
            let source = io::Error::other("it is a pipe or a socket: a reload needs a regular file");
            Err(FileError::Unreadable { file: file.to_owned(), source }.into())
        }
        // Whether it can be read is known once it has been.
        Ok(_) | Err(_) => Ok(()),
    }
}
