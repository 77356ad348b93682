//! Never more than the limit, over reloads, absences and restarts, for snapshots and the slot
//! allocator: keys that are removed, return or change their plan never get a quota twice, whether it
//! is a token bucket, a calendar quota or credits. Time is an argument, and every sequence follows
//! from its seed.

use std::collections::HashMap;

use keyward_engine::limiter::persist::SavedLimit;
use keyward_engine::limiter::{Charge, Limiter, Outcome, Period, Rate, Rule, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::record::{KeyRecord, Limit, Per};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta};

const SEQUENCES: u64 = 2_000;
const STEPS: u64 = 60;
const KEYS: usize = 3;
const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3_600 * SECOND;

/// A midnight, and the first second of a week.
const MONDAY: u32 = 1_799_625_600;

/// Rates as (count, hours, burst), with equal and different periods and bursts.
const RATES: [(u64, u64, u64); 6] =
    [(30, 24, 30), (20, 24, 20), (31, 24, 31), (20, 24, 40), (1, 1, 3), (40, 24, 5)];

/// Calendar quotas: (count, period).
const WINDOWS: [(u64, Period); 5] =
    [(9, Period::Hour), (20, Period::Day), (25, Period::Day), (40, Period::Week(1)), (12, Period::Week(1))];

/// Credits that are granted.
const GRANTS: [u64; 4] = [0, 20, 40, 100];

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
    fn nanoseconds(&mut self) -> u64 {
        let end = [1, HOUR, 30 * HOUR][self.below(3) as usize];
        self.below(end)
    }
}

fn rate((count, hours, burst): (u64, u64, u64)) -> Rate {
    Rate::new(count, hours * HOUR, burst).expect("in range")
}

/// The time for one unit, rounded down to nanoseconds.
fn period(rate: Rate) -> u64 {
    rate.period().get() / u64::from(rate.scale().get())
}

/// The number of the calendar window that a Unix second is in.
fn window(period: Period, unix: u32) -> u32 {
    (unix - MONDAY)
        / match period {
            Period::Hour => 3_600,
            Period::Day => 86_400,
            Period::Week(1) => 7 * 86_400,
            other => panic!("{other:?} is not in use"),
        }
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

/// The limits of a key, if it exists: the rule of `own`, which its owner shares, and of `each`,
/// which it has for itself.
type Plan = Option<[Option<Rule>; 2]>;

/// The number of the owner or key, the name of the limit, and its rate. `None`: any rate.
type Bucket = (usize, &'static str, Option<Rate>);

/// A simulated daemon, and what each bucket may admit.
struct Simulation {
    seed: u64,
    random: Random,
    /// The rates that are in use.
    rates: Vec<Rate>,
    rules: Vec<Rule>,
    plans: Vec<Plan>,
    limiter: Limiter,
    allocator: SlotAllocator,
    snapshot: Option<Snapshot>,
    now: u64,
    allowances: HashMap<Bucket, Allowance>,
    /// The number of the calendar window, and what was admitted in it, by holder, name and period.
    in_windows: HashMap<(usize, &'static str, Period), (u32, u64)>,
    /// What was admitted of credits in total.
    of_credits: HashMap<(usize, &'static str), u64>,
    /// Admissions by calendar quotas and credits.
    admissions: u64,
}

impl Simulation {
    /// A daemon with `keys` keys of one owner.
    fn new(seed: u64, keys: usize) -> Self {
        let mut random = Random(seed);
        let rates = (0..2 + random.below(2)).map(|_| rate(RATES[random.below(RATES.len() as u64) as usize]));
        let rates: Vec<Rate> = rates.collect();
        let overdraft = [0, 7][random.below(2) as usize];
        let mut rules: Vec<Rule> =
            rates.iter().map(|rate| Rule::bucket(*rate, overdraft).expect("in range")).collect();
        for _ in 0..random.below(3) {
            let (count, period) = WINDOWS[random.below(WINDOWS.len() as u64) as usize];
            rules.push(Rule::window(count, period, overdraft).expect("in range"));
            let granted = GRANTS[random.below(GRANTS.len() as u64) as usize];
            rules.push(Rule::credits(granted, overdraft).expect("in range"));
        }
        Self {
            seed,
            rates,
            rules,
            random,
            plans: vec![None; keys],
            limiter: Limiter::new(),
            allocator: SlotAllocator::new(),
            snapshot: None,
            now: 1,
            allowances: HashMap::new(),
            in_windows: HashMap::new(),
            of_credits: HashMap::new(),
            admissions: 0,
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.random.below(17) {
                0..=6 => self.verify(),
                7..=8 => self.now += self.random.nanoseconds(),
                9..=12 => self.change_plan(),
                13..=14 => self.publish(),
                15 => self.debit(),
                _ => self.restart(),
            }
        }
    }

    fn moment(&self) -> Now {
        let unix = MONDAY + (self.now / SECOND) as u32;
        Now { nanoseconds: self.now, unix, millisecond: 0 }
    }

    /// Changes the plan of a key or removes it, and publishes the change.
    fn change_plan(&mut self) {
        let key = self.random.below(self.plans.len() as u64) as usize;
        let mut rule = || {
            let chosen = self.random.below(self.rules.len() as u64 + 1) as usize;
            self.rules.get(chosen).copied()
        };
        let limits = [rule(), rule()];
        self.plans[key] = (self.random.below(5) > 0).then_some(limits);
        self.publish();
    }

    fn publish(&mut self) {
        let mut builder = Builder::new(self.seed, 0);
        for (number, plan) in self.plans.iter().enumerate() {
            let Some(plan) = plan else { continue };
            let limits = [("own", Per::Owner), ("each", Per::Key)].into_iter().zip(plan);
            let limits = limits.filter_map(|((name, per), rule)| {
                rule.map(|rule| Limit { name: name.into(), rule, per, shadow: false })
            });
            let key_id = format!("k{number}");
            // A plan that is renamed is the same plan.
            let plan = format!("plan {}", self.random.below(3));
            let record = KeyRecord {
                owner: "acme",
                plan: &plan,
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
        let moment = self.moment();
        let old = self.snapshot.replace(snapshot);
        let buckets = old.iter().flat_map(|old| old.buckets());
        self.allocator.reclaim(&self.limiter, pending, buckets, moment);
    }

    /// Restarts the daemon from its saved balances, with keys that have changed in the meantime.
    fn restart(&mut self) {
        self.restart_without_keys();
        self.change_plan();
    }

    fn restart_without_keys(&mut self) {
        let live = self.snapshot.iter().flat_map(|snapshot| snapshot.buckets());
        let now = self.moment();
        let saved: Vec<SavedLimit> = self.allocator.scan_balances(&self.limiter, live, now).at(now).collect();
        let elapsed = self.random.below(2) * self.random.below(HOUR);
        self.now += elapsed;
        (self.limiter, self.allocator, self.snapshot) = (Limiter::new(), SlotAllocator::new(), None);
        self.allocator.restore(&self.limiter, saved, elapsed, self.moment());
    }

    /// Publishes these plans, also if the first attempts are refused.
    fn publish_plans(&mut self, plans: &[Plan]) {
        self.plans = plans.to_vec();
        let rows = plans.iter().flatten().count();
        self.publish();
        while self.snapshot.as_ref().is_none_or(|snapshot| snapshot.len() != rows) {
            self.publish();
        }
    }

    /// The limits of a key, with this cost on each.
    fn charges(&self, key: usize, cost: u32) -> Vec<(Charge, Per)> {
        let found = self.snapshot.as_ref().and_then(|snapshot| snapshot.find(&[key as u8; 32]));
        let Some(found) = found else { return Vec::new() };
        let mut charges = [Charge { slot: 0, rule: Rule::SLOWEST, cost: 0, shadow: false }; 2];
        let count = found.charges(cost, &mut charges);
        charges.into_iter().take(count).zip(found.policy().limits().map(|limit| limit.per)).collect()
    }

    /// Charges a cost after the fact. It admits nothing.
    fn debit(&mut self) {
        let key = self.random.below(self.plans.len() as u64) as usize;
        let cost = 1 + self.random.below(12) as u32;
        let charges = self.charges(key, cost);
        let charges: Vec<Charge> = charges.into_iter().map(|(charge, _)| charge).collect();
        assert!(matches!(self.limiter.debit(&charges, self.moment(), None), Outcome::Admitted(_)));
    }

    fn verify(&mut self) {
        let key = self.random.below(self.plans.len() as u64) as usize;
        let cost = 1 + self.random.below(12) as u32;
        let limits = self.charges(key, cost);
        let charges: Vec<Charge> = limits.iter().map(|(charge, _)| *charge).collect();
        if !matches!(self.limiter.charge(&charges, self.moment(), None), Outcome::Admitted(_)) {
            return;
        }
        for (charge, per) in limits {
            let (holder, name) = if per == Per::Owner { (KEYS, "own") } else { (key, "each") };
            match charge.rule {
                Rule::Bucket { rate, .. } => self.record_bucket(holder, name, rate, cost),
                Rule::Window { count, period, .. } => self.record_window((holder, name, period), count, cost),
                Rule::Credits { granted, .. } => self.record_credits((holder, name), granted, cost),
            }
        }
    }

    fn record_bucket(&mut self, holder: usize, name: &'static str, rate: Rate, cost: u32) {
        let periods = self.rates.iter().map(|rate| period(*rate));
        let fastest = periods.clone().min().expect("a rate");
        let together = (1.0 / periods.map(|period| 1.0 / period as f64).sum::<f64>()) as u64;
        let largest = self.rates.iter().map(|rate| u64::from(rate.burst())).max().expect("a rate");
        // A balance moves from rate to rate, and so may units that another rate has refilled.
        self.record_admission((holder, name, Some(rate)), Allowance::new(rate.burst().into(), fastest), cost);
        // An owner with one key has one bucket at a time. All rates that it has had may refill it at
        // once, but its size is at most the largest burst.
        if holder != KEYS || self.plans.len() == 1 {
            self.record_admission((holder, name, None), Allowance::new(largest, together), cost);
        }
    }

    fn record_window(&mut self, of: (usize, &'static str, Period), count: u64, cost: u32) {
        let current = window(of.2, self.moment().unix);
        let (used, admitted) = self.in_windows.entry(of).or_default();
        if *used != current {
            (*used, *admitted) = (current, 0);
        }
        *admitted += u64::from(cost);
        self.admissions += 1;
        let seed = self.seed;
        assert!(*admitted <= count, "seed {seed}: {of:?}: {admitted} of {count} in the window {current}");
    }

    fn record_credits(&mut self, of: (usize, &'static str), granted: u64, cost: u32) {
        let admitted = self.of_credits.entry(of).or_default();
        *admitted += u64::from(cost);
        self.admissions += 1;
        let seed = self.seed;
        assert!(*admitted <= granted, "seed {seed}: {of:?}: {admitted} of {granted} credits");
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
    let mut admissions = 0;
    for seed in 0..SEQUENCES {
        let mut simulation = Simulation::new(seed, 1 + seed as usize % KEYS);
        simulation.run();
        admissions += simulation.admissions;
    }
    assert!(admissions > SEQUENCES, "{admissions} admissions by calendar quotas and credits");
}

/// An owner's keys are on plans that define its limit differently. What is spent on one plan is not
/// taken from the other when the process or the keys return.
#[test]
fn unspent_plan_of_an_owner_outlives_restarts_and_absences() {
    let window = |count, period| Rule::window(count, period, 0).expect("in range");
    let bucket = |of| Rule::bucket(rate(of), 0).expect("in range");
    let rules = [
        [window(20, Period::Day), window(40, Period::Week(1))],
        [bucket((30, 24, 30)), bucket((20, 24, 20))],
    ];
    for ([spent, unspent], is_restart) in rules.into_iter().flat_map(|of| [(of, true), (of, false)]) {
        let mut simulation = Simulation::new(0, 2);
        let plans = [Some([Some(spent), None]), Some([Some(unspent), None])];
        let is_admitted = |simulation: &Simulation, key: usize, cost: u64| {
            let charges = simulation.charges(key, cost as u32).into_iter().map(|(charge, _)| charge);
            let charges: Vec<Charge> = charges.collect();
            assert_eq!(charges.len(), 1);
            matches!(simulation.limiter.charge(&charges, simulation.moment(), None), Outcome::Admitted(_))
        };
        simulation.publish_plans(&plans);
        assert!(is_admitted(&simulation, 0, spent.limit()));
        if is_restart {
            simulation.restart_without_keys();
        } else {
            simulation.publish_plans(&[None, None]);
        }
        simulation.publish_plans(&plans);
        assert!(is_admitted(&simulation, 1, unspent.limit()), "restart: {is_restart}, {unspent:?}");
        assert!(!is_admitted(&simulation, 0, spent.limit()), "restart: {is_restart}, {spent:?}");
    }
}
