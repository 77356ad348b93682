//! Reading a configuration file, and what is wrong with one.

use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use keyward_engine::record::{Escaped, Printable};

/// Maximum size of a configuration file, a hundred times that of a long one. A wrong path must not
/// fill the memory.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a configuration file was refused. The message is one line that names the file, the position
/// and the setting.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
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
    fn of(text: &[u8], offset: usize) -> Self {
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

impl FileError {
    /// An error about a setting that depends on another one.
    pub fn setting(file: &Path, setting: impl Into<String>, problem: impl ToString) -> Self {
        Self::Setting {
            file: file.to_owned(),
            position: None,
            setting: Some(setting.into()),
            problem: problem.to_string(),
        }
    }

    /// The position in the file, if it is known.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Setting { position, .. } => *position,
            Self::Unreadable { .. } | Self::TooLarge { .. } => None,
        }
    }

    /// An error of the TOML parser with its position. Omits the parser's own display, because it
    /// quotes the line, which may contain a password.
    fn from_toml(file: &Path, text: &str, setting: Option<String>, error: &toml::de::Error) -> Self {
        let position = error.span().map(|Range { start, .. }| Position::of(text.as_bytes(), start));
        Self::Setting {
            file: file.to_owned(),
            position,
            setting,
            problem: error.message().replace('\n', ", "),
        }
    }
}

/// The text of a configuration file.
///
/// # Errors
/// When it cannot be read, is too large, or is not UTF-8.
pub fn read(file: &Path) -> Result<String, FileError> {
    let unreadable = |source| FileError::Unreadable { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::TooLarge { file: file.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| FileError::Setting {
        file: file.to_owned(),
        position: Some(Position::of(error.as_bytes(), error.utf8_error().valid_up_to())),
        setting: None,
        problem: "this byte is not UTF-8: save the file as UTF-8".to_owned(),
    })
}

/// The settings in `text`. Errors name `file`.
///
/// # Errors
/// When the syntax or a setting is wrong.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, FileError> {
    let document =
        toml::Deserializer::parse(text).map_err(|error| FileError::from_toml(file, text, None, &error))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let setting = Some(error.path().to_string()).filter(|path| path != ".");
        FileError::from_toml(file, text, setting, error.inner())
    })
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file: create it, or name another with --config".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "may not be read: let the user or the group of the service read it".to_owned()
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
