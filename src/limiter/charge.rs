//! Charging: all the limits of a key, or none. And giving back.
//!
//! One limit is one compare-and-swap. Several are locked in slot order (so that two charges can never wait for
//! each other), decided on values that nobody else can move, and written back: a refusal by one leaves the others
//! as they were, and no other thread ever sees a charge that is then taken back. Taking it back instead would be
//! wrong in both directions: for a moment others are refused what nobody spent, and a bucket that refilled in that
//! moment would be given the cost a second time.

use std::collections::HashMap;

use crate::limiter::hold::HeldWord;
use crate::limiter::outcome::{Charge, Charged, Decided, Outcome, Single};
use crate::limiter::rate::Rate;
use crate::limiter::slots::{Slots, replace};
use crate::limiter::word::{Fit, Word};
use crate::sync::{AtomicU64, Ordering, RwLock, prefetch};

/// Most limits that one charge can name: a key's own and its plan's.
pub const MAX_CHARGES: usize = 16;

/// All token buckets. Shared by every worker; charging takes no lock but a key's own words.
pub struct Limiter {
    pub(super) slots: Slots,
    /// The slots whose balance is still in the slot of their old rate; empty but for the moments of a reload
    /// that changed limits.
    pub(super) heirs: RwLock<Heirs>,
    pub(super) latest: Latest,
}

/// A bucket that has been looked for: where a slot is does not change.
#[derive(Clone, Copy)]
pub struct Bucket<'l> {
    slot: u32,
    word: &'l AtomicU64,
}

/// The latest tick that any thread has charged at, on a cache line of its own.
///
/// A thread reads the clock, and charges a little later; meanwhile another may have charged at a later tick. Seen from
/// the earlier one, that charge looks larger than it was, by the difference: enough to be refused the last unit of a
/// burst that is there. So nobody charges at an earlier tick than anyone before, and nobody is refused at one.
#[repr(align(128))]
pub(super) struct Latest(AtomicU64);

impl Latest {
    /// `now`, or what another thread has seen since.
    pub(super) fn advance(&self, now: u64) -> u64 {
        let latest = self.0.load(Ordering::Acquire);
        if latest >= now { latest } else { self.0.fetch_max(now, Ordering::AcqRel).max(now) }
    }
}

/// By the slot that inherits, whose balances it inherits: one, or several where limits have become one.
pub(super) type Heirs = HashMap<u32, Vec<Predecessor>>;

/// Where the balance of a limit was, before a reload changed its rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Predecessor {
    pub(super) slot: u32,
    pub(super) rate: Rate,
    pub(super) new_rate: Rate,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

impl Limiter {
    /// A limiter without buckets; [`Ledger`](crate::limiter::Ledger) makes them.
    pub fn new() -> Self {
        Self { slots: Slots::new(), heirs: RwLock::new(HashMap::new()), latest: Latest(AtomicU64::new(0)) }
    }

    /// Charges `cost` to every limit of `charges` at tick `now`, or to none; shadow limits that have no room are left
    /// out and reported. A cost of 0 charges nothing and reports the balance.
    ///
    /// No two limits may have the same slot. More than [`MAX_CHARGES`] are refused.
    pub fn charge(&self, charges: &[Charge], now: u64, cost: u32) -> Outcome {
        match charges {
            _ if cost == 0 => self.peek(charges, self.latest.advance(now)),
            [Charge { slot, rate, shadow: false }] => match self.bucket(*slot) {
                Some(bucket) => self.charge_only(bucket, *rate, now, cost).into(),
                None => Outcome::Superseded,
            },
            many => self.charge_all(many, self.latest.advance(now), cost),
        }
    }

    /// Gives `cost` back to every limit of `charges`, shadow ones included, up to their bursts: to all of them, or to none
    /// ([`Outcome::Superseded`]), since whoever asks again would otherwise give back twice.
    /// [`Outcome::Admitted`] names the enforced limit with the least remaining.
    ///
    /// It is believed: that the cost was charged before is for the caller to know.
    pub fn refund(&self, charges: &[Charge], now: u64, cost: u32) -> Outcome {
        if charges.len() > MAX_CHARGES {
            return Outcome::Refused(Charged::default());
        }
        let now = self.latest.advance(now);
        let Some(mut held) = self.hold(charges, now) else {
            return Outcome::Superseded;
        };
        let mut decided = Decided::new(true);
        for held in held.words() {
            let Charge { rate, shadow, .. } = charges[held.limit];
            held.word = held.word.refunded(rate, now, cost);
            if !shadow {
                decided.consider(held.limit, held.word.balance(rate, now, 0));
            }
        }
        decided.outcome()
    }

    /// The latest tick that anything was asked at: as long as it stays, nothing has been charged.
    pub fn latest(&self) -> u64 {
        self.latest.advance(0)
    }

    /// The bucket in `slot`, and has the processor fetch it, for a charge that is about to come. `None`: it was never handed out.
    #[inline]
    pub fn bucket(&self, slot: u32) -> Option<Bucket<'_>> {
        let word = self.slots.get(slot)?;
        prefetch(word);
        Some(Bucket { slot, word })
    }

    fn peek(&self, charges: &[Charge], now: u64) -> Outcome {
        let mut decided = Decided::new(true);
        for (limit, charge) in charges.iter().enumerate().filter(|(_, charge)| !charge.shadow) {
            let Some(word) = self.settled(charge.slot, now) else {
                return Outcome::Superseded;
            };
            decided.consider(limit, word.balance(charge.rate, now, 0));
        }
        decided.outcome()
    }

    /// The usual case of [`charge`](Self::charge) by itself: a limit that is the only one, and enforced; and a cost that is not 0.
    #[inline(always)]
    pub fn charge_only(&self, bucket: Bucket<'_>, rate: Rate, now: u64, cost: u32) -> Single {
        let mut now = self.latest.advance(now);
        let Bucket { slot, word: cell } = bucket;
        loop {
            let word = Word::from_bits(cell.load(Ordering::Acquire));
            if !word.is_plain() {
                match self.settled(slot, now) {
                    Some(_) => continue,
                    None => return Single::Superseded,
                }
            }
            match word.fit(rate, now, cost) {
                Fit::Admitted(next) if replace(cell, word, next) => {
                    return Single::Admitted(next.balance(rate, now, 0));
                }
                Fit::Admitted(_) => {}
                Fit::Refused => {
                    let latest = self.latest.advance(now);
                    if latest == now {
                        return refused_by(word, rate, now, cost);
                    }
                    now = latest;
                }
            }
        }
    }

    fn charge_all(&self, charges: &[Charge], mut now: u64, cost: u32) -> Outcome {
        if charges.len() > MAX_CHARGES {
            return Outcome::Refused(Charged::default());
        }
        let Some(mut held) = self.hold(charges, now) else {
            return Outcome::Superseded;
        };
        let fit = |held: &HeldWord, now: u64| held.word.fit(charges[held.limit].rate, now, cost);
        if held.words().iter().any(|held| fit(held, now) == Fit::Refused) {
            // Whoever charged one of these words last may have read the clock later. As long as they are held, nobody does.
            now = self.latest.advance(now);
        }
        let refuses = |held: &HeldWord| !charges[held.limit].shadow && fit(held, now) == Fit::Refused;
        let refused = held.words().iter().any(refuses);
        let mut decided = Decided::new(!refused);
        for held in held.words() {
            let Charge { rate, shadow, .. } = charges[held.limit];
            match fit(held, now) {
                Fit::Admitted(next) if !refused => held.word = next,
                Fit::Refused if shadow => decided.would_refuse(held.limit),
                _ => {}
            }
            if !shadow {
                decided.consider(held.limit, held.word.balance(rate, now, if refused { cost } else { 0 }));
            }
        }
        let hopeless = |held: &&HeldWord| {
            let Charge { rate, shadow, .. } = charges[held.limit];
            !shadow && cost > rate.burst()
        };
        match held.words().iter().filter(hopeless).min_by_key(|held| held.limit) {
            Some(held) => {
                let balance = held.word.balance(charges[held.limit].rate, now, 0);
                decided.exceeds_burst(held.limit, balance)
            }
            None => decided.outcome(),
        }
    }
}

/// What a key's only limit says where `cost` does not fit.
#[inline]
fn refused_by(word: Word, rate: Rate, now: u64, cost: u32) -> Single {
    match cost > rate.burst() {
        true => Single::ExceedsBurst(word.balance(rate, now, 0)),
        false => Single::Refused(word.balance(rate, now, cost)),
    }
}
