//! The header of an export that rows are to be appended to: a row of other columns would put its texts in the wrong places, and
//! where there are as many of them, nobody would notice.

use std::fs::File;
use std::path::Path;

use super::row::Row;
use crate::cli::exit::{Exit, Failure};
use keyward_engine::record::Quoted;
use keyward_source::{self as source, Field, Format};

/// Which field each column holds, if it holds one.
pub(super) struct Header {
    pub(super) path: String,
    /// The option that named it.
    option: &'static str,
    pub(super) columns: Vec<Option<Field>>,
}

impl Header {
    /// A column for each field.
    pub(super) fn of_all_fields(path: String, option: &'static str) -> Self {
        Self { path, option, columns: Field::ALL.map(Some).into() }
    }

    /// Reads that of the file at `path`, which `option` named.
    pub(super) fn read(path: &Path, option: &'static str) -> Result<Self, Failure> {
        // A path that may be a key, given in the wrong place, is not repeated.
        let name = match path.to_str() {
            Some(name) if !Quoted(name).may_be_key() => name,
            _ => "it",
        };
        let refused = |message: String| Failure::new(Exit::Usage, format_args!("{option}: {message}"));
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

    /// Whatever the row has must have its place.
    pub(super) fn refuse_missing(&self, row: &Row<'_>) -> Result<(), Failure> {
        match row.fields().find(|(field, _)| !self.columns.contains(&Some(*field))) {
            Some((field, _)) => Err(Failure::new(
                Exit::Usage,
                format_args!("{}: {} has no column {} in its header", self.option, self.path, field.name()),
            )),
            None => Ok(()),
        }
    }
}
