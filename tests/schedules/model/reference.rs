//! The model: buckets that hold fractions of units, and are refilled whenever they are accessed.
//!
//! A bucket whose rate refills one unit in `period` ticks counts in parts of 1/`period` of a unit,
//! so that one tick refills one part and nothing is rounded. [`Bucket::convert`] is the exception:
//! another rate has parts of another size, and the level is rounded down. All arithmetic is in
//! `u128`, which cannot overflow here.

use std::collections::BTreeMap;

use crate::limiter::Rate;

#[derive(Clone, Debug)]
pub struct Bucket {
    pub rate: Rate,
    pub parts: u128,
    /// The tick at which the bucket held `parts`.
    at: u64,
    /// The rate that a reload has changed to, until a request uses it.
    new_rate: Option<Rate>,
    /// The other buckets that a conversion takes its level from. After the conversion, the bucket
    /// as it was before is one of them.
    former: Vec<Self>,
    /// Whether the bucket has been converted since the reload. Requests of the old snapshot are
    /// superseded.
    pub is_superseded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    Refused,
    ExceedsBurst,
    Superseded,
}

/// Remaining cost, ticks until the requested cost fits, ticks until the bucket is full.
pub type Balance = (u32, u64, u64);

/// The position of the deciding limit, and its balance.
pub type DecidingLimit = (usize, Balance);

/// The verdict, the deciding limit, and the first shadow limit that would have refused.
pub type Answer = (Verdict, Option<DecidingLimit>, Option<usize>);

/// A limit of a request: the number of its bucket, and whether it is a shadow limit.
pub type Limit = (u8, bool);

fn period(rate: Rate) -> u128 {
    u128::from(rate.period().get())
}

/// The parts in a full bucket.
fn capacity(rate: Rate) -> u128 {
    period(rate) * u128::from(rate.burst())
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, parts: capacity(rate), at: 0, new_rate: None, former: Vec::new(), is_superseded: false }
    }

    fn refill(&mut self, now: u64) {
        self.parts = (self.parts + u128::from(now - self.at)).min(capacity(self.rate));
        self.at = now;
    }

    fn full_at(&self) -> u128 {
        u128::from(self.at) + capacity(self.rate) - self.parts
    }

    fn is_full_at(&self, now: u64) -> bool {
        self.full_at() <= u128::from(now)
    }

    /// `cost` in parts.
    fn parts_of(&self, cost: u32) -> u128 {
        period(self.rate) * u128::from(cost)
    }

    /// Converts the bucket to its new rate, if it has one. This is the only place that rounds:
    /// down.
    fn convert(&mut self, now: u64) {
        let Some(rate) = self.new_rate.take() else { return };
        let mut former = std::mem::take(&mut self.former);
        former.push(self.clone());
        former.iter_mut().for_each(|bucket| bucket.refill(now));
        let levels = former.iter().map(|bucket| bucket.parts * period(rate) / period(bucket.rate));
        let lowest = levels.min().expect("the bucket itself is one of them");
        let parts = lowest.min(capacity(rate));
        *self = Self { rate, parts, at: now, new_rate: None, former, is_superseded: true };
    }

    fn balance(&self, cost: u32) -> Balance {
        let retry_after = self.parts_of(cost).saturating_sub(self.parts);
        let remaining = self.parts / period(self.rate);
        (remaining as u32, retry_after as u64, (capacity(self.rate) - self.parts) as u64)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The buckets of the snapshots in use, by number.
    pub buckets: BTreeMap<u8, Bucket>,
    /// The buckets of removed keys and of former rates.
    pub retained: Vec<(u8, Bucket)>,
    latest_tick: u64,
}

impl Model {
    /// The tick of a request: not earlier than that of any request before it.
    fn advance(&mut self, now: u64) -> u64 {
        self.latest_tick = self.latest_tick.max(now);
        self.latest_tick
    }

    /// Refills the buckets of a request, which belongs to the newest snapshot or to the one before.
    /// `None` if one of them is superseded.
    fn prepare(&mut self, limits: &[Limit], now: u64, is_newest: bool) -> Option<()> {
        let is_superseded = |id: &u8| self.buckets[id].is_superseded;
        if !is_newest && limits.iter().any(|(id, _)| is_superseded(id)) {
            return None;
        }
        for (id, _) in limits {
            let bucket = self.buckets.get_mut(id)?;
            if is_newest {
                bucket.convert(now);
            }
            bucket.refill(now);
        }
        Some(())
    }

    pub fn charge(&mut self, limits: &[Limit], now: u64, cost: u32, is_newest: bool) -> Answer {
        let now = self.advance(now);
        let enforced: Vec<Limit> = limits.iter().copied().filter(|(_, shadow)| !shadow).collect();
        // A peek ignores shadow limits.
        if self.prepare(if cost == 0 { &enforced } else { limits }, now, is_newest).is_none() {
            return (Verdict::Superseded, None, None);
        }
        let has_room = |id: u8| self.buckets[&id].parts >= self.buckets[&id].parts_of(cost);
        let shadow = (cost > 0).then(|| limits.iter().position(|(id, shadow)| *shadow && !has_room(*id)));
        let shadow = shadow.flatten();
        let over_burst =
            limits.iter().position(|(id, shadow)| !shadow && cost > self.buckets[id].rate.burst());
        if let Some(position) = over_burst {
            let balance = self.buckets[&limits[position].0].balance(0);
            return (Verdict::ExceedsBurst, Some((position, balance)), shadow);
        }
        if !enforced.iter().all(|(id, _)| has_room(*id)) {
            let longest_wait = self.deciding(limits, cost, |(_, retry_after, _)| u64::MAX - retry_after);
            return (Verdict::Refused, longest_wait, shadow);
        }
        if cost > 0 {
            for (id, _) in limits.iter().filter(|(id, _)| has_room(*id)).copied().collect::<Vec<_>>() {
                let bucket = self.buckets.get_mut(&id).expect("the bucket is prepared");
                bucket.parts -= bucket.parts_of(cost);
            }
        }
        (Verdict::Admitted, self.least_remaining(limits), shadow)
    }

    pub fn refund(&mut self, limits: &[Limit], now: u64, cost: u32, is_newest: bool) -> Answer {
        let now = self.advance(now);
        if self.prepare(limits, now, is_newest).is_none() {
            return (Verdict::Superseded, None, None);
        }
        for (id, _) in limits {
            let bucket = self.buckets.get_mut(id).expect("the bucket is prepared");
            bucket.parts = (bucket.parts + bucket.parts_of(cost)).min(capacity(bucket.rate));
        }
        (Verdict::Admitted, self.least_remaining(limits), None)
    }

    fn least_remaining(&self, limits: &[Limit]) -> Option<DecidingLimit> {
        self.deciding(limits, 0, |(remaining, _, _)| u64::from(remaining))
    }

    /// The enforced limit whose balance has the least `measure`; the first of equal ones.
    fn deciding(
        &self,
        limits: &[Limit],
        cost: u32,
        measure: impl Fn(Balance) -> u64,
    ) -> Option<DecidingLimit> {
        let enforced = limits.iter().enumerate().filter(|(_, (_, shadow))| !shadow);
        enforced
            .map(|(position, (id, _))| (position, self.buckets[id].balance(cost)))
            .min_by_key(|(_, balance)| measure(*balance))
    }

    /// A reload publishes a snapshot with the buckets `wanted`.
    pub fn publish(&mut self, wanted: &[(u8, Rate)]) {
        for (id, rate) in wanted {
            if self.buckets.get(id).is_some_and(|bucket| bucket.rate == *rate) {
                continue;
            }
            let mut existing: Vec<Bucket> = self.buckets.remove(id).into_iter().collect();
            let is_added = existing.is_empty();
            let retained = self.retained.extract_if(.., |(other, _)| other == id);
            existing.extend(retained.map(|(_, bucket)| bucket));
            let bucket = match existing.first().cloned() {
                None => Bucket::full(*rate),
                Some(only) if is_added && existing.len() == 1 && only.rate == *rate => only,
                Some(first) => Bucket { new_rate: Some(*rate), former: existing.split_off(1), ..first },
            };
            self.buckets.insert(*id, bucket);
        }
    }

    /// The old snapshot is no longer in use, and the new one has the buckets `current`. Other
    /// buckets are retained until they are full, and so are those of former rates that become full
    /// later than the buckets that replaced them.
    pub fn reclaim(&mut self, current: &[u8], now: u64) {
        for (id, bucket) in &mut self.buckets {
            if bucket.new_rate.is_some() || bucket.is_superseded {
                self.latest_tick = self.latest_tick.max(now);
            }
            bucket.convert(now);
            bucket.is_superseded = false;
            let former = std::mem::take(&mut bucket.former).into_iter();
            let full_later = former.filter(|former| former.full_at() > bucket.full_at());
            self.retained.extend(full_later.map(|former| (*id, former)));
        }
        let removed = self.buckets.extract_if(.., |id, _| !current.contains(id));
        self.retained.extend(removed);
        self.retained.retain(|(_, bucket)| !bucket.is_full_at(now));
    }

    /// The model of the next process, whose ticks begin at `now`. The balances were saved at tick
    /// `saved_at` of the previous process, `elapsed` ticks ago.
    pub fn restarted(&self, saved_at: u64, elapsed: u64, now: u64) -> Self {
        let live = self.buckets.iter().map(|(id, bucket)| (*id, bucket.clone()));
        let mut retained: Vec<(u8, Bucket)> = live.chain(self.retained.iter().cloned()).collect();
        for (_, bucket) in &mut retained {
            bucket.refill(saved_at);
            bucket.refill(saved_at + elapsed);
            bucket.at = now;
        }
        retained.retain(|(_, bucket)| !bucket.is_full_at(now));
        Self { buckets: BTreeMap::new(), retained, latest_tick: now }
    }
}
