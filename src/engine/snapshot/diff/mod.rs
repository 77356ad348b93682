//! Comparing a new table with the one in force, before it is published: counts, a few examples, and
//! which rows both have.
//!
//! Rows are compared with rows: an operator's revocations do not count as changes. What the changes
//! mean for access is evaluated in [`impact`]. One [`Comparison`] serves a reload, a reload that is
//! only checked, and the comparison of two files. It can run on several threads, and its [`RowMap`]
//! later saves the look-ups for the buckets.

use crate::record::FieldSet;
use crate::snapshot::entry::Entry;
use crate::snapshot::{KeyTable, Snapshot};

mod access_change;
mod comparison;
mod counts;
mod example;
mod impact;
mod policy_change;
mod row;
mod row_map;

pub use access_change::{AccessChange, AccessChanges};
pub use comparison::Comparison;
pub use counts::ChangeCounts;
pub use example::{Difference, DigestPrefix, Example, Examples, MAX_EXAMPLES};
pub(super) use impact::is_within;
pub use impact::{Impact, Share};
pub use row_map::RowMap;

/// How many rows a new table adds, removes and changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Rows with a digest that is new.
    pub added: usize,
    /// Rows with a digest that is gone.
    pub removed: usize,
    /// Rows that differ from the old row with the same digest.
    pub changed: usize,
    /// Changed rows that differ in more than their metadata. The owner counts: it may be revoked.
    #[serde(skip)]
    pub access_changed: usize,
    /// Rows that were active and no longer are: removed, disabled or revoked. Most of them are
    /// counted above too.
    #[serde(rename = "revoked")]
    pub deactivated: usize,
    /// What the changes mean for access.
    #[serde(skip)]
    pub impact: Impact,
    /// The first rows of each kind.
    #[serde(skip)]
    pub examples: Examples,
}

impl Diff {
    /// Adds what was counted for the rows that follow. The added rows are only known in the end.
    pub fn append(&mut self, next: Self) {
        self.removed += next.removed;
        self.changed += next.changed;
        self.access_changed += next.access_changed;
        self.deactivated += next.deactivated;
        self.impact.append(&next.impact);
        let Examples { added: _, removed, changed, deactivated, stopping, starting, loosened } =
            &mut self.examples;
        for (examples, next) in [
            (removed, next.examples.removed),
            (changed, next.examples.changed),
            (deactivated, next.examples.deactivated),
            (stopping, next.examples.stopping),
            (starting, next.examples.starting),
            (loosened, next.examples.loosened),
        ] {
            examples.extend(next.into_iter().take(MAX_EXAMPLES - examples.len()));
        }
    }

    /// All counts.
    pub fn counts(&self) -> ChangeCounts {
        let Self { added, removed, changed, deactivated, ref impact, .. } = *self;
        let (stopping, starting, loosened) = (impact.stopping(), impact.starting(), impact.loosened());
        ChangeCounts { added, removed, changed, deactivated, stopping, starting, loosened }
    }

    /// Whether a key may do less by the new table than by the old one.
    pub fn may_take_away(&self) -> bool {
        (self.removed, self.access_changed, self.deactivated) != (0, 0, 0)
    }

    /// Whether the tables are equal, except for the order of their rows.
    pub fn is_unchanged(&self) -> bool {
        (self.added, self.removed, self.changed) == (0, 0, 0)
    }
}

/// How two tables are compared.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    /// The Unix second at which both tables are evaluated.
    pub now: u32,
    /// Whether a key whose digest is gone is looked up by its key id. Needed after a change of
    /// pepper, which changes every digest.
    pub by_key_id: bool,
}

impl KeyTable {
    /// Returns what publishing this table after `old` would change, and which of its rows `old`
    /// has. Runs on this thread.
    pub fn compare<'s>(&self, old: Option<&'s Snapshot>, options: CompareOptions) -> (Diff, RowMap<'s>) {
        match old {
            Some(snapshot) => {
                let comparison = Comparison::new(snapshot.table(), self, options);
                let parts = comparison.run();
                comparison.finish_with_row_map(parts, snapshot)
            }
            None => (self.diff_from(None, options), RowMap::unknown(None)),
        }
    }

    /// Returns what differs between `old` and this table. Without `old`, every row is new. Runs on
    /// this thread.
    pub fn diff_from(&self, old: Option<&Self>, options: CompareOptions) -> Diff {
        if let Some(old) = old {
            let comparison = Comparison::new(old, self, options);
            let parts = comparison.run();
            return comparison.finish(parts);
        }
        let mut diff = Diff { added: self.len(), ..Diff::default() };
        diff.examples.added = self.added_examples(0..);
        diff
    }

    /// The restrictions that a row has a value for.
    pub(super) fn restrictions(&self, entry: &Entry) -> FieldSet {
        let policy = self.policies.at(entry.policy);
        let plan_limits = policy_change::limits_of(&self.plans, policy.plan());
        impact::row_fields(entry).union(policy_change::policy_fields(policy, plan_limits))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::{KeyRecord, Status};
    use crate::snapshot::test_record::{keys, limits, networks, numbered, origins};

    /// 2026-11-21.
    const AT: CompareOptions = CompareOptions { now: 1_795_255_200, by_key_id: false };

    fn plain(number: usize) -> KeyRecord<'static> {
        numbered(number)
    }

    fn with_status(number: usize, status: Status) -> KeyRecord<'static> {
        KeyRecord { status, ..plain(number) }
    }

    fn ids(examples: &[Example]) -> Vec<&str> {
        examples.iter().map(|example| &*example.key_id).collect()
    }

    #[test]
    fn every_row_is_added_to_nothing() {
        let diff = keys(&[plain(1), plain(2)]).diff_from(None, AT);
        assert_eq!((diff.added, diff.removed, diff.changed, diff.deactivated), (2, 0, 0, 0));
        assert_eq!(ids(&diff.examples.added), ["k1", "k2"]);
        let same = keys(&[plain(1), plain(2)]).diff_from(Some(&keys(&[plain(2), plain(1)])), AT);
        assert!(same.is_unchanged(), "the order of rows does not matter");
    }

    #[test]
    fn each_kind_is_counted_and_has_examples() {
        let old = keys(&[plain(1), plain(2), with_status(3, Status::Disabled), plain(4), plain(5)]);
        let new = keys(&[
            plain(9),
            with_status(2, Status::Revoked),
            plain(5),
            KeyRecord { owner: "acme", ..plain(4) },
            plain(8),
        ]);
        let Diff { added, removed, changed, deactivated, examples, .. } = new.diff_from(Some(&old), AT);
        assert_eq!((added, removed, changed, deactivated), (2, 2, 2, 2));
        assert_eq!(ids(&examples.added), ["k9", "k8"], "in the order of the new export");
        assert_eq!(ids(&examples.removed), ["k1", "k3"]);
        assert_eq!(ids(&examples.changed), ["k2", "k4"]);
        assert_eq!(ids(&examples.deactivated), ["k1", "k2"], "a disabled key was not active");
        let status = Difference::between("status", "active", "revoked");
        assert_eq!(examples.deactivated[1].differences, [status]);
        assert_eq!(examples.changed[1].differences, [Difference::between("owner", "", "acme")]);
        assert_eq!(examples.removed[0].hash.to_string(), "00000000");
    }

    #[test]
    fn only_changes_of_access_may_take_away() {
        let may_take_away = |before: KeyRecord<'_>, after: &[KeyRecord<'_>]| {
            keys(after).diff_from(Some(&keys(&[before])), AT).may_take_away()
        };
        assert!(!may_take_away(plain(1), &[KeyRecord { metadata: "{}", ..plain(1) }, plain(2)]));
        assert!(may_take_away(plain(1), &[plain(2)]));
        for changed in [
            with_status(1, Status::Revoked),
            KeyRecord { key_id: "k2", ..plain(1) },
            KeyRecord { owner: "acme", ..plain(1) },
            KeyRecord { not_before: 1_767_225_600, ..plain(1) },
            KeyRecord { expires_at: 1_798_761_600, ..plain(1) },
            KeyRecord { environment: "e", ..plain(1) },
            KeyRecord { plan: "p", ..plain(1) },
            KeyRecord { scopes: Arc::new(["s".into()]), ..plain(1) },
            KeyRecord { allowed_ips: Some(networks(&["10.0.0.0/8"])), ..plain(1) },
            KeyRecord { allowed_origins: Some(origins(&["https://a.example"])), ..plain(1) },
            KeyRecord { limits: limits("1/s"), ..plain(1) },
        ] {
            assert!(may_take_away(plain(1), std::slice::from_ref(&changed)), "{changed:?}");
            assert!(may_take_away(changed, &[plain(1)]));
        }
    }

    #[test]
    fn every_field_that_differs_is_listed() {
        let old = keys(&[plain(1)]);
        let new = keys(&[KeyRecord {
            owner: "o",
            environment: "e",
            plan: "p",
            status: Status::Disabled,
            not_before: 1_767_225_600,
            expires_at: 1_798_761_600,
            scopes: Arc::new(["s".into()]),
            allowed_ips: Some(networks(&["10.0.0.0/8"])),
            allowed_origins: Some(origins(&["https://a.example"])),
            limits: limits("1/s"),
            metadata: "{}",
            ..plain(1)
        }]);
        let differences = |from: &KeyTable, to: &KeyTable| {
            let [example] = to.diff_from(Some(from), AT).examples.changed.try_into().expect("one");
            let Example { differences, .. } = example;
            differences
        };
        let expected = [
            Difference::between("owner", "", "o"),
            Difference::between("status", "active", "disabled"),
            Difference::between("not_before", "", "2026-01-01T00:00:00Z"),
            Difference::between("expires_at", "", "2027-01-01T00:00:00Z"),
            Difference::between("environment", "", "e"),
            Difference::between("plan", "", "p"),
            Difference::of("scopes"),
            Difference::of("allowed_ips"),
            Difference::of("allowed_origins"),
            Difference::of("limits"),
            Difference::of("metadata"),
        ];
        assert_eq!(differences(&old, &new), expected);
        assert_eq!(differences(&new, &old).len(), expected.len(), "in reverse");
        let renamed = keys(&[KeyRecord { key_id: "k2", ..plain(1) }]);
        assert_eq!(differences(&old, &renamed), [Difference::between("key_id", "k1", "k2")]);
    }

    #[test]
    fn empty_list_in_place_of_no_list_is_a_change() {
        let no_address = KeyRecord { allowed_ips: Some(Arc::default()), ..plain(1) };
        let no_origin = KeyRecord { allowed_origins: Some(Arc::default()), ..plain(1) };
        for (field, record) in [("allowed_ips", no_address), ("allowed_origins", no_origin)] {
            let (open, shut) = (keys(&[plain(1)]), keys(std::slice::from_ref(&record)));
            for (before, after) in [(&open, &shut), (&shut, &open)] {
                let diff = after.diff_from(Some(before), AT);
                let differences: Vec<_> =
                    diff.examples.changed.iter().flat_map(|example| &example.differences).collect();
                assert_eq!(differences, [&Difference::of(field)]);
            }
            assert!(shut.diff_from(Some(&keys(&[record])), AT).is_unchanged());
        }
    }

    #[test]
    fn examples_are_limited_in_number() {
        let all: Vec<_> = (0..1000).map(plain).collect();
        let some: Vec<_> = all.iter().skip(130).step_by(2).cloned().collect();
        let (all, some) = (keys(&all), keys(&some));
        let fewer = some.diff_from(Some(&all), AT);
        assert_eq!((fewer.added, fewer.removed, fewer.deactivated), (0, 565, 565));
        let shown = [&fewer.examples.removed, &fewer.examples.deactivated].map(Vec::len);
        assert_eq!(shown, [MAX_EXAMPLES; 2]);
        let more = all.diff_from(Some(&some), AT);
        assert_eq!((more.added, more.removed, more.examples.added.len()), (565, 0, MAX_EXAMPLES));
        assert_eq!(more.examples.added[19].key_id.as_ref(), "k19");
        let last = keys(&(0..1000).map(plain).collect::<Vec<_>>());
        let without_last = keys(&(0..999).map(plain).collect::<Vec<_>>());
        assert_eq!(ids(&last.diff_from(Some(&without_last), AT).examples.added), ["k999"]);
    }

    #[test]
    fn examples_read_back_from_json() {
        let renamed = keys(&[KeyRecord { key_id: "k2", ..plain(1) }]);
        let examples = renamed.diff_from(Some(&keys(&[plain(1)])), AT).examples;
        let json = serde_json::to_string(&examples.changed).expect("serializable");
        assert_eq!(
            json,
            r#"[{"key_id":"k1","hash":"00000000","differences":[{"field":"key_id","before":"k1","after":"k2"}]}]"#
        );
        let again: Vec<Example> = serde_json::from_str(&json).expect("deserializable");
        assert_eq!(again[0].differences, examples.changed[0].differences);
        assert_eq!(again[0].hash, examples.changed[0].hash);
    }
}
