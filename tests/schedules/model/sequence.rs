//! One random sequence of requests, reloads, jumps of the clock and restarts, done by the limiter and by the model.

use crate::limiter::PendingReclaim;
use crate::limiter::persist::{decode, encode};
use crate::limiter::{BucketId, BucketRef, Charge, ClockReading, Limiter, Outcome, Rate, SlotAllocator};
use crate::reference::{Answer, Limit, Model, Verdict};

/// Steps of a sequence: short ones find nearly everything, and say what they found.
const STEPS: u64 = 24;

/// Buckets that there can be.
const BUCKETS: u64 = 4;

/// Limits of a request, at most.
const LIMITS: u64 = 3;

/// (count, nanoseconds, burst): of equal and of coprime periods, and bursts that are spent in a few steps.
const RATES: [(u64, u64, u64); 7] =
    [(1, 1_000, 3), (1, 1_000, 5), (3, 1_000, 4), (7, 1_000, 2), (10, 7_001, 1), (1, 100, 6), (9, 5_000, 9)];

/// A generator of numbers that is the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn rate(&mut self) -> Rate {
        let (count, per, burst) = RATES[self.below(RATES.len() as u64) as usize];
        Rate::new(count, per, burst).expect("in range")
    }

    /// Nothing, a tick, a part of a unit, some units, or longer than any bucket takes.
    fn ticks(&mut self) -> u64 {
        let end = [1, 2, 1_000, 20_000, 200_000][self.below(5) as usize];
        self.below(end)
    }
}

type Snapshot = Vec<(u8, BucketRef)>;

/// A file, the model of what is in it, and the tick at which it was written.
type Saved = (Vec<u8>, Model, u64);

pub struct Sequence {
    seed: u64,
    random: Random,
    limiter: Limiter,
    allocator: SlotAllocator,
    model: Model,
    clock: u64,
    current: Snapshot,
    /// The snapshot before, as long as somebody may have it.
    old: Option<(Snapshot, PendingReclaim)>,
    saved: Option<Saved>,
}

fn name(id: u8) -> BucketId {
    BucketId([id; 16])
}

fn named(snapshot: &Snapshot) -> impl Iterator<Item = (BucketRef, impl FnOnce() -> BucketId)> {
    snapshot.iter().map(|(id, slot)| (*slot, || name(*id)))
}

fn answer(outcome: Outcome) -> Answer {
    let (verdict, charged) = match outcome {
        Outcome::Admitted(charged) => (Verdict::Admitted, charged),
        Outcome::Refused(charged) => (Verdict::Refused, charged),
        Outcome::ExceedsBurst(charged) => (Verdict::ExceedsBurst, charged),
        Outcome::Superseded => return (Verdict::Superseded, None, None),
    };
    let named = charged.limit.map(|named| {
        (named.position, (named.balance.remaining, named.balance.retry_after, named.balance.reset))
    });
    (verdict, named, charged.shadow)
}

impl Sequence {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            random: Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            limiter: Limiter::new(),
            allocator: SlotAllocator::new(),
            model: Model::default(),
            clock: 1,
            current: Vec::new(),
            old: None,
            saved: None,
        }
    }

    pub fn run(&mut self) {
        self.publish();
        for step in 0..STEPS {
            match self.random.below(20) {
                0..=9 => self.charge(step),
                10..=11 => self.refund(step),
                12..=14 => self.clock += self.random.ticks(),
                15..=16 => self.publish(),
                17 => self.settle(),
                18 => self.save(),
                _ => self.restart(),
            }
        }
        self.settle();
    }

    /// Some limits of the newest snapshot or, where there is one, of the one before.
    fn limits(&mut self) -> (Vec<Charge>, Vec<Limit>, bool) {
        let is_newest = self.old.is_none() || self.random.one_in(2);
        let mut snapshot = match &self.old {
            Some((old, _)) if !is_newest => old.clone(),
            _ => self.current.clone(),
        };
        let (mut charges, mut limits) = (Vec::new(), Vec::new());
        for _ in 0..=self.random.below(LIMITS) {
            if snapshot.is_empty() {
                break;
            }
            let (id, BucketRef { slot, rate }) =
                snapshot.swap_remove(self.random.below(snapshot.len() as u64) as usize);
            let shadow = self.random.one_in(3);
            charges.push(Charge { slot, rate, shadow });
            limits.push((id, shadow));
        }
        (charges, limits, is_newest)
    }

    /// The clock, or what a thread that was delayed has read of it.
    fn now(&mut self) -> u64 {
        let lag = if self.random.one_in(4) { self.random.ticks() } else { 0 };
        self.clock.saturating_sub(lag).max(1)
    }

    fn charge(&mut self, step: u64) {
        let (charges, limits, is_newest) = self.limits();
        let (now, cost) = (self.now(), self.random.below(4) as u32 * (1 + self.random.below(2) as u32));
        let expected = self.model.charge(&limits, now, cost, is_newest);
        let outcome = answer(self.limiter.charge(&charges, now, cost));
        let seed = self.seed;
        assert_eq!(outcome, expected, "seed {seed}, step {step}: charge {cost} at {now}: {limits:?}");
    }

    fn refund(&mut self, step: u64) {
        let (charges, limits, is_newest) = self.limits();
        let (now, cost) = (self.now(), 1 + self.random.below(4) as u32);
        let expected = self.model.refund(&limits, now, cost, is_newest);
        let outcome = answer(self.limiter.refund(&charges, now, cost));
        let seed = self.seed;
        assert_eq!(outcome, expected, "seed {seed}, step {step}: refund {cost} at {now}: {limits:?}");
    }

    /// A reload that keeps some buckets, changes some, and leaves some out; it is settled some steps later.
    fn publish(&mut self) {
        self.settle();
        let mut wanted = Vec::new();
        for id in 0..BUCKETS as u8 {
            let had = self.current.iter().find(|(had, _)| *had == id).map(|(_, slot)| slot.rate);
            if !self.random.one_in(4) {
                let same = self.random.one_in(2);
                wanted.push((id, had.filter(|_| same).unwrap_or_else(|| self.random.rate())));
            }
        }
        let mut allocation = self.allocator.begin(&self.limiter);
        let slots = |(id, rate): &(u8, Rate)| {
            let had = self.current.iter().find(|(had, _)| had == id).map(|(_, slot)| *slot);
            (*id, BucketRef { slot: allocation.assign(|| name(*id), had, *rate).expect("room"), rate: *rate })
        };
        let slots: Snapshot = wanted.iter().map(slots).collect();
        if self.random.one_in(8) {
            // Refused after all: as if it had never been.
            return;
        }
        let pending = allocation.commit();
        self.model.publish(&wanted);
        self.old = Some((std::mem::replace(&mut self.current, slots), pending));
    }

    fn settle(&mut self) {
        if let Some((old, pending)) = self.old.take() {
            self.allocator.reclaim(&self.limiter, pending, named(&old), self.clock);
            let current: Vec<u8> = self.current.iter().map(|(id, _)| *id).collect();
            self.model.settle(&current, self.clock);
            self.count();
        }
    }

    fn count(&self) {
        let seed = self.seed;
        let (live, parked) = (self.current.len(), self.model.parked.len());
        assert_eq!(self.allocator.in_use(), (live + parked) as u64, "seed {seed}: buckets in use");
        assert_eq!(self.allocator.retained(), parked, "seed {seed}: parked buckets");
    }

    fn save(&mut self) {
        self.settle();
        let listing = self.allocator.scan_balances(&self.limiter, named(&self.current), self.clock);
        let stamp = ClockReading {
            boot_id: Some([1; 16]),
            boottime: 1 << 40,
            boottime_offset: Some(0),
            realtime: 1 << 50,
        };
        let mut file = Vec::new();
        encode(&stamp, listing.at(self.clock), &mut file).expect("memory");
        self.saved = Some((file, self.model.clone(), self.clock));
    }

    /// The daemon ends, after saving (SIGTERM) or without (kill -9), and another begins: soon or late, on this boot or on the
    /// next, where the calendar may have been set back.
    fn restart(&mut self) {
        if self.saved.is_none() || self.random.one_in(2) {
            self.save();
        }
        let Some((file, model, saved_at)) = self.saved.take() else { return };
        self.settle();
        let (stamp, buckets) = decode(&mut &*file).expect("intact");
        let passed = self.random.ticks();
        let (now, elapsed) = match self.random.below(3) {
            0 => (ClockReading { boottime: stamp.boottime + passed, ..stamp }, 8 * passed),
            1 => (ClockReading { boot_id: None, realtime: stamp.realtime + passed, ..stamp }, 8 * passed),
            _ => (ClockReading { boot_id: Some([2; 16]), realtime: stamp.realtime - passed, ..stamp }, 0),
        };
        assert_eq!(now.ticks_since(&stamp), elapsed, "seed {}: time since the save", self.seed);
        (self.limiter, self.allocator) = (Limiter::new(), SlotAllocator::new());
        self.clock = 1 + self.random.ticks();
        self.model = model.restarted(saved_at, elapsed, self.clock);
        self.current = Vec::new();
        let restored = self.allocator.restore(&self.limiter, buckets, elapsed, self.clock);
        assert_eq!(restored, self.model.parked.len(), "seed {}: restored buckets", self.seed);
        self.count();
    }
}
