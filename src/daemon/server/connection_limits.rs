//! The number of open connections, in total and for each uid, their limits, and the accounts of the
//! uids.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::connection::{UidAccount, UidQuotas};

/// Maximum numbers of open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionLimits {
    /// Of all peers.
    pub(super) total: usize,
    /// Of the peers with one uid.
    pub(super) per_uid: usize,
}

impl ConnectionLimits {
    /// `per_uid`: the configured limit. Without one, an eighth of `total` is reserved for other
    /// uids.
    pub(super) fn new(total: usize, per_uid: Option<usize>) -> Self {
        Self { total, per_uid: per_uid.unwrap_or(total - total / 8).min(total) }
    }
}

/// The open connections of this process.
#[derive(Clone)]
pub(super) struct OpenConnections {
    limits: ConnectionLimits,
    quotas: UidQuotas,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by_uid: BTreeMap<u32, UidConnections>,
}

struct UidConnections {
    count: usize,
    account: Arc<UidAccount>,
}

/// Counts an open connection until it is dropped.
pub(super) struct ConnectionGuard {
    account: Arc<UidAccount>,
    counts: Arc<Mutex<Counts>>,
}

/// Which limit leaves no room for a further connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// All connections are in use.
    Total,
    /// The uid uses as many connections as one uid may.
    PerUid,
}

impl OpenConnections {
    pub(super) fn new(limits: ConnectionLimits, quotas: UidQuotas) -> Self {
        Self { limits, quotas, counts: Arc::default() }
    }

    /// The limits.
    pub(super) fn limits(&self) -> ConnectionLimits {
        self.limits
    }

    /// Counts a further connection of a peer with this uid.
    ///
    /// # Errors
    /// When a limit leaves no room for it.
    pub(super) fn add(&self, uid: u32) -> Result<ConnectionGuard, LimitReached> {
        let mut counts = lock(&self.counts);
        if counts.total >= self.limits.total {
            return Err(LimitReached::Total);
        }
        if !counts.by_uid.contains_key(&uid) {
            // An account outlives its connections until its rate allows a whole burst again.
            counts.by_uid.retain(|_, uid| uid.count > 0 || !uid.account.is_unused());
        }
        let new = || UidConnections { count: 0, account: UidAccount::new(uid, self.quotas) };
        let of_uid = counts.by_uid.entry(uid).or_insert_with(new);
        if of_uid.count >= self.limits.per_uid {
            return Err(LimitReached::PerUid);
        }
        of_uid.count += 1;
        let account = Arc::clone(&of_uid.account);
        counts.total += 1;
        Ok(ConnectionGuard { account, counts: Arc::clone(&self.counts) })
    }
}

impl ConnectionGuard {
    /// The account of the peer's uid.
    pub(super) fn account(&self) -> &Arc<UidAccount> {
        &self.account
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.total -= 1;
        if let Some(of_uid) = counts.by_uid.get_mut(&self.account.uid()) {
            of_uid.count -= 1;
        }
    }
}

/// The counts are valid whenever the lock is free: nothing panics while it is held.
fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighth_of_the_connections_is_reserved_for_other_uids_by_default() {
        for (total, per_uid) in [(1, 1), (7, 7), (8, 7), (100, 88), (4096, 3584)] {
            assert_eq!(ConnectionLimits::new(total, None), ConnectionLimits { total, per_uid });
        }
    }

    #[test]
    fn configured_limit_is_lowered_to_the_total() {
        assert_eq!(ConnectionLimits::new(10, Some(3)).per_uid, 3);
        assert_eq!(ConnectionLimits::new(10, Some(20)).per_uid, 10);
    }

    #[test]
    fn uid_at_its_limit_leaves_connections_for_others() {
        let open = OpenConnections::new(ConnectionLimits::new(8, None), UidQuotas::UNLIMITED);
        let mut guards: Vec<_> = (0..7).map(|_| open.add(1).expect("below the limit")).collect();
        assert_eq!(open.add(1).err(), Some(LimitReached::PerUid));
        let other = open.add(2).expect("reserved");
        assert_eq!(open.add(2).err(), Some(LimitReached::Total));
        guards.pop();
        assert!(open.add(1).is_ok() && open.add(2).is_ok());
        drop((guards, other));
        drop(open.add(3));
        let counts = lock(&open.counts);
        assert_eq!((counts.total, counts.by_uid.len()), (0, 1), "unused accounts are forgotten");
    }
}
