//! The format of the keys that keyward mints: a prefix, 30 random base62 characters and a checksum
//! of 6 characters.
//!
//! ```text
//! acme_live_ 0123456789ABCDEFGHIJKLMNOPQRST 4MTgoG
//! prefix     random                         CRC-32 (IEEE) of everything before it, most significant digit first
//! ```
//!
//! The prefix lets a scanner find a leaked key and its issuer. The checksum detects typos and texts
//! that only look like a key, without a daemon. It is not a secret; the security of a key is in its
//! 178 random bits. Both parts use the base62 alphabet `0-9`, `A-Z`, `a-z`, in this order.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::record::Digest;

pub mod gitleaks;
mod sha256;

/// The digits of base62, by ascending value.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Random characters in a key: 178 bits, more than a UUID or an AES-128 key has.
pub const RANDOM_CHARACTERS: usize = 30;

/// Characters of the checksum: the fewest base62 digits that can represent every CRC-32.
pub const CHECKSUM_CHARACTERS: usize = 6;

/// Longest prefix, in bytes: enough for a company, an environment and a kind of key.
pub const MAX_PREFIX: usize = 32;

/// Random bytes below this value map evenly to digits: 248 is the largest multiple of 62 that fits
/// into a byte. Larger bytes are rejected to avoid modulo bias.
const REJECTION_BOUND: u8 = 248;

/// Random bytes requested at a time. One byte in 32 is rejected, so a second request is needed for
/// about one key in 10^15.
const RANDOM_BYTES: usize = 48;

const _: () = {
    let digits = ALPHABET.len() as u64;
    assert!(digits.pow(CHECKSUM_CHARACTERS as u32) > u32::MAX as u64);
    assert!(digits.pow(CHECKSUM_CHARACTERS as u32 - 1) <= u32::MAX as u64);
    assert!((REJECTION_BOUND as usize).is_multiple_of(ALPHABET.len()));
    // Every minted key fits into a request.
    assert!(MAX_PREFIX + RANDOM_CHARACTERS + CHECKSUM_CHARACTERS <= keyward_protocol::MAX_KEY);
};

/// The prefix of minted keys: 1..=[`MAX_PREFIX`] bytes of `a-z`, `0-9` and `_`, of which the last
/// is `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Box<str>);

/// Why a text is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The text is empty.
    #[error("a prefix has at least one character, as in acme_live_")]
    Empty,
    /// The text has more than [`MAX_PREFIX`] bytes.
    #[error("a prefix has at most {MAX_PREFIX} characters")]
    TooLong,
    /// There is a character other than `a-z`, `0-9` and `_`.
    #[error("a prefix consists of a-z, 0-9 and _ only, as in acme_live_")]
    Character,
    /// The last character is not `_`.
    #[error("a prefix ends in _, as in acme_live_")]
    End,
}

impl Prefix {
    /// The prefix as text, including its final `_`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    /// `acme_live_`
    fn default() -> Self {
        Self("acme_live_".into())
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        if text.is_empty() {
            return Err(PrefixError::Empty);
        }
        if text.len() > MAX_PREFIX {
            return Err(PrefixError::TooLong);
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return Err(PrefixError::Character);
        }
        // The separator is not a base62 digit, so it marks where the random part begins, and a key
        // matches at most one prefix.
        if !text.ends_with('_') {
            return Err(PrefixError::End);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the format of a key reveals before any look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyFormat {
    /// The key has none of the prefixes: it was issued elsewhere, and may have any format.
    Foreign,
    /// The key has one of the prefixes and a correct checksum. It may still be unknown.
    Valid,
    /// The key has one of the prefixes, but a wrong length, an unexpected character or a wrong
    /// checksum.
    Malformed,
}

/// Mints a key from the system's random source. The text is wiped when it is dropped.
///
/// # Errors
/// If the system's random source fails.
pub fn mint(prefix: &Prefix) -> Result<Zeroizing<String>, getrandom::Error> {
    mint_from(prefix, getrandom::fill)
}

/// Compares a key with the format of the keys minted with `prefixes`. Does not allocate.
///
/// One prefix may begin with another (`acme_`, `acme_live_`); a key still matches at most one of
/// them.
pub fn classify(key: &[u8], prefixes: &[Prefix]) -> KeyFormat {
    let mut format = KeyFormat::Foreign;
    for prefix in prefixes {
        if let Some(rest) = key.strip_prefix(prefix.0.as_bytes()) {
            if is_well_formed(key, rest) {
                return KeyFormat::Valid;
            }
            format = KeyFormat::Malformed;
        }
    }
    format
}

/// The SHA-256 of a key, as in exports and snapshots.
// Never inlined: the residue that the hasher leaves on the stack is then below the frame of every
// caller, where later calls overwrite it.
#[inline(never)]
pub fn hash(key: &[u8]) -> Digest {
    sha256::hash_single_block(key).unwrap_or_else(|| Sha256::digest(key).into())
}

/// Whether `rest`, which is `key` without its prefix, consists of a random part and a correct
/// checksum.
fn is_well_formed(key: &[u8], rest: &[u8]) -> bool {
    if rest.len() != RANDOM_CHARACTERS + CHECKSUM_CHARACTERS {
        return false;
    }
    let (random, written) = rest.split_at(RANDOM_CHARACTERS);
    let covered = &key[..key.len() - CHECKSUM_CHARACTERS];
    random.iter().all(u8::is_ascii_alphanumeric) && written == checksum(covered)
}

/// CRC-32 in base62, padded with zeros. It detects every burst error of up to 32 bits, so every
/// mistyped character and every swap of two neighbouring characters.
fn checksum(text: &[u8]) -> [u8; CHECKSUM_CHARACTERS] {
    let mut remainder = crc32fast::hash(text) as usize;
    let mut digits = [0; CHECKSUM_CHARACTERS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[remainder % ALPHABET.len()];
        remainder /= ALPHABET.len();
    }
    digits
}

/// Mints a key from any source of random bytes, by rejection sampling.
fn mint_from<E>(
    prefix: &Prefix,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Zeroizing<String>, E> {
    let length = prefix.0.len() + RANDOM_CHARACTERS;
    // Allocated in its final size: a string that grows would leave part of the key behind in freed
    // memory.
    let mut key = Zeroizing::new(String::with_capacity(length + CHECKSUM_CHARACTERS));
    key.push_str(&prefix.0);
    let mut random = Zeroizing::new([0; RANDOM_BYTES]);
    while key.len() < length {
        fill(random.as_mut_slice())?;
        let accepted = random.iter().filter(|byte| **byte < REJECTION_BOUND);
        for byte in accepted.take(length - key.len()) {
            key.push(char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        }
    }
    for digit in checksum(key.as_bytes()) {
        key.push(char::from(digit));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys and their checksums, computed with Python's `zlib.crc32`.
    const VECTORS: [(&str, &str); 5] = [
        ("acme_live_", "acme_live_0123456789ABCDEFGHIJKLMNOPQRST4MTgoG"),
        ("acme_live_", "acme_live_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz4T4zUE"),
        ("acme_test_", "acme_test_UVWXYZabcdefghijklmnopqrstuvwx2Ji0NJ"),
        ("_", "_0000000000000000000000000000002vgxjO"),
        // A CRC of 233,386, which needs three digits: the others are zeros.
        ("acme_live_", "acme_live_MKCzfx90glNp02f4hY8bveVq21VYjy000yiI"),
    ];

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    #[test]
    fn known_keys_are_valid() {
        for (begin, key) in VECTORS {
            assert_eq!(classify(key.as_bytes(), &[prefix(begin)]), KeyFormat::Valid, "{key}");
        }
    }

    #[test]
    fn checksum_covers_prefix_and_random_part() {
        assert_eq!(&checksum(b"123456789"), b"3jZRME", "the check value of CRC-32, 0xCBF43926");
        let moved = "acme_test_0123456789ABCDEFGHIJKLMNOPQRST4MTgoG";
        assert_eq!(classify(moved.as_bytes(), &[prefix("acme_test_")]), KeyFormat::Malformed);
    }

    #[test]
    fn minted_key_is_valid_and_of_the_expected_length() {
        for text in ["_", "acme_live_", "a2345678901234567890123456789_0_"] {
            let prefix = prefix(text);
            let key = mint(&prefix).expect("randomness");
            assert!(key.starts_with(text));
            assert_eq!(key.len(), text.len() + 36);
            assert_eq!(classify(key.as_bytes(), &[prefix]), KeyFormat::Valid, "{}", *key);
        }
    }

    #[test]
    fn every_single_character_error_is_detected() {
        let ours = [prefix("acme_live_")];
        for (_, key) in VECTORS.iter().filter(|(begin, _)| *begin == "acme_live_") {
            for position in 0..key.len() {
                for typo in 0..=u8::MAX {
                    let mut typed = key.as_bytes().to_vec();
                    if typed[position] == typo {
                        continue;
                    }
                    typed[position] = typo;
                    let expected = if position < 10 { KeyFormat::Foreign } else { KeyFormat::Malformed };
                    assert_eq!(classify(&typed, &ours), expected, "{key} with {typo} at {position}");
                }
            }
        }
    }

    #[test]
    fn swapped_neighbours_are_detected() {
        let ours = [prefix("acme_live_")];
        for (_, key) in VECTORS.iter().filter(|(begin, _)| *begin == "acme_live_") {
            for position in 10..key.len() - 1 {
                let mut typed = key.as_bytes().to_vec();
                typed.swap(position, position + 1);
                if typed != key.as_bytes() {
                    assert_eq!(classify(&typed, &ours), KeyFormat::Malformed, "{key} swapped at {position}");
                }
            }
        }
    }

    #[test]
    fn key_of_a_wrong_length_is_malformed() {
        let ours = [prefix("acme_live_")];
        let key = VECTORS[0].1.as_bytes();
        for length in 10..key.len() {
            assert_eq!(classify(&key[..length], &ours), KeyFormat::Malformed, "{length} bytes");
        }
        assert_eq!(classify(&[key, b"0"].concat(), &ours), KeyFormat::Malformed);
        assert_eq!(classify(&[key, b"\n"].concat(), &ours), KeyFormat::Malformed);
        assert_eq!(classify(&[key, key].concat(), &ours), KeyFormat::Malformed);
    }

    #[test]
    fn key_with_an_invalid_character_is_malformed_even_if_the_checksum_matches() {
        let mut key = b"acme_live_0123456789ABCDEFGHIJKLMNOPQR-\xff".to_vec();
        let sum = checksum(&key);
        key.extend(sum);
        assert_eq!(classify(&key, &[prefix("acme_live_")]), KeyFormat::Malformed);
    }

    #[test]
    fn key_without_a_minted_prefix_is_foreign() {
        let ours = [prefix("acme_live_"), prefix("acme_test_")];
        for key in ["", "a", "acme_live", "ACME_LIVE_", "sk_live_0123", "eyJhbGciOiJIUzI1NiJ9.e30.x"] {
            assert_eq!(classify(key.as_bytes(), &ours), KeyFormat::Foreign, "{key}");
        }
        assert_eq!(classify(VECTORS[0].1.as_bytes(), &[]), KeyFormat::Foreign, "no prefix is configured");
    }

    #[test]
    fn one_prefix_may_begin_with_another() {
        let (long, short) = (prefix("acme_live_"), prefix("acme_"));
        let (long_key, short_key) = (mint(&long).expect("randomness"), mint(&short).expect("randomness"));
        for prefixes in [[long.clone(), short.clone()], [short, long]] {
            assert_eq!(classify(long_key.as_bytes(), &prefixes), KeyFormat::Valid);
            assert_eq!(classify(short_key.as_bytes(), &prefixes), KeyFormat::Valid);
            assert_eq!(classify(b"acme_live_", &prefixes), KeyFormat::Malformed);
        }
    }

    #[test]
    fn bytes_from_248_on_are_rejected() {
        let mut next = 0_u8;
        let mut keys = String::new();
        // A counting source: 256 bytes yield each digit four times, and 8 bytes are rejected.
        let mut counted = |buffer: &mut [u8]| {
            for byte in buffer {
                *byte = next;
                next = next.wrapping_add(1);
            }
            Ok::<(), ()>(())
        };
        for _ in 0..16 {
            let key = mint_from(&prefix("_"), &mut counted).expect("the source does not fail");
            keys.push_str(&key[1..31]);
        }
        assert!(keys.starts_with("0123456789ABCDEFGHIJKLMNOPQRST"), "{keys}");
        // Each key takes 30 of 48 bytes. The sixth begins at 240: eight digits, then 248..=255 are
        // rejected.
        assert_eq!(&keys[150..180], "stuvwxyz0123456789ABCDEFGHIJKL", "{keys}");
    }

    #[test]
    fn failing_random_source_mints_nothing() {
        assert_eq!(mint_from(&prefix("_"), |_| Err("dry")).expect_err("fails"), "dry");
    }

    #[test]
    fn digits_are_uniformly_distributed() {
        const KEYS: usize = 20_000;
        let prefix = prefix("acme_live_");
        let mut counts = [0_u32; 256];
        let mut seen = std::collections::HashSet::new();
        for _ in 0..KEYS {
            let key = mint(&prefix).expect("randomness");
            key[10..40].bytes().for_each(|digit| counts[usize::from(digit)] += 1);
            assert!(seen.insert(key.to_string()), "minted twice");
        }
        // Of 600,000 digits, 9,677 of each are expected, with a standard deviation of 98. A
        // deviation of seven times that happens once in billions of runs. Modulo bias would give
        // eight of the digits 2 % each instead of 1.6 %.
        let expected = (KEYS * RANDOM_CHARACTERS / ALPHABET.len()) as u32;
        for digit in ALPHABET {
            let count = counts[usize::from(*digit)];
            assert!(count.abs_diff(expected) < 700, "{}: {count}, expected {expected}", char::from(*digit));
        }
    }

    #[test]
    fn alphabet_is_strictly_ascending() {
        assert!(ALPHABET.is_sorted_by(|a, b| a < b));
        assert!(ALPHABET.iter().all(u8::is_ascii_alphanumeric));
    }

    #[test]
    fn hash_is_sha_256() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(const_hex::encode(hash(b"abc")), expected);
    }

    #[test]
    fn invalid_prefix_is_refused_with_a_reason() {
        let refused = |text: &str| text.parse::<Prefix>().expect_err("not a prefix");
        assert_eq!(refused(""), PrefixError::Empty);
        assert_eq!(refused(&format!("{}_", "a".repeat(32))), PrefixError::TooLong);
        for text in ["Acme_", "acme-live_", "acme live_", "acmé_", "acme_\n"] {
            assert_eq!(refused(text), PrefixError::Character, "{text}");
        }
        assert_eq!(refused("acme"), PrefixError::End);
        assert_eq!(prefix("acme_live_").to_string(), "acme_live_");
        assert!(format!("{}_", "a".repeat(31)).parse::<Prefix>().is_ok());
    }
}
