//! `[log]`.

use serde::Deserialize;

use crate::deserialize_text;
use crate::text::Text;

/// `[log]`: the log on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, [log]")]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// The format of a line.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text }
    }
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Problems that keep the service from working.
    Error,
    /// Problems that an operator should look at.
    Warn,
    /// Starts, reloads, revocations.
    Info,
    /// Details that help to find the cause of a problem.
    Debug,
    /// Everything.
    Trace,
}

impl Text for LogLevel {
    const EXPECTED: &'static str = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(format!("{text:?} is not a level: write {}", Self::EXPECTED)),
        }
    }
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// Plain text.
    Text,
    /// One JSON object in each line.
    Json,
}

impl Text for LogFormat {
    const EXPECTED: &'static str = "\"text\" or \"json\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a format: write \"text\" or \"json\"")),
        }
    }
}

deserialize_text!(LogLevel, LogFormat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_match_those_of_tracing() {
        let levels = ["error", "warn", "info", "debug", "trace"].map(LogLevel::parse);
        for level in levels {
            let level = level.expect("a level");
            assert_eq!(
                tracing::Level::from(level).to_string().to_lowercase(),
                format!("{level:?}").to_lowercase()
            );
        }
    }
}
