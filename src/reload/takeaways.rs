//! What a source takes away that is refused for rows that cannot be understood: applied to the keys that are served, if
//! `source.apply_takeaways_of_refused` says so.

use std::sync::Arc;

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
    /// Keys from which something was taken away that had not been taken before.
    pub added: usize,
    /// The first of them, by id.
    pub first: Vec<Box<str>>,
    /// Keys from which refused sources have taken something away since one was accepted.
    pub total: usize,
    /// Why nothing was taken away.
    pub refused: Option<String>,
}

impl Running {
    /// Applies what the source of this reload takes away, if it was refused for rows that cannot be understood, and is to have
    /// an effect all the same. When this returns, that is in force on every connection, and on the disk if the disk takes it.
    pub(super) fn take_away(&mut self, settings: &Settings, force: bool) -> Option<Taken> {
        let (rows, served) = (self.refused_rows.take()?, self.current.clone()?);
        let (takeaways, mut taken) = self.weigh_takeaways(settings, &rows, &served, force);
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
        taken.total = self.taken_away.keys.len();
        Some(taken)
    }

    /// What the rows of a refused source would take away from the keys that are served, and what speaks against it.
    pub(super) fn weigh_takeaways(
        &self,
        settings: &Settings,
        rows: &Keys,
        served: &Arc<Snapshot>,
        force: bool,
    ) -> (Takeaways, Taken) {
        let takeaways = rows.takeaways(served, self.reloader.clock.now().unix);
        let total = self.taken_away.keys.len() + takeaways.keys.len();
        let refused = if total > MAX_TAKEN {
            Some(format!(
                "it takes access from {total} keys, and a refused source may from {MAX_TAKEN} at most"
            ))
        } else if force || takeaways.keys.is_empty() {
            None
        } else {
            settings.policy.tolerance.refuses_takeaways(takeaways.share).map(|refusal| refusal.to_string())
        };
        let effective = if refused.is_some() { &[][..] } else { &takeaways.keys };
        let ids = effective.iter().take(NAMED).filter_map(|(hash, _)| served.find(hash));
        let first = ids.map(|key| key.key_id().into()).collect();
        let added = effective.len();
        let taken = Taken { added, first, total: self.taken_away.keys.len(), refused };
        (takeaways, taken)
    }

    /// What refused sources have taken away by now, for `keyward status`.
    pub(super) fn all_taken(&self, latest: Option<&Taken>) -> Option<Taken> {
        let keys = &self.taken_away.keys;
        let refused = latest.and_then(|taken| taken.refused.clone());
        if keys.is_empty() && refused.is_none() {
            return None;
        }
        let ids = keys.keys().filter_map(|hash| self.current.as_ref()?.find(hash));
        let mut first: Vec<Box<str>> = ids.map(|key| key.key_id().into()).collect();
        first.sort_unstable();
        first.dedup();
        first.truncate(NAMED);
        Some(Taken { added: keys.len(), first, total: keys.len(), refused })
    }

    /// A source was accepted: it says itself what is taken away.
    pub(super) fn forget_taken_away(&mut self) {
        if self.taken_away.keys.is_empty() {
            return;
        }
        self.taken_away.keys.clear();
        if let Some(last_good) = &self.reloader.last_good {
            last_good.keep_taken_away(self.generation, &self.taken_away);
        }
    }
}
