//! Promise 2 for revocations: when `keyward revoke` returns, the key is refused on every connection, whatever happens at
//! the same time, and stays so until it is taken back or the source says the same.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::revocation_load::RevocationLoad;
use crate::support::{Daemon, RawClient, Received, Setup, replace_export, sha256_hex};
use keyward_daemon::admin::message::{Command, Reply, Revocation, Target};
use keyward_daemon::admin::{CommandError, send_command};
use rustix::process::Signal;

fn key(key_id: &str) -> Target {
    Target { key_id: Some(key_id.to_owned()), owner: None }
}

fn owner(owner: &str) -> Target {
    Target { key_id: None, owner: Some(owner.to_owned()) }
}

fn give(admin: &Path, command: &Command) -> Result<Revocation, CommandError> {
    send_command(admin, command).map(|reply: Reply| reply.revocation.expect("an outcome"))
}

fn revoke(daemon: &Daemon, target: Target) -> Revocation {
    give(&daemon.admin_socket(), &Command::Revoke(target)).expect("revoked")
}

fn unrevoke(daemon: &Daemon, target: Target) -> Revocation {
    give(&daemon.admin_socket(), &Command::Unrevoke(target)).expect("taken back")
}

fn refusal(daemon: &Daemon, command: &Command) -> String {
    give(&daemon.admin_socket(), command).expect_err("refused").to_string()
}

fn listed(daemon: &Daemon) -> Vec<Target> {
    daemon.status().revocations.into_iter().map(|revoked| revoked.target).collect()
}

fn verdicts<const N: usize>(daemon: &Daemon, keys: [&str; N]) -> [String; N] {
    keys.map(|key| daemon.verdict(key))
}

/// Three keys of acme, one of them in rotation, and one of bolt.
fn export(status_of_a: &str) -> String {
    format!(
        "key_hash,key_id,owner,status\n{},a,acme,{status_of_a}\n{},a,acme,{status_of_a}\n{},b,acme,active\n\
         {},c,bolt,active\n{},d,bolt,disabled\n",
        sha256_hex("a1"),
        sha256_hex("a2"),
        sha256_hex("b"),
        sha256_hex("c"),
        sha256_hex("d"),
    )
}

/// Keys that are revoked one after the other, in the order of their numbers.
const KEYS: usize = 10_000;

/// Requests that each connection has on their way: from one that waits for every answer to those whose answers do not
/// fit into the socket, so that the daemon has to keep them.
const WINDOWS: [usize; 8] = [1, 4, 16, 64, 256, 1_024, 8_192, 16_384];

fn many(environment: &str) -> String {
    let mut text = String::from("key_hash,key_id,environment,limits\n");
    for number in 0..KEYS {
        writeln!(text, "{},key-{number},{environment},1000000/s", sha256_hex(&format!("key-{number}")))
            .expect("a String");
    }
    text
}

/// Revokes a key in whatever state the daemon is; it is killed and started again where it does not answer.
fn revoke_stubbornly(mut daemon: Daemon, number: usize, killed: &mut usize) -> Daemon {
    let command = Command::Revoke(key(&format!("key-{number}")));
    loop {
        match give(&daemon.admin_socket(), &command) {
            Ok(revocation) => {
                assert_eq!((revocation.keys, revocation.revoked), (1, 1), "key-{number}");
                return daemon;
            }
            Err(CommandError::Refused(error)) => panic!("key-{number}: {error}"),
            Err(_) => {
                *killed += 1;
                daemon = daemon.restart();
            }
        }
    }
}

struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn ten_thousand_keys_revoked_one_at_a_time_under_load() {
    let setup = Setup::new(&many("v1")).config("[source]\nsettle = \"5ms\"\npoll = \"100ms\"");
    let mut daemon = setup.start();
    let keys: Vec<String> = (0..KEYS).map(|number| format!("key-{number}")).collect();
    let loaders: Vec<RevocationLoad> =
        WINDOWS.iter().map(|window| RevocationLoad::new(&daemon.socket(), &keys, *window)).collect();
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut killed = 0;
    let start = Instant::now();
    let daemon = thread::scope(|scope| {
        // Also when this panics: the scope waits for the threads.
        let _end = Finally(&stop);
        for (loader, seed) in loaders.iter().zip(1..) {
            let (acknowledged, stop) = (&acknowledged, &stop);
            scope.spawn(move || loader.run(seed, acknowledged, stop));
        }
        for number in 0..KEYS {
            let admin = daemon.admin_socket();
            match number {
                2_500 | 7_500 => {
                    replace_export(&daemon.setup.source(), &many(&format!("v{number}")));
                    scope.spawn(move || {
                        send_command(&admin, &Command::Reload { force: false }).expect("reloaded")
                    });
                }
                5_000 => {
                    // At any moment, as far as this thread is concerned.
                    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).expect("a pid");
                    scope.spawn(move || rustix::process::kill_process(pid, Signal::KILL));
                }
                _ => {}
            }
            daemon = revoke_stubbornly(daemon, number, &mut killed);
            // In this order: what is in the sockets now has left before the acknowledgement was seen.
            loaders.iter().for_each(|loader| loader.acknowledge(number));
            acknowledged.store(number as u64 + 1, Ordering::Release);
        }
        daemon
    });
    let took = start.elapsed();
    assert_eq!(killed, 1, "the daemon was killed in the middle, and only then");
    let answers: u64 = loaders.iter().map(RevocationLoad::check).sum();
    eprintln!("{KEYS} revocations beside {answers} answers in {took:?}");
    assert!(answers > 20_000, "only {answers} answers: that is no load");
    assert_eq!(daemon.status().revocations_total, KEYS, "{}", daemon.log());
}

#[test]
fn a_key_is_revoked_with_all_of_its_rows_and_comes_back() {
    let daemon = Daemon::serving(&export("active"));
    let expected = Revocation {
        target: key("a"),
        already: false,
        keys: 2,
        revoked: 2,
        generation: 1,
        durable: true,
        not_durable: None,
    };
    assert_eq!(revoke(&daemon, key("a")), expected);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "b"]), ["REVOKED", "REVOKED", "ALLOWED"]);
    assert_eq!(revoke(&daemon, key("a")), Revocation { already: true, ..expected.clone() });
    assert_eq!(unrevoke(&daemon, key("a")), Revocation { revoked: 0, ..expected });
    assert_eq!(verdicts(&daemon, ["a1", "a2", "b"]), ["ALLOWED"; 3]);
    let error = refusal(&daemon, &Command::Unrevoke(key("a")));
    assert_eq!(error, "key \"a\" is not on the list of revocations (keyward status --revocations shows it)");
}

#[test]
fn an_owner_is_revoked_beside_keys_of_theirs() {
    let daemon = Daemon::serving(&export("active"));
    assert_eq!(revoke(&daemon, key("b")).keys, 1);
    let all = revoke(&daemon, owner("acme"));
    assert_eq!((all.keys, all.revoked, all.already), (3, 3, false));
    assert_eq!(verdicts(&daemon, ["a1", "a2", "b", "c"]), ["REVOKED", "REVOKED", "REVOKED", "ALLOWED"]);
    // What is left is revoked by its own id.
    assert_eq!(unrevoke(&daemon, owner("acme")).revoked, 1);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "b"]), ["ALLOWED", "ALLOWED", "REVOKED"]);
    revoke(&daemon, owner("acme"));
    assert_eq!(unrevoke(&daemon, key("b")).revoked, 1, "and the other way round");
    assert_eq!(daemon.verdict("b"), "REVOKED");
}

#[test]
fn what_is_not_there_cannot_be_revoked() {
    let daemon = Daemon::serving(&export("active"));
    assert_eq!(
        refusal(&daemon, &Command::Revoke(key("nobody"))),
        "no key has the id \"nobody\" in generation 1; if the source has it, reload first"
    );
    assert_eq!(
        refusal(&daemon, &Command::Revoke(owner("nobody"))),
        "no key belongs to \"nobody\" in generation 1; if the source has it, reload first"
    );
    let raw = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";
    let error = refusal(&daemon, &Command::Revoke(key(raw)));
    assert!(error.contains("never by the key itself") && !error.contains(&raw[10..]), "{error}");
    for wrong in [Target::default(), Target { key_id: Some("a".to_owned()), owner: Some("b".to_owned()) }] {
        assert_eq!(refusal(&daemon, &Command::Revoke(wrong)), "name either a key_id or an owner");
    }
    assert!(refusal(&daemon, &Command::Revoke(key(""))).starts_with("key_id must have 1 to 64 bytes"));
    assert!(listed(&daemon).is_empty());
}

#[test]
fn a_revocation_survives_restarts_and_reloads_until_the_source_agrees() {
    let tolerant = "revocation.keep = '0s'\nsource.max_reactivated = 1.0\nsource.max_shrink = 1.0";
    let daemon = Setup::new(&export("active")).config(tolerant).start();
    revoke(&daemon, key("a"));
    revoke(&daemon, owner("bolt"));
    let daemon = daemon.restart();
    assert_eq!(verdicts(&daemon, ["a1", "a2", "c", "d"]), ["REVOKED"; 4]);

    // The source has another row for every key, and does not agree.
    let changed = export("active").replace("key_id", "key_id,metadata");
    let changed = ["a", "b", "c", "d"]
        .iter()
        .fold(changed, |text, key| text.replace(&format!(",{key},"), &format!(",{key},{{}},")));
    assert!(daemon.publish(&changed).accepted);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "c", "d"]), ["REVOKED"; 4]);
    assert_eq!(listed(&daemon).len(), 2);

    // One row of the key is active still: it must not come alive.
    let half = export("active").replacen(",active", ",revoked", 1);
    assert!(daemon.publish(&half).accepted);
    assert_eq!(verdicts(&daemon, ["a1", "a2"]), ["REVOKED"; 2]);
    assert_eq!(listed(&daemon).len(), 2);

    // Now it agrees about the key, and not about the owner. Which reload says so, the watch's or the one that is asked for, is
    // open: the list and the trail are what counts.
    assert!(daemon.publish(&export("revoked")).accepted);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "c", "d"]), ["REVOKED"; 4]);
    assert_eq!(listed(&daemon), [owner("bolt")]);
    let daemon = daemon.restart();
    assert_eq!(listed(&daemon), [owner("bolt")], "what is dropped stays dropped");

    // Rows that are disabled, or missing from one export, may be back with the next: that is no agreement.
    let disabled = export("revoked").replace("bolt,active", "bolt,disabled");
    assert!(daemon.publish(&disabled).accepted);
    assert_eq!(listed(&daemon), [owner("bolt")]);
    let missing: String = export("revoked")
        .lines()
        .filter(|row| !row.contains("bolt"))
        .map(|row| row.to_owned() + "\n")
        .collect();
    replace_export(&daemon.setup.source(), &missing);
    assert!(daemon.force_reload().accepted);
    assert_eq!(listed(&daemon), [owner("bolt")]);
    assert!(daemon.publish(&export("active")).accepted);
    assert_eq!(listed(&daemon), [owner("bolt")]);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "c", "d"]), ["ALLOWED", "ALLOWED", "REVOKED", "REVOKED"]);
    let agreed =
        export("active").replace("bolt,active", "bolt,revoked").replace("bolt,disabled", "bolt,revoked");
    assert!(daemon.publish(&agreed).accepted);
    assert!(listed(&daemon).is_empty());
    // From here on the source alone decides.
    assert!(daemon.publish(&export("active")).accepted);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "c", "d"]), ["ALLOWED", "ALLOWED", "ALLOWED", "DISABLED"]);

    let trail = fs::read_to_string(daemon.setup.path("audit.jsonl")).expect("an audit trail");
    let events = trail.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let events: Vec<_> = events
        .filter(|event| event["event"].as_str().is_some_and(|event| event.contains("revo")))
        .map(|event| {
            let named = if event["key_id"].is_null() { &event["owner"] } else { &event["key_id"] };
            format!("{} {named} {} {}", event["event"], event["keys"], event["uid"])
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

#[test]
fn before_any_keys_are_loaded_a_revocation_waits_for_them() {
    let daemon = Setup::without_export().start();
    let early = revoke(&daemon, key("a"));
    assert_eq!((early.keys, early.generation), (0, 0));
    assert!(daemon.publish(&export("active")).accepted);
    assert_eq!(verdicts(&daemon, ["a1", "a2", "b"]), ["REVOKED", "REVOKED", "ALLOWED"]);
}

/// A peer that asks without reading can have old answers in its socket, and no others; and nobody waits for it for long.
#[test]
fn a_peer_that_does_not_read_holds_no_revocation_up() {
    let daemon = Daemon::serving(&export("active"));
    let mut peer = daemon.connect();
    peer.stream.set_nonblocking(true).expect("set");
    let frames: Vec<u8> = crate::support::encode_verify(1, "a1").repeat(500);
    let mut sent = 0;
    crate::support::wait_for("the daemon to stop reading", || {
        match std::io::Write::write(&mut peer.stream, &frames[sent % frames.len()..]) {
            Ok(written) => {
                sent += written;
                None
            }
            // A while after the last byte that it took.
            Err(_) => {
                thread::sleep(Duration::from_millis(300));
                std::io::Write::write(&mut peer.stream, &frames[sent % frames.len()..]).map_or(
                    Some(()),
                    |written| {
                        sent += written;
                        None
                    },
                )
            }
        }
    });
    let start = Instant::now();
    revoke(&daemon, key("a"));
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    let left = rustix::io::ioctl_fionread(&peer.stream).expect("a socket");
    peer.stream.set_nonblocking(false).expect("set");
    let mut answers = 0_u64;
    while let Received::Answer { verdict, .. } = peer.receive() {
        assert_eq!(verdict, "ALLOWED");
        answers += 1;
    }
    let size = answer_size(&daemon);
    assert!(
        answers > 0 && answers * size <= left,
        "{answers} answers of {size} bytes, {left} bytes had left"
    );
}

/// Bytes of the answer about `b`, which is as long as the one about `a`.
fn answer_size(daemon: &Daemon) -> u64 {
    let mut peer: RawClient = daemon.connect();
    peer.send(&crate::support::encode_verify(1, "b"));
    let size = crate::support::wait_for("an answer", || {
        rustix::io::ioctl_fionread(&peer.stream).ok().filter(|bytes| *bytes > 0)
    });
    peer.receive();
    size
}

/// Many commands in a row return while one reload goes on, and none of them takes as long as a large part of it.
#[test]
fn a_revocation_does_not_wait_for_a_reload() {
    // Text takes a second of them, and compiled less than half of one.
    const ROWS: usize = 600_000;
    /// What a disk may take for one line, whatever else goes on.
    const DISK: Duration = Duration::from_millis(250);
    let mut text = String::from("key_hash,key_id\n");
    for number in 0..ROWS {
        writeln!(text, "{number:064x},key-{number}").expect("a String");
    }
    let daemon = Setup::new(&text).config("[source]\nsettle = \"5ms\"\npoll = \"1h\"").start();
    let reloaded = AtomicBool::new(false);
    let (mut during, mut longest) = (0, Duration::ZERO);
    let outcome = thread::scope(|scope| {
        let reload = scope.spawn(|| {
            // Also when this panics: the other one goes on until then.
            let _end = Finally(&reloaded);
            daemon.reload()
        });
        while !reloaded.load(Ordering::Acquire) {
            let start = Instant::now();
            revoke(&daemon, key(&format!("key-{during}")));
            longest = longest.max(start.elapsed());
            during += 1;
        }
        reload.join().expect("reloaded")
    });
    assert!(outcome.accepted);
    assert!(during > 5, "only {during} revocations returned during the reload");
    let reload = Duration::from_millis(outcome.took_ms);
    assert!(longest < DISK.max(reload / 2), "one of them took {longest:?}, and the reload {reload:?}");
    // Whenever they came, they are in force in the snapshot that came of it.
    let status = daemon.status();
    assert_eq!((status.generation, status.revocations_total), (2, during));
    for number in 0..during {
        let revocation = revoke(&daemon, key(&format!("key-{number}")));
        assert!(revocation.already && revocation.revoked == 1, "{revocation:?}");
    }
}

#[test]
fn a_torn_line_is_dropped_and_a_damaged_one_keeps_the_daemon_from_starting() {
    let mut daemon = Daemon::serving(&export("active"));
    let (file, mark) = (daemon.setup.path("revocations.jsonl"), daemon.setup.path("revocations.seq"));
    revoke(&daemon, key("a"));
    let before = fs::read_to_string(&file).expect("a file").len();
    let mark_before = fs::read(&mark).expect("a mark");
    revoke(&daemon, key("b"));
    daemon.kill();
    let whole = fs::read_to_string(&file).expect("a file");

    // Killed in the middle of the second command, which never returned, and so was not marked. Where only the newline is
    // missing, an editor may have taken it from a command that did return.
    for (torn, b) in [(before + 1, "ALLOWED"), (whole.len() - 2, "ALLOWED"), (whole.len() - 1, "REVOKED")] {
        fs::write(&file, &whole[..torn]).expect("written");
        fs::write(&mark, &mark_before).expect("written");
        for _ in 0..2 {
            daemon = daemon.restart();
            assert_eq!(verdicts(&daemon, ["a1", "b"]), ["REVOKED", b]);
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
        assert_eq!(fs::read_to_string(&file).expect("a file"), damaged, "nothing is thrown away");
    }
}

#[test]
fn the_command_line_says_what_is_in_force() {
    let daemon = Daemon::serving(&export("active"));
    let run = |arguments: &[&str]| {
        let mut command = crate::support::keyward();
        let output =
            command.args(arguments).arg("--socket").arg(daemon.socket()).output().expect("keyward runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let done = |text: &str| (Some(0), format!("{text}\n"), String::new());
    assert_eq!(run(&["revoke", "a"]), done("revoked a (2 keys), in force on every connection, generation 1"));
    assert_eq!(
        run(&["revoke", "--owner", "acme"]),
        done("revoked owner acme (3 keys), in force on every connection, generation 1")
    );
    let (_, status, _) = run(&["status"]);
    assert!(
        status.contains("revoked      owner acme since ") && status.contains("             a since "),
        "{status}"
    );
    assert_eq!(
        run(&["unrevoke", "--owner", "acme", "--json"]),
        done(r#"{"owner":"acme","already":false,"keys":3,"revoked":2,"generation":1,"durable":true}"#)
    );
    let (code, output, messages) = run(&["revoke", "nobody"]);
    assert_eq!((code, output.as_str()), (Some(1), ""));
    assert!(messages.starts_with("keyward: no key has the id \"nobody\""), "{messages}");
    let gone = daemon.setup.path("gone.sock");
    let output =
        crate::support::keyward().args(["revoke", "a", "--admin-socket"]).arg(&gone).output().expect("runs");
    assert_eq!(output.status.code(), Some(69));
}
