//! The shared state of all buckets, and the migration of a balance to the slot of a new rule.
//!
//! A reload that changes a limit's rule gives it a bucket in a new slot, marked as migrating, and
//! lists the slots that hold the old balance ([`Migration`]). The first thread that needs the new
//! slot freezes the old ones and converts their balance to the new rule. A thread that still
//! charges an old slot finds it superseded and retries with the new snapshot.

use std::collections::HashMap;
use std::sync::PoisonError;

use crate::limiter::calendar::Calendar;
use crate::limiter::latest_time::LatestTime;
use crate::limiter::rule::{Rule, RuleAt};
use crate::limiter::slots::{BucketRef, Slots};
use crate::limiter::word::Word;
use crate::now::Now;
use crate::sync::{RwLock, spin_loop, yield_now};

/// Spins before a waiting thread yields its processor. A lock is held for tens of nanoseconds,
/// unless the kernel has preempted the thread that holds it.
const SPINS_BEFORE_YIELD: u32 = 64;

/// The state that all threads share.
pub(super) struct Buckets {
    pub(super) slots: Slots,
    /// Empty except while a reload that changed limits is in progress.
    pub(super) migrations: RwLock<Migrations>,
    pub(super) latest_time: LatestTime,
    pub(super) calendar: Calendar,
}

/// The migrations into each slot, by slot number: one, or several where limits have been merged.
pub(super) type Migrations = HashMap<u32, Vec<Migration>>;

/// Where the balance of a migrating slot comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migration {
    /// The slot of the old rule.
    pub(super) old_slot: u32,
    pub(super) old_rule: Rule,
    pub(super) new_rule: Rule,
}

/// Why a bucket cannot be used.
pub(super) enum Obstacle {
    /// A newer snapshot has superseded it.
    Superseded,
    /// Its balance is still in another slot.
    Migrating,
}

impl Buckets {
    pub(super) fn new() -> Self {
        Self {
            slots: Slots::new(),
            migrations: RwLock::new(HashMap::new()),
            latest_time: LatestTime::new(),
            calendar: Calendar::default(),
        }
    }

    /// The word of a bucket, and the rule to read it with at `now` or at the time of a later charge.
    pub(super) fn read(&self, bucket: BucketRef, now: Now) -> (Word, RuleAt<'_>) {
        let word = self.slots.load(bucket.slot);
        (word, bucket.rule.at(self.latest_time.advance_to(now), &self.calendar))
    }

    /// Waits until the state of `slot` has no flags set, and returns it. Completes a pending
    /// migration into the slot. Returns `None` if a newer snapshot has superseded the slot.
    // Inlined, it makes every charge slower: 779 instructions a request instead of 771.
    #[inline(never)]
    pub(super) fn wait_unlocked(&self, slot: u32, now: Now) -> Option<Word> {
        loop {
            match self.wait(slot) {
                Ok(word) => return Some(word),
                Err(Obstacle::Superseded) => return None,
                Err(Obstacle::Migrating) => self.complete_migration(slot, now),
            }
        }
    }

    /// Waits until `slot` is not locked.
    #[inline]
    pub(super) fn wait(&self, slot: u32) -> Result<Word, Obstacle> {
        let mut spins = 0;
        loop {
            let word = self.slots.load(slot);
            if word.is_unflagged() {
                return Ok(word);
            } else if word.is_superseded() {
                return Err(Obstacle::Superseded);
            } else if word.is_migrating() {
                return Err(Obstacle::Migrating);
            }
            spin_or_yield(&mut spins);
        }
    }

    /// Freezes the old slots of a migration, and stores the lowest of their balances, converted to
    /// the new rule, in `slot`.
    ///
    /// Any number of threads may do this at once: all read the same frozen states, and the first
    /// one to store its result wins.
    pub(super) fn complete_migration(&self, slot: u32, now: Now) {
        // The lock is held until the end. Once a reload has cleared the list, no thread may freeze
        // an old slot any more: it may already belong to another bucket.
        let migrations = self.migrations.read().unwrap_or_else(PoisonError::into_inner);
        self.migrate(&migrations, slot, now);
    }

    fn migrate(&self, migrations: &Migrations, slot: u32, now: Now) {
        let Some(sources) = migrations.get(&slot) else {
            // Another thread has just completed the migration. The caller loads the state again.
            return;
        };
        for source in sources {
            self.freeze(migrations, source.old_slot, now);
        }
        // An old slot may have been charged at a later time than `now`. Now that all are frozen,
        // that cannot happen again.
        let now = self.latest_time.advance_to(now);
        let at = |rule: Rule| rule.at(now, &self.calendar);
        let converted = sources.iter().map(|Migration { old_slot, old_rule, new_rule }| {
            at(*old_rule).convert(self.slots.load(*old_slot), &at(*new_rule))
        });
        let Some(new_rule) = sources.first().map(|source| at(source.new_rule)) else { return };
        let word = converted.reduce(|one, other| new_rule.lower(one, other)).unwrap_or(Word::UNSPENT);
        while self.slots.load(slot).is_migrating()
            && !self.slots.compare_exchange(slot, Word::MIGRATING, word)
        {}
    }

    /// Marks `slot` as superseded. Its state no longer changes.
    fn freeze(&self, migrations: &Migrations, slot: u32, now: Now) {
        let mut spins = 0;
        loop {
            let state = self.slots.load(slot);
            if state.is_superseded() {
                return;
            }
            if state.is_locked() {
                spin_or_yield(&mut spins);
            } else if state.is_migrating() {
                // The rule changed again before this slot was used. First complete the earlier
                // migration.
                self.migrate(migrations, slot, now);
            } else if self.slots.compare_exchange(slot, state, state.superseded()) {
                return;
            }
        }
    }
}

/// Waits for another thread: a moment at first, and from time to time a turn of the scheduler.
pub(super) fn spin_or_yield(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
        yield_now();
    } else {
        spin_loop();
    }
}
