//! What an operator decides: a TOML file, and the command line options that override it.
//!
//! Parse, don't validate: a [`Config`] that exists has every value in range and every default resolved, so
//! nothing behind it checks again. `systemd/keyward.toml` lists every setting with its default and its
//! reason; a test holds it against this module.
//!
//! Two steps: `file` is what serde makes of the text; `resolve` puts the options over it, and settles and
//! compares what depends on more than one setting.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::reload::BadRowPolicy;
use crate::revocation::Retention;
use crate::usage;
use keyward_engine::key_format::Prefix;
use keyward_engine::record::Plans;
use keyward_source::{ColumnMapping, Format};
use keyward_state::Rotation;

mod error;
mod file;
mod group;
mod parts;
mod path;
mod pepper;
mod plan;
mod resolve;
mod text;
mod value;

#[cfg(test)]
mod tests;

pub use error::{ConfigError, Position};
pub use group::{Group, GroupError};
pub use parts::read_pepper;
pub use path::{MAX_SOCKET_PATH, SocketPath, SocketPathError};
pub use value::{LogFormat, LogLevel, Portion, SocketMode};

/// The file that is read unless another is named.
pub const DEFAULT_FILE: &str = "/etc/keyward/keyward.toml";
/// Where clients connect by default.
pub const DEFAULT_SOCKET: &str = "/run/keyward/keyward.sock";
/// Where operators connect by default: beside [`DEFAULT_SOCKET`].
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/keyward/admin.sock";
/// Where buckets, revocations, usage and audit are kept by default, if that can be written to.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/keyward";

/// Largest file that is read, a hundred times what a long one has: a wrong path must not fill the memory.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most worker threads: more than the processors of any host that one socket can keep busy.
pub const MAX_WORKERS: u32 = 256;
/// Most connections: the kernel's default limit of descriptors is 2^20, and the daemon needs some itself.
pub const MAX_CONNECTIONS: u32 = 1_000_000;
/// Largest number of a user or a group: the kernel takes the one above as "none".
pub const MAX_ID: u32 = u32::MAX - 1;

/// Everything an operator decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file that was read; none where options are all there is.
    pub file: Option<PathBuf>,
    /// `[server]`
    pub server: Server,
    /// `[source]`
    pub source: Source,
    /// `[keys]`
    pub keys: Keys,
    /// `[plans.NAME]`, and `keys.default_plan`.
    pub plans: Arc<Plans>,
    /// `[state]`: how often balances are saved, at least 100 ms apart.
    pub save_interval: Duration,
    /// `[state]`: whether the keys in force are kept for the next start.
    pub keep_snapshot: bool,
    /// `[revocation]`: how long revocations outlive the source's agreement.
    pub revocation_retention: Retention,
    /// `[usage]`: how often usage is written, at least 100 ms apart, and how large `usage.jsonl` becomes.
    pub usage: usage::UsagePolicy,
    /// `[audit]`: how large `audit.jsonl` becomes.
    pub audit: Rotation,
    /// `[log]`
    pub log: Log,
}

/// `[server]`: the sockets, and who may use them how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where clients connect.
    pub socket: SocketPath,
    /// The verify socket's permission bits.
    pub socket_mode: SocketMode,
    /// The verify socket's group; the daemon's own without one.
    pub socket_group: Option<Group>,
    /// Where operators connect; never the same path as `socket`.
    pub admin_socket: SocketPath,
    /// Where the daemon keeps what has to outlive it.
    pub state_dir: PathBuf,
    /// Whether somebody chose `state_dir`, so that the daemon must not go without it.
    pub state_dir_is_chosen: bool,
    /// Worker threads, `1..=`[`MAX_WORKERS`]; by default one for each processor that the daemon may use.
    pub workers: usize,
    /// How long a connection that has been answered looks for the next request before it sleeps, at most a millisecond; zero
    /// for not at all.
    pub busy_poll: Duration,
    /// Whether to ask the system for huge pages for the keys and their buckets.
    pub huge_pages: bool,
    /// Most connections at a time, `1..=`[`MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// How long a connection may be silent before it is closed, at least a second; `None` for ever.
    pub idle_timeout: Option<Duration>,
    /// How long requests that have been received may take to be answered once the daemon is told to stop;
    /// zero for not at all.
    pub drain_timeout: Duration,
    /// Who may send requests, beyond the socket's permissions.
    pub clients: Clients,
    /// Who may use the admin socket besides root and the daemon's own user, sorted.
    pub admin_uids: Box<[u32]>,
}

/// Users and groups whose processes may send requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    uids: Box<[u32]>,
    gids: Box<[u32]>,
}

/// `[source]`: where the keys come from, and which changes to believe.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The exported file. Relative only if the command line said so.
    pub path: PathBuf,
    /// How it is written.
    pub format: Format,
    /// How often to look for a change that the watcher missed, at least 100 ms.
    pub poll: Duration,
    /// How long a changed file must hold still before it is read; at most a minute, zero for not at all.
    pub settle: Duration,
    /// The largest portion of the working keys that one reload may stop.
    pub max_shrink: Portion,
    /// The largest portion of the revoked, disabled or expired keys that one reload may let work again.
    pub max_reactivated: Portion,
    /// The largest portion of the keys with a restriction that one reload may take it from.
    pub max_loosened: Portion,
    /// What is done about a row that cannot be understood.
    pub on_bad_row: BadRowPolicy,
    /// Whether a source that is refused for such rows still takes access away.
    pub apply_takeaways_of_refused: bool,
    /// The age past which keys are not served (STALE_SNAPSHOT), counted from when their file was last written; `None` for
    /// never. Longer than `poll`.
    pub max_staleness: Option<Duration>,
    /// Which column holds which field.
    pub mapping: ColumnMapping,
}

/// `[keys]`: what is known about the keys' form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// What the keys that keyward minted begin with: a key that begins so and has a wrong checksum is refused
    /// without a look-up. Without duplicates.
    pub minted_prefixes: Vec<Prefix>,
    /// Where the secret is that keys are hashed with.
    pub pepper_file: Option<PathBuf>,
    /// Where the one before it is, while there are rows that were hashed with that.
    pub previous_pepper_file: Option<PathBuf>,
}

/// `[log]`: what is said on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [log]")]
pub struct Log {
    /// How much.
    pub level: LogLevel,
    /// For whom.
    pub format: LogFormat,
}

/// Command line options that take the place of settings. A relative path is relative to the working
/// directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--source`, for `source.path`. Its extension tells the format; `source.format` only where it does not.
    pub source: Option<PathBuf>,
    /// `--socket`, for `server.socket`.
    pub socket: Option<PathBuf>,
    /// `--admin-socket`, for `server.admin_socket`.
    pub admin_socket: Option<PathBuf>,
    /// `--state-dir`, for `server.state_dir`.
    pub state_dir: Option<PathBuf>,
}

impl Config {
    /// Reads `file`, or where none is named [`DEFAULT_FILE`] if it exists, and puts `overrides` over it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::load_or(file, Path::new(DEFAULT_FILE), overrides)
    }

    /// The state directory of the daemon that is started with `file`, or with `option` for `--state-dir`. The daemon's
    /// source may be an option of its own, so that none is missed here.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn state_dir(file: Option<&Path>, option: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
        let any_source = Some(PathBuf::from("keys.csv"));
        let overrides = Overrides { source: any_source, state_dir: option, ..Overrides::default() };
        Ok(Self::load(file, overrides)?.server.state_dir)
    }

    /// The configuration of a daemon without a file: the defaults, and `overrides` over them.
    ///
    /// # Errors
    /// [`ConfigError::NoSource`] without a source, [`ConfigError::Option`] for a path that cannot be used.
    pub fn from_options(overrides: Overrides) -> Result<Self, ConfigError> {
        resolve::resolve(None, file::File::default(), overrides)
    }

    /// As [`load`](Self::load), from a text; errors name `file`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(file: &Path, text: &str, overrides: Overrides) -> Result<Self, ConfigError> {
        let document = toml::Deserializer::parse(text)
            .map_err(|error| ConfigError::in_text(file.to_owned(), text, None, &error))?;
        let settings = serde_path_to_error::deserialize(document).map_err(|error| {
            let setting = Some(error.path().to_string()).filter(|path| path != ".");
            ConfigError::in_text(file.to_owned(), text, setting, error.inner())
        })?;
        resolve::resolve(Some(file), settings, overrides)
    }

    fn load_or(file: Option<&Path>, default: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        match read(file.unwrap_or(default)) {
            Ok(text) => Self::parse(file.unwrap_or(default), &text, overrides),
            Err(ConfigError::Unreadable { source, .. })
                if file.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
            {
                Self::from_options(overrides)
            }
            Err(error) => Err(error),
        }
    }
}

impl Clients {
    /// Whether a process of this user and primary group may send requests: if its user or its group is
    /// listed, or nothing is.
    pub fn admit(&self, uid: u32, gid: u32) -> bool {
        let everyone = self.uids.is_empty() && self.gids.is_empty();
        everyone || self.uids.binary_search(&uid).is_ok() || self.gids.binary_search(&gid).is_ok()
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { file: file.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| ConfigError::Setting {
        file: file.to_owned(),
        position: Some(Position::of(error.as_bytes(), error.utf8_error().valid_up_to())),
        setting: None,
        problem: "this byte is not UTF-8: save the file as UTF-8".to_owned(),
    })
}
