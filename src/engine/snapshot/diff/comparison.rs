//! Comparing two tables row by row, in parts that threads can share.

use std::collections::HashMap;
use std::ops::Range;

use crate::record::{FieldSet, Status};
use crate::snapshot::diff::example::{Example, Examples, MAX_EXAMPLES};
use crate::snapshot::diff::impact::{KeyImpact, NewState, is_usable};
use crate::snapshot::diff::policy_change::PolicyChange;
use crate::snapshot::diff::row::Row;
use crate::snapshot::diff::row_map::{RowMap, RowMatches};
use crate::snapshot::diff::{CompareOptions, Diff};
use crate::snapshot::key_table::{IdHasher, WINDOW};
use crate::snapshot::{KeyTable, Snapshot};

/// Rows of a part. Large enough to be worth handing to a thread, small enough for all threads to
/// finish at about the same time.
const PART_ROWS: usize = 1 << 15;

/// The most pairs of policies whose change a thread remembers. A part has no more pairs than rows.
const MAX_KNOWN_CHANGES: usize = PART_ROWS;

/// A comparison of an old table with a new one. The rows of the old table are divided into parts,
/// which any number of threads compare.
pub struct Comparison<'k> {
    before: &'k KeyTable,
    after: &'k KeyTable,
    matches: RowMatches,
    options: CompareOptions,
    /// Restrictions that rows of the old table have, or had before they were set aside, and that no
    /// row of the new table has a value for.
    missing: FieldSet,
}

impl<'k> Comparison<'k> {
    /// A comparison of `after` with `before`.
    pub fn new(before: &'k KeyTable, after: &'k KeyTable, options: CompareOptions) -> Self {
        let present_fields = before.present_fields.union(before.prior_restrictions);
        let missing = FieldSet::RESTRICTIONS.intersection(present_fields).difference(after.present_fields);
        Self { before, after, matches: RowMatches::none_of(after.len()), options, missing }
    }

    /// The parts. Each is to be compared once.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let rows = self.before.len();
        (0..rows.div_ceil(PART_ROWS)).map(move |part| part * PART_ROWS..rows.min((part + 1) * PART_ROWS))
    }

    /// A function that compares parts, for one thread.
    pub fn comparer(&self) -> impl FnMut(Range<usize>) -> Diff {
        let mut policy_changes = PolicyChanges::default();
        let mut after_numbers = Vec::with_capacity(WINDOW);
        move |part| {
            let mut diff = Diff::default();
            let mut next = part.start as u32;
            let mut before_numbers = (0..).skip(part.start);
            for window in self.before.entries.get(part).unwrap_or_default().chunks(WINDOW) {
                self.after.find_window(window, &mut next, &mut after_numbers);
                for ((before, after_number), before_number) in
                    window.iter().zip(&after_numbers).zip(&mut before_numbers)
                {
                    let before = Row { keys: self.before, entry: before, number: before_number };
                    let row = |number| {
                        Some(Row {
                            keys: self.after,
                            entry: self.after.entries.get(number as usize)?,
                            number,
                        })
                    };
                    self.count_row(&mut diff, before, after_number.and_then(row), &mut policy_changes);
                }
            }
            diff
        }
    }

    /// Compares all parts on this thread.
    pub(super) fn run(&self) -> Diff {
        let mut diff = Diff::default();
        self.parts().map(self.comparer()).for_each(|part| diff.append(part));
        diff
    }

    /// Completes the diff. `parts` are the diffs of all parts, appended in order.
    pub fn finish(self, parts: Diff) -> Diff {
        self.finish_with_matches(parts).0
    }

    /// [`finish`](Self::finish) for the snapshot `old`, whose table was compared. Also returns
    /// which rows it has.
    pub fn finish_with_row_map<'s>(self, parts: Diff, old: &'s Snapshot) -> (Diff, RowMap<'s>) {
        let (diff, matches) = self.finish_with_matches(parts);
        (diff, RowMap::known(old, matches))
    }

    fn finish_with_matches(self, parts: Diff) -> (Diff, RowMatches) {
        let Self { before, after, matches, .. } = self;
        let mut diff = parts;
        diff.added = after.len() - (before.len() - diff.removed);
        if diff.added > 0 {
            diff.examples.added = after.added_examples(matches.new_rows());
        }
        (diff, matches)
    }
}

impl Comparison<'_> {
    /// Counts what has become of the row `before`, and records where it is now.
    fn count_row(
        &self,
        diff: &mut Diff,
        before: Row<'_>,
        after: Option<Row<'_>>,
        policy_changes: &mut PolicyChanges,
    ) {
        let was_active = before.entry.status.of_row() == Status::Active;
        let Some(after) = after else {
            let removed = || before.example(Vec::new());
            count(&mut diff.removed, &mut diff.examples.removed, removed);
            if was_active {
                count(&mut diff.deactivated, &mut diff.examples.deactivated, removed);
            }
            let successor = if self.options.by_key_id { self.successor(before) } else { None };
            self.count_impact(diff, before, successor, policy_changes);
            return;
        };
        self.matches.set(after.number, before.number, before.key_id() != after.key_id());
        let same_policy = policy_changes.between(before, after).is_same;
        if !same_policy || !before.is_same_except_policy(after) {
            count(&mut diff.changed, &mut diff.examples.changed, || before.changed_to(after));
            diff.access_changed += usize::from(!same_policy || !before.has_same_names_and_validity(after));
        }
        if was_active && after.entry.status.of_row() != Status::Active {
            count(&mut diff.deactivated, &mut diff.examples.deactivated, || before.changed_to(after));
        }
        self.count_impact(diff, before, Some(after), policy_changes);
    }

    /// The row of the new table with the key id of `before`; preferably one that is usable.
    fn successor(&self, before: Row<'_>) -> Option<Row<'_>> {
        let row = |number: u32| {
            Some(Row { keys: self.after, entry: self.after.entries.get(number as usize)?, number })
        };
        let mut rows = self.after.rows_of_key(before.key_id()).filter_map(row);
        let first = rows.next()?;
        let is_usable = |row: &Row<'_>| is_usable(row.entry, self.options.now);
        Some(std::iter::once(first).chain(rows).find(is_usable).unwrap_or(first))
    }

    fn count_impact(
        &self,
        diff: &mut Diff,
        before: Row<'_>,
        after: Option<Row<'_>>,
        policy_changes: &mut PolicyChanges,
    ) {
        let now = self.options.now;
        let new_state = after.map(|after| NewState {
            policy_change: policy_changes.between(before, after),
            is_renamed: before.key_id() != after.key_id(),
            has_other_owner: before.owner() != after.owner(),
            has_lost_owner: !before.owner().is_empty() && after.owner().is_empty(),
            is_usable: is_usable(after.entry, now),
            expires_at: after.entry.expires_at.get(),
            is_set_aside: after.entry.status.is_set_aside(),
            present_fields: if before.entry.status.is_set_aside() {
                after.keys.restrictions(after.entry)
            } else {
                FieldSet::NONE
            },
        });
        let KeyImpact { stops, starts, loosened, changes } =
            diff.impact.add(before.entry, new_state, now, self.missing);
        let example = || {
            let example = match after {
                Some(after) => before.changed_to(after),
                None => before.example(Vec::new()),
            };
            Example { changes, ..example }
        };
        let Examples { stopping, starting, loosened: loosened_examples, .. } = &mut diff.examples;
        for (applies, examples) in [(stops, stopping), (starts, starting), (loosened, loosened_examples)] {
            if applies && examples.len() < MAX_EXAMPLES {
                examples.push(example());
            }
        }
    }
}

/// Counts one row, and keeps an example if it is among the first.
fn count(number: &mut usize, examples: &mut Vec<Example>, example: impl FnOnce() -> Example) {
    *number += 1;
    if examples.len() < MAX_EXAMPLES {
        examples.push(example());
    }
}

/// The changes between pairs of policies. Many rows have the same pair, which is compared once.
#[derive(Default)]
struct PolicyChanges {
    known: HashMap<(u32, u32), PolicyChange, IdHasher>,
    /// The pair of the previous row. In most sources the next row has the same.
    last: Option<((u32, u32), PolicyChange)>,
}

impl PolicyChanges {
    fn between(&mut self, before: Row<'_>, after: Row<'_>) -> PolicyChange {
        let numbers = (before.entry.policy, after.entry.policy);
        match self.last {
            Some((last, change)) if last == numbers => change,
            _ => {
                let compare = || {
                    let (plans, plans_after) = (&before.keys.plans, &after.keys.plans);
                    PolicyChange::new(before.policy(), plans, after.policy(), plans_after)
                };
                // Every key may have a policy of its own, so the map could grow as large as the table.
                if self.known.len() >= MAX_KNOWN_CHANGES {
                    self.known.clear();
                }
                let change = *self.known.entry(numbers).or_insert_with(compare);
                self.last = Some((numbers, change));
                change
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::KeyRecord;
    use crate::snapshot::test_record::{keys, numbered};

    #[test]
    fn number_of_known_changes_is_limited() {
        let with_own_policy = |number: usize| {
            let environment = &*format!("e{number}").leak();
            KeyRecord { environment, ..numbered(number) }
        };
        let keys = keys(&(0..MAX_KNOWN_CHANGES + 9).map(with_own_policy).collect::<Vec<_>>());
        let mut changes = PolicyChanges::default();
        for (entry, number) in keys.entries.iter().zip(0..) {
            let row = Row { keys: &keys, entry, number };
            assert!(changes.between(row, row).is_same, "row {number}");
            assert!(changes.known.len() <= MAX_KNOWN_CHANGES, "row {number}");
        }
        assert_eq!(changes.known.len(), 9);
    }
}
