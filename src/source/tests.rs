//! Reads whole exports. Both formats must agree, and a damaged export must yield records or
//! diagnostics.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

mod values;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const RAW_KEY: &str = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";

/// The result of [`read`]: the number of rows, the line and the record of each good row, and the
/// diagnostics.
struct Outcome {
    rows: u64,
    records: Vec<(u64, String)>,
    diagnostics: Diagnostics,
}

impl Outcome {
    fn lines(&self) -> Vec<u64> {
        self.records.iter().map(|(line, _)| *line).collect()
    }
}

fn read_from(input: impl Read, format: Format, mapping: &ColumnMapping) -> io::Result<Outcome> {
    let mut records = Vec::new();
    let mut diagnostics = Diagnostics::new("keys");
    let mut sink = |line: u64, record: &KeyRecord<'_>| {
        records.push((line, format!("{record:?}")));
        Ok(())
    };
    let rows = read(input, format, mapping, &mut sink, &mut diagnostics)?;
    Ok(Outcome { rows, records, diagnostics })
}

fn csv(text: impl AsRef<[u8]>) -> Outcome {
    read_from(text.as_ref(), Format::Csv, &ColumnMapping::default()).expect("a slice has no I/O errors")
}

fn jsonl(text: impl AsRef<[u8]>) -> Outcome {
    read_from(text.as_ref(), Format::JsonLines, &ColumnMapping::default()).expect("a slice has no I/O errors")
}

/// Two rows, at lines 2 and 4; the first spans two lines.
fn csv_example() -> String {
    format!(
        "key_id,key_hash,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,allowed_origins,\
         limits,metadata\r\n\
         k1,{A},\"Müller, \"\"Söhne\"\"\",live,pro,disabled,2026-11-21 10:00:00+00,1795255201,\
         \"orders:*\nusers:read\",10.0.0.0/8 ::1,https://*.example.com,requests=100/s burst 200; 5/10s,\
         \"{{\"\"a\"\": [1]}}\"\r\n\
         k2,\\x{B},,,,,,,,,,,\r\n"
    )
}

/// The same rows, at lines 1 and 3.
fn jsonl_example() -> String {
    format!(
        "{{\"key_id\":\"k1\",\"key_hash\":\"{A}\",\"owner\":\"Müller, \\\"S\\u00f6hne\\\"\",\
         \"environment\":\"live\",\"plan\":\"pro\",\"status\":\"disabled\",\"not_before\":\"2026-11-21T10:00:00Z\",\
         \"expires_at\":1795255201,\"scopes\":[\"orders:*\",\"users:read\"],\"allowed_ips\":\"10.0.0.0/8,::1\",\
         \"allowed_origins\":[\"https://*.example.com\"],\"limits\":\"requests=100/s burst 200; 5/10s\",\
         \"metadata\":{{\"a\": [1]}}}}\r\n\
         \r\n\
         {{ \"key_hash\" : \"\\\\x{B}\", \"owner\" : null, \"key_id\" : \"k2\" }}\n"
    )
}

#[test]
fn row_becomes_the_same_record_in_either_format() {
    let from_csv = csv(csv_example());
    assert_eq!(from_csv.diagnostics.to_string(), "");
    assert_eq!((from_csv.rows, from_csv.lines()), (2, vec![2, 4]));
    let digest = |byte: u8| format!("{:?}", [byte; 32]);
    assert_eq!(
        from_csv.records[1].1,
        format!(
            "KeyRecord {{ hash: {}, key_id: \"k2\", owner: \"\", environment: \"\", plan: \"\", status: Active, \
             not_before: 0, expires_at: 4294967295, scopes: [], allowed_ips: None, allowed_origins: None, limits: [], \
             metadata: \"\", present_fields: FieldSet(3) }}",
            digest(0xbb)
        )
    );
    let first = &from_csv.records[0].1;
    for part in [
        &format!(
            "hash: {}, key_id: \"k1\", owner: \"Müller, \\\"Söhne\\\"\", environment: \"live\"",
            digest(0xaa)
        ),
        "plan: \"pro\", status: Disabled, not_before: 1795255200, expires_at: 1795255201",
        "scopes: [\"orders:*\", \"users:read\"], allowed_ips: Some([10.0.0.0/8, ::1/128])",
        "prefix: \"https://\", suffix: \".example.com\"",
        "name: \"requests\", rule: Bucket { rate: Rate { period: 10000000, burst: 200",
        "name: \"default\", rule: Bucket { rate: Rate { period: 2000000000, burst: 5",
        "metadata: \"{\\\"a\\\": [1]}\", present_fields: FieldSet(8191) }",
    ] {
        assert!(first.contains(part), "{part} in {first}");
    }

    let from_jsonl = jsonl(jsonl_example());
    assert_eq!(from_jsonl.diagnostics.to_string(), "");
    assert_eq!((from_jsonl.rows, from_jsonl.lines()), (2, vec![1, 3]));
    for (csv, jsonl) in from_csv.records.iter().zip(&from_jsonl.records) {
        assert_eq!(csv.1, jsonl.1);
    }
}

#[test]
fn line_ends_byte_order_mark_and_blank_lines_do_not_matter() {
    let expected = csv(csv_example()).records;
    let unix = csv_example().replace("\r\n", "\n");
    assert_eq!(csv(&unix).records, expected);
    assert_eq!(csv(format!("\u{feff}{unix}")).records, expected);
    let blank = csv(format!("\n\r\n{}\n\n", unix.replace("\nk2", "\n\n\nk2")));
    assert_eq!((blank.diagnostics.total(), blank.lines()), (0, vec![4, 8]));
    assert_eq!(csv(format!("\u{feff}\u{feff}{unix}")).records, [], "the second is not the file's");
    let marked = jsonl(format!("\u{feff}{}", jsonl_example()));
    assert_eq!(marked.records, jsonl(jsonl_example()).records);
}

/// Yields one byte at a time, with an interruption before each.
struct Dripping<'a>(&'a [u8], bool);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buffer.len().min(1);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn result_does_not_depend_on_the_size_of_reads() {
    for (text, format) in [(csv_example(), Format::Csv), (jsonl_example(), Format::JsonLines)] {
        let text = format!("\u{feff}{text}");
        let whole = read_from(text.as_bytes(), format, &ColumnMapping::default()).expect("no I/O error");
        let dripped = read_from(Dripping(text.as_bytes(), false), format, &ColumnMapping::default())
            .expect("no I/O error");
        assert_eq!(whole.records, dripped.records);
        assert_eq!(dripped.diagnostics.total(), 0);
    }
}

#[test]
fn input_error_ends_reading() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    for (text, format) in [(csv_example(), Format::Csv), (jsonl_example(), Format::JsonLines)] {
        let error = read_from(text.as_bytes().chain(Failing), format, &ColumnMapping::default()).map(|_| ());
        assert_eq!(error.map_err(|e| e.to_string()), Err("the disk is gone".to_owned()));
    }
}

#[test]
fn export_truncated_inside_a_row_is_refused() {
    for (text, format, whole_rows) in [
        (csv_example(), Format::Csv, vec!["metadata\r\n", "[1]}\"\r\n", "\r\n"]),
        (jsonl_example(), Format::JsonLines, vec!["}}\r\n", "}\r\n\r\n", "}\n"]),
    ] {
        for cut in 0..text.len() {
            let outcome =
                read_from(&text.as_bytes()[..cut], format, &ColumnMapping::default()).expect("no I/O error");
            let before = &text.as_bytes()[..cut];
            let complete = cut > 0 && whole_rows.iter().any(|end| before.ends_with(end.as_bytes()));
            let accepted = outcome.diagnostics.is_empty();
            assert_eq!(accepted, complete, "cut after {cut} bytes: {}", outcome.diagnostics);
        }
    }
    let message = |text: String| csv(text).diagnostics.to_string();
    let unix = csv_example().replace("\r\n", "\n");
    let cut = |at: &str| unix[..unix.find(at).expect("a place") + at.len()].to_owned();
    assert_eq!(
        message(unix.trim_end().to_owned()),
        "keys:4: the last line does not end in a newline; the file may be truncated"
    );
    assert_eq!(message(cut("orders:*\n")), "keys:2: the file ends inside quotes; it may be truncated");
    assert_eq!(
        jsonl(jsonl_example().trim_end()).diagnostics.to_string(),
        "keys:3: the last line does not end in a newline; the file may be truncated"
    );
}

#[test]
fn flipped_bit_does_not_panic() {
    for (text, format) in [(csv_example(), Format::Csv), (jsonl_example(), Format::JsonLines)] {
        let mut bytes = text.into_bytes();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let outcome = read_from(&*bytes, format, &ColumnMapping::default()).expect("no I/O error");
            assert!(!outcome.diagnostics.is_empty() || outcome.rows > 0, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn empty_file_is_refused_and_file_without_rows_is_accepted() {
    for text in ["", "\u{feff}"] {
        assert_eq!(csv(text).diagnostics.to_string(), "keys: the file is empty");
        assert_eq!(jsonl(text).diagnostics.to_string(), "keys: the file is empty");
    }
    assert_eq!(
        csv("\n\n").diagnostics.to_string(),
        "keys: there is no header; its columns are key_hash, key_id and others"
    );
    for outcome in [csv("key_id,key_hash\n"), jsonl("\n \r\n")] {
        assert_eq!((outcome.rows, outcome.diagnostics.total()), (0, 0));
    }
}

#[test]
fn all_problems_of_a_header_are_reported() {
    assert_eq!(
        csv("key_hash,owners,plan,plan,\"a\"\"b\"\nx\n").diagnostics.to_string(),
        "keys:1: column 2: \"owners\" is not a field of a key. Did you mean owner? Map it to a field with source.columns \
         (under [source.columns]: owner = \"owners\"), or skip it with source.ignore (under [source]: ignore = \
         [\"owners\"]). The fields are key_hash, key_id, owner, environment, plan, status, not_before, expires_at, \
         scopes, allowed_ips, allowed_origins, limits, metadata\n\
         keys:1: column 4: there are two columns \"plan\"\n\
         keys:1: column 5: \"a\\\"b\" is not a field of a key. Map it to a field with source.columns (under \
         [source.columns]: FIELD = \"a\\\"b\"), or skip it with source.ignore (under [source]: ignore = \
         [\"a\\\"b\"]). The fields are key_hash, key_id, owner, environment, plan, status, not_before, expires_at, \
         scopes, allowed_ips, allowed_origins, limits, metadata\n\
         keys:1: there is no column \"key_id\" in the header; if it has another name, set source.columns (under \
         [source.columns]: key_id = \"COLUMN\")"
    );
    assert_eq!(
        csv("key_hash,key\"id\n").diagnostics.to_string(),
        "keys:1: column 2: there is a quote in a field that does not begin with one; put the whole field in quotes and \
         write the quote twice, as in \"O\"\"Brien\" (RFC 4180)"
    );
    for header in ["key_hash;key_id\n", "\"key_hash\";\"key_id\"\n"] {
        let expected = "keys:1: the columns of a CSV file are separated by commas";
        assert_eq!(csv(header).diagnostics.to_string(), expected, "{header}");
    }
    assert_eq!(
        csv(b"key_hash,key_\xffid\n").diagnostics.to_string(),
        "keys:1: column 2: byte 5 of it is not UTF-8; export the file as UTF-8"
    );
    let missing = csv(format!("{A},{RAW_KEY}\n"));
    assert_eq!(missing.diagnostics.total(), 4);
    assert!(!missing.diagnostics.to_string().contains(&A[..9]), "{}", missing.diagnostics);
}

#[test]
fn mapping_renames_and_ignores_columns() {
    let columns: BTreeMap<_, _> = [(Field::KeyHash, "sha256"), (Field::ExpiresAt, "until")]
        .map(|(field, column)| (field, Arc::from(column)))
        .into();
    let mapping = ColumnMapping::new(&columns, vec!["id".into()]).expect("a mapping");
    let text = format!("id,sha256,key_id,until\n1,{A},k1,1795255200\n2,{B},k2,soon\n");
    let outcome = read_from(text.as_bytes(), Format::Csv, &mapping).expect("no I/O error");
    assert_eq!(outcome.lines(), [2]);
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:3: column 4 (until): \"soon\" is not a time; write it as 2026-11-21T10:00:00Z"
    );
    let text = "sha256,key_id\n";
    let outcome = read_from(text.as_bytes(), Format::Csv, &mapping).expect("no I/O error");
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:1: there is no column \"until\" in the header; if it has another name, set source.columns (under \
         [source.columns]: expires_at = \"COLUMN\")"
    );
    let text = format!(
        "{{\"id\":{{}},\"sha256\":\"{A}\",\"key_id\":\"k1\"}}\n{{\"sha256\":\"{B}\",\"key_id\":2,\"until\":\"soon\"}}\n"
    );
    let outcome = read_from(text.as_bytes(), Format::JsonLines, &mapping).expect("no I/O error");
    assert_eq!(outcome.lines(), [1]);
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:2: until: \"soon\" is not a time; write it as 2026-11-21T10:00:00Z"
    );
}

#[test]
fn required_field_must_be_in_the_header_and_in_every_object() {
    let mapping = ColumnMapping::default().requiring([Field::Scopes]).expect("it has a column");
    let text = format!("key_hash,key_id\n{A},k1\n");
    let outcome = read_from(text.as_bytes(), Format::Csv, &mapping).expect("no I/O error");
    assert!(outcome.records.is_empty());
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:1: there is no column \"scopes\" in the header; if it has another name, set source.columns (under \
         [source.columns]: scopes = \"COLUMN\")"
    );
    let text = format!(
        "{{\"key_hash\":\"{A}\",\"key_id\":\"k1\"}}\n{{\"key_hash\":\"{B}\",\"key_id\":\"k2\",\"scopes\":null}}\n"
    );
    let outcome = read_from(text.as_bytes(), Format::JsonLines, &mapping).expect("no I/O error");
    assert_eq!(outcome.lines(), [2]);
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:1: scopes: it is not in the object, and source.required lists it"
    );
}

#[test]
fn all_problems_of_a_row_are_reported() {
    let outcome = csv(format!(
        "key_hash,key_id,status,expires_at,limits,scopes\n\
         abc,,Active,2026-11-21,100/x,\"a,,b\"\n\
         {A},k1,active,,,\n\
         {A},k1,active,,\n\
         {A},k1,active,,,,\n"
    ));
    assert_eq!((outcome.rows, outcome.lines()), (4, vec![3]));
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:2: column 1 (key_hash): 3 hex digits are not a SHA-256, which has 64; it must be the SHA-256 of the \
         key, not the key itself\n\
         keys:2: column 2 (key_id): key_id is missing\n\
         keys:2: column 3 (status): \"Active\" is not a status; it is active, disabled or revoked\n\
         keys:2: column 4 (expires_at): \"2026-11-21\" has no time of day; write it as 2026-11-21T10:00:00Z\n\
         keys:2: column 6 (scopes): it has an empty item; separate items by one comma or by spaces\n\
         keys:2: column 5 (limits): \"x\" is not a period; it is s, m, h or d, several of one as in 30d, or hour, day, week or month of the calendar\n\
         keys:4: the row has 5 columns, the header 6 (and 1 more like it)"
    );
}

#[test]
fn invalid_utf8_is_located() {
    let header = b"key_hash,key_id,owner,plan\n".as_slice();
    let row = |owner: &[u8], plan: &[u8]| [header, A.as_bytes(), b",k1,", owner, b",", plan, b"\n"].concat();
    let message = "of it is not UTF-8; export the file as UTF-8";
    assert_eq!(
        csv(row(b"M\xfcller", b"pro")).diagnostics.to_string(),
        format!("keys:2: column 3 (owner): byte 2 {message}")
    );
    // The two halves of one character are in two columns.
    assert_eq!(
        csv(row(b"M\xc3", b"\xbcller")).diagnostics.to_string(),
        format!("keys:2: column 3 (owner): byte 2 {message}")
    );
    assert_eq!(
        jsonl(b"{\"key_id\":\"\xfc\"}\n").diagnostics.to_string(),
        "keys:1: byte 12: this is not UTF-8; export the file as UTF-8"
    );
}

#[test]
fn problem_of_a_json_line_is_reported() {
    let row = |fields: &str| format!("{{\"key_hash\":\"{A}\",\"key_id\":\"k1\",{fields}}}\n");
    for (text, message) in [
        (row("\"plan\":}"), "1: byte 101: it is not JSON: expected value"),
        ("{\"key_id\":\"k1\"\n".into(), "1: byte 14: it is not JSON: EOF while parsing an object"),
        ("{} {}\n".into(), "1: byte 4: it is not JSON: trailing characters"),
        ("{1:2}\n".into(), "1: byte 2: it is not JSON: key must be a string"),
        (
            format!("\"{RAW_KEY}\"\n"),
            "1: a line of JSON Lines is one object, as in {\"key_hash\":\"...\",\"key_id\":\"...\"}",
        ),
        (row("\"plan\":\"a\",\"plan\":null"), "1: plan: it is in the object twice"),
        (row("\"plan\":1"), "1: plan: it must be a string"),
        (row("\"plan\":true"), "1: plan: it must be a string"),
        (row("\"expires_at\":{}"), "1: expires_at: it must be a string or a number"),
        (row("\"scopes\":1"), "1: scopes: it must be a string or an array of strings"),
        (row("\"metadata\":[]"), "1: metadata: it must be an object"),
        (row("\"owner\":\"\\ud800\""), "1: owner: a \\u escape in it does not stand for a character"),
        (row("\"limits\":[\"1/s\"]"), "1: limits: it must be a string"),
        (
            row("\"expires_at\":1795255200000"),
            "1: expires_at: \"1795255200000\" is not a time in Unix seconds: it looks like milliseconds (divide it by \
             1000); write RFC 3339, as in 2026-11-21T10:00:00Z",
        ),
        (
            row("\"scope\":\"a\""),
            "1: \"scope\" is not a field of a key. Did you mean scopes? Map it to a field with source.columns (under \
             [source.columns]: scopes = \"scope\"), or skip it with source.ignore (under [source]: ignore = [\"scope\"]). \
             The fields are key_hash, key_id, owner, environment, plan, status, not_before, expires_at, scopes, \
             allowed_ips, allowed_origins, limits, metadata",
        ),
    ] {
        let outcome = jsonl(&text);
        assert_eq!(outcome.diagnostics.to_string(), format!("keys:{message}"), "{text}");
        assert_eq!((outcome.rows, outcome.records.len()), (1, 0));
    }
    assert_eq!(
        jsonl("{}\n").diagnostics.to_string(),
        "keys:1: key_hash: key_hash is missing\nkeys:1: key_id: key_id is missing"
    );
    let number = jsonl(format!("{{\"key_hash\":\"{A}\",\"key_id\":42,\"owner\":-7}}\n"));
    assert!(number.records[0].1.contains("key_id: \"42\", owner: \"-7\""));
}

#[test]
fn key_in_the_wrong_column_is_not_quoted() {
    for field in Field::ALL {
        let name = field.name();
        let (others, rest) = match field {
            Field::KeyHash => ("key_id", "k1".to_owned()),
            Field::KeyId => ("key_hash", A.to_owned()),
            _ => ("key_id,key_hash", format!("k1,{A}")),
        };
        let outcome = csv(format!("{name},{others}\n{RAW_KEY},{rest}\n"));
        let text = outcome.diagnostics.to_string();
        assert!(!text.contains(&RAW_KEY[..9]), "{text}");
        let accepted =
            matches!(field, Field::KeyId | Field::Owner | Field::Environment | Field::Plan | Field::Scopes);
        assert_eq!(outcome.diagnostics.is_empty(), accepted, "{name}: {text}");
    }
}

#[test]
fn rows_with_the_same_problem_make_one_diagnostic_and_reading_continues() {
    let bad: String = (0..20_000).map(|n| format!("{A},k{n},t{n},\n")).collect();
    let outcome = csv(format!("key_hash,key_id,status,expires_at\n{bad}{A},k,,soon\n{A},k,,\n"));
    assert_eq!((outcome.rows, outcome.lines()), (20_002, vec![20_003]));
    assert_eq!(outcome.diagnostics.total(), 20_001);
    assert_eq!(
        outcome.diagnostics.to_string(),
        "keys:2: column 3 (status): \"t0\" is not a status; it is active, disabled or revoked (and 19999 more like it)\n\
         keys:20002: column 4 (expires_at): \"soon\" is not a time; write it as 2026-11-21T10:00:00Z"
    );
}

#[test]
fn record_refused_by_the_sink_becomes_a_diagnostic() {
    let text = format!("key_hash,key_id\n{A},k1\n{A},k2\n{B},k3\n");
    let mut diagnostics = Diagnostics::new("keys");
    let mut sink = |_: u64, record: &KeyRecord<'_>| match record.key_id {
        "k2" => Err("key_hash is that of line 2".into()),
        _ => Ok(()),
    };
    let rows = read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics);
    assert_eq!(rows.expect("no I/O error"), 3);
    assert_eq!(diagnostics.to_string(), "keys:3: key_hash is that of line 2");
}

#[test]
fn rows_with_equal_lists_share_them() {
    let text = format!(
        "key_hash,key_id,scopes,limits,allowed_ips,allowed_origins\n\
         {A},k1,a b,1/s,::1,https://a.example\n{B},k2,a b,1/s,::1,https://a.example\n"
    );
    let mut records: Vec<[usize; 4]> = Vec::new();
    let mut kept = Vec::new();
    let mut sink = |_: u64, record: &KeyRecord<'_>| {
        records.push([
            Arc::as_ptr(&record.scopes) as *const u8 as usize,
            Arc::as_ptr(&record.limits) as *const u8 as usize,
            record.allowed_ips.as_ref().map_or(0, |list| Arc::as_ptr(list) as *const u8 as usize),
            record.allowed_origins.as_ref().map_or(0, |list| Arc::as_ptr(list) as *const u8 as usize),
        ]);
        // Keeps the lists alive, so that no address is reused.
        kept.push((
            Arc::clone(&record.scopes),
            Arc::clone(&record.limits),
            record.allowed_ips.clone(),
            record.allowed_origins.clone(),
        ));
        Ok(())
    };
    let mut diagnostics = Diagnostics::new("keys");
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("no I/O error");
    assert_eq!(diagnostics.to_string(), "");
    assert_eq!(records[0], records[1]);
}

/// An endless line. Counts the bytes read.
struct Endless<'a> {
    head: &'a [u8],
    taken: &'a mut usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            return self.head.read(buffer);
        }
        buffer.fill(b'x');
        *self.taken += buffer.len();
        assert!(*self.taken < 10 << 20, "10 MB of one line were read");
        Ok(buffer.len())
    }
}

#[test]
fn reading_a_row_without_an_end_stops_at_the_bound() {
    let quoted = format!("key_hash,key_id\n{A},\"");
    let csv_message = |column: &str, bytes: usize, cause: &str| {
        format!(
            " column {column}: the row that begins in this line is longer than 1048576 bytes, and this is its largest \
             column, with {bytes} bytes so far: a {cause} may be missing, or the column is as large as that and has to be \
             left out of the export"
        )
    };
    let json_message = " the line is longer than 1048576 bytes: the newline behind an object may be missing, or a field is \
                        as large as that and has to be left out of the export";
    for (head, format, line, message) in [
        ("", Format::Csv, 1, &*csv_message("1", MAX_ROW, "newline")),
        ("key_hash,key_id\n", Format::Csv, 2, &csv_message("1 (key_hash)", MAX_ROW, "newline")),
        (quoted.as_str(), Format::Csv, 2, &csv_message("2 (key_id)", MAX_ROW - A.len(), "closing quote")),
        ("", Format::JsonLines, 1, json_message),
        ("{\"key_hash\":\"", Format::JsonLines, 1, json_message),
    ] {
        let mut taken = 0;
        let outcome = read_from(
            Endless { head: head.as_bytes(), taken: &mut taken },
            format,
            &ColumnMapping::default(),
        );
        assert_eq!(outcome.expect("no I/O error").diagnostics.to_string(), format!("keys:{line}:{message}"));
        assert!(taken <= MAX_ROW + 2 * BUFFER, "{taken} bytes were read");
    }
}

#[test]
fn row_with_too_many_columns_is_refused() {
    let names: Vec<_> = (2..csv::records::MAX_COLUMNS).map(|n| format!("c{n}")).collect();
    let mapping =
        ColumnMapping::new(&BTreeMap::new(), names.iter().map(|name| name.as_str().into()).collect())
            .expect("a mapping");
    let header = format!("key_hash,key_id,{}", names.join(","));
    let row = format!("{A},k{}", ",".repeat(names.len()));
    let outcome =
        read_from(format!("{header}\n{row}\n").as_bytes(), Format::Csv, &mapping).expect("no I/O error");
    assert_eq!((outcome.diagnostics.to_string(), outcome.lines()), (String::new(), vec![2]));
    let outcome =
        read_from(format!("{header}\n{row},\n").as_bytes(), Format::Csv, &mapping).expect("no I/O error");
    assert_eq!(outcome.diagnostics.to_string(), "keys:2: the row has more than 256 columns");
}

#[test]
fn format_follows_from_the_extension() {
    let path = |path: &str| Format::from_path(Path::new(path)).map_err(|e| e.to_string());
    assert_eq!(path("a/keys.csv"), Ok(Format::Csv));
    assert_eq!(path("a/keys.CSV"), Ok(Format::Csv));
    for extension in ["jsonl", "ndjson", "json", "csv.jsonl"] {
        assert_eq!(path(&format!("keys.{extension}")), Ok(Format::JsonLines), "{extension}");
    }
    for name in ["jsonl", "ndjson", "json"] {
        assert_eq!(name.parse(), Ok(Format::JsonLines), "a format is also named by its extensions");
    }
    assert_eq!(path("keys.kwc"), Ok(Format::Compiled));
    for name in ["keys", "keys.txt", ".csv"] {
        let message = format!(
            "the extension of \"{name}\" is not that of a format: expected .csv, .jsonl, .ndjson, .json or .kwc"
        );
        assert_eq!(path(&format!("a/{name}")), Err(message));
    }
    for format in [Format::Csv, Format::JsonLines, Format::Compiled] {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert_eq!(
        "xml".parse::<Format>().map_err(|e| e.to_string()),
        Err("\"xml\" is not a format: expected csv, jsonl, ndjson, json or compiled".to_owned())
    );
}

proptest! {
    #[test]
    fn any_text_is_read_unchanged_from_either_format(owner in "\\PC{0,30}", plan in "[\",\\\\é/ ]{0,20}") {
        let quoted = |text: &str| text.replace('"', "\"\"");
        let from_csv = csv(format!(
            "key_hash,key_id,owner,plan\n{A},k,\"{}\",\"{}\"\n", quoted(&owner), quoted(&plan)
        ));
        let from_jsonl = jsonl(format!(
            "{{\"key_hash\":\"{A}\",\"key_id\":\"k\",\"owner\":{},\"plan\":{}}}\n",
            serde_json::to_string(&owner).expect("a string"),
            serde_json::to_string(&plan).expect("a string"),
        ));
        prop_assert_eq!(from_csv.diagnostics.to_string(), "");
        let expected = format!("owner: {owner:?}, environment: \"\", plan: {plan:?},");
        prop_assert!(from_csv.records[0].1.contains(&expected));
        prop_assert_eq!(&from_csv.records[0].1, &from_jsonl.records[0].1);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let header = b"key_hash,key_id,scopes\n".as_slice();
        csv(&bytes);
        csv([header, &bytes].concat());
        jsonl(&bytes);
        jsonl([b"{", bytes.as_slice(), b"}\n"].concat());
    }
}
