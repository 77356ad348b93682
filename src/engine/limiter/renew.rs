//! Renewing the words of full token buckets before they [wrap around](super::bucket).
//!
//! Whatever reads all balances renews them. In case nothing does, call [`SlotAllocator::renew`] every few
//! hours.

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::buckets::Buckets;
use crate::limiter::charge::Limiter;
use crate::limiter::slots::BucketRef;
use crate::now::Now;

impl SlotAllocator {
    /// Renews the old words of full buckets: those of the limits in `live`, which lists the buckets of
    /// the snapshot in use, and the retained ones. No reload may be between commit and reclaim.
    pub fn renew(&self, limiter: &Limiter, live: impl Iterator<Item = impl AsRef<[BucketRef]>>, now: Now) {
        for limit in live {
            limiter.buckets.renew(limit.as_ref().iter().copied(), now);
        }
        limiter.buckets.renew(self.retained.buckets(), now);
    }
}

impl Buckets {
    /// Renews the old words among `buckets`. Returns whether something is spent of any of them.
    pub(super) fn renew(&self, buckets: impl Iterator<Item = BucketRef>, now: Now) -> bool {
        buckets.fold(false, |is_any_spent, bucket| self.renew_one(bucket, now) | is_any_spent)
    }

    fn renew_one(&self, bucket: BucketRef, now: Now) -> bool {
        let (word, rule) = self.read(bucket, now);
        if !rule.is_unspent(word) {
            return true;
        }
        // If it is charged meanwhile, it need not be renewed: a locked word must not be replaced.
        if rule.is_old(word) && word.is_unflagged() {
            self.slots.compare_exchange(bucket.slot, word, rule.unspent());
        }
        false
    }
}
