//! Escapes characters that a terminal does not show, or that change how it shows others.
//!
//! Key ids and owners may be any text without control characters. With a zero-width space, two of
//! them can look the same; a bidirectional override reverses the rest of a line. Such characters
//! are escaped wherever a text of an export is displayed.

use std::fmt;

/// Invisible characters other than control characters and white space, as ascending ranges:
/// Unicode's `Default_Ignorable_Code_Point` and `Cf`, private use, and the blank braille pattern.
const INVISIBLE: [(char, char); 29] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{e000}', '\u{f8ff}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
    ('\u{f0000}', '\u{ffffd}'),
    ('\u{100000}', '\u{10fffd}'),
];

/// Whether a character is invisible, changes how others are shown, or is white space other than
/// U+0020.
pub fn is_invisible(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let after = INVISIBLE.partition_point(|(first, _)| *first <= c);
    let in_table = after.checked_sub(1).and_then(|at| INVISIBLE.get(at)).is_some_and(|(_, last)| c <= *last);
    in_table || c.is_control() || c.is_whitespace()
}

/// Displays a text without quotes around it. Escapes [invisible](is_invisible) characters, and
/// those that Rust escapes in a string literal, except `'`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(is_invisible) {
            let (shown, from) = rest.split_at(at);
            write_literal(shown, f)?;
            let mut characters = from.chars();
            if let Some(c) = characters.next() {
                write!(f, "{}", c.escape_default())?;
            }
            rest = characters.as_str();
        }
        write_literal(rest, f)
    }
}

/// Displays a whole message, which has its own quotes and line ends: escapes
/// [invisible](is_invisible) characters other than newlines. It is the last measure, for messages
/// that contain a text of a file that nothing has [quoted](super::Quoted).
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(|c| c != '\n' && is_invisible(c)) {
            let (shown, from) = rest.split_at(at);
            f.write_str(shown)?;
            let mut characters = from.chars();
            if let Some(c) = characters.next() {
                write!(f, "{}", c.escape_default())?;
            }
            rest = characters.as_str();
        }
        f.write_str(rest)
    }
}

fn write_literal(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, part) in text.split('\'').enumerate() {
        write!(f, "{}{}", if index == 0 { "" } else { "'" }, part.escape_debug())?;
    }
    Ok(())
}

/// Replaces the [invisible](is_invisible) characters of a JSON text by JSON escapes, which keeps
/// its value: outside of strings, JSON is ASCII.
pub fn escape_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() || !is_invisible(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            text += &format!("\\u{unit:04x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_escaped() {
        for (text, shown) in [
            ("acme Inc.", "acme Inc."),
            ("Größe, 名前, हिन्दी", "Größe, 名前, हिन्दी"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("a\u{200b}", "a\\u{200b}"),
            ("a\u{ad}b\u{2066}", "a\\u{ad}b\\u{2066}"),
            ("a\u{a0}b\u{3000}", "a\\u{a0}b\\u{3000}"),
            ("a\u{fe0f}\u{e0041}", "a\\u{fe0f}\\u{e0041}"),
            ("\u{3164}\u{115f}\u{2800}", "\\u{3164}\\u{115f}\\u{2800}"),
            ("\u{1b}[2J\n", "\\u{1b}[2J\\n"),
            ("\u{301}x", "\\u{301}x"),
            ("e\u{301}", "e\u{301}"),
            ("\"\\", "\\\"\\\\"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown, "{text:?}");
        }
        assert!(INVISIBLE.is_sorted() && INVISIBLE.iter().all(|(first, last)| first <= last));
    }

    #[test]
    fn every_invisible_character_of_a_message_is_escaped() {
        for c in (0..=0x0010_ffff).filter_map(char::from_u32).filter(|c| is_invisible(*c) && *c != '\n') {
            let shown = Printable(&format!("a{c}b{c}{c}")).to_string();
            assert_eq!(shown, format!("a{0}b{0}{0}", c.escape_default()));
        }
        assert_eq!(Printable("it's \"a\\\"\nb é\n").to_string(), "it's \"a\\\"\nb é\n");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({"owner": "a\u{202e}b\u{e0041}é", "n": [1, "\u{200b}"]});
        let text = escape_json(&value.to_string());
        assert!(!text.contains(is_invisible), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
        assert!(text.contains("\\u202e") && text.contains("\\udb40\\udc41"), "{text}");
    }
}
