//! Bad rows: an export with one is refused, or its keys are disabled and all other rows take
//! effect.

use std::fs;

use crate::support::bad_rows::{SET_ASIDE, export, invalid, start, valid, withheld};
use crate::support::{
    CommandOutput, Daemon, Export, Row, Setup, keyward, line, owner_target, replace_export, row, run,
    sha256_hex,
};
use keyward_admin::message::Withheld;

/// Kinds of bad rows of the key `k`. All have a readable hash.
fn bad_rows() -> Vec<(&'static str, Vec<Row>)> {
    let k = || valid("k");
    let literal = |rest: &str| line(format!("{},k,{rest}", sha256_hex("k")));
    let large_metadata = format!("{{\"a\":\"{}\"}}", "x".repeat(4_100));
    vec![
        ("a newline in the owner", vec![k().owner("ac\nme")]),
        ("a tab in the owner", vec![k().owner("ac\tme")]),
        ("a long owner", vec![k().owner("o".repeat(130))]),
        ("large metadata", vec![k().metadata(large_metadata)]),
        ("an unknown status", vec![k().status("t")]),
        ("an impossible time", vec![k().expires_at("2026-13-01")]),
        ("an impossible network", vec![k().allowed_ips("10.0.0.0/33")]),
        ("an invalid limit", vec![k().limits("often")]),
        ("metadata that is not an object", vec![k().metadata("[]")]),
        ("no id", vec![k().id("")]),
        ("one column too many", vec![literal("ac,me,,,,,")]),
        ("one column too few", vec![literal("acme,,,,")]),
        ("a duplicate", vec![k(), k().status("revoked")]),
        ("an identical duplicate", vec![k(), k()]),
        ("an invalid duplicate", vec![k(), invalid("k")]),
        ("a duplicate of a bad row", vec![invalid("k"), k()]),
        ("rotation with two owners", vec![valid("k2").id("rotated"), k().id("rotated").owner("other")]),
        (
            "rotation with two limits",
            vec![valid("k2").id("rotated").limits("1/s"), k().id("rotated").limits("2/s")],
        ),
    ]
}

#[test]
fn set_aside_key_is_disabled_and_all_other_rows_take_effect() {
    let before = export([valid("k"), valid("revoked-next")]);
    let daemon = start(SET_ASIDE, &before);
    for (kind, bad) in bad_rows() {
        let restored = daemon.publish(&before);
        assert!(restored.accepted, "{kind}: {:?}", restored.error);
        assert_eq!(daemon.verdict("k"), "ALLOWED", "{kind}");
        let rows = [valid("revoked-next").status("revoked"), valid("new")];
        let outcome = daemon.publish(export(rows).rows(bad));
        assert!(outcome.accepted, "{kind}: {:?}", outcome.error);
        let reported = outcome.withheld.unwrap_or_else(|| panic!("{kind}: nothing is withheld"));
        let is_rotation = kind.starts_with("rotation");
        let set_aside = if is_rotation { 2 } else { 1 };
        assert_eq!((reported.set_aside, reported.unreadable_rows), (set_aside, 0), "{kind}: {reported:?}");
        assert!(reported.bad_rows >= 1 && !reported.diagnostics.is_empty(), "{kind}: {reported:?}");
        assert_eq!(withheld(&daemon), reported, "{kind}");
        assert_eq!(daemon.verdict("k"), "DISABLED", "{kind}");
        // The id is reported if it is readable.
        if kind != "no id" && !is_rotation {
            assert_eq!(reported.set_aside_keys, ["k"], "{kind}");
        }
        if is_rotation {
            assert_eq!(daemon.verdict("k2"), "DISABLED", "{kind}: either row may be the wrong one");
        }
        let verdicts = daemon.verdicts(["revoked-next", "new", "other7"]);
        assert_eq!(verdicts, ["REVOKED", "ALLOWED", "ALLOWED"], "{kind}");
        let event = daemon.setup.audit_events("reload").pop().expect("an event");
        assert_eq!(
            (&event["set_aside"], &event["unreadable_rows"]),
            (&set_aside.into(), &0.into()),
            "{event}"
        );
    }
    daemon.assert_logged("SET ASIDE");
    // After the corrected export the key works again, and nothing is withheld.
    let outcome = daemon.publish(&before);
    assert!(outcome.accepted && outcome.changes.is_some_and(|changes| changes.starting >= 2), "{outcome:?}");
    assert_eq!(daemon.verdict("k"), "ALLOWED");
    assert_eq!(withheld(&daemon), Withheld::default());
}

#[test]
fn invalid_rows_refuse_the_source_by_default() {
    let daemon = start("", export([valid("k"), valid("revoked-next")]));
    for (kind, bad) in bad_rows() {
        let outcome = daemon.publish(export([valid("revoked-next").status("revoked")]).rows(bad));
        assert!(!outcome.accepted && outcome.withheld.is_none(), "{kind}: {outcome:?}");
        assert_eq!(daemon.verdicts(["k", "revoked-next"]), ["ALLOWED"; 2], "{kind}");
    }
}

#[test]
fn key_of_an_unreadable_hash_is_reported_and_unknown() {
    let before = export([valid("k")]);
    let daemon = start(SET_ASIDE, &before);
    for bad in [valid("k").hash(&sha256_hex("k")[1..]), valid("k").hash(""), line("k")] {
        assert!(daemon.publish(&before).accepted);
        let outcome = daemon.publish(export([bad.clone()]));
        assert!(outcome.accepted, "{bad:?}: {:?}", outcome.error);
        let reported = withheld(&daemon);
        assert_eq!((reported.bad_rows, reported.unreadable_rows, reported.set_aside), (1, 1, 0), "{bad:?}");
        assert_eq!(daemon.verdict("k"), "UNKNOWN_KEY", "{bad:?}");
    }
}

#[test]
fn invalid_lines_of_json_are_set_aside() {
    let valid = |key: &str| Export::of([key]).to_json_lines();
    let others = Export::of((0..20).map(|number| format!("other{number}"))).to_json_lines();
    let setup = Setup::without_export().text_source();
    let source = setup.path("keys.jsonl");
    fs::write(&source, format!("{others}{}", valid("k"))).expect("writes");
    let settings = "source.max_shrink = 1.0\nsource.on_bad_row = 'set-aside'";
    let daemon = setup.config(&format!("source.path = '{}'\n{settings}", source.display())).start();
    let hash = sha256_hex("k");
    let other_hash = sha256_hex("other3");
    for bad in [
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"status\":\"t\"}}\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"what\":1}}\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"owner\":\"a\tb\"}}\n"),
        format!("{{\"key_id\": 12, \"key_hash\" : \"{hash}\", \"owner\":\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"key_id\":\"k\"}}\n"),
        // Only the row object's own field is the hash, not a nested one or one that resembles it.
        format!(
            "{{\"metadata\":{{\"key_hash\":\"x\"}},\"key_id\":\"k\",\"key_hash\":\"{hash}\",\"status\":\"t\"}}\n"
        ),
        format!("{{\"key_id\":\"k\",\"key\\u005fhash\":\"{hash}\",\"status\":\"t\"}}\n"),
        format!("{{\"owner\":\"key_hash\",\"key_id\":\"k\",\"key_hash\":\"{hash}\",\"status\":\"t\"}}\n"),
        format!(
            "{{\"metadata\":{{\"key_hash\":\"{other_hash}\"}},\"key_id\":\"k\",\"key_hash\":\"{hash}\",\"status\":\"t\"}}\n"
        ),
        valid("k") + &format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"status\":\"revoked\"}}\n"),
        valid("k") + &format!("{{\"key_hash\":\"{hash}\",\"status\":\"revoked\",\n"),
    ] {
        replace_export(&source, format!("{others}{}", valid("k")));
        let restored = daemon.reload();
        assert!(restored.accepted, "{bad}: {:?}", restored.error);
        assert_eq!(daemon.verdict("k"), "ALLOWED");
        replace_export(&source, format!("{others}{bad}"));
        let outcome = daemon.reload();
        assert!(outcome.accepted, "{bad}: {:?}", outcome.error);
        assert_eq!(daemon.verdicts(["k", "other3"]), ["DISABLED", "ALLOWED"], "{bad}");
    }
    // The row's hash is ambiguous.
    for ambiguous in [
        format!("{{\"key_hash\":\"{hash}\",\"metadata\":{{\"a\":\"{other_hash}\"}},\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_hash\":\"{other_hash}\",\"key_id\":\"k\"}}\n"),
    ] {
        replace_export(&source, format!("{others}{ambiguous}"));
        let error = daemon.reload().error.expect("refused");
        assert!(error.contains("it cannot be set aside"), "{error}");
        assert_eq!(daemon.verdict("other3"), "ALLOWED");
    }
    // An unterminated last line may be incomplete.
    replace_export(&source, format!("{others}{}", valid("k").trim_end()));
    assert!(!daemon.reload().accepted, "an unterminated last line");
}

#[test]
fn rows_set_aside_are_limited_by_max_bad_rows_and_max_shrink() {
    let all = export(["a", "b", "c", "d"].map(valid));
    let three_invalid = || export([invalid("a"), invalid("b"), invalid("c"), valid("d")]);
    let daemon = start(&format!("{SET_ASIDE}max_bad_rows = 2\n"), &all);
    let two_invalid = [invalid("a"), invalid("b"), valid("c"), valid("d").status("revoked")];
    let outcome = daemon.publish(export(two_invalid));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(outcome.changes.map(|changes| changes.stopping), Some(3));
    let error = daemon.publish(three_invalid()).error.expect("refused");
    assert!(
        error.contains("3 rows cannot be understood") && error.contains("source.max_bad_rows"),
        "{error}"
    );
    assert_eq!(daemon.verdicts(["c", "d"]), ["ALLOWED", "REVOKED"], "unchanged");

    let max_shrink = "[source]\nmax_shrink = 0.1\non_bad_row = 'set-aside'\n";
    let daemon = start(max_shrink, &all);
    let outcome = daemon.publish(three_invalid());
    assert!(outcome.error.is_some_and(|error| error.contains("source.max_shrink")));
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    // A restriction that only bad rows have is not lost: their keys are disabled.
    let restricted_to = |network: &str| export([valid("a").allowed_ips(network), valid("b")]);
    assert!(daemon.publish(restricted_to("10.0.0.0/8")).accepted);
    let outcome = daemon.publish(restricted_to("10.0.0.0/88"));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(daemon.verdict("a"), "DISABLED");
}

#[test]
fn keys_set_aside_stay_disabled_over_a_restart_and_return_without_force() {
    let ids: Vec<String> = (0..8).map(|number| format!("k{number}")).collect();
    let all = export(ids.iter().map(valid));
    let daemon = start(SET_ASIDE, &all);
    assert!(daemon.publish(export(ids.iter().map(invalid))).accepted);
    daemon.wait_until_saved();
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert!(daemon.status().last_good.is_some_and(|saved| saved.in_use), "{}", daemon.log());
    assert_eq!(daemon.verdict("k3"), "DISABLED");
    assert_eq!(withheld(&daemon).set_aside, 8);
    let outcome = daemon.publish(&all);
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(daemon.verdict("k3"), "ALLOWED");
    assert_eq!(outcome.changes.map(|changes| changes.starting), Some(8));
}

#[test]
fn lost_restriction_is_detected_beside_a_row_set_aside() {
    let daemon = start(SET_ASIDE, export([valid("a").allowed_ips("10.0.0.0/8"), valid("b")]));
    let rows = ["a", "b", "off"].map(|key| row(key).status("disabled"));
    let outcome = daemon.publish(Export::new(rows).rows([row("bad").status("t")]));
    let error = outcome.error.expect("refused");
    assert!(error.contains("no row has a value for allowed_ips"), "{error}");
    assert_eq!(daemon.verdict("a"), "IP_NOT_ALLOWED");
}

#[test]
fn check_reports_rows_that_would_be_set_aside() {
    let setup = Setup::text(export([invalid("bad"), valid("k").hash(&sha256_hex("k")[1..])]));
    let config = setup.path("check.toml");
    let check = |settings: &str, options: &[&str]| {
        let source = setup.source();
        fs::write(&config, format!("[source]\npath = '{}'\n{settings}", source.display())).expect("writes");
        let mut command = keyward();
        command.args(["check", "--config"]).arg(&config).arg("--state-dir").arg(setup.dir.path());
        run(command.args(options))
    };
    let output = check("", &[]);
    assert_eq!(output.code, Some(78), "{output:?}");
    let set_aside = "on_bad_row = 'set-aside'\n";
    let CommandOutput { code, stdout, stderr } = check(set_aside, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("control character"), "{stderr}");
    assert!(stderr.contains("2 rows set aside, 1 key disabled"), "{stderr}");
    assert!(stdout.contains(": ok"), "{stdout}");
    assert_eq!(check(set_aside, &["--strict"]).code, Some(1));
    let report = check(set_aside, &["--json"]).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["withheld"]["set_aside_keys"], serde_json::json!(["bad"]), "{report}");
    let CommandOutput { code, stderr, .. } = check(&format!("{set_aside}max_bad_rows = 1\n"), &[]);
    assert_eq!(code, Some(78), "{stderr}");
    assert!(
        stderr.contains("2 rows cannot be understood, and source.max_bad_rows lets 1 be set aside"),
        "{stderr}"
    );
}

/// Text inside one row must neither add a key nor remove one.
#[test]
fn row_with_an_uncertain_end_refuses_the_source() {
    let evil = sha256_hex("evil");
    let [a, b] = ["a", "b"].map(sha256_hex);
    let quoted = |id: &str, owner: &str| {
        line(format!("\"{}\",\"{id}\",\"{owner}\",\"\",\"\",\"\",\"\",\"\"", sha256_hex(id)))
    };
    let config = format!("{SET_ASIDE}apply_takeaways_of_refused = true\n");
    let daemon = start(&config, export([valid("k")]));
    for (kind, rows) in [
        ("text after a closing quote", vec![line(format!("{a},a,\"acme\"x,,,,,"))]),
        ("a quote in an unquoted field", vec![line(format!("{a},a,5\" disks,,,,,"))]),
        (
            "a backslash before the closing quote of a field",
            vec![quoted("a", &format!("x\\\",,,,,\r{evil},evil,admin,,,,,\rz"))],
        ),
        (
            "a backslash before a quote",
            vec![quoted("a", &format!("a\\\"\r{evil},evil,admin,,,,,\r")), quoted("b", "o")],
        ),
        (
            "a quote that is closed in a later row",
            vec![
                line(format!("{a},a,\"o3,,,,,")),
                valid("b"),
                valid("c"),
                line(format!("{},d,o12\",,,,,", sha256_hex("d"))),
            ],
        ),
        (
            "a quote that is closed in the next row",
            vec![line(format!("{a},a,\"o3,,,,,")), line(format!("{b},b,o4\",,,,,"))],
        ),
        ("two hashes in a shifted row", vec![line(format!("x,{},{a},a,acme,,,,,", sha256_hex("other3")))]),
    ] {
        let outcome = daemon.publish(export([valid("k").status("revoked")]).rows(rows));
        let error = outcome.error.unwrap_or_else(|| panic!("{kind} was accepted: {:?}", outcome.withheld));
        assert!(error.contains("it cannot be set aside"), "{kind}: {error}");
        assert_eq!(outcome.withheld, None, "{kind}: nothing is withheld");
        assert_eq!(daemon.verdicts(["k", "other3", "evil"]), ["ALLOWED", "ALLOWED", "UNKNOWN_KEY"], "{kind}");
    }
}

/// Two reloads must not achieve what one cannot: first bad rows, then the same keys without
/// restrictions.
#[test]
fn key_set_aside_does_not_return_with_wider_access() {
    const EXPIRY: &str = "2040-01-01T00:00:00Z";
    type Restrict = fn(Row) -> Row;
    let export = |groups: [(&str, Restrict); 3], witnesses: Vec<Row>| {
        let groups = groups
            .into_iter()
            .flat_map(|(id, restrict)| (0..30).map(move |number| restrict(row(format!("{id}{number}")))));
        let others = (0..40).map(|number| valid(format!("p{number}")));
        Export::new(others.chain(groups).chain(witnesses))
    };
    // Witnesses keep every restriction in the source.
    let revoked_witness = || row("keep-r").status("revoked");
    let restricted_witness = || row("keep").expires_at(EXPIRY).allowed_ips("10.0.0.0/8").limits("1/s");
    let witnesses = || vec![revoked_witness(), restricted_witness()];
    let before: [(&str, Restrict); 3] = [
        ("r", |row| row.status("revoked")),
        ("n", |row| row.allowed_ips("10.0.0.0/8")),
        ("e", |row| row.expires_at(EXPIRY).limits("1/s")),
    ];
    let invalid: [(&str, Restrict); 3] = [
        ("r", |row| row.status("REVOKED!")),
        ("n", |row| row.allowed_ips("10.0.0.1/8")),
        ("e", |row| row.expires_at(EXPIRY).limits("often")),
    ];
    let unrestricted: [(&str, Restrict); 3] = [("r", |row| row), ("n", |row| row), ("e", |row| row)];
    let without_columns =
        Export::of((0..30).flat_map(|number| ["r", "n", "e", "p"].map(|id| format!("{id}{number}"))));
    let config = format!("{SET_ASIDE}max_bad_rows = 200\n");
    let mut daemon = start(&config, export(before, witnesses()));
    for is_restarted in [false, true] {
        let outcome = daemon.publish(export(invalid, witnesses()));
        assert!(outcome.accepted, "{:?}", outcome.error);
        let verdicts = |daemon: &Daemon| daemon.verdicts(["r1", "n1", "e1"]);
        assert_eq!(verdicts(&daemon), ["DISABLED"; 3]);
        if is_restarted {
            daemon.wait_until_saved();
            // The second daemon reads what the first has read from the saved keys alone.
            daemon = daemon.kill_and_restart().kill_and_restart();
        }
        for (case, export, messages) in [
            (
                "columns lost",
                &without_columns,
                &["no row has a value for", "allowed_ips", "30 of 31 revoked keys"][..],
            ),
            (
                "values lost",
                &export(unrestricted, witnesses()),
                &[
                    "30 of 31 revoked keys would work again",
                    "30 of 31 keys with allowed_ips",
                    "30 of 31 keys that expire",
                    "30 of 31 keys with limits",
                ],
            ),
        ] {
            let error = daemon.publish(export).error.unwrap_or_else(|| panic!("{case}: accepted"));
            for message in messages {
                assert!(error.contains(message), "{case}: {message}: {error}");
            }
            assert_eq!(verdicts(&daemon), ["DISABLED"; 3]);
        }
        // A row that is still invalid neither hides a lost restriction nor counts as one.
        let mut partly_invalid = before;
        partly_invalid[1] = invalid[1];
        let outcome = daemon.publish(export(partly_invalid, vec![revoked_witness()]));
        assert!(outcome.accepted, "{:?}", outcome.error);
        // With the restrictions that they had, the keys return.
        let outcome = daemon.publish(export(before, witnesses()));
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(verdicts(&daemon), ["REVOKED", "IP_NOT_ALLOWED", "ALLOWED"]);
    }
}

/// An owner is revoked by an operator. In the next export, one row of this owner is set aside and
/// all others are revoked.
#[test]
fn source_with_rows_set_aside_does_not_agree_with_a_revocation() {
    let unreadable = row("k2").owner("tenant").hash(&sha256_hex("k2")[1..]);
    for bad in [row("k2").owner("ten\tant"), unreadable] {
        let tenant = |key: &str| row(key).owner("tenant");
        let config = format!("{SET_ASIDE}[revocation]\nkeep = '0s'\n");
        let daemon = start(&config, export(["k1", "k2"].map(tenant)));
        daemon.revoke(owner_target("tenant"));
        let outcome = daemon.publish(export([tenant("k1").status("revoked"), bad]));
        assert!(outcome.accepted && outcome.revocations_agreed == 0, "{outcome:?}");
        let outcome = daemon.publish(export([tenant("k1").status("revoked"), tenant("k2")]));
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(daemon.verdict("k2"), "REVOKED");
    }
}

/// A compiled file cannot describe what is wrong with a row.
#[test]
fn compile_refuses_rows_that_the_daemon_would_set_aside() {
    let setup = Setup::text(export([invalid("k")]));
    let (config, output) = (setup.path("set-aside.toml"), setup.path("keys.kwc"));
    fs::write(&config, SET_ASIDE).expect("writes");
    let compile = |setup: &Setup| {
        let mut command = keyward();
        command.arg("compile").arg(setup.source()).arg("--output").arg(&output);
        run(command.arg("--config").arg(&config))
    };
    let refused = compile(&setup);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("control character"), "{refused:?}");
    assert!(!output.exists());
    replace_export(&setup.source(), export([valid("k")]));
    let accepted = compile(&setup);
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
}
