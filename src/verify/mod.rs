//! The decision: a pure function of a snapshot, the buckets, the time and the requests.
//!
//! A batch goes through six stages, each a loop of its own over all requests: hash, look up, compare, weigh, fetch, charge.
//! The loops are apart because of the memory: a table of a million keys is larger than any cache, so that each look-up
//! waits for memory once or twice, and neighbouring look-ups wait at the same time only if nothing between them makes
//! the processor finish the first before it begins the second. A compare-and-swap does exactly that, and so does a
//! comparison that is written not to branch; hence they come after.
//!
//! Order of precedence (SPEC.md section 7): what is wrong with the daemon, then with the key, then with this use of it,
//! then with its timing; the first that applies is the answer, and only an ALLOWED has charged anything.

use keyward_protocol::{Answer, Credential, LimitState, ScopeMode, Verdict, Verify};

use crate::key_format::{self, Minted};
use crate::limiter::{Balance, Charge, Charged, Limiter, MAX_CHARGES, Outcome, Rate};
use crate::now::Now;
use crate::record::{Digest, Status};
use crate::rules::Rules;
use crate::snapshot::{EntryId, Key, Policy, Snapshot};

#[cfg(test)]
mod tests;

/// Requests in one pass through the stages. Memory has some tens of reads in flight at once; beyond 64 nothing is gained,
/// and the batch's working set (6 KiB) leaves the first-level cache.
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
#[derive(Clone, Copy)]
struct Pending<'s> {
    digest: Digest,
    candidate: Option<EntryId>,
    key: Option<Key<'s>>,
    /// Decided already: all that is left is to say so.
    verdict: Option<Verdict>,
}

impl<'s> Context<'s> {
    /// Answers `requests` in order, by calling `answer` for each. Returns how many were answered.
    ///
    /// That is all of them, unless a newer snapshot has taken over the buckets of this one: then the rest has to be
    /// asked again with the newer one, and nothing has been charged for it.
    pub fn verify(&self, requests: &[Verify<'_>], mut answer: impl FnMut(&Answer<'_>)) -> usize {
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

    fn verify_batch(&self, requests: &[Verify<'_>], answer: &mut impl FnMut(&Answer<'_>)) -> usize {
        let Some(snapshot) = self.snapshot else {
            return refuse_all(requests, Verdict::NotReady, 0, answer);
        };
        if self.is_stale(snapshot) {
            return refuse_all(requests, Verdict::StaleSnapshot, snapshot.generation(), answer);
        }
        let mut pending = [Pending { digest: [0; 32], candidate: None, key: None, verdict: None }; BATCH];
        let pending = &mut pending[..requests.len()];
        self.hash(requests, pending);
        look_up(snapshot, pending);
        compare(snapshot, pending);
        self.weigh(requests, pending);
        self.fetch(pending);
        self.charge(snapshot, requests, pending, answer)
    }

    fn is_stale(&self, snapshot: &Snapshot) -> bool {
        let age = self.now.unix.saturating_sub(snapshot.source_time());
        self.rules.max_staleness.is_some_and(|limit| age > limit)
    }

    fn hash(&self, requests: &[Verify<'_>], pending: &mut [Pending<'s>]) {
        for (request, pending) in requests.iter().zip(pending) {
            match request.credential {
                Credential::Digest(digest) => pending.digest = digest,
                Credential::RawKey(key) if self.is_malformed(key) => {
                    pending.verdict = Some(Verdict::MalformedKey);
                }
                Credential::RawKey(key) => pending.digest = key_format::hash(key),
            }
        }
    }

    fn is_malformed(&self, key: &[u8]) -> bool {
        key_format::check(key, &self.rules.minted) == Minted::Malformed
    }

    /// Everything but the limits.
    fn weigh(&self, requests: &[Verify<'_>], pending: &mut [Pending<'s>]) {
        for (request, pending) in requests.iter().zip(pending) {
            if pending.verdict.is_some() {
                continue;
            }
            pending.verdict = match pending.key {
                None => Some(Verdict::UnknownKey),
                Some(key) => denial(request, key, self.now.unix),
            };
        }
    }

    /// Has the memory that charging and answering need on its way, all of it at once: the buckets and the texts. Two loops,
    /// because where an owner's text is has to be looked up first.
    fn fetch(&self, pending: &[Pending<'s>]) {
        let mut seen = 0;
        for pending in pending {
            let Some(key) = pending.key else { continue };
            if let (None, Some(slot)) = (pending.verdict, key.first_slot()) {
                seen ^= u8::from(self.limiter.touch(slot));
            }
            seen ^= key.touch();
        }
        for pending in pending {
            seen ^= pending.key.map_or(0, Key::touch_owner);
        }
        // The loads are what is wanted; without a use of what they load there would be none.
        std::hint::black_box(seen);
    }

    fn charge(
        &self,
        snapshot: &Snapshot,
        requests: &[Verify<'_>],
        pending: &[Pending<'s>],
        answer: &mut impl FnMut(&Answer<'_>),
    ) -> usize {
        for (answered, (request, pending)) in requests.iter().zip(pending).enumerate() {
            let blank = Answer::without_key(request.request_id, Verdict::UnknownKey, snapshot.generation());
            let Some(key) = pending.key else {
                answer(&Answer { verdict: pending.verdict.unwrap_or(Verdict::UnknownKey), ..blank });
                continue;
            };
            let (verdict, limit) = match pending.verdict {
                Some(denied) => (denied, LimitState::default()),
                None => match self.charge_key(key, request.cost) {
                    Some(charged) => charged,
                    None => return answered,
                },
            };
            answer(&Answer {
                verdict,
                limit,
                key_id: key.key_id(),
                owner: key.owner(),
                environment: key.policy().environment(),
                plan: key.policy().plan(),
                metadata: if request.want_metadata { key.metadata() } else { None },
                ..blank
            });
        }
        requests.len()
    }

    /// `None`: a newer snapshot has the buckets.
    fn charge_key(&self, key: Key<'s>, cost: u32) -> Option<(Verdict, LimitState<'s>)> {
        let policy = key.policy();
        if policy.limits().is_empty() {
            return Some((Verdict::Allowed, LimitState::default()));
        }
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        let charges = &charges[..count];
        if let Some(limit) = charges.iter().position(|charge| cost > charge.rate.burst()) {
            return match self.limiter.charge(&charges[limit..=limit], self.now.ticks, 0) {
                Outcome::Admitted(peek) | Outcome::Refused(peek) => {
                    Some((Verdict::CostExceedsBurst, state(policy, Charged { limit, ..peek })))
                }
                Outcome::Superseded => None,
            };
        }
        match self.limiter.charge(charges, self.now.ticks, cost) {
            Outcome::Admitted(charged) => Some((Verdict::Allowed, state(policy, charged))),
            Outcome::Refused(charged) => Some((Verdict::RateLimited, state(policy, charged))),
            Outcome::Superseded => None,
        }
    }
}

const NO_CHARGE: Charge = Charge { slot: 0, rate: Rate::SLOWEST };

fn refuse_all(
    requests: &[Verify<'_>],
    verdict: Verdict,
    generation: u64,
    answer: &mut impl FnMut(&Answer<'_>),
) -> usize {
    for request in requests {
        answer(&Answer::without_key(request.request_id, verdict, generation));
    }
    requests.len()
}

fn look_up(snapshot: &Snapshot, pending: &mut [Pending<'_>]) {
    for pending in pending {
        if pending.verdict.is_none() {
            pending.candidate = snapshot.candidate(&pending.digest);
        }
    }
}

fn compare<'s>(snapshot: &'s Snapshot, pending: &mut [Pending<'s>]) {
    for pending in pending {
        pending.key = pending.candidate.and_then(|candidate| snapshot.confirm(candidate, &pending.digest));
    }
}

/// What forbids this use of the key, its limits apart; in SPEC.md's order.
fn denial(request: &Verify<'_>, key: Key<'_>, unix: u32) -> Option<Verdict> {
    match key.status() {
        Status::Revoked => return Some(Verdict::Revoked),
        Status::Disabled => return Some(Verdict::Disabled),
        Status::Active => {}
    }
    let policy = key.policy();
    let checks = [
        (unix < key.not_before(), Verdict::NotYetValid),
        (unix >= key.expires_at(), Verdict::Expired),
        (!in_environment(request, policy), Verdict::WrongEnvironment),
        (!policy.allows_ip(request.ip), Verdict::IpNotAllowed),
        (!policy.allows_origin(request.origin), Verdict::OriginNotAllowed),
        (!has_scopes(request, policy), Verdict::MissingScope),
    ];
    checks.into_iter().find(|(applies, _)| *applies).map(|(_, verdict)| verdict)
}

/// A caller that names no environment does not ask; one that names an empty one is in none that a key could be in.
fn in_environment(request: &Verify<'_>, policy: &Policy) -> bool {
    request.environment.is_none_or(|asked| !asked.is_empty() && asked == policy.environment())
}

fn has_scopes(request: &Verify<'_>, policy: &Policy) -> bool {
    request.scopes.is_none_or(|required| {
        let mut names = required.names.split(' ');
        match required.mode {
            ScopeMode::All => names.all(|name| policy.has_scope(name)),
            ScopeMode::Any => names.any(|name| policy.has_scope(name)),
        }
    })
}

fn state<'s>(policy: &'s Policy, charged: Charged) -> LimitState<'s> {
    let Some(limit) = policy.limits().get(charged.limit) else {
        return LimitState::default();
    };
    LimitState {
        name: &limit.name,
        limit: limit.rate.burst(),
        remaining: charged.balance.remaining,
        retry_after_ms: Balance::milliseconds(charged.balance.retry_after),
        reset_ms: Balance::milliseconds(charged.balance.reset),
    }
}
