//! Recognises digests of guessable keys, and values of `key_hash` that are probably not digests.
//!
//! A digest is only as hard to invert as its key is to guess. A key that equals its id, a word or a
//! short number protects nothing. Thirty-two bytes that are printable text are more likely that
//! text than a digest.

use std::collections::HashMap;
use std::fmt;

use foldhash::quality::RandomState;

use keyward_engine::key_format::hash;
use keyward_engine::record::{Digest, KeyRecord};

/// A value with fewer distinct bytes than this is not a digest: of the digests of random keys, one
/// in 10^10 has so few.
const MIN_DISTINCT: u32 = 16;

/// Maximum number of digits of the numbers that are tried. Computing their digests takes a few
/// milliseconds.
const MAX_DIGITS: u32 = 4;

/// Common placeholders for keys in tests, templates and programs.
const COMMON: [&str; 64] = [
    "0",
    "1",
    "None",
    "abc",
    "abc123",
    "abcdef",
    "access_token",
    "admin",
    "administrator",
    "api",
    "api-key",
    "api_key",
    "apikey",
    "bar",
    "changeit",
    "changeme",
    "default",
    "demo",
    "dev",
    "development",
    "dummy",
    "example",
    "false",
    "foo",
    "foobar",
    "guest",
    "hello",
    "hello world",
    "hunter2",
    "key",
    "key1",
    "letmein",
    "live",
    "login",
    "master",
    "my-api-key",
    "my_api_key",
    "nil",
    "null",
    "pass",
    "passw0rd",
    "password",
    "password1",
    "prod",
    "production",
    "qwerty",
    "root",
    "sample",
    "secret",
    "secret-key",
    "secret_key",
    "secretkey",
    "staging",
    "string",
    "test",
    "test-key",
    "test123",
    "test_key",
    "testkey",
    "token",
    "true",
    "undefined",
    "user",
    "xxx",
];

/// Common longer numbers.
const COMMON_NUMBERS: [&str; 7] =
    ["12345", "123456", "1234567", "12345678", "123456789", "1234567890", "0123456789"];

/// Why a digest protects nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Weakness {
    Empty,
    Newline,
    Common(Box<str>),
    /// A common text with the newline that `echo` appends.
    CommonLine(Box<str>),
    OwnKeyId,
    OwnOwner,
    FewBytes(u32),
    HexText,
    Text,
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "key_hash is the SHA-256 of an empty text: was there a key?"),
            Self::Newline => write!(f, "key_hash is the SHA-256 of an empty line: was there a key?"),
            Self::Common(text) => write!(f, "key_hash is the SHA-256 of {text:?}, which anyone would try"),
            Self::CommonLine(text) => {
                write!(f, "key_hash is the SHA-256 of {text:?} and a newline, which anyone would try")
            }
            Self::OwnKeyId => write!(f, "key_hash is the SHA-256 of the key_id, which is no secret"),
            Self::OwnOwner => write!(f, "key_hash is the SHA-256 of the owner, which is no secret"),
            Self::FewBytes(count) => {
                write!(f, "key_hash has only {count} different bytes: it is hardly the SHA-256 of anything")
            }
            Self::HexText => {
                write!(
                    f,
                    "key_hash is a text of 32 hex digits: it is hardly a SHA-256, but the hex of something else"
                )
            }
            Self::Text => {
                write!(
                    f,
                    "key_hash is a text of 32 characters: it is hardly a SHA-256, but perhaps the key itself"
                )
            }
        }
    }
}

/// The digests of guessable texts.
pub(super) struct WeakHashes {
    known: HashMap<Digest, Weakness, RandomState>,
    /// The last owner and its digest: the rows of an owner are often adjacent.
    last_owner: (String, Digest),
}

impl WeakHashes {
    pub(super) fn new() -> Self {
        let digits = (1..=MAX_DIGITS).flat_map(|digits| {
            (0..10_u32.pow(digits)).map(move |number| format!("{number:0w$}", w = digits as usize))
        });
        let texts = COMMON.into_iter().chain(COMMON_NUMBERS).map(str::to_owned).chain(digits);
        let mut known = HashMap::default();
        known.insert(hash(b""), Weakness::Empty);
        known.insert(hash(b"\n"), Weakness::Newline);
        for text in texts {
            known.insert(hash(format!("{text}\n").as_bytes()), Weakness::CommonLine(text.as_str().into()));
            known.insert(hash(text.as_bytes()), Weakness::Common(text.into()));
        }
        Self { known, last_owner: (String::new(), hash(b"")) }
    }

    /// The weakness of the digest of `record`, if it has one.
    pub(super) fn weakness(&mut self, record: &KeyRecord<'_>) -> Option<Weakness> {
        if let Some(known) = self.known.get(&record.hash) {
            return Some(known.clone());
        }
        if record.hash == hash(record.key_id.as_bytes()) {
            return Some(Weakness::OwnKeyId);
        }
        if self.last_owner.0 != record.owner {
            self.last_owner = (record.owner.to_owned(), hash(record.owner.as_bytes()));
        }
        if record.hash == self.last_owner.1 {
            return Some(Weakness::OwnOwner);
        }
        weakness_of_bytes(&record.hash)
    }
}

/// The weakness that the bytes show by themselves.
fn weakness_of_bytes(digest: &Digest) -> Option<Weakness> {
    // A bit for each value of a byte.
    let mut distinct = [0_u64; 4];
    digest.iter().for_each(|byte| distinct[usize::from(byte >> 6)] |= 1 << (byte & 63));
    let is_text = digest.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    match distinct.iter().map(|word| word.count_ones()).sum() {
        // Tested first: hex digits also have few distinct bytes.
        _ if digest.iter().all(u8::is_ascii_hexdigit) => Some(Weakness::HexText),
        _ if is_text => Some(Weakness::Text),
        distinct if distinct < MIN_DISTINCT => Some(Weakness::FewBytes(distinct)),
        _ => None,
    }
}
