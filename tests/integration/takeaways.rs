//! What an export takes away that is refused for rows that cannot be understood.

use std::fs;

use crate::support::bad_rows::{HEADER, TAKE_AWAY, export, good, reload_events, row, start, withheld};
use crate::support::{Daemon, keyward, replace_export, wait_for};
use keyward_daemon::admin::message::Withheld;

#[test]
fn refused_export_takes_away_what_its_good_rows_revoke_disable_and_expire() {
    let before = export(&[good("r"), good("d"), good("e"), good("f"), good("n"), good("bad")]);
    let past = row("e", "acme,,2020-01-01T00:00:00Z,,,");
    let future = row("f", "acme,,2031-01-01T00:00:00Z,,,");
    // `new` is not admitted, and `n`, which is not in it, is not taken away.
    let refused = export(&[
        row("r", "acme,revoked,,,,"),
        row("d", "acme,disabled,,,,"),
        past,
        future,
        good("new"),
        row("bad", "ac\tme,,,,,"),
    ]);
    let keys = ["r", "d", "e", "f", "n", "bad", "new"];
    let verdicts = |daemon: &Daemon| keys.map(|key| daemon.verdict(key));
    let taken = ["REVOKED", "DISABLED", "EXPIRED", "ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"];

    let daemon = start("", &before);
    assert!(!daemon.publish(&refused).accepted);
    assert_eq!(daemon.verdict("r"), "ALLOWED", "off by default");

    let mut daemon = start(TAKE_AWAY, &before);
    let check = |daemon: &Daemon| {
        let output = keyward()
            .args(["check", "--daemon", "--admin-socket"])
            .arg(daemon.admin_socket())
            .output()
            .expect("runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    replace_export(&daemon.setup.source(), &refused);
    let outcome = daemon.reload();
    assert!(!outcome.accepted);
    let told = outcome.withheld.expect("takeaways");
    assert_eq!(
        (told.taken_away, &told.taken_away_keys[..]),
        (4, &["d", "e", "f", "r"].map(str::to_owned)[..])
    );
    assert_eq!(verdicts(&daemon), taken);
    assert_eq!(withheld(&daemon).taken_away, 4);
    assert!(daemon.status().revocations.is_empty(), "they are not an operator's");
    let event = reload_events(&daemon).pop().expect("an event");
    assert_eq!((&event["accepted"], &event["taken_away"]), (&false.into(), &4.into()), "{event}");
    daemon.assert_logged("TAKES AWAY");
    let messages = check(&daemon);
    assert!(messages.contains("control character"), "{messages}");

    // An export that is cut takes nothing away, and what was taken away stays.
    let cut = export(&[row("n", "acme,revoked,,,,"), row("bad", "ac\tme,,,,,")]);
    assert!(!daemon.publish(cut.trim_end()).accepted);
    assert_eq!(verdicts(&daemon), taken);
    // Nor does an unclosed quote, or a header that is wrong.
    assert!(!daemon.publish(&(export(&[row("n", "acme,revoked,,,,")]) + "\"")).accepted);
    assert!(!daemon.publish(&cut.replacen("owner", "ownr", 1)).accepted);
    assert_eq!(verdicts(&daemon), taken);
    // A later refused export that says otherwise gives nothing back.
    assert!(!daemon.publish(&export(&[good("r"), good("d"), row("bad", "ac\tme,,,,,")])).accepted);
    assert_eq!(verdicts(&daemon), taken);
    wait_for("the keys to be kept", || {
        let status = daemon.status();
        status.last_good.is_some_and(|kept| kept.generation == status.generation).then_some(())
    });
    daemon = daemon.restart();
    assert!(daemon.status().last_good.is_some_and(|kept| kept.in_use), "{}", daemon.log());
    assert_eq!(verdicts(&daemon), taken, "after a restart beside a refused source");
    // The next accepted export drops them.
    let outcome = daemon.publish(&before);
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(outcome.changes.map(|changes| changes.starting), Some(3), "counted");
    assert_eq!(
        verdicts(&daemon),
        ["ALLOWED", "ALLOWED", "ALLOWED", "ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"]
    );
    assert_eq!(withheld(&daemon), Withheld::default());
    wait_for("the takeaways to be dropped", || {
        (!daemon.setup.path("taken_away.json").exists()).then_some(())
    });
}

#[test]
fn takeaways_are_bounded_by_max_shrink_however_many_exports_they_come_in() {
    let ids: Vec<String> = (0..20).map(|number| format!("other{number}")).collect();
    let daemon = start(&format!("{TAKE_AWAY}max_shrink = 0.2\n"), &export(&[good("bad")]));
    let refused = |revoked: std::ops::Range<usize>| {
        let rows: String = ids
            .iter()
            .enumerate()
            .map(|(number, id)| match revoked.contains(&number) {
                true => row(id, "acme,revoked,,,,"),
                false => good(id),
            })
            .collect();
        format!("{HEADER}{rows}{}", row("bad", "ac\tme,,,,,"))
    };
    let told = daemon.publish(&refused(0..6)).withheld.expect("told");
    assert_eq!(told.taken_away, 0);
    assert!(told.takeaways_refused.is_some_and(|why| why.contains("source.max_shrink")));
    assert_eq!(daemon.verdict("other0"), "ALLOWED");
    assert_eq!(daemon.publish(&refused(0..3)).withheld.expect("told").taken_away, 3);
    assert_eq!(daemon.verdict("other0"), "REVOKED");
    let again = daemon.reload().withheld.expect("told again");
    assert_eq!(again.taken_away, 3, "as many as are in force");
    let told = daemon.publish(&refused(3..6)).withheld.expect("told");
    assert!(told.takeaways_refused.is_some(), "six of 21 in two steps: {told:?}");
    assert_eq!(reload_events(&daemon).pop().expect("an event")["takeaways_refused"], true);
    assert_eq!([daemon.verdict("other2"), daemon.verdict("other3")], ["REVOKED", "ALLOWED"]);
    assert_eq!(withheld(&daemon).taken_away, 3);
}

/// What had expired is not among the keys that come back with a mended export.
#[test]
fn takeaway_does_not_hide_that_an_expired_key_returns() {
    let expired = |status: &str, end: &str| -> Vec<String> {
        (0..20).map(|number| row(&format!("e{number}"), &format!("acme,{status},{end},,,"))).collect()
    };
    let daemon = start(TAKE_AWAY, &export(&expired("", "2020-01-01T00:00:00Z")));
    let mut refused = expired("disabled", "2019-01-01T00:00:00Z");
    refused.push(row("bad", "ac\tme,,,,,"));
    assert!(!daemon.publish(&export(&refused)).accepted);
    let error = daemon.publish(&export(&expired("", "2040-01-01T00:00:00Z"))).error.expect("refused");
    assert!(error.contains("20 of 20 keys that have expired"), "{error}");
}

#[test]
fn end_that_was_taken_away_does_not_hide_that_an_end_is_lost() {
    let ids: Vec<String> = (0..20).map(|number| format!("e{number}")).collect();
    let rows = |end: &str| ids.iter().map(|id| row(id, &format!("acme,,{end},,,"))).collect::<Vec<_>>();
    let far = rows("2040-01-01T00:00:00Z");
    let daemon = start(TAKE_AWAY, &export(&far));
    let mut near = rows("2039-01-01T00:00:00Z")[..10].to_vec();
    near.push(row("bad", "ac\tme,,,,,"));
    assert_eq!(daemon.publish(&export(&near)).withheld.expect("takeaways").taken_away, 10);
    let mut without = rows("")[..16].to_vec();
    without.extend_from_slice(&far[16..]);
    let error = daemon.publish(&export(&without)).error.expect("refused");
    assert!(error.contains("16 of 20 keys that expire would never expire"), "{error}");
    assert!(daemon.publish(&export(&far)).accepted);
}

/// The last good keys are those before the accepted source until its own are written.
#[test]
fn takeaways_outlive_a_crash_before_the_accepted_keys_were_written() {
    let daemon = start(TAKE_AWAY, &export(&[good("k")]));
    wait_for("the keys to be kept", || daemon.status().last_good.filter(|kept| kept.generation > 0));
    // The file that holds what is taken away cannot be written at first.
    let blocked = |name: &str| daemon.setup.path(&format!("{name}.new"));
    fs::create_dir_all(blocked("taken_away.json").join("x")).expect("a directory");
    let refused = export(&[row("k", "acme,revoked,,,,"), row("bad", "ac\tme,,,,,")]);
    assert!(!daemon.publish(&refused).accepted);
    assert_eq!(daemon.verdict("k"), "REVOKED");
    assert!(daemon.status().unwritten.iter().any(|unwritten| unwritten.file == "taken_away.json"));
    fs::remove_dir_all(blocked("taken_away.json")).expect("removes");
    wait_for("another attempt", || daemon.status().unwritten.is_empty().then_some(()));
    fs::create_dir_all(blocked("last_good.json").join("x")).expect("a directory");
    assert!(daemon.publish(&export(&[row("k", "acme,revoked,,,,")])).accepted);
    assert_eq!(daemon.verdict("k"), "REVOKED");
    fs::write(daemon.setup.source(), "nonsense\n").expect("writes");
    let daemon = daemon.restart();
    assert!(daemon.status().last_good.is_some_and(|kept| kept.in_use), "{}", daemon.log());
    assert_eq!(daemon.verdict("k"), "REVOKED", "the keys are those before, the takeaways too");
}

#[test]
fn source_with_rows_set_aside_that_the_guard_refuses_takes_away_as_well() {
    let all: Vec<String> = (0..12).map(|number| good(&format!("b{number}"))).collect();
    let settings =
        "[source]\nmax_shrink = 0.3\non_bad_row = 'set-aside'\napply_takeaways_of_refused = true\n";
    let daemon = start(settings, &export(&[all.concat(), good("k")]));
    let bad: String = (0..12).map(|number| row(&format!("b{number}"), "acme,bogus,,,,")).collect();
    let outcome = daemon.publish(&export(&[bad, row("k", "acme,revoked,,,,")]));
    assert!(outcome.error.is_some_and(|error| error.contains("source.max_shrink")));
    assert_eq!(outcome.withheld.expect("takeaways").taken_away_keys, ["k"]);
    assert_eq!([daemon.verdict("k"), daemon.verdict("b3")], ["REVOKED", "ALLOWED"]);
}
