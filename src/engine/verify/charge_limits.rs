//! Charges the limits of a key and records the outcome in the decision.

use super::{Decision, Verifier};
use crate::limiter::{Bucket, Charge, DecidingLimit, MAX_CHARGES, Outcome, Rule, SingleOutcome};
use crate::snapshot::{Key, PolicyLimit};

/// A newer snapshot has taken over a bucket of this one. Nothing was charged or refunded; the
/// request has to be decided again with the newer snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a newer snapshot has taken over the buckets of this one")]
pub struct Superseded;

/// The initial value of an array of charges.
pub(super) const NO_CHARGE: Charge = Charge { slot: 0, rule: Rule::SLOWEST, cost: 0, shadow: false };

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
        let policy = key.policy();
        if policy.limit_count() == 0 {
            decision.cost = cost;
            return Ok(());
        }
        let only = if policy.limit_count() == 1 { policy.limit_at(0) } else { None };
        match only {
            // The common case needs no array of charges.
            Some(PolicyLimit { rule: Rule::Bucket { rate, overdraft }, shadow: false, .. }) if cost > 0 => {
                let Some(bucket) = bucket else { return Err(Superseded) };
                match self.limiter.charge_single(bucket, *rate, self.now.nanoseconds, cost) {
                    SingleOutcome::Admitted(balance) => {
                        decision.cost = cost;
                        decision.limit_report.limit = Some(DecidingLimit { position: 0, balance });
                        Ok(())
                    }
                    SingleOutcome::Misfit => {
                        match self.limiter.refuse_single(bucket, *rate, *overdraft, cost) {
                            Some(outcome) => record(&outcome, cost, decision),
                            None => self.charge_several_limits(key, cost, decision),
                        }
                    }
                    SingleOutcome::Superseded => Err(Superseded),
                }
            }
            _ => self.charge_several_limits(key, cost, decision),
        }
    }

    #[inline(never)]
    fn charge_several_limits(
        &self,
        key: Key<'s>,
        cost: u32,
        decision: &mut Decision<'s>,
    ) -> Result<(), Superseded> {
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(cost, &mut charges);
        record(&self.limiter.charge(&charges[..count], self.now, None), cost, decision)
    }
}

/// Records the outcome of a charge in the decision.
fn record(outcome: &Outcome, cost: u32, decision: &mut Decision<'_>) -> Result<(), Superseded> {
    decision.verdict = outcome.verdict().ok_or(Superseded)?;
    decision.limit_report = outcome.report().unwrap_or_default();
    decision.cost = if decision.verdict.is_allowed() { cost } else { 0 };
    Ok(())
}
