//! Takeaways: what an export that is refused for rows that cannot be understood takes away from the keys that are served. Its other
//! rows may revoke or disable a key, or bring its end forward; nothing else in them has an effect, and nothing is given back.
//!
//! Takeaways are marked in the snapshot that is served, and end with it: the next snapshot is that of an export that was accepted,
//! which is believed in full.

use serde::{Deserialize, Serialize};

use crate::record::{Digest, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::{Keys, Share, Snapshot};

/// What is taken away from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takeaway {
    /// It is revoked.
    Revoked,
    /// It is disabled.
    Disabled,
    /// It ends at this Unix second.
    End(u32),
}

impl Takeaway {
    /// The narrower of two.
    #[must_use]
    pub fn or_narrower(self, other: Self) -> Self {
        match (self, other) {
            (Self::Revoked, _) | (_, Self::Revoked) => Self::Revoked,
            (Self::Disabled, _) | (_, Self::Disabled) => Self::Disabled,
            (Self::End(one), Self::End(another)) => Self::End(one.min(another)),
        }
    }
}

/// The takeaways of an export from the keys of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takeaways {
    /// The hash of each key, and what is taken away from it.
    pub keys: Vec<(Digest, Takeaway)>,
    /// Out of the keys that would work without any takeaway: those that these or earlier takeaways apply to, at once or when an end
    /// that was brought forward has come.
    pub share: Share,
}

impl Keys {
    /// What these rows take away from the keys of `served` beyond what has been taken away from them, at the Unix second `now`.
    /// Keys are found by their hashes. Of more than `most`, only one more is told.
    pub fn takeaways(&self, served: &Snapshot, now: u32, most: usize) -> Takeaways {
        let mut takeaways = Takeaways::default();
        for before in &served.table().entries {
            if works_without_takeaways(before, now) {
                takeaways.share.of += 1;
                takeaways.share.count += usize::from(before.status.is_taken_away());
            }
        }
        for row in &self.entries {
            // Most rows take nothing away, and those that are set aside say nothing.
            if row.status.is_set_aside() {
                continue;
            }
            if row.status.of_row() == Status::Active && row.expires_at.get() == u32::MAX {
                continue;
            }
            let before = served.table().find_exactly(&row.digest);
            let Some(before) = before.and_then(|id| served.table().entries.get(id as usize)) else {
                continue;
            };
            if let Some(takeaway) = takeaway(before, row, now) {
                let is_counted = works_without_takeaways(before, now) && !before.status.is_taken_away();
                takeaways.share.count += usize::from(is_counted);
                takeaways.keys.push((row.digest, takeaway));
                if takeaways.keys.len() > most {
                    break;
                }
            }
        }
        takeaways
    }
}

/// What a row takes away from the key as it is. An earlier end changes nothing about a key that is disabled or revoked.
fn takeaway(before: &Entry, row: &Entry, now: u32) -> Option<Takeaway> {
    let end = row.expires_at.get();
    match (before.status.without_operator(), row.status.of_row()) {
        (Status::Active | Status::Disabled, Status::Revoked) => Some(Takeaway::Revoked),
        (Status::Active, Status::Disabled) => Some(Takeaway::Disabled),
        // One that has expired is out of force.
        (Status::Active, Status::Active)
            if end < before.expires_at.get() && now < before.expires_at.get() =>
        {
            Some(Takeaway::End(end))
        }
        _ => None,
    }
}

/// Whether a key would work if nothing had been taken away from it. One that an operator has revoked does not, as for the guard.
///
/// An end that was brought forward counts as none: the end before it is not known any more.
fn works_without_takeaways(entry: &Entry, now: u32) -> bool {
    let is_within = entry.not_before <= now && (now < entry.expires_at.get() || entry.status.has_taken_end());
    entry.status.of_row() == Status::Active && !entry.status.is_by_operator() && is_within
}

impl Snapshot {
    /// Marks what is taken away. If the snapshot is served, the caller ends a publication epoch after it.
    pub fn take_away(&self, takeaways: impl IntoIterator<Item = (Digest, Takeaway)>) {
        for (digest, takeaway) in takeaways {
            let Some(key) = self.find(&digest) else { continue };
            // First the end, then the bit that says that it was brought forward.
            if let Takeaway::End(end) = takeaway {
                if key.entry.status.has_end_of_row(key.entry.expires_at.get()) {
                    key.entry.status.note_end_of_row();
                }
                key.entry.expires_at.bring_forward(end);
            }
            key.entry.status.take_away(takeaway);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::KeyRecord;
    use crate::snapshot::{Builder, Stamp};

    const NOW: u32 = 1_800_000_000;

    fn keys(rows: &[(Status, u32)]) -> Keys {
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
        keys(rows).publishable(&mut allocator.begin(&limiter), None, Stamp::default()).expect("room")
    }

    fn severity(status: Status) -> u8 {
        status as u8
    }

    /// Every pair of rows, from one to the other.
    #[test]
    fn what_is_in_force_afterwards_is_never_wider_than_before_or_than_the_row() {
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
            served.take_away(takeaways.keys.iter().copied());
            served.keys().for_each(|key| key.set_revoked(false));
            for ((before, after), key) in pairs.iter().zip(served.keys()) {
                let narrower = severity(before.0).max(severity(after.0));
                assert_eq!(severity(key.status()), narrower, "{before:?} -> {after:?}");
                let is_over = key.expires_at() <= NOW;
                if narrower == 0 {
                    assert_eq!(key.expires_at(), before.1.min(after.1), "{before:?} -> {after:?}");
                }
                assert!(!is_over || before.1 <= NOW || after.1 <= NOW, "{before:?} -> {after:?}");
                assert_eq!(key.status_of_row(), before.0, "what the row says is kept");
            }
            let again = keys(&after).takeaways(&served, NOW, 100);
            assert!(again.keys.is_empty(), "{:?}", again.keys);
        }
    }

    #[test]
    fn share_is_of_the_keys_that_would_work_and_has_earlier_takeaways_in_it() {
        let rows = [(Status::Active, u32::MAX); 10];
        let served = snapshot(&rows);
        let with = |range: std::ops::Range<usize>, row| {
            let mut rows = rows;
            rows[range].fill(row);
            keys(&rows).takeaways(&served, NOW, 100)
        };
        let first = with(0..3, (Status::Revoked, u32::MAX));
        assert_eq!((first.keys.len(), first.share), (3, Share { count: 3, of: 10 }));
        served.take_away(first.keys);
        let second = with(2..6, (Status::Active, NOW + 1));
        assert_eq!((second.keys.len(), second.share), (3, Share { count: 6, of: 10 }), "k2 counts once");
        served.take_away(second.keys);
        assert_eq!(with(6..7, (Status::Disabled, u32::MAX)).share, Share { count: 7, of: 10 });
    }

    #[test]
    fn key_that_an_operator_has_revoked_counts_as_neither_working_nor_stopping() {
        let served = snapshot(&[(Status::Active, u32::MAX); 4]);
        let rows = [Status::Revoked, Status::Revoked, Status::Active, Status::Active];
        let refused = keys(&rows.map(|status| (status, u32::MAX)));
        served.keys().take(1).for_each(|key| key.set_revoked(true));
        let takeaways = refused.takeaways(&served, NOW, 100);
        assert_eq!(takeaways.share, Share { count: 1, of: 3 });
        assert_eq!(
            takeaways.keys.len(),
            2,
            "it is taken away all the same, for when the revocation is taken back"
        );
    }

    #[test]
    fn row_that_says_revoked_stays_revoked_under_a_takeaway_of_another_generation() {
        let served = snapshot(&[(Status::Revoked, u32::MAX), (Status::Active, u32::MAX)]);
        served.take_away([([0; 32], Takeaway::Disabled), ([1; 32], Takeaway::Disabled)]);
        let statuses: Vec<_> = served.keys().map(|key| key.status()).collect();
        assert_eq!(statuses, [Status::Revoked, Status::Disabled]);
    }
}
