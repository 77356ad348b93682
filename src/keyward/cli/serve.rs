//! `keyward serve`: the daemon.

use std::io::{self, stderr};
use std::path::PathBuf;

use clap::Args;

use super::exit::{CliError, Exit};
use super::options::ConfigOptions;
use keyward_daemon::config::{Config, ConfigError, Overrides};
use keyward_daemon::server::{Signals, StartError};
use keyward_service::log::{FLUSH_TIMEOUT, Log};

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
    config: ConfigOptions,

    /// Socket to answer at; overrides server.socket [default: /run/keyward/keyward.sock]
    #[arg(long, value_name = "PATH", env = "KEYWARD_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,

    /// Socket for operators; overrides server.admin_socket [default: admin.sock beside --socket]
    #[arg(long, value_name = "PATH", env = "KEYWARD_ADMIN_SOCKET", hide_env_values = true)]
    admin_socket: Option<PathBuf>,

    /// Directory for the state that outlives the daemon; overrides server.state_dir [default:
    /// /var/lib/keyward]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Serve {
    /// Runs the daemon. `signals` were caught at the beginning of the process.
    pub(super) fn run(&self, signals: io::Result<Signals>) -> Result<Exit, CliError> {
        let os_error = |error| CliError::new(Exit::Denied, format_args!("cannot start the daemon: {error}"));
        let signals = signals.map_err(os_error)?;
        let log = Log::start(stderr()).map_err(os_error)?;
        log.catch_panics();
        let load_config = Box::new(self.load_config());
        let exit = match keyward_daemon::server::run(signals, &log, load_config, super::log::start) {
            Ok(()) => Exit::Done,
            Err(error) => {
                // Through the log, which does not wait for standard error and keeps the order of
                // the lines.
                let CliError { exit, message } = error.into();
                log.write(format!("keyward: {message}\n").as_bytes());
                exit
            }
        };
        log.flush(FLUSH_TIMEOUT);
        Ok(exit)
    }

    /// A function that reads the configuration.
    fn load_config(&self) -> impl Fn() -> Result<Config, ConfigError> + Send + use<> {
        let file = self.config.config.clone();
        let overrides = Overrides {
            source: self.config.source.clone(),
            socket: self.socket.clone(),
            admin_socket: self.admin_socket.clone(),
            state_dir: self.state_dir.clone(),
        };
        move || Config::load(file.as_deref(), overrides.clone())
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::Config(_) | StartError::Sockets(_) => Exit::BadInput,
            // A restart does not help.
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
        let config = serve(&["--config", file, "--source", "b.jsonl", "--state-dir", "s"]).load_config()()
            .expect("good");
        assert_eq!(config.source.path, Path::new("b.jsonl"));
        assert_eq!(config.server.socket.as_path(), Path::new("/a.sock"));
        assert_eq!(config.server.state_dir, Path::new("s"));
        let options = ["--config", file, "--socket", "/c/k.sock", "--admin-socket", "/d.sock"];
        let config = serve(&options).load_config()().expect("good");
        assert_eq!(config.server.socket.as_path(), Path::new("/c/k.sock"));
        assert_eq!(config.server.admin_socket.as_path(), Path::new("/d.sock"));
    }

    #[test]
    fn invalid_configuration_is_bad_input() {
        let error = serve(&["--config", "missing.toml"]).load_config()().expect_err("missing");
        assert_eq!(CliError::from(StartError::from(error)).exit, Exit::BadInput);
    }
}
