//! A start with a bad source: the daemon serves the last good keys, and reports it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::support::{
    CommandOutput, Daemon, Export, Row, Setup, key_target, keyward, replace_export, row, run, wait_for,
    wait_until,
};
use keyward_admin::message::LastGood;
use keyward_client::Request;
use keyward_engine::pepper::Pepper;
use serde_json::Value;

/// The active keys `k0` and so on, and one key of each other status.
fn export(keys: usize) -> Export {
    let others = [
        row("revoked").status("revoked"),
        row("disabled").status("disabled"),
        row("expired").expires_at("2020-01-01T00:00:00Z"),
    ];
    let keys = (0..keys).map(|number| row(format!("k{number}")).plan("pro").limits("10/d"));
    Export::new(others.into_iter().chain(keys).map(|row| row.owner("acme")))
}

fn start_and_save(setup: Setup) -> Daemon {
    let daemon = setup.start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon.wait_until_saved();
    daemon
}

/// The names of the files with the last good keys.
fn last_good_files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("lists").flatten();
    let names = entries.map(|entry| entry.file_name().into_string().expect("UTF-8"));
    names.filter(|name| name.starts_with("last_good")).collect()
}

fn last_good(daemon: &Daemon) -> LastGood {
    daemon.status().last_good.expect("saved")
}

fn assert_served(daemon: &Daemon, case: &str) {
    let expected = [
        ("k0", "ALLOWED"),
        ("k19", "ALLOWED"),
        ("revoked", "REVOKED"),
        ("disabled", "DISABLED"),
        ("expired", "EXPIRED"),
        ("unknown", "UNKNOWN_KEY"),
    ];
    for (key, verdict) in expected {
        assert_eq!(daemon.verdict(key), verdict, "{case}, {key}: {}", daemon.log());
    }
}

#[test]
fn start_with_a_bad_source_serves_the_last_good_keys_and_reports_it() {
    let mut daemon = start_and_save(Setup::new(export(20)));
    let source = daemon.setup.source();
    let good = fs::read(&source).expect("an export");
    let shrunk = export(3);
    type Spoil<'s> = &'s dyn Fn();
    let cases: [(&str, &str, Spoil<'_>); 6] = [
        ("missing", "unreadable", &|| fs::remove_file(&source).expect("removes")),
        ("truncated", "", &|| fs::write(&source, &good[..good.len() - 20]).expect("writes")),
        ("empty", "", &|| fs::write(&source, "").expect("writes")),
        ("a directory", "not_a_file", &|| {
            fs::remove_file(&source).expect("removes");
            fs::create_dir(&source).expect("makes");
        }),
        ("HTML", "", &|| replace_export(&source, "<html>502</html>\n")),
        ("shrunk", "shrunk", &|| replace_export(&source, &shrunk)),
    ];
    for (case, reason, spoil) in cases {
        daemon.kill();
        spoil();
        daemon = daemon.kill_and_restart();
        assert_served(&daemon, case);
        let status = daemon.status();
        let last_good = status.last_good.expect("saved");
        assert!(status.ready && last_good.in_use && last_good.unusable.is_none(), "{case}: {last_good:?}");
        let refused = status.last_reload.expect("one");
        assert!(!refused.accepted, "{case}");
        assert_eq!(last_good.why, refused.error, "{case}");
        assert!(
            last_good.generation > 0
                && last_good.accepted_age_s.is_some()
                && last_good.source_age_s.is_some()
        );
        daemon.assert_logged("LAST GOOD KEYS");
        let status = daemon.run_keyward(&["status"]).stdout;
        assert!(status.contains("last good    IN USE for") && status.contains("REFUSED"), "{case}: {status}");
        let event = daemon.setup.audit_events("last_good").pop().expect("an event");
        assert!(event["in_use"] == true && event["accepted_at"].is_string(), "{case}: {event}");
        assert!(reason.is_empty() || event["reason"] == reason, "{case}: {event}");
        // A good source replaces them.
        if case == "a directory" {
            fs::remove_dir(&source).expect("removes");
        }
        let new = source.with_extension("next");
        fs::write(&new, &good).expect("writes");
        fs::rename(&new, &source).expect("renames");
        assert!(daemon.reload().accepted, "{case}");
        let after = daemon.status().last_good.expect("saved");
        assert!(!after.in_use && after.why.is_none(), "{case}: {after:?}");
        daemon.wait_until_saved();
        assert_eq!(last_good_files(daemon.setup.dir.path()).len(), 2, "the keys and their manifest");
    }
}

#[test]
fn last_good_files_are_readable_by_the_daemon_only() {
    let daemon = start_and_save(Setup::new(export(1)));
    for name in last_good_files(daemon.setup.dir.path()) {
        let mode = fs::metadata(daemon.setup.path(&name)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn revocations_and_balances_apply_to_last_good_keys() {
    let setup = Setup::new(export(20)).config("state.save_interval = '1h'");
    let mut daemon = start_and_save(setup);
    daemon.revoke(key_target("k1"));
    assert!(daemon.client().verify(&Request::new("k0").cost(9)).expect("an answer").is_allowed());
    daemon.stop();
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert!(last_good(&daemon).in_use);
    assert_eq!(daemon.verdict("k1"), "REVOKED");
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    assert_eq!(daemon.verdict("k0"), "RATE_LIMITED");
}

#[test]
fn current_plans_apply_to_last_good_keys() {
    let plan = |limit: &str| format!("[plans.pro]\nquota = '{limit}'\n");
    let mut setup = Setup::text(export(2));
    setup.replace_config(&plan("100/d"));
    let mut daemon = start_and_save(setup);
    daemon.spoil_source();
    daemon.setup.replace_config(&plan("3/d"));
    daemon = daemon.kill_and_restart();
    let decision = daemon.client().verify(&Request::new("k0").peek()).expect("an answer");
    assert_eq!(decision.limit().map(|limit| limit.limit), Some(3), "{}", daemon.log());
    // Without their plan, the keys would have no limits.
    daemon.setup.replace_config("[plans.other]\nquota = '3/d'\n");
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "NOT_READY");
    let unusable = last_good(&daemon).unusable.expect("a reason");
    assert!(unusable.contains("the plan \"pro\" is not in the configuration"), "{unusable}");
    daemon.assert_logged("the last good keys cannot be served");
    // Each new configuration is tried with them.
    fs::write(daemon.setup.path("keyward.toml"), plan("4/d")).expect("writes");
    assert!(!daemon.reload().accepted);
    let state = last_good(&daemon);
    assert!(state.in_use && state.unusable.is_none(), "{state:?}");
    let decision = daemon.client().verify(&Request::new("k0").peek()).expect("an answer");
    assert_eq!(decision.limit().map(|limit| limit.limit), Some(4), "{}", daemon.log());
}

#[test]
fn max_staleness_counts_from_the_source_of_the_last_good_keys() {
    let setup = Setup::text(export(2));
    let written = SystemTime::now() - Duration::from_secs(600);
    let file = fs::File::options().write(true).open(setup.source()).expect("opens");
    file.set_modified(written).expect("sets the time");
    let mut daemon = start_and_save(setup);
    daemon.spoil_source();
    daemon.setup.replace_config("source.max_staleness = '1h'");
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    assert!((600..3600).contains(&daemon.status().source_age_s.expect("an age")));
    daemon.setup.replace_config("source.max_staleness = '5m'");
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "STALE_SNAPSHOT");
}

#[test]
fn last_good_keys_with_another_pepper_are_not_served() {
    let setup = Setup::text(export(3));
    let pepper = |name: &str, letter: &str| {
        let path = setup.path(name);
        fs::write(&path, letter.repeat(32)).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets");
        path.display().to_string()
    };
    let (a, b) = (pepper("a", "a"), pepper("b", "b"));
    let mut daemon = start_and_save(setup);
    // The source is valid, but none of its keys would be found any more. A reload refuses that as
    // well.
    daemon.setup.replace_config(&format!("keys.pepper_file = '{a}'"));
    daemon = daemon.kill_and_restart();
    let error = daemon.status().last_reload.expect("one").error.expect("a reason");
    assert!(error.contains("hashed without a pepper, and keys.pepper_file is set now"), "{error}");
    let unusable = last_good(&daemon).unusable.expect("a reason");
    assert!(unusable.contains("keys.previous_pepper_file"), "{unusable}");
    assert_eq!(daemon.verdict("k0"), "NOT_READY");
    // So does a check.
    let checked = daemon.run_keyward(&["check", "--daemon"]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(
        format!("{checked:?}").contains("hashed without a pepper, and keys.pepper_file is set now"),
        "{checked:?}"
    );
    assert!(daemon.force_reload().accepted);
    daemon.wait_until_saved();
    // From now on they are recorded as hashed with pepper a, although the rows are not.
    daemon.spoil_source();
    daemon.setup.replace_config(&format!("keys.pepper_file = '{b}'"));
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.status().generation, 0, "{}", daemon.log());
    daemon.setup.replace_config(&format!("keys.pepper_file = '{b}'\nkeys.previous_pepper_file = '{a}'"));
    daemon = daemon.kill_and_restart();
    assert!(last_good(&daemon).in_use, "{}", daemon.log());
    let text = fs::read_to_string(daemon.setup.path("last_good.json")).expect("reads");
    assert!(!text.contains(&"a".repeat(16)), "{text}");
}

#[test]
fn source_at_another_path_is_compared_with_the_same_last_good_keys() {
    let mut daemon = start_and_save(Setup::text(export(20)));
    let other = daemon.setup.path("other.csv");
    fs::write(&other, export(2).to_csv()).expect("writes");
    daemon.setup.replace_config(&format!("source.path = '{}'", other.display()));
    daemon = daemon.kill_and_restart();
    assert_served(&daemon, "another path");
    let error = daemon.status().last_reload.expect("one").error.expect("refused");
    assert!(error.contains("other.csv: 18 of 20 working keys would stop working"), "{error}");
    // What was forced stays accepted: the next start has the same file.
    assert!(daemon.force_reload().accepted);
    daemon.wait_until_saved();
    let daemon = daemon.kill_and_restart();
    let status = daemon.status();
    assert!(status.keys == 5 && !status.last_good.expect("saved").in_use, "{}", daemon.log());
}

#[test]
fn unchanged_source_with_other_columns_is_compared_with_the_last_good_keys() {
    let rows = (0..20).map(|number| row(format!("k{number}")).status("active").set("other", "disabled"));
    let setup = Setup::text(Export::new(rows));
    let mut daemon = start_and_save(setup.config("source.ignore = ['other']"));
    daemon.setup.replace_config("source.ignore = ['status']\nsource.columns.status = 'other'");
    daemon = daemon.kill_and_restart();
    let error = daemon.status().last_reload.expect("one").error.expect("refused");
    assert!(error.contains("20 of 20 working keys would stop working"), "{error}");
    assert!(last_good(&daemon).in_use, "{}", daemon.log());
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
}

/// All rows have new hashes, with a pepper that was added since the last start.
#[test]
fn rehashed_keys_are_compared_by_their_ids_at_start() {
    let setup = Setup::without_export().text_source();
    let pepper = |name: &str| {
        let path = setup.path(name);
        fs::write(&path, name.repeat(32)).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets");
        path.display().to_string()
    };
    let (a, b) = (pepper("a"), pepper("b"));
    let hashed_with = |name: &str| {
        let pepper = Pepper::new(name.repeat(32).as_bytes()).expect("a pepper");
        let peppered = |key: String| -> Row {
            let hash = const_hex::encode(pepper.hash(key.as_bytes()));
            row(key).hash(hash)
        };
        Export::new((0..20).map(|number| peppered(format!("k{number}"))))
    };
    setup.write_export(hashed_with("a"));
    let mut daemon = start_and_save(setup.config(&format!("keys.pepper_file = '{a}'")));
    daemon.kill();
    replace_export(&daemon.setup.source(), hashed_with("b"));
    daemon.setup.replace_config(&format!("keys.pepper_file = '{b}'\nkeys.previous_pepper_file = '{a}'"));
    let daemon = daemon.kill_and_restart();
    assert!(!last_good(&daemon).in_use, "{}", daemon.log());
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
}

#[test]
fn source_accepted_by_an_operator_passes_the_next_start_only() {
    let mut daemon = start_and_save(Setup::text(export(20)));
    daemon.kill();
    let mut accept = keyward();
    accept.args(["state", "accept", "source", "--state-dir"]).arg(daemon.setup.dir.path());
    let output = run(&mut accept);
    assert_eq!(output.code, Some(0), "{output:?}");
    replace_export(&daemon.setup.source(), export(3));
    let mut check = keyward();
    check.args(["check", "--config", "/dev/null", "--source"]).arg(daemon.setup.source());
    let output = run(check.arg("--state-dir").arg(daemon.setup.dir.path()));
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("an operator has accepted the source"), "{output:?}");
    daemon = daemon.kill_and_restart();
    let status = daemon.status();
    assert!(status.keys == 6 && !status.last_good.expect("saved").in_use, "{}", daemon.log());
    let event = daemon.setup.audit_events("reload").pop().expect("an event");
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!((&event["trigger"], &event["force"]), (&"start".into(), &true.into()), "{event}");
    assert_eq!(event["peers"][0]["uid"], uid, "{event}");
    assert_eq!(event["stopping"], 17, "still compared with the last good keys: {event}");
    daemon.wait_until_saved();
    // The next start compares again.
    replace_export(&daemon.setup.source(), Export::new([row("k1").owner("acme").plan("pro").limits("10/d")]));
    daemon = daemon.kill_and_restart();
    assert!(last_good(&daemon).in_use, "{}", daemon.log());
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
}

#[test]
fn damaged_last_good_keys_are_reported_and_not_served() {
    let mut daemon = start_and_save(Setup::new(export(20)));
    let name = last_good_files(daemon.setup.dir.path())
        .into_iter()
        .find(|name| name.ends_with(".kwc"))
        .expect("a file");
    let flip_bit = |name: &str, offset: usize| {
        let path = daemon.setup.path(name);
        let mut bytes = fs::read(&path).expect("reads");
        bytes[offset] ^= 1;
        fs::write(&path, bytes).expect("writes");
    };
    flip_bit(&name, 300);
    let good = fs::read(daemon.setup.source()).expect("reads");
    daemon.spoil_source();
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "NOT_READY");
    let unusable = last_good(&daemon).unusable.expect("a reason");
    assert!(unusable.contains("the checksum is wrong"), "{unusable}");
    let event = daemon.setup.audit_events("last_good").pop().expect("an event");
    assert_eq!((&event["in_use"], &event["reason"]), (&false.into(), &"damaged".into()), "{event}");
    // The guard cannot compare another source with them.
    fs::write(daemon.setup.source(), good).expect("writes");
    let error = daemon.reload().error.expect("refused");
    assert!(
        error.contains("cannot be compared with the last good keys") && error.contains("--force"),
        "{error}"
    );
    assert_eq!(daemon.verdict("k0"), "NOT_READY");
    assert!(daemon.force_reload().accepted);
    daemon.wait_until_saved();
    assert_served(&daemon, "after a reload");
    assert!(last_good(&daemon).unusable.is_none());
    fs::write(daemon.setup.path("last_good.json"), "{}").expect("writes");
    daemon = daemon.kill_and_restart();
    assert_served(&daemon, "a damaged manifest, and the source that was accepted");

    daemon.wait_until_saved();
    daemon.kill();
    fs::write(daemon.setup.path("last_good.json"), "{}").expect("writes");
    replace_export(&daemon.setup.source(), export(21));
    let check = |daemon: &Daemon| {
        let mut check = keyward();
        check.args(["check", "--config", "/dev/null", "--source"]).arg(daemon.setup.source());
        run(check.arg("--state-dir").arg(daemon.setup.dir.path()))
    };
    let output = check(&daemon);
    assert!(output.code == Some(1) && output.stderr.contains("a start would refuse it"), "{output:?}");
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "NOT_READY", "{}", daemon.log());
    daemon.assert_logged("it is damaged");
    daemon.kill();
    let mut accept = keyward();
    accept.args(["state", "accept", "source", "--state-dir"]).arg(daemon.setup.dir.path());
    assert_eq!(run(&mut accept).code, Some(0));
    assert_eq!(check(&daemon).code, Some(0));
    let daemon = daemon.kill_and_restart();
    assert_served(&daemon, "a damaged manifest, and an accepted source");
}

/// An error of the disk that passes, not damage.
#[test]
fn last_good_keys_that_cannot_be_read_are_read_again_at_the_next_poll() {
    let mut daemon = start_and_save(Setup::text(export(20)).config("source.poll = '100ms'"));
    for name in last_good_files(daemon.setup.dir.path()) {
        for (source, in_use) in [(export(3), true), (export(21), false)] {
            daemon.kill();
            let (path, hidden) = (daemon.setup.path(&name), daemon.setup.path("hidden"));
            fs::rename(&path, &hidden).expect("renames");
            // Symbolic links are not followed.
            std::os::unix::fs::symlink(&hidden, &path).expect("a link");
            replace_export(&daemon.setup.source(), source);
            daemon = daemon.kill_and_restart();
            assert_eq!(daemon.verdict("k0"), "NOT_READY", "{name}: {}", daemon.log());
            let error = daemon.status().last_reload.expect("one").error.expect("refused");
            assert!(error.contains("cannot be compared with the last good keys"), "{name}: {error}");
            fs::rename(&hidden, &path).expect("renames");
            wait_until("the keys", || {
                daemon.verdict("k0") == "ALLOWED" && last_good(&daemon).in_use == in_use
            });
            assert_served(&daemon, &name);
        }
        daemon.wait_until_saved();
        replace_export(&daemon.setup.source(), export(20));
        assert!(daemon.reload().accepted);
        daemon.wait_until_saved();
    }
}

#[test]
fn disabled_setting_removes_the_last_good_keys() {
    let mut daemon = start_and_save(Setup::new(export(2)));
    daemon.setup.replace_config("state.keep_snapshot = false");
    daemon = daemon.kill_and_restart();
    assert_eq!((daemon.status().last_good, last_good_files(daemon.setup.dir.path()).len()), (None, 0));
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "NOT_READY");
}

#[test]
fn keys_accepted_right_before_shutdown_are_saved() {
    let mut daemon = start_and_save(Setup::text(export(1)));
    replace_export(&daemon.setup.source(), export(20_000));
    assert!(daemon.reload().accepted);
    daemon.stop();
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k19999"), "ALLOWED");
}

#[test]
fn kill_during_a_save_leaves_usable_keys() {
    const ROUNDS: usize = 15;
    let mut daemon = start_and_save(Setup::text(export(1)));
    let mut previous = 1;
    for round in 1..=ROUNDS {
        replace_export(&daemon.setup.source(), export(round * 400));
        assert!(daemon.reload().accepted);
        // Another moment of the write in each round.
        std::thread::sleep(Duration::from_micros(700 * (round as u64 * 7 % 11)));
        daemon.kill();
        assert!(
            last_good_files(daemon.setup.dir.path()).iter().filter(|name| name.contains(".kwc")).count() <= 2
        );
        daemon.spoil_source();
        daemon = daemon.kill_and_restart();
        let status = daemon.status();
        assert!(status.last_good.expect("saved").in_use, "{}", daemon.log());
        let keys = status.keys - 3;
        assert!(keys == previous || keys == round * 400, "{keys}, after {previous} and {}", round * 400);
        assert_eq!(daemon.verdict(&format!("k{}", keys - 1)), "ALLOWED");
        previous = keys;
        assert!(
            last_good_files(daemon.setup.dir.path()).len() <= 2,
            "leftover files are removed at the start"
        );
    }
}

/// A limit on the size of files acts like a full disk.
#[test]
fn failed_save_leaves_the_previous_last_good_keys() {
    let mut daemon = start_and_save(Setup::text(export(20)));
    daemon.kill();
    replace_export(&daemon.setup.source(), export(5_000));
    let serve = daemon.setup.command();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 64; exec \"$@\"", "sh"]).arg(serve.get_program());
    limited.args(serve.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
    limited.stderr(fs::File::create(daemon.setup.path("log")).expect("the log"));
    daemon = daemon.kill_and_restart_with(limited);
    assert_eq!(daemon.verdict("k4999"), "ALLOWED");
    let failed = wait_for("the failure", || {
        daemon.status().unwritten.into_iter().find(|unwritten| unwritten.file == "last_good.json")
    });
    assert!(failed.error.contains("last_good-"), "{failed:?}");
    assert_eq!(last_good(&daemon).keys, 23, "the previous keys");
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_served(&daemon, "the previous keys");
}

/// The exit code and the messages of `keyward check` for the daemon's source and state directory.
fn check_start(daemon: &Daemon) -> (Option<i32>, String) {
    let mut check = keyward();
    check.args(["check", "--config", "/dev/null", "--source"]).arg(daemon.setup.source());
    let output = run(check.arg("--state-dir").arg(daemon.setup.dir.path()));
    (output.code, output.stderr)
}

/// The daemon is killed before the keys of an accepted source are written. It has recorded that it
/// accepted the source. Without this record, the first source would be refused for shrinking, and
/// the second for the sum of two steps that were accepted one by one.
#[test]
fn source_accepted_before_a_crash_is_served_although_its_keys_were_not_saved() {
    for steps in [&[3][..], &[60, 40]] {
        let daemon = start_and_save(Setup::text(export(100)));
        // This directory keeps the manifest from being replaced.
        fs::create_dir(daemon.setup.path("last_good.json.new")).expect("a directory");
        for keys in steps {
            replace_export(&daemon.setup.source(), export(*keys));
            let outcome = if *keys == 3 { daemon.force_reload() } else { daemon.reload() };
            assert!(outcome.accepted, "{:?}", outcome.error);
        }
        let keys = steps[steps.len() - 1];
        let daemon = daemon.kill_and_restart();
        assert!(!last_good(&daemon).in_use, "{steps:?}: {}", daemon.log());
        assert_eq!(last_good(&daemon).keys, 103, "the keys on disk are older");
        assert_eq!(daemon.status().keys, keys + 3);
        assert_eq!(daemon.verdict(&format!("k{keys}")), "UNKNOWN_KEY");
        // The record is for that source only. The keys on disk would give access back.
        replace_export(&daemon.setup.source(), export(2));
        let daemon = daemon.kill_and_restart();
        assert!(!daemon.status().ready, "{}", daemon.log());
        let unusable = last_good(&daemon).unusable.expect("a reason");
        let record = daemon.setup.path("accepted_source.json");
        assert!(
            unusable.contains("took access away") && unusable.contains(&record.display().to_string()),
            "{unusable}"
        );
        let event = daemon.setup.audit_events("last_good").pop().expect("an event");
        assert_eq!(event["reason"], "superseded", "{event}");
        let (_, predicted) = check_start(&daemon);
        assert!(
            predicted.contains("a start could not serve the last good keys: they are older"),
            "{predicted}"
        );
        // Neither are they accepted as a source again.
        replace_export(&daemon.setup.source(), export(100));
        let error = daemon.reload().error.expect("refused");
        assert!(error.contains("took access away"), "{error}");
        let (exit, predicted) = check_start(&daemon);
        assert!(exit == Some(1) && predicted.contains("took access away"), "{exit:?}: {predicted}");
        let daemon = daemon.kill_and_restart();
        assert!(!daemon.status().ready, "{}", daemon.log());
        replace_export(&daemon.setup.source(), export(2));
        fs::remove_file(record).expect("removes");
        let daemon = daemon.kill_and_restart();
        assert!(last_good(&daemon).in_use, "{}", daemon.log());
    }
}

/// A directory in the place of its new version keeps a file from being written.
fn block(daemon: &Daemon, file: &str) -> PathBuf {
    let obstacle = daemon.setup.path(&format!("{file}.new"));
    fs::create_dir_all(obstacle.join("x")).expect("a directory");
    obstacle
}

/// The reload has revoked `k19`. A restart with a bad source would serve the older keys.
#[test]
fn reload_whose_record_cannot_be_written_is_in_force_and_reported_as_not_durable() {
    let daemon = start_and_save(Setup::text(export(20)));
    block(&daemon, "last_good.json");
    let obstacle = block(&daemon, "accepted_source.json");
    replace_export(&daemon.setup.source(), export(19));
    for _ in 0..2 {
        let CommandOutput { code, stdout, stderr } = daemon.run_keyward(&["reload"]);
        assert_eq!(code, Some(1), "also if the source is unchanged: {stdout}{stderr}");
        assert!(stdout.starts_with("generation ") && stdout.contains(": 22 keys"), "{stdout}");
        let first = stderr.lines().next().expect("a message");
        assert!(
            first.starts_with("NOT DURABLE: the keys are in force") && first.contains("accepted_source.json")
        );
    }
    assert_eq!(daemon.verdict("k19"), "UNKNOWN_KEY");
    let CommandOutput { code, stdout, .. } = daemon.run_keyward(&["reload", "--json"]);
    let reply: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &reply["accepted"], &reply["durable"]), (Some(1), &true.into(), &false.into()));
    assert!(reply["not_durable"].as_str().is_some_and(|reason| reason.contains("accepted_source.json")));
    daemon.assert_logged("the keys are in force, but NOT DURABLE");
    let shows_it = || daemon.run_keyward(&["status"]).stdout.contains("NOT DURABLE: the keys are in force");
    assert!(shows_it());
    daemon.spoil_source();
    assert!(!daemon.reload().accepted);
    let status = daemon.status();
    assert!(
        shows_it() && status.last_accepted.is_some_and(|reload| !reload.durable),
        "after a refused reload"
    );

    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k19"), "ALLOWED", "as it was reported: {}", daemon.log());
    replace_export(&daemon.setup.source(), export(19));
    assert_eq!(daemon.run_keyward(&["reload"]).code, Some(1));
    // The next poll retries.
    fs::remove_dir_all(obstacle).expect("removes");
    let is_durable = || daemon.status().last_accepted.is_some_and(|reload| reload.durable);
    wait_until("the record to be written", is_durable);
    assert!(!daemon.run_keyward(&["status"]).stdout.contains("NOT DURABLE"));
    let CommandOutput { code, stderr, .. } = daemon.run_keyward(&["reload"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k19"), "NOT_READY", "{}", daemon.log());
}

#[test]
fn reload_is_durable_where_no_last_good_keys_are_kept() {
    let daemon = Setup::new(export(20)).config("state.keep_snapshot = false").start();
    block(&daemon, "accepted_source.json");
    replace_export(&daemon.setup.source(), export(19));
    let CommandOutput { code, stdout, stderr } = daemon.run_keyward(&["reload", "--json"]);
    assert!(code == Some(0) && stdout.contains("\"durable\":true"), "{stdout}{stderr}");
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k19"), "NOT_READY", "there are no older keys to serve");
}

/// As [`damaged`](damaged_last_good_keys_are_reported_and_not_served) keys are.
#[test]
fn source_is_not_accepted_without_a_comparison_if_the_last_good_keys_are_lost() {
    let lose = |daemon: &Daemon| fs::remove_file(daemon.setup.path("last_good.json")).expect("removes");
    let record =
        |daemon: &Daemon| fs::read_to_string(daemon.setup.path("accepted_source.json")).expect("the record");
    let mut daemon = start_and_save(Setup::text(export(20)).config("source.poll = '100ms'"));
    wait_until("the record to say that keys are stored", || record(&daemon).contains("\"has_stored\":true"));
    daemon.kill();
    lose(&daemon);
    daemon = daemon.kill_and_restart();
    assert!(daemon.status().ready, "the source is the one that was accepted: {}", daemon.log());
    daemon.wait_until_saved();
    daemon.kill();
    lose(&daemon);
    replace_export(&daemon.setup.source(), export(21));
    daemon = daemon.kill_and_restart();
    assert!(!daemon.status().ready, "{}", daemon.log());
    let error = daemon.reload().error.expect("refused");
    assert!(
        error.contains("they were stored, and are gone") && error.contains("accepted_source.json"),
        "{error}"
    );
    let (exit, predicted) = check_start(&daemon);
    assert!(exit == Some(1) && predicted.contains("they were stored, and are gone"), "{exit:?}: {predicted}");
    assert!(daemon.force_reload().accepted);
    assert_eq!(daemon.verdict("k20"), "ALLOWED");
}

/// A daemon that is killed before its first save leaves a record and no keys.
#[test]
fn source_after_a_crash_before_the_first_save_is_accepted() {
    let setup = Setup::text(export(20));
    // This directory keeps the manifest from being written.
    fs::create_dir(setup.path("last_good.json.new")).expect("a directory");
    let daemon = setup.start();
    assert!(daemon.status().ready && daemon.setup.path("accepted_source.json").exists(), "{}", daemon.log());
    replace_export(&daemon.setup.source(), export(21));
    let daemon = daemon.kill_and_restart();
    assert!(daemon.status().ready, "{}", daemon.log());
    assert_eq!(daemon.verdict("k20"), "ALLOWED");
}

#[test]
fn saved_copy_of_a_compiled_source_is_independent_of_it() {
    let setup = Setup::without_export();
    let source = setup.path("keys.kwc");
    replace_export(&source, export(20));
    let daemon = start_and_save(setup.config(&format!("source.path = '{}'", source.display())));
    let name = last_good_files(daemon.setup.dir.path())
        .into_iter()
        .find(|name| name.ends_with(".kwc"))
        .expect("a file");
    assert_eq!(fs::read(daemon.setup.path(&name)).expect("reads"), fs::read(&source).expect("reads"));
    // Written in place, so that a file with shared blocks would be damaged as well.
    let file = fs::File::options().write(true).open(&source).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 300).expect("writes");
    let daemon = daemon.kill_and_restart();
    assert_served(&daemon, "a damaged compiled source");
    assert!(last_good(&daemon).in_use);
}

#[test]
fn check_reports_what_a_start_would_do() {
    let daemon = start_and_save(Setup::text(export(20)));
    let new = daemon.setup.path("new.csv");
    let check = |options: &[&str]| {
        let mut command = keyward();
        command.args(["check", "--config", "/dev/null", "--source"]).arg(&new);
        run(command.arg("--state-dir").arg(daemon.setup.dir.path()).args(options))
    };
    fs::write(&new, export(3).to_csv()).expect("writes");
    let CommandOutput { code, stdout, stderr } = check(&[]);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("compared with the last good keys: generation 1, accepted 2"), "{stdout}");
    assert!(stdout.contains("23 -> 6 keys: 0 added, 17 removed"), "{stdout}");
    assert!(stderr.contains("a start would refuse it: "), "{stderr}");
    fs::write(&new, export(21).to_csv()).expect("writes");
    let CommandOutput { code, stdout, .. } = check(&[]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("a start would accept it"), "{stdout}");
    let report: serde_json::Value = serde_json::from_str(&check(&["--json"]).stdout).expect("JSON");
    assert_eq!(
        (&report["last_good"]["generation"], &report["diff"]["changes"]["added"]),
        (&1.into(), &1.into())
    );
    assert_eq!(report["last_good"]["usable"], true, "{report}");
    assert_eq!(daemon.verdict("k0"), "ALLOWED", "the daemon is not affected");
    // Without last good keys, nothing is compared.
    fs::remove_file(daemon.setup.path("last_good.json")).expect("removes");
    assert!(!check(&[]).stdout.contains("last good"));
}
