//! The decision: a pure function of a snapshot, the buckets, the time and the requests.
//!
//! A request goes through four stages:
//!
//! 1. *hash* a raw key, mix the digest's bits, and have the index's line for it fetched;
//! 2. *look up* in that line, and have the entry fetched that the digest most likely belongs to;
//! 3. *weigh*: compare the digests, see what forbids this use of the key, and have its bucket and its texts fetched;
//! 4. *charge* its limits, and say what was decided ([`Decision`]).
//!
//! A table of a million keys is larger than any cache, so that each request waits for memory some four times, and neighbours wait at
//! the same time only if nothing between them makes the processor finish one before it begins the next. A compare-and-swap does
//! exactly that, and so does a comparison that is written not to branch. So whatever a stage reads has been on its way since the
//! stage before, and a stage is a loop of its own over a *group* of requests. The groups of a batch follow each other, each a stage
//! behind the one before: while the last stage calculates, what the other three have asked for arrives.
//!
//! Order of precedence (SPEC.md section 7): what is wrong with the daemon, then with the key, then with this use of it,
//! then with its timing; the first that applies is the answer, and only an ALLOWED has charged anything.

use arrayvec::ArrayVec;
use keyward_protocol::{Credential, Verdict, Verify};

use crate::key_format::{self, KeyFormat};
use crate::limiter::{Bucket, Charge, Limiter, MAX_CHARGES, Named, Outcome, Rate, Single};
use crate::now::Now;
use crate::pepper::Pepper;
use crate::record::Digest;
use crate::rules::GlobalPolicy;
use crate::snapshot::{EntryId, HashedWith, Key, Probe, Snapshot};

mod decision;
mod denial;
mod refund;
#[cfg(test)]
mod tests;

pub use decision::{Decision, RequestUsage};
use denial::denial;

/// Requests that are decided together. Beyond 64 nothing is gained, and the batch's working set (15 KiB with the requests) leaves the
/// first-level cache.
pub const BATCH_SIZE: usize = 64;

/// Requests in one stage at a time. Enough that what a stage asks for comes while the next group goes through the four; and few enough
/// that memory is asked little by little: a processor that waits to ask (of 24 lines at a time, here) does nothing else meanwhile.
/// With 64 a verify took 90 ns, and 122 ns with its answer; with 16, 80 and 107; with 4, 70 and 82 (`benches/verify.rs`, 1 M keys).
const GROUP_SIZE: usize = 4;

/// What a batch is decided on.
#[derive(Clone, Copy)]
pub struct Verifier<'s> {
    /// The snapshot, if there is one yet.
    pub snapshot: Option<&'s Snapshot>,
    /// The buckets.
    pub limiter: &'s Limiter,
    /// The daemon's rules.
    pub global_policy: &'s GlobalPolicy,
    /// The time for the whole batch.
    pub now: Now,
}

/// What is known of one request between the stages.
struct Pending<'s> {
    digest: Digest,
    probe: Probe,
    candidate: Option<EntryId>,
    key: Option<Key<'s>>,
    /// The bucket of its first limit.
    bucket: Option<Bucket<'s>>,
    /// Decided already: all that is left is to say so.
    verdict: Option<Verdict>,
}

type Batch<'s> = ArrayVec<Pending<'s>, BATCH_SIZE>;

impl<'s> Verifier<'s> {
    /// Answers `requests` in order, by calling `answer` for each. Returns how many were answered.
    ///
    /// That is all of them, unless a newer snapshot has taken over the buckets of this one: then the rest has to be
    /// asked again with the newer one, and nothing has been charged for it.
    #[inline]
    pub fn verify(&self, requests: &[Verify<'_>], mut answer: impl FnMut(&Decision<'s>)) -> usize {
        let mut answered = 0;
        for batch in requests.chunks(BATCH_SIZE) {
            let done = self.verify_batch(batch, &mut answer);
            answered += done;
            if done < batch.len() {
                break;
            }
        }
        answered
    }

    fn verify_batch(&self, requests: &[Verify<'_>], answer: &mut impl FnMut(&Decision<'s>)) -> usize {
        let Some(snapshot) = self.snapshot else {
            return refuse_all(requests, Verdict::NotReady, 0, answer);
        };
        if self.is_stale(snapshot) {
            return refuse_all(requests, Verdict::StaleSnapshot, snapshot.generation(), answer);
        }
        let mut pending = Batch::new();
        // How far each stage has got: as far as the one before it had when the last round began. What it asks memory for has the rest
        // of a round to come.
        let (mut hashed, mut looked_up, mut weighed, mut charged) = (0, 0, 0, 0);
        while charged < requests.len() {
            let (to_look_up, to_weigh, to_charge) = (looked_up..hashed, weighed..looked_up, charged..weighed);

            let to_hash = hashed..requests.len().min(hashed + GROUP_SIZE);
            hashed = to_hash.end;
            self.hash(snapshot, &requests[to_hash], &mut pending);

            looked_up = to_look_up.end;
            look_up(snapshot, &mut pending[to_look_up]);

            weighed = to_weigh.end;
            self.weigh(snapshot, &requests[to_weigh.clone()], &mut pending[to_weigh]);

            let done =
                self.charge(snapshot, &requests[to_charge.clone()], &pending[to_charge.clone()], answer);
            if done < to_charge.len() {
                return charged + done;
            }
            charged = to_charge.end;
        }
        charged
    }

    fn is_stale(&self, snapshot: &Snapshot) -> bool {
        self.global_policy.max_staleness.is_some_and(|limit| snapshot.stamp().source_age(self.now) > limit)
    }

    #[inline]
    fn hash(&self, snapshot: &Snapshot, requests: &[Verify<'_>], pending: &mut Batch<'s>) {
        pending.extend(requests.iter().map(|request| {
            let (digest, verdict) = match self.digest(request.credential) {
                Ok(digest) => (digest, None),
                Err(denied) => ([0; 32], Some(denied)),
            };
            Pending {
                digest,
                probe: snapshot.probe(&digest),
                candidate: None,
                key: None,
                bucket: None,
                verdict,
            }
        }));
    }

    #[inline]
    fn digest(&self, credential: Credential<'_>) -> Result<Digest, Verdict> {
        match (credential, &self.global_policy.peppers) {
            (Credential::Digest(digest), _) => Ok(digest),
            (Credential::RawKey(key), _) if self.is_malformed(key) => Err(Verdict::MalformedKey),
            (Credential::RawKey(key), None) => Ok(key_format::hash(key)),
            (Credential::RawKey(key), Some(peppers)) => Ok(peppers.current.hash(key)),
        }
    }

    fn is_malformed(&self, key: &[u8]) -> bool {
        key_format::classify(key, &self.global_policy.minted_prefixes) == KeyFormat::Malformed
    }

    /// Everything but the limits.
    #[inline]
    fn weigh(&self, snapshot: &'s Snapshot, requests: &[Verify<'_>], pending: &mut [Pending<'s>]) {
        let previous = self.global_policy.previous_pepper();
        for (request, pending) in requests.iter().zip(pending) {
            if pending.verdict.is_some() {
                continue;
            }
            let found = pending.candidate.and_then(|candidate| snapshot.confirm(candidate, &pending.digest));
            let found = match previous {
                None => found,
                Some(previous) => find_by_either(snapshot, found, request.credential, previous),
            };
            let Some(key) = found else {
                pending.verdict = Some(Verdict::UnknownKey);
                continue;
            };
            pending.key = Some(key);
            pending.verdict = denial(request, key, self.now.unix);
            key.prefetch_texts();
            if pending.verdict.is_none() {
                pending.bucket = key.first_slot().and_then(|slot| self.limiter.bucket(slot));
            }
        }
    }

    #[inline]
    fn charge(
        &self,
        snapshot: &Snapshot,
        requests: &[Verify<'_>],
        pending: &[Pending<'s>],
        answer: &mut impl FnMut(&Decision<'s>),
    ) -> usize {
        for (answered, (request, pending)) in requests.iter().zip(pending).enumerate() {
            // Without a key nothing is allowed, whatever a stage has forgotten.
            let otherwise = if pending.key.is_some() { Verdict::Allowed } else { Verdict::UnknownKey };
            let verdict = pending.verdict.unwrap_or(otherwise);
            let mut decision = Decision::without_key(request.request_id, verdict, snapshot.generation());
            if let Some(key) = pending.key {
                decision.key = pending.key;
                decision.want_metadata = request.want_metadata;
                if pending.verdict.is_none()
                    && !self.charge_key(key, pending.bucket, request.cost, &mut decision)
                {
                    return answered;
                }
            }
            answer(&decision);
        }
        requests.len()
    }

    /// `false`: a newer snapshot has taken over a bucket, and nothing was charged.
    // What became of it is written field by field: a value of several words that is copied as a whole, right after it was written
    // word by word, is what a processor waits for.
    #[inline(always)]
    fn charge_key(
        &self,
        key: Key<'s>,
        bucket: Option<Bucket<'s>>,
        cost: u32,
        decision: &mut Decision<'s>,
    ) -> bool {
        let now = self.now.ticks;
        match key.policy().limits() {
            [] => decision.cost = cost,
            // The usual case: no list to be made.
            [only] if !only.shadow && cost > 0 => {
                let Some(bucket) = bucket else { return false };
                let balance = match self.limiter.charge_only(bucket, only.rate, now, cost) {
                    Single::Admitted(balance) => {
                        decision.cost = cost;
                        balance
                    }
                    Single::Refused(balance) => {
                        decision.verdict = Verdict::RateLimited;
                        balance
                    }
                    Single::ExceedsBurst(balance) => {
                        decision.verdict = Verdict::CostExceedsBurst;
                        balance
                    }
                    Single::Superseded => return false,
                };
                decision.charged.limit = Some(Named { position: 0, balance });
            }
            _ => return self.charge_all(key, cost, decision),
        }
        true
    }

    fn charge_all(&self, key: Key<'s>, cost: u32, decision: &mut Decision<'s>) -> bool {
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        let (verdict, charged) = match self.limiter.charge(&charges[..count], self.now.ticks, cost) {
            Outcome::Admitted(charged) => (Verdict::Allowed, charged),
            Outcome::Refused(charged) => (Verdict::RateLimited, charged),
            Outcome::ExceedsBurst(charged) => (Verdict::CostExceedsBurst, charged),
            Outcome::Superseded => return false,
        };
        decision.verdict = verdict;
        decision.charged = charged;
        decision.cost = if verdict.is_allowed() { cost } else { 0 };
        true
    }
}

const NO_CHARGE: Charge = Charge { slot: 0, rate: Rate::SLOWEST, shadow: false };

/// While a pepper is being replaced, a key that is not `found` by the new one may be by the old one; not in a stage of its own,
/// since the rows of the old pepper become fewer. Which of the two it was is written down, for when the old one is to go.
#[inline(never)]
fn find_by_either<'s>(
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

fn refuse_all<'s>(
    requests: &[Verify<'_>],
    verdict: Verdict,
    generation: u64,
    answer: &mut impl FnMut(&Decision<'s>),
) -> usize {
    for request in requests {
        answer(&Decision::without_key(request.request_id, verdict, generation));
    }
    requests.len()
}

#[inline]
fn look_up(snapshot: &Snapshot, pending: &mut [Pending<'_>]) {
    for pending in pending {
        if pending.verdict.is_none() {
            pending.candidate = snapshot.candidate(pending.probe);
        }
    }
}
