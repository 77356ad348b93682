//! What a bucket is called wherever a slot number would not last: among the parked ones, and in the saved state.

use sha2::{Digest as _, Sha256};

/// The name of a bucket: 128 bits of a SHA-256, so that a name of any length costs the ledger and the saved state
/// the same. Two buckets that anyone could make share a name would share a balance; at 2^64 tries for a chance of it,
/// nobody can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(pub [u8; 16]);

impl BucketName {
    /// A limit that each key has for itself.
    pub fn of_key(key_id: &str, limit: &str) -> Self {
        Self::of("key", &[key_id, limit])
    }

    /// A limit that all keys of an owner share, whatever plans they are on: one name, even where those plans define it
    /// differently and it has a bucket for each rate.
    pub fn of_owner(owner: &str, limit: &str) -> Self {
        Self::of("owner", &[owner, limit])
    }

    /// Every part is preceded by its length, so that no two lists of parts are the same text. The form is kept in files:
    /// where it changes, the saved balances are forgotten.
    fn of(tag: &str, parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in std::iter::once(&tag).chain(parts) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        Self(digest.first_chunk().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_buckets_share_a_name() {
        let names = [
            BucketName::of_key("a", "b"),
            BucketName::of_key("ab", ""),
            BucketName::of_key("", "ab"),
            BucketName::of_key("a\0b", "c"),
            BucketName::of_key("a", "b\0c"),
            BucketName::of_owner("a", "b"),
            BucketName::of_owner("ab", ""),
            BucketName::of_owner("", "ab"),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{at}");
        }
    }

    /// Changing it forgets every saved balance. The digits are of another implementation (Python's hashlib).
    #[test]
    fn the_form_is_fixed() {
        let name = BucketName::of_key("key_1", "default");
        assert_eq!(const_hex::encode(name.0), "04c9e65b108897dd8e6e9c5813a20a94");
    }
}
