//! The daemon's log, on standard error.

use std::io::stderr;

use super::exit::{Exit, Failure};
use crate::config::{Log, LogFormat};

/// Starts logging as configured; to be called once.
pub(super) fn start(log: Log) -> Result<(), Failure> {
    // Whatever a crate that is built beside the daemon brings in: a log has no colours.
    let builder = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(log.level))
        .with_writer(stderr)
        .with_ansi(false);
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(Exit::Denied, format_args!("cannot start the log: {error}")))
}
