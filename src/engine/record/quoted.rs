//! Quotes a text of an export in a message without revealing a key.
//!
//! Messages end up in logs and terminals, and the quoted text may be a raw key that was pasted into
//! the wrong column. Therefore any text that looks like a key is cut to a stub that is too short to
//! guess the rest.

use std::fmt;

use super::is_invisible;

/// Maximum number of characters shown. The longest form of a timestamp has 32.
const MAX_LENGTH: usize = 40;

/// Maximum number of characters shown of a text that may be a key.
const MAX_KEY_LENGTH: usize = 8;

/// Shortest run of letters, digits, `_` and `-` that may be a key. Keys in common use have at least
/// 24 random characters, while no time, network, rate or status has a run half as long.
const MIN_KEY_RUN: usize = 24;

/// Displays a text in quotes, escaped, and cut to 40 characters, or to 8 if it may be a key.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl Quoted<'_> {
    /// Whether the text may be a key, and so is cut to a stub.
    pub fn may_be_key(&self) -> bool {
        may_be_key(self.0)
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = if may_be_key(self.0) { MAX_KEY_LENGTH } else { MAX_LENGTH };
        let mut characters = self.0.chars();
        write!(f, "\"")?;
        for character in characters.by_ref().take(length) {
            match character {
                '\'' => write!(f, "'")?,
                _ if is_invisible(character) => write!(f, "{}", character.escape_default())?,
                _ => write!(f, "{}", character.escape_debug())?,
            }
        }
        write!(f, "{}\"", if characters.as_str().is_empty() { "" } else { "…" })
    }
}

fn may_be_key(text: &str) -> bool {
    text.as_bytes()
        .split(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')))
        .any(|run| run.len() >= MIN_KEY_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(text: &str) -> String {
        Quoted(text).to_string()
    }

    #[test]
    fn text_is_escaped_and_truncated() {
        assert_eq!(quoted("it's 100/x"), r#""it's 100/x""#);
        assert_eq!(quoted("a\"b\n\u{1b}[31m"), r#""a\"b\n\u{1b}[31m""#);
        assert_eq!(quoted("a\u{202e}b\u{3164}\u{fe0f}"), r#""a\u{202e}b\u{3164}\u{fe0f}""#);
        assert_eq!(quoted(&"a b ".repeat(10)), format!("\"{}\"", "a b ".repeat(10)));
        assert_eq!(quoted(&"é b ".repeat(11)), format!("\"{}…\"", "é b ".repeat(10)));
    }

    #[test]
    fn text_that_may_be_a_key_is_cut_to_a_stub() {
        assert_eq!(quoted("acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT"), r#""acme_liv…""#);
        assert_eq!(quoted("key: 0d6b14a0-9d0e-4c35-a6a8-8d1f2e1c7b11"), r#""key: 0d6…""#);
        assert_eq!(quoted("2026-11-21 10:00:00.123456+05:30"), r#""2026-11-21 10:00:00.123456+05:30""#);
    }
}
