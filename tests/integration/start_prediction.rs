//! `keyward check` predicts what a start does, and changes nothing.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use crate::support::{CommandOutput, Daemon, Export, Setup, keyward, replace_export, row, run, wait_until};
use keyward_engine::pepper::Pepper;

fn export() -> Export {
    Export::new((0..4).map(|number| row(format!("k{number}"))))
}

/// Runs `keyward check` with the configuration of the last start of this setup.
fn check(setup: &Setup, options: &[&str]) -> CommandOutput {
    let before = files(setup.dir.path());
    let mut command = keyward();
    command.args(["check", "--config"]).arg(setup.path("keyward.toml"));
    command.arg("--source").arg(setup.source()).arg("--state-dir").arg(setup.dir.path());
    let output = run(command.args(options));
    assert_eq!(files(setup.dir.path()), before, "a check changes nothing");
    output
}

/// The names, contents and times of all files.
fn files(directory: &Path) -> Vec<(OsString, Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(directory).expect("lists").map(|entry| entry.expect("an entry"));
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut files: Vec<_> = files
        .map(|entry| {
            let changed = entry.metadata().and_then(|metadata| metadata.modified()).expect("a time");
            (entry.file_name(), fs::read(entry.path()).expect("reads"), changed)
        })
        .collect();
    files.sort();
    files
}

/// A daemon that has revoked k0 and was killed.
fn killed_after_revocation() -> Daemon {
    let mut daemon = Setup::text(export()).start();
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    daemon.kill();
    daemon
}

/// Whether a start of the daemon fails, and its log.
fn start_fails(daemon: Daemon) -> (Option<i32>, Daemon) {
    let mut daemon = daemon.respawn();
    let code = daemon.wait_for_exit().code();
    wait_until("the log", || daemon.log().contains("keyward: "));
    (code, daemon)
}

#[test]
fn damaged_list_of_revocations_is_predicted() {
    let daemon = killed_after_revocation();
    let output = check(&daemon.setup, &[]);
    assert_eq!((output.code, output.stderr.contains("a start would fail")), (Some(0), false), "{output:?}");
    let list = daemon.setup.path("revocations.jsonl");
    let complete = fs::read_to_string(&list).expect("a list");
    let (header, _) = complete.split_once('\n').expect("lines");
    let mut daemon = daemon;
    for (content, problem) in [
        (Some(String::new()), "it is empty, and"),
        (Some(format!("{header}\n")), "it was truncated"),
        (Some(complete.replace("k0", "")), ":2: not a revocation"),
        (None, "it is missing, and"),
    ] {
        match content {
            Some(content) => fs::write(&list, content).expect("writes"),
            None => fs::remove_file(&list).expect("removes"),
        }
        let output = check(&daemon.setup, &[]);
        assert_eq!(output.code, Some(1), "{output:?}");
        let predicted =
            output.stderr.lines().find_map(|line| line.strip_prefix("keyward: a start would fail: "));
        let predicted = predicted.unwrap_or_else(|| panic!("{output:?}"));
        assert!(predicted.contains(problem), "{output:?}");
        assert!(output.stdout.contains(": ok\n"), "the source is checked all the same: {output:?}");
        let report: serde_json::Value =
            serde_json::from_str(&check(&daemon.setup, &["--json"]).stdout).expect("JSON");
        assert_eq!((&report["ok"], &report["start"]["failures"][0]), (&false.into(), &predicted.into()));
        let (code, failed) = start_fails(daemon);
        daemon = failed;
        assert_eq!(code, Some(78));
        assert!(daemon.log().contains(predicted), "{}", daemon.log());
    }
    let mut accept = keyward();
    accept.args(["state", "accept", "lost-revocations", "--state-dir"]).arg(daemon.setup.dir.path());
    assert_eq!(run(&mut accept).code, Some(0));
    let output = check(&daemon.setup, &[]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stderr.contains("has accepted the loss of revocations"), "{output:?}");
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
}

/// The target of the link may be on a disk that is not mounted.
#[test]
fn link_in_place_of_the_balances_is_predicted() {
    let mut daemon = Setup::text(export()).start();
    daemon.kill();
    let balances = daemon.setup.path("balances");
    for target in ["not mounted", "usage.jsonl"] {
        fs::remove_file(&balances).expect("removes");
        symlink(target, &balances).expect("a link");
        let output = check(&daemon.setup, &[]);
        assert_eq!(output.code, Some(1), "{output:?}");
        let predicted =
            output.stderr.lines().find_map(|line| line.strip_prefix("keyward: a start would fail: "));
        let predicted = predicted.unwrap_or_else(|| panic!("{output:?}"));
        assert!(predicted.contains("balances: cannot read it"), "{output:?}");
        let (code, failed) = start_fails(daemon);
        daemon = failed;
        assert_eq!(code, Some(1));
        assert!(daemon.log().contains(predicted), "{}", daemon.log());
        assert!(balances.is_symlink(), "nothing has replaced it");
    }
}

/// The list of revocations is the only file that is older than the balances. Once a command has
/// changed it, balances have been there as well.
#[test]
fn balances_missing_beside_a_changed_list_of_revocations_are_lost() {
    let limited = Export::new((0..4).map(|number| row(format!("k{number}")).limits("5 credits")));
    for revoke in [false, true] {
        let mut daemon = Setup::text(limited.clone()).start();
        if revoke {
            assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
        }
        daemon.kill();
        for (name, ..) in files(daemon.setup.dir.path()) {
            let name = name.to_string_lossy();
            let is_state = ["balances", "audit", "usage", "last_good", "accepted_source", "generation"];
            if is_state.iter().any(|prefix| name.starts_with(prefix)) {
                fs::remove_file(daemon.setup.path(&name)).expect("removes");
            }
        }
        let output = check(&daemon.setup, &[]);
        assert_eq!(output.stderr.contains("the saved balances are missing"), revoke, "{output:?}");
        let daemon = daemon.kill_and_restart();
        assert_eq!(daemon.verdict("k1"), if revoke { "NOT_READY" } else { "ALLOWED" }, "{}", daemon.log());
    }
}

/// Whether a check predicts that a start refuses the source, and whether the next start does. The
/// reasons must be equal.
fn refused_by_check_and_start(daemon: Daemon) -> (bool, bool, String, Daemon) {
    let output = check(&daemon.setup, &[]);
    let predicted = output.stderr.lines().find_map(|line| line.strip_prefix("a start would refuse it: "));
    let is_predicted = predicted.is_some();
    assert_eq!(output.code, Some(i32::from(is_predicted)), "{output:?}");
    let daemon = daemon.kill_and_restart();
    let reload = daemon.status().last_reload.expect("one");
    assert_eq!(reload.error.as_deref(), predicted, "{output:?}");
    (is_predicted, !reload.accepted, reload.error.unwrap_or_default(), daemon)
}

#[test]
fn refusal_because_of_another_pepper_is_predicted() {
    for (before, now, hashed_with, is_refused, advice) in [
        ("", "a", "", true, "keyward key hash --pepper-file"),
        ("a", "", "a", true, "Set it again"),
        ("a", "b", "a", true, "Name the old pepper as the previous one"),
        ("a", "ba", "a", false, ""),
        ("a", "ba", "b", false, ""),
        ("", "a", "a", false, ""),
        ("a", "a", "a", false, ""),
    ] {
        let setup = Setup::without_export().text_source();
        let peppers: Vec<_> = ["a", "b"].map(|name| setup.write_secret(name, name.repeat(32))).into();
        let config = |names: &str| {
            let path = |name: char| peppers[usize::from(name == 'b')].clone();
            let mut names = names.chars();
            let current = names.next().map(|name| format!("keys.pepper_file = '{}'\n", path(name)));
            let previous = names.next().map(|name| format!("keys.previous_pepper_file = '{}'\n", path(name)));
            current.unwrap_or_default() + &previous.unwrap_or_default()
        };
        let export = |name: &str| {
            let pepper =
                (!name.is_empty()).then(|| Pepper::new(name.repeat(32).as_bytes()).expect("a pepper"));
            Export::new((0..4).map(|number| {
                let key = format!("k{number}");
                match &pepper {
                    Some(pepper) => row(&key).hash(const_hex::encode(pepper.hash(key.as_bytes()))),
                    None => row(&key),
                }
            }))
        };
        setup.write_export(export(before));
        let mut daemon = setup.config(&config(before)).start();
        daemon.wait_until_saved();
        daemon.kill();
        if hashed_with != before {
            replace_export(&daemon.setup.source(), export(hashed_with));
        }
        daemon.setup.replace_config(&config(now));
        // Writes the configuration, and starts nothing.
        drop(daemon.setup.command());
        let (is_predicted, refuses, reason, daemon) = refused_by_check_and_start(daemon);
        let case = format!("{before:?} -> {now:?}, hashes of {hashed_with:?}: {reason}");
        assert_eq!((is_predicted, refuses), (is_refused, is_refused), "{case}");
        assert!(reason.contains(advice), "{case}");
        assert_eq!(reason.contains("previous one"), is_refused && advice.contains("previous one"), "{case}");
        let expected = if is_refused { "NOT_READY" } else { "ALLOWED" };
        assert_eq!(daemon.verdict("k0"), expected, "{case}");
    }
}

/// A reload that an operator forced, and a start with the same file.
#[test]
fn source_that_was_accepted_before_is_not_refused() {
    let daemon = Setup::text(Export::new((0..20).map(|number| row(format!("k{number}"))))).start();
    daemon.wait_until_saved();
    // This directory keeps the manifest from being replaced, so the older keys stay on disk.
    fs::create_dir(daemon.setup.path("last_good.json.new")).expect("a directory");
    replace_export(&daemon.setup.source(), Export::new([row("k0")]));
    assert!(daemon.force_reload().accepted);
    let mut daemon = daemon;
    daemon.kill();
    assert!(!refused_by_check_and_start(daemon).0);
}

#[test]
fn start_that_cannot_make_its_socket_or_state_directory_is_predicted() {
    let setup = Setup::text(export());
    let config = setup.path("keyward.toml");
    let missing = setup.path("missing");
    for (settings, problem) in [
        ("server.socket_group = 'no_such_group_here'".to_owned(), "there is no group \"no_such_group_here\""),
        (
            format!("server.socket = '{}/k.sock'", missing.display()),
            "there is no such directory to put a socket in",
        ),
        (format!("server.admin_socket = '{}/a.sock'", missing.display()), "there is no such directory"),
        (
            format!("server.state_dir = '{}/state'", missing.display()),
            "cannot make the directory: No such file",
        ),
        (format!("server.state_dir = '{}'", setup.source().display()), "Not a directory"),
    ] {
        let socket = setup.path("keyward.sock");
        let own = if settings.contains("server.socket =") {
            String::new()
        } else {
            format!("server.socket = '{}'\n", socket.display())
        };
        let state = if settings.contains("state_dir") {
            String::new()
        } else {
            format!("server.state_dir = '{}'\n", setup.path("state").display())
        };
        fs::write(&config, format!("source.path = '{}'\n{own}{state}{settings}\n", setup.source().display()))
            .expect("writes");
        let run_with_config = |command: &str| run(keyward().args([command, "--config"]).arg(&config));
        let before = files(setup.dir.path());
        let output = run_with_config("check");
        assert_eq!(files(setup.dir.path()), before);
        assert!(!setup.path("state").exists() && !missing.exists(), "a check makes nothing");
        assert_eq!(output.code, Some(1), "{settings}: {output:?}");
        assert!(output.stderr.contains("keyward: a start would fail: "), "{output:?}");
        assert!(output.stderr.contains(problem), "{settings}: {output:?}");
        let started = run_with_config("serve");
        assert!(
            started.code == Some(1) && started.stderr.contains(problem.trim_end_matches(": No such file")),
            "{started:?}"
        );
    }
}
