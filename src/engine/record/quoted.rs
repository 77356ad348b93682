//! How a text from an export is shown in a message: enough to find it, never enough to use it.
//!
//! Messages end up in logs and terminals, and the text in question may be a raw key that was pasted into the
//! wrong column. So whatever has the look of a key is cut to a stub that is too short to guess the rest from.

use std::fmt;

use super::is_invisible;

/// Most characters shown: the longest form of a timestamp has 32, and a line should stay readable.
const MAX_SHOWN: usize = 40;

/// Most characters shown of what may be a key.
const MAX_SHOWN_OF_KEY: usize = 8;

/// From this many letters, digits, `_` and `-` on end, a text may be a key: the shortest in common use have 24
/// random characters or more, while no time, network, rate or status has a run half as long.
const KEY_RUN: usize = 24;

/// Displays a text in quotes: escaped, cut to 40 characters, and to 8 where it might be a key.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl Quoted<'_> {
    /// Whether the text has the look of a key, and so is cut to a stub.
    pub fn may_be_key(&self) -> bool {
        may_be_key(self.0)
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = if may_be_key(self.0) { MAX_SHOWN_OF_KEY } else { MAX_SHOWN };
        let mut characters = self.0.chars();
        write!(f, "\"")?;
        for character in characters.by_ref().take(most) {
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
        .any(|run| run.len() >= KEY_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(text: &str) -> String {
        Quoted(text).to_string()
    }

    #[test]
    fn a_text_is_escaped_and_cut() {
        assert_eq!(quoted("it's 100/x"), r#""it's 100/x""#);
        assert_eq!(quoted("a\"b\n\u{1b}[31m"), r#""a\"b\n\u{1b}[31m""#);
        assert_eq!(quoted("a\u{202e}b\u{3164}\u{fe0f}"), r#""a\u{202e}b\u{3164}\u{fe0f}""#);
        assert_eq!(quoted(&"a b ".repeat(10)), format!("\"{}\"", "a b ".repeat(10)));
        assert_eq!(quoted(&"é b ".repeat(11)), format!("\"{}…\"", "é b ".repeat(10)));
    }

    #[test]
    fn what_may_be_a_key_is_never_shown() {
        assert_eq!(quoted("acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT"), r#""acme_liv…""#);
        assert_eq!(quoted("key: 0d6b14a0-9d0e-4c35-a6a8-8d1f2e1c7b11"), r#""key: 0d6…""#);
        assert_eq!(quoted("2026-11-21 10:00:00.123456+05:30"), r#""2026-11-21 10:00:00.123456+05:30""#);
    }
}
