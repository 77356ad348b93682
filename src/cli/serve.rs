//! `keyward serve`: the daemon.

use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use super::log;
use super::options::Origin;
use crate::config::{Config, Overrides};
use crate::server::StartError;

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
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let config = self.load()?;
        log::start(config.log)?;
        let (file, overrides) = (self.origin.config.clone(), self.overrides());
        let again = Box::new(move || Config::load(file.as_deref(), overrides.clone()));
        match crate::server::run(&config, again) {
            Ok(()) => Ok(Exit::Done),
            Err(StartError::Config(error)) => Err(error.into()),
            // Starting again does not help.
            Err(StartError::Revocations(error)) if error.is_about_content() => {
                Err(Failure::new(Exit::BadInput, error))
            }
            Err(error) => Err(Failure::new(Exit::Denied, error)),
        }
    }

    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.origin.config.as_deref(), self.overrides())?)
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            source: self.origin.source.clone(),
            socket: self.socket.clone(),
            admin_socket: self.admin_socket.clone(),
            state_dir: self.state_dir.clone(),
        }
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
        let config =
            serve(&["--config", file, "--source", "b.jsonl", "--state-dir", "s"]).load().expect("good");
        assert_eq!(config.source.path, Path::new("b.jsonl"));
        assert_eq!(config.server.socket.as_path(), Path::new("/a.sock"));
        assert_eq!(config.server.state_dir, Path::new("s"));
        let options = ["--config", file, "--socket", "/c/k.sock", "--admin-socket", "/d.sock"];
        let config = serve(&options).load().expect("good");
        assert_eq!(config.server.socket.as_path(), Path::new("/c/k.sock"));
        assert_eq!(config.server.admin_socket.as_path(), Path::new("/d.sock"));
    }

    #[test]
    fn a_wrong_configuration_is_bad_input() {
        let failure = serve(&["--config", "missing.toml"]).load().expect_err("missing");
        assert_eq!(failure.exit, Exit::BadInput);
    }
}
