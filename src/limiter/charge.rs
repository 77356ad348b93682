//! Charging: all the limits of a key, or none.
//!
//! One limit is one compare-and-swap. Several are locked in slot order (so that two charges can never wait for
//! each other), decided on values that nobody else can move, and written back: a refusal by one leaves the others
//! as they were, and no other thread ever sees a charge that is then taken back. Taking it back instead would be
//! wrong in both directions: for a moment others are refused what nobody spent, and a bucket that refilled in that
//! moment would be given the cost a second time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::limiter::rate::Rate;
use crate::limiter::slots::Slots;
use crate::limiter::word::{Balance, Fit, Word};

/// Most limits that one charge can name: a key's own and its plan's.
pub const MAX_CHARGES: usize = 16;

/// How often a locked word is looked at again before the processor is given away. The holder needs tens of
/// nanoseconds, unless the kernel has taken it off its core.
const SPINS: u32 = 64;

/// All token buckets. Shared by every worker; charging takes no lock but a key's own words.
pub struct Limiter {
    pub(super) slots: Slots,
    /// The slots whose balance is still in the slot of their old rate; empty but for the moments of a reload
    /// that changed limits.
    pub(super) heirs: RwLock<HashMap<u32, Predecessor>>,
    latest: Latest,
}

/// The latest tick that any thread has charged at, on a cache line of its own.
///
/// A thread reads the clock, and charges a little later; meanwhile another may have charged at a later tick. Seen from
/// the earlier one, that charge looks larger than it was, by the difference: enough to be refused the last unit of a
/// burst that is there. So nobody charges at an earlier tick than anyone before, and nobody is refused at one.
#[repr(align(128))]
struct Latest(AtomicU64);

impl Latest {
    /// `now`, or what another thread has seen since.
    fn advance(&self, now: u64) -> u64 {
        let latest = self.0.load(Ordering::Acquire);
        if latest >= now { latest } else { self.0.fetch_max(now, Ordering::AcqRel).max(now) }
    }
}

/// Where the balance of a limit was, before a reload changed its rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Predecessor {
    pub(super) slot: u32,
    pub(super) rate: Rate,
    pub(super) new_rate: Rate,
}

/// One limit to be charged: which bucket, at which rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The bucket's slot.
    pub slot: u32,
    /// The limit's rate in the snapshot that the request is answered from.
    pub rate: Rate,
}

/// What became of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All limits were charged; the one named has the least remaining.
    Admitted(Charged),
    /// None was charged; the one named has to be waited for longest.
    Refused(Charged),
    /// A newer snapshot has taken one of the buckets over: nothing was charged, ask again with that snapshot.
    Superseded,
}

/// The limit that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// Its position among the limits that were to be charged.
    pub limit: usize,
    /// Its balance after the request.
    pub balance: Balance,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

impl Limiter {
    /// A limiter without buckets; [`Ledger`](crate::limiter::Ledger) makes them.
    pub fn new() -> Self {
        Self { slots: Slots::new(), heirs: RwLock::default(), latest: Latest(AtomicU64::new(0)) }
    }

    /// Charges `cost` to every limit of `charges` at tick `now`, or to none. A cost of 0 charges nothing and reports
    /// the balance. Costs must not be over the burst of any limit, and there must be at least one limit; what breaks
    /// that is refused.
    pub fn charge(&self, charges: &[Charge], now: u64, cost: u32) -> Outcome {
        let mut now = self.latest.advance(now);
        loop {
            let outcome = match charges {
                _ if cost == 0 => self.peek(charges, now),
                [only] => self.charge_one(*only, now, cost),
                many => self.charge_all(many, now, cost),
            };
            if !matches!(outcome, Outcome::Refused(_)) {
                return outcome;
            }
            let latest = self.latest.advance(now);
            if latest == now {
                return outcome;
            }
            now = latest;
        }
    }

    /// Has the processor fetch the word of `slot`, for a charge that is about to come.
    #[inline]
    pub fn touch(&self, slot: u32) -> bool {
        self.slots.load(slot).is_plain()
    }

    fn peek(&self, charges: &[Charge], now: u64) -> Outcome {
        let mut decided = Decided::new(true);
        for (limit, charge) in charges.iter().enumerate() {
            let Some(word) = self.settled(charge.slot, now) else {
                return Outcome::Superseded;
            };
            decided.consider(limit, word.balance(charge.rate, now, 0));
        }
        decided.outcome()
    }

    fn charge_one(&self, Charge { slot, rate }: Charge, now: u64, cost: u32) -> Outcome {
        loop {
            let word = self.slots.load(slot);
            if !word.is_plain() {
                match self.settled(slot, now) {
                    Some(_) => continue,
                    None => return Outcome::Superseded,
                }
            }
            match word.fit(rate, now, cost) {
                Fit::Refused => {
                    return Outcome::Refused(Charged { limit: 0, balance: word.balance(rate, now, cost) });
                }
                Fit::Admitted(next) if self.slots.swap(slot, word, next) => {
                    return Outcome::Admitted(Charged { limit: 0, balance: next.balance(rate, now, 0) });
                }
                Fit::Admitted(_) => {}
            }
        }
    }

    fn charge_all(&self, charges: &[Charge], now: u64, cost: u32) -> Outcome {
        let Some(order) = slot_order(charges) else {
            return Decided::new(false).outcome();
        };
        let mut held = Held { slots: &self.slots, words: [HeldWord::NONE; MAX_CHARGES], len: 0 };
        for limit in order.into_iter().take(charges.len()) {
            let charge = charges[limit];
            match self.lock(charge.slot, now) {
                Some(word) => held.push(HeldWord { limit, slot: charge.slot, word }),
                None => return Outcome::Superseded,
            }
        }
        let words = held.words();
        let fits = |word: Word, limit: usize| word.fit(charges[limit].rate, now, cost);
        let refused = words.iter().any(|held| fits(held.word, held.limit) == Fit::Refused);
        let mut decided = Decided::new(!refused);
        for HeldWord { limit, word, .. } in words {
            if let (false, Fit::Admitted(next)) = (refused, fits(*word, *limit)) {
                *word = next;
            }
            decided.consider(*limit, word.balance(charges[*limit].rate, now, if refused { cost } else { 0 }));
        }
        decided.outcome()
    }

    /// Waits until nobody holds `slot`, and holds it; `None` if a newer snapshot has taken it over.
    fn lock(&self, slot: u32, now: u64) -> Option<Word> {
        loop {
            let word = self.settled(slot, now)?;
            if self.slots.swap(slot, word, word.locked()) {
                return Some(word);
            }
        }
    }

    /// The word of `slot` once it is nothing but time: waits for a charge of several limits, takes over a balance
    /// that is still elsewhere; `None` if a newer snapshot has taken it over.
    fn settled(&self, slot: u32, now: u64) -> Option<Word> {
        let mut spins = 0;
        loop {
            let word = self.slots.load(slot);
            if word.is_plain() {
                return Some(word);
            } else if word.is_superseded() {
                return None;
            } else if word.inherits() {
                self.take_over(slot, now);
            } else {
                wait(&mut spins);
            }
        }
    }

    /// Freezes the word of the old rate, and writes what it says into `slot` under the new one. Any number of threads
    /// may do so at once: the frozen word says the same to all, and the first to write wins.
    ///
    /// The lock is held throughout: once a settlement has emptied the list, nobody is left who could freeze a slot that
    /// has been given to another bucket since.
    pub(super) fn take_over(&self, slot: u32, now: u64) {
        let heirs = self.heirs.read().unwrap_or_else(PoisonError::into_inner);
        self.take_over_from(&heirs, slot, now);
    }

    fn take_over_from(&self, heirs: &HashMap<u32, Predecessor>, slot: u32, now: u64) {
        let Some(Predecessor { slot: old_slot, rate, new_rate }) = heirs.get(&slot).copied() else {
            // Somebody else has just finished it; the caller looks at the word again.
            return;
        };
        let mut spins = 0;
        let frozen = loop {
            let word = self.slots.load(old_slot);
            if word.is_superseded() {
                break word;
            }
            if word.is_locked() {
                wait(&mut spins);
            } else if word.inherits() {
                // Changed again before anyone asked for it: first what is owed to that slot.
                self.take_over_from(heirs, old_slot, now);
            } else if self.slots.swap(old_slot, word, word.superseded()) {
                break word;
            }
        };
        let balance = frozen.under(rate, new_rate, now);
        while self.slots.load(slot).inherits() && !self.slots.swap(slot, Word::INHERITS, balance) {}
    }
}

fn wait(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// The limits of `charges` in the order of their slots; `None` if there are too many.
fn slot_order(charges: &[Charge]) -> Option<[usize; MAX_CHARGES]> {
    let mut order: [usize; MAX_CHARGES] = std::array::from_fn(|limit| limit);
    order.get_mut(..charges.len())?.sort_unstable_by_key(|limit| charges[*limit].slot);
    Some(order)
}

/// The locked words of one charge; written back, and so unlocked, however the charge ends.
struct Held<'a> {
    slots: &'a Slots,
    words: [HeldWord; MAX_CHARGES],
    len: usize,
}

#[derive(Clone, Copy)]
struct HeldWord {
    limit: usize,
    slot: u32,
    word: Word,
}

impl HeldWord {
    const NONE: Self = Self { limit: 0, slot: 0, word: Word::FULL };
}

impl Held<'_> {
    fn push(&mut self, word: HeldWord) {
        self.words[self.len] = word;
        self.len += 1;
    }

    fn words(&mut self) -> &mut [HeldWord] {
        &mut self.words[..self.len]
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for held in &self.words[..self.len] {
            self.slots.store(held.slot, held.word);
        }
    }
}

/// Which limit an answer should name.
struct Decided {
    admitted: bool,
    best: Option<Charged>,
}

impl Decided {
    fn new(admitted: bool) -> Self {
        Self { admitted, best: None }
    }

    /// Admitted: the least remaining. Refused: the longest wait. A tie goes to the first.
    fn consider(&mut self, limit: usize, balance: Balance) {
        let better = self.best.is_none_or(|Charged { limit: first, balance: best }| match self.admitted {
            true => (balance.remaining, limit) < (best.remaining, first),
            false => (balance.retry_after, first) > (best.retry_after, limit),
        });
        if better {
            self.best = Some(Charged { limit, balance });
        }
    }

    fn outcome(self) -> Outcome {
        match (self.admitted, self.best) {
            (true, Some(charged)) => Outcome::Admitted(charged),
            (false, Some(charged)) => Outcome::Refused(charged),
            (_, None) => Outcome::Refused(Charged { limit: 0, balance: Balance::default() }),
        }
    }
}
