//! The formats of an export.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use keyward_engine::record::Quoted;

/// The format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values (RFC 4180) with a header line.
    Csv,
    /// One JSON object per line.
    JsonLines,
    /// A compiled snapshot, as `keyward compile` writes it. It is not text, and
    /// [`read`](crate::read) does not accept it.
    Compiled,
}

/// Why the format of an export is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The extension of the file is not that of a format.
    #[error("the extension of {} is not that of a format: expected .csv, .jsonl, .ndjson, .json or .kwc", Quoted(.0))]
    Path(String),
    /// The text is not the name of a format.
    #[error("{} is not a format: expected csv, jsonl, ndjson, json or compiled", Quoted(.0))]
    Name(String),
}

impl Format {
    /// The format of a file by its extension: `.csv`, `.jsonl`, `.ndjson`, `.json` or `.kwc`, in
    /// any case.
    ///
    /// # Errors
    /// If the file has another extension.
    pub fn from_path(path: &Path) -> Result<Self, FormatError> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Ok(Self::Csv),
            "jsonl" | "ndjson" | "json" => Ok(Self::JsonLines),
            "kwc" => Ok(Self::Compiled),
            _ => Err(FormatError::Path(path.file_name().unwrap_or_default().to_string_lossy().into_owned())),
        }
    }
}

/// Accepts `csv`, `compiled`, and `jsonl` or its other extensions, `ndjson` and `json`.
impl FromStr for Format {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        match name {
            "csv" => Ok(Self::Csv),
            "jsonl" | "ndjson" | "json" => Ok(Self::JsonLines),
            "compiled" => Ok(Self::Compiled),
            _ => Err(FormatError::Name(name.to_owned())),
        }
    }
}

/// Writes the name that [`FromStr`] accepts.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
            Self::Compiled => "compiled",
        })
    }
}
