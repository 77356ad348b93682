//! Requests that name a cost for each limit, or want the balances of all limits.

use keyward_protocol::{BalancesBuf, Costs, LimitBalance, LimitKind, Verdict, Verify};

use super::charge_limits::NO_CHARGE;
use super::decision::{BALANCES, CHANGES, Detail};
use super::{Decision, Superseded, Verifier};
use crate::global_policy::GlobalPolicy;
use crate::limiter::{Balance, Charge, LimitBalances, MAX_CHARGES, Outcome, RuleKind};
use crate::snapshot::Key;

impl<'s> Verifier<'s> {
    /// Charges the limits of a key, unless the request is denied already, and passes the decision to
    /// `answer`.
    // Apart from the fast path, whose code it would displace.
    #[inline(never)]
    pub(super) fn charge_and_answer_in_detail(
        &self,
        key: Key<'s>,
        request: &Verify<'_>,
        mut decision: Decision<'s>,
        answer: &mut impl FnMut(&Decision<'_>),
    ) -> Result<(), Superseded> {
        let mut limits = LimitsOf::new(key, request.cost);
        let mut balances = LimitBalances::new();
        let mut is_uniform = true;
        if decision.verdict.is_allowed() {
            match limits.set_costs(request.costs, self.global_policy) {
                Ok(()) => {
                    let outcome = self.limiter.charge(limits.charges(), self.now, Some(&mut balances));
                    decision.verdict = outcome.verdict().ok_or(Superseded)?;
                    decision.limit_report = outcome.report().unwrap_or_default();
                    if decision.verdict.is_allowed() {
                        // Of a key without limits, what the request would have cost is counted. With
                        // limits that are all named with 0, it is a peek.
                        decision.cost = if limits.is_peek() { 0 } else { request.cost };
                        is_uniform = limits.charges().iter().all(|charge| charge.cost == decision.cost);
                    }
                }
                Err(UnknownLimitError) => decision.verdict = Verdict::UnknownLimit,
            }
        }
        let encoded = if request.want_balances {
            // A denial has charged nothing, and may have read no balance.
            if balances.is_empty() {
                self.peek(&mut limits, &mut balances)?;
            }
            Some(Amounts::new(key, &mut balances).encoded())
        } else {
            None
        };
        let detail = Detail {
            balances: encoded.as_ref().map(BalancesBuf::as_balances),
            changes: (!is_uniform).then_some(&balances[..]),
        };
        let mut extras = decision.extras;
        extras |= if request.want_balances { BALANCES } else { 0 };
        extras |= if is_uniform { 0 } else { CHANGES };
        answer(&Decision { detail: Some(&detail), extras, ..decision });
        Ok(())
    }

    /// Reads the balances, and charges nothing.
    pub(super) fn peek(
        &self,
        limits: &mut LimitsOf<'s>,
        balances: &mut LimitBalances,
    ) -> Result<(), Superseded> {
        limits.charges.iter_mut().for_each(|charge| charge.cost = 0);
        let outcome = self.limiter.charge(limits.charges(), self.now, Some(balances));
        outcome.report().map(drop).ok_or(Superseded)
    }
}

impl Outcome {
    /// The verdict of a charge; `None` if it has to be repeated with a newer snapshot.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Admitted(_) => Some(Verdict::Allowed),
            Self::Refused(_) => Some(Verdict::RateLimited),
            Self::ExceedsBurst(_) => Some(Verdict::CostExceedsBurst),
            Self::OutOfCredit(_) => Some(Verdict::OutOfCredit),
            Self::Superseded => None,
        }
    }
}

/// A request names a limit that neither a plan nor a key has: probably a typing error, which must not
/// leave a cost uncharged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnknownLimitError;

/// The limits of a key, and what to charge each of them.
pub(super) struct LimitsOf<'s> {
    key: Key<'s>,
    charges: [Charge; MAX_CHARGES],
    count: usize,
}

impl<'s> LimitsOf<'s> {
    /// Every limit costs `cost`.
    pub(super) fn new(key: Key<'s>, cost: u32) -> Self {
        let mut charges = [NO_CHARGE; MAX_CHARGES];
        let count = key.charges(cost, &mut charges);
        Self { key, charges, count }
    }

    /// Sets the costs of the limits that a request names. Names of limits that other keys or plans
    /// have are ignored.
    pub(super) fn set_costs(
        &mut self,
        costs: Option<Costs<'_>>,
        global_policy: &GlobalPolicy,
    ) -> Result<(), UnknownLimitError> {
        for (name, cost) in costs.iter().flat_map(Costs::iter) {
            match self.key.policy().limits().position(|limit| limit.name == name) {
                Some(position) => self.charges[position].cost = cost,
                None if self.key.snapshot().has_limit(name) || global_policy.plans.has_limit(name) => {}
                None => return Err(UnknownLimitError),
            }
        }
        Ok(())
    }

    pub(super) fn charges(&self) -> &[Charge] {
        &self.charges[..self.count]
    }

    /// Whether there are limits, and none is to be charged.
    fn is_peek(&self) -> bool {
        self.count > 0 && self.charges().iter().all(|charge| charge.cost == 0)
    }
}

/// The balances of a key's limits, for an answer.
pub(super) struct Amounts<'s, 'b> {
    key: Key<'s>,
    balances: &'b LimitBalances,
}

impl<'s, 'b> Amounts<'s, 'b> {
    /// Sorts the balances by the order of the key's limits.
    pub(super) fn new(key: Key<'s>, balances: &'b mut LimitBalances) -> Self {
        balances.sort_unstable_by_key(|balance| balance.position);
        Self { key, balances }
    }

    /// The field of the answer.
    pub(super) fn encoded(&self) -> BalancesBuf {
        let mut encoded = BalancesBuf::new();
        for balance in self.balances.iter().filter(|balance| !balance.shadow) {
            // The position is that of a limit.
            let Some(limit) = self.key.policy().limits().nth(balance.position) else { continue };
            encoded.push(&LimitBalance {
                name: limit.name,
                kind: match limit.rule.kind() {
                    RuleKind::Bucket => LimitKind::Bucket,
                    RuleKind::Window => LimitKind::Window,
                    RuleKind::Credits => LimitKind::Credits,
                },
                limit: limit.rule.limit(),
                charged: balance.changed,
                balance: balance.balance.available,
                reset_ms: Balance::milliseconds(balance.balance.reset),
            });
        }
        encoded
    }
}
