//! Computes the skeleton of a text, which is the same for texts that are easily confused (UTS 39).
//!
//! The skeleton ignores case, spaces at the ends, repeated spaces and invisible characters. It does
//! not distinguish `-`, `_` and `.`, nor precomposed from combining accents. Besides the
//! confusables of UTS 39, it maps `0` to `o`, and `1` and `i` to `l`.

use unicode_normalization::UnicodeNormalization;
use unicode_security::confusable_detection;

use keyward_engine::record::is_invisible;

/// Appends the skeleton of `text` to `out`.
pub(super) fn skeleton(text: &str, out: &mut String) {
    // Fast path: most texts are ASCII.
    if text.is_ascii() {
        return fold_characters(text.chars(), out);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.nfd() {
        match c {
            c if c.is_ascii() => plain.push(c),
            c if c.is_whitespace() => plain.push(' '),
            c if is_invisible(c) => {}
            // ASCII characters are excluded, so that they have the same skeleton as in the fast
            // path.
            c => plain.extend(confusable_detection::skeleton(c.encode_utf8(&mut [0; 4]))),
        }
    }
    fold_characters(plain.chars(), out);
}

/// Maps confusable ASCII characters, folds case, collapses repeated spaces and trims spaces at the
/// ends.
fn fold_characters(characters: impl Iterator<Item = char>, out: &mut String) {
    let begin = out.len();
    let mut pending_space = false;
    for c in characters {
        if c == ' ' {
            pending_space = out.len() > begin;
            continue;
        }
        if std::mem::take(&mut pending_space) {
            out.push(' ');
        }
        match c.to_ascii_lowercase() {
            '_' | '.' => out.push('-'),
            '0' => out.push('o'),
            '1' | 'i' | '|' => out.push('l'),
            // UTS 39 maps m to rn, which looks like it.
            'm' => out.push_str("rn"),
            c if c.is_ascii() => out.push(c),
            c => out.extend(c.to_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        let mut out = String::new();
        skeleton(text, &mut out);
        out
    }

    #[test]
    fn confusable_texts_have_the_same_skeleton() {
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
            assert_eq!(of(one), of(other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn distinct_texts_have_distinct_skeletons() {
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
            assert!(seen.insert(of(text)), "{text}");
        }
    }
}
