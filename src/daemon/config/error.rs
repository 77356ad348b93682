//! Errors in the configuration: what is wrong, where, and what to write instead.

use std::path::PathBuf;

use super::DEFAULT_FILE;
use super::pepper_file::PepperFileError;
use keyward_settings::file::{FileError, Position};

/// Why a configuration was refused. The message is one line that names the file, the position and
/// the setting, or the command line option.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or a setting in it, is wrong.
    #[error(transparent)]
    File(#[from] FileError),
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

impl ConfigError {
    /// The position in the file, if it is known.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::File(error) => error.position(),
            Self::Pepper { .. } | Self::Option { .. } | Self::NoSource { .. } => None,
        }
    }
}

fn source_file(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(|| DEFAULT_FILE.to_owned(), |file| file.display().to_string())
}
