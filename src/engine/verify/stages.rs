//! The four stages of a batch, in their order. Each prefetches what the next one reads.

use keyward_protocol::{Credential, Verdict, Verify};

use super::decision::METADATA;
use super::{Batch, Decision, Pending, Verifier, credential, restrictions};
use crate::record::Digest;
use crate::snapshot::{Snapshot, View};

impl<'s> Verifier<'s> {
    /// Stage 1: computes the digests and prefetches their home groups of the index.
    #[inline]
    pub(super) fn hash(&self, snapshot: &Snapshot, requests: &[Verify<'_>], pending: &mut Batch<'s>) {
        for request in requests {
            let hashed = |digest: &Digest, verdict| Pending {
                digest: *digest,
                index_hash: snapshot.index_hash(digest),
                candidate: None,
                key: None,
                bucket: None,
                verdict,
            };
            // Each kind is pushed by itself. A digest that may be either is copied twice.
            match &request.credential {
                Credential::Digest(digest) => pending.push(hashed(digest, None)),
                Credential::RawKey(key) => pending.push(match self.hash_key(key) {
                    Ok(digest) => hashed(&digest, None),
                    Err(denied) => hashed(&Digest::default(), Some(denied)),
                }),
            }
        }
    }
}

/// Stage 2: reads the home groups of the index and prefetches the entries that most likely hold the
/// digests.
#[inline]
pub(super) fn look_up(snapshot: &Snapshot, pending: &mut [Pending<'_>]) {
    for pending in pending {
        if pending.verdict.is_none() {
            pending.candidate = snapshot.candidate(pending.index_hash);
        }
    }
}

impl<'s> Verifier<'s> {
    /// Stage 3: compares the digests, evaluates every restriction but the limits, and prefetches
    /// the bucket of each first limit, and the key ids and owners' names of the answers.
    #[inline]
    pub(super) fn evaluate(&self, view: View<'s>, requests: &[Verify<'_>], pending: &mut [Pending<'s>]) {
        let snapshot = view.snapshot;
        let previous = self.global_policy.previous_pepper();
        for (request, pending) in requests.iter().zip(pending) {
            if pending.verdict.is_some() {
                continue;
            }
            let found = pending.candidate.and_then(|candidate| snapshot.confirm(candidate, &pending.digest));
            let found = match previous {
                None => found,
                Some(previous) => {
                    credential::find_with_either_pepper(snapshot, found, request.credential, previous)
                }
            };
            let Some(key) = found else {
                pending.verdict = Some(Verdict::UnknownKey);
                continue;
            };
            pending.key = Some(key);
            pending.verdict = restrictions::first_denial(request, key, view.overlay, self.now.unix);
            key.prefetch_texts();
            if pending.verdict.is_none() {
                pending.bucket = key.first_slot().and_then(|slot| self.limiter.bucket(slot));
            }
        }
    }

    /// Stage 4: charges the limits of the requests that are not denied, and answers. Returns the
    /// number of requests answered; it stops at a bucket that a newer snapshot has taken over.
    #[inline]
    pub(super) fn charge_and_answer(
        &self,
        generation: u64,
        requests: &[Verify<'_>],
        pending: &[Pending<'s>],
        answer: &mut impl FnMut(&Decision<'_>),
    ) -> usize {
        for (answered, (request, pending)) in requests.iter().zip(pending).enumerate() {
            // Fail closed: without a key, no request is allowed, even if an earlier stage set no
            // verdict.
            let default_verdict = if pending.key.is_some() { Verdict::Allowed } else { Verdict::UnknownKey };
            let verdict = pending.verdict.unwrap_or(default_verdict);
            let mut decision = Decision::without_key(request.request_id, verdict, generation);
            if let Some(key) = pending.key {
                decision.key = pending.key;
                decision.extras = u8::from(request.want_metadata) * METADATA;
                // One branch, and usually neither.
                if request.costs.is_some() | request.want_balances {
                    if self.charge_and_answer_in_detail(key, request, decision, answer).is_err() {
                        return answered;
                    }
                    continue;
                }
                if pending.verdict.is_none()
                    && self.charge_limits(key, pending.bucket, request.cost, &mut decision).is_err()
                {
                    return answered;
                }
            }
            answer(&decision);
        }
        requests.len()
    }
}
