//! A row of a table, as the comparison sees it, and how it differs from another one.

use crate::record::{Status, rfc3339};
use crate::snapshot::diff::access_change::AccessChanges;
use crate::snapshot::diff::example::{Difference, DigestPrefix, Example, MAX_EXAMPLES};
use crate::snapshot::entry::{AtomicStatus, Entry};
use crate::snapshot::{KeyTable, Policy};

/// A row and its table.
#[derive(Clone, Copy)]
pub(super) struct Row<'k> {
    pub(super) keys: &'k KeyTable,
    pub(super) entry: &'k Entry,
    /// The entry number.
    pub(super) number: u32,
}

impl<'k> Row<'k> {
    pub(super) fn key_id(self) -> &'k str {
        self.keys.key_id(self.entry)
    }

    pub(super) fn owner(self) -> &'k str {
        self.keys.owner(self.entry)
    }

    pub(super) fn policy(self) -> Policy<'k> {
        self.keys.policies.at(self.entry.policy)
    }

    /// Whether two rows with the same digest are equal, apart from their policies.
    pub(super) fn is_same_except_policy(self, other: Row<'_>) -> bool {
        self.has_same_names_and_validity(other)
            && self.keys.metadata_of(self.number) == other.keys.metadata_of(other.number)
    }

    /// Whether two rows have the same key id, owner, status and times.
    pub(super) fn has_same_names_and_validity(self, other: Row<'_>) -> bool {
        let status_and_times =
            |entry: &Entry| (status_name(&entry.status), entry.not_before, entry.expires_at.get());
        status_and_times(self.entry) == status_and_times(other.entry)
            && (self.key_id(), self.owner()) == (other.key_id(), other.owner())
    }

    /// The row as an example with these differences.
    pub(super) fn example(self, differences: Vec<Difference>) -> Example {
        Example {
            key_id: self.key_id().into(),
            hash: DigestPrefix::of(&self.entry.digest),
            differences,
            changes: AccessChanges::default(),
        }
    }

    /// The row as an example, with its differences from the row `after`.
    pub(super) fn changed_to(self, after: Row<'_>) -> Example {
        let [old, new] = [self.entry, after.entry];
        let mut differences = Vec::new();
        for (field, before, after) in [
            ("key_id", self.key_id(), after.key_id()),
            ("owner", self.owner(), after.owner()),
            ("status", status_name(&old.status), status_name(&new.status)),
        ] {
            if before != after {
                differences.push(Difference::between(field, before, after));
            }
        }
        for (field, before, after) in [
            ("not_before", old.not_before, new.not_before),
            ("expires_at", old.expires_at.get(), new.expires_at.get()),
        ] {
            if before != after {
                differences.push(Difference::between(field, &time(before), &time(after)));
            }
        }
        push_policy_differences(self.policy(), after.policy(), &mut differences);
        if self.keys.metadata_of(self.number) != after.keys.metadata_of(after.number) {
            differences.push(Difference::of("metadata"));
        }
        self.example(differences)
    }
}

impl KeyTable {
    /// The first of these rows, as examples of added keys.
    pub(super) fn added_examples(&self, numbers: impl Iterator<Item = u32>) -> Vec<Example> {
        let row = |number: u32| Some(Row { keys: self, entry: self.entries.get(number as usize)?, number });
        let rows = numbers.map_while(row);
        rows.take(MAX_EXAMPLES).map(|row| row.example(Vec::new())).collect()
    }
}

fn push_policy_differences(before: Policy<'_>, after: Policy<'_>, differences: &mut Vec<Difference>) {
    for (field, before, after) in
        [("environment", before.environment(), after.environment()), ("plan", before.plan(), after.plan())]
    {
        if before != after {
            differences.push(Difference::between(field, before, after));
        }
    }
    for (field, differs) in [
        ("scopes", before.scopes() != after.scopes()),
        ("allowed_ips", before.networks() != after.networks()),
        ("allowed_origins", before.origins() != after.origins()),
        ("limits", before.limits().ne(after.limits())),
    ] {
        if differs {
            differences.push(Difference::of(field));
        }
    }
}

fn status_name(status: &AtomicStatus) -> &'static str {
    match status.of_row() {
        _ if status.is_set_aside() => "set aside",
        Status::Active => "active",
        Status::Disabled => "disabled",
        Status::Revoked => "revoked",
    }
}

/// In RFC 3339. As in a source, a time that bounds nothing is empty.
fn time(seconds: u32) -> String {
    match seconds {
        0 | u32::MAX => String::new(),
        seconds => rfc3339(seconds),
    }
}
