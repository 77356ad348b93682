//! A digest of the settings that a source is parsed with. With the state of the file, it decides
//! after a restart whether a source is the one that was accepted.
//!
//! The digest is stored, so the text that it is made of must be stable. It contains settings and
//! versions, and no `Debug` output, which changes with the name of a type. A different text is
//! safe: the source is then compared with the last good keys, and refused if it differs too much.

use std::os::unix::ffi::OsStrExt;

use keyward_source::ColumnMapping;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::reload::{BadRowPolicy, SourceFile};

/// Bytes of the digest. It is not compared with input of an attacker.
const DIGEST_BYTES: usize = 8;

/// The text, as JSON. The names of the members are part of it.
#[derive(Serialize)]
struct ParseSettings<'s> {
    /// The version of keyward. Another version may read other rows from the same file.
    version: &'s str,
    /// The path, with escapes for all bytes that are not printable ASCII.
    path: String,
    /// The format by the name that the configuration uses.
    format: String,
    mapping: &'s ColumnMapping,
    /// The number of bad rows that are set aside; absent if one refuses the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bad_rows: Option<u32>,
}

/// The digest of everything except the source's content that decides which rows are read from it.
/// Plans are applied to the rows later.
pub(in crate::reload) fn parse_settings_digest(source: &SourceFile) -> String {
    digest(&text(source, env!("CARGO_PKG_VERSION")))
}

fn text(source: &SourceFile, version: &str) -> String {
    let SourceFile { path, format, mapping, on_bad_row, plans: _ } = source;
    let settings = ParseSettings {
        version,
        path: path.as_os_str().as_bytes().escape_ascii().to_string(),
        format: format.to_string(),
        mapping,
        max_bad_rows: match on_bad_row {
            BadRowPolicy::Refuse => None,
            BadRowPolicy::SetAside { max } => Some(*max),
        },
    };
    // Strings, numbers and sequences always have a text in JSON.
    serde_json::to_string(&settings).unwrap_or_default()
}

fn digest(text: &str) -> String {
    const_hex::encode(&Sha256::digest(text)[..DIGEST_BYTES])
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;
    use std::sync::Arc;

    use keyward_engine::record::Plans;
    use keyward_source::Format;

    use super::*;

    fn source() -> SourceFile {
        SourceFile {
            path: Path::new(OsStr::from_bytes(b"/srv/k\xc3\xa4y\xff \"1\".csv")).into(),
            format: Format::JsonLines,
            mapping: ColumnMapping::default(),
            plans: Arc::new(Plans::default()),
            on_bad_row: BadRowPolicy::SetAside { max: 7 },
        }
    }

    /// `keyward-source` pins the text of a mapping.
    #[test]
    fn text_is_stable() {
        let source = source();
        let mapping = serde_json::to_string(&source.mapping).expect("text");
        let path = r#""/srv/k\\xc3\\xa4y\\xff \\\"1\\\".csv""#;
        let expected = |rest: &str, format: &str| {
            format!(r#"{{"version":"1.2","path":{path},"format":"{format}","mapping":{mapping}{rest}}}"#)
        };
        assert_eq!(text(&source, "1.2"), expected(r#","max_bad_rows":7"#, "jsonl"));
        let on_bad_row = BadRowPolicy::Refuse;
        for (format, name) in [(Format::Csv, "csv"), (Format::Compiled, "compiled")] {
            assert_eq!(text(&SourceFile { format, on_bad_row, ..source.clone() }, "1.2"), expected("", name));
        }
        assert_eq!(digest("x"), "2d711642b726b044");
    }

    #[test]
    fn digest_depends_on_every_setting_of_the_parser() {
        let (source, other) = (source(), |source: SourceFile| parse_settings_digest(&source));
        let own = parse_settings_digest(&source);
        assert_eq!(own.len(), 2 * DIGEST_BYTES);
        let mapping = ColumnMapping::default().ignoring_unknown();
        for other in [
            other(SourceFile { path: Path::new("/srv/k\u{e4}y.csv").into(), ..source.clone() }),
            other(SourceFile { format: Format::Csv, ..source.clone() }),
            other(SourceFile { mapping, ..source.clone() }),
            other(SourceFile { on_bad_row: BadRowPolicy::SetAside { max: 8 }, ..source.clone() }),
            other(SourceFile { on_bad_row: BadRowPolicy::Refuse, ..source.clone() }),
        ] {
            assert_ne!(other, own);
        }
        let plans = Arc::new(Plans::new([("free".into(), Vec::new())], None).expect("plans"));
        assert_eq!(other(SourceFile { plans, ..source }), own);
    }
}
