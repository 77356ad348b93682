//! The model: buckets that hold parts of units, and are filled up when somebody looks.
//!
//! A bucket of a rate that refills one unit in `period` ticks counts in `1/period` of a unit, so that one tick refills one
//! part, and nothing is ever rounded. But for one place, [`Bucket::convert`]: under another rate the parts are of another
//! size, and what does not come out even is rounded down. Everything is in `u128`; nothing overflows.

use std::collections::BTreeMap;

use crate::limiter::Rate;

#[derive(Clone, Debug)]
pub struct Bucket {
    pub rate: Rate,
    pub parts: u128,
    /// The tick at which it held them.
    at: u64,
    /// The rate that a reload has given it, until somebody asks under that.
    changed: Option<Rate>,
    /// What its level comes from beside itself; and once it has been converted, itself too, as it was.
    former: Vec<Self>,
    /// Converted since the reload: who has the old snapshot is sent away.
    pub is_superseded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    Refused,
    ExceedsBurst,
    Superseded,
}

/// Which limit is named, with (remaining, retry after, reset).
pub type DecidingLimit = (usize, (u32, u64, u64));

/// The verdict, the limit that decided, and the first shadow limit that would have refused.
pub type Answer = (Verdict, Option<DecidingLimit>, Option<usize>);

/// A limit of a request: which bucket, in shadow mode or not.
pub type Limit = (u8, bool);

fn period(rate: Rate) -> u128 {
    u128::from(rate.period().get())
}

fn size(rate: Rate) -> u128 {
    period(rate) * u128::from(rate.burst())
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, parts: size(rate), at: 0, changed: None, former: Vec::new(), is_superseded: false }
    }

    fn fill(&mut self, now: u64) {
        self.parts = (self.parts + u128::from(now - self.at)).min(size(self.rate));
        self.at = now;
    }

    fn full_at(&self) -> u128 {
        u128::from(self.at) + size(self.rate) - self.parts
    }

    fn is_full_by(&self, now: u64) -> bool {
        self.full_at() <= u128::from(now)
    }

    fn wanted(&self, cost: u32) -> u128 {
        period(self.rate) * u128::from(cost)
    }

    /// To the rate that a reload gave it: the one place that rounds, and it rounds down.
    fn convert(&mut self, now: u64) {
        let Some(rate) = self.changed.take() else { return };
        let mut former = std::mem::take(&mut self.former);
        former.push(self.clone());
        former.iter_mut().for_each(|bucket| bucket.fill(now));
        let levels = former.iter().map(|bucket| bucket.parts * period(rate) / period(bucket.rate));
        let parts = levels.min().expect("itself").min(size(rate));
        *self = Self { rate, parts, at: now, changed: None, former, is_superseded: true };
    }

    fn balance(&self, cost: u32) -> (u32, u64, u64) {
        let retry_after = self.wanted(cost).saturating_sub(self.parts);
        let whole = self.parts / period(self.rate);
        (whole as u32, retry_after as u64, (size(self.rate) - self.parts) as u64)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Those of the snapshots in use.
    pub buckets: BTreeMap<u8, Bucket>,
    /// Those of keys that are away, and of former rates.
    pub parked: Vec<(u8, Bucket)>,
    latest: u64,
}

impl Model {
    /// Nobody asks at an earlier time than anyone before.
    fn now(&mut self, now: u64) -> u64 {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// The buckets at `now`, for a request of the newest snapshot or of the one before; `None`: superseded.
    fn ready(&mut self, limits: &[Limit], now: u64, is_newest: bool) -> Option<()> {
        let superseded = |id: &u8| self.buckets[id].is_superseded;
        if !is_newest && limits.iter().any(|(id, _)| superseded(id)) {
            return None;
        }
        for (id, _) in limits {
            let bucket = self.buckets.get_mut(id)?;
            if is_newest {
                bucket.convert(now);
            }
            bucket.fill(now);
        }
        Some(())
    }

    pub fn charge(&mut self, limits: &[Limit], now: u64, cost: u32, is_newest: bool) -> Answer {
        let now = self.now(now);
        let enforced: Vec<Limit> = limits.iter().copied().filter(|(_, shadow)| !shadow).collect();
        // A peek does not look at shadow limits at all.
        if self.ready(if cost == 0 { &enforced } else { limits }, now, is_newest).is_none() {
            return (Verdict::Superseded, None, None);
        }
        let has_room = |id: u8| self.buckets[&id].parts >= self.buckets[&id].wanted(cost);
        let shadow = (cost > 0).then(|| limits.iter().position(|(id, shadow)| *shadow && !has_room(*id)));
        let shadow = shadow.flatten();
        let hopeless = limits.iter().position(|(id, shadow)| !shadow && cost > self.buckets[id].rate.burst());
        if let Some(position) = hopeless {
            let balance = self.buckets[&limits[position].0].balance(0);
            return (Verdict::ExceedsBurst, Some((position, balance)), shadow);
        }
        if !enforced.iter().all(|(id, _)| has_room(*id)) {
            let longest = self.named(limits, cost, |(_, retry_after, _)| u64::MAX - retry_after);
            return (Verdict::Refused, longest, shadow);
        }
        if cost > 0 {
            for (id, _) in limits.iter().filter(|(id, _)| has_room(*id)).copied().collect::<Vec<_>>() {
                let bucket = self.buckets.get_mut(&id).expect("it is ready");
                bucket.parts -= bucket.wanted(cost);
            }
        }
        (Verdict::Admitted, self.least(limits), shadow)
    }

    pub fn refund(&mut self, limits: &[Limit], now: u64, cost: u32, is_newest: bool) -> Answer {
        let now = self.now(now);
        if self.ready(limits, now, is_newest).is_none() {
            return (Verdict::Superseded, None, None);
        }
        for (id, _) in limits {
            let bucket = self.buckets.get_mut(id).expect("it is ready");
            bucket.parts = (bucket.parts + bucket.wanted(cost)).min(size(bucket.rate));
        }
        (Verdict::Admitted, self.least(limits), None)
    }

    fn least(&self, limits: &[Limit]) -> Option<DecidingLimit> {
        self.named(limits, 0, |(remaining, _, _)| u64::from(remaining))
    }

    /// The enforced limit whose balance has the least `measure`; the first of several.
    fn named(
        &self,
        limits: &[Limit],
        cost: u32,
        measure: impl Fn((u32, u64, u64)) -> u64,
    ) -> Option<DecidingLimit> {
        let enforced = limits.iter().enumerate().filter(|(_, (_, shadow))| !shadow);
        enforced
            .map(|(position, (id, _))| (position, self.buckets[id].balance(cost)))
            .min_by_key(|(_, balance)| measure(*balance))
    }

    /// A reload publishes a snapshot with these buckets.
    pub fn publish(&mut self, wanted: &[(u8, Rate)]) {
        for (id, rate) in wanted {
            if self.buckets.get(id).is_some_and(|bucket| bucket.rate == *rate) {
                continue;
            }
            let mut had: Vec<Bucket> = self.buckets.remove(id).into_iter().collect();
            let is_back = had.is_empty();
            had.extend(self.parked.extract_if(.., |(other, _)| other == id).map(|(_, bucket)| bucket));
            let bucket = match had.first().cloned() {
                None => Bucket::full(*rate),
                Some(only) if is_back && had.len() == 1 && only.rate == *rate => only,
                Some(first) => Bucket { changed: Some(*rate), former: had.split_off(1), ..first },
            };
            self.buckets.insert(*id, bucket);
        }
    }

    /// Nobody has the old snapshot any more; the one in use has these buckets, and others are remembered until they are full:
    /// those of keys that are away, and those of former rates, unless what has taken their place is full later still.
    pub fn settle(&mut self, current: &[u8], now: u64) {
        for (id, bucket) in &mut self.buckets {
            if bucket.changed.is_some() || bucket.is_superseded {
                self.latest = self.latest.max(now);
            }
            bucket.convert(now);
            bucket.is_superseded = false;
            let former = std::mem::take(&mut bucket.former).into_iter();
            let outlasts = former.filter(|former| former.full_at() > bucket.full_at());
            self.parked.extend(outlasts.map(|former| (*id, former)));
        }
        let away = self.buckets.extract_if(.., |id, _| !current.contains(id));
        self.parked.extend(away);
        self.parked.retain(|(_, bucket)| !bucket.is_full_by(now));
    }

    /// What another process finds that begins to count at `now`, `elapsed` ticks after the balances were saved at `saved`.
    pub fn restarted(&self, saved: u64, elapsed: u64, now: u64) -> Self {
        let live = self.buckets.iter().map(|(id, bucket)| (*id, bucket.clone()));
        let mut parked: Vec<(u8, Bucket)> = live.chain(self.parked.iter().cloned()).collect();
        for (_, bucket) in &mut parked {
            bucket.fill(saved);
            bucket.fill(saved + elapsed);
            bucket.at = now;
        }
        parked.retain(|(_, bucket)| !bucket.is_full_by(now));
        Self { buckets: BTreeMap::new(), parked, latest: now }
    }
}
