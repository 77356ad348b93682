//! What a source takes away that is refused for rows that cannot be understood: applied to the keys that are served, if
//! `source.apply_takeaways_of_refused` says so.

use std::collections::BTreeSet;

use crate::record::Digest;
use crate::reload::{Running, Settings};
use crate::snapshot::{Keys, Snapshot, Takeaways};

/// Most keys that refused sources take something away from, until one is accepted. It is a stopgap; more than this is a source that
/// has to be mended.
const MAX_TAKEN: usize = 100_000;

/// Ids that are told.
const NAMED: usize = 20;

/// What a refused source has taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Keys from which something was taken away for the first time.
    pub added: usize,
    /// Keys from which refused sources have taken something away since one was accepted, these among them.
    pub total: usize,
    /// Some of all of them, by id.
    pub first: Vec<Box<str>>,
    /// Why this source has taken nothing away.
    pub refused: Option<String>,
}

impl Running {
    /// Applies what the source of this reload takes away, if it was refused for rows that cannot be understood, and is to have
    /// an effect all the same. When this returns, that is in force on every connection, and on the disk if the disk takes it.
    pub(super) fn take_away(&mut self, settings: &Settings, force: bool) -> Option<Taken> {
        let (rows, served) = (self.refused_rows.take()?, self.current.clone()?);
        let (takeaways, taken) = self.weigh_takeaways(settings, &rows, &served, force);
        drop(rows);
        if taken.refused.is_none() && !takeaways.keys.is_empty() {
            served.take_away(takeaways.keys.iter().copied());
            let epochs = self.reloader.publisher.epochs();
            let epoch = epochs.advance();
            self.reloader.runtime.block_on(epochs.passed(epoch));
            self.taken_away.extend(takeaways.keys);
            if let Some(last_good) = &self.reloader.last_good {
                last_good.keep_taken_away(self.generation, &self.taken_away);
            }
        }
        Some(taken)
    }

    /// What the rows of a refused source would take away from the keys that are served, and what speaks against it.
    pub(super) fn weigh_takeaways(
        &self,
        settings: &Settings,
        rows: &Keys,
        served: &Snapshot,
        force: bool,
    ) -> (Takeaways, Taken) {
        let before = &self.taken_away.keys;
        let takeaways = rows.takeaways(served, self.reloader.clock.now().unix);
        let added = takeaways.keys.iter().filter(|(hash, _)| !before.contains_key(hash)).count();
        let total = before.len() + added;
        let refused = if total > MAX_TAKEN {
            Some(format!(
                "it takes access from {total} keys, and a refused source may from {MAX_TAKEN} at most"
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
                Taken { added, total, first: first_ids(served, hashes), refused: None }
            }
            Some(_) => {
                Taken { added: 0, total: before.len(), first: first_ids(served, before.keys()), refused }
            }
        };
        (takeaways, taken)
    }

    /// What refused sources have taken away by now, for `keyward status`.
    pub(super) fn all_taken(&self, latest: Option<&Taken>) -> Option<Taken> {
        let (keys, served) = (&self.taken_away.keys, self.current.as_ref()?);
        let refused = latest.and_then(|taken| taken.refused.clone());
        let taken = Taken { added: 0, total: keys.len(), first: first_ids(served, keys.keys()), refused };
        (taken != Taken::default()).then_some(taken)
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
