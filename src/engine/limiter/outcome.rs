//! The input and the result of a charge: the limits to charge, whether they were charged, and which
//! limit decided.

use crate::limiter::balance::Balance;
use crate::limiter::rate::Rate;

/// Maximum number of limits in one charge: a key's own limits and those of its plan.
pub const MAX_CHARGES: usize = 16;

/// One limit to charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Slot of the limit's bucket.
    pub slot: u32,
    /// The limit's rate in the snapshot that answers the request.
    pub rate: Rate,
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
    /// No limit was charged, and waiting will not help: the cost is over the burst of the limit in
    /// the report, the first such limit.
    ExceedsBurst(ChargeReport),
    /// No limit was charged, because a newer snapshot has superseded one of the buckets. Retry with
    /// that snapshot.
    Superseded,
}

/// The result of charging a key's only limit: an [`Outcome`] small enough to stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SingleOutcome {
    /// The limit was charged.
    Admitted(Balance),
    /// The limit was not charged.
    Refused(Balance),
    /// The limit was not charged, and the cost is over its burst.
    ExceedsBurst(Balance),
    /// See [`Outcome::Superseded`].
    Superseded,
}

impl From<SingleOutcome> for Outcome {
    fn from(single: SingleOutcome) -> Self {
        match single {
            SingleOutcome::Admitted(balance) => Self::Admitted(ChargeReport::single(balance)),
            SingleOutcome::Refused(balance) => Self::Refused(ChargeReport::single(balance)),
            SingleOutcome::ExceedsBurst(balance) => Self::ExceedsBurst(ChargeReport::single(balance)),
            SingleOutcome::Superseded => Self::Superseded,
        }
    }
}

/// The limits that an answer names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChargeReport {
    /// The enforced limit that decided; `None` if no limit is enforced.
    pub limit: Option<DecidingLimit>,
    /// Position of the first shadow limit that would have refused if it were enforced.
    pub shadow: Option<usize>,
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
    fn single(balance: Balance) -> Self {
        Self { limit: Some(DecidingLimit { position: 0, balance }), shadow: None }
    }
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
    pub(super) fn add_enforced(&mut self, position: usize, balance: Balance) {
        let decides = self.report.limit.is_none_or(|DecidingLimit { position: first, balance: best }| {
            if self.is_admitted {
                (balance.remaining, position) < (best.remaining, first)
            } else {
                (balance.retry_after, first) > (best.retry_after, position)
            }
        });
        if decides {
            self.report.limit = Some(DecidingLimit { position, balance });
        }
    }

    /// Adds a shadow limit that has no room for the cost.
    pub(super) fn add_shadow_refusal(&mut self, position: usize) {
        self.report.shadow = Some(self.report.shadow.map_or(position, |first| first.min(position)));
    }

    pub(super) fn outcome(self) -> Outcome {
        if self.is_admitted { Outcome::Admitted(self.report) } else { Outcome::Refused(self.report) }
    }

    /// The outcome when the cost is over the burst of the limit at `position`.
    pub(super) fn exceeds_burst(self, position: usize, balance: Balance) -> Outcome {
        Outcome::ExceedsBurst(ChargeReport {
            limit: Some(DecidingLimit { position, balance }),
            ..self.report
        })
    }
}
