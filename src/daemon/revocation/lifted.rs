//! Revocations that a source would lift, because it gives the rows of their targets other names.
//!
//! A revocation applies to a key id or to an owner. An export that loses its `owner` column, or that
//! renames an owner, would let the keys of that owner work again, although nothing says that they may.
//! So the guard compares the names of the rows that are revoked with those that they would have.

use std::collections::BTreeSet;

use keyward_engine::snapshot::{CompareOptions, KeyTable, NamedRow};

use super::list::List;
use super::{LoadedList, Revocations};

/// Key ids that are kept as examples.
const MAX_EXAMPLES: usize = 3;

/// Keys that would no longer be revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiftedRevocations {
    /// The number of key ids.
    pub count: usize,
    /// The first of them: the ids that the keys have had so far.
    pub first: Vec<Box<str>>,
}

impl LiftedRevocations {
    fn of<'k>(rows: impl Iterator<Item = NamedRow<'k>>) -> Self {
        let mut key_ids: BTreeSet<&str> = rows.map(|row| row.key_id).collect();
        let count = key_ids.len();
        let first = std::iter::from_fn(|| key_ids.pop_first()).take(MAX_EXAMPLES).map(Into::into).collect();
        Self { count, first }
    }
}

impl List {
    /// The revocations that `new` would lift from rows of `old`.
    fn lifted_by(&self, new: &KeyTable, old: &KeyTable, options: CompareOptions) -> LiftedRevocations {
        self.lifted_of(self, new, old, options)
    }

    /// The same for some of the targets of this list. All rows are scanned for owners, once.
    pub(super) fn lifted_of(
        &self,
        targets: &Self,
        new: &KeyTable,
        old: &KeyTable,
        options: CompareOptions,
    ) -> LiftedRevocations {
        let of_keys = targets.key_ids().flat_map(|key_id| old.named_rows_of_key(key_id));
        let scan = || old.named_rows_of_owners(|owner| targets.covers_owner(owner));
        let rows = of_keys.chain(targets.has_owners().then(scan).into_iter().flatten());
        LiftedRevocations::of(rows.filter(|row| self.is_lifted(*row, new, options)))
    }

    /// Whether a row of `new` admits the client of `row`, and no revocation covers it.
    fn is_lifted(&self, row: NamedRow<'_>, new: &KeyTable, options: CompareOptions) -> bool {
        let mut successors = new.live_successors(row, options);
        successors.any(|row| !self.covers_key_id(row.key_id) && !self.covers_owner(row.owner))
    }
}

impl Revocations {
    /// The revocations that `new` would lift from rows of `old`. Commands go on meanwhile:
    /// [`MarkedSwap::lifted_by`](super::MarkedSwap::lifted_by) compares what they have added. The
    /// caller ends with that swap, or with [`forget_changes`](Self::forget_changes).
    pub fn lifted_by(&self, new: &KeyTable, old: &KeyTable, options: CompareOptions) -> LiftedRevocations {
        self.watch_changes().lifted_by(new, old, options)
    }
}

impl LoadedList {
    /// The revocations that `new` would lift from rows of `old`.
    pub fn lifted_by(&self, new: &KeyTable, old: &KeyTable, options: CompareOptions) -> LiftedRevocations {
        self.list.lifted_by(new, old, options)
    }
}
