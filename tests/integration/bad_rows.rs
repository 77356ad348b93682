//! Rows that cannot be understood: they refuse the source, or their keys are disabled and all other rows take effect.

use std::fs;

use crate::support::bad_rows::{HEADER, SET_ASIDE, export, good, reload_events, row, start, withheld};
use crate::support::{Daemon, Setup, keyward, replace_export, sha256_hex, wait_for};
use keyward_daemon::admin::message::Withheld;
use keyward_daemon::admin::message::{Command as AdminCommand, Target};

/// Rows of `k` that cannot be understood, each in another way. The hash of all of them can be read.
fn bad_rows() -> Vec<(&'static str, String)> {
    let hash = sha256_hex("k");
    let field = |rest: &str| row("k", rest);
    vec![
        ("a newline in the owner", field("\"ac\nme\",,,,,")),
        ("a tab in the owner", field("ac\tme,,,,,")),
        ("a long owner", field(&format!("{},,,,,", "o".repeat(130)))),
        ("large metadata", field(&format!("acme,,,,,\"{{\"\"a\"\":\"\"{}\"\"}}\"", "x".repeat(4_100)))),
        ("a status that is none", field("acme,t,,,,")),
        ("a time that is none", field("acme,,2026-13-01,,,")),
        ("a network that is none", field("acme,,,10.0.0.0/33,,")),
        ("a limit that is none", field("acme,,,,often,")),
        ("metadata that is no object", field("acme,,,,,[]")),
        ("no id", format!("{hash},,acme,,,,,\n")),
        ("a column too many", field("ac,me,,,,,")),
        ("a column too few", field("acme,,,,")),
        ("a duplicate", good("k") + &row("k", "acme,revoked,,,,")),
        ("a duplicate that says the same", good("k") + &good("k")),
        ("a duplicate that is bad itself", good("k") + &row("k", "ac\tme,,,,,")),
        ("a duplicate after a bad row", row("k", "ac\tme,,,,,") + &good("k")),
        (
            "another owner than its key's",
            format!("{},k-rotated,acme,,,,,\n{hash},k-rotated,other,,,,,\n", sha256_hex("k2")),
        ),
        (
            "other limits than its key's",
            format!("{},k-rotated,acme,,,,1/s,\n{hash},k-rotated,acme,,,,2/s,\n", sha256_hex("k2")),
        ),
    ]
}

#[test]
fn key_of_each_kind_of_bad_row_is_disabled_and_all_other_rows_take_effect() {
    let before = export(&[good("k"), good("revoked-next")]);
    let daemon = start(SET_ASIDE, &before);
    for (kind, bad) in bad_rows() {
        let mended = daemon.publish(&before);
        assert!(mended.accepted, "{kind}: {:?}", mended.error);
        assert_eq!(daemon.verdict("k"), "ALLOWED", "{kind}");
        let outcome = daemon.publish(&export(&[row("revoked-next", "acme,revoked,,,,"), bad, good("new")]));
        assert!(outcome.accepted, "{kind}: {:?}", outcome.error);
        let told = outcome.withheld.unwrap_or_else(|| panic!("{kind}: withheld"));
        let disabled = if kind.contains("than its key's") { 2 } else { 1 };
        assert_eq!((told.set_aside, told.unreadable_rows), (disabled, 0), "{kind}: {told:?}");
        assert!(told.bad_rows >= 1 && !told.diagnostics.is_empty(), "{kind}: {told:?}");
        assert_eq!(withheld(&daemon), told, "{kind}");
        assert_eq!(daemon.verdict("k"), "DISABLED", "{kind}");
        // An operator can name it by its id, if that can be read.
        if !["no id", "than its key's"].iter().any(|other| kind.contains(other)) {
            assert_eq!(told.set_aside_keys, ["k"], "{kind}");
        }
        assert_eq!(daemon.verdict("revoked-next"), "REVOKED", "{kind}");
        assert_eq!([daemon.verdict("new"), daemon.verdict("other7")], ["ALLOWED", "ALLOWED"], "{kind}");
        if kind.contains("than its key's") {
            assert_eq!(daemon.verdict("k2"), "DISABLED", "{kind}: which row is right cannot be told");
        }
        let event = reload_events(&daemon).pop().expect("an event");
        assert_eq!(
            (&event["set_aside"], &event["unreadable_rows"]),
            (&disabled.into(), &0.into()),
            "{event}"
        );
    }
    daemon.assert_logged("SET ASIDE");
    // The mended export lets the key work again, and nothing is withheld any more.
    let outcome = daemon.publish(&before);
    assert!(outcome.accepted && outcome.changes.is_some_and(|changes| changes.starting >= 2), "{outcome:?}");
    assert_eq!(daemon.verdict("k"), "ALLOWED");
    assert_eq!(withheld(&daemon), Withheld::default());
}

#[test]
fn same_rows_refuse_the_source_unless_they_may_be_set_aside() {
    let before = export(&[good("k"), good("revoked-next")]);
    let daemon = start("", &before);
    for (kind, bad) in bad_rows() {
        let outcome = daemon.publish(&export(&[row("revoked-next", "acme,revoked,,,,"), bad]));
        assert!(!outcome.accepted && outcome.withheld.is_none(), "{kind}: {outcome:?}");
        assert_eq!([daemon.verdict("k"), daemon.verdict("revoked-next")], ["ALLOWED"; 2], "{kind}");
    }
}

#[test]
fn hash_that_cannot_be_read_is_reported_and_its_key_unknown() {
    let before = export(&[good("k")]);
    let daemon = start(SET_ASIDE, &before);
    for bad in
        [format!("{},k,acme,,,,,\n", &sha256_hex("k")[1..]), ",k,acme,,,,,\n".to_owned(), "k\n".to_owned()]
    {
        assert!(daemon.publish(&before).accepted);
        let outcome = daemon.publish(&export(std::slice::from_ref(&bad)));
        assert!(outcome.accepted, "{bad}: {:?}", outcome.error);
        let told = withheld(&daemon);
        assert_eq!((told.bad_rows, told.unreadable_rows, told.set_aside), (1, 1, 0), "{bad}");
        assert_eq!(daemon.verdict("k"), "UNKNOWN_KEY", "{bad}");
    }
}

#[test]
fn bad_lines_of_json_are_set_aside_too() {
    let good = |id: &str| format!("{{\"key_hash\":\"{}\",\"key_id\":\"{id}\"}}\n", sha256_hex(id));
    let others: String = (0..20).map(|number| good(&format!("other{number}"))).collect();
    let setup = Setup::without_export().text_source();
    let source = setup.path("keys.jsonl");
    fs::write(&source, format!("{others}{}", good("k"))).expect("writes");
    let settings = "source.max_shrink = 1.0\nsource.on_bad_row = 'set-aside'";
    let daemon = setup.config(&format!("source.path = '{}'\n{settings}", source.display())).start();
    let hash = sha256_hex("k");
    for bad in [
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"status\":\"t\"}}\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"what\":1}}\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"owner\":\"a\tb\"}}\n"),
        format!("{{\"key_id\": 12, \"key_hash\" : \"{hash}\", \"owner\":\n"),
        format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"key_id\":\"k\"}}\n"),
        // The hash is that of the object, and of nothing that is in it or looks like it.
        format!(
            "{{\"metadata\":{{\"key_hash\":\"x\"}},\"key_id\":\"k\",\"key_hash\":\"{hash}\",\"status\":\"t\"}}\n"
        ),
        format!("{{\"key_id\":\"k\",\"key\\u005fhash\":\"{hash}\",\"status\":\"t\"}}\n"),
        format!("{{\"owner\":\"key_hash\",\"key_id\":\"k\",\"key_hash\":\"{hash}\",\"status\":\"t\"}}\n"),
        format!(
            "{{\"metadata\":{{\"key_hash\":\"{}\"}},\"key_id\":\"k\",\"key_hash\":\"{hash}\",\"status\":\"t\"}}\n",
            sha256_hex("other3")
        ),
        good("k") + &format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"k\",\"status\":\"revoked\"}}\n"),
        good("k") + &format!("{{\"key_hash\":\"{hash}\",\"status\":\"revoked\",\n"),
    ] {
        replace_export(&source, &format!("{others}{}", good("k")));
        let mended = daemon.reload();
        assert!(mended.accepted, "{bad}: {:?}", mended.error);
        assert_eq!(daemon.verdict("k"), "ALLOWED");
        replace_export(&source, &format!("{others}{bad}"));
        let outcome = daemon.reload();
        assert!(outcome.accepted, "{bad}: {:?}", outcome.error);
        assert_eq!(daemon.verdict("k"), "DISABLED", "{bad}");
        assert_eq!(daemon.verdict("other3"), "ALLOWED", "{bad}");
    }
    // Whose row it is cannot be told.
    for uncertain in [
        format!("{{\"key_hash\":\"{hash}\",\"metadata\":{{\"a\":\"{}\"}},\n", sha256_hex("other3")),
        format!("{{\"key_hash\":\"{hash}\",\"key_hash\":\"{}\",\"key_id\":\"k\"}}\n", sha256_hex("other3")),
    ] {
        replace_export(&source, &format!("{others}{uncertain}"));
        let error = daemon.reload().error.expect("refused");
        assert!(error.contains("it cannot be set aside"), "{error}");
        assert_eq!(daemon.verdict("other3"), "ALLOWED");
    }
    // What follows one whose end is missing could be part of it.
    replace_export(&source, &format!("{others}{}", good("k").trim_end()));
    assert!(!daemon.reload().accepted, "an unterminated last line");
}

#[test]
fn rows_are_set_aside_up_to_a_number_and_count_for_max_shrink() {
    let bad = |id: &str| row(id, "ac\tme,,,,,");
    let all = export(&[good("a"), good("b"), good("c"), good("d")]);
    let daemon = start(&format!("{SET_ASIDE}max_bad_rows = 2\n"), &all);
    let outcome = daemon.publish(&export(&[bad("a"), bad("b"), good("c"), row("d", "acme,revoked,,,,")]));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(outcome.changes.map(|changes| changes.stopping), Some(3));
    let outcome = daemon.publish(&export(&[bad("a"), bad("b"), bad("c"), good("d")]));
    let error = outcome.error.expect("refused");
    assert!(
        error.contains("3 rows cannot be understood") && error.contains("source.max_bad_rows"),
        "{error}"
    );
    assert_eq!([daemon.verdict("c"), daemon.verdict("d")], ["ALLOWED", "REVOKED"], "as before");

    let few = "[source]\nmax_shrink = 0.1\non_bad_row = 'set-aside'\n";
    let daemon = start(few, &all);
    let outcome = daemon.publish(&export(&[bad("a"), bad("b"), bad("c"), good("d")]));
    assert!(outcome.error.is_some_and(|error| error.contains("source.max_shrink")));
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    // A restriction that only bad rows have is not lost: their keys are out of force.
    let limited = |rest: &str| export(&[row("a", rest), good("b")]);
    assert!(daemon.publish(&limited("acme,,,10.0.0.0/8,,")).accepted);
    let outcome = daemon.publish(&limited("acme,,,10.0.0.0/88,,"));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(daemon.verdict("a"), "DISABLED");
}

#[test]
fn keys_that_were_set_aside_are_disabled_after_a_restart_and_return_without_force() {
    let ids: Vec<String> = (0..8).map(|number| format!("k{number}")).collect();
    let bad: Vec<String> = ids.iter().map(|id| row(id, "ac\tme,,,,,")).collect();
    let all: Vec<String> = ids.iter().map(|id| good(id)).collect();
    let daemon = start(SET_ASIDE, &export(&all));
    assert!(daemon.publish(&export(&bad)).accepted);
    wait_for("the keys to be kept", || {
        let status = daemon.status();
        status.last_good.is_some_and(|kept| kept.generation == status.generation).then_some(())
    });
    fs::write(daemon.setup.source(), "nonsense\n").expect("writes");
    let daemon = daemon.restart();
    assert!(daemon.status().last_good.is_some_and(|kept| kept.in_use), "{}", daemon.log());
    assert_eq!(daemon.verdict("k3"), "DISABLED");
    assert_eq!(withheld(&daemon).set_aside, 8);
    let outcome = daemon.publish(&export(&all));
    assert!(outcome.accepted, "all eight return: {:?}", outcome.error);
    assert_eq!(daemon.verdict("k3"), "ALLOWED");
    assert_eq!(outcome.changes.map(|changes| changes.starting), Some(8));
}

#[test]
fn row_that_is_set_aside_does_not_hide_that_a_restriction_is_lost() {
    let daemon = start(SET_ASIDE, &export(&[row("a", "acme,,,10.0.0.0/8,,"), good("b")]));
    let header = "key_hash,key_id,status\n";
    let rows = ["a", "b", "off"].map(|id| format!("{},{id},disabled\n", sha256_hex(id))).concat();
    let outcome = daemon.publish(&format!("{header}{rows}{},bad,t\n", sha256_hex("bad")));
    let error = outcome.error.expect("refused");
    assert!(error.contains("no row has a value for allowed_ips"), "{error}");
    assert_eq!(daemon.verdict("a"), "IP_NOT_ALLOWED");
}

/// Offline, with the daemon's configuration.
#[test]
fn check_tells_what_would_be_set_aside() {
    let setup = Setup::text(&export(&[
        row("bad", "ac\tme,,,,,"),
        format!("{},k,acme,,,,,\n", &sha256_hex("k")[1..]),
    ]));
    let config = setup.path("check.toml");
    let check = |settings: &str, options: &[&str]| {
        let source = setup.source();
        fs::write(&config, format!("[source]\npath = '{}'\n{settings}", source.display())).expect("writes");
        let mut command = keyward();
        command.args(["check", "--config"]).arg(&config).arg("--state-dir").arg(setup.dir.path());
        let output = command.args(options).output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, messages) = check("", &[]);
    assert_eq!(code, Some(78), "{messages}");
    let set_aside = "on_bad_row = 'set-aside'\n";
    let (code, output, messages) = check(set_aside, &[]);
    assert_eq!(code, Some(0), "{messages}");
    assert!(
        messages.contains("control character") && messages.contains("2 rows set aside, 1 key disabled"),
        "{messages}"
    );
    assert!(output.contains(": ok"), "{output}");
    assert_eq!(check(set_aside, &["--strict"]).0, Some(1), "no key is without rows that are understood");
    let (_, output, _) = check(set_aside, &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!(report["withheld"]["set_aside_keys"], serde_json::json!(["bad"]), "{report}");
    let (code, _, messages) = check(&format!("{set_aside}max_bad_rows = 1\n"), &[]);
    assert_eq!(code, Some(78), "{messages}");
    assert!(
        messages.contains("2 rows cannot be understood, and source.max_bad_rows lets 1 be set aside"),
        "{messages}"
    );
}

/// A text in one row must neither add a key nor take one out.
#[test]
fn row_of_which_the_end_is_not_certain_refuses_the_source() {
    let evil = sha256_hex("evil");
    let quoted = |id: &str, owner: &str| {
        format!("\"{}\",\"{id}\",\"{owner}\",\"\",\"\",\"\",\"\",\"\"\n", sha256_hex(id))
    };
    let daemon = start(&format!("{SET_ASIDE}apply_takeaways_of_refused = true\n"), &export(&[good("k")]));
    let revoked = row("k", "acme,revoked,,,,");
    for (kind, rows) in [
        ("text behind a closing quote", row("a", "\"acme\"x,,,,,")),
        ("a quote in a field without quotes", row("a", "5\" disks,,,,,")),
        (
            "a backslash before a quote at the end of a field",
            quoted("a", &format!("x\\\",,,,,\r{evil},evil,admin,,,,,\rz")),
        ),
        (
            "a backslash before a quote",
            quoted("a", &format!("a\\\"\r{evil},evil,admin,,,,,\r")) + &quoted("b", "o"),
        ),
        (
            "a quote that ends in another row",
            row("a", "\"o3,,,,,") + &good("b") + &good("c") + &row("d", "o12\",,,,,"),
        ),
        ("a quote that ends in the next row", row("a", "\"o3,,,,,") + &row("b", "o4\",,,,,")),
        (
            "two hashes in a shifted row",
            format!("x,{},{},a,acme,,,,,\n", sha256_hex("other3"), sha256_hex("a")),
        ),
    ] {
        let outcome = daemon.publish(&export(&[revoked.clone(), rows]));
        let error = outcome.error.unwrap_or_else(|| panic!("{kind} was accepted: {:?}", outcome.withheld));
        assert!(error.contains("it cannot be set aside"), "{kind}: {error}");
        assert_eq!(outcome.withheld, None, "{kind}: nothing is taken away");
        assert_eq!([daemon.verdict("k"), daemon.verdict("other3")], ["ALLOWED"; 2], "{kind}");
        assert_eq!(daemon.verdict("evil"), "UNKNOWN_KEY", "{kind}");
    }
}

/// In two steps no more is possible than in one: first rows that cannot be understood, then the same keys without restrictions.
#[test]
fn key_that_was_set_aside_does_not_come_back_with_more_than_it_had() {
    let rows = |groups: &[(&str, &str)], keep: &str| -> String {
        let of = |(id, rest): (&str, &str)| -> String {
            (0..30).map(|number| row(&format!("{id}{number}"), rest)).collect()
        };
        let groups: String = groups.iter().copied().map(of).collect();
        let others: String = (0..40).map(|number| good(&format!("p{number}"))).collect();
        format!("{HEADER}{others}{groups}{keep}")
    };
    // One key that stays keeps each restriction in the source.
    let keep = row("keep-r", ",revoked,,,,") + &row("keep", ",,2040-01-01T00:00:00Z,10.0.0.0/8,1/s,");
    let before = [("r", ",revoked,,,,"), ("n", ",,,10.0.0.0/8,,"), ("e", ",,2040-01-01T00:00:00Z,,1/s,")];
    let bad = [("r", ",REVOKED!,,,,"), ("n", ",,,10.0.0.1/8,,"), ("e", ",,2040-01-01T00:00:00Z,,often,")];
    let bare = [("r", ",,,,,"), ("n", ",,,,,"), ("e", ",,,,,")];
    let header = |ids: &str| -> String {
        let ids = (0..30).flat_map(|number| ids.chars().map(move |id| format!("{id}{number}")));
        let rows: String = ids.map(|id| format!("{},{id}\n", sha256_hex(&id))).collect();
        format!("key_hash,key_id\n{rows}")
    };
    let mut daemon = start(&format!("{SET_ASIDE}max_bad_rows = 200\n"), &rows(&before, &keep));
    for is_restarted in [false, true] {
        let outcome = daemon.publish(&rows(&bad, &keep));
        assert!(outcome.accepted, "{:?}", outcome.error);
        let verdicts = |daemon: &Daemon| ["r1", "n1", "e1"].map(|key| daemon.verdict(key));
        assert_eq!(verdicts(&daemon), ["DISABLED"; 3]);
        if is_restarted {
            wait_for("the keys to be kept", || {
                let status = daemon.status();
                status.last_good.is_some_and(|kept| kept.generation == status.generation).then_some(())
            });
            // Read once more by daemons that have served nothing else.
            daemon = daemon.restart().restart();
        }
        for (what, export, parts) in [
            (
                "columns lost",
                header("rnep"),
                &["no row has a value for", "allowed_ips", "30 of 31 revoked keys"][..],
            ),
            (
                "values lost",
                rows(&bare, &keep),
                &[
                    "30 of 31 revoked keys would work again",
                    "30 of 31 keys with allowed_ips",
                    "30 of 31 keys that expire",
                    "30 of 31 keys with limits",
                ],
            ),
        ] {
            let error = daemon.publish(&export).error.unwrap_or_else(|| panic!("{what}: accepted"));
            parts.iter().for_each(|part| assert!(error.contains(part), "{what}: {part}: {error}"));
            assert_eq!(verdicts(&daemon), ["DISABLED"; 3]);
        }
        // One that is still bad hides no restriction, and does not count as having lost it.
        let mut half = before;
        half[1] = bad[1];
        let outcome = daemon.publish(&rows(&half, &row("keep-r", ",revoked,,,,")));
        assert!(outcome.accepted, "{:?}", outcome.error);
        // Mended as they were, they come back.
        let outcome = daemon.publish(&rows(&before, &keep));
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(verdicts(&daemon), ["REVOKED", "IP_NOT_ALLOWED", "ALLOWED"]);
    }
}

/// Rows of an owner that was revoked here: all that are left in the source are revoked, and one is set aside.
#[test]
fn revocation_is_not_agreed_beside_rows_that_are_set_aside() {
    let settings = format!("{SET_ASIDE}[revocation]\nkeep = '0s'\n");
    let unreadable = format!("{},k2,tenant,,,,,\n", &sha256_hex("k2")[1..]);
    for bad in [row("k2", "ten\tant,,,,,"), unreadable] {
        no_agreement_beside(&settings, bad);
    }
}

fn no_agreement_beside(settings: &str, bad: String) {
    let daemon = start(settings, &export(&[row("k1", "tenant,,,,,"), row("k2", "tenant,,,,,")]));
    let target = Target { key_id: None, owner: Some("tenant".to_owned()) };
    keyward_daemon::admin::send_command(&daemon.admin_socket(), &AdminCommand::Revoke(target))
        .expect("revoked");
    let outcome = daemon.publish(&export(&[row("k1", "tenant,revoked,,,,"), bad]));
    assert!(outcome.accepted && outcome.revocations_agreed == 0, "{outcome:?}");
    let outcome = daemon.publish(&export(&[row("k1", "tenant,revoked,,,,"), row("k2", "tenant,,,,,")]));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(daemon.verdict("k2"), "REVOKED");
}

/// A compiled file could not say what was wrong with a row.
#[test]
fn compile_refuses_rows_that_the_daemon_would_set_aside() {
    let setup = Setup::text(&export(&[row("k", "ac\tme,,,,,")]));
    let (config, output) = (setup.path("set-aside.toml"), setup.path("keys.kwc"));
    fs::write(&config, SET_ASIDE).expect("writes");
    let compile = |setup: &Setup| {
        let mut command = keyward();
        command.arg("compile").arg(setup.source()).arg("--output").arg(&output);
        command.arg("--config").arg(&config).output().expect("runs")
    };
    let refused = compile(&setup);
    let messages = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && messages.contains("control character"), "{messages}");
    assert!(!output.exists());
    replace_export(&setup.source(), &export(&[good("k")]));
    let accepted = compile(&setup);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
}
