//! Parses the values of fields: here digests, texts, statuses and metadata, and in the submodules
//! lists and times.

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD};
use serde_json::value::RawValue;

use keyward_engine::record::{Digest, MAX_METADATA, Quoted, Status};

pub(crate) mod cache;
mod hash_hint;
pub(crate) mod list;
pub(crate) mod null;
pub(crate) mod time;

use hash_hint::{HashHint, recognise};

/// Why a text is not the SHA-256 of a key. No message quotes the text, which may be the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HashError {
    #[error("key_hash is missing")]
    Missing,
    #[error(
        "{0} hex digits are not a SHA-256, which has 64; it must be the SHA-256 of the key, not the key itself"
    )]
    HexLength(usize),
    #[error(
        "{0} characters that are neither 64 hex digits nor base64 of 32 bytes; it must be the SHA-256 of the \
         key, not the key itself"
    )]
    Other(usize),
    #[error(transparent)]
    Recognised(HashHint),
}

/// Parses a digest: 64 hex digits, with or without PostgreSQL's `\x`, or base64 in either alphabet,
/// padded or not.
pub(crate) fn hash(text: &str) -> Result<Digest, HashError> {
    if text.is_empty() {
        return Err(HashError::Missing);
    }
    decode_hash(text).ok_or_else(|| {
        if let Some(hint) = recognise(text, |text| decode_hash(text).is_some()) {
            return HashError::Recognised(hint);
        }
        let digits = text.strip_prefix("\\x").unwrap_or(text);
        if digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            HashError::HexLength(digits.len())
        } else {
            HashError::Other(text.chars().count())
        }
    })
}

/// Decodes a digest in one of the accepted forms.
pub(crate) fn decode_hash(text: &str) -> Option<Digest> {
    let digits = text.strip_prefix("\\x").unwrap_or(text);
    match digits.len() {
        64 => const_hex::decode_to_array(digits).ok(),
        _ => decode_base64(text),
    }
}

fn decode_base64(text: &str) -> Option<Digest> {
    let unpadded = text.strip_suffix('=').filter(|_| text.len() == 44).unwrap_or(text).as_bytes();
    let mut digest = Digest::default();
    [BASE64_NOPAD, BASE64URL_NOPAD].into_iter().find_map(|alphabet| {
        (alphabet.decode_len(unpadded.len()) == Ok(digest.len())).then_some(())?;
        let length = alphabet.decode_mut(unpadded, &mut digest).ok()?;
        (length == digest.len()).then_some(digest)
    })
}

/// Why a text is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    #[error("key_id is missing")]
    Missing,
    #[error("{length} bytes; at most {max_length} are allowed")]
    TooLong { length: usize, max_length: usize },
    #[error("it contains the control character {}", .0.escape_unicode())]
    Control(char),
}

/// A text of 1 to `max_length` bytes.
pub(crate) fn required(text: &str, max_length: usize) -> Result<&str, TextError> {
    if text.is_empty() { Err(TextError::Missing) } else { optional(text, max_length) }
}

/// A text of at most `max_length` bytes without control characters, because terminals show it.
pub(crate) fn optional(text: &str, max_length: usize) -> Result<&str, TextError> {
    if text.len() > max_length {
        return Err(TextError::TooLong { length: text.len(), max_length });
    }
    // Fast path: most texts are printable ASCII. The fold has no branches and is vectorised.
    if text.bytes().fold(true, |plain, b| plain & (b' '..=b'~').contains(&b)) {
        return Ok(text);
    }
    match text.chars().find(|c| c.is_control()) {
        Some(control) => Err(TextError::Control(control)),
        None => Ok(text),
    }
}

/// Why a text is not a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a status; it is active, disabled or revoked", Quoted(.0))]
pub(crate) struct StatusError<'a>(&'a str);

/// Parses `active`, `disabled` or `revoked`. An empty text is active.
pub(crate) fn status(text: &str) -> Result<Status, StatusError<'_>> {
    match text {
        "active" | "" => Ok(Status::Active),
        "disabled" => Ok(Status::Disabled),
        "revoked" => Ok(Status::Revoked),
        _ => Err(StatusError(text)),
    }
}

/// Why a text is not metadata. No message quotes the text, which may contain personal data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("{0} bytes; at most {MAX_METADATA} are allowed")]
    TooLong(usize),
    #[error("it is not JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    #[error("it must be a JSON object, as in {{\"team\":\"billing\"}}")]
    NotObject,
}

/// A JSON object as written, without space around it; or an empty text.
pub(crate) fn metadata(text: &str) -> Result<&str, MetadataError> {
    if text.is_empty() {
        return Ok(text);
    }
    if text.len() > MAX_METADATA {
        return Err(MetadataError::TooLong(text.len()));
    }
    let json: &RawValue = serde_json::from_str(text).map_err(MetadataError::Syntax)?;
    if json.get().starts_with('{') { Ok(json.get()) } else { Err(MetadataError::NotObject) }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn failed<T, E: ToString>(result: Result<T, E>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn hash_is_hex_or_base64() {
        // The base64 of this digest has both characters in which the alphabets differ.
        let (digest, standard) = (0..)
            .map(|n: u32| Digest::from(Sha256::digest(n.to_le_bytes())))
            .map(|digest| (digest, data_encoding::BASE64.encode(&digest)))
            .find(|(_, text)| text.contains('+') && text.contains('/'))
            .expect("one of a few");
        let url = data_encoding::BASE64URL.encode(&digest);
        let hex = const_hex::encode(digest);
        for text in [
            hex.as_str(),
            &hex.to_uppercase(),
            &format!("\\x{hex}"),
            &standard,
            &url,
            standard.trim_end_matches('='),
            url.trim_end_matches('='),
        ] {
            assert_eq!(hash(text), Ok(digest), "{text}");
        }
    }

    #[test]
    fn invalid_hash_is_described_but_not_quoted() {
        let other = |n: usize| {
            format!(
                "{n} characters that are neither 64 hex digits nor base64 of 32 bytes; it must be the SHA-256 \
                 of the key, not the key itself"
            )
        };
        let hex = |n: usize| {
            format!(
                "{n} hex digits are not a SHA-256, which has 64; it must be the SHA-256 of the key, not the key \
                 itself"
            )
        };
        assert_eq!(failed(hash("")), "key_hash is missing");
        for (text, message) in [
            ("0123", hex(4)),
            (&"a".repeat(63), hex(63)),
            (&"a".repeat(65), hex(65)),
            (&format!("\\x{}", "a".repeat(66)), hex(66)),
            ("\\x", hex(0)),
            ("acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT", other(46)),
            (&format!("{}g", "a".repeat(63)), other(64)),
            (&format!("0x{}", "a".repeat(62)), other(64)),
            (&format!("{}z", "A".repeat(42)), other(43)),
            (&format!("{}==", "A".repeat(43)), other(45)),
            (&format!("{}é", "A".repeat(43)), other(44)),
            (&format!("+_{}", "A".repeat(41)), other(43)),
        ] {
            assert_eq!(failed(hash(text)), message, "{text}");
        }
    }

    #[test]
    fn text_must_be_short_and_printable() {
        assert_eq!(required(&"é".repeat(32), 64), Ok("é".repeat(32).as_str()));
        assert_eq!(optional("", 64), Ok(""));
        assert_eq!(failed(required("", 64)), "key_id is missing");
        assert_eq!(failed(optional(&"a".repeat(65), 64)), "65 bytes; at most 64 are allowed");
        assert_eq!(failed(optional("a\tb", 64)), r"it contains the control character \u{9}");
        assert_eq!(failed(optional("a\u{85}b", 64)), r"it contains the control character \u{85}");
    }

    #[test]
    fn status_is_one_of_three_words() {
        assert_eq!(status(""), Ok(Status::Active));
        assert_eq!(status("active"), Ok(Status::Active));
        assert_eq!(status("disabled"), Ok(Status::Disabled));
        assert_eq!(status("revoked"), Ok(Status::Revoked));
        assert_eq!(
            failed(status("Active")),
            r#""Active" is not a status; it is active, disabled or revoked"#
        );
    }

    #[test]
    fn metadata_is_an_object_returned_as_written() {
        let written = "{\"b\" : 1.0,\n \"a\":{\"b\":[]}, \"b\":2}";
        assert_eq!(metadata(&format!(" {written}\n")).ok(), Some(written));
        assert_eq!(metadata("").ok(), Some(""));
        let object = |n: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(n - 8));
        assert!(metadata(&object(MAX_METADATA)).is_ok());
        assert_eq!(failed(metadata(&object(MAX_METADATA + 1))), "4097 bytes; at most 4096 are allowed");
        for text in ["[]", "null", "\"{}\"", "1"] {
            assert_eq!(
                failed(metadata(text)),
                "it must be a JSON object, as in {\"team\":\"billing\"}",
                "{text}"
            );
        }
        assert_eq!(failed(metadata("{\"a\":}")), "it is not JSON: expected value at line 1 column 6");
        assert_eq!(failed(metadata("{} {}")), "it is not JSON: trailing characters at line 1 column 4");
    }
}
