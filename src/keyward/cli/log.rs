//! Sets up the log of a service.

use std::io;

use keyward_engine::record::{Printable, escape_json};
use keyward_service::log::Log;
use keyward_settings::{self as settings, LogFormat};
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Escapes invisible characters: a line of the log may contain a text of a file that nothing has
/// quoted, and a terminal would obey it.
#[derive(Clone)]
struct EscapingWriter {
    log: Log,
    format: LogFormat,
}

impl io::Write for EscapingWriter {
    /// Writes a whole line: the subscriber formats it first.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let escaped = match self.format {
            LogFormat::Text => Printable(&text).to_string(),
            LogFormat::Json => escape_json(&text),
        };
        // Its writer also captures the log's own report of dropped lines.
        self.log.make_writer().write_all(escaped.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for EscapingWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Sets up tracing to write to `log` as configured. To be called once.
///
/// # Errors
/// When the process logs already.
pub(super) fn start(settings: settings::Log, log: &Log) -> io::Result<()> {
    // No colours, regardless of the features that other crates enable. Errors of the formatter
    // would be written to standard error and bypass the queue.
    let level = Level::from(settings.level);
    // At TRACE, `notify` logs every event in a watched directory: a log written there would grow by
    // itself.
    let filter = Targets::new().with_default(level).with_target("notify", level.min(Level::DEBUG));
    let writer = EscapingWriter { log: log.clone(), format: settings.format };
    let layer =
        tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false).with_ansi(false);
    let registry = tracing_subscriber::registry();
    match settings.format {
        LogFormat::Text => registry.with(layer.with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_filter(filter)).try_init(),
    }
    .map_err(io::Error::other)
}
