//! Options that several commands share.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};

use super::exit::{CliError, Exit};
use keyward_daemon::config::{Config, DEFAULT_SOCKET};
use keyward_settings::SocketPath;

/// The configuration file and the source.
#[derive(Debug, Args)]
pub(super) struct ConfigOptions {
    /// Configuration file [default: /etc/keyward/keyward.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG", hide_env_values = true)]
    pub(super) config: Option<PathBuf>,

    /// Export with the keys, .csv or .jsonl, or what `keyward compile` made of one, .kwc; overrides
    /// source.path
    #[arg(long, value_name = "PATH")]
    pub(super) source: Option<PathBuf>,
}

/// The daemon that a command talks to: its socket for requests.
#[derive(Debug, Args)]
pub(super) struct VerifySocket {
    /// The daemon's configuration file, which names its socket
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// The daemon's socket; overrides the configuration's [default: /run/keyward/keyward.sock]
    #[arg(long, value_name = "PATH", env = "KEYWARD_SOCKET", hide_env_values = true,
          value_parser = socket_path())]
    socket: Option<SocketPath>,
}

impl VerifySocket {
    /// The socket, as `keyward serve` chooses it from these options.
    pub(super) fn path(&self) -> Result<SocketPath, CliError> {
        match (&self.socket, &self.config) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(file)) => Ok(daemon_config(file, None, "--socket")?.server.socket),
            (None, None) => default_socket(),
        }
    }
}

/// The daemon that a command talks to: its socket for operators.
#[derive(Debug, Args)]
pub(super) struct AdminSocket {
    /// The daemon's configuration file, which names its sockets
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    #[command(flatten)]
    sockets: SocketOptions,
}

impl AdminSocket {
    pub(super) fn path(&self) -> Result<SocketPath, CliError> {
        self.sockets.admin(self.config.as_deref())
    }
}

/// The sockets of a daemon, beside another option `--config`.
#[derive(Debug, Args)]
pub(super) struct SocketOptions {
    /// The daemon's admin socket; overrides the configuration's [default: admin.sock beside
    /// --socket]
    #[arg(long, value_name = "PATH", env = "KEYWARD_ADMIN_SOCKET", hide_env_values = true,
          value_parser = socket_path())]
    admin_socket: Option<SocketPath>,

    /// The daemon's socket; overrides the configuration's [default: /run/keyward/keyward.sock]
    #[arg(long, value_name = "PATH", env = "KEYWARD_SOCKET", hide_env_values = true,
          value_parser = socket_path())]
    socket: Option<SocketPath>,
}

impl SocketOptions {
    /// The socket and the admin socket that these options name.
    pub(super) fn paths(&self) -> [Option<PathBuf>; 2] {
        let path = |socket: &SocketPath| socket.as_path().to_path_buf();
        [self.socket.as_ref().map(path), self.admin_socket.as_ref().map(path)]
    }

    /// The admin socket, as `keyward serve` chooses it from these options and the configuration
    /// file `config`.
    pub(super) fn admin(&self, config: Option<&Path>) -> Result<SocketPath, CliError> {
        match (&self.admin_socket, config) {
            (Some(path), _) => return Ok(path.clone()),
            (None, Some(file)) => {
                return Ok(daemon_config(file, self.socket.as_ref(), "--admin-socket")?.server.admin_socket);
            }
            (None, None) => {}
        }
        let socket = self.socket.clone().map_or_else(default_socket, Ok)?;
        socket.admin_beside().map_err(|error| {
            CliError::new(Exit::Usage, format_args!("--socket: no admin.sock beside it: {error}"))
        })
    }
}

/// The configuration in `file`, with `socket` in place of the one that it names. `option` would make
/// it unnecessary.
fn daemon_config(file: &Path, socket: Option<&SocketPath>, option: &str) -> Result<Config, CliError> {
    let socket = socket.map(|socket| socket.as_path().to_path_buf());
    Config::load_without_source(file, socket).map_err(|error| {
        let message = format_args!(
            "{error}\nThe configuration was read for the daemon's socket: {option} names it without a configuration"
        );
        CliError::new(Exit::BadInput, message)
    })
}

fn default_socket() -> Result<SocketPath, CliError> {
    SocketPath::new(DEFAULT_SOCKET).map_err(|error| CliError::new(Exit::Usage, error))
}

/// Parses a duration longer than zero, as in `50ms` or `2s`. The error does not repeat the text,
/// which may be a key.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be longer than 0"),
        Ok(duration) => Ok(duration),
        Err(_) => Err("write a time such as 50ms or 2s"),
    }
}

fn socket_path() -> impl TypedValueParser<Value = SocketPath> {
    PathBufValueParser::new().try_map(SocketPath::new)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct TestCli {
        #[command(flatten)]
        admin: AdminSocket,
    }

    fn path(arguments: &[&str]) -> Result<SocketPath, String> {
        let cli = TestCli::try_parse_from(["keyward"].iter().chain(arguments)).map_err(|e| e.to_string())?;
        cli.admin.path().map_err(|failure| failure.message)
    }

    #[test]
    fn zero_duration_is_refused() {
        assert_eq!(parse_duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("0s"), Err("must be longer than 0"));
        assert!(parse_duration("soon").is_err());
    }

    #[test]
    fn admin_socket_is_beside_the_verify_socket_by_default() {
        let given = |arguments: &[&str]| path(arguments).expect("a path").as_path().to_owned();
        assert_eq!(given(&["--socket", "/tmp/k.sock"]), Path::new("/tmp/admin.sock"));
        assert_eq!(given(&["--socket", "/tmp/k.sock", "--admin-socket", "a.sock"]), Path::new("a.sock"));
        let long = format!("/{}/k", "d".repeat(104));
        assert!(path(&["--socket", &long]).expect_err("too long").starts_with("--socket: no admin.sock"));
        assert!(path(&["--socket", "/tmp/"]).expect_err("a directory").contains("names a directory"));
    }
    #[test]
    fn named_configuration_gives_the_sockets_unless_an_option_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("keyward.toml");
        let write = |text: &str| std::fs::write(&file, text).expect("writes");
        let config = file.to_str().expect("UTF-8");
        let given = |options: &[&str]| {
            let path = path(&[&["--config", config], options].concat()).expect("a path");
            path.as_path().display().to_string()
        };
        write("server.socket = '/a/k.sock'");
        assert_eq!(given(&[]), "/a/admin.sock");
        assert_eq!(given(&["--socket", "/b/k.sock"]), "/b/admin.sock");
        write("server.socket = '/a/k.sock'\nserver.admin_socket = '/c/a.sock'");
        assert_eq!(given(&[]), "/c/a.sock");
        // As `keyward serve` with the same options.
        assert_eq!(given(&["--socket", "/b/k.sock"]), "/c/a.sock");
        assert_eq!(given(&["--admin-socket", "/d.sock"]), "/d.sock");
        write("server.sockets = 1");
        assert_eq!(given(&["--admin-socket", "/d.sock"]), "/d.sock", "the file is not read");
        let error = path(&["--config", config]).expect_err("a wrong file");
        assert!(error.contains("sockets") && error.contains("--admin-socket names it"), "{error}");
    }
}
