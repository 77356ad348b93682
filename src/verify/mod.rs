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

use keyward_protocol::{Answer, Credential, LimitState, Refund, ScopeMode, Verdict, Verify};

use crate::key_format::{self, Minted};
use crate::limiter::{Balance, Charge, Charged, Limiter, MAX_CHARGES, Named, Outcome, Rate};
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

/// What is counted of a request, beside its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The row of the snapshot that it was about; `None` where the key is not known.
    pub entry: Option<EntryId>,
    /// What was charged, or given back.
    pub cost: u32,
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
    /// Answers `requests` in order, by calling `answer` for each with what is to be counted. Returns how many were answered.
    ///
    /// That is all of them, unless a newer snapshot has taken over the buckets of this one: then the rest has to be
    /// asked again with the newer one, and nothing has been charged for it.
    pub fn verify(&self, requests: &[Verify<'_>], mut answer: impl FnMut(&Answer<'_>, Tally)) -> usize {
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

    fn verify_batch(&self, requests: &[Verify<'_>], answer: &mut impl FnMut(&Answer<'_>, Tally)) -> usize {
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
        self.try_previous_pepper(snapshot, requests, pending);
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
            match self.digest(request.credential) {
                Ok(digest) => pending.digest = digest,
                Err(denied) => pending.verdict = Some(denied),
            }
        }
    }

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

    /// While a pepper is being replaced, a key that is not known by the new one may be by the old one. A stage of its own,
    /// and one by one: the rows of the old pepper become fewer.
    fn try_previous_pepper(
        &self,
        snapshot: &'s Snapshot,
        requests: &[Verify<'_>],
        pending: &mut [Pending<'s>],
    ) {
        let Some(previous) = self.rules.peppers.as_ref().and_then(|peppers| peppers.previous.as_ref()) else {
            return;
        };
        for (request, pending) in requests.iter().zip(pending) {
            if let (Credential::RawKey(key), None, None) = (request.credential, pending.key, pending.verdict)
            {
                pending.key = snapshot.find(&previous.hash(key));
            }
        }
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
        answer: &mut impl FnMut(&Answer<'_>, Tally),
    ) -> usize {
        for (answered, (request, pending)) in requests.iter().zip(pending).enumerate() {
            let blank = Answer::without_key(request.request_id, Verdict::UnknownKey, snapshot.generation());
            let Some(key) = pending.key else {
                let verdict = pending.verdict.unwrap_or(Verdict::UnknownKey);
                answer(&Answer { verdict, ..blank }, Tally::default());
                continue;
            };
            let decision = match pending.verdict {
                Some(verdict) => Decision { verdict, limit: LimitState::default(), shadow_limit: None },
                None => match self.charge_key(key, request.cost) {
                    Some(decision) => decision,
                    None => return answered,
                },
            };
            let cost = if decision.verdict.is_allowed() { request.cost } else { 0 };
            let metadata = if request.want_metadata { key.metadata() } else { None };
            answer(&Answer { metadata, ..decision.about(key, blank) }, Tally { entry: Some(key.id()), cost });
        }
        requests.len()
    }

    /// `None`: a newer snapshot has the buckets.
    fn charge_key(&self, key: Key<'s>, cost: u32) -> Option<Decision<'s>> {
        let policy = key.policy();
        if policy.limits().is_empty() {
            return Some(Decision::allowed());
        }
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        match self.limiter.charge(&charges[..count], self.now.ticks, cost) {
            Outcome::Admitted(charged) => Some(Decision::new(Verdict::Allowed, policy, charged)),
            Outcome::Refused(charged) => Some(Decision::new(Verdict::RateLimited, policy, charged)),
            Outcome::ExceedsBurst(charged) => Some(Decision::new(Verdict::CostExceedsBurst, policy, charged)),
            Outcome::Superseded => None,
        }
    }

    /// Gives a cost back (SPEC.md section 5): to all limits of the key, or to the one that is named. Neither the key's status nor
    /// its times matter, since what is given back was charged when they allowed it, and admits nothing by itself.
    ///
    /// Calls `answer` once and returns `true`, unless a newer snapshot has taken over the buckets of this one: then nothing was
    /// given back, and it has to be asked again with the newer one.
    pub fn refund(&self, refund: &Refund<'_>, answer: impl FnOnce(&Answer<'_>, Tally)) -> bool {
        let generation = self.snapshot.map_or(0, Snapshot::generation);
        let denied = |verdict| Answer::without_key(refund.request_id, verdict, generation);
        let key = match self.find(refund.credential) {
            Ok(key) => key,
            Err(verdict) => {
                answer(&denied(verdict), Tally::default());
                return true;
            }
        };
        let Some(decision) = self.refund_key(key, refund) else {
            return false;
        };
        // Given back to one limit only is no refund of the request.
        let cost = if refund.limit.is_none() { refund.cost } else { 0 };
        answer(&decision.about(key, denied(Verdict::Allowed)), Tally { entry: Some(key.id()), cost });
        true
    }

    /// One key, without the stages of a batch.
    fn find(&self, credential: Credential<'_>) -> Result<Key<'s>, Verdict> {
        let snapshot = self.snapshot.ok_or(Verdict::NotReady)?;
        if self.is_stale(snapshot) {
            return Err(Verdict::StaleSnapshot);
        }
        let found = snapshot.find(&self.digest(credential)?);
        let previous = self.rules.peppers.as_ref().and_then(|peppers| peppers.previous.as_ref());
        let found = found.or_else(|| match (credential, previous) {
            (Credential::RawKey(key), Some(previous)) => snapshot.find(&previous.hash(key)),
            _ => None,
        });
        found.ok_or(Verdict::UnknownKey)
    }

    /// `None`: a newer snapshot has the buckets.
    fn refund_key(&self, key: Key<'s>, refund: &Refund<'_>) -> Option<Decision<'s>> {
        let policy = key.policy();
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        let only = refund.limit.map(|name| policy.limits().iter().position(|limit| *limit.name == *name));
        let (first, charges) = match only {
            None => (0, &charges[..count]),
            Some(Some(at)) => (at, &charges[at..=at]),
            Some(None) => (0, &charges[..0]),
        };
        if charges.is_empty() {
            return Some(Decision::allowed());
        }
        match self.limiter.refund(charges, self.now.ticks, refund.cost) {
            Outcome::Superseded => None,
            Outcome::Admitted(charged) | Outcome::Refused(charged) | Outcome::ExceedsBurst(charged) => {
                let limit = charged.limit.map(|named| Named { position: first + named.position, ..named });
                Some(Decision::new(Verdict::Allowed, policy, Charged { limit, ..charged }))
            }
        }
    }
}

/// What is said of a known key.
struct Decision<'s> {
    verdict: Verdict,
    limit: LimitState<'s>,
    shadow_limit: Option<&'s str>,
}

impl<'s> Decision<'s> {
    /// Nothing limits it.
    fn allowed() -> Self {
        Self { verdict: Verdict::Allowed, limit: LimitState::default(), shadow_limit: None }
    }

    fn new(verdict: Verdict, policy: &'s Policy, charged: Charged) -> Self {
        let shadow = charged.shadow.and_then(|position| policy.limits().get(position));
        Self { verdict, limit: state(policy, charged), shadow_limit: shadow.map(|limit| &*limit.name) }
    }

    /// The answer that `blank` becomes.
    fn about(&self, key: Key<'s>, blank: Answer<'s>) -> Answer<'s> {
        Answer {
            verdict: self.verdict,
            limit: self.limit,
            shadow_limit: self.shadow_limit,
            key_id: key.key_id(),
            owner: key.owner(),
            environment: key.policy().environment(),
            plan: key.policy().plan(),
            ..blank
        }
    }
}

const NO_CHARGE: Charge = Charge { slot: 0, rate: Rate::SLOWEST, shadow: false };

fn refuse_all(
    requests: &[Verify<'_>],
    verdict: Verdict,
    generation: u64,
    answer: &mut impl FnMut(&Answer<'_>, Tally),
) -> usize {
    for request in requests {
        answer(&Answer::without_key(request.request_id, verdict, generation), Tally::default());
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
    let named = charged.limit.and_then(|named| Some((policy.limits().get(named.position)?, named.balance)));
    let Some((limit, balance)) = named else {
        return LimitState::default();
    };
    LimitState {
        name: &limit.name,
        limit: limit.rate.burst(),
        remaining: balance.remaining,
        retry_after_ms: Balance::milliseconds(balance.retry_after),
        reset_ms: Balance::milliseconds(balance.reset),
    }
}
