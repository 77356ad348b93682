//! The form of the daemon's log.

use std::io;

use keyward_daemon::config::{self, LogFormat};
use keyward_daemon::log::Log;

/// Logs as configured, through `log`; to be called once.
///
/// # Errors
/// When this process logs already.
pub(super) fn start(settings: config::Log, log: &Log) -> io::Result<()> {
    // Whatever a crate that is built beside the daemon brings in: a log has no colours. Errors of the formatter would be
    // written to standard error, past the queue.
    let builder = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(settings.level))
        .with_writer(log.clone())
        .log_internal_errors(false)
        .with_ansi(false);
    match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(io::Error::other)
}
