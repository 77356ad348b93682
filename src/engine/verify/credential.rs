//! From the credential of a request to the digest that the snapshot is keyed by.

use keyward_protocol::{Credential, Verdict};

use super::Verifier;
use crate::key_format::{self, KeyFormat};
use crate::pepper::Pepper;
use crate::record::Digest;
use crate::snapshot::{HashedWith, Key, Snapshot};

impl Verifier<'_> {
    /// The digest of a credential, under the current pepper if there is one.
    ///
    /// # Errors
    /// [`Verdict::MalformedKey`] if a raw key has a minted prefix and a wrong checksum.
    #[inline]
    pub(super) fn digest(&self, credential: Credential<'_>) -> Result<Digest, Verdict> {
        match credential {
            Credential::Digest(digest) => Ok(digest),
            Credential::RawKey(key) => self.hash_key(key),
        }
    }

    /// [`digest`](Self::digest) for a raw key.
    pub(super) fn hash_key(&self, key: &[u8]) -> Result<Digest, Verdict> {
        if self.is_malformed(key) {
            return Err(Verdict::MalformedKey);
        }
        Ok(match &self.global_policy.peppers {
            None => key_format::hash(key),
            Some(peppers) => peppers.current.hash(key),
        })
    }

    fn is_malformed(&self, key: &[u8]) -> bool {
        key_format::classify(key, &self.global_policy.minted_prefixes) == KeyFormat::Malformed
    }
}

/// Falls back to the previous pepper while a pepper is being replaced. `found` is the result of the
/// look-up under the current pepper.
///
/// Records in the key which of the two peppers found it, so that operators see which rows still
/// need the previous one. The fallback is not a pipeline stage because fewer and fewer rows need
/// it.
#[inline(never)]
pub(super) fn find_with_either_pepper<'s>(
    snapshot: &'s Snapshot,
    found: Option<Key<'s>>,
    credential: Credential<'_>,
    previous: &Pepper,
) -> Option<Key<'s>> {
    let Credential::RawKey(key) = credential else {
        return found;
    };
    let (key, with) = match found {
        Some(key) => (key, HashedWith::CurrentPepper),
        None => (snapshot.find(&previous.hash(key))?, HashedWith::PreviousPepper),
    };
    key.set_hashed_with(with);
    Some(key)
}
