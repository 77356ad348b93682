//! One sequence of requests, reloads, clock steps and restarts, performed by the limiter and by the
//! model. [`Choices`] decides what happens in it.

use jiff::tz::TimeZone;

use crate::choices::Choices;
use crate::civil::ZONES;
use crate::coverage::{Coverage, Event};
use crate::limiter::persist::{SavedBalances, decode, encode};
use crate::limiter::{
    BucketRef, Charge, ClockReading, LimitBalances, LimitId, Limiter, Outcome, PendingReclaim, Rule,
    RuleKind, SlotAllocator,
};
use crate::now::{MAX_UNIX, Now};
use crate::reference::{Answer, Balance, Balances, Id, Model, Request, Verdict};

/// Most limits in a snapshot.
const MAX_LIMITS: u64 = 4;

/// Most limits in a request.
const MAX_REQUESTED: u64 = 3;

/// Unix seconds at which sequences start: shortly before changes of the clocks in several zones, the
/// ends of Februaries with and without a leap day, the end of a year, and the last second of all.
const STARTS: [u32; 12] = [
    1_774_745_000, // 2026-03-29, central Europe
    1_792_889_000, // 2026-10-25, central Europe
    1_772_950_000, // 2026-03-08, North America
    1_793_500_000, // 2026-11-01, North America
    1_788_660_000, // 2026-09-06, Chile
    1_775_280_000, // 2026-04-04, Chile and Lord Howe
    1_791_040_000, // 2026-10-03, Lord Howe
    1_772_236_000, // 2026-02-28
    1_835_400_000, // 2028-02-29
    1_798_750_000, // 2026-12-31
    4_107_456_000, // 2100-02-28
    MAX_UNIX - 100_000,
];

/// The limits of a snapshot.
type Snapshot = Vec<(Id, BucketRef)>;

/// A saved file, the model of its contents, and the time at which it was written.
type Saved = (Vec<u8>, Model, u64);

pub struct Sequence {
    choices: Choices,
    limiter: Limiter,
    allocator: SlotAllocator,
    model: Model,
    zone: usize,
    clock: Now,
    current: Snapshot,
    /// The previous snapshot, until its slots are reclaimed.
    old: Option<(Snapshot, PendingReclaim)>,
    saved: Option<Saved>,
    pub coverage: Coverage,
}

fn limit_id((number, kind): Id) -> LimitId {
    let mut bytes = [number; 16];
    bytes[0] = match kind {
        RuleKind::Bucket => 100,
        RuleKind::Window => 101,
        RuleKind::Credits => 102,
    };
    LimitId(bytes)
}

fn with_ids(snapshot: &Snapshot) -> impl Iterator<Item = (BucketRef, impl FnOnce() -> LimitId)> {
    snapshot.iter().map(|(id, bucket)| (*bucket, || limit_id(*id)))
}

fn balance(balance: crate::limiter::Balance) -> Balance {
    (balance.available, balance.retry_after, balance.reset)
}

fn answer(outcome: Outcome) -> Answer {
    let (verdict, report) = match outcome {
        Outcome::Admitted(report) => (Verdict::Admitted, report),
        Outcome::Refused(report) => (Verdict::Refused, report),
        Outcome::OutOfCredit(report) => (Verdict::OutOfCredit, report),
        Outcome::ExceedsBurst(report) => (Verdict::ExceedsBurst, report),
        Outcome::Superseded => return (Verdict::Superseded, None, None),
    };
    (verdict, report.limit.map(|limit| (limit.position, balance(limit.balance))), report.shadow.first())
}

fn by_position(balances: &LimitBalances) -> Balances {
    let mut sorted: Balances = balances
        .iter()
        .filter(|of| !of.shadow)
        .map(|of| (of.position, of.changed, balance(of.balance)))
        .collect();
    sorted.sort_unstable();
    sorted
}

fn time_zone(zone: usize) -> TimeZone {
    TimeZone::posix(ZONES[zone].posix).expect("a time zone")
}

impl Sequence {
    pub fn new(mut choices: Choices) -> Self {
        let zone = choices.below(ZONES.len() as u64) as usize;
        let unix = STARTS[choices.below(STARTS.len() as u64) as usize] + choices.seconds() % 50_000;
        let clock = Now { nanoseconds: choices.start(), unix, millisecond: choices.below(100) as u16 * 10 };
        let mut sequence = Self {
            choices,
            limiter: Limiter::new(),
            allocator: SlotAllocator::new(),
            model: Model::new(clock.nanoseconds, 0, zone),
            zone,
            clock,
            current: Vec::new(),
            old: None,
            saved: None,
            coverage: Coverage::default(),
        };
        sequence.begin(Vec::new(), 0);
        sequence
    }

    /// What a process does first: it sets the time zone and restores balances.
    fn begin(&mut self, saved: Vec<crate::limiter::persist::SavedLimit>, elapsed: u64) {
        self.limiter.set_time_zone(time_zone(self.zone));
        let restored = self.allocator.restore(&self.limiter, saved, elapsed, self.clock);
        assert_eq!(restored, self.model.retained.len(), "{}: restored balances", self.choices.name());
    }

    pub fn run(&mut self) {
        self.publish();
        let mut step = 0;
        while self.choices.has_step(step) {
            match self.choices.below(32) {
                0..=11 => self.charge(step),
                12..=13 => self.refund(step),
                14..=16 => self.debit(step),
                17..=20 => self.clock.nanoseconds += self.choices.nanoseconds(),
                21..=23 => self.step_calendar(),
                24..=26 => self.publish(),
                27..=28 => self.reclaim(),
                29 => self.save(),
                30 => self.change_zone(),
                _ => self.restart(),
            }
            step += 1;
        }
        self.reclaim();
        self.coverage.add(Event::Conversion, self.model.conversions);
        self.coverage.add(Event::NewWindow, self.model.new_windows);
    }

    /// Some limits of the newest snapshot or, if it is still in use, of the previous one.
    fn requests(&mut self) -> (Vec<Charge>, Vec<Request>, bool) {
        let is_newest = self.old.is_none() || self.choices.one_in(2);
        let mut snapshot = match &self.old {
            Some((old, _)) if !is_newest => old.clone(),
            _ => self.current.clone(),
        };
        let (mut charges, mut requests) = (Vec::new(), Vec::new());
        let (one_cost, has_one_cost) = (self.choices.cost(), self.choices.one_in(2));
        for _ in 0..=self.choices.below(MAX_REQUESTED) {
            if snapshot.is_empty() {
                break;
            }
            let (id, BucketRef { slot, rule }) =
                snapshot.swap_remove(self.choices.below(snapshot.len() as u64) as usize);
            let shadow = self.choices.one_in(4);
            let cost = if has_one_cost { one_cost } else { self.choices.cost() };
            charges.push(Charge { slot, rule, cost, shadow });
            requests.push(Request { id, rule, cost, shadow });
        }
        (charges, requests, is_newest)
    }

    /// The time of a request. A delayed thread has read the clocks some time ago.
    fn now(&mut self) -> Now {
        if !self.choices.one_in(4) {
            return self.clock;
        }
        let nanoseconds = self.clock.nanoseconds.saturating_sub(self.choices.nanoseconds()).max(1);
        let unix = self.clock.unix - u32::from(self.choices.one_in(2));
        Now { nanoseconds, unix, millisecond: 999 }
    }

    /// A place to write balances to, or none.
    fn balances(&mut self) -> Option<LimitBalances> {
        self.choices.one_in(2).then(LimitBalances::new)
    }

    fn compare(
        &mut self,
        what: &str,
        step: u64,
        (now, requests): (Now, &[Request]),
        (outcome, balances): (Outcome, Option<LimitBalances>),
        (expected, expected_balances): (Answer, Balances),
    ) {
        let seed = self.choices.name();
        let context = || format!("{seed}, step {step}: {what} at {now:?}: {requests:?}");
        assert_eq!(answer(outcome), expected, "{}", context());
        if let Some(balances) = balances {
            let expected = if expected.0 == Verdict::Superseded { Vec::new() } else { expected_balances };
            assert_eq!(by_position(&balances), expected, "{}", context());
        }
    }

    fn charge(&mut self, step: u64) {
        let (charges, requests, is_newest) = self.requests();
        let (now, mut balances) = (self.now(), self.balances());
        let is_alone = matches!(&*charges, [Charge { rule: Rule::Bucket { .. }, shadow: false, .. }])
            && balances.is_none();
        let expected = self.model.charge(&requests, now, is_newest, is_alone);
        let outcome = self.limiter.charge(&charges, now, balances.as_mut());
        self.coverage.count_charge(&requests, &expected.0);
        self.compare("charge", step, (now, &requests), (outcome, balances), expected);
    }

    fn refund(&mut self, step: u64) {
        let (charges, requests, is_newest) = self.requests();
        let (now, mut balances) = (self.now(), self.balances());
        let expected = self.model.refund(&requests, now, is_newest);
        let outcome = self.limiter.refund(&charges, now, balances.as_mut());
        self.coverage.count_settled(Event::Refund, Event::RefundStopped, &requests, &expected.1);
        self.compare("refund", step, (now, &requests), (outcome, balances), expected);
    }

    fn debit(&mut self, step: u64) {
        let (charges, requests, is_newest) = self.requests();
        let (now, mut balances) = (self.now(), self.balances());
        let expected = self.model.debit(&requests, now, is_newest);
        let outcome = self.limiter.debit(&charges, now, balances.as_mut());
        self.coverage.count_settled(Event::Debit, Event::DebitStopped, &requests, &expected.1);
        self.compare("debit", step, (now, &requests), (outcome, balances), expected);
    }

    /// Sets the calendar clock: forward, back, or close to the end of a window.
    fn step_calendar(&mut self) {
        let unix = i64::from(self.clock.unix);
        let unix = match self.choices.below(6) {
            0 => {
                self.coverage.add(Event::ClockBack, 1);
                unix - i64::from(self.choices.seconds())
            }
            1..=2 => {
                let period = self.choices.below(40) as u8;
                let end = self.model.end_of_window(period);
                end.max(unix) - self.choices.below(2) as i64
            }
            _ => unix + i64::from(self.choices.seconds()),
        };
        self.clock.unix = unix.clamp(i64::from(STARTS[7]) - 10_000_000, MAX_UNIX.into()) as u32;
        self.clock.millisecond = self.choices.below(100) as u16 * 10;
    }

    fn change_zone(&mut self) {
        self.zone = self.choices.below(ZONES.len() as u64) as usize;
        self.limiter.set_time_zone(time_zone(self.zone));
        self.model.set_zone(self.zone);
        self.coverage.add(Event::ZoneChange, 1);
    }

    /// A reload that keeps some limits, changes some, and removes some. Its slots are reclaimed some
    /// steps later.
    fn publish(&mut self) {
        self.reclaim();
        let mut wanted: Vec<(Id, Rule)> = Vec::new();
        for number in 0..MAX_LIMITS as u8 {
            let old = self.current.iter().find(|((other, _), _)| *other == number);
            let old = old.map(|(_, bucket)| bucket.rule);
            if !self.choices.one_in(4) {
                let same = self.choices.one_in(2);
                let rule = old.filter(|_| same).unwrap_or_else(|| self.choices.rule());
                let is_other_kind = old.is_some_and(|old| old.kind() != rule.kind());
                self.coverage.add(Event::KindChange, u64::from(is_other_kind));
                wanted.push(((number, rule.kind()), rule));
            }
        }
        let mut allocation = self.allocator.begin(&self.limiter);
        let assign = |(id, rule): &(Id, Rule)| {
            let old = self.current.iter().find(|(other, _)| other == id).map(|(_, bucket)| *bucket);
            let slot = allocation.assign(|| limit_id(*id), old, *rule).expect("a free slot");
            (*id, BucketRef { slot, rule: *rule })
        };
        let new: Snapshot = wanted.iter().map(assign).collect();
        if self.choices.one_in(8) {
            // The reload is refused, and dropping the allocation undoes it.
            self.coverage.add(Event::DroppedReload, 1);
            return;
        }
        let pending = allocation.commit();
        self.model.publish(&wanted);
        self.coverage.add(Event::Reload, 1);
        self.old = Some((std::mem::replace(&mut self.current, new), pending));
    }

    fn reclaim(&mut self) {
        if let Some((old, pending)) = self.old.take() {
            self.allocator.reclaim(&self.limiter, pending, with_ids(&old), self.clock);
            let current: Vec<Id> = self.current.iter().map(|(id, _)| *id).collect();
            self.model.reclaim(&current, self.clock);
            self.compare_counts();
        }
    }

    fn compare_counts(&self) {
        let seed = self.choices.name();
        let (live, retained) = (self.current.len(), self.model.retained.len());
        assert_eq!(self.allocator.in_use(), (live + retained) as u64, "{seed}: slots in use");
        assert_eq!(self.allocator.retained(), retained, "{seed}: retained balances");
        assert_eq!(self.limiter.latest_unix(), self.model.latest_unix(), "{seed}: the calendar");
    }

    fn save(&mut self) {
        self.reclaim();
        let scan = self.allocator.scan_balances(&self.limiter, with_ids(&self.current), self.clock);
        let model = self.model.saved(self.clock);
        let saved_at = ClockReading {
            boot_id: Some([1; 16]),
            boottime: 1 << 40,
            boottime_offset: Some(0),
            realtime: 1 << 50,
        };
        let mut file = Vec::new();
        let calendar = self.limiter.latest_unix();
        encode(&saved_at, calendar, scan.at(self.clock), &mut file).expect("a vector can be written");
        self.saved = Some((file, model, self.clock.nanoseconds));
    }

    /// The daemon stops, with a save (SIGTERM) or without one (kill -9), and is started again after
    /// some time: on the same boot or another, where the calendar may have been set back.
    fn restart(&mut self) {
        if self.saved.is_none() || self.choices.one_in(2) {
            self.save();
        }
        let Some((file, model, saved_nanoseconds)) = self.saved.take() else { return };
        self.reclaim();
        let SavedBalances { saved_at, calendar, limits } = decode(&mut &*file).expect("the file is intact");
        assert_eq!(calendar, model.latest_unix(), "{}: the saved calendar", self.choices.name());
        let passed = self.choices.nanoseconds();
        let (now, elapsed) = match self.choices.below(3) {
            0 => (ClockReading { boottime: saved_at.boottime + passed, ..saved_at }, passed),
            1 => (ClockReading { boot_id: None, realtime: saved_at.realtime + passed, ..saved_at }, passed),
            _ => {
                let realtime = saved_at.realtime - passed;
                (ClockReading { boot_id: Some([2; 16]), realtime, ..saved_at }, 0)
            }
        };
        let seed = self.choices.name();
        assert_eq!(now.nanoseconds_since(&saved_at), elapsed, "{seed}: time since the save");
        (self.limiter, self.allocator) = (Limiter::new(), SlotAllocator::new());
        self.limiter.advance_calendar(calendar);
        self.clock.nanoseconds = self.choices.start();
        if self.choices.one_in(2) {
            self.step_calendar();
        }
        if self.choices.one_in(8) {
            self.zone = self.choices.below(ZONES.len() as u64) as usize;
        }
        let counted =
            [(Event::Conversion, self.model.conversions), (Event::NewWindow, self.model.new_windows)];
        counted.into_iter().for_each(|(event, count)| self.coverage.add(event, count));
        self.model = model.restarted(saved_nanoseconds, elapsed, self.clock, self.zone);
        self.current = Vec::new();
        self.begin(limits, elapsed);
        self.coverage.add(Event::Restart, 1);
        self.compare_counts();
        if !self.choices.one_in(4) {
            self.publish();
        }
    }
}
