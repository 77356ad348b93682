//! `keyward http`: the companion for HTTP gateways.

use std::io::stderr;
use std::path::PathBuf;

use clap::Args;

use super::exit::{CliError, Exit};
use super::streams::Streams;
use keyward_http::companion::{self, RunError, Signals};
use keyward_http::config::Config;
use keyward_http::endpoint::EndpointError;
use keyward_memory::wipe_freed_memory;
use keyward_service::log::{FLUSH_TIMEOUT, Log};
use keyward_service::passed_sockets;

const HELP: &str = "\
It asks the daemon, which has to run on this host, and keeps nothing: it can be restarted at any time.
SIGTERM drains and stops.

Example:
  keyward http --config http.toml --check
  keyward http --config http.toml";

/// Answer the authorization subrequests of HTTP gateways
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Http {
    /// Configuration file [default: /etc/keyward/http.toml]
    #[arg(long, value_name = "FILE", env = "KEYWARD_HTTP_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Validate the configuration, and do not serve
    #[arg(long)]
    check: bool,
}

impl Http {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let config = Config::load(self.config.as_deref()).map_err(bad_input)?;
        if self.check {
            let names: Vec<&str> = config.gateways.iter().map(|gateway| gateway.name.as_str()).collect();
            streams.note(format_args!("the configuration is valid; gateways: {}", names.join(", ")));
            return Ok(Exit::Done);
        }
        // The buffers of hyper and tonic have keys in them, and are freed without being wiped.
        wipe_freed_memory();
        let os_error = |error| CliError::new(Exit::Denied, format_args!("cannot start: {error}"));
        let signals = Signals::catch().map_err(os_error)?;
        let log = Log::start(stderr()).map_err(os_error)?;
        log.catch_panics();
        super::log::start(config.log, &log).map_err(os_error)?;
        let passed = passed_sockets::take().map_err(|error| {
            bad_input(format_args!("LISTEN_FDS does not describe sockets as systemd passes them: {error}"))
        });
        let result =
            passed.and_then(|passed| companion::run(config, passed, signals).map_err(CliError::from));
        let exit = match result {
            Ok(()) => Exit::Done,
            Err(CliError { exit, message }) => {
                log.write(format!("keyward: {message}\n").as_bytes());
                exit
            }
        };
        log.flush(FLUSH_TIMEOUT);
        Ok(exit)
    }
}

fn bad_input(error: impl std::fmt::Display) -> CliError {
    CliError::new(Exit::BadInput, format_args!("{error}"))
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Endpoint(EndpointError::Passed { .. }) => bad_input(error),
            RunError::Endpoint(EndpointError::Unix(_) | EndpointError::Tcp { .. }) | RunError::Os { .. } => {
                Self::new(Exit::Denied, format_args!("{error}"))
            }
        }
    }
}
