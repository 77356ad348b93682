//! What a new set of keys changes: counted, with a few examples, before it is published. What rows say is
//! compared row against row, whatever an operator has revoked; what that means for access is weighed in
//! [`impact`](super::impact).
//!
//! One type serves a reload, a reload that is only tried, and the comparison of two files. The examples cost a reload
//! next to nothing: there are few of them, and where each row was before is kept for the claims ([`kept`](super::kept)).

use std::collections::HashMap;
use std::ops::Range;

use crate::record::{Digest, FieldSet, Status, rfc3339};
use crate::snapshot::entry::Entry;
use crate::snapshot::example::{Difference, Example, Examples, MAX_EXAMPLES};
use crate::snapshot::impact::{AccessChanges, Impact, KeyImpact, Matched, PolicyPair, works};
use crate::snapshot::kept::{Found, Kept, WINDOW};
use crate::snapshot::status::StatusByte;
use crate::snapshot::{IdHasher, Keys, Snapshot};

/// How many keys a reload adds, removes and changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Hashes that were not there before.
    pub added: usize,
    /// Hashes that are no longer there.
    pub removed: usize,
    /// Hashes whose row says something else.
    pub changed: usize,
    /// Keys that were active and are not any more: removed, disabled or revoked. Some of these are counted above too.
    pub revoked: usize,
    /// What it means for access.
    #[serde(skip)]
    pub impact: Impact,
    /// Some of each.
    #[serde(skip)]
    pub examples: Examples,
}

/// A row and its place.
#[derive(Clone, Copy)]
struct Row<'k> {
    keys: &'k Keys,
    entry: &'k Entry,
    id: u32,
}

/// How two sets of keys are compared.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    /// The Unix second at which both sets are weighed.
    pub now: u32,
    /// Whether a key whose hash is gone is looked up by its id: after a change of pepper, hashes say nothing.
    pub by_key_id: bool,
}

/// A comparison that is under way: of parts of the rows before, by as many threads as there are.
pub struct Comparison<'k> {
    before: &'k Keys,
    after: &'k Keys,
    found: Found,
    options: CompareOptions,
    /// Restrictions that keys before had, and that no row after has a value for.
    missing: FieldSet,
}

/// Rows of a part: so many that a thread is worth while for several of them, and few enough that threads end together.
const PART: usize = 1 << 15;

impl<'k> Comparison<'k> {
    /// Of `after` with what was `before` it.
    pub fn new(before: &'k Keys, after: &'k Keys, options: CompareOptions) -> Self {
        let given = before.given.union(before.set_aside_given);
        let missing = FieldSet::RESTRICTIONS.intersection(given).difference(after.given);
        Self { before, after, found: Found::none_of(after.len()), options, missing }
    }

    /// The parts, each to be compared once.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let rows = self.before.len();
        (0..rows.div_ceil(PART)).map(move |part| part * PART..rows.min((part + 1) * PART))
    }

    /// For a thread: compares parts.
    pub fn comparer(&self) -> impl FnMut(Range<usize>) -> Diff {
        let mut policies = Policies::default();
        let mut after_ids = Vec::with_capacity(WINDOW);
        move |part| {
            let mut diff = Diff::default();
            let mut next = part.start as u32;
            let mut before_ids = (0..).skip(part.start);
            for window in self.before.entries.get(part).unwrap_or_default().chunks(WINDOW) {
                self.after.find_all(window, &mut next, &mut after_ids);
                for ((before, after_id), before_id) in window.iter().zip(&after_ids).zip(&mut before_ids) {
                    let before = Row { keys: self.before, entry: before, id: before_id };
                    let row =
                        |id| Some(Row { keys: self.after, entry: self.after.entries.get(id as usize)?, id });
                    self.count_row(&mut diff, before, after_id.and_then(row), &mut policies);
                }
            }
            diff
        }
    }

    /// What publishing the keys after `old`, which had those before, would change, and which rows it has already: given what has
    /// come of all parts, in their order.
    pub fn kept<'s>(self, parts: Diff, old: &'s Snapshot) -> (Diff, Kept<'s>) {
        let (diff, found) = self.finish(parts);
        (diff, Kept::known(Some(old), found))
    }

    /// What the keys after change, given what has come of all parts, in their order.
    pub fn diff(self, parts: Diff) -> Diff {
        self.finish(parts).0
    }

    fn finish(self, parts: Diff) -> (Diff, Found) {
        let Self { before, after, found, .. } = self;
        let mut diff = parts;
        diff.added = after.len() - (before.len() - diff.removed);
        if diff.added > 0 {
            diff.examples.added = after.added(found.new_rows());
        }
        (diff, found)
    }

    /// All parts, by this thread.
    fn here(&self) -> Diff {
        let mut diff = Diff::default();
        self.parts().map(self.comparer()).for_each(|part| diff.append(part));
        diff
    }
}

impl Keys {
    /// What publishing these keys after `old` would change, and which rows it has already.
    pub fn compare<'s>(&self, old: Option<&'s Snapshot>, options: CompareOptions) -> (Diff, Kept<'s>) {
        match old {
            Some(snapshot) => {
                let comparison = Comparison::new(snapshot.table(), self, options);
                let parts = comparison.here();
                comparison.kept(parts, snapshot)
            }
            None => (self.diff_from(None, options), Kept::unknown(None)),
        }
    }

    /// What there is to be told between `old` and these keys; without `old`, all of them are new.
    pub fn diff_from(&self, old: Option<&Self>, options: CompareOptions) -> Diff {
        if let Some(old) = old {
            let comparison = Comparison::new(old, self, options);
            let parts = comparison.here();
            return comparison.finish(parts).0;
        }
        let mut diff = Diff { added: self.len(), ..Diff::default() };
        diff.examples.added = self.added(0..);
        diff
    }

    fn added(&self, rows: impl Iterator<Item = u32>) -> Vec<Example> {
        let entries = rows.map_while(|id| self.entries.get(id as usize)).take(MAX_EXAMPLES);
        entries.map(|entry| entry.example(self, Vec::new())).collect()
    }
}

impl Diff {
    /// Adds what was counted of the rows after these; what is added is only known in the end.
    pub fn append(&mut self, next: Self) {
        self.removed += next.removed;
        self.changed += next.changed;
        self.revoked += next.revoked;
        self.impact.append(&next.impact);
        let Examples { added: _, removed, changed, revoked, stopping, starting, loosened } =
            &mut self.examples;
        for (examples, next) in [
            (removed, next.examples.removed),
            (changed, next.examples.changed),
            (revoked, next.examples.revoked),
            (stopping, next.examples.stopping),
            (starting, next.examples.starting),
            (loosened, next.examples.loosened),
        ] {
            examples.extend(next.into_iter().take(MAX_EXAMPLES - examples.len()));
        }
    }

    /// Whether both sets say the same.
    pub fn is_unchanged(&self) -> bool {
        (self.added, self.removed, self.changed) == (0, 0, 0)
    }
}

impl Comparison<'_> {
    /// Counts what has become of a row, and marks where it is.
    fn count_row(&self, diff: &mut Diff, before: Row<'_>, after: Option<Row<'_>>, policies: &mut Policies) {
        let was_active = before.entry.status.of_row() == Status::Active;
        let Some(after) = after else {
            let gone = || before.entry.example(before.keys, Vec::new());
            count(&mut diff.removed, &mut diff.examples.removed, gone);
            if was_active {
                count(&mut diff.revoked, &mut diff.examples.revoked, gone);
            }
            let successor = if self.options.by_key_id { self.successor(before) } else { None };
            self.weigh(diff, before, successor, policies);
            return;
        };
        self.found.set(after.id, before.id, before.key_id() != after.key_id());
        let same_policy = policies.pair(before, after).is_same;
        if !same_policy || !same_row(after, before) {
            count(&mut diff.changed, &mut diff.examples.changed, || before.changed_to(after));
        }
        if was_active && after.entry.status.of_row() != Status::Active {
            count(&mut diff.revoked, &mut diff.examples.revoked, || before.changed_to(after));
        }
        self.weigh(diff, before, Some(after), policies);
    }

    /// The row with the same key id: one that works, if there is any.
    fn successor(&self, before: Row<'_>) -> Option<Row<'_>> {
        let row = |id: u32| Some(Row { keys: self.after, entry: self.after.entries.get(id as usize)?, id });
        let mut rows = self.after.rows_of_key(before.key_id()).filter_map(row);
        let first = rows.next()?;
        let is_working = |row: &Row<'_>| works(row.entry, self.options.now);
        Some(std::iter::once(first).chain(rows).find(is_working).unwrap_or(first))
    }

    fn weigh(&self, diff: &mut Diff, before: Row<'_>, after: Option<Row<'_>>, policies: &mut Policies) {
        let now = self.options.now;
        let matched = after.map(|after| Matched {
            pair: policies.pair(before, after),
            is_renamed: before.key_id() != after.key_id(),
            has_other_owner: before.owner() != after.owner(),
            works: works(after.entry, now),
            expires_at: after.entry.expires_at.get(),
            is_set_aside: after.entry.status.is_set_aside(),
            given: match before.entry.status.is_set_aside() {
                true => after.keys.restrictions(after.entry),
                false => FieldSet::NONE,
            },
        });
        let KeyImpact { stops, starts, loosened, changes } =
            diff.impact.add(before.entry, matched, now, self.missing);
        let example = || {
            let example = match after {
                Some(after) => before.changed_to(after),
                None => before.entry.example(before.keys, Vec::new()),
            };
            Example { changes, ..example }
        };
        let Examples { stopping, starting, loosened: of_loosened, .. } = &mut diff.examples;
        for (applies, examples) in [(stops, stopping), (starts, starting), (loosened, of_loosened)] {
            if applies && examples.len() < MAX_EXAMPLES {
                examples.push(example());
            }
        }
    }
}

/// Counts one, and shows it if it is among the first.
fn count(number: &mut usize, examples: &mut Vec<Example>, example: impl FnOnce() -> Example) {
    *number += 1;
    if examples.len() < MAX_EXAMPLES {
        examples.push(example());
    }
}

impl Entry {
    fn example(&self, keys: &Keys, differences: Vec<Difference>) -> Example {
        let (key_id, hash) = (keys.key_id(self).into(), stub(&self.digest));
        Example { key_id, hash, differences, changes: AccessChanges::default() }
    }
}

fn stub(digest: &Digest) -> [u8; 4] {
    let [a, b, c, d, ..] = *digest;
    [a, b, c, d]
}

impl<'k> Row<'k> {
    fn key_id(self) -> &'k str {
        self.keys.key_id(self.entry)
    }

    fn owner(self) -> &'k str {
        self.keys.owner(self.entry)
    }

    fn changed_to(self, after: Row<'_>) -> Example {
        let [old, new] = [self.entry, after.entry];
        let times = [
            ("not_before", old.not_before, new.not_before),
            ("expires_at", old.expires_at.get(), new.expires_at.get()),
        ];
        let texts = [
            ("key_id", self.key_id(), after.key_id()),
            ("owner", self.owner(), after.owner()),
            ("status", name(&old.status), name(&new.status)),
        ];
        let texts = texts.into_iter().filter(|(_, before, after)| before != after);
        let mut differences: Vec<_> =
            texts.map(|(field, before, after)| Difference::between(field, before, after)).collect();
        let times = times.into_iter().filter(|(_, before, after)| before != after);
        differences.extend(
            times.map(|(field, before, after)| Difference::between(field, &time(before), &time(after))),
        );
        self.keys.policies[old.policy as usize]
            .differences(&after.keys.policies[new.policy as usize], &mut differences);
        if self.keys.metadata_of(self.id) != after.keys.metadata_of(after.id) {
            differences.push(Difference::of("metadata"));
        }
        old.example(self.keys, differences)
    }
}

fn name(status: &StatusByte) -> &'static str {
    match status.of_row() {
        _ if status.is_set_aside() => "set aside",
        Status::Active => "active",
        Status::Disabled => "disabled",
        Status::Revoked => "revoked",
    }
}

/// In RFC 3339; what bounds nothing is empty, as it is in an export.
fn time(seconds: u32) -> String {
    match seconds {
        0 | u32::MAX => String::new(),
        seconds => rfc3339(seconds),
    }
}

/// How policies before differ from policies after: compared once, where they are the same for many rows.
#[derive(Default)]
struct Policies {
    known: HashMap<(u32, u32), PolicyPair, IdHasher>,
    /// What was asked for the row before: in most exports it is the same for the next.
    last: Option<((u32, u32), PolicyPair)>,
}

impl Policies {
    fn pair(&mut self, before: Row<'_>, after: Row<'_>) -> PolicyPair {
        let numbers = (before.entry.policy, after.entry.policy);
        match self.last {
            Some((last, pair)) if last == numbers => pair,
            _ => {
                let compare = || {
                    let [of_before, of_after] = [(before, numbers.0), (after, numbers.1)]
                        .map(|(row, number)| &row.keys.policies[number as usize]);
                    PolicyPair::new(of_before, &before.keys.plans, of_after, &after.keys.plans)
                };
                let pair = *self.known.entry(numbers).or_insert_with(compare);
                self.last = Some((numbers, pair));
                pair
            }
        }
    }
}

/// Whether two rows of one hash say the same, their policies apart.
fn same_row(a: Row<'_>, b: Row<'_>) -> bool {
    let times = |row: Row<'_>| (name(&row.entry.status), row.entry.not_before, row.entry.expires_at.get());
    times(a) == times(b)
        && a.key_id() == b.key_id()
        && a.owner() == b.owner()
        && a.keys.metadata_of(a.id) == b.keys.metadata_of(b.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::test_record::{TestRecord, keys, limits, networks, origins};

    /// 2026-11-21.
    const AT: CompareOptions = CompareOptions { now: 1_795_255_200, by_key_id: false };

    fn plain(number: usize) -> TestRecord {
        TestRecord::numbered(number)
    }

    fn with_status(number: usize, status: Status) -> TestRecord {
        TestRecord { status, ..plain(number) }
    }

    fn ids(examples: &[Example]) -> Vec<&str> {
        examples.iter().map(|example| &*example.key_id).collect()
    }

    #[test]
    fn everything_is_new_to_nobody() {
        let diff = keys(&[plain(1), plain(2)]).diff_from(None, AT);
        assert_eq!((diff.added, diff.removed, diff.changed, diff.revoked), (2, 0, 0, 0));
        assert_eq!(ids(&diff.examples.added), ["k1", "k2"]);
        let same = keys(&[plain(1), plain(2)]).diff_from(Some(&keys(&[plain(2), plain(1)])), AT);
        assert!(same.is_unchanged(), "the order of rows says nothing");
    }

    #[test]
    fn each_kind_is_counted_and_named() {
        let old = keys(&[plain(1), plain(2), with_status(3, Status::Disabled), plain(4), plain(5)]);
        let new = keys(&[
            plain(9),
            with_status(2, Status::Revoked),
            plain(5),
            TestRecord { owner: "acme", ..plain(4) },
            plain(8),
        ]);
        let Diff { added, removed, changed, revoked, examples, .. } = new.diff_from(Some(&old), AT);
        assert_eq!((added, removed, changed, revoked), (2, 2, 2, 2));
        assert_eq!(ids(&examples.added), ["k9", "k8"], "in the order of the new export");
        assert_eq!(ids(&examples.removed), ["k1", "k3"]);
        assert_eq!(ids(&examples.changed), ["k2", "k4"]);
        assert_eq!(ids(&examples.revoked), ["k1", "k2"], "what was disabled had been out of force");
        let status = Difference::between("status", "active", "revoked");
        assert_eq!(examples.revoked[1].differences, [status]);
        assert_eq!(examples.changed[1].differences, [Difference::between("owner", "", "acme")]);
        assert_eq!(examples.removed[0].hash, [0; 4]);
    }

    #[test]
    fn every_field_that_differs_is_told() {
        let old = keys(&[plain(1)]);
        let new = keys(&[TestRecord {
            owner: "o",
            environment: "e",
            plan: "p",
            status: Status::Disabled,
            not_before: 1_767_225_600,
            expires_at: 1_798_761_600,
            scopes: vec!["s".into()],
            allowed_ips: Some(networks(&["10.0.0.0/8"])),
            allowed_origins: Some(origins(&["https://a.example"])),
            limits: limits("1/s"),
            metadata: "{}",
            ..plain(1)
        }]);
        let told = |from: &Keys, to: &Keys| -> Vec<(&str, Option<[Box<str>; 2]>)> {
            let [example] = to.diff_from(Some(from), AT).examples.changed.try_into().expect("one");
            example.differences.into_iter().map(|told| (told.field, told.values)).collect()
        };
        let both = |before: &str, after: &str| Some([before.into(), after.into()]);
        let expected = [
            ("owner", both("", "o")),
            ("status", both("active", "disabled")),
            ("not_before", both("", "2026-01-01T00:00:00Z")),
            ("expires_at", both("", "2027-01-01T00:00:00Z")),
            ("environment", both("", "e")),
            ("plan", both("", "p")),
            ("scopes", None),
            ("allowed_ips", None),
            ("allowed_origins", None),
            ("limits", None),
            ("metadata", None),
        ];
        assert_eq!(told(&old, &new), expected);
        assert_eq!(told(&new, &old).len(), expected.len(), "and the other way round");
        let renamed = keys(&[TestRecord { key_id: "k2".to_owned(), ..plain(1) }]);
        assert_eq!(told(&old, &renamed), [("key_id", both("k1", "k2"))]);
    }

    #[test]
    fn an_empty_list_in_the_place_of_none_is_a_change() {
        let no_address = TestRecord { allowed_ips: Some(Vec::new()), ..plain(1) };
        let no_origin = TestRecord { allowed_origins: Some(Vec::new()), ..plain(1) };
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
    fn examples_are_few_however_many_there_are() {
        let all: Vec<_> = (0..1000).map(plain).collect();
        let kept: Vec<_> = all.iter().skip(130).step_by(2).cloned().collect();
        let (all, kept) = (keys(&all), keys(&kept));
        let fewer = kept.diff_from(Some(&all), AT);
        assert_eq!((fewer.added, fewer.removed, fewer.revoked), (0, 565, 565));
        let shown = [&fewer.examples.removed, &fewer.examples.revoked].map(Vec::len);
        assert_eq!(shown, [MAX_EXAMPLES; 2]);
        let more = all.diff_from(Some(&kept), AT);
        assert_eq!((more.added, more.removed, more.examples.added.len()), (565, 0, MAX_EXAMPLES));
        assert_eq!(more.examples.added[19].key_id.as_ref(), "k19");
        let last = keys(&(0..1000).map(plain).collect::<Vec<_>>());
        let without_last = keys(&(0..999).map(plain).collect::<Vec<_>>());
        assert_eq!(ids(&last.diff_from(Some(&without_last), AT).examples.added), ["k999"]);
    }
}
