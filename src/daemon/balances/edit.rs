//! What an operator does to balances: shows and resets those of a key, and sets the calendar back.
//!
//! All of it waits for a reload in progress, and then applies to the snapshot in force.

use std::sync::PoisonError;

use keyward_admin::message::{CalendarReset, KeyBalances, LimitBalance, LimitKind};
use keyward_engine::limiter::{Balance, LimitBuckets, MAX_CHARGES, NEVER, RuleKind};
use keyward_engine::record::LimitRef;

use super::BalanceSource;

/// Nanoseconds in a millisecond.
const MILLISECOND: u64 = 1_000_000;

/// Why balances cannot be shown or reset. The text does not repeat what was asked for: it may be a
/// key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalanceError {
    /// There is no snapshot.
    #[error("no keys are loaded yet")]
    NotReady,
    /// No key has this id.
    #[error("no key in force has this id (an id, never the key itself)")]
    UnknownKey,
    /// The key does not have this limit.
    #[error("the key has no limit of this name; {}", limit_names(.0))]
    UnknownLimit(Vec<String>),
    /// A reload has taken over the balances.
    #[error("a reload is moving the balances; try again")]
    Moving,
}

fn limit_names(names: &[String]) -> String {
    if names.is_empty() { "it has no limits".to_owned() } else { format!("it has: {}", names.join(", ")) }
}

impl BalanceSource {
    /// The balances of the key `key_id`.
    ///
    /// # Errors
    /// See [`BalanceError`].
    pub fn of_key(&self, key_id: &str) -> Result<KeyBalances, BalanceError> {
        self.with_key(key_id, None, false)
    }

    /// Makes the limits of the key `key_id` unspent, or only the one of the name `limit`. An owner's limit
    /// is reset for all keys of the owner that have it as the same kind, under all its rules. Later
    /// requests see it, and the next save contains it.
    ///
    /// # Errors
    /// See [`BalanceError`].
    pub fn reset(&self, key_id: &str, limit: Option<&str>) -> Result<KeyBalances, BalanceError> {
        self.with_key(key_id, limit, true)
    }

    fn with_key(
        &self,
        key_id: &str,
        only: Option<&str>,
        is_reset: bool,
    ) -> Result<KeyBalances, BalanceError> {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshots.current().ok_or(BalanceError::NotReady)?;
        let key = snapshot.find_by_id(key_id).ok_or(BalanceError::UnknownKey)?;
        let all = || key.limit_buckets().take(MAX_CHARGES);
        let wanted: Vec<_> = all().filter(|(limit, ..)| only.is_none_or(|only| only == limit.name)).collect();
        if only.is_some() && wanted.is_empty() {
            return Err(BalanceError::UnknownLimit(all().map(|(limit, ..)| limit.name.to_owned()).collect()));
        }
        let buckets: Vec<LimitBuckets<'_>> = wanted.iter().map(|(_, buckets, _)| *buckets).collect();
        let now = self.clock.now();
        // What is charged after a reset does not belong to its report.
        let balances = if is_reset {
            allocator.reset(&self.limiter, &buckets, now)
        } else {
            allocator.balances(&self.limiter, &buckets, now)
        };
        let balances = balances.ok_or(BalanceError::Moving)?;
        let limits = wanted.iter().zip(balances).map(|((limit, _, is_shared), balance)| {
            let owner = is_shared.then(|| key.owner().to_owned());
            if is_reset { after_reset(*limit, owner, balance) } else { current(*limit, owner, balance) }
        });
        Ok(KeyBalances { key_id: key.key_id().to_owned(), limits: limits.collect() })
    }

    /// Seconds that the calendar is ahead of the system's clock: the clock was set back, and windows
    /// do not go back.
    pub fn calendar_ahead_s(&self) -> u32 {
        // Read before the clock, which is therefore not behind because of the order.
        let latest = self.limiter.latest_unix();
        latest.saturating_sub(self.clock.now().unix)
    }

    /// Sets the calendar back to the system's clock. No worker may still use an earlier reading of it.
    pub fn set_calendar_back(&self) -> CalendarReset {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = self.limiter.latest_unix();
        let now = self.clock.now();
        let snapshot = self.snapshots.current();
        let live = snapshot.iter().flat_map(|snapshot| snapshot.buckets()).map(|(limit, _)| limit);
        let ahead_s = latest.saturating_sub(now.unix);
        let moved = if ahead_s > 0 { allocator.set_calendar_back(&self.limiter, live, now) } else { 0 };
        CalendarReset { ahead_s, moved }
    }
}

fn current(limit: LimitRef<'_>, owner: Option<String>, balance: Balance) -> LimitBalance {
    LimitBalance {
        name: limit.name.to_owned(),
        kind: match limit.rule.kind() {
            RuleKind::Bucket => LimitKind::TokenBucket,
            RuleKind::Window => LimitKind::CalendarQuota,
            RuleKind::Credits => LimitKind::Credits,
        },
        limit: limit.rule.limit(),
        overdraft: limit.rule.overdraft(),
        balance: balance.available,
        reset_ms: (balance.reset != NEVER).then(|| balance.reset.div_ceil(MILLISECOND)),
        owner,
        shadow: limit.shadow,
        before: None,
    }
}

fn after_reset(limit: LimitRef<'_>, owner: Option<String>, before: Balance) -> LimitBalance {
    let available = i64::try_from(limit.rule.limit()).unwrap_or(i64::MAX);
    let reset = if before.reset == NEVER { NEVER } else { 0 };
    let unspent = Balance { available, retry_after: 0, reset };
    LimitBalance { before: Some(before.available), ..current(limit, owner, unspent) }
}
