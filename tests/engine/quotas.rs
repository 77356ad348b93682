//! Never more than the limit, over reloads, absences and restarts, for snapshots and the slot
//! allocator: keys that are removed, return or change their plan never get a quota twice. Time is
//! an argument, and every sequence follows from its seed.

use std::collections::HashMap;

use keyward_engine::limiter::persist::SavedBucket;
use keyward_engine::limiter::{Charge, Limiter, Outcome, Rate, SlotAllocator, TICKS_PER_NANOSECOND};
use keyward_engine::record::{KeyRecord, Limit, Per};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta};

const SEQUENCES: u64 = 2_000;
const STEPS: u64 = 60;
const KEYS: usize = 3;
const HOUR: u64 = 3_600 * 1_000_000_000 * TICKS_PER_NANOSECOND;

/// Rates as (count, hours, burst), with equal and different periods and bursts.
const RATES: [(u64, u64, u64); 6] =
    [(30, 24, 30), (20, 24, 20), (31, 24, 31), (20, 24, 40), (1, 1, 3), (40, 24, 5)];

/// The SplitMix64 generator.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// No time, time for some units of some rates, or longer than any bucket needs to refill.
    fn ticks(&mut self) -> u64 {
        let end = [1, HOUR, 30 * HOUR][self.below(3) as usize];
        self.below(end)
    }
}

fn rate((count, hours, burst): (u64, u64, u64)) -> Rate {
    Rate::new(count, hours * 3_600 * 1_000_000_000, burst).expect("in range")
}

/// The upper bound of what a bucket may admit: a burst, refilled by one unit per period.
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

/// The limits of a key, if it exists: the rate of `own`, which its owner shares, and of `each`,
/// which it has for itself.
type Plan = Option<[Option<Rate>; 2]>;

/// The number of the owner or key, the name of the limit, and its rate. `None`: any rate.
type Bucket = (usize, &'static str, Option<Rate>);

/// A simulated daemon, and what each bucket may admit.
struct Simulation {
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

impl Simulation {
    /// A daemon with `keys` keys of one owner.
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
                0..=6 => self.verify(),
                7..=8 => self.now += self.random.ticks(),
                9..=12 => self.change_plan(),
                13..=14 => self.publish(),
                _ => self.restart(),
            }
        }
    }

    /// Changes the plan of a key or removes it, and publishes the change.
    fn change_plan(&mut self) {
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
            // The reload is refused after all, which must have no effect.
            return;
        }
        let pending = allocation.commit();
        let old = self.snapshot.replace(snapshot);
        let buckets = old.iter().flat_map(|old| old.buckets());
        self.allocator.reclaim(&self.limiter, pending, buckets, self.now);
    }

    /// Restarts the daemon from its saved balances, with keys that have changed in the meantime.
    fn restart(&mut self) {
        let live = self.snapshot.iter().flat_map(|snapshot| snapshot.buckets());
        let saved: Vec<SavedBucket> =
            self.allocator.scan_balances(&self.limiter, live, self.now).at(self.now).collect();
        let elapsed = self.random.below(2) * self.random.below(HOUR);
        self.now += elapsed;
        (self.limiter, self.allocator, self.snapshot) = (Limiter::new(), SlotAllocator::new(), None);
        self.allocator.restore(&self.limiter, saved, elapsed, self.now);
        self.change_plan();
    }

    fn verify(&mut self) {
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
            found.policy().limits().map(|limit| (limit.per == Per::Owner, limit.rate)).collect();
        let periods = self.rates.iter().map(|rate| rate.period().get());
        let fastest = periods.clone().min().expect("a rate");
        let together = (1.0 / periods.map(|period| 1.0 / period as f64).sum::<f64>()) as u64;
        let largest = self.rates.iter().map(|rate| u64::from(rate.burst())).max().expect("a rate");
        for (per_owner, rate) in limits {
            let (holder, name) = if per_owner { (KEYS, "own") } else { (key, "each") };
            // A balance moves from rate to rate, and so may units that another rate has refilled.
            self.record_admission(
                (holder, name, Some(rate)),
                Allowance::new(rate.burst().into(), fastest),
                cost,
            );
            // An owner with one key has one bucket at a time. All rates that it has had may refill
            // it at once, but its size is at most the largest burst.
            if !per_owner || self.plans.len() == 1 {
                self.record_admission((holder, name, None), Allowance::new(largest, together), cost);
            }
        }
    }

    fn record_admission(&mut self, bucket: Bucket, allowance: Allowance, cost: u32) {
        let (seed, keys, now) = (self.seed, self.plans.len(), self.now);
        let is_allowed = self.allowances.entry(bucket).or_insert(allowance).spend(now, cost);
        assert!(
            is_allowed,
            "seed {seed}, {keys} keys: {bucket:?} exceeds its limit by a cost of {cost} at {now}"
        );
    }
}

#[test]
fn quota_is_not_granted_again_by_reloads_absences_or_restarts() {
    for seed in 0..SEQUENCES {
        Simulation::new(seed, 1 + seed as usize % KEYS).run();
    }
}
