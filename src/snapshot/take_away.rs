//! What an export takes away that was refused for rows that cannot be understood: of its other rows, those that revoke, disable or
//! expire a key. They are marked in the snapshot that is served and go with it: the next one is that of an export that was
//! accepted, and says all of it itself or means something else.
//!
//! Nothing is given back, and nothing that the row says besides is believed.

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

/// What an export takes away from the keys of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takeaways {
    /// From which, and what.
    pub keys: Vec<(Digest, Takeaway)>,
    /// Keys that would work without these and earlier takeaways, and those of them that are affected by one: at once, or when an
    /// earlier end has come.
    pub share: Share,
}

impl Keys {
    /// What these rows take away from the keys of `served` beyond what has been taken away from them, at the Unix second `now`.
    /// Keys are found by their hashes.
    pub fn takeaways(&self, served: &Snapshot, now: u32) -> Takeaways {
        let mut takeaways = Takeaways::default();
        for before in &served.table().entries {
            if works_without_takeaways(before, now) {
                takeaways.share.of += 1;
                takeaways.share.count += usize::from(before.status.is_taken_away());
            }
        }
        for row in &self.entries {
            // Most rows take nothing away.
            if row.status.of_row() == Status::Active && row.expires_at.get() == u32::MAX {
                continue;
            }
            let before = served.table().find_exactly(&row.digest);
            let Some(before) = before.and_then(|id| served.table().entries.get(id as usize)) else {
                continue;
            };
            if let Some(takeaway) = takeaway(before, row) {
                let is_counted = works_without_takeaways(before, now) && !before.status.is_taken_away();
                takeaways.share.count += usize::from(is_counted);
                takeaways.keys.push((row.digest, takeaway));
            }
        }
        takeaways
    }
}

/// What a row takes away from the key as it is.
fn takeaway(before: &Entry, row: &Entry) -> Option<Takeaway> {
    match (before.status.without_operator(), row.status.of_row()) {
        (Status::Active | Status::Disabled, Status::Revoked) => Some(Takeaway::Revoked),
        (Status::Active, Status::Disabled) => Some(Takeaway::Disabled),
        _ => {
            let end = row.expires_at.get();
            (end < before.expires_at.get()).then_some(Takeaway::End(end))
        }
    }
}

/// An end that was brought forward counts as none: what it was before is not known any more.
fn works_without_takeaways(entry: &Entry, now: u32) -> bool {
    let is_within = entry.not_before <= now && (now < entry.expires_at.get() || entry.status.has_taken_end());
    entry.status.of_row() == Status::Active && is_within
}

impl Snapshot {
    /// Marks what is taken away. Returns the ids of the keys, as far as it has them. Ends no epoch: a snapshot that is served
    /// needs one.
    pub fn take_away<'s>(&'s self, takeaways: impl IntoIterator<Item = (Digest, Takeaway)>) -> Vec<&'s str> {
        let keys = takeaways.into_iter().filter_map(|(digest, takeaway)| {
            let key = self.find(&digest)?;
            // The end first: a bit that says that it was brought forward is never ahead of it.
            if let Takeaway::End(end) = takeaway {
                key.entry.expires_at.bring_forward(end);
            }
            key.entry.status.take_away(takeaway);
            Some(key.key_id())
        });
        keys.collect()
    }
}
