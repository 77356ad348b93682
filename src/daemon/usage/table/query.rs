//! Answers queries from the records.

use std::hash::BuildHasher;

use super::{Table, earlier, used};
use crate::usage::report::{KeyUsage, MAX_LISTED, UsageCounts, UsageQuery};

impl Table {
    /// The keys that match `query`: their number, the sums of their counts, and those with the
    /// highest cost.
    pub(in crate::usage) fn query(&self, query: &UsageQuery) -> (usize, UsageCounts, Vec<KeyUsage>) {
        let mut found: Vec<u32> = match query {
            UsageQuery::Key(key_id) => {
                self.find(self.hasher.hash_one(&**key_id), key_id).into_iter().collect()
            }
            UsageQuery::Owner(owner) => {
                let is_owners = |record: &u32| *self.cold[*record as usize].owner == **owner;
                self.records().filter(is_owners).collect()
            }
            UsageQuery::Top(_) => self.records().collect(),
        };
        let limit = if let UsageQuery::Top(limit) = query { *limit } else { MAX_LISTED }.min(MAX_LISTED);
        let matched = found.len();
        let mut total = UsageCounts::default();
        found.iter().for_each(|record| self.add_to(&mut total, *record as usize));
        let order = |record: &u32| {
            let (hot, cold) = (&self.hot[*record as usize], &self.cold[*record as usize]);
            let used = (cold.cost + hot.cost, cold.allowed + hot.allowed);
            (std::cmp::Reverse(used), &*cold.key_id)
        };
        if matched > limit && limit > 0 {
            found.select_nth_unstable_by(limit - 1, |a, b| order(a).cmp(&order(b)));
        }
        found.truncate(limit);
        found.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
        (matched, total, found.into_iter().map(|record| self.usage(record as usize)).collect())
    }

    fn records(&self) -> impl Iterator<Item = u32> {
        self.by_id.iter().map(|(_, record)| *record)
    }

    fn add_to(&self, counts: &mut UsageCounts, record: usize) {
        let (hot, cold) = (&self.hot[record], &self.cold[record]);
        counts.allowed += cold.allowed + hot.allowed;
        counts.cost += cold.cost + hot.cost;
        for rare in &cold.rare {
            counts.add_rare(rare.kind, rare.before + rare.recent);
        }
    }

    fn usage(&self, record: usize) -> KeyUsage {
        let (hot, cold) = (&self.hot[record], &self.cold[record]);
        let mut counts = UsageCounts::default();
        self.add_to(&mut counts, record);
        KeyUsage {
            key_id: cold.key_id.to_string(),
            owner: cold.owner.to_string(),
            counts,
            first_used: used(earlier(cold.first, hot.first)),
            last_used: used(cold.last.max(hot.last)),
        }
    }
}
