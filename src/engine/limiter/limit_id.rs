//! The identity of a limit. It outlives the slot numbers of the limit's buckets: in the retained
//! buckets, and in the saved file.

use sha2::{Digest as _, Sha256};

use crate::limiter::rule::RuleKind;

/// The identity of a limit: key id or owner, the limit's name, and its kind. A limit has one bucket
/// for each rule that reads its word in another way.
///
/// The id is a SHA-256 truncated to 128 bits, so names of any length cost the same memory. Two
/// limits with equal ids would share a balance; finding such a pair takes about 2^64 tries, which
/// is infeasible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitId(pub [u8; 16]);

impl LimitId {
    /// The id of a limit that a key has for itself.
    pub fn for_key(key_id: &str, limit: &str, kind: RuleKind) -> Self {
        let tag = match kind {
            RuleKind::Bucket => "key",
            RuleKind::Window => "key window",
            RuleKind::Credits => "key credits",
        };
        Self::hash(tag, &[key_id, limit])
    }

    /// The id of a limit that all keys of an owner share, regardless of their plans. Plans that
    /// define the limit differently share the id; the limit then has a bucket for each rate.
    pub(crate) fn for_owner(owner: &str, limit: &str, kind: RuleKind) -> Self {
        let tag = match kind {
            RuleKind::Bucket => "owner",
            RuleKind::Window => "owner window",
            RuleKind::Credits => "owner credits",
        };
        Self::hash(tag, &[owner, limit])
    }

    /// Hashes the tag and the parts, each preceded by its length, so different lists never hash the
    /// same bytes. The saved file contains these ids: changing the hash discards all saved
    /// balances.
    fn hash(tag: &str, parts: &[&str]) -> Self {
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
    use crate::limiter::rule::RuleKind::{Bucket, Credits, Window};

    #[test]
    fn different_limits_have_different_ids() {
        let ids = [
            LimitId::for_key("a", "b", Bucket),
            LimitId::for_key("ab", "", Bucket),
            LimitId::for_key("", "ab", Bucket),
            LimitId::for_key("a\0b", "c", Bucket),
            LimitId::for_key("a", "b\0c", Bucket),
            LimitId::for_owner("a", "b", Bucket),
            LimitId::for_owner("ab", "", Bucket),
            LimitId::for_owner("", "ab", Bucket),
            LimitId::for_key("a", "b", Window),
            LimitId::for_key("a", "b", Credits),
            LimitId::for_owner("a", "b", Window),
            LimitId::for_owner("a", "b", Credits),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id), "{at}");
        }
    }

    /// The expected value was computed with Python's hashlib.
    #[test]
    fn id_of_a_key_has_its_documented_value() {
        let id = LimitId::for_key("key_1", "default", Bucket);
        assert_eq!(const_hex::encode(id.0), "04c9e65b108897dd8e6e9c5813a20a94");
    }
}
