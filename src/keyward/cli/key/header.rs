//! The header of a CSV export to which rows are appended. A row with other columns would put values
//! into the wrong fields, unnoticed if the number of columns is the same.

use std::fs::File;
use std::path::Path;

use crate::cli::exit::{CliError, Exit};
use keyward_engine::record::Quoted;
use keyward_source::{self as source, Field, Format};

/// The columns of an export, and the field that each contains.
pub(super) struct Header {
    pub(super) path: String,
    /// The option that named the file.
    option: &'static str,
    pub(super) columns: Vec<Option<Field>>,
}

impl Header {
    /// A header with a column for each field.
    pub(super) fn of_all_fields(path: String, option: &'static str) -> Self {
        Self { path, option, columns: Field::ALL.map(Some).into() }
    }

    /// Reads the header of the file at `path`, which `option` named.
    pub(super) fn read(path: &Path, option: &'static str) -> Result<Self, CliError> {
        // A path that looks like a key was probably given by mistake, and is not repeated.
        let name = match path.to_str() {
            Some(name) if !Quoted(name).may_be_key() => name,
            _ => "it",
        };
        let refused = |message: String| CliError::new(Exit::Usage, format_args!("{option}: {message}"));
        let file = File::open(path).map_err(|error| refused(format!("cannot open {name}: {error}")))?;
        let names =
            source::column_names(file).map_err(|error| refused(format!("cannot read {name}: {error}")))?;
        let is_json = names.first().is_some_and(|first| first.starts_with('{'));
        if is_json || matches!(Format::from_path(path), Ok(Format::JsonLines)) {
            return Err(refused(format!(
                "{name} looks like JSON Lines: use --json, and append what is in \"row\""
            )));
        }
        if names.is_empty() {
            return Err(refused(format!("{name} has no header (CSV)")));
        }
        let columns = names.iter().map(|name| Field::from_name(name)).collect();
        Ok(Self { path: name.to_owned(), option, columns })
    }

    /// Checks that there is a column for each of the fields.
    pub(super) fn check_fields(&self, mut fields: impl Iterator<Item = Field>) -> Result<(), CliError> {
        match fields.find(|field| !self.columns.contains(&Some(*field))) {
            Some(field) => Err(CliError::new(
                Exit::Usage,
                format_args!("{}: {} has no column {} in its header", self.option, self.path, field.name()),
            )),
            None => Ok(()),
        }
    }
}
