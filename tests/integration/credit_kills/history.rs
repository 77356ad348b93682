//! What can have been spent of a limit at each moment, by the answers that clients received.

use std::ops::RangeInclusive;

/// A request that charged a limit, or gave back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) limit: usize,
    /// What was charged; negative if it was given back. Without an answer, at most this.
    pub(super) amount: i64,
    /// When the request was sent, and when its answer was received.
    pub(super) sent: u64,
    pub(super) answered: Option<u64>,
}

impl Change {
    /// What it has certainly charged, or can have given back.
    pub(super) fn least(&self) -> i64 {
        if self.answered.is_some() { self.amount } else { self.amount.min(0) }
    }
}

/// The bounds of what was spent, from one time on.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    since: u64,
    least: i64,
    most: i64,
}

/// The bounds of what was spent of one limit, in the order of time. A request changes the limit at
/// some time between its start and its answer.
pub(super) struct History(Vec<Bounds>);

impl History {
    /// The history of a limit of which `spent` was spent before the changes.
    pub(super) fn new<'c>(spent: i64, changes: impl Iterator<Item = &'c Change>) -> Self {
        // The time, and what it adds to both bounds.
        let mut steps: Vec<(u64, i64, i64)> = Vec::new();
        for change in changes {
            let (given_back, charged) = (change.amount.min(0), change.amount.max(0));
            steps.push((change.sent, given_back, charged));
            if let Some(answered) = change.answered {
                steps.push((answered, charged, given_back));
            }
        }
        steps.sort_by_key(|step| step.0);
        let mut last = Bounds { since: 0, least: spent, most: spent };
        let mut bounds = vec![last];
        for (since, least, most) in steps {
            last = Bounds { since, least: last.least + least, most: last.most + most };
            bounds.push(last);
        }
        Self(bounds)
    }

    /// Whether `spent` can have been spent at one of the `moments`.
    pub(super) fn contains(&self, spent: i64, moments: &RangeInclusive<u64>) -> bool {
        self.during(moments).any(|bounds| (bounds.least..=bounds.most).contains(&spent))
    }

    /// The most that is forgotten by a return to one of the `moments`.
    pub(super) fn largest_loss(&self, moments: &RangeInclusive<u64>) -> i64 {
        let most = self.0.last().map_or(0, |last| last.most);
        self.during(moments).map(|bounds| most - bounds.least).max().unwrap_or(0)
    }

    /// Whether only one amount can have been spent at the `moments`.
    pub(super) fn is_certain(&self, moments: &RangeInclusive<u64>) -> bool {
        let mut all = self.during(moments);
        let first = all.next().expect("a history has no gaps");
        first.least == first.most
            && all.all(|bounds| (bounds.least, bounds.most) == (first.least, first.most))
    }

    fn during(&self, moments: &RangeInclusive<u64>) -> impl Iterator<Item = &Bounds> {
        let until = self.0.iter().skip(1).map(|next| next.since).chain([u64::MAX]);
        let (start, end) = (*moments.start(), *moments.end());
        self.0
            .iter()
            .zip(until)
            .filter(move |(bounds, until)| bounds.since <= end && *until >= start)
            .map(|(bounds, _)| bounds)
    }
}

/// The last bounds, which tell most about a failure.
impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bounds, the last ones {:?}", self.0.len(), &self.0[self.0.len().saturating_sub(5)..])
    }
}
