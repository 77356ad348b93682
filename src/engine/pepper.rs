//! Peppers: secrets that are hashed with a key, so that an export that leaks is of no use without them.
//!
//! With a pepper, `key_hash` is HMAC-SHA256 of the key under the pepper instead of its SHA-256. Only who has the pepper can make
//! it: clients send raw keys then, and the daemon hashes. Two peppers can be in force at once, so that one can be replaced while
//! exports are still being written with the other.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

use crate::record::Digest;

/// Shortest pepper, in bytes: 128 bits, if they are random.
pub const MIN_PEPPER: usize = 16;

/// Longest pepper, in bytes: what is longer than SHA-256's block of 64 is hashed first and gains nothing.
pub const MAX_PEPPER: usize = 1024;

/// What a pepper's fingerprint is the hash of. No export has a key of this text: it ends in a NUL.
const FINGERPRINT_OF: &[u8] = b"keyward: fingerprint of a pepper\0";

/// Bytes of a fingerprint: enough to tell an operator's peppers apart.
const FINGERPRINT: usize = 8;

/// One secret, with both of its blocks hashed already.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

/// Why a secret is none.
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
    /// `secret` is taken as it is, a final newline apart, which editors and `openssl rand` write.
    ///
    /// # Errors
    /// When it is too short or too long.
    pub fn new(secret: &[u8]) -> Result<Self, PepperError> {
        let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < MIN_PEPPER {
            return Err(PepperError::TooShort);
        }
        if secret.len() > MAX_PEPPER {
            return Err(PepperError::TooLong);
        }
        // HMAC takes keys of every length.
        Hmac::new_from_slice(secret).map(Self).map_err(|_| PepperError::TooLong)
    }

    /// Tells it from other peppers, now and after a restart, and does not tell what it is.
    pub fn fingerprint(&self) -> [u8; FINGERPRINT] {
        let hash = self.hash(FINGERPRINT_OF);
        std::array::from_fn(|at| hash[at])
    }

    /// HMAC-SHA256 of `key`.
    // Never inlined, for the reason that `key_format::hash` has.
    #[inline(never)]
    pub fn hash(&self, key: &[u8]) -> Digest {
        let mut mac = self.0.clone();
        mac.update(key);
        mac.finalize().into_bytes().into()
    }
}

/// A secret must not reach a log through `{:?}`.
impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// Two peppers are the same if they hash alike.
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
    /// What new exports are written with.
    pub current: Pepper,
    /// What rows may still have been hashed with.
    pub previous: Option<Pepper>,
}

impl Peppers {
    /// Whether keys are found whose rows are hashed with `pepper`.
    pub fn contains(&self, pepper: &Pepper) -> bool {
        self.current == *pepper || self.previous.as_ref() == Some(pepper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    #[test]
    fn a_hash_is_hmac_sha_256() {
        // Computed with Python's hmac.
        let hash = Pepper::new(SECRET).expect("a pepper").hash(b"what do ya want for nothing?");
        let expected = "137e6557c3c13a1ca5dc7e52a389a0f86be8cb4db4ae61c62396058b00acacd0";
        assert_eq!(const_hex::encode(hash), expected);
    }

    #[test]
    fn a_final_newline_is_not_part_of_it() {
        let plain = Pepper::new(SECRET);
        assert!(plain.is_ok());
        assert_eq!(Pepper::new(&[SECRET, b"\n"].concat()), plain);
        assert_eq!(Pepper::new(&[SECRET, b"\r\n"].concat()), plain);
        assert_ne!(Pepper::new(&[SECRET, b"x"].concat()), plain);
    }

    #[test]
    fn a_length_out_of_range_is_refused() {
        assert_eq!(Pepper::new(&[b'x'; MIN_PEPPER - 1]), Err(PepperError::TooShort));
        assert_eq!(Pepper::new(b"\n"), Err(PepperError::TooShort));
        assert_eq!(Pepper::new(&[b'x'; MAX_PEPPER + 1]), Err(PepperError::TooLong));
        assert!(Pepper::new(&[b'x'; MAX_PEPPER]).is_ok());
    }

    #[test]
    fn a_fingerprint_tells_peppers_apart() {
        let of = |secret: &[u8]| Pepper::new(secret).expect("a pepper").fingerprint();
        assert_eq!(of(SECRET), of(&[SECRET, b"\n"].concat()));
        assert_ne!(of(SECRET), of(&[SECRET, b"x"].concat()));
        // Stored in state directories: it must not change from version to version.
        assert_eq!(const_hex::encode(of(SECRET)), "bdc7ce54cc4f6223");
    }

    #[test]
    fn it_is_not_shown() {
        assert_eq!(format!("{:?}", Pepper::new(SECRET)), "Ok(Pepper(..))");
    }
}
