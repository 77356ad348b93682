//! Hashes that protect nothing: of a text that can be guessed, or no hash of anything.
//!
//! A hash in an export is as hard to turn round as its key is to guess. Whose key is their id, a word or four digits has
//! no key; and thirty-two bytes that are a text are more likely that text than a digest.

use std::collections::HashMap;
use std::fmt;

use foldhash::quality::RandomState;

use keyward_engine::key_format::hash;
use keyward_engine::record::{Digest, KeyRecord};

/// Fewer different bytes than this in a digest, and it is none: of the digests of random keys, one in 10^10 has so few.
const MIN_DISTINCT: u32 = 16;

/// Most digits of a number that is looked for. The digests of all of them are made in a few milliseconds.
const MAX_DIGITS: u32 = 4;

/// What is put in the place of a key by mistake, in tests, in templates, or by a program that has no key at hand.
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

/// Longer numbers that people count to.
const COUNTED: [&str; 7] =
    ["12345", "123456", "1234567", "12345678", "123456789", "1234567890", "0123456789"];

/// Why a hash protects nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Weakness {
    Empty,
    Newline,
    Common(Box<str>),
    /// With the newline that `echo` adds.
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
            Self::Empty => write!(f, "key_hash is the SHA-256 of nothing: was there a key?"),
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

/// The digests of what can be guessed.
pub(super) struct Hashes {
    known: HashMap<Digest, Weakness, RandomState>,
    /// The owner of the row before, and the digest of their name: rows of one owner are often together.
    owner: (String, Digest),
}

impl Hashes {
    pub(super) fn new() -> Self {
        let digits = (1..=MAX_DIGITS).flat_map(|digits| {
            (0..10_u32.pow(digits)).map(move |number| format!("{number:0w$}", w = digits as usize))
        });
        let texts = COMMON.into_iter().chain(COUNTED).map(str::to_owned).chain(digits);
        let mut known = HashMap::default();
        known.insert(hash(b""), Weakness::Empty);
        known.insert(hash(b"\n"), Weakness::Newline);
        for text in texts {
            known.insert(hash(format!("{text}\n").as_bytes()), Weakness::CommonLine(text.as_str().into()));
            known.insert(hash(text.as_bytes()), Weakness::Common(text.into()));
        }
        Self { known, owner: (String::new(), hash(b"")) }
    }

    pub(super) fn weakness(&mut self, record: &KeyRecord<'_>) -> Option<Weakness> {
        if let Some(known) = self.known.get(&record.hash) {
            return Some(known.clone());
        }
        if record.hash == hash(record.key_id.as_bytes()) {
            return Some(Weakness::OwnKeyId);
        }
        if self.owner.0 != record.owner {
            self.owner = (record.owner.to_owned(), hash(record.owner.as_bytes()));
        }
        if record.hash == self.owner.1 {
            return Some(Weakness::OwnOwner);
        }
        of_the_bytes(&record.hash)
    }
}

/// What the bytes themselves say.
fn of_the_bytes(digest: &Digest) -> Option<Weakness> {
    let mut seen = [0_u64; 4];
    digest.iter().for_each(|byte| seen[usize::from(byte >> 6)] |= 1 << (byte & 63));
    let is_text = digest.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    match seen.iter().map(|word| word.count_ones()).sum() {
        // Hex digits are few, and say more.
        _ if digest.iter().all(u8::is_ascii_hexdigit) => Some(Weakness::HexText),
        _ if is_text => Some(Weakness::Text),
        distinct if distinct < MIN_DISTINCT => Some(Weakness::FewBytes(distinct)),
        _ => None,
    }
}
