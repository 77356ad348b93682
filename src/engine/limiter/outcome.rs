//! The input and the result of a charge: the limits to charge, whether they were charged, and which
//! limit decided.

use arrayvec::ArrayVec;

use crate::limiter::balance::Balance;
use crate::limiter::rule::{Misfit, Rule};

/// Maximum number of limits in one charge: a key's own limits and those of its plan.
pub const MAX_CHARGES: usize = 16;

/// One limit to charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Slot of the limit.
    pub slot: u32,
    /// The limit's rule in the snapshot that answers the request.
    pub rule: Rule,
    /// What to charge; 0 leaves the limit as it is.
    pub cost: u32,
    /// Whether the limit is only observed. A shadow limit is charged if the cost fits and all
    /// enforced limits admit it. It never refuses, and is never reported as the deciding limit.
    pub shadow: bool,
}

/// The result of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All enforced limits were charged, and every shadow limit that had room. The report names the
    /// enforced limit with the least remaining.
    Admitted(ChargeReport),
    /// No limit was charged. The report names the limit with the longest wait.
    Refused(ChargeReport),
    /// No limit was charged, and waiting will not help: the cost is over the burst, or over the count
    /// of the calendar window, of the limit in the report, the first such limit.
    ExceedsBurst(ChargeReport),
    /// No limit was charged, and waiting will not help: the cost is over the credits that are left in
    /// the limit in the report, the first such limit.
    OutOfCredit(ChargeReport),
    /// No limit was charged, because a newer snapshot has superseded one of the buckets. Retry with
    /// that snapshot.
    Superseded,
}

impl Outcome {
    /// The limits that the answer names; `None` if there is no answer yet.
    pub fn report(&self) -> Option<ChargeReport> {
        match self {
            Self::Admitted(report)
            | Self::Refused(report)
            | Self::ExceedsBurst(report)
            | Self::OutOfCredit(report) => Some(*report),
            Self::Superseded => None,
        }
    }
}

/// The result of charging a key's only limit, small enough to stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SingleOutcome {
    /// The limit was charged.
    Admitted(Balance),
    /// The limit was not charged, because the cost does not fit.
    Misfit,
    /// See [`Outcome::Superseded`].
    Superseded,
}

/// The limits that an answer names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChargeReport {
    /// The enforced limit that decided; `None` if no limit is enforced.
    pub limit: Option<DecidingLimit>,
    /// The shadow limits that would have refused if they were enforced. They were not charged.
    pub shadow: ShadowRefusals,
}

/// The positions of shadow limits that have no room for their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowRefusals {
    /// Bit n: the limit at position n.
    positions: u16,
}

const _: () = assert!(MAX_CHARGES <= u16::BITS as usize);

impl ShadowRefusals {
    /// Whether no shadow limit would have refused.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.positions == 0
    }

    /// The first position.
    pub fn first(self) -> Option<usize> {
        (!self.is_empty()).then(|| self.positions.trailing_zeros() as usize)
    }

    /// Whether the limit at `position` is among them.
    pub fn contains(self, position: usize) -> bool {
        position < MAX_CHARGES && self.positions & (1 << position) != 0
    }

    /// These and the limit at `position`, one of a charge.
    #[must_use]
    pub fn with(self, position: usize) -> Self {
        debug_assert!(position < MAX_CHARGES);
        Self { positions: self.positions | 1 << position.min(MAX_CHARGES - 1) }
    }
}

/// The limit that decided a charge, and its balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecidingLimit {
    /// Position of the limit in the list of charges.
    pub position: usize,
    /// Balance after the charge.
    pub balance: Balance,
}

impl ChargeReport {
    /// The report for a key's only limit.
    #[inline]
    pub(super) fn single(balance: Balance) -> Self {
        Self { limit: Some(DecidingLimit { position: 0, balance }), shadow: ShadowRefusals::default() }
    }
}

/// The balances of the limits of a charge, in no particular order.
pub type LimitBalances = ArrayVec<LimitBalance, MAX_CHARGES>;

/// The balance of a limit, and what changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitBalance {
    /// Position of the limit in the list of charges.
    pub position: usize,
    /// What was charged, debited or refunded.
    pub changed: u32,
    /// Whether the limit is in shadow mode. Answers do not show its balance.
    pub shadow: bool,
    /// Balance after the change.
    pub balance: Balance,
}

/// Builds the report of a charge from its limits, added one at a time in any order.
pub(super) struct ReportBuilder {
    is_admitted: bool,
    report: ChargeReport,
}

impl ReportBuilder {
    pub(super) fn new(is_admitted: bool) -> Self {
        Self { is_admitted, report: ChargeReport::default() }
    }

    /// Adds an enforced limit. The deciding limit of an admitted charge has the least remaining,
    /// that of a refused charge the longest wait; of equal limits, it is the first.
    pub(super) fn add_enforced(
        &mut self,
        position: usize,
        changed: u32,
        balance: Balance,
        balances: &mut Option<&mut LimitBalances>,
    ) {
        let decides = self.report.limit.is_none_or(|DecidingLimit { position: first, balance: best }| {
            if self.is_admitted {
                (balance.available, position) < (best.available, first)
            } else {
                (balance.retry_after, first) > (best.retry_after, position)
            }
        });
        if decides {
            self.report.limit = Some(DecidingLimit { position, balance });
        }
        if let Some(balances) = balances {
            // A peek may have more limits than a charge. It reports the first ones.
            let _ = balances.try_push(LimitBalance { position, changed, shadow: false, balance });
        }
    }

    /// Adds a shadow limit that has no room for its cost.
    pub(super) fn add_shadow_refusal(&mut self, position: usize) {
        self.report.shadow = self.report.shadow.with(position);
    }

    pub(super) fn admitted(self) -> Outcome {
        Outcome::Admitted(self.report)
    }

    /// The outcome if a cost will fit later.
    pub(super) fn refused(self) -> Outcome {
        Outcome::Refused(self.report)
    }

    /// The outcome if the cost of the limit at `position` will not fit later.
    pub(super) fn refused_by(self, position: usize, balance: Balance, misfit: Misfit) -> Outcome {
        let report = ChargeReport { limit: Some(DecidingLimit { position, balance }), ..self.report };
        match misfit {
            Misfit::Wait => Outcome::Refused(report),
            Misfit::OutOfCredit => Outcome::OutOfCredit(report),
            Misfit::ExceedsLimit => Outcome::ExceedsBurst(report),
        }
    }
}
