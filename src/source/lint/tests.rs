//! Every lint, on rows that trigger it and on similar rows that do not.

use super::*;
use crate::{ColumnMapping, Diagnostics, Format, read};
use keyward_engine::key_format;

/// 2026-11-21 10:00:00 UTC.
const NOW: u32 = 1_795_255_200;

const HEADER: &str = "key_hash,key_id,owner,status,not_before,expires_at,scopes,allowed_ips,limits\n";

/// A record with the required fields only.
pub(super) fn record(key_id: &str) -> KeyRecord<'_> {
    KeyRecord::new(key_format::hash(b"an unguessable key"), key_id)
}

fn lint(rows: &str) -> LintReport {
    let limited = |record: &KeyRecord<'_>| !record.limits.is_empty() || record.plan == "pro";
    let mut linter = Linter::new(NOW, &limited);
    let mut diagnostics = Diagnostics::new("keys.csv");
    let mut sink = |line: u64, record: &KeyRecord<'_>| {
        linter.check(line, record);
        Ok(())
    };
    let text = format!("{HEADER}{rows}");
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("reads");
    assert_eq!(diagnostics.to_string(), "");
    linter.finish()
}

fn hash(text: &str) -> String {
    const_hex::encode(key_format::hash(text.as_bytes()))
}

/// A row with a strong digest. `rest` is what follows the key id.
fn row(number: usize, rest: &str) -> String {
    format!("{},k{number},{rest}\n", hash(&format!("long and random {number}")))
}

fn warnings(report: &LintReport) -> Vec<(u64, Lint, &str)> {
    report
        .select(MAX_WARNINGS)
        .into_iter()
        .map(|warning| (warning.line, warning.lint, warning.message.as_str()))
        .collect()
}

/// The lints of one row.
fn of(rest: &str) -> Vec<Lint> {
    warnings(&lint(&row(1, rest))).into_iter().map(|(_, lint, _)| lint).collect()
}

#[test]
fn unsuspicious_row_has_no_warning() {
    let fine = "acme,active,2026-01-01T00:00:00Z,2027-01-01T00:00:00Z,orders:read,192.0.2.0/24,100/s";
    assert_eq!(of(fine), []);
    let report = lint(&row(1, fine));
    assert_eq!((report.total(), report.warnings(), report.counts().count()), (0, 0, 0));
}

#[test]
fn missing_past_or_impossible_expiry_is_reported() {
    assert_eq!(of(",,,,,,1/s"), [Lint::NoExpiry]);
    assert_eq!(of(",,,infinity,,,1/s"), [Lint::NoExpiry]);
    assert_eq!(of(&format!(",,,{NOW},,,1/s")), [Lint::Expired], "the second in which it expires");
    assert_eq!(of(&format!(",,,{},,,1/s", NOW + 1)), []);
    assert_eq!(of(&format!(",disabled,,{NOW},,,")), [], "disabled, so not in force");
    assert_eq!(of(",,2027-01-01T00:00:00Z,2027-01-01T00:00:00Z,,,1/s"), [Lint::NeverValid]);
    assert_eq!(of(",,2028-01-01T00:00:00Z,2027-01-01T00:00:00Z,,,1/s"), [Lint::NeverValid]);
    let report = lint(&row(1, ",,,1700000000,,,"));
    let message = "active, but expired since 2023-11-14T22:13:20Z: leave it out, or mark it as revoked";
    assert_eq!(warnings(&report), [(2, Lint::Expired, message)], "the missing limit is not reported");
}

#[test]
fn permissions_of_revoked_rows_are_not_checked() {
    assert_eq!(of(",revoked,2028-01-01T00:00:00Z,1000000000,*,0.0.0.0/0,"), []);
    assert_eq!(
        of(",disabled,,2030-01-01T00:00:00Z,*,,"),
        [Lint::WildcardScope, Lint::NoLimit],
        "a disabled key may become active again"
    );
}

#[test]
fn limit_of_the_plan_counts_as_a_limit() {
    const END: &str = "2030-01-01T00:00:00Z";
    assert_eq!(of(&format!(",,,{END},,,")), [Lint::NoLimit]);
    let mut limited = record("k");
    limited.expires_at = NOW + 1;
    limited.plan = "pro";
    let by_plan = |record: &KeyRecord<'_>| record.plan == "pro";
    let mut linter = Linter::new(NOW, &by_plan);
    linter.check(2, &limited);
    assert_eq!(warnings(&linter.finish()), []);
}

#[test]
fn wildcard_scope_is_a_warning_and_wildcard_ending_a_note() {
    const END: &str = ",,,2030-01-01T00:00:00Z";
    assert_eq!(of(&format!("{END},orders:read *,,1/s")), [Lint::WildcardScope]);
    assert_eq!(of(&format!("{END},a:* orders:*,,1/s")), [Lint::WildcardEnding]);
    let report = lint(&row(1, &format!("{END},orders:*,,1/s")));
    assert_eq!(warnings(&report)[0].2, "the scope \"orders:*\" also covers future scopes that begin like it");
    assert_eq!((report.total(), report.warnings()), (1, 0), "a note is not a warning");
}

#[test]
fn wide_network_is_reported_unless_it_is_private() {
    for (network, wide) in [
        ("0.0.0.0/0", true),
        ("::/0", true),
        ("0.0.0.0/1", true),
        ("128.0.0.0/7", true),
        ("::ffff:0.0.0.0/96", true),
        ("2000::/3", true),
        ("2a00::/15", true),
        ("8.0.0.0/8", false),
        ("2a00::/16", false),
        ("10.0.0.0/8", false),
        ("fc00::/7", false),
        ("fd00::/8", false),
        ("fe80::/10", false),
        ("8.0.0.0/7", true),
        ("fc00::/6", true),
        ("192.0.2.7 203.0.113.0/24 0.0.0.0/0", true),
    ] {
        let expected: &[Lint] = if wide { &[Lint::WideNetwork] } else { &[] };
        assert_eq!(of(&format!(",,,2030-01-01T00:00:00Z,,{network},1/s")), expected, "{network}");
    }
    // Every row that shares the list gets a warning.
    let rest = ",,,2030-01-01T00:00:00Z,,::/0,1/s";
    let report = lint(&(1..=3).map(|number| row(number, rest)).collect::<String>());
    assert_eq!(report.total(), 3);
    assert_eq!(warnings(&report)[0].2, "::/0 restricts little: it is wider than /16");
}

#[test]
fn empty_list_is_reported_and_absent_list_is_not() {
    for (list, expected) in [("{}", 1), ("[]", 1), ("\"[ ]\"", 1), ("{ }", 1), ("", 0), ("{192.0.2.7}", 0)] {
        let report = lint(&row(1, &format!(",,,2030-01-01T00:00:00Z,,{list},1/s")));
        let found = warnings(&report).iter().filter(|(_, lint, _)| *lint == Lint::EmptyList).count();
        assert_eq!(found, expected, "{list}");
        assert_eq!(report.warnings(), expected as u64, "{list}: it fails a strict check");
    }
    let report = lint(&row(1, ",,,2030-01-01T00:00:00Z,,{},1/s"));
    assert!(warnings(&report)[0].2.contains("allowed_ips is an empty list, which admits no address"));
    let mut record = record("k");
    (record.allowed_origins, record.plan) = (Some([].into()), "pro");
    record.expires_at = NOW + 1;
    let limited = |_: &KeyRecord<'_>| true;
    let mut linter = Linter::new(NOW, &limited);
    linter.check(2, &record);
    let report = linter.finish();
    assert!(warnings(&report)[0].2.contains("allowed_origins is an empty list, which admits no origin"));
}

#[test]
fn hash_of_a_guessable_key_is_reported() {
    const REST: &str = "Acme Inc.,,,2030-01-01T00:00:00Z,,,1/s";
    let weak = |hash: &str| -> Option<String> {
        let report = lint(&format!("{hash},ci-1,{REST}\n"));
        let warnings = warnings(&report);
        assert!(
            warnings.len() <= 1 && warnings.iter().all(|(_, lint, _)| *lint == Lint::WeakHash),
            "{warnings:?}"
        );
        warnings.first().map(|(.., message)| (*message).to_owned())
    };
    let text = |text: &[u8]| const_hex::encode(text);
    for (hash, part) in [
        (hash(""), "an empty text"),
        (hash("\n"), "an empty line"),
        (hash("changeme"), "\"changeme\""),
        (hash("secret\n"), "\"secret\" and a newline"),
        (hash("7"), "\"7\""),
        (hash("0042"), "\"0042\""),
        (hash("9999\n"), "\"9999\" and"),
        (hash("1234567890"), "\"1234567890\""),
        (hash("ci-1"), "the key_id"),
        (hash("Acme Inc."), "the owner"),
        ("00".repeat(32), "only 1 different"),
        ("0123456789abcdef".repeat(4), "only 8 different"),
        ("deadbeef00".repeat(7)[..64].to_owned(), "only 5 different"),
        (text(b"5f4dcc3b5aa765d61d8327deb882cf99"), "32 hex digits"),
        (text(b"K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72"), "the key itself"),
    ] {
        let message = weak(&hash).unwrap_or_default();
        assert!(message.contains(part), "{hash}: {message:?} does not say {part:?}");
        assert!(!message.contains(&hash[..8]), "the message contains no part of the digest: {message}");
    }
    for strong in ["ci-2", "99999", "Acme", "acme_live_0123456789ABCDEFGHIJKLMNOPQRST4MTgoG"] {
        assert_eq!(weak(&hash(strong)), None, "{strong}");
    }
}

#[test]
fn hash_of_a_minted_key_is_never_weak() {
    let prefix = key_format::Prefix::default();
    let rows = (0..20_000).map(|number| {
        let key = key_format::mint(&prefix).expect("randomness");
        format!("{},k{number},acme,,,2030-01-01T00:00:00Z,,,1/s\n", hash(&key))
    });
    assert_eq!(warnings(&lint(&rows.collect::<String>())), []);
}

#[test]
fn endless_rotation_is_reported_once_per_key() {
    let rotation = |times: &[&str]| {
        let rows = times.iter().enumerate().map(|(number, time)| {
            let hash = hash(&format!("long and random {number}"));
            format!("{hash},k,,{time},,,1/s\n")
        });
        let rotations: Vec<_> = lint(&rows.collect::<String>())
            .counts()
            .filter(|(lint, _)| *lint == Lint::EndlessRotation)
            .map(|(_, total)| total)
            .collect();
        rotations.first().copied().unwrap_or(0)
    };
    assert_eq!(rotation(&["active,,"]), 0);
    assert_eq!(rotation(&["active,,", "active,,"]), 1);
    assert_eq!(rotation(&["active,,", "active,,", "active,,"]), 1);
    assert_eq!(rotation(&["active,,2030-01-01T00:00:00Z", "active,,"]), 0, "the old key expires");
    assert_eq!(rotation(&["active,,", "active,,", "active,,2030-01-01T00:00:00Z"]), 0);
    assert_eq!(rotation(&["revoked,,", "active,,"]), 0);
    assert_eq!(rotation(&["active,,1000000000", "active,,"]), 0, "one row is expired");
    assert_eq!(rotation(&["active,,1000000000", "active,,", "active,,"]), 1);
    let rows: String = (0..100)
        .map(|number| format!("{},k{},,,,,,,1/s\n", hash(&format!("random {number}")), number % 50))
        .collect();
    let report = lint(&rows);
    assert!(report.counts().any(|count| count == (Lint::EndlessRotation, 50)));
    let first = warnings(&report).into_iter().find(|(_, lint, _)| *lint == Lint::EndlessRotation);
    assert_eq!(first.map(|(line, ..)| line), Some(2), "at the first row of the first key");
}

#[test]
fn near_duplicate_is_reported_with_the_line_of_the_other() {
    let rows = format!(
        "{},Ci-1,,,,2030-01-01T00:00:00Z,,,1/s\n{},ci_l,,revoked,,,,,\n",
        hash("long and random"),
        hash("random and long")
    );
    let message = "the key_id \"ci_l\" is easily mistaken for that of line 2: they differ only in case, in spaces, in - _ . or in \
                   characters that are invisible or look alike";
    assert_eq!(warnings(&lint(&rows)), [(3, Lint::NearDuplicate, message)]);
}

#[test]
fn look_alikes_among_ids_and_owners_are_reported() {
    let pairs = [
        ("acme-1", "acme-1 ", true),
        ("acme-1", "acme-1\u{200b}", true),
        ("acme-1", "ac\u{ad}me-1", true),
        ("acme-1", "\u{202d}acme-1", true),
        ("acme-1", "acme-1\u{fe0f}", true),
        ("caf\u{e9}", "cafe\u{301}", false),
        ("acme-1", "\u{430}cme-1", false),
    ];
    let end = "2030-01-01T00:00:00Z";
    let line = |number: usize, id: &str, owner: &str| {
        format!("{},{id},{owner},,,{end},,,1/s\n", hash(&format!("long and random {number}")))
    };
    for (one, other, is_hidden) in pairs {
        for rows in [
            [line(1, one, "o"), line(2, "k", "o"), line(3, other, "o")].concat(),
            [line(1, "k1", one), line(2, "k2", ""), line(3, "k3", other), line(4, "k4", one)].concat(),
        ] {
            let report = lint(&rows);
            let mut expected = vec![(4, Lint::NearDuplicate)];
            expected.extend(is_hidden.then_some((4, Lint::HiddenCharacters)));
            let found: Vec<_> = warnings(&report).iter().map(|(line, lint, _)| (*line, *lint)).collect();
            assert_eq!(found, expected, "{one:?} {other:?}");
            assert!(report.warnings() > 0, "it fails a strict check");
            for (.., message) in warnings(&report) {
                assert!(!message.contains(is_invisible), "{message:?}");
            }
        }
    }
    let alone = lint(&line(1, "a\u{202e}b", " o"));
    assert_eq!(
        warnings(&alone).iter().map(|(_, lint, _)| *lint).collect::<Vec<_>>(),
        [Lint::HiddenCharacters; 2]
    );
    assert_eq!(warnings(&lint(&line(1, "名前-é", "Müller und Söhne"))), []);
}
