//! Where keys come from.

use std::path::Path;
use std::sync::Arc;

use crate::reload::bad_rows::BadRowPolicy;
use keyward_engine::record::Plans;
use keyward_source::{ColumnMapping, Format};

/// A file with keys, and how to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFile {
    /// The path of the file.
    pub path: Box<Path>,
    /// The format of the file.
    pub format: Format,
    /// The names of its columns.
    pub mapping: ColumnMapping,
    /// The plans that its rows may name.
    pub plans: Arc<Plans>,
    /// What a bad row does.
    pub on_bad_row: BadRowPolicy,
}
