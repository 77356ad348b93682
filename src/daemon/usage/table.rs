//! A record for each key that was used, and the merging of logs into records.
//!
//! The counts that every request changes take 32 bytes ([`HotCounters`]). Everything else is apart
//! ([`ColdRecord`]): the key's id and owner, denials, totals, and the counts of [`limits`].
//!
//! A [`SnapshotView`] maps an entry of a snapshot to its record. A new snapshot gets an empty view,
//! and each of its entries looks its record up by key id once ([`lookup`](super::lookup)). So
//! merging an event takes two loads, which do not depend on other events.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use keyward_protocol::{VERDICT_LIMIT, Verdict};

use super::chunked_vec::ChunkedVec;
use super::log::{DEBITED, Event, FlushedLog, LIMIT_CHARGED, PEEKED, REFUNDED, SHADOW_LIMITED, UnknownKeys};
use super::texts::{TextId, Texts};
use keyward_admin::message::{LimitUsage, UsageCounts};
use keyward_engine::snapshot::Snapshot;
use keyward_memory::{HugeVec, prefetch, zeroed};

mod limits;
mod query;

/// Events whose records are found before any of them changes, so that their loads overlap.
pub(super) const BLOCK: usize = 64;

/// A view's value for an entry without a record. Otherwise the value is the record's number plus
/// one.
pub(super) const NOT_FOUND: u32 = 0;

/// The usage of a key since the last write.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct HotCounters {
    allowed: u64,
    cost: u64,
    /// Unix seconds; 0: none.
    first: u32,
    last: u32,
    /// The names of the key's limits, if every request was charged to all of them. `None`: there are
    /// counts for each limit.
    limits: Option<TextId>,
    /// Whether there is usage to write.
    changed: bool,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<HotCounters>() == 32);

/// The rest of a record.
#[derive(Default)]
pub(super) struct ColdRecord {
    /// Empty for a free record: no key has an empty id.
    pub(super) key_id: Box<str>,
    pub(super) owner: Arc<str>,
    /// Totals up to the last write.
    allowed: u64,
    cost: u64,
    first: u32,
    last: u32,
    rare: Vec<RareCount>,
}

/// A count that few keys have: of a verdict other than ALLOWED, or one of [`REFUNDED`], [`DEBITED`],
/// [`PEEKED`] and [`SHADOW_LIMITED`]; or of a limit.
#[derive(Clone, Copy)]
struct RareCount {
    kind: u8,
    /// The limit's name.
    limit: Option<TextId>,
    /// The count since the last write.
    recent: u64,
    /// The count up to the last write.
    before: u64,
}

const _: () = assert!(size_of::<RareCount>() == 24);

/// The record of each entry of a snapshot.
pub(super) struct SnapshotView {
    pub(super) snapshot: Arc<Snapshot>,
    /// In huge pages, so that a look-up misses the cache but not the TLB.
    records: HugeVec<u32>,
}

/// All records.
#[derive(Default)]
pub(super) struct Table {
    /// By table generation. There are several only while workers are leaving a snapshot.
    pub(super) views: Vec<SnapshotView>,
    hot: ChunkedVec<HotCounters>,
    pub(super) cold: ChunkedVec<ColdRecord>,
    /// Records by key id. Each is stored with its hash, so that growing the table reads no records.
    pub(super) by_id: HashTable<(u64, u32)>,
    pub(super) hasher: foldhash::fast::RandomState,
    /// Free records.
    free: Vec<u32>,
    /// The owner of the latest new record: consecutive rows often have the same owner.
    pub(super) last_owner: Arc<str>,
    /// The names of limits, each by itself and all of a key together.
    texts: Texts,
    /// A buffer for the names of a key's limits.
    names: String,
    unknown: UnknownKeys,
    unknown_before: UnknownKeys,
    /// The latest table generation for which records of absent keys have been removed.
    swept: u64,
}

/// The usage of a key in an interval.
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
    /// Whether to remove the records of keys that are not in the snapshot.
    sweeps: bool,
}

impl Table {
    /// Merges a log, and empties it.
    pub(super) fn merge(&mut self, log: &mut FlushedLog) {
        self.unknown.add(log.unknown);
        if let Some(snapshot) = &log.snapshot {
            let view = self.view(snapshot);
            for block in log.events.chunks(BLOCK) {
                self.merge_block(view, block);
            }
        }
        log.events.clear();
    }

    /// Drops the views of older snapshots: no worker uses them.
    pub(super) fn release_views_before(&mut self, table_generation: u64) {
        self.views.retain(|view| view.snapshot.table_generation() >= table_generation);
    }

    /// The index of the snapshot's view, which is created if it is new.
    fn view(&mut self, snapshot: &Arc<Snapshot>) -> usize {
        if let Some(at) = self.views.iter().rposition(|view| Arc::ptr_eq(&view.snapshot, snapshot)) {
            return at;
        }
        let view = SnapshotView { snapshot: Arc::clone(snapshot), records: zeroed(snapshot.len()) };
        let at = self
            .views
            .partition_point(|other| other.snapshot.table_generation() <= snapshot.table_generation());
        self.views.insert(at, view);
        at
    }

    fn merge_block(&mut self, view: usize, events: &[Event]) {
        let mut records = [NOT_FOUND; BLOCK];
        for (record, event) in records.iter_mut().zip(events) {
            *record = self.views[view].record(event.entry);
        }
        if records[..events.len()].contains(&NOT_FOUND) {
            self.look_up(view, events, &mut records);
        }
        // The record of an event is fetched while the events before it are counted.
        for record in records.iter().filter_map(|record| record.checked_sub(1)) {
            self.hot.get(record as usize).into_iter().for_each(prefetch);
        }
        for (record, event) in records.iter().zip(events) {
            if let Some(record) = record.checked_sub(1) {
                self.count(view, record as usize, event);
            }
        }
    }

    #[inline]
    fn count(&mut self, view: usize, record: usize, event: &Event) {
        let hot = &mut self.hot[record];
        hot.changed = true;
        if event.kind < VERDICT_LIMIT {
            if hot.first == 0 {
                hot.first = event.unix;
            }
            // Workers flush one after the other, so a later event may be older.
            hot.first = hot.first.min(event.unix);
            hot.last = hot.last.max(event.unix);
        }
        if event.kind == Verdict::Allowed.value() {
            if hot.is_in_detail(event) {
                self.count_limits(view, record, event);
            }
            let hot = &mut self.hot[record];
            hot.allowed += 1;
            hot.cost += u64::from(event.cost);
        } else if event.kind >= LIMIT_CHARGED {
            self.count_limits(view, record, event);
        } else if [REFUNDED, DEBITED].contains(&event.kind) {
            self.count_limits(view, record, event);
            self.cold[record].add(event.kind, event.cost.into());
        } else {
            self.cold[record].add(event.kind, 1);
        }
        if !event.shadow.is_empty() {
            self.cold[record].add(SHADOW_LIMITED, 1);
        }
    }

    /// Adds a record with these names of limits, and returns its number.
    pub(super) fn new_record(&mut self, cold: ColdRecord, limits: TextId) -> u32 {
        let hot = HotCounters { limits: Some(limits), ..HotCounters::default() };
        match self.free.pop() {
            Some(record) => {
                self.hot[record as usize] = hot;
                self.cold[record as usize] = cold;
                record
            }
            None => {
                self.hot.push(hot);
                self.cold.push(cold);
                // Records outlive snapshots, so no snapshot bounds their number. But 2^32 of them
                // would take half a terabyte of memory.
                (self.cold.len() - 1) as u32
            }
        }
    }

    /// Requests with unknown keys since the last call.
    pub(super) fn take_unknown(&mut self) -> UnknownKeys {
        let recent = std::mem::take(&mut self.unknown);
        self.unknown_before.add(recent);
        recent
    }

    /// Begins a walk over the usage to be written. If all workers use the same new snapshot, the
    /// walk removes the records of keys that are not in it.
    pub(super) fn walk(&self) -> Walk {
        let newest = self.views.last().map_or(0, |view| view.snapshot.table_generation());
        Walk { at: 0, sweeps: self.views.len() == 1 && newest > self.swept }
    }

    /// Visits the next `records` records: calls `write` with the usage of each since the last
    /// write, until it returns `false`. Returns whether the walk is complete.
    pub(super) fn step(
        &mut self,
        walk: &mut Walk,
        records: usize,
        mut write: impl FnMut(Delta<'_>) -> bool,
    ) -> bool {
        let end = self.hot.len().min(walk.at.saturating_add(records));
        // The view of a newer snapshot may refer to the records: then none is removed.
        walk.sweeps &= self.views.len() == 1;
        let mut has_room = true;
        while walk.at < end && has_room {
            let record = walk.at;
            walk.at += 1;
            if self.hot[record].changed {
                has_room = write(self.take_delta(record));
            }
            if walk.sweeps {
                self.remove_if_absent(record);
            }
        }
        let is_done = walk.at >= self.hot.len();
        if is_done && walk.sweeps {
            self.swept = self.views.last().map_or(0, |view| view.snapshot.table_generation());
        }
        is_done
    }

    /// The usage since the last write, which is added to the totals.
    fn take_delta(&mut self, record: usize) -> Delta<'_> {
        let limits = self.hot[record].limits;
        let hot = std::mem::replace(&mut self.hot[record], HotCounters { limits, ..HotCounters::default() });
        let cold = &mut self.cold[record];
        cold.allowed += hot.allowed;
        cold.cost += hot.cost;
        cold.first = earlier(cold.first, hot.first);
        cold.last = cold.last.max(hot.last);
        let mut counts = UsageCounts { allowed: hot.allowed, cost: hot.cost, ..UsageCounts::default() };
        let mut of_limits = hot.limits.is_none().then(BTreeMap::new);
        for rare in &mut cold.rare {
            let recent = std::mem::take(&mut rare.recent);
            rare.before += recent;
            match (rare.limit, &mut of_limits) {
                (None, _) => add_rare(&mut counts, rare.kind, recent),
                (Some(limit), Some(of_limits)) if recent > 0 => {
                    let of_limit: &mut LimitUsage =
                        of_limits.entry(self.texts.get(limit).to_owned()).or_default();
                    limits::add_event(of_limit, rare.kind, recent);
                }
                (Some(_), _) => {}
            }
        }
        counts.limits = of_limits;
        Delta { key_id: &cold.key_id, owner: &cold.owner, counts, first: hot.first, last: hot.last }
    }

    fn remove_if_absent(&mut self, record: usize) {
        let key_id = &self.cold[record].key_id;
        let is_present = |view: &SnapshotView| view.snapshot.find_by_id(key_id).is_some();
        if key_id.is_empty() {
            return;
        }
        if self.views.last().is_none_or(is_present) {
            return self.remove_absent_limits(record);
        }
        let hash = self.hasher.hash_one(&**key_id);
        self.release_texts(record);
        self.cold[record] = ColdRecord::default();
        if let Ok(entry) = self.by_id.find_entry(hash, |(_, other)| *other as usize == record) {
            self.free.push(entry.remove().0.1);
        }
    }

    /// The number of names of limits, and of lists of them.
    #[cfg(test)]
    pub(super) fn texts(&self) -> usize {
        self.texts.len()
    }

    /// The number of records in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Requests with unknown keys since the start.
    pub(super) fn all_unknown(&self) -> UnknownKeys {
        let mut all = self.unknown_before;
        all.add(self.unknown);
        all
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

    fn add(&mut self, kind: u8, amount: u64) {
        match self.rare.iter_mut().find(|rare| rare.kind == kind) {
            Some(rare) => rare.recent += amount,
            None => self.rare.push(RareCount { kind, limit: None, recent: amount, before: 0 }),
        }
    }
}

/// Adds to the count of a kind of event, unless it is that of a limit.
fn add_rare(counts: &mut UsageCounts, kind: u8, amount: u64) {
    if amount == 0 {
        return;
    }
    match kind {
        REFUNDED => counts.refunded += amount,
        DEBITED => counts.debited += amount,
        PEEKED => counts.peeked += amount,
        SHADOW_LIMITED => counts.shadow_limited += amount,
        verdict => {
            let name = Verdict::from_value(verdict).name();
            *counts.denied.entry(name.to_owned()).or_default() += amount;
        }
    }
}

/// The earlier of two Unix seconds; 0 means none.
fn earlier(a: u32, b: u32) -> u32 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    }
}

/// The Unix second; `None` for 0.
pub(super) fn used(unix: u32) -> Option<u32> {
    (unix > 0).then_some(unix)
}
