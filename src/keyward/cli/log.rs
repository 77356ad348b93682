//! Sets up the log of the daemon.

use std::io;

use keyward_daemon::config::{self, LogFormat};
use keyward_daemon::log::Log;
use tracing::Level;
use tracing_subscriber::EnvFilter;

/// Sets up tracing to write to `log` as configured. To be called once.
///
/// # Errors
/// When the process logs already.
pub(super) fn start(settings: config::Log, log: &Log) -> io::Result<()> {
    // No colours, regardless of the features that other crates enable. Errors of the formatter
    // would be written to standard error and bypass the queue.
    let level = Level::from(settings.level);
    // At TRACE, `notify` logs every event in a watched directory: a log written there would grow by
    // itself.
    let filter = EnvFilter::new(format!("{level},notify={}", level.min(Level::DEBUG)));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log.clone())
        .log_internal_errors(false)
        .with_ansi(false);
    match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(io::Error::other)
}
