//! What each limit of a key was charged, debited and refunded.
//!
//! Most keys are used in the plain form only: every request charges its cost to each limit. Their
//! records have a number for the names of all limits, and count nothing else. A record is *in
//! detail* from the first event that changes limits by different amounts: a request with costs for
//! named limits, a debit, a refund, or a limit in shadow mode without room. Then it has counts for
//! each limit, which begin with what the plain requests have charged. The record of a key that gets
//! other limits is in detail too, because its `cost` concerns the earlier limits.

use keyward_engine::snapshot::Key;
use keyward_protocol::Verdict;

use super::{ColdRecord, HotCounters, RareCount, Table};
use crate::usage::log::{Event, IN_DETAIL, LIMIT_CHARGED, LIMIT_DEBITED, LIMIT_REFUNDED};
use crate::usage::texts::{TextId, Texts};
use keyward_admin::message::LimitUsage;

/// Separates the names of limits in one text. It is not part of any name.
const SEPARATOR: char = '\n';

/// Adds to the count of a kind of event.
pub(super) fn add_event(usage: &mut LimitUsage, kind: u8, amount: u64) {
    match kind {
        LIMIT_CHARGED => usage.charged += amount,
        LIMIT_DEBITED => usage.debited += amount,
        LIMIT_REFUNDED => usage.refunded += amount,
        _ => {}
    }
}

/// The names in a text that [`join_names`] has written.
pub(super) fn split_names(text: &str) -> impl Iterator<Item = &str> {
    text.split(SEPARATOR).filter(|name| !name.is_empty())
}

fn join_names(key: Key<'_>, text: &mut String) {
    text.clear();
    for (position, limit) in key.policy().limits().enumerate() {
        if position > 0 {
            text.push(SEPARATOR);
        }
        text.push_str(limit.name);
    }
}

impl Table {
    /// The number of the names of the key's limits, which has one more user.
    pub(in crate::usage) fn retain_limits(&mut self, key: Key<'_>) -> TextId {
        join_names(key, &mut self.names);
        self.texts.retain(&self.names)
    }

    /// A row with the key of `record` is new in a snapshot.
    pub(in crate::usage) fn compare_limits(&mut self, record: u32, key: Key<'_>) {
        let record = record as usize;
        if let Some(limits) = self.hot[record].limits {
            join_names(key, &mut self.names);
            if *self.texts.get(limits) != *self.names {
                self.count_in_detail_from_now_on(record);
            }
        }
    }

    /// Counts what an event changes on each limit. Before `cost` has changed.
    #[cold]
    pub(super) fn count_limits(&mut self, view: usize, record: usize, event: &Event) {
        self.count_in_detail_from_now_on(record);
        let Self { views, cold, texts, .. } = self;
        let Some(key) = views[view].snapshot.key_at(event.entry) else { return };
        let (cold, amount) = (&mut cold[record], event.cost.into());
        if event.kind >= LIMIT_CHARGED {
            if let Some(limit) = key.policy().limits().nth(event.position.into()) {
                cold.add_to_limit(texts, event.kind, limit.name, amount);
            }
        } else if event.kind == Verdict::Allowed.value() && event.position != IN_DETAIL {
            for (position, limit) in key.policy().limits().enumerate() {
                if !event.shadow.contains(position) {
                    cold.add_to_limit(texts, LIMIT_CHARGED, limit.name, amount);
                }
            }
        }
    }

    /// Gives a record counts for each limit, if it has none.
    fn count_in_detail_from_now_on(&mut self, record: usize) {
        let Self { hot, cold, texts, names, .. } = self;
        let (hot, cold) = (&mut hot[record], &mut cold[record]);
        let Some(limits) = hot.limits.take() else { return };
        names.clear();
        names.push_str(texts.get(limits));
        texts.release(limits);
        if hot.cost > 0 || cold.cost > 0 {
            for name in split_names(names) {
                let limit = Some(texts.retain(name));
                cold.rare.push(RareCount { kind: LIMIT_CHARGED, limit, recent: hot.cost, before: cold.cost });
            }
        }
    }

    /// Removes the counts of limits that a key no longer has. They have been written.
    pub(super) fn remove_absent_limits(&mut self, record: usize) {
        let Self { views, cold, texts, .. } = self;
        let ColdRecord { key_id, rare, .. } = &mut cold[record];
        if rare.iter().all(|count| count.limit.is_none()) {
            return;
        }
        let Some(key) = views.last().and_then(|view| view.snapshot.find_by_id(key_id)) else { return };
        rare.retain(|count| match count.limit {
            Some(limit) => {
                let is_present = key.policy().limits().any(|present| *present.name == *texts.get(limit));
                if !is_present {
                    texts.release(limit);
                }
                is_present
            }
            None => true,
        });
    }

    /// Releases the texts of a record that is removed.
    pub(super) fn release_texts(&mut self, record: usize) {
        let Self { hot, cold, texts, .. } = self;
        let of_limits = cold[record].rare.iter().filter_map(|count| count.limit);
        hot[record].limits.take().into_iter().chain(of_limits).for_each(|id| texts.release(id));
    }
}

impl ColdRecord {
    fn add_to_limit(&mut self, texts: &mut Texts, kind: u8, name: &str, amount: u64) {
        let is_same = |count: &&mut RareCount| {
            count.kind == kind && count.limit.is_some_and(|limit| *texts.get(limit) == *name)
        };
        match self.rare.iter_mut().find(is_same) {
            Some(count) => count.recent += amount,
            None => {
                let limit = Some(texts.retain(name));
                self.rare.push(RareCount { kind, limit, recent: amount, before: 0 });
            }
        }
    }
}

impl HotCounters {
    /// Whether a request that was allowed has to be counted for each limit.
    #[inline]
    pub(super) fn is_in_detail(&self, event: &Event) -> bool {
        self.limits.is_none() || event.position != 0 || !event.shadow.is_empty()
    }
}
