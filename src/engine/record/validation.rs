//! The rules for the values of a record, as predicates.
//!
//! The parsers of text formats enforce the same rules, with an error that explains what is wrong.
//! The reader of compiled snapshots needs only a yes or no.

use serde_json::value::RawValue;

use super::{MAX_METADATA, MAX_SCOPE};

/// Whether `text` has at most `max_length` bytes and no control characters, so that a terminal can
/// show it.
pub(crate) fn is_printable(text: &str, max_length: usize) -> bool {
    text.len() <= max_length && !text.chars().any(char::is_control)
}

/// Whether `text` is a scope: 1 to [`MAX_SCOPE`] printable ASCII characters without spaces, commas
/// and quotes, and with `*` as its last character only.
pub(crate) fn is_scope(text: &str) -> bool {
    let printable = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'"' | b'\'' | b'`');
    (1..=MAX_SCOPE).contains(&text.len())
        && text.bytes().all(printable)
        && !text.bytes().rev().skip(1).any(|b| b == b'*')
}

/// Whether `text` is a JSON object of at most [`MAX_METADATA`] bytes, with no space around it.
pub(crate) fn is_metadata(text: &str) -> bool {
    let is_object = text.starts_with('{') && text.ends_with('}');
    is_object && text.len() <= MAX_METADATA && serde_json::from_str::<&RawValue>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_values_are_recognised() {
        assert!(is_printable("", 0) && is_printable("é", 2) && !is_printable("é", 1));
        assert!(!is_printable("a\u{85}", 9) && !is_printable("\u{7f}", 9));
        assert!(is_scope("orders:*") && is_scope("*"));
        for text in ["", "a b", "a,b", "*a", "\"", "é", &"a".repeat(MAX_SCOPE + 1)] {
            assert!(!is_scope(text), "{text}");
        }
        assert!(is_metadata("{}") && is_metadata("{\"a\":[1]}"));
        for text in [
            "",
            "[]",
            " {}",
            "{} ",
            "{}{}",
            "{\"a\"}",
            &format!("{{\"a\":\"{}\"}}", "a".repeat(MAX_METADATA)),
        ] {
            assert!(!is_metadata(text), "{text}");
        }
    }
}
