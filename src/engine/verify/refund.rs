//! Refunds what a request was charged (SPEC.md section 5).

use keyward_protocol::{Credential, Refund, Verdict};

use super::charge_limits::NO_CHARGE;
use super::{Decision, Superseded, Verifier, credential};
use crate::limiter::{ChargeReport, DecidingLimit, MAX_CHARGES, Outcome};
use crate::snapshot::{Key, Snapshot};

impl<'s> Verifier<'s> {
    /// Refunds to all limits of a key, or to the one that the request names.
    ///
    /// The status of the key and its validity do not matter: the key was in force when the cost was
    /// charged, and a refund by itself admits nothing.
    ///
    /// # Errors
    /// [`Superseded`] if a newer snapshot has taken over the buckets.
    pub fn refund(&self, refund: &Refund<'_>) -> Result<Decision<'s>, Superseded> {
        let generation = self.snapshot.map_or(0, Snapshot::generation);
        let without_key = |verdict| Decision::without_key(refund.request_id, verdict, generation);
        match self.find(refund.credential) {
            Err(verdict) => Ok(without_key(verdict)),
            Ok(key) => {
                let limit_report = self.refund_limits(key, refund)?;
                // A refund to one limit does not refund the request, so it does not count as such.
                let cost = if refund.limit.is_none() { refund.cost } else { 0 };
                Ok(Decision { key: Some(key), limit_report, cost, ..without_key(Verdict::Allowed) })
            }
        }
    }

    /// Looks up one key, without the stages of a batch.
    fn find(&self, credential: Credential<'_>) -> Result<Key<'s>, Verdict> {
        let snapshot = self.snapshot.ok_or(Verdict::NotReady)?;
        if self.is_stale(snapshot) {
            return Err(Verdict::StaleSnapshot);
        }
        let found = snapshot.find(&self.digest(credential)?);
        let found = match self.global_policy.previous_pepper() {
            None => found,
            Some(previous) => credential::find_with_either_pepper(snapshot, found, credential, previous),
        };
        found.ok_or(Verdict::UnknownKey)
    }

    fn refund_limits(&self, key: Key<'s>, refund: &Refund<'_>) -> Result<ChargeReport, Superseded> {
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        let (first, charges) = match refund.limit {
            None => (0, &charges[..count]),
            Some(name) => match key.policy().limits().position(|limit| limit.name == name) {
                Some(position) => (position, &charges[position..=position]),
                None => (0, &charges[..0]),
            },
        };
        if charges.is_empty() {
            return Ok(ChargeReport::default());
        }
        match self.limiter.refund(charges, self.now.ticks, refund.cost) {
            Outcome::Superseded => Err(Superseded),
            Outcome::Admitted(report) | Outcome::Refused(report) | Outcome::ExceedsBurst(report) => {
                let limit =
                    report.limit.map(|limit| DecidingLimit { position: first + limit.position, ..limit });
                Ok(ChargeReport { limit, ..report })
            }
        }
    }
}
