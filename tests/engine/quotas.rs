//! Promise 4 over reloads, absences and restarts, on snapshots and the slot allocator: however keys come, go and change plans, nobody is
//! given a quota again. Time is an argument, and every sequence is made from its seed.

use std::collections::HashMap;

use keyward_engine::limiter::persist::SavedBucket;
use keyward_engine::limiter::{Charge, Limiter, Outcome, Rate, SlotAllocator, TICKS_PER_NANOSECOND};
use keyward_engine::record::{KeyRecord, Limit, Per};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta};

const SEQUENCES: u64 = 2_000;
const STEPS: u64 = 60;
const KEYS: usize = 3;
const HOUR: u64 = 3_600 * 1_000_000_000 * TICKS_PER_NANOSECOND;

/// (count, hours, burst): of one period and of several, and bursts that are larger or smaller than that of another.
const RATES: [(u64, u64, u64); 6] =
    [(30, 24, 30), (20, 24, 20), (31, 24, 31), (20, 24, 40), (1, 1, 3), (40, 24, 5)];

/// A generator of numbers that is the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// None, some units of some rates, or longer than any bucket takes.
    fn ticks(&mut self) -> u64 {
        let end = [1, HOUR, 30 * HOUR][self.below(3) as usize];
        self.below(end)
    }
}

fn rate((count, hours, burst): (u64, u64, u64)) -> Rate {
    Rate::new(count, hours * 3_600 * 1_000_000_000, burst).expect("in range")
}

/// What may be admitted at most: a bucket of this burst, refilled at this pace.
struct Allowance {
    period: u64,
    capacity: u64,
    debt: u64,
    at: u64,
}

impl Allowance {
    fn new(burst: u64, period: u64) -> Self {
        Self { period, capacity: period * burst, debt: 0, at: 0 }
    }

    fn spend(&mut self, now: u64, cost: u32) -> bool {
        self.debt = self.debt.saturating_sub(now - self.at) + self.period * u64::from(cost);
        self.at = now;
        self.debt <= self.capacity
    }
}

/// What a key is on: `own` of its owner, and `each` of its own.
type Plan = Option<[Option<Rate>; 2]>;

/// The owner's or key's number, the limit's name, and its rate: `None` stands for whichever.
type Bucket = (usize, &'static str, Option<Rate>);

/// What a daemon does, without one, and what may be admitted from each bucket.
struct World {
    seed: u64,
    random: Random,
    rates: Vec<Rate>,
    plans: Vec<Plan>,
    limiter: Limiter,
    allocator: SlotAllocator,
    snapshot: Option<Snapshot>,
    now: u64,
    allowances: HashMap<Bucket, Allowance>,
}

impl World {
    /// Of as many keys, all of one owner.
    fn new(seed: u64, keys: usize) -> Self {
        let mut random = Random(seed);
        let rates = (0..2 + random.below(2)).map(|_| rate(RATES[random.below(RATES.len() as u64) as usize]));
        let rates = rates.collect();
        Self {
            seed,
            rates,
            random,
            plans: vec![None; keys],
            limiter: Limiter::new(),
            allocator: SlotAllocator::new(),
            snapshot: None,
            now: 1,
            allowances: HashMap::new(),
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.random.below(16) {
                0..=6 => self.spend(),
                7..=8 => self.now += self.random.ticks(),
                9..=12 => self.change(),
                13..=14 => self.publish(),
                _ => self.restart(),
            }
        }
    }

    /// Another plan for a key; it counts with the next snapshot.
    fn change(&mut self) {
        let key = self.random.below(self.plans.len() as u64) as usize;
        let mut rate = || {
            let chosen = self.random.below(self.rates.len() as u64 + 1) as usize;
            self.rates.get(chosen).copied()
        };
        let limits = [rate(), rate()];
        self.plans[key] = (self.random.below(5) > 0).then_some(limits);
        self.publish();
    }

    fn publish(&mut self) {
        let mut builder = Builder::new(self.seed, 0);
        for (number, plan) in self.plans.iter().enumerate() {
            let Some(plan) = plan else { continue };
            let limits = [("own", Per::Owner), ("each", Per::Key)].into_iter().zip(plan);
            let limits = limits.filter_map(|((name, per), rate)| {
                rate.map(|rate| Limit { name: name.into(), rate, per, shadow: false })
            });
            let key_id = format!("k{number}");
            let record = KeyRecord {
                owner: "acme",
                limits: limits.collect(),
                ..KeyRecord::new([number as u8; 32], &key_id)
            };
            builder.add(number as u64 + 1, &record).expect("room");
        }
        let mut allocation = self.allocator.begin(&self.limiter);
        let snapshot =
            builder.finish().into_snapshot(&mut allocation, self.snapshot.as_ref(), SnapshotMeta::default());
        let snapshot = snapshot.expect("room");
        if self.random.below(10) == 0 {
            // Refused after all: as if it had never been.
            return;
        }
        let pending = allocation.commit();
        let old = self.snapshot.replace(snapshot);
        let buckets = old.iter().flat_map(|old| old.buckets());
        self.allocator.reclaim(&self.limiter, pending, buckets, self.now);
    }

    /// The daemon ends, and another finds what it has saved, and keys that have changed meanwhile.
    fn restart(&mut self) {
        let live = self.snapshot.iter().flat_map(|snapshot| snapshot.buckets());
        let saved: Vec<SavedBucket> =
            self.allocator.scan_balances(&self.limiter, live, self.now).at(self.now).collect();
        let elapsed = self.random.below(2) * self.random.below(HOUR);
        self.now += elapsed;
        (self.limiter, self.allocator, self.snapshot) = (Limiter::new(), SlotAllocator::new(), None);
        self.allocator.restore(&self.limiter, saved, elapsed, self.now);
        self.change();
    }

    fn spend(&mut self) {
        let key = self.random.below(self.plans.len() as u64) as usize;
        let cost = 1 + self.random.below(12) as u32;
        let found = self.snapshot.as_ref().and_then(|snapshot| snapshot.find(&[key as u8; 32]));
        let Some(found) = found else { return };
        let mut charges = [Charge { slot: 0, rate: Rate::SLOWEST, shadow: false }; 2];
        let count = found.charges(&mut charges);
        if !matches!(self.limiter.charge(&charges[..count], self.now, cost), Outcome::Admitted(_)) {
            return;
        }
        let limits: Vec<(bool, Rate)> =
            found.policy().limits().iter().map(|limit| (limit.per == Per::Owner, limit.rate)).collect();
        let periods = self.rates.iter().map(|rate| rate.period().get());
        let fastest = periods.clone().min().expect("there are some");
        let together = (1.0 / periods.map(|period| 1.0 / period as f64).sum::<f64>()) as u64;
        let largest = self.rates.iter().map(|rate| u64::from(rate.burst())).max().expect("there are some");
        for (is_owners, rate) in limits {
            let (who, name) = if is_owners { (KEYS, "own") } else { (key, "each") };
            // What a bucket had left moves from rate to rate, and so may what another has refilled.
            self.admitted((who, name, Some(rate)), Allowance::new(rate.burst().into(), fastest), cost);
            // Where the owner has one key, there is one bucket at a time. All rates that it has had may be refilling at once, but
            // it is as large as the largest, and no larger.
            if !is_owners || self.plans.len() == 1 {
                self.admitted((who, name, None), Allowance::new(largest, together), cost);
            }
        }
    }

    fn admitted(&mut self, bucket: Bucket, at_most: Allowance, cost: u32) {
        let (seed, keys, now) = (self.seed, self.plans.len(), self.now);
        let is_allowed = self.allowances.entry(bucket).or_insert(at_most).spend(now, cost);
        assert!(is_allowed, "seed {seed}, {keys} keys: {cost} more than {bucket:?} ever has at {now}");
    }
}

#[test]
fn no_change_of_plans_no_absence_and_no_restart_gives_a_quota_again() {
    for seed in 0..SEQUENCES {
        World::new(seed, 1 + seed as usize % KEYS).run();
    }
}
