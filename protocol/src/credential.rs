//! How a request identifies its key: by the digest, or by the raw key (SPEC.md section 5).

use crate::codec::{append_bytes16, append_fixed};

/// Bit of WELCOME's `credentials`: the daemon accepts digests.
pub const CREDENTIAL_DIGEST: u8 = 1;
/// Bit of WELCOME's `credentials`: the daemon accepts raw keys.
pub const CREDENTIAL_RAW: u8 = 2;

/// Flag of VERIFY, REFUND and DEBIT: the frame has `key` instead of `digest`.
pub(crate) const RAW_KEY_FLAG: u16 = 0x0001;

/// The key of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// The SHA-256 of the key.
    Digest([u8; 32]),
    /// The key itself.
    RawKey(&'a [u8]),
}

impl Credential<'_> {
    /// Appends the field `digest` or `key`. The caller has checked the length.
    #[inline]
    pub(crate) fn append(self, out: &mut Vec<u8>) {
        match self {
            Self::Digest(digest) => append_fixed(digest, out),
            Self::RawKey(key) => append_bytes16(key, out),
        }
    }

    /// Length of the raw key; 0 for a digest, which has no limit to check.
    pub(crate) fn raw_key_length(&self) -> usize {
        if let Self::RawKey(key) = self { key.len() } else { 0 }
    }
}

/// Does not print the key, because a raw key must not reach a log.
impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Digest(_) => f.write_str("Digest(..)"),
            Self::RawKey(key) => write!(f, "RawKey({} bytes)", key.len()),
        }
    }
}
