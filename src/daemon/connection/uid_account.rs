//! What the connections of one uid use together, and its quotas.
//!
//! The connections of a uid may be on different workers. Without quotas, nothing is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use keyward_engine::limiter::Rate;
use tokio::time::Instant;

/// Quotas of one uid for all its connections together. `None`: no quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidQuotas {
    /// Maximum number of bytes that connections hold: incomplete requests and unsent answers.
    pub buffered_bytes: Option<usize>,
    /// Maximum number of requests whose answers wait for the peer to read. All requests of one read
    /// count until the last of their answers is sent.
    pub in_flight: Option<usize>,
    /// Maximum rate of requests.
    pub rate: Option<Rate>,
}

impl UidQuotas {
    /// No quotas.
    pub const UNLIMITED: Self = Self { buffered_bytes: None, in_flight: None, rate: None };
}

/// What the connections of one uid use.
pub struct UidAccount {
    uid: u32,
    quotas: UidQuotas,
    buffered_bytes: AtomicUsize,
    in_flight: AtomicUsize,
    /// The time from which nanoseconds are counted.
    origin: Instant,
    /// The nanosecond at which the bucket of `quotas.rate` is full: its theoretical arrival time (GCRA).
    full_at: AtomicU64,
}

/// A connection would exceed a quota of its uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QuotaExceededError {
    /// The quota.
    pub(super) quota: usize,
}

/// Bytes and requests that a connection holds. Dropping it gives them back.
pub(super) struct Held {
    /// `None`: they are not counted.
    account: Option<Arc<UidAccount>>,
    bytes: usize,
    requests: usize,
}

impl UidAccount {
    /// An account of a uid that uses nothing.
    pub fn new(uid: u32, quotas: UidQuotas) -> Arc<Self> {
        Arc::new(Self {
            uid,
            quotas,
            buffered_bytes: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            origin: Instant::now(),
            full_at: AtomicU64::new(0),
        })
    }

    /// The uid.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Charges the rate with requests that were answered.
    pub(super) fn charge(&self, requests: usize) {
        let Some(rate) = self.quotas.rate.filter(|_| requests > 0) else { return };
        let now = self.now();
        let cost = refill_time(rate, requests as u64);
        // The closure always returns a value.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            Some(full_at.max(now).saturating_add(cost))
        });
    }

    /// How long the uid's connections have to wait before they may read further requests.
    pub(super) fn delay(&self) -> Option<Duration> {
        let rate = self.quotas.rate?;
        let full_at = self.full_at.load(Ordering::Relaxed);
        // At this time the bucket has refilled by one request.
        let next = full_at.saturating_add(refill_time(rate, 1));
        let next = next.saturating_sub(refill_time(rate, rate.burst().into()));
        next.checked_sub(self.now()).filter(|wait| *wait > 0).map(Duration::from_nanos)
    }

    /// Whether the account can be forgotten, once there is no connection: the bucket is full.
    pub fn is_unused(&self) -> bool {
        self.full_at.load(Ordering::Relaxed) <= self.now()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The nanoseconds that `requests` take to refill, rounded up. They saturate.
fn refill_time(rate: Rate, requests: u64) -> u64 {
    let ticks = u128::from(rate.period().get()) * u128::from(requests);
    u64::try_from(ticks.div_ceil(rate.scale().get().into())).unwrap_or(u64::MAX)
}

impl Held {
    /// A connection of the account that holds nothing.
    pub(super) fn new(account: &Arc<UidAccount>) -> Self {
        let UidQuotas { buffered_bytes, in_flight, rate: _ } = account.quotas;
        let is_counted = buffered_bytes.is_some() || in_flight.is_some();
        Self { account: is_counted.then(|| Arc::clone(account)), bytes: 0, requests: 0 }
    }

    /// Sets what the connection holds. To hold less never fails.
    ///
    /// # Errors
    /// When a quota leaves no room. The account never exceeds it, not even for a moment: another
    /// connection would be refused.
    pub(super) fn set(&mut self, bytes: usize, requests: usize) -> Result<(), QuotaExceededError> {
        let Some(account) = &self.account else { return Ok(()) };
        let UidQuotas { buffered_bytes, in_flight, rate: _ } = account.quotas;
        change(&account.buffered_bytes, &mut self.bytes, bytes, buffered_bytes)?;
        change(&account.in_flight, &mut self.requests, requests, in_flight)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It never fails.
        let _ = self.set(0, 0);
    }
}

/// Changes a connection's part of `total` from `held` to `new`.
fn change(
    total: &AtomicUsize,
    held: &mut usize,
    new: usize,
    quota: Option<usize>,
) -> Result<(), QuotaExceededError> {
    if let Some(more) = new.checked_sub(*held) {
        let quota = quota.unwrap_or(usize::MAX);
        let has_room = |total: usize| total.checked_add(more).filter(|total| *total <= quota);
        total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room)
            .map_err(|_| QuotaExceededError { quota })?;
    } else {
        total.fetch_sub(*held - new, Ordering::Relaxed);
    }
    *held = new;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn held_bytes_and_requests_are_limited_and_given_back() {
        let quotas = UidQuotas { buffered_bytes: Some(100), in_flight: Some(10), rate: None };
        let account = UidAccount::new(1, quotas);
        let hold = |bytes, requests| {
            let mut held = Held::new(&account);
            held.set(bytes, requests).map(|()| held)
        };
        let mut first = hold(60, 1).expect("within both quotas");
        assert_eq!(hold(41, 1).err(), Some(QuotaExceededError { quota: 100 }));
        assert_eq!(hold(1, 10).err(), Some(QuotaExceededError { quota: 10 }));
        let mut second = hold(40, 9).expect("a refused connection holds nothing");
        assert!(hold(1, 0).is_err());
        assert!(hold(0, 0).is_ok() && first.set(60, 1).is_ok());
        assert!(first.set(61, 1).is_err() && second.set(40, 10).is_err());
        // What a connection holds counts once.
        first.set(20, 1).expect("less");
        second.set(80, 1).expect("room");
        first.set(10, 9).expect("room");
        drop((first, second));
        assert!(hold(100, 10).is_ok());
    }

    #[test]
    fn account_without_quotas_limits_nothing() {
        let account = UidAccount::new(1, UidQuotas::UNLIMITED);
        let mut held = [Held::new(&account), Held::new(&account)];
        assert!(held.iter_mut().all(|held| held.set(usize::MAX, usize::MAX).is_ok()));
        account.charge(usize::MAX);
        assert_eq!(account.delay(), None);
        assert!(account.is_unused());
    }

    #[test]
    fn rate_delays_after_its_burst_until_one_request_has_refilled() {
        let rate = Rate::new(10, 3_600 * SECOND, 5).expect("a rate");
        let account = UidAccount::new(1, UidQuotas { rate: Some(rate), ..UidQuotas::UNLIMITED });
        account.charge(4);
        assert_eq!(account.delay(), None);
        assert!(!account.is_unused());
        account.charge(1);
        let delay = account.delay().expect("the bucket is empty");
        assert!((350..=360).contains(&delay.as_secs()), "{delay:?}");
        account.charge(10);
        let delay = account.delay().expect("the bucket is below zero");
        assert!((11 * 360 - 10..=11 * 360).contains(&delay.as_secs()), "{delay:?}");
    }

    #[test]
    fn account_that_was_idle_has_its_burst_and_no_more() {
        let rate = Rate::new(10, 3_600 * SECOND, 5).expect("a rate");
        let mut account = UidAccount::new(1, UidQuotas { rate: Some(rate), ..UidQuotas::UNLIMITED });
        // In an hour, twice the burst refills.
        Arc::get_mut(&mut account).expect("not shared").origin -= Duration::from_secs(3_600);
        account.charge(5);
        let delay = account.delay().expect("the bucket is empty");
        assert!((350..=360).contains(&delay.as_secs()), "{delay:?}");
    }

    #[test]
    fn requests_beyond_what_the_time_can_count_are_delayed() {
        let rate = Rate::new(1, 365 * 86_400 * SECOND, 1).expect("a rate");
        let account = UidAccount::new(1, UidQuotas { rate: Some(rate), ..UidQuotas::UNLIMITED });
        account.charge(usize::MAX);
        assert!(account.delay().is_some());
    }
}
