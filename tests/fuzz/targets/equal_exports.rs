//! The same rows as CSV and as JSON Lines.
//!
//! Both formats give the same records, and refuse the same rows.
//!
//! The input chooses the texts of the fields: typical ones, and its own bytes.

use keyward_engine::record::{Field, KeyRecord};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};

use super::Outcome;
use crate::input::Input;

/// Most rows of an export.
const MAX_ROWS: usize = 6;

/// Longest text of the input's own: longer than any field but the metadata may be.
const MAX_TEXT: usize = 160;

/// Texts that a field accepts, or that come close to one.
const TEXTS: [&str; 40] = [
    "",
    "NULL",
    "\\N",
    "null",
    " ",
    "a",
    "acme",
    "live",
    "Müller, \"Söhne\"",
    "active",
    "disabled",
    "revoked",
    "REVOKED",
    "2026-11-21T10:00:00Z",
    "2026-11-21 10:00:00+00",
    "1795255201",
    "0",
    "20270401",
    "99999999999",
    "orders:read orders:*",
    "{orders:read,\"users:write\"}",
    "[\"orders:read\",\"users:write\"]",
    "{}",
    "[]",
    "[",
    "10.0.0.0/8, ::1",
    "10.0.0.1/8",
    "{10.0.0.0/8,NULL}",
    "https://*.example.com",
    "https://app.example.com https://b.example",
    "null-origin",
    "100/s",
    "requests=100/s burst 200; daily=10000/d",
    "1/30d",
    "100/s; 100/s",
    "{\"team\":\"ä\"}",
    "{\"a\":1",
    "line\nbreak",
    "tab\tand\rreturn",
    "\u{feff}mark",
];

type Row = [String; Field::COUNT];

pub(crate) fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let mut rows = Vec::new();
    while !input.is_empty() && rows.len() < MAX_ROWS {
        rows.push(row(&mut input, rows.len()));
    }
    let csv = read_export(&csv(&rows), Format::Csv);
    let jsonl = read_export(&jsonl(&rows), Format::JsonLines);
    assert_eq!(csv.records, jsonl.records, "{rows:?}\n{}\n{}", csv.diagnostics, jsonl.diagnostics);
    assert_eq!((csv.rows, csv.bad_rows), (jsonl.rows, jsonl.bad_rows));
    assert_eq!(csv.rows, rows.len() as u64);
    Outcome::accepted_if(!csv.records.is_empty())
}

fn row(input: &mut Input<'_>, number: usize) -> Row {
    std::array::from_fn(|field| match input.byte() {
        // Most rows need a digest and an id to be accepted.
        0..=200 if field == Field::KeyHash as usize => format!("{:064x}", number + 1),
        0..=200 if field == Field::KeyId as usize => format!("k{number}"),
        0..=100 => String::new(),
        101..=220 => input.choose(&TEXTS).to_owned(),
        _ => {
            let length = usize::from(input.byte()) % MAX_TEXT;
            String::from_utf8_lossy(input.take(length)).into_owned()
        }
    })
}

/// The result of [`read`]. Lines differ between the formats.
struct ReadExport {
    rows: u64,
    records: Vec<String>,
    bad_rows: u64,
    diagnostics: Diagnostics,
}

fn read_export(text: &str, format: Format) -> ReadExport {
    let mut records = Vec::new();
    let mut diagnostics = Diagnostics::new("keys").retaining_bad_rows(MAX_ROWS);
    let mut sink = |_: u64, record: &KeyRecord<'_>| {
        records.push(format!("{record:?}"));
        Ok(())
    };
    let mapping = ColumnMapping::default();
    let rows = read(text.as_bytes(), format, &mapping, &mut sink, &mut diagnostics).expect("a slice");
    ReadExport { rows, records, bad_rows: diagnostics.bad_row_count(), diagnostics }
}

fn csv(rows: &[Row]) -> String {
    let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
    let mut text = names.join(",") + "\n";
    for row in rows {
        let quoted: Vec<String> =
            row.iter().map(|text| format!("\"{}\"", text.replace('"', "\"\""))).collect();
        text += &(quoted.join(",") + "\n");
    }
    text
}

fn jsonl(rows: &[Row]) -> String {
    let mut lines = String::new();
    for row in rows {
        let fields = Field::ALL.iter().zip(row);
        let object: serde_json::Map<String, serde_json::Value> =
            fields.map(|(field, text)| (field.name().to_owned(), text.as_str().into())).collect();
        lines += &(serde_json::Value::Object(object).to_string() + "\n");
    }
    if lines.is_empty() { "\n".to_owned() } else { lines }
}
