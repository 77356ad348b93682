//! Charges the limits of a key and records the outcome in the decision.

use keyward_protocol::Verdict;

use super::{Decision, Verifier};
use crate::limiter::{Bucket, Charge, DecidingLimit, MAX_CHARGES, Outcome, Rate, SingleOutcome};
use crate::snapshot::Key;

/// A newer snapshot has taken over a bucket of this one. Nothing was charged or refunded; the
/// request has to be decided again with the newer snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a newer snapshot has taken over the buckets of this one")]
pub struct Superseded;

/// The initial value of an array of charges.
pub(super) const NO_CHARGE: Charge = Charge { slot: 0, rate: Rate::SLOWEST, shadow: false };

impl<'s> Verifier<'s> {
    /// Charges `cost` to the limits of `key`. `bucket` is the bucket of its first limit.
    // The outcome is written to the decision field by field. Copying a structure as a whole right
    // after its words were written one by one stalls on store forwarding.
    #[inline(always)]
    pub(super) fn charge_limits(
        &self,
        key: Key<'s>,
        bucket: Option<Bucket<'s>>,
        cost: u32,
        decision: &mut Decision<'s>,
    ) -> Result<(), Superseded> {
        let now = self.now.ticks;
        let policy = key.policy();
        if policy.limit_count() == 0 {
            decision.cost = cost;
            return Ok(());
        }
        let only = if policy.limit_count() == 1 { policy.limit_at(0) } else { None };
        match only {
            // The common case needs no array of charges.
            Some(only) if !only.shadow && cost > 0 => {
                let Some(bucket) = bucket else { return Err(Superseded) };
                let balance = match self.limiter.charge_single(bucket, only.rate, now, cost) {
                    SingleOutcome::Admitted(balance) => {
                        decision.cost = cost;
                        balance
                    }
                    SingleOutcome::Refused(balance) => {
                        decision.verdict = Verdict::RateLimited;
                        balance
                    }
                    SingleOutcome::ExceedsBurst(balance) => {
                        decision.verdict = Verdict::CostExceedsBurst;
                        balance
                    }
                    SingleOutcome::Superseded => return Err(Superseded),
                };
                decision.limit_report.limit = Some(DecidingLimit { position: 0, balance });
            }
            _ => return self.charge_several_limits(key, cost, decision),
        }
        Ok(())
    }

    fn charge_several_limits(
        &self,
        key: Key<'s>,
        cost: u32,
        decision: &mut Decision<'s>,
    ) -> Result<(), Superseded> {
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(&mut charges);
        let (verdict, report) = match self.limiter.charge(&charges[..count], self.now.ticks, cost) {
            Outcome::Admitted(report) => (Verdict::Allowed, report),
            Outcome::Refused(report) => (Verdict::RateLimited, report),
            Outcome::ExceedsBurst(report) => (Verdict::CostExceedsBurst, report),
            Outcome::Superseded => return Err(Superseded),
        };
        decision.verdict = verdict;
        decision.limit_report = report;
        decision.cost = if verdict.is_allowed() { cost } else { 0 };
        Ok(())
    }
}
