//! Limits with several rules: all of their balances outlive restarts and absences, or none.

use std::collections::BTreeMap;

use super::*;
use crate::limiter::lock::LockedBuckets;
use crate::limiter::persist::{decode, encode};

const SEQUENCES: u64 = 500;
const STEPS: u64 = 60;

/// The numbers of the limits: two of token buckets, one of calendar quotas, and one of credits.
const LIMITS: std::ops::Range<u8> = 0..4;

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
    fn seconds(&mut self) -> u64 {
        let end = [1, 4, 60, 100_000][self.below(4) as usize];
        self.below(end)
    }

    /// One to three rules of a limit, none of which share words.
    fn rules(&mut self, limit: u8) -> Vec<Rule> {
        let window = |count, period| Rule::window(count, period, 2).expect("in range");
        let all = match limit {
            0 | 1 => vec![rate(1, 30), rate(1, 20), overdrawable(3, 40, 5), rate(10, 20), rate(2, 5)],
            2 => [(9, Period::Hour), (20, Period::Day), (25, Period::Week(1)), (12, Period::Month(1))]
                .map(|(count, period)| window(count, period))
                .to_vec(),
            _ => vec![Rule::credits(40 + self.below(2), 3).expect("in range")],
        };
        let mut rules = Vec::new();
        for _ in 0..=self.below(3) {
            let rule = all[self.below(all.len() as u64) as usize];
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }
}

fn limit_id(limit: u8) -> LimitId {
    LimitId([limit; 16])
}

/// A daemon, with the buckets of the snapshot in use.
struct Process {
    limiter: Limiter,
    allocator: SlotAllocator,
    live: BTreeMap<u8, Vec<BucketRef>>,
    nanoseconds: u64,
}

impl Process {
    fn new(nanoseconds: u64) -> Self {
        let (limiter, allocator) = (Limiter::new(), SlotAllocator::new());
        Self { limiter, allocator, live: BTreeMap::new(), nanoseconds }
    }

    fn now(&self, unix: u32) -> Now {
        Now { unix, ..at(self.nanoseconds) }
    }

    fn listed(
        live: &BTreeMap<u8, Vec<BucketRef>>,
    ) -> impl Iterator<Item = (&Vec<BucketRef>, impl FnOnce() -> LimitId)> {
        live.iter().map(|(limit, buckets)| (buckets, || limit_id(*limit)))
    }

    /// Reloads to the limits `wanted`. `meanwhile` runs between the publication and the reclamation.
    fn reload(
        &mut self,
        wanted: &BTreeMap<u8, Vec<Rule>>,
        unix: u32,
        meanwhile: impl FnOnce(&Self) -> Vec<Outcome>,
    ) -> Vec<Outcome> {
        let mut allocation = self.allocator.begin(&self.limiter);
        let assigned = wanted.iter().map(|(limit, rules)| {
            let previous = self.live.get(limit).map_or(&[][..], Vec::as_slice);
            let mut buckets = allocation.assign_all(limit_id(*limit), previous, rules).expect("free slots");
            buckets.sort_by_key(|bucket| rules.iter().position(|rule| bucket.rule == *rule));
            (*limit, buckets)
        });
        let assigned = assigned.collect();
        let pending = allocation.commit();
        let old = std::mem::replace(&mut self.live, assigned);
        let outcomes = meanwhile(self);
        let now = self.now(unix);
        self.allocator.reclaim(&self.limiter, pending, Self::listed(&old), now);
        outcomes
    }

    /// The outcomes of a charge of each live bucket, on its own: `how` chooses what happens.
    fn request(&self, (how, limit, bucket, cost): (u64, u8, usize, u32), unix: u32) -> Vec<Outcome> {
        let buckets = self.live.get(&limit).into_iter();
        let charge = buckets.filter_map(|buckets| Some(enforced(*buckets.get(bucket)?)));
        let charge: Vec<Charge> = charge.map(|charge| Charge { cost, ..charge }).collect();
        let now = self.now(unix);
        let outcome = |charge: &Charge| match how {
            0 => self.limiter.debit(&[*charge], now, None),
            1 => self.limiter.refund(&[*charge], now, None),
            _ => self.limiter.charge(&[*charge], now, None),
        };
        charge.iter().map(outcome).collect()
    }

    /// The balances of all live buckets.
    fn balances(&self, unix: u32) -> Vec<Outcome> {
        let charges = self.live.values().flatten().map(|bucket| enforced(*bucket));
        charges.map(|charge| self.limiter.charge(&[charge], self.now(unix), None)).collect()
    }

    /// Whether something is spent of any balance of a limit.
    fn is_spent(&self, limit: u8, unix: u32) -> bool {
        let retained = self.allocator.retained.get(&limit_id(limit)).iter().map(|bucket| bucket.bucket());
        let live = self.live.get(&limit).into_iter().flatten().copied();
        live.chain(retained).any(|bucket| {
            let (word, rule) = self.limiter.buckets.read(bucket, self.now(unix));
            !rule.is_unspent(word)
        })
    }

    /// The next process, which begins without a snapshot.
    fn restarted(&self, nanoseconds: u64, elapsed: u64, unix: [u32; 2]) -> Self {
        let [saved_unix, unix] = unix;
        let now = self.now(saved_unix);
        let scan = self.allocator.scan_balances(&self.limiter, Self::listed(&self.live), now);
        let saved_at = ClockReading { boot_id: None, boottime: 0, boottime_offset: None, realtime: 0 };
        let mut file = Vec::new();
        encode(&saved_at, self.limiter.latest_unix(), scan.at(now), &mut file).expect("it can be written");
        let saved = decode(&mut &*file).expect("it is intact");
        let mut next = Self::new(nanoseconds);
        next.limiter.advance_calendar(saved.calendar);
        next.allocator.restore(&next.limiter, saved.limits, elapsed, next.now(unix));
        next
    }
}

/// A daemon that is never restarted, and one that is: its balances come from files.
#[test]
fn restart_does_the_same_as_no_restart() {
    let mut restarts = [0; 2];
    for seed in 0..SEQUENCES {
        let mut random = Random(seed);
        let mut processes = [Process::new(1), Process::new(1)];
        let mut unix = 1_800_000_000;
        for step in 0..STEPS {
            let context = || format!("seed {seed}, step {step}");
            let request = (
                random.below(8),
                random.below(LIMITS.end.into()) as u8,
                random.below(3) as usize,
                1 + random.below(12) as u32,
            );
            let mut wanted: BTreeMap<u8, Vec<Rule>> = BTreeMap::new();
            let same = processes[0].live.clone();
            for limit in LIMITS {
                let rules_now = same.get(&limit).map(|buckets| buckets.iter().map(|of| of.rule).collect());
                let rules = match random.below(4) {
                    0 => None,
                    1 | 2 => rules_now.or_else(|| Some(random.rules(limit))),
                    _ => Some(random.rules(limit)),
                };
                wanted.extend(rules.map(|rules| (limit, rules)));
            }
            let outcomes = match random.below(12) {
                0..=5 => processes.each_ref().map(|process| process.request(request, unix)),
                6..=7 => {
                    let seconds = random.seconds();
                    processes.iter_mut().for_each(|process| process.nanoseconds += seconds * SECOND);
                    unix += seconds as u32;
                    processes.each_ref().map(|process| process.balances(unix))
                }
                8..=10 => processes
                    .each_mut()
                    .map(|process| process.reload(&wanted, unix, |process| process.request(request, unix))),
                _ => {
                    let seconds = random.seconds();
                    let then = unix + seconds as u32;
                    let start = 1 + random.below(3) * SECOND;
                    processes[1] = processes[1].restarted(start, seconds * SECOND, [unix, then]);
                    processes[0].nanoseconds += seconds * SECOND;
                    unix = then;
                    // A limit of which nothing is spent is forgotten: its keys have to be away here too.
                    wanted.retain(|limit, _| processes[0].is_spent(*limit, unix));
                    restarts[usize::from(wanted.values().any(|rules| rules.len() > 1))] += 1;
                    processes.each_mut().map(|process| {
                        process.reload(&wanted, unix, |process| process.request(request, unix))
                    })
                }
            };
            assert_eq!(outcomes[0], outcomes[1], "{}: {request:?} {wanted:?}", context());
            let [one, other] = processes.each_ref().map(|process| process.balances(unix));
            assert_eq!(one, other, "{}: {request:?} {wanted:?}", context());
            let [one, other] = processes.each_ref().map(|process| process.allocator.retained());
            assert_eq!(one, other, "{}: retained", context());
            let [one, other] = processes.each_ref().map(|process| process.allocator.in_use());
            assert_eq!(one, other, "{}: in use", context());
        }
        // Once nothing is spent, nothing is remembered, apart from credits.
        for process in &mut processes {
            process.nanoseconds += 1_000_000 * SECOND;
            let later = unix + 40 * 86_400;
            process.reload(&BTreeMap::new(), later, |_| Vec::new());
            assert!(process.allocator.in_use() <= 1, "seed {seed}");
        }
    }
    assert!(restarts.iter().all(|count| *count > SEQUENCES), "{restarts:?}");
}

fn wanting(rules: &[Rule]) -> BTreeMap<u8, Vec<Rule>> {
    BTreeMap::from([(0, rules.to_vec())])
}

const UNIX: u32 = 1_800_000_000;

/// A process whose limit has these rules and that has charged its first bucket, and the remaining
/// cost of each bucket after a restart, and after a reload without the limit.
fn after_restart_and_absence(mut process: Process, rules: &[Rule]) -> [Vec<u32>; 2] {
    let left = |process: &Process| -> Vec<u32> {
        let buckets = process.live[&0].iter();
        buckets.map(|bucket| remaining(&process.limiter, enforced(*bucket), process.nanoseconds)).collect()
    };
    let mut restarted = process.restarted(7, 0, [UNIX; 2]);
    restarted.reload(&wanting(rules), UNIX, |_| Vec::new());
    process.reload(&BTreeMap::new(), UNIX, |_| Vec::new());
    process.reload(&wanting(rules), UNIX, |_| Vec::new());
    [left(&restarted), left(&process)]
}

#[test]
fn unspent_bucket_of_a_spent_limit_stays_unspent() {
    let rules = [rate(1, 30), rate(1, 20)];
    let mut process = Process::new(1);
    process.reload(&wanting(&rules), UNIX, |_| Vec::new());
    assert!(matches!(process.request((9, 0, 0, 30), UNIX)[..], [Outcome::Admitted(_)]));
    assert_eq!(after_restart_and_absence(process, &rules), [vec![0, 20], vec![0, 20]]);
}

/// The bucket of the former rate is full later, so it is remembered beside the new one.
#[test]
fn former_rate_changes_no_balance_of_the_rates_in_use() {
    let (slow, rules) = (rate(1, 30), [rate(10, 20), rate(20, 25)]);
    let mut process = Process::new(1);
    process.reload(&wanting(&[slow]), UNIX, |_| Vec::new());
    assert!(matches!(process.request((9, 0, 0, 25), UNIX)[..], [Outcome::Admitted(_)]));
    process.reload(&wanting(&rules), UNIX, |_| Vec::new());
    assert_eq!(process.allocator.retained(), 1, "the former rate");
    process.nanoseconds += 3 * SECOND;
    assert!(matches!(process.request((9, 0, 1, 7), UNIX)[..], [Outcome::Admitted(_)]));
    assert_eq!(after_restart_and_absence(process, &rules), [vec![20, 18], vec![20, 18]]);
}

/// Nothing is spent of the rate in use, but the keys have to find it again.
#[test]
fn former_rate_keeps_the_full_bucket_that_replaced_it() {
    let (slow, fast) = (rate(1, 30), rate(10, 20));
    let mut process = Process::new(1);
    process.reload(&wanting(&[slow]), UNIX, |_| Vec::new());
    assert!(matches!(process.request((9, 0, 0, 25), UNIX)[..], [Outcome::Admitted(_)]));
    process.reload(&wanting(&[fast]), UNIX, |_| Vec::new());
    process.nanoseconds += 5 * SECOND;
    assert_eq!(after_restart_and_absence(process, &[fast]), [[20], [20]]);
}

#[test]
fn limit_with_several_rates_is_forgotten_once_all_are_full() {
    let (slow, rules) = (rate(1, 30), [rate(10, 20), rate(20, 25)]);
    let mut process = Process::new(1);
    let retained = |process: &mut Process, wanted: &[Rule], seconds: u64| {
        process.nanoseconds += seconds * SECOND;
        let wanted = if wanted.is_empty() { BTreeMap::new() } else { wanting(wanted) };
        process.reload(&wanted, UNIX, |_| Vec::new());
        (process.allocator.in_use(), process.allocator.retained())
    };
    assert_eq!(retained(&mut process, &[slow], 0), (1, 0));
    assert!(matches!(process.request((9, 0, 0, 25), UNIX)[..], [Outcome::Admitted(_)]));
    assert_eq!(retained(&mut process, &rules, 0), (3, 1));
    assert_eq!(retained(&mut process, &[], 5), (3, 3), "the former one is not full");
    assert_eq!(retained(&mut process, &[], 19), (3, 3));
    assert_eq!(retained(&mut process, &[], 1), (0, 0));
}

/// A reload takes the lowest of all balances. A former one is full at its burst until it is released.
#[test]
fn full_bucket_of_a_former_rate_is_saved_beside_a_spent_one() {
    let (slow, fast, next) = (rate(1, 10), rate(10, 30), [rate(1, 40)]);
    let mut process = Process::new(1);
    process.reload(&wanting(&[slow]), UNIX, |_| Vec::new());
    assert!(matches!(process.request((9, 0, 0, 5), UNIX)[..], [Outcome::Admitted(_)]));
    process.reload(&wanting(&[fast]), UNIX, |_| Vec::new());
    process.nanoseconds += 6 * SECOND;
    assert!(matches!(process.request((9, 0, 0, 5), UNIX)[..], [Outcome::Admitted(_)]));
    let mut restarted = process.restarted(7, 0, [UNIX; 2]);
    for process in [&mut process, &mut restarted] {
        process.reload(&wanting(&next), UNIX, |_| Vec::new());
        assert_eq!(remaining(&process.limiter, enforced(process.live[&0][0]), process.nanoseconds), 10);
    }
}

/// Its bucket was retained without a key before the rule changed.
#[test]
fn rate_that_was_replaced_while_its_key_was_away_is_a_former_one() {
    let (slow, fast) = (rate(1, 30), rate(10, 20));
    let mut process = Process::new(1);
    process.reload(&wanting(&[slow]), UNIX, |_| Vec::new());
    assert!(matches!(process.request((9, 0, 0, 25), UNIX)[..], [Outcome::Admitted(_)]));
    process.reload(&BTreeMap::new(), UNIX, |_| Vec::new());
    process.reload(&wanting(&[fast]), UNIX, |_| Vec::new());
    assert_eq!(process.allocator.retained(), 1);
    process.nanoseconds += SECOND;
    assert_eq!(after_restart_and_absence(process, &[fast]), [[15], [15]]);
}

#[test]
fn full_bucket_that_has_wrapped_around_is_saved_as_full() {
    let fast = Rule::bucket(Rate::new(9_999_991, SECOND, 3).expect("in range"), 0).expect("in range");
    let (wrap, slow) = ((1 << 61) >> 14, rate(1, 1 << 20));
    let mut process = Process::new(1);
    process.reload(&wanting(&[fast, slow]), UNIX, |_| Vec::new());
    process.nanoseconds = wrap / 4 * 3;
    assert!(matches!(process.request((9, 0, 1, 1 << 19), UNIX)[..], [Outcome::Admitted(_)]));
    // A request that is being charged keeps the scan from renewing the word.
    let charges = [enforced(process.live[&0][0])];
    let mut locked = LockedBuckets::new(&process.limiter.buckets);
    process.limiter.buckets.lock_all(&charges, process.now(UNIX), &mut locked).expect("not superseded");
    let listed = Process::listed(&process.live);
    let scan = process.allocator.scan_balances(&process.limiter, listed, process.now(UNIX));
    let debts: Vec<SavedBalance> = scan.at(process.now(UNIX)).map(|limit| limit.balance).collect();
    assert_eq!(debts, [0, SECOND << 19].map(|debt| SavedBalance::Bucket { debt }));
}
