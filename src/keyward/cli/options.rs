//! Options that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};

use super::exit::{CliError, Exit};
use keyward_daemon::config::{DEFAULT_SOCKET, SocketPath};

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

/// The socket for requests.
#[derive(Debug, Args)]
pub(super) struct VerifySocket {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", env = "KEYWARD_SOCKET", hide_env_values = true,
          default_value = DEFAULT_SOCKET, value_parser = socket_path())]
    pub(super) socket: SocketPath,
}

/// The socket for operators.
#[derive(Debug, Args)]
pub(super) struct AdminSocket {
    /// The daemon's admin socket [default: admin.sock beside --socket]
    #[arg(long, value_name = "PATH", env = "KEYWARD_ADMIN_SOCKET", hide_env_values = true,
          value_parser = socket_path())]
    admin_socket: Option<SocketPath>,

    #[command(flatten)]
    verify: VerifySocket,
}

impl AdminSocket {
    pub(super) fn path(&self) -> Result<SocketPath, CliError> {
        match &self.admin_socket {
            Some(path) => Ok(path.clone()),
            None => self.verify.socket.admin_beside().map_err(|error| {
                CliError::new(Exit::Usage, format_args!("--socket: no admin.sock beside it: {error}"))
            }),
        }
    }
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
    use std::path::Path;

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
}
