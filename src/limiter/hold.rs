//! Waiting for a word, holding several, and taking over a balance from the slot of an old rate.

use std::collections::HashMap;
use std::sync::PoisonError;

use crate::limiter::charge::{Limiter, MAX_CHARGES, Predecessor};
use crate::limiter::outcome::Charge;
use crate::limiter::slots::Slots;
use crate::limiter::word::Word;
use crate::sync::{spin_loop, yield_now};

/// How often a locked word is looked at again before the processor is given away. The holder needs tens of
/// nanoseconds, unless the kernel has taken it off its core.
const SPINS: u32 = 64;

/// The locked words of one charge; written back, and so unlocked, however the charge ends.
pub(super) struct Held<'a> {
    slots: &'a Slots,
    words: [HeldWord; MAX_CHARGES],
    len: usize,
}

/// A word that nobody else can move, and what it is to be when it is let go.
#[derive(Clone, Copy)]
pub(super) struct HeldWord {
    /// Position of its limit among the charges.
    pub(super) limit: usize,
    slot: u32,
    pub(super) word: Word,
}

impl HeldWord {
    const NONE: Self = Self { limit: 0, slot: 0, word: Word::FULL };
}

impl Held<'_> {
    pub(super) fn words(&mut self) -> &mut [HeldWord] {
        &mut self.words[..self.len]
    }

    fn push(&mut self, word: HeldWord) {
        self.words[self.len] = word;
        self.len += 1;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for held in &self.words[..self.len] {
            self.slots.store(held.slot, held.word);
        }
    }
}

impl Limiter {
    /// Holds the words of all `charges`, at most [`MAX_CHARGES`], no two of the same slot; `None` if a newer snapshot
    /// has taken one over. In the order of their slots, whatever theirs is: two who want the same words would
    /// otherwise wait for each other.
    pub(super) fn hold(&self, charges: &[Charge], now: u64) -> Option<Held<'_>> {
        let mut order: [usize; MAX_CHARGES] = std::array::from_fn(|limit| limit);
        let order = order.get_mut(..charges.len())?;
        order.sort_unstable_by_key(|limit| charges[*limit].slot);
        let mut held = Held { slots: &self.slots, words: [HeldWord::NONE; MAX_CHARGES], len: 0 };
        for limit in order {
            let slot = charges[*limit].slot;
            held.push(HeldWord { limit: *limit, slot, word: self.lock(slot, now)? });
        }
        Some(held)
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
    pub(super) fn settled(&self, slot: u32, now: u64) -> Option<Word> {
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
        // Whoever charged the word last may have read the clock later; now that it is frozen, nobody does any more.
        let now = self.latest.advance(now);
        let balance = frozen.under(rate, new_rate, now);
        while self.slots.load(slot).inherits() && !self.slots.swap(slot, Word::INHERITS, balance) {}
    }
}

fn wait(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS) {
        yield_now();
    } else {
        spin_loop();
    }
}
