//! Charging, debiting and refunding: all the limits of a key, or none.
//!
//! A single token bucket is charged with one compare-and-swap. Several limits are locked in slot
//! order, which rules out deadlock, then decided on values that no other thread can change, and then
//! written back.
//!
//! Charging one limit after the other and undoing the charges when a later limit refuses would be
//! wrong in both directions. For a moment, other threads would be refused a cost that was never
//! admitted; and a bucket that became full in that moment would be given the cost twice.

use arrayvec::ArrayVec;
use jiff::tz::TimeZone;

use crate::limiter::balance::Balance;
use crate::limiter::bucket::{self, Bucket as BucketAt};
use crate::limiter::buckets::Buckets;
use crate::limiter::lock::{LockedBucket, LockedBuckets};
use crate::limiter::outcome::{
    Charge, ChargeReport, LimitBalance, LimitBalances, MAX_CHARGES, Outcome, ReportBuilder, SingleOutcome,
};
use crate::limiter::rate::Rate;
use crate::limiter::rule::{Misfit, Rule, RuleAt};
use crate::limiter::slots::compare_exchange;
use crate::limiter::word::Word;
use crate::now::Now;
use crate::sync::{AtomicU64, Ordering, prefetch};

/// The balances of all limits, shared by all workers.
pub struct Limiter {
    pub(super) buckets: Buckets,
    /// How often balances were reset.
    resets: std::sync::atomic::AtomicU64,
}

/// A bucket whose slot has been looked up. The address of a slot never changes.
#[derive(Clone, Copy)]
pub struct Bucket<'l> {
    slot: u32,
    word: &'l AtomicU64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

impl Limiter {
    /// A limiter without buckets. A [`SlotAllocator`](crate::limiter::SlotAllocator) creates them.
    pub fn new() -> Self {
        Self { buckets: Buckets::new(), resets: std::sync::atomic::AtomicU64::new(0) }
    }

    /// Charges every limit in `charges` its cost, or none of them. A shadow limit that has no room
    /// for its cost is skipped and reported. If all costs are 0, this charges nothing and reports
    /// the balance. Adds the balances of the limits to `balances`; if all costs are 0, only those of the
    /// enforced ones.
    ///
    /// No two limits may have the same slot. More than [`MAX_CHARGES`] limits are refused, unless
    /// all costs are 0: reading balances locks nothing, so it has no such bound.
    pub fn charge(&self, charges: &[Charge], now: Now, balances: Option<&mut LimitBalances>) -> Outcome {
        match charges {
            _ if charges.iter().all(|charge| charge.cost == 0) => self.peek(charges, now, balances),
            [Charge { slot, rule: Rule::Bucket { rate, overdraft }, cost, shadow: false }]
                if balances.is_none() =>
            {
                let Some(bucket) = self.bucket(*slot) else { return Outcome::Superseded };
                loop {
                    let outcome = match self.charge_single(bucket, *rate, now.nanoseconds, *cost) {
                        SingleOutcome::Admitted(balance) => Outcome::Admitted(ChargeReport::single(balance)),
                        SingleOutcome::Superseded => Outcome::Superseded,
                        SingleOutcome::Misfit => match self.refuse_single(bucket, *rate, *overdraft, *cost) {
                            Some(refused) => refused,
                            None => continue,
                        },
                    };
                    return outcome;
                }
            }
            many => self.charge_all(many, now, balances),
        }
    }

    /// Returns its cost to every limit in `charges`, including shadow limits, as far as it has been
    /// spent; or to none of them ([`Outcome::Superseded`]), because the caller will retry and must
    /// not refund a limit twice. [`Outcome::Admitted`] names the enforced limit with the least
    /// remaining. More than [`MAX_CHARGES`] limits are not refunded: [`Outcome::Refused`], with an
    /// empty report.
    ///
    /// The limiter cannot check that the cost was charged before. That is the caller's
    /// responsibility.
    pub fn refund(&self, charges: &[Charge], now: Now, balances: Option<&mut LimitBalances>) -> Outcome {
        self.settle(charges, now, balances, |rule, word, cost| rule.refund(word, cost))
    }

    /// Charges every limit in `charges`, including shadow limits, its cost, as far as that fits above
    /// the limit's floor. Otherwise as [`refund`](Self::refund).
    pub fn debit(&self, charges: &[Charge], now: Now, balances: Option<&mut LimitBalances>) -> Outcome {
        self.settle(charges, now, balances, |rule, word, cost| rule.debit(word, cost))
    }

    fn settle(
        &self,
        charges: &[Charge],
        now: Now,
        mut balances: Option<&mut LimitBalances>,
        change: fn(&RuleAt<'_>, Word, u32) -> (Word, u32),
    ) -> Outcome {
        if charges.len() > MAX_CHARGES {
            return Outcome::Refused(ChargeReport::default());
        }
        let mut locked = LockedBuckets::new(&self.buckets);
        if self.buckets.lock_all(charges, now, &mut locked).is_none() {
            return Outcome::Superseded;
        }
        let now = self.buckets.latest_time.advance_to(now);
        let mut report = ReportBuilder::new(true);
        for bucket in locked.buckets() {
            let Charge { rule, cost, shadow, .. } = charges[bucket.position];
            let rule = rule.at(now, &self.buckets.calendar);
            let (word, changed) = change(&rule, bucket.word, cost);
            bucket.word = word;
            let balance = rule.balance(word, 0);
            if !shadow {
                report.add_enforced(bucket.position, changed, balance, &mut balances);
            } else {
                add_shadow(bucket.position, changed, balance, &mut balances);
            }
        }
        report.admitted()
    }

    /// The latest time of any charge, debit, refund or peek, in nanoseconds. An unchanged time does
    /// not prove that no charge has happened: all requests of a batch are charged at the same time.
    pub fn latest_time(&self) -> u64 {
        self.buckets.latest_time.advance(0)
    }

    /// How often an operator has changed balances. A change is not a charge, and need not advance
    /// [`latest_time`](Self::latest_time).
    pub fn resets(&self) -> u64 {
        self.resets.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Counts a reset that has been carried out.
    pub(super) fn count_reset(&self) {
        self.resets.fetch_add(1, std::sync::atomic::Ordering::Release);
    }

    /// Sets the time zone of calendar windows.
    pub fn set_time_zone(&self, zone: TimeZone) {
        self.buckets.calendar.set_time_zone(zone);
    }

    /// The latest Unix second that a calendar window was used at. Windows do not go back behind it.
    pub fn latest_unix(&self) -> u32 {
        self.buckets.calendar.latest()
    }

    /// Raises the time that calendar windows do not go back behind, to a Unix second.
    pub fn advance_calendar(&self, unix: u32) {
        self.buckets.calendar.advance(unix);
    }

    /// Looks up the bucket in `slot` and prefetches it for a charge that will follow. Returns
    /// `None` if the slot has never been allocated.
    #[inline]
    pub fn bucket(&self, slot: u32) -> Option<Bucket<'_>> {
        let word = self.buckets.slots.get(slot)?;
        prefetch(word);
        Some(Bucket { slot, word })
    }

    fn peek(&self, charges: &[Charge], now: Now, mut balances: Option<&mut LimitBalances>) -> Outcome {
        let mut report = ReportBuilder::new(true);
        for (position, charge) in charges.iter().enumerate().filter(|(_, charge)| !charge.shadow) {
            let Some(word) = self.buckets.wait_unlocked(charge.slot, now) else {
                // The caller will retry.
                balances.into_iter().for_each(ArrayVec::clear);
                return Outcome::Superseded;
            };
            // The word may have been charged at a later time than `now`.
            let now = self.buckets.latest_time.advance_to(now);
            let balance = charge.rule.at(now, &self.buckets.calendar).balance(word, 0);
            report.add_enforced(position, 0, balance, &mut balances);
        }
        report.admitted()
    }

    /// The fast path of [`charge`](Self::charge): a key with one limit, which is an enforced token
    /// bucket, and a cost that is not 0.
    #[inline(always)]
    pub(crate) fn charge_single(
        &self,
        bucket: Bucket<'_>,
        rate: Rate,
        nanoseconds: u64,
        cost: u32,
    ) -> SingleOutcome {
        let mut now = self.buckets.latest_time.advance(nanoseconds);
        let Bucket { slot, word } = bucket;
        loop {
            let current = Word::from_bits(word.load(Ordering::Acquire));
            if !current.is_unflagged() {
                match self.buckets.wait_unlocked(slot, Now::default().with_nanoseconds(now)) {
                    Some(_) => continue,
                    None => return SingleOutcome::Superseded,
                }
            }
            match bucket::try_charge(current, rate, now, cost) {
                Some((next, debt)) if compare_exchange(word, current, next) => {
                    return SingleOutcome::Admitted(bucket::balance_after_charge(debt, rate));
                }
                Some(_) => {}
                None => {
                    let latest = self.buckets.latest_time.advance(now);
                    if latest == now {
                        return SingleOutcome::Misfit;
                    }
                    now = latest;
                }
            }
        }
    }

    /// The outcome for a key's only limit when its cost does [not fit](SingleOutcome::Misfit). `None`
    /// if it has to be charged again: the cost may fit now, or the word had wrapped around and has
    /// been replaced.
    // Apart from the fast path, which would have to save more registers.
    #[inline(never)]
    pub(crate) fn refuse_single(
        &self,
        bucket: Bucket<'_>,
        rate: Rate,
        overdraft: u32,
        cost: u32,
    ) -> Option<Outcome> {
        let Bucket { slot, word } = bucket;
        let current = Word::from_bits(word.load(Ordering::Acquire));
        if !current.is_unflagged() {
            return None;
        }
        // Read after the word, so it is not earlier than the word's last charge.
        let now = self.buckets.latest_time.advance(0);
        let bucket = BucketAt::new(rate, overdraft, now);
        let unwrapped = bucket.unwrapped(current);
        if unwrapped != current {
            // If another thread changes the word first, it has replaced it too.
            self.buckets.slots.compare_exchange(slot, current, unwrapped);
            return None;
        }
        if cost > rate.burst() {
            let balance = Balance { retry_after: 0, ..bucket.balance(current, 0) };
            return Some(Outcome::ExceedsBurst(ChargeReport::single(balance)));
        }
        // If the cost fits, it has to be charged.
        let balance = bucket.balance(current, cost);
        (balance.retry_after > 0).then(|| Outcome::Refused(ChargeReport::single(balance)))
    }

    fn charge_all(&self, charges: &[Charge], now: Now, mut balances: Option<&mut LimitBalances>) -> Outcome {
        if charges.len() > MAX_CHARGES {
            return Outcome::Refused(ChargeReport::default());
        }
        let mut locked = LockedBuckets::new(&self.buckets);
        if self.buckets.lock_all(charges, now, &mut locked).is_none() {
            return Outcome::Superseded;
        }
        // One of these words may have been charged at a later time than `now`. While they are
        // locked, that cannot happen again.
        let now = self.buckets.latest_time.advance_to(now);
        let try_charge = |bucket: &LockedBucket| {
            let Charge { rule, cost, .. } = charges[bucket.position];
            let rule = rule.at(now, &self.buckets.calendar);
            (rule, rule.charge(bucket.word, cost))
        };
        let mut tried: ArrayVec<(RuleAt<'_>, Result<Word, Misfit>), MAX_CHARGES> = ArrayVec::new();
        // The severest misfit of an enforced limit decides; among equal ones, the first.
        let mut refusal: Option<(Misfit, usize)> = None;
        for bucket in locked.buckets() {
            let (rule, charged) = try_charge(bucket);
            if let Err(misfit) = charged
                && !charges[bucket.position].shadow
                && refusal.is_none_or(|(severest, first)| (misfit, first) > (severest, bucket.position))
            {
                refusal = Some((misfit, bucket.position));
            }
            tried.push((rule, charged));
        }
        let mut report = ReportBuilder::new(refusal.is_none());
        for (bucket, (rule, charged)) in locked.buckets().iter_mut().zip(&tried) {
            let Charge { cost, shadow, .. } = charges[bucket.position];
            let (wanted, changed) = match charged {
                Ok(next) if refusal.is_none() => {
                    bucket.word = *next;
                    (0, cost)
                }
                Err(_) if shadow => {
                    report.add_shadow_refusal(bucket.position);
                    (0, 0)
                }
                Err(Misfit::Wait) => (cost, 0),
                _ => (0, 0),
            };
            if shadow && balances.is_none() {
                continue;
            }
            let balance = rule.balance(bucket.word, wanted);
            if shadow {
                add_shadow(bucket.position, changed, balance, &mut balances);
            } else {
                report.add_enforced(bucket.position, changed, balance, &mut balances);
            }
        }
        match refusal {
            None => report.admitted(),
            Some((Misfit::Wait, _)) => report.refused(),
            Some((misfit, position)) => {
                let word = locked.buckets().iter().find(|bucket| bucket.position == position);
                let rule = charges[position].rule.at(now, &self.buckets.calendar);
                let balance = word.map(|bucket| rule.balance(bucket.word, 0)).unwrap_or_default();
                report.refused_by(position, balance, misfit)
            }
        }
    }
}

/// Adds a shadow limit to the balances.
fn add_shadow(position: usize, changed: u32, balance: Balance, balances: &mut Option<&mut LimitBalances>) {
    if let Some(balances) = balances {
        // A charge has no more limits than there is room for.
        let _ = balances.try_push(LimitBalance { position, changed, shadow: true, balance });
    }
}
