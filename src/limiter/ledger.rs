//! Which bucket has which slot, from one reload to the next.
//!
//! A bucket is named by what it belongs to and its limit's name. A reload *claims* a slot for each bucket of the new
//! snapshot: the slot that the previous snapshot had for it, if the rate is the same; a fresh one that inherits the
//! balance, if the rate has changed; a full one, if the bucket is new. Nothing that is running notices before the new
//! snapshot is published, and a claim that is dropped leaves no trace.
//!
//! Once every worker has left the old snapshot, the reload *settles*: balances that nobody has asked for yet are taken
//! over, and the slots of buckets that no longer exist are freed. Of those, the ones that are not full yet are
//! *parked* until they are, so that a key which vanishes and comes back (a bad export, a mistaken delete) has not
//! been given a new quota. So are the ones that would have been full later than what has taken their place: under a
//! smaller limit a bucket is soon full, and then says nothing any more of what was spent under the larger one.
//!
//! A name may so have several buckets, one for each rate. As long as the rates that are wanted are the rates that are
//! there, each goes on by itself; otherwise all that are wanted begin with the least that any has left.

use std::sync::PoisonError;

use crate::limiter::charge::{Limiter, Predecessor};
use crate::limiter::name::BucketName;
use crate::limiter::parked::Parked;
use crate::limiter::rate::Rate;
use crate::limiter::saved::SavedBucket;
use crate::limiter::word::Word;
use crate::sync::CHUNK;

/// Buckets that may be parked however few there are in use; beyond it, as many as are in use. What is dropped then is
/// refilled early: the price of bounded memory.
const MIN_PARKED: usize = 1 << 16;

/// A bucket of a published snapshot: its slot, and the rate that its word is read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Slot number.
    pub slot: u32,
    /// Rate.
    pub rate: Rate,
}

/// The slots in use and free. One per limiter, owned by whoever reloads.
#[derive(Default)]
pub struct Ledger {
    /// The first slot never handed out.
    next: u64,
    free: Vec<u32>,
    parked: Parked,
}

/// The slots that one reload asks for.
pub struct Claim<'a> {
    ledger: &'a mut Ledger,
    limiter: &'a Limiter,
    /// One bit for each slot that the new snapshot keeps.
    kept: Vec<u64>,
    fresh: Vec<u32>,
    heirs: Vec<(u32, Predecessor)>,
    /// All slots of the ledger are this claim's.
    is_first: bool,
    committed: bool,
}

/// What is left to do once no worker uses the old snapshot.
#[must_use]
pub struct Settlement {
    kept: Vec<u64>,
    /// How many slots the new snapshot has beside those.
    fresh: u64,
    heirs: Vec<(u32, Predecessor)>,
}

/// What a moment's walk over the buckets found.
#[must_use]
pub struct Listing {
    listed: Vec<(BucketName, Rate, Word)>,
}

impl Listing {
    /// What is to be saved. `now` is a tick that nobody has charged after yet, read when the list was complete: a bucket
    /// that was charged in the course of the walk may be full later than at the walk's beginning it could have been.
    pub fn at(&self, now: u64) -> impl ExactSizeIterator<Item = SavedBucket> {
        self.listed.iter().map(move |(name, rate, word)| SavedBucket {
            name: *name,
            rate: *rate,
            debt: word.balance(*rate, now, 0).reset.min(rate.capacity()),
        })
    }
}

impl Ledger {
    /// An empty ledger, for a limiter without buckets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a reload's claims.
    pub fn claim<'a>(&'a mut self, limiter: &'a Limiter) -> Claim<'a> {
        // One bit for each slot there is: most are kept.
        let kept = vec![0; usize::try_from(self.next.div_ceil(64)).unwrap_or(0)];
        Claim {
            ledger: self,
            limiter,
            kept,
            fresh: Vec::new(),
            heirs: Vec::new(),
            is_first: false,
            committed: false,
        }
    }

    /// Slots that are in use or parked.
    pub fn in_use(&self) -> u64 {
        self.next - self.free.len() as u64
    }

    /// Buckets of vanished keys and of former rates that are still refilling.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Finishes a reload: every worker has left the old snapshot, whose buckets and their names `old` lists.
    pub fn settle(
        &mut self,
        limiter: &Limiter,
        settlement: Settlement,
        old: impl Iterator<Item = (Slot, impl FnOnce() -> BucketName)>,
        now: u64,
    ) {
        for (slot, _) in &settlement.heirs {
            limiter.take_over(*slot, now);
        }
        let mut heirs = limiter.heirs.write().unwrap_or_else(PoisonError::into_inner);
        heirs.clear();
        drop(heirs);

        let mut done = settlement.kept;
        let claimed = done.iter().map(|bits| u64::from(bits.count_ones())).sum::<u64>() + settlement.fresh;
        for (slot, of) in &settlement.heirs {
            // Several can have inherited from one: it takes only one of them to say what that one would.
            let is_said = !limiter.slots.load(of.slot).outlasts(limiter.slots.load(*slot));
            if is_said && !is_set(&done, of.slot) {
                set(&mut done, of.slot);
                self.release(limiter, of.slot);
            }
        }
        for (_, of) in settlement.heirs.iter().filter(|(_, of)| !is_set(&done, of.slot)) {
            limiter.slots.store(of.slot, limiter.slots.load(of.slot).resumed());
        }
        self.parked.retain(|bucket| !is_set(&done, bucket.slot));
        // What is in use and neither claimed nor parked is an old bucket's. Most often there is none left, in a million.
        let mut gone = self.in_use().saturating_sub(self.parked.len() as u64 + claimed);
        for (bucket, name) in old {
            if gone == 0 {
                break;
            }
            // Rows of one key share their buckets: each slot is looked at once.
            if !is_set(&done, bucket.slot) {
                set(&mut done, bucket.slot);
                self.park(limiter, name, bucket, now);
                gone -= 1;
            }
        }
        self.unpark_full(limiter, now);
    }

    /// Everything that a restart would forget: the buckets that are not full at `now`, of those that `live` lists (the
    /// snapshot in use) and of the parked ones. The ledger has to be settled.
    pub fn list(
        &self,
        limiter: &Limiter,
        live: impl Iterator<Item = (Slot, impl FnOnce() -> BucketName)>,
        now: u64,
    ) -> Listing {
        let mut seen = Vec::new();
        let mut listed = Vec::new();
        for (Slot { slot, rate }, name) in live {
            if is_set(&seen, slot) {
                continue;
            }
            set(&mut seen, slot);
            let word = limiter.slots.load(slot);
            if !word.is_full(now) {
                listed.push((name(), rate, word));
            }
        }
        let parked = self.parked.iter();
        listed.extend(parked.map(|(name, Slot { slot, rate })| (name, rate, limiter.slots.load(slot))));
        Listing { listed }
    }

    /// Takes buckets of an earlier process, which have refilled for `elapsed` ticks since, and parks them: the first
    /// snapshot that has them finds them there by name, as if their keys had been away. To be called before there is one.
    ///
    /// Returns how many there are that are not full again.
    pub fn restore(
        &mut self,
        limiter: &Limiter,
        saved: impl IntoIterator<Item = SavedBucket>,
        elapsed: u64,
        now: u64,
    ) -> usize {
        // Nobody may be charged at an earlier tick than the balances are of.
        let now = limiter.latest.advance(now);
        for SavedBucket { name, rate, debt } in saved {
            let Some(debt) = debt.checked_sub(elapsed).filter(|debt| *debt > 0) else { continue };
            let Some(slot) = self.take(limiter, Word::with_debt(debt, now)) else { break };
            self.parked.insert(name, Slot { slot, rate });
        }
        self.parked.len()
    }

    /// A slot that holds `word`; `None` when all are in use.
    fn take(&mut self, limiter: &Limiter, word: Word) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.next).ok()?;
                limiter.slots.ensure(slot);
                self.next += 1;
                slot
            }
        };
        limiter.slots.store(slot, word);
        Some(slot)
    }

    fn park(&mut self, limiter: &Limiter, name: impl FnOnce() -> BucketName, bucket: Slot, now: u64) {
        if limiter.slots.load(bucket.slot).is_full(now) {
            self.release(limiter, bucket.slot);
        } else {
            self.parked.insert(name(), bucket);
        }
    }

    /// Forgets the parked buckets that are full; and if there are too many all the same, those that will be soonest.
    fn unpark_full(&mut self, limiter: &Limiter, now: u64) {
        let live = self.in_use().saturating_sub(self.parked.len() as u64) as usize;
        let debt = |bucket: &Slot| limiter.slots.load(bucket.slot).balance(bucket.rate, now, 0).reset;
        let mut debts: Vec<u64> =
            self.parked.iter().map(|(_, bucket)| debt(&bucket)).filter(|debt| *debt > 0).collect();
        let surplus = debts.len().saturating_sub(live.max(MIN_PARKED));
        let forget = match surplus.checked_sub(1) {
            Some(last) => *debts.select_nth_unstable(last).1,
            None => 0,
        };
        let mut gone = Vec::new();
        self.parked.retain(|bucket| {
            let is_kept = debt(bucket) > forget;
            if !is_kept {
                gone.push(bucket.slot);
            }
            is_kept
        });
        gone.into_iter().for_each(|slot| self.release(limiter, slot));
    }

    fn release(&mut self, limiter: &Limiter, slot: u32) {
        limiter.slots.store(slot, Word::FULL);
        self.free.push(slot);
    }
}

impl Claim<'_> {
    /// A slot at `rate` for the bucket with this name, which has no other; `previous` is what the snapshot in use has for it.
    /// Each bucket of a snapshot is to be claimed once.
    ///
    /// `None` when all 2^32 slots are in use.
    pub fn slot(
        &mut self,
        name: impl FnOnce() -> BucketName,
        previous: Option<Slot>,
        rate: Rate,
    ) -> Option<u32> {
        if let Some(previous) = previous.filter(|previous| previous.rate == rate) {
            return Some(self.keep(previous));
        }
        match (previous, self.parked(name)) {
            (None, []) => self.fresh(Word::FULL),
            (None, &[only]) if only.rate == rate => Some(self.keep(only)),
            (previous, parked) => {
                let had: Vec<Slot> = previous.iter().chain(parked).copied().collect();
                self.heir(&had, rate)
            }
        }
    }

    /// The same for a name that has a bucket for each of `rates`, no two of which are equal; their order says nothing.
    pub fn slots(&mut self, name: BucketName, previous: &[Slot], rates: &[Rate]) -> Option<Vec<Slot>> {
        let is_wanted = |had: &[Slot]| {
            had.len() == rates.len() && rates.iter().all(|rate| had.iter().any(|of| of.rate == *rate))
        };
        let same = if previous.is_empty() { self.parked(|| name) } else { previous };
        if is_wanted(same) {
            let same = same.to_vec();
            same.iter().for_each(|bucket| _ = self.keep(*bucket));
            return Some(same);
        }
        let had: Vec<Slot> = previous.iter().chain(self.parked(|| name)).copied().collect();
        rates.iter().map(|rate| Some(Slot { slot: self.heir(&had, *rate)?, rate: *rate })).collect()
    }

    /// The slots from 0 to `count` for as many buckets, of which `unused` are none: where nobody has a balance yet, names need not be looked
    /// at. `None` where somebody may, or slots have been handed out.
    pub fn first(&mut self, count: u32, unused: impl Iterator<Item = u32>) -> Option<()> {
        let Ledger { next, free, parked } = &mut *self.ledger;
        if *next > 0 || !parked.is_empty() {
            return None;
        }
        // All their words are those of full buckets.
        (0..count)
            .step_by(CHUNK)
            .chain(count.checked_sub(1))
            .for_each(|slot| self.limiter.slots.ensure(slot));
        free.extend(unused);
        *next = count.into();
        self.is_first = true;
        Some(())
    }

    /// Makes the claims count; call it just before the new snapshot is published.
    pub fn commit(mut self) -> Settlement {
        self.committed = true;
        let mut heirs = self.limiter.heirs.write().unwrap_or_else(PoisonError::into_inner);
        self.heirs.iter().for_each(|(slot, of)| heirs.entry(*slot).or_default().push(*of));
        drop(heirs);
        let (kept, heirs) = (std::mem::take(&mut self.kept), std::mem::take(&mut self.heirs));
        Settlement { kept, fresh: self.fresh.len() as u64, heirs }
    }

    fn keep(&mut self, bucket: Slot) -> u32 {
        set(&mut self.kept, bucket.slot);
        bucket.slot
    }

    /// A slot at `rate` that begins with the least that any of `had` has left.
    fn heir(&mut self, had: &[Slot], rate: Rate) -> Option<u32> {
        if had.is_empty() {
            return self.fresh(Word::FULL);
        }
        let slot = self.fresh(Word::INHERITS)?;
        let of = |old: &Slot| (slot, Predecessor { slot: old.slot, rate: old.rate, new_rate: rate });
        self.heirs.extend(had.iter().map(of));
        Some(slot)
    }

    /// What is parked under a name. It stays there until the claims are settled.
    fn parked(&self, name: impl FnOnce() -> BucketName) -> &[Slot] {
        // Naming costs a hash, and most often nothing is parked.
        if self.ledger.parked.is_empty() { &[] } else { self.ledger.parked.of(&name()) }
    }

    fn fresh(&mut self, word: Word) -> Option<u32> {
        let slot = self.ledger.take(self.limiter, word)?;
        self.fresh.push(slot);
        Some(slot)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.committed {
            if self.is_first {
                (self.ledger.next, self.ledger.free) = (0, Vec::new());
            }
            for slot in self.fresh.drain(..) {
                self.ledger.release(self.limiter, slot);
            }
        }
    }
}

fn set(bits: &mut Vec<u64>, slot: u32) {
    let word = slot as usize / 64;
    if word >= bits.len() {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (slot % 64);
}

fn is_set(bits: &[u64], slot: u32) -> bool {
    bits.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
}
