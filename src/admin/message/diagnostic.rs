//! Errors in the rows of a source.

use serde::{Deserialize, Serialize};

/// The errors in a source: the first of each kind, and their total number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// The number of errors.
    #[serde(rename = "total_findings")]
    pub total: u64,
    /// The first error of each kind.
    #[serde(rename = "findings")]
    pub first: Vec<Diagnostic>,
}

/// An error of one kind. The parts of the location that are not known are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The line where the first row with this error begins, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The column of a CSV file, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The name of the column or field, as it is in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The byte within the line, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byte: Option<usize>,
    /// What is wrong, and how to write it instead.
    pub message: String,
    /// The number of rows with this error, the first included.
    #[serde(default)]
    pub count: u64,
}
