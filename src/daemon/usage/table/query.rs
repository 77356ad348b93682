//! Answers queries from the records.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use super::limits::{add_event, split_names};
use super::{Table, add_rare, earlier, used};
use crate::usage::UsageQuery;
use crate::usage::texts::TextId;
use keyward_admin::message::{KeyUsage, LimitUsage, MAX_LISTED, UsageCounts};

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
        let mut total = Sum::default();
        found.iter().for_each(|record| self.add_to(&mut total, *record as usize));
        let total = total.counts(self);
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

    fn add_to(&self, sum: &mut Sum, record: usize) {
        let (hot, cold) = (&self.hot[record], &self.cold[record]);
        sum.general.allowed += cold.allowed + hot.allowed;
        sum.general.cost += cold.cost + hot.cost;
        match hot.limits {
            Some(limits) => sum.of_limit(limits).charged += cold.cost + hot.cost,
            None => sum.is_in_detail = true,
        }
        for rare in &cold.rare {
            let amount = rare.before + rare.recent;
            match rare.limit {
                Some(limit) => add_event(sum.of_limit(limit), rare.kind, amount),
                None => add_rare(&mut sum.general, rare.kind, amount),
            }
        }
    }

    fn usage(&self, record: usize) -> KeyUsage {
        let (hot, cold) = (&self.hot[record], &self.cold[record]);
        let mut sum = Sum::default();
        self.add_to(&mut sum, record);
        KeyUsage {
            key_id: cold.key_id.to_string(),
            owner: cold.owner.to_string(),
            counts: sum.counts(self),
            first_used: used(earlier(cold.first, hot.first)),
            last_used: used(cold.last.max(hot.last)),
        }
    }
}

/// The sums of the counts of records.
#[derive(Default)]
struct Sum {
    general: UsageCounts,
    /// By the number of a text: the name of a limit, or the names of all limits that were charged.
    limits: HashMap<TextId, LimitUsage, foldhash::fast::FixedState>,
    /// Whether there is a record with counts for each limit.
    is_in_detail: bool,
}

impl Sum {
    fn of_limit(&mut self, names: TextId) -> &mut LimitUsage {
        self.limits.entry(names).or_default()
    }

    fn counts(self, table: &Table) -> UsageCounts {
        let mut limits = BTreeMap::<String, LimitUsage>::new();
        if self.is_in_detail {
            for (names, usage) in self.limits.iter().filter(|(_, usage)| **usage != LimitUsage::default()) {
                for name in split_names(table.texts.get(*names)) {
                    let sum = limits.entry(name.to_owned()).or_default();
                    sum.charged += usage.charged;
                    sum.debited += usage.debited;
                    sum.refunded += usage.refunded;
                }
            }
        }
        UsageCounts { limits: self.is_in_detail.then_some(limits), ..self.general }
    }
}
