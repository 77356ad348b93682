//! Nothing fails open by omission, one field at a time: the guard refuses a change of a field by
//! the share of keys that it affects.

use std::path::Path;
use std::sync::Arc;

use keyward_daemon::reload::{Changes, ReloadError, Tolerance};
use keyward_engine::record::{KeyRecord, Limit, Per, parse_rule};
use keyward_engine::snapshot::{Builder, CompareOptions, Example, KeyTable};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};

/// The Unix second at which both sets are evaluated.
const NOW: u32 = 1_800_000_000;
const PAST: &str = "1790000000";
const FUTURE: &str = "1810000000";

const DEFAULT_TOLERANCE: Tolerance = Tolerance { max_shrink: 0.5, max_reactivated: 0.75, max_loosened: 0.75 };
const TOLERATE_ALL: Tolerance = Tolerance { max_shrink: 1.0, max_reactivated: 1.0, max_loosened: 1.0 };
const TOLERATE_NONE: Tolerance = Tolerance { max_shrink: 0.0, max_reactivated: 0.0, max_loosened: 0.0 };

/// The optional columns.
const COLUMNS: [&str; 9] = [
    "owner",
    "environment",
    "status",
    "not_before",
    "expires_at",
    "scopes",
    "allowed_ips",
    "allowed_origins",
    "limits",
];

/// The row of the key `k{number}` with a value in one column.
fn row(number: usize, column: &str, value: &str) -> String {
    row_with_id(number, &format!("k{number}"), column, value)
}

fn row_with_id(hash: usize, key_id: &str, column: &str, value: &str) -> String {
    assert!(COLUMNS.contains(&column), "{column}");
    let values = COLUMNS.map(|other| if other == column { value } else { "" });
    format!("{hash:064x},{key_id},{}\n", values.join(","))
}

fn build_table(rows: &[String]) -> KeyTable {
    let mut builder = Builder::new(7, 0);
    let mut diagnostics = Diagnostics::new("keys.csv");
    let mut sink = |line: u64, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
    let text = format!("key_hash,key_id,{}\n{}", COLUMNS.join(","), rows.concat());
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("reads");
    assert_eq!(diagnostics.to_string(), "");
    builder.finish()
}

/// Why the guard refuses a change from `before` to `after`, or `None` if it accepts it.
fn refusal(before: &[String], after: &[String], tolerance: &Tolerance) -> Option<String> {
    refusal_of_tables(&build_table(before), &build_table(after), tolerance)
}

fn refusal_of_tables(old: &KeyTable, new: &KeyTable, tolerance: &Tolerance) -> Option<String> {
    let diff = new.diff_from(Some(old), CompareOptions { now: NOW, by_key_id: false });
    let failure = tolerance.check(Path::new("keys.csv"), &Changes::of(&diff), old.len(), new.len()).err()?;
    assert!(matches!(failure, ReloadError::Guarded { .. }), "{failure}");
    Some(failure.to_string())
}

/// As [`refusal`], for `count` keys whose `column` changes from one value to another.
fn refusal_of_change(
    count: usize,
    column: &str,
    [from, to]: [&str; 2],
    tolerance: &Tolerance,
) -> Option<String> {
    // The first rows change without any effect on access. No message may name their keys.
    let mut before = vec![row(3_000, "status", "revoked")];
    before.extend((2_000..2_004).map(|number| row(number, "owner", "acme")));
    let mut after: Vec<_> = (2_000..2_004).map(|number| row(number, "owner", "bolt")).collect();
    before.extend((0..count).map(|number| row(number, column, from)));
    after.extend((0..count).map(|number| row(number, column, to)));
    // Both values stay in the source, so that no restriction is lost as a whole.
    for (number, value) in [(1_000, from), (1_001, to)] {
        before.push(row(number, column, value));
        after.push(row(number, column, value));
    }
    refusal(&before, &after, tolerance)
}

const STOP: Option<&str> = Some("working keys would stop working");
const NOT_VALID: Option<&str> = Some("keys that have expired or are not valid yet would work");
const ENVIRONMENT: Option<&str> = Some("keys with an environment would lose it or get another one");
const NETWORKS: Option<&str> = Some("keys with allowed_ips would admit more addresses");
const ORIGINS: Option<&str> = Some("keys with allowed_origins would admit more origins");
const UNSPENT: Option<&str> =
    Some("keys with limits would get unspent ones in their place, of another kind or shared by other keys");

/// Changes of a column, and the text of their refusal. `None`: the change is always accepted.
const CHANGES: [(&str, [&str; 2], Option<&str>); 38] = [
    ("status", ["active", "disabled"], STOP),
    ("status", ["active", "revoked"], STOP),
    ("expires_at", [FUTURE, PAST], STOP),
    ("not_before", [PAST, FUTURE], STOP),
    ("status", ["revoked", "active"], Some("revoked keys would work again")),
    ("status", ["disabled", "active"], Some("disabled keys would work again")),
    ("status", ["disabled", "revoked"], None),
    ("status", ["revoked", "disabled"], None),
    ("expires_at", [PAST, FUTURE], NOT_VALID),
    ("not_before", [FUTURE, PAST], NOT_VALID),
    ("expires_at", [FUTURE, ""], Some("keys that expire would never expire")),
    ("expires_at", ["", FUTURE], None),
    ("environment", ["live", ""], ENVIRONMENT),
    ("environment", ["live", "test"], ENVIRONMENT),
    ("environment", ["", "live"], None),
    ("allowed_ips", ["10.0.0.0/8", ""], NETWORKS),
    ("allowed_ips", ["10.0.0.0/8", "10.0.0.0/8 11.0.0.0/8"], NETWORKS),
    ("allowed_ips", ["{}", "10.0.0.0/8"], NETWORKS),
    ("allowed_ips", ["10.0.0.0/8", "2001:db8::/32"], NETWORKS),
    ("allowed_ips", ["10.0.0.0/8", "{}"], None),
    ("allowed_origins", ["https://a.test", "https://*.test"], ORIGINS),
    ("allowed_origins", ["[]", ""], ORIGINS),
    ("allowed_origins", ["https://*.test", "https://a.test"], None),
    ("limits", ["a=1/s; b=1/s", "b=1/s"], Some("keys with limits would lose one")),
    ("limits", ["a=1/s", "a=2/s"], None),
    ("limits", ["a=5/day", "a=9/day"], None),
    ("limits", ["a=5/day", "a=5/hour"], None),
    ("limits", ["a=5 credits", "a=9 credits"], None),
    ("limits", ["a=5/day", "a=5/d"], UNSPENT),
    ("limits", ["a=5/d", "a=4 credits"], UNSPENT),
    ("limits", ["a=5 credits", "a=4/month"], UNSPENT),
    ("limits", ["a=5/d", "a=4/d per owner"], UNSPENT),
    ("limits", ["a=5/d per owner", "a=4/d"], UNSPENT),
    ("scopes", ["a", "*"], Some("keys would gain scopes")),
    ("scopes", ["a", "a b"], Some("keys would gain scopes")),
    ("scopes", ["a b", "a"], None),
    ("owner", ["acme", "bolt"], None),
    ("owner", ["acme", ""], None),
];

#[test]
fn change_of_access_is_refused_beyond_its_share() {
    for (column, values, expected) in CHANGES {
        let change = format!("{column} {values:?}");
        let message = refusal_of_change(40, column, values, &DEFAULT_TOLERANCE);
        match (&message, expected) {
            (Some(message), Some(expected)) => {
                for part in
                    [": 40 of 4", expected, "more than source.max_", "(\"k0\", \"k1\", \"k2\" and others)"]
                {
                    assert!(message.contains(part), "{change}: {part:?} is not in {message:?}");
                }
            }
            (message, expected) => assert!(message.is_none() && expected.is_none(), "{change}: {message:?}"),
        }
        assert_eq!(refusal_of_change(40, column, values, &TOLERATE_ALL), None, "{change}");
        // A single key may change in any way, unless the tolerated share is zero.
        assert_eq!(refusal_of_change(1, column, values, &DEFAULT_TOLERANCE), None, "{change}");
        assert_eq!(
            refusal_of_change(1, column, values, &TOLERATE_NONE).is_some(),
            expected.is_some(),
            "{change}"
        );
    }
}

/// A key that loses its owner no longer shares a limit with the other keys of that owner.
#[test]
fn lost_owner_loses_limits_per_owner() {
    let table = |owner: &str, per, shadow| {
        let mut builder = Builder::new(7, 0);
        for number in 0..40 {
            // The owner stays in the source, so that no restriction is lost as a whole.
            let owner = if number == 39 { "acme" } else { owner };
            let (key_id, digest) = (format!("k{number}"), [number; 32]);
            let rule = parse_rule("default", "10/s").expect("a limit");
            let limit = Limit { per, shadow, ..Limit::new("default", rule) };
            let record = KeyRecord { owner, limits: Arc::new([limit]), ..KeyRecord::new(digest, &key_id) };
            builder.add(number.into(), &record).expect("a good row");
        }
        builder.finish()
    };
    let refusal = |owner, per, shadow| {
        let (old, new) = (table("acme", per, shadow), table(owner, per, shadow));
        refusal_of_tables(&old, &new, &DEFAULT_TOLERANCE)
    };
    let message = refusal("", Per::Owner, false).expect("refused");
    assert!(message.contains("39 of 40 keys with limits would lose one"), "{message}");
    assert_eq!(refusal("bolt", Per::Owner, false), None);
    assert_eq!(refusal("", Per::Key, false), None);
    assert_eq!(refusal("", Per::Owner, true), None);
}

/// The keys in earlier rows have another change.
#[test]
fn refusal_names_only_keys_with_its_change() {
    let rows = |values: [(&str, &str); 2], others: [(&str, &str); 2]| -> Vec<_> {
        let [(few, of_few), (many, of_many)] = values;
        let staying = others.into_iter().zip(500..).flat_map(|((column, value), at)| {
            (0..100).map(move |number| row(at + 100 * number, column, value))
        });
        let changing = (0..9).map(|number| row(number, few, of_few));
        changing.chain((100..140).map(|number| row(number, many, of_many))).chain(staying).collect()
    };
    for [(few, before_few, after_few), (many, before_many, after_many)] in [
        [("status", "disabled", "active"), ("status", "revoked", "active")],
        [("expires_at", PAST, FUTURE), ("status", "disabled", "active")],
        [("expires_at", FUTURE, ""), ("allowed_ips", "10.0.0.0/8", "")],
        [("scopes", "a", "a b"), ("allowed_origins", "https://a.test", "")],
        [("allowed_ips", "10.0.0.0/8", ""), ("environment", "live", "test")],
    ] {
        let others = [(few, before_few), ("owner", "acme")];
        let staying = [row(90_000, many, before_many)];
        let before = [rows([(few, before_few), (many, before_many)], others), staying.to_vec()].concat();
        let after = [rows([(few, after_few), (many, after_many)], others), staying.to_vec()].concat();
        let message = refusal(&before, &after, &DEFAULT_TOLERANCE).expect("refused");
        assert!(
            message.contains("40 of 41 ") && message.contains("(\"k100\", \"k101\", \"k102\" and others)"),
            "{message}"
        );
    }
}

/// A tenth of all keys, and at most ten, may be widened even if all restricted keys are among them.
#[test]
fn few_keys_may_be_widened_beyond_the_tolerated_share() {
    for (count, few) in [(5, 1), (40, 4), (109, 10), (500, 10)] {
        for (returning, is_accepted) in [(few, true), (few + 1, false)] {
            let rows = |status| -> Vec<_> {
                let status = |number| if number < returning { status } else { "disabled" };
                (0..count).map(|number| row(number, "status", status(number))).collect()
            };
            let message = refusal(&rows("revoked"), &rows("active"), &DEFAULT_TOLERANCE);
            assert_eq!(message.is_none(), is_accepted, "{returning} of {count} keys: {message:?}");
        }
    }
}

/// Neither keys that did not work nor new keys raise the number of keys that may stop working.
#[test]
fn share_of_stopping_keys_is_relative_to_working_keys() {
    let rows = |active: &mut dyn Iterator<Item = usize>| -> Vec<_> {
        let active = active.map(|number| row(number, "status", "active"));
        active.chain((100..160).map(|number| row(number, "status", "revoked"))).collect()
    };
    let before = rows(&mut (0..40));
    assert_eq!(refusal(&before, &rows(&mut (20..40).chain(200..400)), &DEFAULT_TOLERANCE), None);
    let message =
        refusal(&before, &rows(&mut (21..40).chain(200..400)), &DEFAULT_TOLERANCE).expect("refused");
    assert!(message.contains("21 of 40 working keys would stop working"), "{message}");
    // One key may always stop, and no more.
    assert_eq!(refusal(&rows(&mut (0..1)), &rows(&mut (200..201)), &DEFAULT_TOLERANCE), None);
    let message = refusal(&rows(&mut (0..3)), &rows(&mut (2..3)), &DEFAULT_TOLERANCE).expect("refused");
    assert!(message.contains("2 of 3 working keys would stop working"), "{message}");
}

/// A change of pepper changes the hashes and keeps the ids.
#[test]
fn rehashed_keys_are_matched_by_their_id() {
    let before = ["active", "active", "active", "revoked", "active"];
    let before: Vec<_> = (0..).zip(before).map(|(number, status)| row(number, "status", status)).collect();
    let after = [
        row_with_id(100, "k0", "status", "active"),
        row_with_id(101, "k1", "status", "disabled"),
        // A key in rotation: one of its two rows works.
        row_with_id(102, "k2", "status", "disabled"),
        row_with_id(103, "k2", "status", "active"),
        row_with_id(104, "k3", "status", "active"),
    ];
    let (before, after) = (build_table(&before), build_table(&after));
    let ids =
        |examples: &[Example]| examples.iter().map(|example| example.key_id.to_string()).collect::<Vec<_>>();
    let stopping_and_starting = |by_key_id| {
        let diff = after.diff_from(Some(&before), CompareOptions { now: NOW, by_key_id });
        (ids(&diff.examples.stopping), ids(&diff.examples.starting))
    };
    let owned = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(stopping_and_starting(true), (owned(&["k1", "k4"]), owned(&["k3"])));
    assert_eq!(stopping_and_starting(false), (owned(&["k0", "k1", "k2", "k4"]), Vec::new()));
}
