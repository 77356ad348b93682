//! The values of fields: empty lists, null texts, quotes and lengths.

use super::*;

#[test]
fn empty_list_differs_from_an_absent_list() {
    let lists = |outcome: &Outcome| {
        assert_eq!(outcome.diagnostics.to_string(), "");
        let record = &outcome.records[0].1;
        let from = record.find("allowed_ips").expect("a field");
        let to = record.find(", limits").expect("a field");
        record[from..to].to_owned()
    };
    let absent = "allowed_ips: None, allowed_origins: None";
    let empty = "allowed_ips: Some([]), allowed_origins: Some([])";
    for (text, expected) in
        [("", absent), ("\"\"", absent), ("{}", empty), ("[]", empty), ("[ ]", empty), ("\" { } \"", empty)]
    {
        let header = "key_hash,key_id,allowed_ips,allowed_origins";
        assert_eq!(lists(&csv(format!("{header}\n{A},k,{text},{text}\n"))), expected, "CSV: {text}");
    }
    assert_eq!(lists(&csv(format!("key_hash,key_id\n{A},k\n"))), absent, "no column");
    for (json, expected) in [
        ("null", absent),
        ("\"\"", absent),
        ("[]", empty),
        ("[ ]", empty),
        ("\"[]\"", empty),
        ("\"{}\"", empty),
        ("\"{ }\"", empty),
    ] {
        let row = format!(
            "{{\"key_hash\":\"{A}\",\"key_id\":\"k\",\"allowed_ips\":{json},\"allowed_origins\":{json}}}\n"
        );
        assert_eq!(lists(&jsonl(row)), expected, "JSON: {json}");
    }
    assert_eq!(lists(&jsonl(format!("{{\"key_hash\":\"{A}\",\"key_id\":\"k\"}}\n"))), absent, "no field");
}

#[test]
fn list_of_separators_only_is_refused() {
    for text in [" ", "\t", ",", " , ", ",,", "{,}", "[\"\"]", "{\"\"}", "[null]", "{NULL}", "{{}}", "[[]]"] {
        for field in ["allowed_ips", "allowed_origins", "scopes"] {
            let quoted = text.replace('"', "\"\"");
            let outcome = csv(format!("key_hash,key_id,{field}\n{A},k,\"{quoted}\"\n"));
            assert_eq!((outcome.diagnostics.total(), outcome.records.len()), (1, 0), "{field}: {text:?}");
            let json = serde_json::to_string(text).expect("a string");
            let outcome = jsonl(format!("{{\"key_hash\":\"{A}\",\"key_id\":\"k\",\"{field}\":{json}}}\n"));
            assert_eq!((outcome.diagnostics.total(), outcome.records.len()), (1, 0), "{field}: {text:?}");
        }
    }
}

const EVERY_FIELD: &str = "key_id,key_hash,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,\
                           allowed_origins,limits,metadata";

/// Reads a row in which `field` is `text`, in CSV, in quoted CSV and in JSON Lines.
fn with_text(field: Field, text: &str, mapping: &ColumnMapping) -> [Outcome; 3] {
    let value = |of: Field| match of {
        of if of == field => text,
        Field::KeyHash => A,
        Field::KeyId => "k",
        _ => "",
    };
    let columns: Vec<&str> = EVERY_FIELD.split(',').collect();
    let values = || columns.iter().map(|name| value(Field::from_name(name).expect("a field")));
    let bare = values().collect::<Vec<_>>().join(",");
    let quoted =
        values().map(|value| format!("\"{}\"", value.replace('"', "\"\""))).collect::<Vec<_>>().join(",");
    let json: serde_json::Map<_, _> =
        columns.iter().zip(values()).map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    let json = serde_json::Value::Object(json);
    [
        (format!("{EVERY_FIELD}\n{bare}\n"), Format::Csv),
        (format!("{EVERY_FIELD}\n{quoted}\n"), Format::Csv),
        (format!("{json}\n"), Format::JsonLines),
    ]
    .map(|(text, format)| read_from(text.as_bytes(), format, mapping).expect("no I/O error"))
}

#[test]
fn null_text_is_no_owner_and_lifts_no_restriction() {
    let mapping = ColumnMapping::default();
    for text in ["NULL", "\\N", "null", " NULL "] {
        for field in Field::ALL {
            let expected = with_text(field, "", &mapping);
            for (outcome, none) in with_text(field, text, &mapping).into_iter().zip(expected) {
                let message = outcome.diagnostics.to_string();
                let name = field.name();
                match field {
                    Field::Owner | Field::Metadata => {
                        assert_eq!(message, "", "{name}: {text}");
                        assert_eq!(outcome.records[0].1, none.records[0].1, "{name}: {text}");
                    }
                    _ => {
                        assert_eq!(
                            (outcome.diagnostics.total(), outcome.records.len()),
                            (1, 0),
                            "{name}: {text}"
                        );
                        assert!(message.contains("source.null_texts"), "{name}: {message}");
                        let is_missing = message.contains(&format!("{name} is missing"));
                        assert_eq!(is_missing, field.is_required(), "{name}: {message}");
                    }
                }
            }
        }
    }
}

#[test]
fn configured_null_texts_apply() {
    let mapping = ColumnMapping::default().with_null_texts(NullTexts::new(["-".into(), "(none)".into()]));
    for outcome in with_text(Field::Environment, "NULL", &mapping) {
        assert_eq!(outcome.diagnostics.to_string(), "");
        assert!(outcome.records[0].1.contains("environment: \"NULL\""), "{}", outcome.records[0].1);
    }
    for text in ["-", "(None)"] {
        for outcome in with_text(Field::Environment, text, &mapping) {
            assert!(
                outcome.diagnostics.to_string().contains("source.null_texts"),
                "{text}: {}",
                outcome.diagnostics
            );
        }
    }
    let none = ColumnMapping::default().with_null_texts(NullTexts::new([]));
    for outcome in with_text(Field::KeyId, "NULL", &none) {
        assert!(outcome.records[0].1.contains("key_id: \"NULL\""), "{}", outcome.diagnostics);
    }
}

#[test]
fn ignored_columns_do_not_count_towards_the_bound_on_fields() {
    let mapping = ColumnMapping::new(&BTreeMap::new(), vec!["bio".into()]).expect("a mapping");
    let bio = "ä, \"\"x\"\"\n".repeat(60_000);
    let text = format!("key_hash,bio,key_id\n{A},\"{bio}\",k1\n{B},,k2\n");
    let outcome = read_from(text.as_bytes(), Format::Csv, &mapping).expect("no I/O error");
    assert_eq!((outcome.diagnostics.to_string(), outcome.records.len()), (String::new(), 2));
    let (mut reader, header) = ChunkReader::new(Format::Csv, &mapping, text.as_bytes()).expect("a header");
    let mut rows = 0;
    assert!(reader.read(&text.as_bytes()[header..], |_| rows += 1) && rows == 2, "the fast way");
    let text = format!("{{\"key_hash\":\"{A}\",\"bio\":\"{}\",\"key_id\":\"k1\"}}\n", "x".repeat(900_000));
    let outcome = read_from(text.as_bytes(), Format::JsonLines, &mapping).expect("no I/O error");
    assert_eq!((outcome.diagnostics.to_string(), outcome.records.len()), (String::new(), 1));
}

#[test]
fn row_with_too_large_fields_is_refused_and_the_largest_is_named() {
    let room = MAX_FIELDS - A.len() - 1;
    let scopes = "a ".repeat(room);
    for (length, fits) in [(room, true), (room + 1, false)] {
        let scopes = &scopes[..length];
        let message = if fits {
            String::new()
        } else {
            format!(
                ": the fields of the row have 65537 bytes, and at most 65536 are read; this is the largest, with {length}"
            )
        };
        let place = |name: &str| if fits { String::new() } else { name.to_owned() };
        let text = format!("key_hash,key_id,scopes\n{A},k,{scopes}\n");
        assert_eq!(csv(&text).diagnostics.to_string(), place("keys:2: column 3 (scopes)") + &message);
        let json = jsonl(format!("{{\"key_hash\":\"{A}\",\"key_id\":\"k\",\"scopes\":\"{scopes}\"}}\n"));
        assert_eq!(json.diagnostics.to_string(), place("keys:1: scopes") + &message);
    }
    let wide = csv(format!("key_hash,key_id,scopes\n{A},k,{}\n{B},k2,\n", "a ".repeat(MAX_FIELDS)));
    assert_eq!((wide.diagnostics.total(), wide.records.len()), (1, 1), "and reading goes on");
}

#[test]
fn longest_row_is_accepted_and_a_longer_one_refused() {
    let mapping = ColumnMapping::new(&BTreeMap::new(), vec!["bio".into()]).expect("a mapping");
    let row =
        |bio: usize| format!("{{\"key_hash\":\"{A}\",\"key_id\":\"k\",\"bio\":\"{}\"}}\n", "x".repeat(bio));
    let json = |text: &str| read_from(text.as_bytes(), Format::JsonLines, &mapping).expect("no I/O error");
    let longest = row(MAX_ROW + 1 - row(0).len());
    assert_eq!(longest.len(), MAX_ROW + 1);
    assert_eq!(json(&longest).diagnostics.to_string(), "");
    assert_eq!(json(&format!("{longest}\n{longest}")).rows, 2);
    assert_eq!(json(&format!(" {longest}")).diagnostics.total(), 1);
}

#[test]
fn misplaced_quote_is_reported_with_its_column() {
    let row = |owner: &str| csv(format!("key_hash,key_id,owner,plan\n{A},k1,{owner},pro\n{B},k2,,\n"));
    for (owner, message) in [
        ("\"acme\"x", "the closing quote is followed by more text"),
        ("\"acme\" ", "the closing quote is followed by more text"),
        ("\"O\\\"Brien\"", "a quote behind a backslash ends the field"),
        ("ac\"me", "there is a quote in a field that does not begin with one"),
        (" \"acme\"", "there is a quote in a field that does not begin with one"),
    ] {
        let outcome = row(owner);
        assert_eq!(outcome.lines(), [3], "{owner}: the row is refused and reading goes on");
        let text = outcome.diagnostics.to_string();
        assert!(text.starts_with(&format!("keys:2: column 3 (owner): {message}")), "{owner}: {text}");
        assert!(text.contains("RFC 4180") && text.contains("\"O\"\"Brien\""), "{text}");
    }
    for (owner, meant) in
        [("\"O\"\"Brien\"", "O\\\"Brien"), ("\"a\\\\\"", "a\\\\\\\\"), ("O'Brien", "O'Brien")]
    {
        let outcome = row(owner);
        assert_eq!(outcome.diagnostics.to_string(), "", "{owner}");
        let expected = format!("owner: \"{meant}\"");
        assert!(outcome.records[0].1.contains(&expected), "{}", outcome.records[0].1);
    }
}

/// Without the misplaced quotes, the header would be correct.
#[test]
fn misplaced_quote_in_the_header_is_refused() {
    for header in ["key_hash,\"key_\"id", "\"key_hash\",\"key_id\" ", "key_hash,key_id,\"own\"er"] {
        let outcome = csv(format!("{header}\n{A},k1\n"));
        let text = outcome.diagnostics.to_string();
        assert!(text.starts_with("keys:1: column "), "{header}: {text}");
        assert!(text.contains("the closing quote is followed by more text"), "{header}: {text}");
        assert_eq!(outcome.lines(), [0_u64; 0], "{header}");
    }
}
