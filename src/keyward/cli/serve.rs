//! `keyward serve`: the daemon.

use std::io::{self, stderr};
use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::Origin;
use keyward_daemon::config::{Config, ConfigError, Overrides};
use keyward_daemon::log::{FLUSH_TIMEOUT, Log};
use keyward_daemon::server::{Signals, StartError};

const HELP: &str = "\
A path that is given here is relative to the working directory; one in the configuration file is absolute.
Without a configuration file, --source is enough.

SIGHUP reloads the source, SIGTERM drains and stops. A change of the file is noticed by itself.

Example:
  keyward serve --source keys.csv --socket /tmp/keyward.sock --state-dir /tmp/keyward";

/// Run the daemon in the foreground
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Serve {
    #[command(flatten)]
    origin: Origin,

    /// Socket to answer at; overrides server.socket [default: /run/keyward/keyward.sock]
    #[arg(long, value_name = "PATH", env = "KEYWARD_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,

    /// Socket to take orders at; overrides server.admin_socket [default: admin.sock beside --socket]
    #[arg(long, value_name = "PATH", env = "KEYWARD_ADMIN_SOCKET", hide_env_values = true)]
    admin_socket: Option<PathBuf>,

    /// Where what has to outlive the daemon is kept; overrides server.state_dir [default: /var/lib/keyward]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Serve {
    /// Runs the daemon. `signals` have been caught from the beginning.
    pub(super) fn run(&self, signals: io::Result<Signals>) -> Result<Exit, Failure> {
        let system = |error| Failure::new(Exit::Denied, format_args!("cannot start the daemon: {error}"));
        let signals = signals.map_err(system)?;
        let log = Log::start(stderr()).map_err(system)?;
        log.catch_panics();
        let configuration = Box::new(self.configuration());
        let exit = match keyward_daemon::server::run(signals, &log, configuration, super::log::start) {
            Ok(()) => Exit::Done,
            Err(error) => {
                // Behind what has been logged, and without waiting for standard error.
                let Failure { exit, message } = error.into();
                log.write(format!("keyward: {message}\n").as_bytes());
                exit
            }
        };
        log.flush(FLUSH_TIMEOUT);
        Ok(exit)
    }

    /// Reads the configuration.
    fn configuration(&self) -> impl Fn() -> Result<Config, ConfigError> + Send + use<> {
        let file = self.origin.config.clone();
        let overrides = Overrides {
            source: self.origin.source.clone(),
            socket: self.socket.clone(),
            admin_socket: self.admin_socket.clone(),
            state_dir: self.state_dir.clone(),
        };
        move || Config::load(file.as_deref(), overrides.clone())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::Config(_) | StartError::Sockets(_) => Exit::BadInput,
            // Starting again does not help.
            StartError::Revocations(error) if error.is_about_content() => Exit::BadInput,
            _ => Exit::Denied,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

    fn serve(arguments: &[&str]) -> Serve {
        match parse(&[&["serve"], arguments].concat()) {
            Ok(Command::Serve(serve)) => serve,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_override_the_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("keyward.toml");
        std::fs::write(&file, "source.path = '/a.csv'\nserver.socket = '/a.sock'\n").expect("writes");
        let file = file.to_str().expect("UTF-8");
        let config = serve(&["--config", file, "--source", "b.jsonl", "--state-dir", "s"]).configuration()()
            .expect("good");
        assert_eq!(config.source.path, Path::new("b.jsonl"));
        assert_eq!(config.server.socket.as_path(), Path::new("/a.sock"));
        assert_eq!(config.server.state_dir, Path::new("s"));
        let options = ["--config", file, "--socket", "/c/k.sock", "--admin-socket", "/d.sock"];
        let config = serve(&options).configuration()().expect("good");
        assert_eq!(config.server.socket.as_path(), Path::new("/c/k.sock"));
        assert_eq!(config.server.admin_socket.as_path(), Path::new("/d.sock"));
    }

    #[test]
    fn a_wrong_configuration_is_bad_input() {
        let error = serve(&["--config", "missing.toml"]).configuration()().expect_err("missing");
        assert_eq!(Failure::from(StartError::from(error)).exit, Exit::BadInput);
    }
}
