//! Errors in the configuration: what is wrong, where, and what to write instead.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::pepper_file::PepperFileError;
use super::{DEFAULT_FILE, MAX_FILE_BYTES};
use keyward_engine::record::{Escaped, Printable};

/// Why a configuration was refused. The message is one line that names the file, the position and
/// the setting, or the command line option.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be opened or read.
    #[error("{}: {}", file.display(), unreadable(source))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("{}: is larger than {MAX_FILE_BYTES} bytes: is it the configuration?", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// A setting or the syntax of the file is wrong.
    #[error("{}{}: {}{problem}", file.display(), position_suffix(position), setting_prefix(setting.as_deref()), problem = Printable(problem))]
    Setting {
        /// The file.
        file: PathBuf,
        /// The position in the file, if it is known.
        position: Option<Position>,
        /// The path of the setting, as in `server.idle_timeout`. `None`: the syntax is wrong.
        setting: Option<String>,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// A pepper cannot be read, or can be read by other users.
    #[error("{}: the pepper: {source}", file.display())]
    Pepper {
        /// The file that should contain it.
        file: PathBuf,
        /// What is wrong with the file.
        source: PepperFileError,
    },
    /// A command line option is wrong.
    #[error("{option}: {problem}")]
    Option {
        /// The option, as in `--socket`.
        option: &'static str,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// Neither the file nor the command line names a source.
    #[error("no source of keys: give --source PATH, or set source.path in {}", source_file(file))]
    NoSource {
        /// The file that was read, if any.
        file: Option<PathBuf>,
    },
}

/// A position in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
}

impl Position {
    /// The position of byte `offset` of `text`, or the end of the text for an offset beyond it.
    pub(super) fn of(text: &[u8], offset: usize) -> Self {
        let before = &text[..offset.min(text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let in_line = &before[line_start..];
        // Editors do not count a byte order mark, which only the first line can have.
        let mark = in_line.strip_prefix("\u{feff}".as_bytes()).filter(|_| line_start == 0);
        let in_line = mark.unwrap_or(in_line);
        Self { line, column: 1 + String::from_utf8_lossy(in_line).chars().count() }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl ConfigError {
    /// The position in the file, if it is known.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Setting { position, .. } => *position,
            _ => None,
        }
    }

    /// An error of the TOML parser with its position. Omits the parser's own display, because it
    /// quotes the line, which may contain a password.
    pub(super) fn from_toml(
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

fn position_suffix(position: &Option<Position>) -> String {
    position.map(|position| format!(":{position}")).unwrap_or_default()
}

fn setting_prefix(setting: Option<&str>) -> String {
    setting.map(|setting| format!("{}: ", Escaped(setting))).unwrap_or_default()
}

fn source_file(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(|| DEFAULT_FILE.to_owned(), |file| file.display().to_string())
}
