//! Promise 9, one change at a time: what the guard says of many keys that change in a single field.

use std::path::Path;

use keyward_daemon::reload::{ReloadError, Tolerance};
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::{Builder, CompareOptions, Example, KeyTable};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};

/// The Unix second at which both sets are evaluated, and two others.
const AT: u32 = 1_800_000_000;
const PAST: &str = "1790000000";
const FUTURE: &str = "1810000000";

const BY_DEFAULT: Tolerance = Tolerance { max_shrink: 0.5, max_reactivated: 0.75, max_loosened: 0.75 };
const EVERYTHING: Tolerance = Tolerance { max_shrink: 1.0, max_reactivated: 1.0, max_loosened: 1.0 };
const NOTHING: Tolerance = Tolerance { max_shrink: 0.0, max_reactivated: 0.0, max_loosened: 0.0 };

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

/// A row with a value in one column.
fn row(number: usize, column: &str, value: &str) -> String {
    named(number, &format!("k{number}"), column, value)
}

fn named(hash: usize, key_id: &str, column: &str, value: &str) -> String {
    assert!(COLUMNS.contains(&column), "{column}");
    let values = COLUMNS.map(|other| if other == column { value } else { "" });
    format!("{hash:064x},{key_id},{}\n", values.join(","))
}

fn keys(rows: &[String]) -> KeyTable {
    let mut builder = Builder::new(7, 0);
    let mut diagnostics = Diagnostics::new("keys.csv");
    let mut sink = |line: u64, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
    let text = format!("key_hash,key_id,{}\n{}", COLUMNS.join(","), rows.concat());
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("reads");
    assert_eq!(diagnostics.to_string(), "");
    builder.finish()
}

/// Why the guard refuses `after` in the place of `before`.
fn refused(before: &[String], after: &[String], tolerance: &Tolerance) -> Option<String> {
    let (old, new) = (keys(before), keys(after));
    let diff = new.diff_from(Some(&old), CompareOptions { now: AT, by_key_id: false });
    let failure = tolerance.check(Path::new("keys.csv"), &diff, old.len(), new.len()).err()?;
    assert!(matches!(failure, ReloadError::Guarded { .. }), "{failure}");
    Some(failure.to_string())
}

/// The same of so many keys whose `column` goes from one value to another.
fn refused_change(
    count: usize,
    column: &str,
    [from, to]: [&str; 2],
    tolerance: &Tolerance,
) -> Option<String> {
    // Changes that are none in access, in the first rows: no message may name their keys.
    let mut before = vec![row(3_000, "status", "revoked")];
    before.extend((2_000..2_004).map(|number| row(number, "owner", "acme")));
    let mut after: Vec<_> = (2_000..2_004).map(|number| row(number, "owner", "bolt")).collect();
    before.extend((0..count).map(|number| row(number, column, from)));
    after.extend((0..count).map(|number| row(number, column, to)));
    // Both values stay in the source, so that no restriction is missing from all of it.
    for (number, value) in [(1_000, from), (1_001, to)] {
        before.push(row(number, column, value));
        after.push(row(number, column, value));
    }
    refused(&before, &after, tolerance)
}

const STOP: Option<&str> = Some("working keys would stop working");
const NOT_VALID: Option<&str> = Some("keys that have expired or are not valid yet would work");
const ENVIRONMENT: Option<&str> = Some("keys with an environment would lose it or get another one");
const NETWORKS: Option<&str> = Some("keys with allowed_ips would admit more addresses");
const ORIGINS: Option<&str> = Some("keys with allowed_origins would admit more origins");

/// A change, and what the guard calls it where it refuses it.
const CHANGES: [(&str, [&str; 2], Option<&str>); 30] = [
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
    ("scopes", ["a", "*"], Some("keys would gain scopes")),
    ("scopes", ["a", "a b"], Some("keys would gain scopes")),
    ("scopes", ["a b", "a"], None),
    ("owner", ["acme", "bolt"], None),
    ("owner", ["acme", ""], None),
];

#[test]
fn each_kind_of_change_is_refused_beyond_its_share() {
    for (column, values, expected) in CHANGES {
        let change = format!("{column} {values:?}");
        let said = refused_change(40, column, values, &BY_DEFAULT);
        match (&said, expected) {
            (Some(said), Some(expected)) => {
                for part in
                    [": 40 of 4", expected, "more than source.max_", "(\"k0\", \"k1\", \"k2\" and others)"]
                {
                    assert!(said.contains(part), "{change}: {said:?} does not say {part:?}");
                }
            }
            (said, expected) => assert!(said.is_none() && expected.is_none(), "{change}: {said:?}"),
        }
        assert_eq!(refused_change(40, column, values, &EVERYTHING), None, "{change}");
        // One key may change in any way, unless its share is zero.
        assert_eq!(refused_change(1, column, values, &BY_DEFAULT), None, "{change}");
        assert_eq!(refused_change(1, column, values, &NOTHING).is_some(), expected.is_some(), "{change}");
    }
}

/// Keys with another change, in rows before them, are not named.
#[test]
fn refusal_names_the_keys_of_its_own_change() {
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
        let said = refused(&before, &after, &BY_DEFAULT).expect("refused");
        assert!(
            said.contains("40 of 41 ") && said.contains("(\"k100\", \"k101\", \"k102\" and others)"),
            "{said}"
        );
    }
}

/// A tenth of the keys may be widened, and ten at most, however large their share is.
#[test]
fn few_keys_may_be_widened_whatever_their_share() {
    for (count, few) in [(5, 1), (40, 4), (109, 10), (500, 10)] {
        for (returning, is_accepted) in [(few, true), (few + 1, false)] {
            let rows = |status| -> Vec<_> {
                let status = |number| if number < returning { status } else { "disabled" };
                (0..count).map(|number| row(number, "status", status(number))).collect()
            };
            let said = refused(&rows("revoked"), &rows("active"), &BY_DEFAULT);
            assert_eq!(said.is_none(), is_accepted, "{returning} of {count} keys: {said:?}");
        }
    }
}

/// Neither keys that did not work nor keys that are new make room for more that stop.
#[test]
fn stopping_keys_are_a_share_of_those_that_worked() {
    let rows = |active: &mut dyn Iterator<Item = usize>| -> Vec<_> {
        let active = active.map(|number| row(number, "status", "active"));
        active.chain((100..160).map(|number| row(number, "status", "revoked"))).collect()
    };
    let before = rows(&mut (0..40));
    assert_eq!(refused(&before, &rows(&mut (20..40).chain(200..400)), &BY_DEFAULT), None);
    let said = refused(&before, &rows(&mut (21..40).chain(200..400)), &BY_DEFAULT).expect("refused");
    assert!(said.contains("21 of 40 working keys would stop working"), "{said}");
}

/// After a change of pepper the hashes are others, and the ids are the same.
#[test]
fn rehashed_keys_are_matched_by_their_id() {
    let before = ["active", "active", "active", "revoked", "active"];
    let before: Vec<_> = (0..).zip(before).map(|(number, status)| row(number, "status", status)).collect();
    let after = [
        named(100, "k0", "status", "active"),
        named(101, "k1", "status", "disabled"),
        // In rotation: one of the two works.
        named(102, "k2", "status", "disabled"),
        named(103, "k2", "status", "active"),
        named(104, "k3", "status", "active"),
    ];
    let (before, after) = (keys(&before), keys(&after));
    let ids =
        |examples: &[Example]| examples.iter().map(|example| example.key_id.to_string()).collect::<Vec<_>>();
    let compared = |by_key_id| {
        let diff = after.diff_from(Some(&before), CompareOptions { now: AT, by_key_id });
        (ids(&diff.examples.stopping), ids(&diff.examples.starting))
    };
    let all = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(compared(true), (all(&["k1", "k4"]), all(&["k3"])));
    assert_eq!(compared(false), (all(&["k0", "k1", "k2", "k4"]), Vec::new()));
}
