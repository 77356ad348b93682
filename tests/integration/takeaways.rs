//! Takeaways: what a refused export revokes, disables or expires in its valid rows.

use std::fs;
use std::ops::Range;

use crate::support::bad_rows::{APPLY_TAKEAWAYS, export, invalid, start, valid, withheld};
use crate::support::{CommandOutput, Daemon, Export, Row, replace_export, wait_for, wait_until};
use keyward_admin::message::Withheld;

#[test]
fn refused_export_takes_away_keys_that_its_valid_rows_revoke_disable_or_expire() {
    let before = export(["r", "d", "e", "f", "n", "bad"].map(valid));
    // `new` is not admitted, and `n`, which is missing, is not taken away.
    let refused = export([
        valid("r").status("revoked"),
        valid("d").status("disabled"),
        valid("e").expires_at("2020-01-01T00:00:00Z"),
        valid("f").expires_at("2031-01-01T00:00:00Z"),
        valid("new"),
        invalid("bad"),
    ]);
    let verdicts = |daemon: &Daemon| daemon.verdicts(["r", "d", "e", "f", "n", "bad", "new"]);
    let taken_away = ["REVOKED", "DISABLED", "EXPIRED", "ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"];

    let daemon = start("", &before);
    assert!(!daemon.publish(&refused).accepted);
    assert_eq!(daemon.verdict("r"), "ALLOWED", "off by default");

    let mut daemon = start(APPLY_TAKEAWAYS, &before);
    replace_export(&daemon.setup.source(), &refused);
    let outcome = daemon.reload();
    assert!(!outcome.accepted);
    let reported = outcome.withheld.expect("takeaways");
    assert_eq!(
        (reported.taken_away, &reported.taken_away_keys[..]),
        (4, &["d", "e", "f", "r"].map(str::to_owned)[..])
    );
    assert_eq!(verdicts(&daemon), taken_away);
    assert_eq!(withheld(&daemon).taken_away, 4);
    assert!(daemon.status().revocations.is_empty(), "takeaways are not revocations of an operator");
    let event = daemon.setup.audit_events("reload").pop().expect("an event");
    assert_eq!((&event["accepted"], &event["taken_away"]), (&false.into(), &4.into()), "{event}");
    daemon.assert_logged("TAKES AWAY");
    let output = daemon.run_keyward(&["check", "--daemon"]);
    assert!(output.stderr.contains("control character"), "{output:?}");

    // A truncated export takes nothing away, and earlier takeaways stay.
    let truncated = export([valid("n").status("revoked"), invalid("bad")]).to_csv();
    assert!(!daemon.publish(truncated.trim_end()).accepted);
    assert_eq!(verdicts(&daemon), taken_away);
    // Nor does an unclosed quote or an invalid header.
    assert!(!daemon.publish(export([valid("n").status("revoked")]).to_csv() + "\"").accepted);
    assert!(!daemon.publish(truncated.replacen("owner", "ownr", 1)).accepted);
    assert_eq!(verdicts(&daemon), taken_away);
    // A later refused export does not undo a takeaway.
    assert!(!daemon.publish(export([valid("r"), valid("d"), invalid("bad")])).accepted);
    assert_eq!(verdicts(&daemon), taken_away);
    daemon.wait_until_saved();
    daemon = daemon.kill_and_restart();
    assert!(daemon.status().last_good.is_some_and(|saved| saved.in_use), "{}", daemon.log());
    assert_eq!(verdicts(&daemon), taken_away, "after a restart with a refused source");
    // The next accepted export ends them.
    let outcome = daemon.publish(&before);
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(outcome.changes.map(|changes| changes.starting), Some(3), "counted");
    assert_eq!(
        verdicts(&daemon),
        ["ALLOWED", "ALLOWED", "ALLOWED", "ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"]
    );
    assert_eq!(withheld(&daemon), Withheld::default());
    wait_until("the takeaways to be deleted", || !daemon.setup.path("taken_away.json").exists());
}

#[test]
fn takeaways_of_several_exports_are_bounded_together_by_max_shrink() {
    let daemon = start(&format!("{APPLY_TAKEAWAYS}max_shrink = 0.2\n"), export([valid("bad")]));
    let refused = |revoked: Range<usize>| {
        let others = (0..20).map(|number| {
            let row = valid(format!("other{number}"));
            if revoked.contains(&number) { row.status("revoked") } else { row }
        });
        Export::new(others).rows([invalid("bad")])
    };
    let reported = daemon.publish(refused(0..6)).withheld.expect("reported");
    assert_eq!(reported.taken_away, 0);
    assert!(reported.takeaways_refused.is_some_and(|reason| reason.contains("source.max_shrink")));
    assert_eq!(daemon.verdict("other0"), "ALLOWED");
    assert_eq!(daemon.publish(refused(0..3)).withheld.expect("reported").taken_away, 3);
    assert_eq!(daemon.verdict("other0"), "REVOKED");
    let reported = daemon.reload().withheld.expect("reported");
    assert_eq!(reported.taken_away, 3, "as many as are in force");
    let reported = daemon.publish(refused(3..6)).withheld.expect("reported");
    assert!(reported.takeaways_refused.is_some(), "six of 21 in two steps: {reported:?}");
    let event = daemon.setup.audit_events("reload").pop().expect("an event");
    assert_eq!(event["takeaways_refused"], true);
    assert_eq!(daemon.verdicts(["other2", "other3"]), ["REVOKED", "ALLOWED"]);
    assert_eq!(withheld(&daemon).taken_away, 3);
}

#[test]
fn takeaway_does_not_hide_that_an_expired_key_returns() {
    let rows = |status: &'static str, expiry: &'static str| {
        (0..20).map(move |number| valid(format!("e{number}")).status(status).expires_at(expiry))
    };
    let daemon = start(APPLY_TAKEAWAYS, export(rows("", "2020-01-01T00:00:00Z")));
    let refused = export(rows("disabled", "2019-01-01T00:00:00Z")).rows([invalid("bad")]);
    assert!(!daemon.publish(refused).accepted);
    let error = daemon.publish(export(rows("", "2040-01-01T00:00:00Z"))).error.expect("refused");
    assert!(error.contains("20 of 20 keys that have expired"), "{error}");
}

#[test]
fn expiry_taken_away_does_not_hide_a_lost_expiry() {
    let rows = |expiry: &str| -> Vec<Row> {
        (0..20).map(|number| valid(format!("e{number}")).expires_at(expiry)).collect()
    };
    let late = rows("2040-01-01T00:00:00Z");
    let daemon = start(APPLY_TAKEAWAYS, export(late.clone()));
    let early = rows("2039-01-01T00:00:00Z")[..10].to_vec();
    let refused = export(early).rows([invalid("bad")]);
    assert_eq!(daemon.publish(refused).withheld.expect("takeaways").taken_away, 10);
    let partly_without = [&rows("")[..16], &late[16..]].concat();
    let error = daemon.publish(export(partly_without)).error.expect("refused");
    assert!(error.contains("16 of 20 keys that expire would never expire"), "{error}");
    assert!(daemon.publish(export(late)).accepted);
}

/// Until the keys of an accepted source are written, the last good keys are those before it.
#[test]
fn takeaways_survive_a_crash_before_the_accepted_keys_are_written() {
    let daemon = start(APPLY_TAKEAWAYS, export([valid("k")]));
    wait_for("the last good keys", || daemon.status().last_good.filter(|saved| saved.generation > 0));
    // A directory in the place of its new version keeps a file from being written.
    let blocked = |name: &str| daemon.setup.path(&format!("{name}.new"));
    fs::create_dir_all(blocked("taken_away.json").join("x")).expect("a directory");
    assert!(!daemon.publish(export([valid("k").status("revoked"), invalid("bad")])).accepted);
    assert_eq!(daemon.verdict("k"), "REVOKED");
    assert!(daemon.status().unwritten.iter().any(|unwritten| unwritten.file == "taken_away.json"));
    fs::remove_dir_all(blocked("taken_away.json")).expect("removes");
    wait_until("another attempt", || daemon.status().unwritten.is_empty());
    fs::create_dir_all(blocked("last_good.json").join("x")).expect("a directory");
    assert!(daemon.publish(export([valid("k").status("revoked")])).accepted);
    assert_eq!(daemon.verdict("k"), "REVOKED");
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k"), "NOT_READY", "the keys are the previous ones: {}", daemon.log());
    fs::remove_file(daemon.setup.path("accepted_source.json")).expect("removes");
    let daemon = daemon.kill_and_restart();
    assert!(daemon.status().last_good.is_some_and(|saved| saved.in_use), "{}", daemon.log());
    assert_eq!(daemon.verdict("k"), "REVOKED", "with the takeaway");
}

#[test]
fn takeaways_that_cannot_be_written_are_in_force_and_reported_as_not_durable() {
    let daemon = start(APPLY_TAKEAWAYS, export([valid("k"), valid("bad")]));
    daemon.wait_until_saved();
    let obstacle = daemon.setup.path("taken_away.json.new");
    fs::create_dir_all(obstacle.join("x")).expect("a directory");
    let outcome = daemon.publish(export([valid("k").status("revoked"), invalid("bad")]));
    assert!(!outcome.accepted && !outcome.durable, "{outcome:?}");
    assert_eq!(outcome.not_durable, outcome.withheld.expect("takeaways").takeaways_not_durable);
    assert!(outcome.not_durable.is_some_and(|reason| reason.contains("taken_away.json")));
    assert_eq!(daemon.verdict("k"), "REVOKED");
    daemon.assert_logged("what refused sources have taken away is in force, but NOT DURABLE");
    let text = "NOT DURABLE: what refused sources have taken away is in force";
    let CommandOutput { code, stderr, .. } = daemon.run_keyward(&["reload"]);
    assert!(code == Some(1) && stderr.contains(text), "{stderr}");
    let status = daemon.run_keyward(&["status"]).stdout;
    assert!(status.contains(&format!("WITHHELD     {text}")), "{status}");
    // The takeaways are of an earlier source now.
    daemon.spoil_source();
    daemon.reload();
    assert!(withheld(&daemon).takeaways_not_durable.is_some());
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k"), "ALLOWED", "as it was reported: {}", daemon.log());

    assert!(!daemon.publish(export([valid("k").status("revoked"), invalid("bad")])).durable);
    fs::remove_dir_all(obstacle).expect("removes");
    wait_until("another attempt", || withheld(&daemon).takeaways_not_durable.is_none());
    assert!(daemon.reload().durable);
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k"), "REVOKED", "{}", daemon.log());
}

#[test]
fn removal_of_takeaways_is_retried_and_logged() {
    let daemon = start(APPLY_TAKEAWAYS, export([valid("k"), valid("bad")]));
    assert!(!daemon.publish(export([valid("k").status("revoked"), invalid("bad")])).accepted);
    let file = daemon.setup.path("taken_away.json");
    fs::remove_file(&file).expect("removes");
    // A directory is not removed like a file.
    fs::create_dir_all(file.join("x")).expect("a directory");
    assert!(daemon.publish(export([valid("k"), valid("bad")])).durable);
    let is_listed = || daemon.status().unwritten.iter().any(|unwritten| unwritten.file == "taken_away.json");
    wait_until("the removal to fail", is_listed);
    let removed = "the takeaways of refused sources are removed";
    assert!(!daemon.log().contains(removed), "{}", daemon.log());
    fs::remove_dir_all(&file).expect("removes");
    fs::write(&file, "outdated").expect("writes");
    wait_until("another attempt", || !file.exists());
    wait_until("a line in the log", || daemon.log().contains(removed));
    wait_until("the status", || !is_listed());
}

#[test]
fn source_refused_by_the_guard_beside_rows_set_aside_takes_away() {
    let bulk = |restrict: fn(Row) -> Row| (0..12).map(move |number| restrict(valid(format!("b{number}"))));
    let config = "[source]\nmax_shrink = 0.3\non_bad_row = 'set-aside'\napply_takeaways_of_refused = true\n";
    let daemon = start(config, export(bulk(|row| row)).rows([valid("k")]));
    let refused = export(bulk(|row| row.status("bogus"))).rows([valid("k").status("revoked")]);
    let outcome = daemon.publish(refused);
    assert!(outcome.error.is_some_and(|error| error.contains("source.max_shrink")));
    assert_eq!(outcome.withheld.expect("takeaways").taken_away_keys, ["k"]);
    assert_eq!(daemon.verdicts(["k", "b3"]), ["REVOKED", "ALLOWED"]);
}

/// Keys that were taken away would work again.
#[test]
fn last_good_keys_are_not_served_without_their_takeaways() {
    let mut daemon = start(APPLY_TAKEAWAYS, export(["k", "other", "bad"].map(valid)));
    let refused = export([valid("k").status("revoked"), valid("other"), invalid("bad")]);
    assert!(!daemon.publish(&refused).accepted);
    daemon.wait_until_saved();
    let file = daemon.setup.path("taken_away.json");
    let good = fs::read(&file).expect("a file");
    for damaged in [&good[..good.len() / 2], b"", b"{}"] {
        daemon.kill();
        fs::write(&file, damaged).expect("writes");
        daemon = daemon.kill_and_restart();
        assert_eq!(daemon.verdicts(["k", "other"]), ["NOT_READY"; 2], "{}", daemon.log());
        let unusable = daemon.status().last_good.expect("saved").unusable.expect("a reason");
        assert!(unusable.contains("taken_away.json") && unusable.contains("remove that file"), "{unusable}");
        assert_eq!(fs::read(&file).expect("a file"), damaged, "it is left as it is");
    }
    // The next reload reads it again.
    fs::write(&file, &good).expect("writes");
    assert!(!daemon.reload().accepted);
    assert_eq!(daemon.verdicts(["k", "other"]), ["REVOKED", "ALLOWED"]);
    // An accepted source makes it outdated.
    daemon.kill();
    fs::write(&file, "{}").expect("writes");
    daemon = daemon.kill_and_restart();
    assert!(daemon.publish(export(["k", "other"].map(valid))).accepted, "{}", daemon.log());
    assert_eq!(daemon.verdicts(["k", "other"]), ["ALLOWED"; 2]);
    wait_until("the file to be removed", || !file.exists());
}
