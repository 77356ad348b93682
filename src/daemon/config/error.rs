//! What is wrong with a configuration, where, and what to do about it.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::{DEFAULT_FILE, MAX_FILE_BYTES};

/// Why a configuration was refused. The text is one line and names the file, the place in it and the setting,
/// or the command line option.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be opened or read.
    #[error("{}: {}", file.display(), unreadable(source))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("{}: is larger than {MAX_FILE_BYTES} bytes: is it the configuration?", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// A setting in the file, or its syntax.
    #[error("{}{}: {}{problem}", file.display(), opt(position, ":"), after(setting.as_deref()))]
    Setting {
        /// The file.
        file: PathBuf,
        /// Where in the file, when it is known.
        position: Option<Position>,
        /// The setting's path, as in `server.idle_timeout`; `None` for the file's syntax.
        setting: Option<String>,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A secret, which cannot be read or could be read by others.
    #[error("{}: the pepper: {problem}", file.display())]
    Pepper {
        /// The file that should hold it.
        file: PathBuf,
        /// What is wrong and what to do.
        problem: String,
        /// Whether all that is wrong is that this user may not read it; the daemon's may.
        forbidden: bool,
    },
    /// A command line option.
    #[error("{option}: {problem}")]
    Option {
        /// The option, as in `--socket`.
        option: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Neither the file nor the command line says where the keys come from.
    #[error("no source of keys: give --source PATH, or set source.path in {}", source_file(file))]
    NoSource {
        /// The file that was read, if any.
        file: Option<PathBuf>,
    },
}

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
}

impl Position {
    /// Where byte `offset` of `text` is; the end for an offset beyond it.
    pub(super) fn of(text: &[u8], offset: usize) -> Self {
        let before = &text[..offset.min(text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Self { line, column: 1 + String::from_utf8_lossy(&before[line_start..]).chars().count() }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl ConfigError {
    /// Where in the file it is, if that is known.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Setting { position, .. } => *position,
            _ => None,
        }
    }

    /// An error of the TOML reader, placed. Its own text is left out, because it repeats the line, which may
    /// hold a password.
    pub(super) fn in_text(
        file: PathBuf,
        text: &str,
        setting: Option<String>,
        error: &toml::de::Error,
    ) -> Self {
        let position = error.span().map(|Range { start, .. }| Position::of(text.as_bytes(), start));
        Self::Setting { file, position, setting, problem: error.message().replace('\n', ", ") }
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file: create it, or name another with --config".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "may not be read: let the daemon's user or group read it".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    }
}

fn opt(position: &Option<Position>, before: &str) -> String {
    position.map(|position| format!("{before}{position}")).unwrap_or_default()
}

fn after(setting: Option<&str>) -> String {
    setting.map(|setting| format!("{setting}: ")).unwrap_or_default()
}

fn source_file(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(|| DEFAULT_FILE.to_owned(), |file| file.display().to_string())
}
