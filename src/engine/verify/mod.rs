//! Decides requests. A decision is deterministic: it depends only on the snapshot, the buckets, the
//! time and the request, and changes only buckets and atomic fields of entries.
//!
//! [`Verifier::verify`] decides a batch and reports one [`Decision`] per request, in order. Each
//! request passes through four stages:
//!
//! 1. **Hash** the raw key, if the request carries one ([`credential`]).
//! 2. **Look up** the digest in the index of the snapshot.
//! 3. **Evaluate** the restrictions of the key: status, validity, environment, network, origin and
//!    scopes ([`restrictions`]). `.github/CONTRIBUTING.md` lists what a new restriction needs.
//! 4. **Charge** the limits of the key ([`charge_limits`]), and answer.
//!
//! The order of precedence is that of SPEC.md section 7: problems of the daemon come first (no
//! snapshot, a stale one), then problems of the key (malformed, unknown, revoked, disabled), then
//! of this use of it, then of its limits. The first that applies is the verdict. Only an ALLOWED
//! charges anything.
//!
//! # Why stages
//!
//! A table of a million keys exceeds every cache, so each request waits for memory about four
//! times. The waits of neighbouring requests overlap only if no instruction between them serialises
//! the processor, and both a compare-and-swap and a branch-free comparison do. Therefore each stage
//! is a loop over a sub-batch of requests, and prefetches what the next stage reads. The
//! sub-batches of a batch form a pipeline: while the last stage computes, the data for the other
//! three arrives.

use arrayvec::ArrayVec;
use keyward_protocol::{Verdict, Verify};

use crate::global_policy::GlobalPolicy;
use crate::limiter::{Bucket, Limiter};
use crate::now::Now;
use crate::record::Digest;
use crate::snapshot::{EntryNumber, IndexHash, Key, Snapshot, View};

mod adjust;
mod charge_limits;
mod credential;
mod decision;
mod detailed_charge;
mod restrictions;
mod stages;
#[cfg(test)]
mod tests;

pub use charge_limits::Superseded;
pub use decision::{Decision, RequestUsage};

/// Requests that are decided together. More than 64 gains nothing, and the working set of the batch
/// (15 KiB with the requests) would leave the first-level cache.
pub const BATCH_SIZE: usize = 64;

/// Requests in a stage at a time. The sub-batch must be large enough that prefetched data arrives
/// while the next one passes through the stages, and small enough not to fill the processor's queue
/// of outstanding loads (24 cache lines on the machine measured). A verify took 90 ns with 64
/// requests in a sub-batch, 80 ns with 16 and 70 ns with 4; with its answer, 122, 107 and 82 ns
/// (`benches/verify.rs`, 1 M keys).
const SUB_BATCH_SIZE: usize = 4;

/// The inputs of a decision.
#[derive(Clone, Copy)]
pub struct Verifier<'s> {
    /// The keys in force. `None` until the first ones are loaded: the verdict is then NOT_READY.
    pub view: Option<View<'s>>,
    /// The token buckets.
    pub limiter: &'s Limiter,
    /// The global policy in force.
    pub global_policy: &'s GlobalPolicy,
    /// The time, read once for the whole batch.
    pub now: Now,
}

/// A request between two stages.
struct Pending<'s> {
    digest: Digest,
    index_hash: IndexHash,
    candidate: Option<EntryNumber>,
    key: Option<Key<'s>>,
    /// The bucket of the key's first limit. `None`: the key has no limits, or the slot has never
    /// been allocated. The latter counts as [`Superseded`], so no request goes uncharged.
    bucket: Option<Bucket<'s>>,
    /// Set by the stage that denies the request. The later stages skip it.
    verdict: Option<Verdict>,
}

type Batch<'s> = ArrayVec<Pending<'s>, BATCH_SIZE>;

impl<'s> Verifier<'s> {
    /// Decides `requests` in order and passes each decision to `answer`. Returns the number of
    /// requests decided.
    ///
    /// That number is smaller than the number of requests only if a newer snapshot has taken over a
    /// bucket of this one. The caller then decides the remaining requests with the newer snapshot;
    /// nothing was charged for them.
    #[inline]
    pub fn verify(&self, requests: &[Verify<'_>], mut answer: impl FnMut(&Decision<'_>)) -> usize {
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

    /// [`verify`](Self::verify) for at most [`BATCH_SIZE`] requests; more are not decided.
    #[inline]
    pub fn verify_batch(&self, requests: &[Verify<'_>], mut answer: impl FnMut(&Decision<'_>)) -> usize {
        let requests = requests.get(..BATCH_SIZE).unwrap_or(requests);
        let Some(view) = self.view else {
            return deny_all(requests, Verdict::NotReady, 0, &mut answer);
        };
        let snapshot = view.snapshot;
        if self.is_stale(snapshot) {
            return deny_all(requests, Verdict::StaleSnapshot, view.generation, &mut answer);
        }
        let mut pending = Batch::new();
        // The number of requests that have left each stage. In a round, each stage takes what the
        // stage before it finished in the previous round, so a prefetch has the rest of a round to
        // complete.
        let (mut hashed, mut looked_up, mut evaluated, mut charged) = (0, 0, 0, 0);
        while charged < requests.len() {
            let (to_look_up, to_evaluate, to_charge) =
                (looked_up..hashed, evaluated..looked_up, charged..evaluated);

            let to_hash = hashed..requests.len().min(hashed + SUB_BATCH_SIZE);
            hashed = to_hash.end;
            self.hash(snapshot, &requests[to_hash], &mut pending);

            looked_up = to_look_up.end;
            stages::look_up(snapshot, &mut pending[to_look_up]);

            evaluated = to_evaluate.end;
            self.evaluate(view, &requests[to_evaluate.clone()], &mut pending[to_evaluate]);

            let done = self.charge_and_answer(
                view.generation,
                &requests[to_charge.clone()],
                &pending[to_charge.clone()],
                &mut answer,
            );
            if done < to_charge.len() {
                return charged + done;
            }
            charged = to_charge.end;
        }
        charged
    }

    fn is_stale(&self, snapshot: &Snapshot) -> bool {
        self.global_policy.max_staleness.is_some_and(|limit| snapshot.meta().source_age(self.now) > limit)
    }
}

fn deny_all(
    requests: &[Verify<'_>],
    verdict: Verdict,
    generation: u64,
    answer: &mut impl FnMut(&Decision<'_>),
) -> usize {
    for request in requests {
        answer(&Decision::without_key(request.request_id, verdict, generation));
    }
    requests.len()
}
