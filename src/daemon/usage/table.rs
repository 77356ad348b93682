//! A record for each key that was used, and how logs are merged into them.
//!
//! What every request changes is in 32 bytes ([`HotCounters`]): counts since the last write. What few change, and what only a write
//! or a question needs, is apart ([`ColdRecord`]): the key's id and owner, denials, totals.
//!
//! An entry of a snapshot finds its record through a [`SnapshotView`]: a list of numbers, which takes memory where they are needed. A new
//! snapshot gets a new, empty view, and each of its entries looks its record up by key id once ([`find`](super::find)). So merging
//! is, for each event, two loads that do not depend on the events around it.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use keyward_protocol::Verdict;

use super::Shared;
use super::answer::{KeyUsage, MAX_LISTED, UsageCounts, UsageQuery};
use super::log::{Batch, Event, PEEKED, REFUNDED, SHADOW_LIMITED, Unknown, VERDICTS};
use super::pieces::ChunkedVec;
use keyward_memory::{HugeVec, prefetch, zeroed};

/// Events whose records are found before any is changed, so that their loads overlap.
pub(super) const BLOCK: usize = 64;

/// Not found yet; records are numbered from 0, and written as one more.
pub(super) const NOT_FOUND: u32 = 0;

/// What a key used since the last write.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct HotCounters {
    allowed: u64,
    cost: u64,
    /// Unix seconds; 0: not used.
    first: u32,
    last: u32,
    /// Whether there is anything to write.
    changed: bool,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<HotCounters>() == 32);

/// The rest of a record.
#[derive(Default)]
pub(super) struct ColdRecord {
    /// Empty: the record is free. No key has an empty id.
    pub(super) key_id: Box<str>,
    pub(super) owner: Arc<str>,
    /// Up to the last write.
    allowed: u64,
    cost: u64,
    first: u32,
    last: u32,
    rare: Vec<RareCount>,
}

/// Something that few keys have: a verdict other than ALLOWED, or one of [`REFUNDED`], [`PEEKED`], [`SHADOW_LIMITED`].
#[derive(Clone, Copy)]
struct RareCount {
    what: u8,
    /// Since the last write.
    recent: u64,
    /// Up to the last write.
    before: u64,
}

/// Which record each entry of a snapshot has.
pub(super) struct SnapshotView {
    pub(super) snapshot: Shared,
    /// In huge pages, so that finding a number waits for one line and not for its page's place as well.
    records: HugeVec<u32>,
}

/// All records.
#[derive(Default)]
pub(super) struct Table {
    /// By generation; more than one only while workers are leaving a snapshot.
    pub(super) views: Vec<SnapshotView>,
    hot: ChunkedVec<HotCounters>,
    pub(super) cold: ChunkedVec<ColdRecord>,
    /// Records by key id. The hash beside each is what a table that grows would otherwise have to ask a million records for.
    pub(super) by_id: HashTable<(u64, u32)>,
    pub(super) hasher: foldhash::fast::RandomState,
    /// Records to use again.
    free: Vec<u32>,
    /// The owner of the record that was made last: neighbours often share it.
    pub(super) owner: Arc<str>,
    unknown: Unknown,
    unknown_before: Unknown,
    /// The generation whose vanished keys have been removed.
    swept: u64,
}

/// What a key used in an interval.
pub(super) struct Delta<'a> {
    pub(super) key_id: &'a str,
    pub(super) owner: &'a str,
    pub(super) counts: UsageCounts,
    pub(super) first: u32,
    pub(super) last: u32,
}

/// A walk over all records, in steps.
pub(super) struct Walk {
    at: usize,
    sweeps: bool,
}

impl Table {
    /// Merges a log, and empties it.
    pub(super) fn merge(&mut self, batch: &mut Batch) {
        self.unknown.add(batch.unknown);
        if let Some(snapshot) = &batch.snapshot {
            let view = self.view(snapshot);
            for block in batch.events.chunks(BLOCK) {
                self.merge_block(view, block);
            }
        }
        batch.events.clear();
    }

    /// All workers use this generation or a later one.
    pub(super) fn release_views_before(&mut self, generation: u64) {
        self.views.retain(|view| view.snapshot.generation() >= generation);
    }

    fn view(&mut self, snapshot: &Shared) -> usize {
        if let Some(at) = self.views.iter().rposition(|view| Arc::ptr_eq(&view.snapshot, snapshot)) {
            return at;
        }
        let view = SnapshotView { snapshot: Arc::clone(snapshot), records: zeroed(snapshot.len()) };
        let at = self.views.partition_point(|other| other.snapshot.generation() <= snapshot.generation());
        self.views.insert(at, view);
        at
    }

    fn merge_block(&mut self, view: usize, events: &[Event]) {
        let mut records = [NOT_FOUND; BLOCK];
        for (record, event) in records.iter_mut().zip(events) {
            *record = self.views[view].record(event.entry);
        }
        if records[..events.len()].contains(&NOT_FOUND) {
            self.find(view, events, &mut records);
        }
        // What one event changes is on its way while the ones before it are counted.
        for record in records.iter().filter_map(|record| record.checked_sub(1)) {
            self.hot.get(record as usize).into_iter().for_each(prefetch);
        }
        for (record, event) in records.iter().zip(events) {
            if let Some(record) = record.checked_sub(1) {
                self.count(record as usize, event);
            }
        }
    }

    #[inline]
    fn count(&mut self, record: usize, event: &Event) {
        let hot = &mut self.hot[record];
        hot.changed = true;
        if event.what < VERDICTS {
            if hot.first == 0 {
                hot.first = event.unix;
            }
            // Workers flush one after the other, so that what comes later may be older.
            hot.first = hot.first.min(event.unix);
            hot.last = hot.last.max(event.unix);
        }
        if event.what == Verdict::Allowed.value() {
            hot.allowed += 1;
            hot.cost += u64::from(event.cost);
        } else {
            let amount = if event.what == REFUNDED { event.cost.into() } else { 1 };
            self.cold[record].add(event.what, amount);
        }
        if event.shadow {
            self.cold[record].add(SHADOW_LIMITED, 1);
        }
    }

    /// A record for what has none yet.
    pub(super) fn new_record(&mut self, cold: ColdRecord) -> u32 {
        match self.free.pop() {
            Some(record) => {
                self.cold[record as usize] = cold;
                record
            }
            None => {
                self.hot.push(HotCounters::default());
                self.cold.push(cold);
                // Records are fewer than entries, which are numbered with 32 bits, or were freed.
                (self.cold.len() - 1) as u32
            }
        }
    }

    /// Requests with unknown keys since the last call.
    pub(super) fn take_unknown(&mut self) -> Unknown {
        let recent = std::mem::take(&mut self.unknown);
        self.unknown_before.add(recent);
        recent
    }

    /// Begins to look for what is to be written. Where there is a new snapshot and no worker uses another, the records of
    /// keys that are not in it are removed on the way.
    pub(super) fn walk(&self) -> Walk {
        let newest = self.views.last().map_or(0, |view| view.snapshot.generation());
        Walk { at: 0, sweeps: self.views.len() == 1 && newest > self.swept }
    }

    /// Goes on for `records` records: gives what each used since the last write to `write`, until that says that it has
    /// enough. Returns whether that was the last step.
    pub(super) fn step(
        &mut self,
        walk: &mut Walk,
        records: usize,
        mut write: impl FnMut(Delta<'_>) -> bool,
    ) -> bool {
        let end = self.hot.len().min(walk.at.saturating_add(records));
        // A snapshot that has come since may have views on records: then nothing is removed.
        walk.sweeps &= self.views.len() == 1;
        let mut goes_on = true;
        while walk.at < end && goes_on {
            let record = walk.at;
            walk.at += 1;
            if self.hot[record].changed {
                goes_on = write(self.settle(record));
            }
            if walk.sweeps {
                self.remove_if_gone(record);
            }
        }
        let is_done = walk.at >= self.hot.len();
        if is_done && walk.sweeps {
            self.swept = self.views.last().map_or(0, |view| view.snapshot.generation());
        }
        is_done
    }

    /// What a record counted since the last write; from here on it is before it.
    fn settle(&mut self, record: usize) -> Delta<'_> {
        let hot = std::mem::take(&mut self.hot[record]);
        let cold = &mut self.cold[record];
        cold.allowed += hot.allowed;
        cold.cost += hot.cost;
        cold.first = earlier(cold.first, hot.first);
        cold.last = cold.last.max(hot.last);
        let mut counts = UsageCounts { allowed: hot.allowed, cost: hot.cost, ..UsageCounts::default() };
        for rare in &mut cold.rare {
            let recent = std::mem::take(&mut rare.recent);
            rare.before += recent;
            counts.add_rare(rare.what, recent);
        }
        Delta { key_id: &cold.key_id, owner: &cold.owner, counts, first: hot.first, last: hot.last }
    }

    fn remove_if_gone(&mut self, record: usize) {
        let key_id = &self.cold[record].key_id;
        let is_there = |view: &SnapshotView| view.snapshot.find_by_id(key_id).is_some();
        if key_id.is_empty() || self.views.last().is_none_or(is_there) {
            return;
        }
        let hash = self.hasher.hash_one(&**key_id);
        self.cold[record] = ColdRecord::default();
        if let Ok(entry) = self.by_id.find_entry(hash, |(_, other)| *other as usize == record) {
            self.free.push(entry.remove().0.1);
        }
    }

    /// How many records are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Requests with unknown keys since the start.
    pub(super) fn all_unknown(&self) -> Unknown {
        let mut all = self.unknown_before;
        all.add(self.unknown);
        all
    }

    /// The keys that `question` is about: how many, what they used together, and those that cost most.
    pub(super) fn answer(&self, question: &UsageQuery) -> (usize, UsageCounts, Vec<KeyUsage>) {
        let mut found: Vec<u32> = match question {
            UsageQuery::Key(key_id) => {
                self.known(self.hasher.hash_one(&**key_id), key_id).into_iter().collect()
            }
            UsageQuery::Owner(owner) => {
                let is_owners = |record: &u32| *self.cold[*record as usize].owner == **owner;
                self.records().filter(is_owners).collect()
            }
            UsageQuery::Top(_) => self.records().collect(),
        };
        let most = if let UsageQuery::Top(most) = question { *most } else { MAX_LISTED }.min(MAX_LISTED);
        let matched = found.len();
        let mut total = UsageCounts::default();
        found.iter().for_each(|record| self.add_to(&mut total, *record as usize));
        let order = |record: &u32| {
            let (hot, cold) = (&self.hot[*record as usize], &self.cold[*record as usize]);
            let used = (cold.cost + hot.cost, cold.allowed + hot.allowed);
            (std::cmp::Reverse(used), &*cold.key_id)
        };
        if matched > most && most > 0 {
            found.select_nth_unstable_by(most - 1, |a, b| order(a).cmp(&order(b)));
        }
        found.truncate(most);
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
            counts.add_rare(rare.what, rare.before + rare.recent);
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

impl SnapshotView {
    #[inline]
    pub(super) fn record(&self, entry: u32) -> u32 {
        self.records.get(entry as usize).copied().unwrap_or(NOT_FOUND)
    }

    pub(super) fn set(&mut self, entry: u32, record: u32) {
        self.records.get_mut(entry as usize).into_iter().for_each(|there| *there = record);
    }
}

impl ColdRecord {
    pub(super) fn new(key_id: Box<str>, owner: Arc<str>) -> Self {
        Self { key_id, owner, ..Self::default() }
    }

    fn add(&mut self, what: u8, amount: u64) {
        match self.rare.iter_mut().find(|rare| rare.what == what) {
            Some(rare) => rare.recent += amount,
            None => self.rare.push(RareCount { what, recent: amount, before: 0 }),
        }
    }
}

impl UsageCounts {
    fn add_rare(&mut self, what: u8, amount: u64) {
        if amount == 0 {
            return;
        }
        match what {
            REFUNDED => self.refunded += amount,
            PEEKED => self.peeked += amount,
            SHADOW_LIMITED => self.shadow_limited += amount,
            verdict => {
                let name = Verdict::from_value(verdict).name();
                *self.denied.entry(name.to_owned()).or_default() += amount;
            }
        }
    }
}

/// The earlier of two Unix seconds, of which 0 is none.
fn earlier(a: u32, b: u32) -> u32 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    }
}

/// A Unix second, unless there was no use.
pub(super) fn used(unix: u32) -> Option<u32> {
    (unix > 0).then_some(unix)
}
