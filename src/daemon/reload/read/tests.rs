//! The ways of reading give the same table, and the same errors.

use proptest::prelude::*;

use super::*;
use crate::reload::BadRowPolicy;
use keyward_source::ColumnMapping;

/// Bytes of a text that is split into several chunks.
const SEVERAL_CHUNKS: usize = 1 << 20;

/// The rows of `text`, or its error.
fn read(text: &[u8], format: Format, size: u64) -> Result<Vec<String>, String> {
    with_source(text, format, size, |source| match source.read(None, &mut |_| {}) {
        Ok(ParsedRows { bad_rows: Some(BadRowOutcome::Refuse(error)), .. }) => Err(error.to_string()),
        Ok(parsed) => Ok(rows(&parsed.builder)),
        Err(error) => Err(error.to_string()),
    })
}

fn with_source<T>(text: &[u8], format: Format, size: u64, then: impl FnOnce(&SourceReader<'_>) -> T) -> T {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("writes");
    let plans = Arc::default();
    // The path appears in messages.
    let origin = SourceFile {
        path: Box::from("keys".as_ref()),
        format,
        mapping: ColumnMapping::default(),
        plans,
        on_bad_row: BadRowPolicy::Refuse,
    };
    let file = file.reopen().expect("opens");
    then(&SourceReader { origin: &origin, file: &file, size, seed: 7, limits: MemoryLimits::new() })
}

fn rows(builder: &Builder) -> Vec<String> {
    let mut rows = Vec::new();
    builder.for_each_record(&mut |_, record| rows.push(format!("{record:?}")));
    rows
}

fn csv(rows: impl Iterator<Item = String>) -> Vec<u8> {
    let rows: String = rows.collect();
    format!("\u{feff}key_hash,key_id,owner,limits,metadata\r\n{rows}").into_bytes()
}

/// Twelve kinds of good rows. Some fields are quoted and contain quotes and newlines.
fn row(number: usize, kind: u8) -> String {
    let owner = ["", "acme", "\"a, \"\"b\"\"\"", "\"b\"\"c\"", "\"d\""][usize::from(kind % 5)];
    let metadata = ["", "\"{\"\"a\"\":\n\n\"\"b\"\"}\"", "{}"][usize::from(kind % 3)];
    let padding = "x".repeat(usize::from(kind) * 3);
    let end = if kind.is_multiple_of(2) { "\n" } else { "\r\n" };
    format!("{number:064x},k{number}{padding},{owner},{}/s,{metadata}{end}", kind + 1)
}

/// Enough rows for several chunks, of these kinds in turn.
fn many_rows(kinds: &[u8]) -> impl Iterator<Item = String> {
    let mut bytes = 0;
    let rows = (0..).zip(kinds.iter().copied().cycle()).map(|(number, kind)| row(number, kind));
    rows.take_while(move |row| {
        bytes += row.len();
        bytes < SEVERAL_CHUNKS
    })
}

#[test]
fn parallel_reading_gives_the_same_rows_in_the_same_order() {
    let text = csv(many_rows(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]));
    let json: String = (0..9_000)
        .map(|number| {
            format!("{{\"key_hash\":\"{number:064x}\",\"key_id\":\"k{number}\",\"limits\":\"1/s\"}}\n\n")
        })
        .collect();
    // A third of the rows have the id of an early one.
    let rotated = (0..12_000).map(|number| {
        let of = if number % 3 == 1 { number / 7 } else { number };
        row(number, 0).replacen(&format!(",k{number},"), &format!(",r{of},"), 1)
    });
    let rotated = (csv(rotated), Format::Csv);
    for (text, format) in [(text, Format::Csv), (json.into_bytes(), Format::JsonLines), rotated] {
        for threads in [1, 2, 5] {
            let chunks = with_source(&text, format, PARALLEL_BYTES, |source| {
                source.read_parallel(source.file, threads).ok().map(|builder| rows(&builder))
            });
            let in_order = read(&text, format, 0).expect("nothing is wrong with it");
            assert_eq!(chunks, Some(in_order), "{format}, {threads} threads");
        }
    }
}

#[test]
fn sparse_compiled_file_is_refused_before_memory_is_allocated() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [1; 128]).expect("writes");
    file.as_file().set_len(1 << 40).expect("a length");
    let (format, mapping, plans) = (Format::Compiled, ColumnMapping::default(), Arc::default());
    let origin = SourceFile {
        path: Box::from("keys".as_ref()),
        format,
        mapping,
        plans,
        on_bad_row: BadRowPolicy::Refuse,
    };
    let file = file.reopen().expect("opens");
    let source =
        SourceReader { origin: &origin, file: &file, size: 1 << 40, seed: 7, limits: MemoryLimits::new() };
    let error = source.read(None, &mut |_| {}).err().expect("it is refused").to_string();
    assert!(error.contains("it has holes"), "{error}");
}

#[test]
fn errors_are_reported_as_in_sequential_reading() {
    let good: Vec<String> = many_rows(&[0, 1, 2]).collect();
    let last = good.len() - 1;
    let with = |at: usize, row: String| {
        let mut rows = good.clone();
        rows[at] = row;
        csv(rows.into_iter())
    };
    let wrong = [
        (with(last, "not a row\n".to_owned()), "the row has 1 columns"),
        (with(last, good[0].clone()), "the same key_hash as in line 2"),
        (with(last, format!("{last:064x},k0,other,1/s,\n")), "the same key_id and another owner"),
        (with(last, format!("{last:064x},k0,,7/s,\n")), "the same key_id and other limits"),
        (with(last, good[last].trim_end().to_owned()), "does not end in a newline"),
        (with(3, format!("\"{}", good[3])), "keys:"),
        (with(0, good[0].replacen("1/s", "1/x", 1)), "is not a period"),
        (with(last, format!("\u{feff}{last:064x},k,a,1/s,\n")), "column 1 (key_hash)"),
        (with(last, format!("{last:064x},k,\"a\"b,1/s,\n")), "column 3 (owner): the closing quote"),
        (with(last, format!("{last:064x},k,a\"b,1/s,\n")), "column 3 (owner): there is a quote"),
        (
            with(last, format!("{last:064x},k,\"a\\\"b\",1/s,\n")),
            "column 3 (owner): a quote behind a backslash",
        ),
        (csv(std::iter::once("x".repeat(SEVERAL_CHUNKS + 1))), "longer than"),
        (csv(good.iter().cloned()).split_off(9), "is not a field"),
    ];
    for (text, message) in wrong {
        let error = read(&text, Format::Csv, PARALLEL_BYTES).expect_err(message);
        assert!(error.contains(message), "{message}: {error}");
        assert_eq!(Err(error), read(&text, Format::Csv, 0));
    }
    let text: Vec<u8> = csv(good.into_iter().map(|row| row.replace('\n', "\r"))).to_vec();
    let text = String::from_utf8(text).expect("UTF-8").replacen("\r\n", "\r", 1) + "\n";
    assert!(
        read(text.as_bytes(), Format::Csv, PARALLEL_BYTES).is_ok(),
        "carriage returns alone end rows too"
    );
    assert_eq!(read(text.as_bytes(), Format::Csv, PARALLEL_BYTES), read(text.as_bytes(), Format::Csv, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn parallel_and_sequential_reading_agree(
        kinds in prop::collection::vec(0_u8..12, 1..40),
        changes in prop::collection::vec((any::<prop::sample::Index>(), "[a\u{feff}\",\n\r]"), 0..3),
    ) {
        let mut text = csv(many_rows(&kinds));
        for (at, change) in changes {
            let at = at.index(text.len());
            text.splice(at..=at, change.bytes());
        }
        prop_assert_eq!(read(&text, Format::Csv, PARALLEL_BYTES), read(&text, Format::Csv, 0));
    }
}
