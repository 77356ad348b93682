//! What the parts of a record have to be like, whoever writes them: the parsers of texts say more about what is wrong, and
//! a compiled file is only believed.

use serde_json::value::RawValue;

use super::{MAX_METADATA, MAX_SCOPE};

/// Whether a text has at most `most` bytes and can be shown in a terminal: no control characters.
pub fn is_text(text: &str, most: usize) -> bool {
    text.len() <= most && !text.chars().any(char::is_control)
}

/// Whether a text is a scope: 1 to [`MAX_SCOPE`] printable ASCII characters, but no comma or quote, and a `*` at its end only.
pub fn is_scope(text: &str) -> bool {
    let printable = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'"' | b'\'' | b'`');
    (1..=MAX_SCOPE).contains(&text.len())
        && text.bytes().all(printable)
        && !text.bytes().rev().skip(1).any(|b| b == b'*')
}

/// Whether a text is a JSON object of at most [`MAX_METADATA`] bytes, with nothing around it.
pub fn is_metadata(text: &str) -> bool {
    let is_object = text.starts_with('{') && text.ends_with('}');
    is_object && text.len() <= MAX_METADATA && serde_json::from_str::<&RawValue>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shown_or_meant_is_none() {
        assert!(is_text("", 0) && is_text("é", 2) && !is_text("é", 1));
        assert!(!is_text("a\u{85}", 9) && !is_text("\u{7f}", 9));
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
