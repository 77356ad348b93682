//! Takeaways of refused sources: what the rows of a source that is refused for other rows revoke, disable or let end earlier is
//! applied to the keys that are served, if `source.apply_takeaways_of_refused` says so.

use std::collections::BTreeSet;

use crate::reload::{ReloadLoop, Settings};
use keyward_engine::record::Digest;
use keyward_engine::snapshot::{KeyTable, Snapshot, Takeaways};

/// Most keys that refused sources take something away from until a source is accepted. All of them are kept in memory, and in one
/// small file of the state directory. More than this is a source that has to be mended.
const MAX_TAKEN: usize = 100_000;

/// Key ids that are kept for reports: a screenful.
const NAMED: usize = 20;

/// A report of what refused sources have taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakeawayReport {
    /// Keys from which something was taken away for the first time.
    pub added: usize,
    /// Keys from which refused sources have taken something away since one was accepted, these among them.
    pub total: usize,
    /// Some of all of them, by id.
    pub first: Vec<Box<str>>,
    /// Why this source has taken nothing away.
    pub refused: Option<String>,
}

impl ReloadLoop {
    /// Applies the takeaways of the source of this reload, if it was refused for rows that cannot be understood and the settings
    /// ask for it. When this returns, they are in force on every connection, and on the disk unless the write failed.
    pub(super) fn apply_takeaways(&mut self, settings: &Settings, force: bool) -> Option<TakeawayReport> {
        let (rows, served) = (self.refused_rows.take()?, self.current.clone()?);
        let (takeaways, taken) = self.evaluate_takeaways(settings, &rows, &served, force);
        drop(rows);
        if taken.refused.is_none() && !takeaways.keys.is_empty() {
            served.take_away(takeaways.keys.iter().copied());
            let epochs = self.reloader.publisher.epochs();
            let epoch = epochs.advance();
            self.reloader.runtime.block_on(epochs.wait_passed(epoch));
            self.taken_away.extend(takeaways.keys);
            if let Some(last_good) = &self.reloader.last_good {
                last_good.keep_taken_away(self.generation, &self.taken_away);
            }
        }
        Some(taken)
    }

    /// The takeaways of the rows of a refused source from the keys that are served, and why they are not applied, if so.
    pub(super) fn evaluate_takeaways(
        &self,
        settings: &Settings,
        rows: &KeyTable,
        served: &Snapshot,
        force: bool,
    ) -> (Takeaways, TakeawayReport) {
        let before = &self.taken_away.keys;
        let takeaways = rows.takeaways(served, self.reloader.clock.now().unix, MAX_TAKEN);
        let added = takeaways.keys.iter().filter(|(hash, _)| !before.contains_key(hash)).count();
        let total = before.len() + added;
        let refused = if total > MAX_TAKEN {
            Some(format!(
                "refused sources would have taken access from {total} keys or more, and may from {MAX_TAKEN} at most"
            ))
        } else if force || takeaways.keys.is_empty() {
            None
        } else {
            let refusal = settings.policy.tolerance.refuses_takeaways(takeaways.share);
            refusal.map(|refusal| format!("{refusal}. If that is meant, reload with --force"))
        };
        let taken = match refused {
            None => {
                let hashes = before.keys().chain(takeaways.keys.iter().map(|(hash, _)| hash));
                TakeawayReport { added, total, first: first_ids(served, hashes), refused: None }
            }
            Some(_) => TakeawayReport {
                added: 0,
                total: before.len(),
                first: first_ids(served, before.keys()),
                refused,
            },
        };
        (takeaways, taken)
    }

    /// All that refused sources have taken away since a source was accepted, for `keyward status`.
    pub(super) fn all_taken(&self, latest: Option<&TakeawayReport>) -> Option<TakeawayReport> {
        let (keys, served) = (&self.taken_away.keys, self.current.as_ref()?);
        let refused = latest.and_then(|taken| taken.refused.clone());
        let taken =
            TakeawayReport { added: 0, total: keys.len(), first: first_ids(served, keys.keys()), refused };
        (taken != TakeawayReport::default()).then_some(taken)
    }

    /// A source was accepted: it says itself what is taken away. On the disk this is so when its keys are the last good ones.
    pub(super) fn forget_taken_away(&mut self) {
        self.taken_away.keys.clear();
    }
}

/// The first ids in their order: the keys are in none.
fn first_ids<'h>(served: &Snapshot, hashes: impl Iterator<Item = &'h Digest>) -> Vec<Box<str>> {
    let ids: BTreeSet<&str> = hashes.filter_map(|hash| Some(served.find(hash)?.key_id())).collect();
    ids.into_iter().take(NAMED).map(Into::into).collect()
}
