//! What a text looks like: the same for all that are easily taken for each other.
//!
//! Case, blanks at the ends, characters that are not shown and `-`, `_` or `.` make no difference, nor does whether an accent is
//! a character of its own. Look-alikes are those of Unicode's confusables (UTS 39), and `0`, `o`, `1`, `i`, `l` beside.

use unicode_normalization::UnicodeNormalization;
use unicode_security::confusable_detection::skeleton;

use keyward_engine::record::is_invisible;

/// Appends what `text` looks like.
pub(super) fn look(text: &str, out: &mut String) {
    // Nearly all texts are of nothing else.
    if text.is_ascii() {
        return of_characters(text.chars(), out);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.nfd() {
        match c {
            c if c.is_ascii() => plain.push(c),
            c if c.is_whitespace() => plain.push(' '),
            c if is_invisible(c) => {}
            // An ASCII character would have others' look than where it stands in a text without any other.
            c => plain.extend(skeleton(c.encode_utf8(&mut [0; 4]))),
        }
    }
    of_characters(plain.chars(), out);
}

/// Blanks in a row look like one, and at the ends like none.
fn of_characters(characters: impl Iterator<Item = char>, out: &mut String) {
    let begin = out.len();
    let mut blank = false;
    for c in characters {
        if c == ' ' {
            blank = out.len() > begin;
            continue;
        }
        if std::mem::take(&mut blank) {
            out.push(' ');
        }
        match c.to_ascii_lowercase() {
            '_' | '.' => out.push('-'),
            '0' => out.push('o'),
            '1' | 'i' | '|' => out.push('l'),
            // What looks like it, Unicode writes so.
            'm' => out.push_str("rn"),
            c if c.is_ascii() => out.push(c),
            c => out.extend(c.to_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(text: &str) -> String {
        let mut out = String::new();
        look(text, &mut out);
        out
    }

    #[test]
    fn texts_that_are_easily_taken_for_each_other_look_the_same() {
        for (one, other) in [
            ("acme-1", "acme-1 "),
            ("acme-1", " acme-1"),
            ("acme-1", "acme-1\u{200b}"),
            ("acme-1", "ac\u{ad}me-1"),
            ("acme-1", "\u{202e}acme-1"),
            ("acme-1", "acme-1\u{fe0f}"),
            ("acme-1", "acme\u{feff}-1"),
            ("acme-1", "acme-1\u{a0}"),
            ("Acme Inc", "Acme  Inc"),
            ("Acme Inc", "Acme\u{a0}Inc"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("\u{212b}ngstr\u{f6}m", "\u{c5}ngstro\u{308}m"),
            ("acme", "\u{430}cme"),
            ("acme", "acm\u{435}"),
            ("PAYPAL", "\u{420}AYPAL"),
            ("modern", "rnodern"),
            ("acme-1", "acme\u{2010}l"),
            ("ACME", "acme"),
            ("Größe", "gRÖßE"),
        ] {
            assert_eq!(looks(one), looks(other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn texts_that_differ_look_different() {
        let texts = [
            "acme",
            "acme-2",
            "acme1-",
            "a cme",
            "cafe",
            "caf\u{e9}",
            "名前",
            "名",
            "Größe",
            "Grosse",
            "",
            "é",
        ];
        let mut seen = std::collections::HashSet::new();
        for text in texts {
            assert!(seen.insert(looks(text)), "{text}");
        }
    }
}
