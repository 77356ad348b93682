//! What is asked of the limiter, and what it says: which limits, whether they were charged, and which of them decided.

use crate::limiter::rate::Rate;
use crate::limiter::word::Balance;

/// One limit to be charged: which bucket, at which rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The bucket's slot.
    pub slot: u32,
    /// The limit's rate in the snapshot that the request is answered from.
    pub rate: Rate,
    /// Only watched: charged where it fits and all enforced limits do, but it refuses nothing and is never the limit
    /// that is named.
    pub shadow: bool,
}

/// What became of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All enforced limits were charged, and every shadow limit that had room; the one named has the least remaining.
    Admitted(Charged),
    /// None was charged; the one named has to be waited for longest.
    Refused(Charged),
    /// None was charged; the cost is over the burst of the one named (the first of its kind), so that waiting is of no
    /// use.
    ExceedsBurst(Charged),
    /// A newer snapshot has taken one of the buckets over: nothing was charged, ask again with that snapshot.
    Superseded,
}

/// What became of the charge of a key's only limit, and its balance after that: an [`Outcome`] that stays in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single {
    /// It was charged.
    Admitted(Balance),
    /// It was not.
    Refused(Balance),
    /// It was not, and the cost is over its burst.
    ExceedsBurst(Balance),
    /// As [`Outcome::Superseded`].
    Superseded,
}

impl From<Single> for Outcome {
    fn from(single: Single) -> Self {
        match single {
            Single::Admitted(balance) => Self::Admitted(Charged::only(balance)),
            Single::Refused(balance) => Self::Refused(Charged::only(balance)),
            Single::ExceedsBurst(balance) => Self::ExceedsBurst(Charged::only(balance)),
            Single::Superseded => Self::Superseded,
        }
    }
}

/// The limits that an answer names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charged {
    /// The enforced limit that decided; `None` where no limit is enforced.
    pub limit: Option<Named>,
    /// Position of the first shadow limit that would have refused, had it been enforced.
    pub shadow: Option<usize>,
}

/// A limit and what it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its position among the limits that were to be charged.
    pub position: usize,
    /// Its balance after the request.
    pub balance: Balance,
}

impl Charged {
    /// A key's only limit.
    #[inline]
    pub(super) fn only(balance: Balance) -> Self {
        Self { limit: Some(Named { position: 0, balance }), shadow: None }
    }
}

/// Finds the limits that an answer should name, one limit at a time and in any order.
pub(super) struct Decided {
    admitted: bool,
    charged: Charged,
}

impl Decided {
    pub(super) fn new(admitted: bool) -> Self {
        Self { admitted, charged: Charged::default() }
    }

    /// An enforced limit. Admitted: the least remaining. Refused: the longest wait. A tie goes to the first.
    pub(super) fn consider(&mut self, position: usize, balance: Balance) {
        let better = self.charged.limit.is_none_or(|Named { position: first, balance: best }| {
            if self.admitted {
                (balance.remaining, position) < (best.remaining, first)
            } else {
                (balance.retry_after, first) > (best.retry_after, position)
            }
        });
        if better {
            self.charged.limit = Some(Named { position, balance });
        }
    }

    /// A shadow limit without room.
    pub(super) fn would_refuse(&mut self, position: usize) {
        self.charged.shadow = Some(self.charged.shadow.map_or(position, |first| first.min(position)));
    }

    pub(super) fn outcome(self) -> Outcome {
        if self.admitted { Outcome::Admitted(self.charged) } else { Outcome::Refused(self.charged) }
    }

    /// The cost is over the burst of this limit.
    pub(super) fn exceeds_burst(self, position: usize, balance: Balance) -> Outcome {
        Outcome::ExceedsBurst(Charged { limit: Some(Named { position, balance }), ..self.charged })
    }
}
