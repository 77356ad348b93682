//! Sets up the log of the daemon.

use std::io;

use keyward_daemon::config::{self, LogFormat};
use keyward_daemon::log::Log;
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
    let filter = Targets::new().with_default(level).with_target("notify", level.min(Level::DEBUG));
    let layer =
        tracing_subscriber::fmt::layer().with_writer(log.clone()).log_internal_errors(false).with_ansi(false);
    let registry = tracing_subscriber::registry();
    match settings.format {
        LogFormat::Text => registry.with(layer.with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_filter(filter)).try_init(),
    }
    .map_err(io::Error::other)
}
