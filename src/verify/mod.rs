//! The decision: a pure function of a snapshot, the buckets, the time and the requests.
//!
//! A batch goes through four stages, each a loop of its own over all requests:
//!
//! 1. *hash* the raw keys, and mix the digests' bits for the index;
//! 2. *look up* where the index may have it, then the entry that the index says it is, and have each fetched;
//! 3. *weigh*: compare the digests, see what forbids this use of the key, and have its bucket and its texts fetched;
//! 4. *charge* its limits, and say what was decided ([`Decision`]).
//!
//! The loops are apart because of the memory: a table of a million keys is larger than any cache, so that each request waits for
//! memory some five times, and neighbours wait at the same time only if nothing between them makes the processor finish one
//! before it begins the next. A compare-and-swap does exactly that, and so does a comparison that is written not to branch; so
//! whatever a stage reads has been on its way since the stage before.
//!
//! Order of precedence (SPEC.md section 7): what is wrong with the daemon, then with the key, then with this use of it,
//! then with its timing; the first that applies is the answer, and only an ALLOWED has charged anything.

use arrayvec::ArrayVec;
use keyward_protocol::{Credential, Verdict, Verify};

use crate::key_format::{self, Minted};
use crate::limiter::{Charge, Charged, Limiter, MAX_CHARGES, Outcome, Rate};
use crate::now::Now;
use crate::record::Digest;
use crate::rules::Rules;
use crate::snapshot::{EntryId, Key, Place, Probe, Snapshot};

mod decision;
mod denial;
mod refund;
#[cfg(test)]
mod tests;

pub use decision::{Decision, Tally};
use denial::denial;

/// Requests in one pass through the stages. Memory has some tens of reads in flight at once; beyond 64 nothing is gained,
/// and the batch's working set (15 KiB with the requests) leaves the first-level cache.
pub const BATCH: usize = 64;

/// What a batch is decided on.
#[derive(Clone, Copy)]
pub struct Context<'s> {
    /// The snapshot, if there is one yet.
    pub snapshot: Option<&'s Snapshot>,
    /// The buckets.
    pub limiter: &'s Limiter,
    /// The daemon's rules.
    pub rules: &'s Rules,
    /// The time for the whole batch.
    pub now: Now,
}

/// What is known of one request between the stages.
struct Pending<'s> {
    digest: Digest,
    probe: Probe,
    place: Option<Place>,
    candidate: Option<EntryId>,
    key: Option<Key<'s>>,
    /// Decided already: all that is left is to say so.
    verdict: Option<Verdict>,
}

type Batch<'s> = ArrayVec<Pending<'s>, BATCH>;

impl<'s> Context<'s> {
    /// Answers `requests` in order, by calling `answer` for each. Returns how many were answered.
    ///
    /// That is all of them, unless a newer snapshot has taken over the buckets of this one: then the rest has to be
    /// asked again with the newer one, and nothing has been charged for it.
    #[inline]
    pub fn verify(&self, requests: &[Verify<'_>], mut answer: impl FnMut(&Decision<'s>)) -> usize {
        let mut answered = 0;
        for batch in requests.chunks(BATCH) {
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
        self.hash(snapshot, requests, &mut pending);
        look_up(snapshot, &mut pending);
        self.weigh(snapshot, requests, &mut pending);
        self.charge(snapshot, requests, &pending, answer)
    }

    fn is_stale(&self, snapshot: &Snapshot) -> bool {
        let age = self.now.unix.saturating_sub(snapshot.source_time());
        self.rules.max_staleness.is_some_and(|limit| age > limit)
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
                place: None,
                candidate: None,
                key: None,
                verdict,
            }
        }));
    }

    #[inline]
    fn digest(&self, credential: Credential<'_>) -> Result<Digest, Verdict> {
        match (credential, &self.rules.peppers) {
            (Credential::Digest(digest), _) => Ok(digest),
            (Credential::RawKey(key), _) if self.is_malformed(key) => Err(Verdict::MalformedKey),
            (Credential::RawKey(key), None) => Ok(key_format::hash(key)),
            (Credential::RawKey(key), Some(peppers)) => Ok(peppers.current.hash(key)),
        }
    }

    fn is_malformed(&self, key: &[u8]) -> bool {
        key_format::check(key, &self.rules.minted) == Minted::Malformed
    }

    /// Everything but the limits.
    #[inline]
    fn weigh(&self, snapshot: &'s Snapshot, requests: &[Verify<'_>], pending: &mut Batch<'s>) {
        for (request, pending) in requests.iter().zip(pending) {
            if pending.verdict.is_some() {
                continue;
            }
            let key = pending.candidate.and_then(|candidate| snapshot.confirm(candidate, &pending.digest));
            pending.key = key.or_else(|| self.find_by_previous_pepper(snapshot, request.credential));
            let Some(key) = pending.key else {
                pending.verdict = Some(Verdict::UnknownKey);
                continue;
            };
            pending.verdict = denial(request, key, self.now.unix);
            key.prefetch_texts();
            if let (None, Some(slot)) = (pending.verdict, key.first_slot()) {
                self.limiter.prefetch(slot);
            }
        }
    }

    /// While a pepper is being replaced, a key that is not known by the new one may be by the old one; not in a stage of its own,
    /// since the rows of the old pepper become fewer.
    #[inline]
    fn find_by_previous_pepper(&self, snapshot: &'s Snapshot, credential: Credential<'_>) -> Option<Key<'s>> {
        let previous = self.rules.peppers.as_ref()?.previous.as_ref()?;
        match credential {
            Credential::RawKey(key) => snapshot.find(&previous.hash(key)),
            Credential::Digest(_) => None,
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
                if pending.verdict.is_none() {
                    match self.charge_key(key, request.cost) {
                        Outcome::Admitted(charged) => {
                            decision.charged = charged;
                            decision.cost = request.cost;
                        }
                        Outcome::Refused(charged) => {
                            decision.charged = charged;
                            decision.verdict = Verdict::RateLimited;
                        }
                        Outcome::ExceedsBurst(charged) => {
                            decision.charged = charged;
                            decision.verdict = Verdict::CostExceedsBurst;
                        }
                        Outcome::Superseded => return answered,
                    }
                }
            }
            answer(&decision);
        }
        requests.len()
    }

    #[inline(always)]
    fn charge_key(&self, key: Key<'s>, cost: u32) -> Outcome {
        match key.policy().limits() {
            [] => Outcome::Admitted(Charged::default()),
            // The usual case: no list to be made.
            [only] => self.limiter.charge(&[key.charge(only)], self.now.ticks, cost),
            _ => {
                let mut charges = [NO_CHARGE; MAX_CHARGES];
                let count = key.charges(&mut charges);
                self.limiter.charge(&charges[..count], self.now.ticks, cost)
            }
        }
    }
}

const NO_CHARGE: Charge = Charge { slot: 0, rate: Rate::SLOWEST, shadow: false };

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
fn look_up(snapshot: &Snapshot, pending: &mut Batch<'_>) {
    for pending in &mut *pending {
        if pending.verdict.is_none() {
            pending.place = snapshot.place(pending.probe);
        }
    }
    for pending in pending {
        pending.candidate = pending.place.and_then(|place| snapshot.candidate(pending.probe, place));
    }
}
