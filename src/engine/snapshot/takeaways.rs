//! Takeaways: the access that a refused source still takes away.
//!
//! A source can be refused because of bad rows. Its other rows may revoke a key, disable it or
//! bring its expiry forward; nothing else in them takes effect, and nothing is granted. Takeaways
//! apply to the snapshot in force and end with it, because the next snapshot comes from an
//! accepted source.

use serde::{Deserialize, Serialize};

use crate::record::{Digest, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::{Key, KeyTable, Share, Snapshot};

/// What is taken away from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takeaway {
    /// The key is revoked.
    Revoked,
    /// The key is disabled.
    Disabled,
    /// The key expires at this Unix second.
    #[serde(rename = "end")] // As the first version has written it.
    ExpiresAt(u32),
}

impl Takeaway {
    /// The stricter of two takeaways.
    #[must_use]
    pub fn or_stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Revoked, _) | (_, Self::Revoked) => Self::Revoked,
            (Self::Disabled, _) | (_, Self::Disabled) => Self::Disabled,
            (Self::ExpiresAt(one), Self::ExpiresAt(another)) => Self::ExpiresAt(one.min(another)),
        }
    }
}

/// The takeaways of a refused source from the keys of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takeaways {
    /// The digest of each key, and what is taken away from it.
    pub keys: Vec<(Digest, Takeaway)>,
    /// Out of the keys that would be usable without any takeaway: those affected by these takeaways
    /// or earlier ones, either now or when an earlier expiry is reached.
    pub share: Share,
}

impl KeyTable {
    /// Returns what these rows take away from the keys of `served`, beyond earlier takeaways, at
    /// the Unix second `now`.
    ///
    /// Keys are found by digest. Collection stops after `limit` + 1 takeaways: more than `limit`
    /// are refused as a whole.
    pub fn takeaways(&self, served: &Snapshot, now: u32, limit: usize) -> Takeaways {
        let mut takeaways = Takeaways::default();
        for before in &served.table().entries {
            if is_usable_without_takeaways(before, now) {
                takeaways.share.of += 1;
                takeaways.share.count += usize::from(before.status.is_taken_away());
            }
        }
        for row in &self.entries {
            // A row that is set aside states nothing reliable.
            if row.status.is_set_aside() {
                continue;
            }
            // Most rows take nothing away.
            if row.status.of_row() == Status::Active && row.expires_at.get() == u32::MAX {
                continue;
            }
            let before = served.table().find_exactly(&row.digest);
            let Some(before) = before.and_then(|number| served.table().entries.get(number as usize)) else {
                continue;
            };
            if let Some(takeaway) = takeaway(before, row, now) {
                let is_counted = is_usable_without_takeaways(before, now) && !before.status.is_taken_away();
                takeaways.share.count += usize::from(is_counted);
                takeaways.keys.push((row.digest, takeaway));
                if takeaways.keys.len() > limit {
                    break;
                }
            }
        }
        takeaways
    }
}

/// What a row takes away from the key in its present state. An earlier expiry has no effect on a
/// disabled or revoked key.
fn takeaway(before: &Entry, row: &Entry, now: u32) -> Option<Takeaway> {
    let expires_at = row.expires_at.get();
    match (before.status.without_operator(), row.status.of_row()) {
        (Status::Active | Status::Disabled, Status::Revoked) => Some(Takeaway::Revoked),
        (Status::Active, Status::Disabled) => Some(Takeaway::Disabled),
        // Nothing can be taken away from an expired key.
        (Status::Active, Status::Active)
            if expires_at < before.expires_at.get() && now < before.expires_at.get() =>
        {
            Some(Takeaway::ExpiresAt(expires_at))
        }
        _ => None,
    }
}

/// Whether a key would be usable if nothing had been taken away from it. As for the guard, a key
/// that an operator has revoked is not usable.
///
/// If the expiry was brought forward, the key counts as unexpired, because the original expiry is
/// not stored.
fn is_usable_without_takeaways(entry: &Entry, now: u32) -> bool {
    let is_within =
        entry.not_before <= now && (now < entry.expires_at.get() || entry.status.has_taken_expiry());
    entry.status.of_row() == Status::Active && !entry.status.is_revoked_by_operator() && is_within
}

impl Snapshot {
    /// Applies takeaways to the entries. If the snapshot is published, an
    /// [overlay](crate::snapshot::Overlay) must cover their rows in every view that is in use.
    pub fn apply_takeaways(&self, takeaways: impl IntoIterator<Item = (Digest, Takeaway)>) {
        for (digest, takeaway) in takeaways {
            let Some(Key { entry, .. }) = self.find(&digest) else { continue };
            match takeaway {
                Takeaway::Revoked => entry.status.take_revoked(),
                Takeaway::Disabled => entry.status.take_disabled(),
                Takeaway::ExpiresAt(expires_at) => entry.status.take_expiry(&entry.expires_at, expires_at),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::KeyRecord;
    use crate::snapshot::{Builder, SnapshotMeta};

    const NOW: u32 = 1_800_000_000;

    fn keys(rows: &[(Status, u32)]) -> KeyTable {
        let mut builder = Builder::new(7, 0);
        for (number, (status, expires_at)) in (0_u8..).zip(rows) {
            let key_id = format!("k{number}");
            let record = KeyRecord {
                status: *status,
                expires_at: *expires_at,
                ..KeyRecord::new([number; 32], &key_id)
            };
            builder.add(1, &record).expect("a good row");
        }
        builder.finish()
    }

    fn snapshot(rows: &[(Status, u32)]) -> Snapshot {
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        keys(rows).into_snapshot(&mut allocator.begin(&limiter), None, SnapshotMeta::default()).expect("room")
    }

    fn severity(status: Status) -> u8 {
        status as u8
    }

    /// Covers every pair of a row in force and a refused row.
    #[test]
    fn access_after_a_takeaway_is_never_wider_than_before_or_than_the_row() {
        let statuses = [Status::Active, Status::Disabled, Status::Revoked];
        let rows: Vec<_> =
            statuses.into_iter().flat_map(|s| [u32::MAX, NOW + 9, NOW - 9].map(|end| (s, end))).collect();
        let pairs: Vec<_> =
            rows.iter().flat_map(|before| rows.iter().map(move |after| (*before, *after))).collect();
        let (before, after): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        for is_revoked in [false, true] {
            let served = snapshot(&before);
            served.keys().for_each(|key| key.set_revoked(is_revoked));
            let takeaways = keys(&after).takeaways(&served, NOW, 100);
            served.apply_takeaways(takeaways.keys.iter().copied());
            served.keys().for_each(|key| key.set_revoked(false));
            for ((before, after), key) in pairs.iter().zip(served.keys()) {
                let narrower = severity(before.0).max(severity(after.0));
                assert_eq!(severity(key.status()), narrower, "{before:?} -> {after:?}");
                let is_over = key.expires_at() <= NOW;
                if narrower == 0 {
                    assert_eq!(key.expires_at(), before.1.min(after.1), "{before:?} -> {after:?}");
                }
                assert!(!is_over || before.1 <= NOW || after.1 <= NOW, "{before:?} -> {after:?}");
                assert_eq!(key.status_of_row(), before.0, "the row's own status is kept");
            }
            let again = keys(&after).takeaways(&served, NOW, 100);
            assert!(again.keys.is_empty(), "{:?}", again.keys);
        }
    }

    #[test]
    fn share_is_of_usable_keys_and_includes_earlier_takeaways() {
        let rows = [(Status::Active, u32::MAX); 10];
        let served = snapshot(&rows);
        let with = |range: std::ops::Range<usize>, row| {
            let mut rows = rows;
            rows[range].fill(row);
            keys(&rows).takeaways(&served, NOW, 100)
        };
        let first = with(0..3, (Status::Revoked, u32::MAX));
        assert_eq!((first.keys.len(), first.share), (3, Share { count: 3, of: 10 }));
        served.apply_takeaways(first.keys);
        let second = with(2..6, (Status::Active, NOW + 1));
        assert_eq!((second.keys.len(), second.share), (3, Share { count: 6, of: 10 }), "k2 counts once");
        served.apply_takeaways(second.keys);
        assert_eq!(with(6..7, (Status::Disabled, u32::MAX)).share, Share { count: 7, of: 10 });
    }

    #[test]
    fn key_revoked_by_an_operator_is_not_counted_in_the_share() {
        let served = snapshot(&[(Status::Active, u32::MAX); 4]);
        let rows = [Status::Revoked, Status::Revoked, Status::Active, Status::Active];
        let refused = keys(&rows.map(|status| (status, u32::MAX)));
        served.keys().take(1).for_each(|key| key.set_revoked(true));
        let takeaways = refused.takeaways(&served, NOW, 100);
        assert_eq!(takeaways.share, Share { count: 1, of: 3 });
        assert_eq!(takeaways.keys.len(), 2, "the takeaway is recorded in case the revocation is undone");
    }

    /// More takeaways than the limit are refused as a whole, so the caller has to see that there are
    /// more.
    #[test]
    fn collection_stops_only_past_its_limit() {
        let served = snapshot(&[(Status::Active, u32::MAX); 5]);
        let refused = keys(&[(Status::Revoked, u32::MAX); 5]);
        for (limit, collected) in [(0, 1), (3, 4), (4, 5), (5, 5), (9, 5)] {
            assert_eq!(refused.takeaways(&served, NOW, limit).keys.len(), collected, "{limit}");
        }
    }

    #[test]
    fn stricter_takeaway_is_the_one_that_leaves_less_access() {
        let ascending =
            [Takeaway::ExpiresAt(9), Takeaway::ExpiresAt(5), Takeaway::Disabled, Takeaway::Revoked];
        for (index, stricter) in ascending.into_iter().enumerate() {
            for weaker in &ascending[..=index] {
                assert_eq!(weaker.or_stricter(stricter), stricter);
                assert_eq!(stricter.or_stricter(*weaker), stricter);
            }
        }
    }

    /// The last good keys can have an earlier expiry than the keys that the takeaway was taken from.
    #[test]
    fn takeaway_does_not_postpone_an_expiry() {
        let served = snapshot(&[(Status::Active, NOW + 5), (Status::Active, NOW + 9)]);
        let earlier = Takeaway::ExpiresAt(NOW + 7);
        served.apply_takeaways([([0; 32], earlier), ([1; 32], earlier)]);
        let expiries: Vec<_> = served.keys().map(|key| key.expires_at()).collect();
        assert_eq!(expiries, [NOW + 5, NOW + 7]);
    }

    #[test]
    fn revoked_row_stays_revoked_under_a_weaker_takeaway() {
        let served = snapshot(&[(Status::Revoked, u32::MAX), (Status::Active, u32::MAX)]);
        served.apply_takeaways([([0; 32], Takeaway::Disabled), ([1; 32], Takeaway::Disabled)]);
        let statuses: Vec<_> = served.keys().map(|key| key.status()).collect();
        assert_eq!(statuses, [Status::Revoked, Status::Disabled]);
    }
}
