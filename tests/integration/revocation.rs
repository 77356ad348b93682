//! Acknowledged means in force, for revocations: when `keyward revoke` returns, the key is denied
//! on every connection. It stays denied until it is unrevoked, or until the source revokes it too.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::revocation_load::RevocationLoad;
use crate::support::{
    CommandOutput, Daemon, Export, RawClient, Received, SetOnDrop, Setup, encode_verify, key_target, keyward,
    line, owner_target, replace_export, row, run, wait_for,
};
use keyward_admin::message::{Command, Reply, Revocation, Target};
use keyward_admin::{CommandError, send_command};
use rustix::process::Signal;

fn send(admin: &Path, command: &Command) -> Result<Revocation, CommandError> {
    send_command(admin, command).map(|reply: Reply| reply.revocation.expect("an outcome"))
}

/// The error of a command that is refused.
fn refusal(daemon: &Daemon, command: &Command) -> String {
    send(&daemon.admin_socket(), command).expect_err("refused").to_string()
}

/// The targets on the list of revocations.
fn listed(daemon: &Daemon) -> Vec<Target> {
    daemon.status().revocations.into_iter().map(|revoked| revoked.target).collect()
}

/// Rows of acme: two of the key `a`, which is in rotation, and one of `b`. Rows of bolt: `c` and
/// `d`.
fn export(status_of_a: &str) -> Export {
    let acme = ["a1", "a2"].map(|key| row(key).id("a").owner("acme").status(status_of_a));
    Export::new(acme).rows([
        row("b").owner("acme").status("active"),
        row("c").owner("bolt").status("active"),
        row("d").owner("bolt").status("disabled"),
    ])
}

/// Keys that are revoked one at a time, in the order of their numbers.
const KEYS: usize = 10_000;

/// Requests in flight on each connection. The answers to the largest windows do not fit into the
/// socket, so the daemon has to buffer them.
const WINDOWS: [usize; 8] = [1, 4, 16, 64, 256, 1_024, 8_192, 16_384];

fn load_export(environment: &str) -> Export {
    Export::new(
        (0..KEYS).map(|number| row(format!("key-{number}")).environment(environment).limits("1000000/s")),
    )
}

/// Revokes a key, and retries with a restarted daemon if the daemon does not answer.
fn revoke_with_restarts(mut daemon: Daemon, number: usize, restarts: &mut usize) -> Daemon {
    let command = Command::Revoke(key_target(&format!("key-{number}")));
    loop {
        match send(&daemon.admin_socket(), &command) {
            Ok(revocation) => {
                assert_eq!((revocation.keys, revocation.revoked), (1, 1), "key-{number}");
                return daemon;
            }
            Err(CommandError::Refused(error)) => panic!("key-{number}: {error}"),
            Err(_) => {
                *restarts += 1;
                daemon = daemon.kill_and_restart();
            }
        }
    }
}

#[test]
fn revoked_keys_are_denied_on_every_connection_under_load() {
    let setup = Setup::new(load_export("v1")).config("[source]\nsettle = \"5ms\"\npoll = \"100ms\"");
    let mut daemon = setup.start();
    let keys: Vec<String> = (0..KEYS).map(|number| format!("key-{number}")).collect();
    let loaders: Vec<RevocationLoad> =
        WINDOWS.iter().map(|window| RevocationLoad::new(&daemon.socket(), &keys, *window)).collect();
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut restarts = 0;
    let start = Instant::now();
    let daemon = thread::scope(|scope| {
        let _end = SetOnDrop(&stop);
        for (loader, seed) in loaders.iter().zip(1..) {
            let (acknowledged, stop) = (&acknowledged, &stop);
            scope.spawn(move || loader.run(seed, acknowledged, stop));
        }
        for number in 0..KEYS {
            let admin = daemon.admin_socket();
            match number {
                2_500 | 7_500 => {
                    replace_export(&daemon.setup.source(), load_export(&format!("v{number}")));
                    scope.spawn(move || {
                        send_command(&admin, &Command::Reload { force: false }).expect("reloaded")
                    });
                }
                5_000 => {
                    // Concurrently with the commands of this thread.
                    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).expect("a pid");
                    scope.spawn(move || rustix::process::kill_process(pid, Signal::KILL));
                }
                _ => {}
            }
            daemon = revoke_with_restarts(daemon, number, &mut restarts);
            // In this order: answers already in the sockets were sent before the acknowledgement.
            loaders.iter().for_each(|loader| loader.acknowledge(number));
            acknowledged.store(number as u64 + 1, Ordering::Release);
        }
        daemon
    });
    assert_eq!(restarts, 1, "the daemon was killed exactly once");
    let answers: u64 = loaders.iter().map(RevocationLoad::check).sum();
    eprintln!("{KEYS} revocations beside {answers} answers in {:?}", start.elapsed());
    assert!(answers > 20_000, "{answers} answers are no load");
    assert_eq!(daemon.status().revocations_total, KEYS, "{}", daemon.log());
}

#[test]
fn key_is_revoked_with_all_its_rows_until_it_is_unrevoked() {
    let daemon = Daemon::serving(export("active"));
    let expected = Revocation {
        target: key_target("a"),
        already: false,
        keys: 2,
        revoked: 2,
        generation: 2,
        durable: true,
        not_durable: None,
    };
    assert_eq!(daemon.revoke(key_target("a")), expected);
    assert_eq!(daemon.verdicts(["a1", "a2", "b"]), ["REVOKED", "REVOKED", "ALLOWED"]);
    assert_eq!(daemon.revoke(key_target("a")), Revocation { already: true, ..expected.clone() });
    assert_eq!(daemon.unrevoke(key_target("a")), Revocation { revoked: 0, generation: 3, ..expected });
    assert_eq!(daemon.verdicts(["a1", "a2", "b"]), ["ALLOWED"; 3]);
    let error = refusal(&daemon, &Command::Unrevoke(key_target("a")));
    assert_eq!(error, "key \"a\" is not on the list of revocations (keyward status --revocations shows it)");
}

#[test]
fn owner_and_key_revocations_are_independent() {
    let daemon = Daemon::serving(export("active"));
    assert_eq!(daemon.revoke(key_target("b")).keys, 1);
    let all = daemon.revoke(owner_target("acme"));
    assert_eq!((all.keys, all.revoked, all.already), (3, 3, false));
    assert_eq!(daemon.verdicts(["a1", "a2", "b", "c"]), ["REVOKED", "REVOKED", "REVOKED", "ALLOWED"]);
    // `b` stays revoked by its own id.
    assert_eq!(daemon.unrevoke(owner_target("acme")).revoked, 1);
    assert_eq!(daemon.verdicts(["a1", "a2", "b"]), ["ALLOWED", "ALLOWED", "REVOKED"]);
    daemon.revoke(owner_target("acme"));
    assert_eq!(daemon.unrevoke(key_target("b")).revoked, 1, "still revoked by its owner");
    assert_eq!(daemon.verdict("b"), "REVOKED");
}

#[test]
fn revocation_of_an_unknown_target_is_refused() {
    let daemon = Daemon::serving(export("active"));
    assert_eq!(
        refusal(&daemon, &Command::Revoke(key_target("unlisted"))),
        "no key has the id \"unlisted\" in generation 1; if the source has it, reload first"
    );
    assert_eq!(
        refusal(&daemon, &Command::Revoke(owner_target("unlisted"))),
        "no key belongs to \"unlisted\" in generation 1; if the source has it, reload first"
    );
    let raw = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";
    let error = refusal(&daemon, &Command::Revoke(key_target(raw)));
    assert!(error.contains("never by the key itself") && !error.contains(&raw[10..]), "{error}");
    for wrong in [Target::default(), Target { key_id: Some("a".to_owned()), owner: Some("b".to_owned()) }] {
        assert_eq!(refusal(&daemon, &Command::Revoke(wrong)), "name either a key_id or an owner");
    }
    assert!(refusal(&daemon, &Command::Revoke(key_target(""))).starts_with("key_id must have 1 to 64 bytes"));
    assert!(listed(&daemon).is_empty());
}

#[test]
fn revocation_survives_restarts_and_reloads_until_the_source_confirms_it() {
    let tolerant = "revocation.keep = '0s'\nsource.max_reactivated = 1.0\nsource.max_shrink = 1.0";
    let daemon = Setup::new(export("active")).config(tolerant).start();
    daemon.revoke(key_target("a"));
    daemon.revoke(owner_target("bolt"));
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdicts(["a1", "a2", "c", "d"]), ["REVOKED"; 4]);

    // The source changes every row, and confirms nothing.
    assert!(daemon.publish(export("active").map_rows(|row| row.metadata("{}"))).accepted);
    assert_eq!(daemon.verdicts(["a1", "a2", "c", "d"]), ["REVOKED"; 4]);
    assert_eq!(listed(&daemon).len(), 2);

    // One row of the key is still active, which is no confirmation.
    let half = export("active").to_csv().replacen(",active", ",revoked", 1);
    assert!(daemon.publish(half).accepted);
    assert_eq!(daemon.verdicts(["a1", "a2"]), ["REVOKED"; 2]);
    assert_eq!(listed(&daemon).len(), 2);

    // The source now confirms the key, but not the owner. Either the watch's reload or
    // the command's detects that, so the test checks the list and the audit trail.
    assert!(daemon.publish(export("revoked")).accepted);
    assert_eq!(daemon.verdicts(["a1", "a2", "c", "d"]), ["REVOKED"; 4]);
    assert_eq!(listed(&daemon), [owner_target("bolt")]);
    let daemon = daemon.kill_and_restart();
    assert_eq!(listed(&daemon), [owner_target("bolt")], "a dropped revocation stays dropped");

    // Rows that are disabled or missing may return with the next export, which is no confirmation.
    let disabled = export("revoked").to_csv().replace("bolt,active", "bolt,disabled");
    assert!(daemon.publish(disabled).accepted);
    assert_eq!(listed(&daemon), [owner_target("bolt")]);
    let missing: String = export("revoked")
        .to_csv()
        .lines()
        .filter(|row| !row.contains("bolt"))
        .map(|row| row.to_owned() + "\n")
        .collect();
    replace_export(&daemon.setup.source(), missing);
    assert!(daemon.force_reload().accepted);
    assert_eq!(listed(&daemon), [owner_target("bolt")]);
    assert!(daemon.publish(export("active")).accepted);
    assert_eq!(listed(&daemon), [owner_target("bolt")]);
    assert_eq!(daemon.verdicts(["a1", "a2", "c", "d"]), ["ALLOWED", "ALLOWED", "REVOKED", "REVOKED"]);
    let confirmed = export("active")
        .to_csv()
        .replace("bolt,active", "bolt,revoked")
        .replace("bolt,disabled", "bolt,revoked");
    assert!(daemon.publish(confirmed).accepted);
    assert!(listed(&daemon).is_empty());
    // The source alone decides from here on.
    assert!(daemon.publish(export("active")).accepted);
    assert_eq!(daemon.verdicts(["a1", "a2", "c", "d"]), ["ALLOWED", "ALLOWED", "ALLOWED", "DISABLED"]);

    let events: Vec<_> = daemon
        .setup
        .audit_trail()
        .into_iter()
        .filter(|event| event["event"].as_str().is_some_and(|event| event.contains("revo")))
        .map(|event| {
            let target = if event["key_id"].is_null() { &event["owner"] } else { &event["key_id"] };
            format!("{} {target} {} {}", event["event"], event["keys"], event["uid"])
        })
        .collect();
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(
        events,
        [
            format!("\"revoke\" \"a\" 2 {uid}"),
            format!("\"revoke\" \"bolt\" 2 {uid}"),
            "\"revocation_dropped\" \"a\" 2 null".to_owned(),
            "\"revocation_dropped\" \"bolt\" 2 null".to_owned(),
        ]
    );
}

/// A revocation applies to names. An export that gives its keys other names would undo it.
#[test]
fn source_that_renames_revoked_keys_is_refused() {
    let tolerant = "source.max_reactivated = 1.0\nsource.max_shrink = 1.0\nsource.max_loosened = 1.0";
    let mut daemon = Setup::new(export("active")).config(tolerant).start();
    daemon.revoke(key_target("a"));
    daemon.revoke(owner_target("bolt"));
    daemon.wait_until_saved();
    let renamed_owner = export("active").to_csv().replace("bolt", "bolt-2");
    let renamed_key = export("active").map_rows(|row| if row.key_id() == "a" { row.id("a3") } else { row });
    let without_owners = export("active").map_rows(|row| row.owner(""));
    for (renamed, refused) in [
        (renamed_owner.clone(), "2 keys that are revoked have another key id or owner, which is not revoked"),
        (renamed_key.to_csv(), "1 key that is revoked has another key id or owner, which is not revoked"),
        (without_owners.to_csv(), "2 keys that are revoked have"),
        (
            renamed_owner.replace("bolt-2,disabled", "bolt,disabled"),
            "1 key that is revoked has another key id or owner, which is not revoked",
        ),
    ] {
        replace_export(&daemon.setup.source(), &*renamed);
        let error = daemon.reload().error.expect("refused");
        assert!(error.contains(refused), "{error}");
        let mut check = keyward();
        check.args(["check", "--config"]).arg(daemon.setup.path("keyward.toml"));
        check.arg("--source").arg(daemon.setup.source()).arg("--state-dir").arg(daemon.setup.dir.path());
        let CommandOutput { code, stderr: predicted, .. } = run(&mut check);
        assert!(code == Some(1) && predicted.contains(refused), "{code:?}: {predicted}");
        assert_eq!(
            daemon.verdicts(["a1", "a2", "b", "c", "d"]),
            ["REVOKED", "REVOKED", "ALLOWED", "REVOKED", "REVOKED"]
        );
        // A start compares with the last good keys.
        daemon = daemon.kill_and_restart();
        daemon.assert_logged(refused);
        assert_eq!(
            daemon.verdicts(["a1", "a2", "b", "c", "d"]),
            ["REVOKED", "REVOKED", "ALLOWED", "REVOKED", "REVOKED"]
        );
    }

    // As the refusal advises: the name that stays is revoked as well.
    replace_export(&daemon.setup.source(), renamed_owner);
    daemon.revoke(key_target("c"));
    daemon.revoke(key_target("d"));
    assert!(daemon.reload().accepted);
    assert_eq!(daemon.verdicts(["a1", "b", "c", "d"]), ["REVOKED", "ALLOWED", "REVOKED", "REVOKED"]);
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdicts(["a1", "b", "c", "d"]), ["REVOKED", "ALLOWED", "REVOKED", "REVOKED"]);

    // An operator may decide otherwise, and the log says what that means.
    replace_export(&daemon.setup.source(), renamed_key.map_rows(|row| row.owner("acme")));
    assert!(daemon.force_reload().accepted);
    assert_eq!(daemon.verdicts(["a1", "c"]), ["ALLOWED", "REVOKED"]);
    daemon.assert_logged("lifts revocations: 1 key that is revoked has another key id");
}

#[test]
fn revocation_before_the_first_load_applies_to_it() {
    let daemon = Setup::without_export().start();
    let early = daemon.revoke(key_target("a"));
    assert_eq!((early.keys, early.generation), (0, 0));
    assert!(daemon.publish(export("active")).accepted);
    assert_eq!(daemon.verdicts(["a1", "a2", "b"]), ["REVOKED", "REVOKED", "ALLOWED"]);
}

/// A peer that does not read finds in its socket the answers that were made before the revocation, and
/// no others, and does not delay the command.
#[test]
fn peer_that_does_not_read_does_not_delay_a_revocation() {
    let daemon = Daemon::serving(export("active"));
    let mut peer = daemon.connect();
    assert!(peer.send_until_blocked(&encode_verify(1, "a1")) > 0);
    let start = Instant::now();
    daemon.revoke(key_target("a"));
    assert!(start.elapsed() < Duration::from_secs(5), "the revocation took {:?}", start.elapsed());
    let sent = rustix::io::ioctl_fionread(&peer.stream).expect("a socket");
    let mut received = peer.receive_until_close();
    assert!(matches!(received.pop(), Some(Received::Error { code: 13, detail: 1_000, .. })));
    let is_allowed = |received: &Received| matches!(received, Received::Answer { verdict: "ALLOWED", .. });
    assert!(received.iter().all(is_allowed), "{:?}", received.last());
    let (answers, size) = (received.len() as u64, answer_size(&daemon));
    assert!(
        answers > 0 && answers * size <= sent,
        "{answers} answers of {size} bytes, but only {sent} bytes were sent before"
    );
}

/// Size of the answer about `b`, which is as long as the answer about `a`.
fn answer_size(daemon: &Daemon) -> u64 {
    let mut peer: RawClient = daemon.connect();
    peer.send(&encode_verify(1, "b"));
    let size =
        wait_for("an answer", || rustix::io::ioctl_fionread(&peer.stream).ok().filter(|bytes| *bytes > 0));
    peer.receive();
    size
}

/// Several revocations return during one reload, and none of them takes as long as a large part of
/// it.
#[test]
fn revocation_does_not_wait_for_a_reload() {
    // Enough for a reload of a second as text, and of almost half a second compiled.
    const ROWS: usize = 600_000;
    /// What a busy disk may take to write one line.
    const DISK: Duration = Duration::from_millis(250);
    let rows = (0..ROWS).map(|number| line(format!("{number:064x},key-{number}")));
    let daemon = Setup::new(Export::new(rows)).config("[source]\nsettle = \"5ms\"\npoll = \"1h\"").start();
    let reloaded = AtomicBool::new(false);
    let (mut during, mut longest) = (0, Duration::ZERO);
    let outcome = thread::scope(|scope| {
        let reload = scope.spawn(|| {
            let _end = SetOnDrop(&reloaded);
            daemon.reload()
        });
        while !reloaded.load(Ordering::Acquire) {
            let start = Instant::now();
            daemon.revoke(key_target(&format!("key-{during}")));
            longest = longest.max(start.elapsed());
            during += 1;
        }
        reload.join().expect("reloaded")
    });
    assert!(outcome.accepted);
    assert!(during > 5, "only {during} revocations returned during the reload");
    let reload = Duration::from_millis(outcome.took_ms);
    assert!(longest < DISK.max(reload / 2), "a revocation took {longest:?}, and the reload {reload:?}");
    // All of them are in force in the new snapshot.
    let status = daemon.status();
    // The reload and each revocation have moved it.
    assert_eq!((status.generation, status.revocations_total), (2 + during as u64, during));
    assert_eq!(status.table_generation, outcome.generation);
    for number in 0..during {
        let revocation = daemon.revoke(key_target(&format!("key-{number}")));
        assert!(revocation.already && revocation.revoked == 1, "{revocation:?}");
    }
}

#[test]
fn torn_line_is_dropped_and_damaged_line_prevents_the_start() {
    let mut daemon = Daemon::serving(export("active"));
    let (file, sequence) = (daemon.setup.path("revocations.jsonl"), daemon.setup.path("revocations.seq"));
    daemon.revoke(key_target("a"));
    let before = fs::read_to_string(&file).expect("a file").len();
    let sequence_before = fs::read(&sequence).expect("a file");
    daemon.revoke(key_target("b"));
    daemon.kill();
    let whole = fs::read_to_string(&file).expect("a file");

    // As if the daemon was killed during the second command, which never returned, so its sequence
    // number was not recorded. If only the newline is missing, an editor may have removed it from a
    // command that did return.
    for (torn, b) in [(before + 1, "ALLOWED"), (whole.len() - 2, "ALLOWED"), (whole.len() - 1, "REVOKED")] {
        fs::write(&file, &whole[..torn]).expect("written");
        fs::write(&sequence, &sequence_before).expect("written");
        for _ in 0..2 {
            daemon = daemon.kill_and_restart();
            assert_eq!(daemon.verdicts(["a1", "b"]), ["REVOKED", b]);
            daemon.kill();
            assert!(fs::read_to_string(&file).expect("a file").ends_with("}\n"));
        }
    }

    for (damaged, line) in [
        (whole.replacen("\"a\"", "\"a", 1), 2),
        (whole.replacen("key_id", "keyid", 1), 2),
        (whole.replacen("{\"seq\":2,", "x", 1), 3),
        (whole.clone() + "\n", 4),
        (whole.replacen("\"when\":\"20", "\"when\":\"", 1), 2),
    ] {
        fs::write(&file, &damaged).expect("written");
        let mut refusing = daemon.respawn();
        assert_eq!(refusing.wait_for_exit().code(), Some(78), "{damaged}: {}", refusing.log());
        daemon = refusing;
        let log = daemon.log();
        assert!(log.contains(&format!("revocations.jsonl:{line}: not a revocation: ")), "{damaged}: {log}");
        assert!(log.contains("correct the line"), "{log}");
        assert_eq!(fs::read_to_string(&file).expect("a file"), damaged, "the file is unchanged");
    }
}

#[test]
fn command_line_reports_what_is_in_force() {
    let daemon = Daemon::serving(export("active"));
    let assert_prints = |arguments: &[&str], text: &str| {
        let output = daemon.run_keyward(arguments);
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{arguments:?}");
        assert_eq!(output.stdout, format!("{text}\n"), "{arguments:?}");
    };
    assert_prints(&["revoke", "a"], "revoked a (2 keys), in force on every connection, generation 2");
    assert_prints(
        &["revoke", "--owner", "acme"],
        "revoked owner acme (3 keys), in force on every connection, generation 3",
    );
    let status = daemon.run_keyward(&["status"]).stdout;
    assert!(
        status.starts_with("ready        generation 3, with the keys of 1: ")
            && status.contains("revoked      owner acme since ")
            && status.contains("             a since "),
        "{status}"
    );
    assert_prints(
        &["unrevoke", "--owner", "acme", "--json"],
        r#"{"owner":"acme","already":false,"keys":3,"revoked":2,"generation":4,"durable":true}"#,
    );
    let CommandOutput { code, stdout: output, stderr: messages } =
        daemon.run_keyward(&["revoke", "unlisted"]);
    assert_eq!((code, output.as_str()), (Some(1), ""));
    assert!(messages.starts_with("keyward: no key has the id \"unlisted\""), "{messages}");
    let gone = daemon.setup.path("gone.sock");
    let output = keyward().args(["revoke", "a", "--admin-socket"]).arg(&gone).output().expect("runs");
    assert_eq!(output.status.code(), Some(69));
}
