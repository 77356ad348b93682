//! One sequence of requests, reloads, clock jumps and restarts, performed by the limiter and by the
//! model. [`Choices`] decides what happens in it.

use crate::choices::Choices;
use crate::limiter::persist::{decode, encode};
use crate::limiter::{
    BucketRef, Charge, ClockReading, LimitId, Limiter, Outcome, PendingReclaim, Rate, SlotAllocator,
};
use crate::reference::{Answer, Limit, Model, Verdict};

/// Most buckets in a snapshot.
const MAX_BUCKETS: u64 = 4;

/// Most limits in a request.
const MAX_LIMITS: u64 = 3;

/// The buckets of a snapshot, by number.
type Snapshot = Vec<(u8, BucketRef)>;

/// A saved file, the model of its contents, and the tick at which it was written.
type Saved = (Vec<u8>, Model, u64);

pub struct Sequence {
    choices: Choices,
    limiter: Limiter,
    allocator: SlotAllocator,
    model: Model,
    clock: u64,
    current: Snapshot,
    /// The previous snapshot, until its slots are reclaimed.
    old: Option<(Snapshot, PendingReclaim)>,
    saved: Option<Saved>,
    /// The requests with a cost and a limit that were admitted.
    pub admitted: u64,
}

fn id(number: u8) -> LimitId {
    LimitId([number; 16])
}

fn with_ids(snapshot: &Snapshot) -> impl Iterator<Item = (BucketRef, impl FnOnce() -> LimitId)> {
    snapshot.iter().map(|(number, bucket)| (*bucket, || id(*number)))
}

fn answer(outcome: Outcome) -> Answer {
    let (verdict, report) = match outcome {
        Outcome::Admitted(report) => (Verdict::Admitted, report),
        Outcome::Refused(report) => (Verdict::Refused, report),
        Outcome::ExceedsBurst(report) => (Verdict::ExceedsBurst, report),
        Outcome::Superseded => return (Verdict::Superseded, None, None),
    };
    let deciding = report.limit.map(|limit| {
        (limit.position, (limit.balance.remaining, limit.balance.retry_after, limit.balance.reset))
    });
    (verdict, deciding, report.shadow)
}

impl Sequence {
    pub fn new(choices: Choices) -> Self {
        Self {
            choices,
            limiter: Limiter::new(),
            allocator: SlotAllocator::new(),
            model: Model::default(),
            clock: 1,
            current: Vec::new(),
            old: None,
            saved: None,
            admitted: 0,
        }
    }

    pub fn run(&mut self) {
        self.publish();
        let mut step = 0;
        while self.choices.has_step(step) {
            match self.choices.below(20) {
                0..=9 => self.charge(step),
                10..=11 => self.refund(step),
                12..=14 => self.clock += self.choices.ticks(),
                15..=16 => self.publish(),
                17 => self.reclaim(),
                18 => self.save(),
                _ => self.restart(),
            }
            step += 1;
        }
        self.reclaim();
    }

    /// Some limits of the newest snapshot or, if it is still in use, of the previous one.
    fn limits(&mut self) -> (Vec<Charge>, Vec<Limit>, bool) {
        let is_newest = self.old.is_none() || self.choices.one_in(2);
        let mut snapshot = match &self.old {
            Some((old, _)) if !is_newest => old.clone(),
            _ => self.current.clone(),
        };
        let (mut charges, mut limits) = (Vec::new(), Vec::new());
        for _ in 0..=self.choices.below(MAX_LIMITS) {
            if snapshot.is_empty() {
                break;
            }
            let (id, BucketRef { slot, rate }) =
                snapshot.swap_remove(self.choices.below(snapshot.len() as u64) as usize);
            let shadow = self.choices.one_in(3);
            charges.push(Charge { slot, rate, shadow });
            limits.push((id, shadow));
        }
        (charges, limits, is_newest)
    }

    /// The time of a request. A delayed thread has read the clock some time ago.
    fn now(&mut self) -> u64 {
        let lag = if self.choices.one_in(4) { self.choices.ticks() } else { 0 };
        self.clock.saturating_sub(lag).max(1)
    }

    fn charge(&mut self, step: u64) {
        let (charges, limits, is_newest) = self.limits();
        let (now, cost) = (self.now(), self.choices.cost());
        let expected = self.model.charge(&limits, now, cost, is_newest);
        let outcome = answer(self.limiter.charge(&charges, now, cost));
        let seed = self.choices.name();
        assert_eq!(outcome, expected, "{seed}, step {step}: charge {cost} at {now}: {limits:?}");
        self.admitted += u64::from(outcome.0 == Verdict::Admitted && cost > 0 && !limits.is_empty());
    }

    fn refund(&mut self, step: u64) {
        let (charges, limits, is_newest) = self.limits();
        let (now, cost) = (self.now(), self.choices.cost().max(1));
        let expected = self.model.refund(&limits, now, cost, is_newest);
        let outcome = answer(self.limiter.refund(&charges, now, cost));
        let seed = self.choices.name();
        assert_eq!(outcome, expected, "{seed}, step {step}: refund {cost} at {now}: {limits:?}");
    }

    /// A reload that keeps some buckets, changes some, and removes some. Its slots are reclaimed
    /// some steps later.
    fn publish(&mut self) {
        self.reclaim();
        let mut wanted = Vec::new();
        for id in 0..MAX_BUCKETS as u8 {
            let old = self.current.iter().find(|(other, _)| *other == id).map(|(_, bucket)| bucket.rate);
            if !self.choices.one_in(4) {
                let same = self.choices.one_in(2);
                wanted.push((id, old.filter(|_| same).unwrap_or_else(|| self.choices.rate())));
            }
        }
        let mut allocation = self.allocator.begin(&self.limiter);
        let assign = |(number, rate): &(u8, Rate)| {
            let old = self.current.iter().find(|(other, _)| other == number).map(|(_, bucket)| *bucket);
            let slot = allocation.assign(|| id(*number), old, *rate).expect("a free slot");
            (*number, BucketRef { slot, rate: *rate })
        };
        let new: Snapshot = wanted.iter().map(assign).collect();
        if self.choices.one_in(8) {
            // The reload is refused, and dropping the allocation undoes it.
            return;
        }
        let pending = allocation.commit();
        self.model.publish(&wanted);
        self.old = Some((std::mem::replace(&mut self.current, new), pending));
    }

    fn reclaim(&mut self) {
        if let Some((old, pending)) = self.old.take() {
            self.allocator.reclaim(&self.limiter, pending, with_ids(&old), self.clock);
            let current: Vec<u8> = self.current.iter().map(|(id, _)| *id).collect();
            self.model.reclaim(&current, self.clock);
            self.compare_counts();
        }
    }

    fn compare_counts(&self) {
        let seed = self.choices.name();
        let (live, retained) = (self.current.len(), self.model.retained.len());
        assert_eq!(self.allocator.in_use(), (live + retained) as u64, "{seed}: buckets in use");
        assert_eq!(self.allocator.retained(), retained, "{seed}: retained buckets");
    }

    fn save(&mut self) {
        self.reclaim();
        let scan = self.allocator.scan_balances(&self.limiter, with_ids(&self.current), self.clock);
        let saved_at = ClockReading {
            boot_id: Some([1; 16]),
            boottime: 1 << 40,
            boottime_offset: Some(0),
            realtime: 1 << 50,
        };
        let mut file = Vec::new();
        encode(&saved_at, scan.at(self.clock), &mut file).expect("a vector can be written");
        self.saved = Some((file, self.model.clone(), self.clock));
    }

    /// The daemon stops, with a save (SIGTERM) or without one (kill -9), and is started again after
    /// some time: on the same boot or another, where the calendar may have been set back.
    fn restart(&mut self) {
        if self.saved.is_none() || self.choices.one_in(2) {
            self.save();
        }
        let Some((file, model, saved_at)) = self.saved.take() else { return };
        self.reclaim();
        let (saved, buckets) = decode(&mut &*file).expect("the file is intact");
        let passed = self.choices.ticks();
        let (now, elapsed) = match self.choices.below(3) {
            0 => (ClockReading { boottime: saved.boottime + passed, ..saved }, 8 * passed),
            1 => (ClockReading { boot_id: None, realtime: saved.realtime + passed, ..saved }, 8 * passed),
            _ => (ClockReading { boot_id: Some([2; 16]), realtime: saved.realtime - passed, ..saved }, 0),
        };
        assert_eq!(now.ticks_since(&saved), elapsed, "{}: time since the save", self.choices.name());
        (self.limiter, self.allocator) = (Limiter::new(), SlotAllocator::new());
        self.clock = 1 + self.choices.ticks();
        self.model = model.restarted(saved_at, elapsed, self.clock);
        self.current = Vec::new();
        let restored = self.allocator.restore(&self.limiter, buckets, elapsed, self.clock);
        assert_eq!(restored, self.model.retained.len(), "{}: restored buckets", self.choices.name());
        self.compare_counts();
    }
}
