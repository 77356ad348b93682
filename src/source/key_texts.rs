//! Finds the digest and the key id of a row that cannot be parsed, so that its key can be set aside.

use memchr::memmem;

use keyward_engine::record::{Digest, Field};

use crate::column_mapping::ColumnMapping;
use crate::field;

/// The texts of the digest and of the key id of a row, as far as the row has them.
pub(crate) type KeyTexts = [Option<Box<str>>; 2];

/// Parses a digest, ignoring white space around it.
pub(crate) fn parse_hash(text: &str) -> Option<Digest> {
    field::decode_hash(text.trim_ascii())
}

/// Separates words in a line of malformed JSON. PostgreSQL writes digests with an `x` after
/// backslashes.
const SEPARATORS: [u8; 9] = *b",;\t\r\n \"'\\";

/// The words in `line` that are digests.
fn hashes_in(line: &[u8]) -> impl Iterator<Item = (&str, Digest)> {
    let words = line.split(|byte| SEPARATORS.contains(byte));
    words.filter_map(|word| {
        let word = str::from_utf8(word).ok()?;
        let word = word.strip_prefix('x').filter(|digits| digits.len() == 64).unwrap_or(word);
        Some((word, parse_hash(word)?))
    })
}

/// Finds the digest and the key id in a line that is not a JSON object: the only digest in it, and
/// the value after the only occurrence of the name of the key id. Returns `None` if the line has
/// several digests.
pub(crate) fn find_key_texts(line: &[u8], mapping: &ColumnMapping) -> Option<KeyTexts> {
    let mut hashes = hashes_in(line);
    let first = hashes.next();
    if hashes.any(|(_, hash)| first.is_some_and(|(_, first)| first != hash)) {
        return None;
    }
    Some([first.map(|(text, _)| text.into()), find_key_id(line, mapping)])
}

fn find_key_id(line: &[u8], mapping: &ColumnMapping) -> Option<Box<str>> {
    let name = format!("\"{}\"", mapping.column(Field::KeyId));
    let mut places = memmem::find_iter(line, name.as_bytes());
    let (at, None) = (places.next()?, places.next()) else { return None };
    let after = line.get(at + name.len()..)?.trim_ascii_start();
    let value = after.strip_prefix(b":")?.trim_ascii_start();
    let Some(text) = value.strip_prefix(b"\"") else {
        let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
        return str::from_utf8(&value[..digits]).ok().map(Into::into);
    };
    // The slice includes both quotes. An id with an escaped quote is not found.
    serde_json::from_slice(value.get(..memchr::memchr(b'"', text)? + 2)?).ok()
}
