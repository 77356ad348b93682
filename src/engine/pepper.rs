//! Peppers: secrets that key the hash of each API key, so that a leaked export alone is useless.
//!
//! With a pepper, `key_hash` is the HMAC-SHA256 of the key under the pepper instead of its SHA-256.
//! Only a holder of the pepper can compute it: clients must send raw keys, and the daemon hashes
//! them. Two peppers can be in force at once, so that one can be replaced while exports still
//! contain digests under the other.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

use crate::record::Digest;

/// Shortest pepper, in bytes: 128 bits, if the bytes are random.
pub const MIN_PEPPER: usize = 16;

/// Longest pepper, in bytes. HMAC hashes a key longer than 64 bytes, the block of SHA-256, so more
/// length adds no strength.
pub const MAX_PEPPER: usize = 1024;

/// The message whose HMAC is the fingerprint. It ends in a NUL, which no API key contains.
const FINGERPRINT_MESSAGE: &[u8] = b"keyward: fingerprint of a pepper\0";

/// Bytes of a fingerprint: enough to distinguish the peppers of one operator.
const FINGERPRINT_LENGTH: usize = 8;

/// One secret, as an HMAC whose inner and outer key blocks are hashed in advance.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

/// Why a secret cannot be a pepper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PepperError {
    /// Fewer than [`MIN_PEPPER`] bytes.
    #[error("a pepper has at least {MIN_PEPPER} bytes; make one with: openssl rand -hex 32")]
    TooShort,
    /// More than [`MAX_PEPPER`] bytes.
    #[error("a pepper has at most {MAX_PEPPER} bytes; make one with: openssl rand -hex 32")]
    TooLong,
}

impl Pepper {
    /// Takes `secret` as it is, without a final newline, which editors and `openssl rand` append.
    ///
    /// # Errors
    /// If the secret is too short or too long.
    pub fn new(secret: &[u8]) -> Result<Self, PepperError> {
        let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < MIN_PEPPER {
            return Err(PepperError::TooShort);
        }
        if secret.len() > MAX_PEPPER {
            return Err(PepperError::TooLong);
        }
        // HMAC accepts a key of any length, so this cannot fail.
        Hmac::new_from_slice(secret).map(Self).map_err(|_| PepperError::TooLong)
    }

    /// Identifies the pepper, also after a restart, without revealing it.
    pub fn fingerprint(&self) -> [u8; FINGERPRINT_LENGTH] {
        let hash = self.hash(FINGERPRINT_MESSAGE);
        std::array::from_fn(|at| hash[at])
    }

    /// HMAC-SHA256 of `key`.
    // Never inlined, for the same reason as `key_format::hash`.
    #[inline(never)]
    pub fn hash(&self, key: &[u8]) -> Digest {
        let mut mac = self.0.clone();
        mac.update(key);
        mac.finalize().into_bytes().into()
    }
}

/// Hides the secret, which must not reach a log through `{:?}`.
impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// Compares the digests of the same message, because the secrets are not stored.
impl PartialEq for Pepper {
    fn eq(&self, other: &Self) -> bool {
        let [mut own, mut others] = [self, other].map(|pepper| pepper.hash(b""));
        let same = own == others;
        own.zeroize();
        others.zeroize();
        same
    }
}

/// The peppers in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Peppers {
    /// The pepper that new exports use.
    pub current: Pepper,
    /// The pepper that rows of an export may still use.
    pub previous: Option<Pepper>,
}

impl Peppers {
    /// Whether `pepper` is one of the two.
    pub fn contains(&self, pepper: &Pepper) -> bool {
        self.current == *pepper || self.previous.as_ref() == Some(pepper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    #[test]
    fn hash_is_hmac_sha_256() {
        // Computed with Python's hmac.
        let hash = Pepper::new(SECRET).expect("a pepper").hash(b"what do ya want for nothing?");
        let expected = "137e6557c3c13a1ca5dc7e52a389a0f86be8cb4db4ae61c62396058b00acacd0";
        assert_eq!(const_hex::encode(hash), expected);
    }

    #[test]
    fn final_newline_is_not_part_of_the_secret() {
        let plain = Pepper::new(SECRET);
        assert!(plain.is_ok());
        assert_eq!(Pepper::new(&[SECRET, b"\n"].concat()), plain);
        assert_eq!(Pepper::new(&[SECRET, b"\r\n"].concat()), plain);
        assert_ne!(Pepper::new(&[SECRET, b"x"].concat()), plain);
    }

    #[test]
    fn secret_of_a_length_out_of_range_is_refused() {
        assert_eq!(Pepper::new(&[b'x'; MIN_PEPPER - 1]), Err(PepperError::TooShort));
        assert_eq!(Pepper::new(b"\n"), Err(PepperError::TooShort));
        assert_eq!(Pepper::new(&[b'x'; MAX_PEPPER + 1]), Err(PepperError::TooLong));
        assert!(Pepper::new(&[b'x'; MAX_PEPPER]).is_ok());
    }

    #[test]
    fn fingerprint_distinguishes_peppers_and_is_stable() {
        let of = |secret: &[u8]| Pepper::new(secret).expect("a pepper").fingerprint();
        assert_eq!(of(SECRET), of(&[SECRET, b"\n"].concat()));
        assert_ne!(of(SECRET), of(&[SECRET, b"x"].concat()));
        // State directories store it, so it must not change between versions.
        assert_eq!(const_hex::encode(of(SECRET)), "bdc7ce54cc4f6223");
    }

    #[test]
    fn debug_output_hides_the_secret() {
        assert_eq!(format!("{:?}", Pepper::new(SECRET)), "Ok(Pepper(..))");
    }
}
