//! Giving back what was charged (SPEC.md section 5).

use keyward_protocol::{Credential, Refund, Verdict};

use crate::limiter::{Charged, MAX_CHARGES, Named, Outcome};
use crate::snapshot::{Key, Snapshot};
use crate::verify::{Decision, NO_CHARGE, Verifier, find_by_either};

impl<'s> Verifier<'s> {
    /// To all limits of the key, or to the one that is named. Neither the key's status nor its times matter, since what is given
    /// back was charged when they allowed it, and admits nothing by itself.
    ///
    /// `None`: a newer snapshot has taken over the buckets of this one; nothing was given back, and it has to be asked again with the
    /// newer one.
    pub fn refund(&self, refund: &Refund<'_>) -> Option<Decision<'s>> {
        let generation = self.snapshot.map_or(0, Snapshot::generation);
        let without_key = |verdict| Decision::without_key(refund.request_id, verdict, generation);
        match self.find(refund.credential) {
            Err(verdict) => Some(without_key(verdict)),
            Ok(key) => {
                let charged = self.give_back(key, refund)?;
                // Given back to one limit only is no refund of the request.
                let cost = if refund.limit.is_none() { refund.cost } else { 0 };
                Some(Decision { key: Some(key), charged, cost, ..without_key(Verdict::Allowed) })
            }
        }
    }

    /// One key, without the stages of a batch.
    fn find(&self, credential: Credential<'_>) -> Result<Key<'s>, Verdict> {
        let snapshot = self.snapshot.ok_or(Verdict::NotReady)?;
        if self.is_stale(snapshot) {
            return Err(Verdict::StaleSnapshot);
        }
        let found = snapshot.find(&self.digest(credential)?);
        let found = match self.global_policy.previous_pepper() {
            None => found,
            Some(previous) => find_by_either(snapshot, found, credential, previous),
        };
        found.ok_or(Verdict::UnknownKey)
    }

    /// `None`: a newer snapshot has the buckets.
    fn give_back(&self, key: Key<'s>, refund: &Refund<'_>) -> Option<Charged> {
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        let limits = key.policy().limits();
        let only = refund.limit.map(|name| limits.iter().position(|limit| *limit.name == *name));
        let (first, charges) = match only {
            None => (0, &charges[..count]),
            Some(Some(at)) => (at, &charges[at..=at]),
            Some(None) => (0, &charges[..0]),
        };
        if charges.is_empty() {
            return Some(Charged::default());
        }
        match self.limiter.refund(charges, self.now.ticks, refund.cost) {
            Outcome::Superseded => None,
            Outcome::Admitted(charged) | Outcome::Refused(charged) | Outcome::ExceedsBurst(charged) => {
                let limit = charged.limit.map(|named| Named { position: first + named.position, ..named });
                Some(Charged { limit, ..charged })
            }
        }
    }
}
