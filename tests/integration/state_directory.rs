//! A state directory that is full, read-only, removed or lost, and a real daemon: revocations are in force all the same, and
//! what is not durable is said.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Daemon, Setup, sha256_hex, wait_for};
use keyward_daemon::admin::message::Revoked;
use rustix::process::Signal;
use serde_json::Value;

/// Enough keys to fill the room that the last page of a file has left.
const KEYS: usize = 200;

fn export() -> String {
    export_with(|_| "active")
}

fn export_with(status: impl Fn(usize) -> &'static str) -> String {
    let rows = (0..KEYS)
        .map(|number| format!("{},k{number},{}\n", sha256_hex(&format!("k{number}")), status(number)));
    "key_hash,key_id,status\n".to_owned() + &rows.collect::<String>()
}

fn run(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = crate::support::keyward();
    let output = command.args(arguments).arg("--socket").arg(daemon.socket()).output().expect("keyward runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn revoke_json(daemon: &Daemon, key_id: &str) -> (Option<i32>, Value) {
    let (code, output, messages) = run(daemon, &["revoke", key_id, "--json"]);
    (code, serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}{messages}")))
}

fn revocation(daemon: &Daemon, key_id: &str) -> Option<Revoked> {
    let revocations = daemon.status().revocations.into_iter();
    revocations.into_iter().find(|revoked| revoked.target.key_id.as_deref() == Some(key_id))
}

fn unwritten(daemon: &Daemon) -> Vec<String> {
    daemon.status().unwritten.into_iter().map(|unwritten| unwritten.file).collect()
}

/// `keyward state accept` for the daemon's directory.
fn accept(directory: &Path) -> (Option<i32>, String) {
    let mut command = crate::support::keyward();
    let command = command.args(["state", "accept", "lost-revocations", "--state-dir"]).arg(directory);
    let output = command.output().expect("keyward runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// A tmpfs of one mebibyte in a mount namespace of its own, reached through the process that holds it.
struct Tmpfs {
    holder: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The mount point, as the holder sees it, and from outside.
    inside: PathBuf,
    path: PathBuf,
    _mount_point: tempfile::TempDir,
}

impl Tmpfs {
    fn mount() -> Self {
        let mount_point = tempfile::tempdir().expect("a directory");
        let inside = mount_point.path().to_owned();
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let command = command.args(["--mount", "sh"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare starts");
        let input = holder.stdin.take().expect("a pipe");
        let output = BufReader::new(holder.stdout.take().expect("a pipe"));
        let path = PathBuf::from(format!("/proc/{}/root{}", holder.id(), inside.display()));
        let mut tmpfs = Self { holder, input, output, inside, path, _mount_point: mount_point };
        let mount = format!("mount -t tmpfs -o size=1m,mode=700 keyward {}", tmpfs.inside.display());
        assert!(tmpfs.run(&mount), "cannot mount a tmpfs");
        tmpfs
    }

    /// Has the holder run a command; whether it succeeded.
    fn run(&mut self, command: &str) -> bool {
        if writeln!(self.input, "{command} && echo yes || echo no").is_err() {
            return false;
        }
        let mut line = String::new();
        self.output.read_line(&mut line).is_ok_and(|_| line == "yes\n")
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Fills it to the last page.
    fn fill(&self) {
        let mut file = fs::File::create(self.filler()).expect("a file");
        let page = [b'x'; 4096];
        while file.write_all(&page).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).expect("removes");
    }

    fn setup(&self, export: &str) -> Setup {
        let state = self.path.join("state");
        Setup::new(export).state_dir(&state).config("state.save_interval = '100ms'\nusage.interval = '100ms'")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _already_gone = self.holder.kill();
        let _reaped = self.holder.wait();
    }
}

/// Revokes one key after the other until the disk has no room for the line; returns the number of the key.
fn revoke_until_full(daemon: &Daemon, from: usize) -> usize {
    let is_durable = |number: &usize| revoke_json(daemon, &format!("k{number}")).0 == Some(0);
    (from..KEYS).find(|number| !is_durable(number)).expect("the disk is full")
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn revocation_on_a_full_disk_is_in_force_at_once_and_durable_within_a_second_of_room() {
    let tmpfs = Tmpfs::mount();
    let daemon = tmpfs.setup(&export()).start();
    let mut connection = daemon.client();
    let mut verdict = |key: &str| {
        let decision = connection.verify(&keyward_client::Request::new(key)).expect("an answer");
        decision.verdict().name().to_owned()
    };
    assert_eq!(verdict("k199"), "ALLOWED");
    tmpfs.fill();
    let last = revoke_until_full(&daemon, 0);
    let key = format!("k{}", last + 1);
    assert_eq!(verdict(&key), "ALLOWED");
    let begun = Instant::now();
    let (code, output, _) = run(&daemon, &["revoke", &key]);
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    assert_eq!(code, Some(1), "{output}");
    for part in
        ["in force on every connection", "NOT DURABLE", "revocations.jsonl", "No space left on device"]
    {
        assert!(output.contains(part), "{part:?} is not in {output}");
    }
    assert_eq!(verdict(&key), "REVOKED", "on a connection that was there");
    let (code, reply) = revoke_json(&daemon, &key);
    assert_eq!((code, &reply["durable"], &reply["already"]), (Some(1), &false.into(), &true.into()));

    // Every file says so, and the daemon serves on.
    wait_for("usage and audit to be missed", || {
        let files = unwritten(&daemon);
        let all = ["audit.jsonl", "revocations.jsonl", "usage.jsonl"];
        all.iter().all(|file| files.iter().any(|name| name == file)).then_some(())
    });
    let (_, status, _) = run(&daemon, &["status"]);
    assert!(status.contains("NOT WRITTEN  ") && status.contains("; NOT DURABLE\n"), "{status}");
    assert!(!revocation(&daemon, &key).expect("listed").durable);
    assert!(revocation(&daemon, "k0").expect("listed").durable, "it was written before");

    tmpfs.make_room();
    let begun = Instant::now();
    wait_for("the revocation to be durable", || revocation(&daemon, &key).filter(|revoked| revoked.durable));
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    assert_eq!(run(&daemon, &["revoke", &key]).0, Some(0));
    wait_for("everything to be written", || unwritten(&daemon).is_empty().then_some(()));
    daemon.assert_logged("the file is being written again");
    let log = daemon.log();
    let count = |text: &str| {
        log.lines().filter(|line| line.contains(text) && line.contains("revocations.jsonl")).count()
    };
    let counts = [count("the file is not being written"), count("the file is being written again")];
    assert_eq!(counts, [1, 1], "once each: {log}");

    let daemon = daemon.restart();
    assert_eq!(daemon.verdict(&key), "REVOKED");
    assert_eq!(daemon.status().revocations.len(), last + 2);
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn full_disk_at_the_start_keeps_nothing_from_being_served() {
    let tmpfs = Tmpfs::mount();
    let mut daemon = tmpfs.setup(&export()).start();
    assert_eq!(run(&daemon, &["revoke", "k0"]).0, Some(0));
    tmpfs.fill();
    let last = revoke_until_full(&daemon, 1);
    daemon.kill();
    let daemon = daemon.restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k199")], ["REVOKED", "ALLOWED"]);
    // What was never durable is gone, as the command has said.
    assert_eq!(daemon.verdict(&format!("k{last}")), "ALLOWED");
    assert_eq!(run(&daemon, &["revoke", "k199"]).0, Some(1));
    assert_eq!(daemon.verdict("k199"), "REVOKED");
    tmpfs.make_room();
    wait_for("the revocation to be durable", || {
        revocation(&daemon, "k199").filter(|revoked| revoked.durable)
    });
    assert_eq!(daemon.restart().verdict("k199"), "REVOKED");
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn read_only_disk_at_the_start_leaves_the_list_in_force() {
    let mut tmpfs = Tmpfs::mount();
    let mut daemon = tmpfs.setup(&export()).start();
    assert_eq!(run(&daemon, &["revoke", "k0"]).0, Some(0));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success());
    let remount = |tmpfs: &mut Tmpfs, how: &str| {
        let command = format!("mount -o remount,{how} {}", tmpfs.inside.display());
        wait_for("the remount", || tmpfs.run(&command).then_some(()));
    };
    remount(&mut tmpfs, "ro");
    let daemon = daemon.restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["REVOKED", "ALLOWED"]);
    let (code, output, _) = run(&daemon, &["revoke", "k1"]);
    assert!(code == Some(1) && output.contains("Read-only file system"), "{output}");
    assert_eq!(daemon.verdict("k1"), "REVOKED");
    assert!(unwritten(&daemon).iter().any(|file| file == "revocations.jsonl"), "{:?}", daemon.status());
    // Taken back, and revoked again by a restart: the safer of the two.
    let (code, output, _) = run(&daemon, &["unrevoke", "k0"]);
    assert!(code == Some(1) && output.contains("a restart revokes it again"), "{output}");
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    remount(&mut tmpfs, "rw");
    wait_for("everything to be written", || unwritten(&daemon).is_empty().then_some(()));
    let daemon = daemon.restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["ALLOWED", "REVOKED"]);
}

#[test]
fn removed_state_directory_is_reported_and_written_again_when_it_is_back() {
    let place = tempfile::tempdir().expect("a directory");
    let state = place.path().join("state");
    let daemon = Setup::new(&export()).state_dir(&state).start();
    assert_eq!(run(&daemon, &["revoke", "k0"]).0, Some(0));
    fs::remove_dir_all(&state).expect("removes");
    wait_for("the daemon to miss it, without a command", || {
        unwritten(&daemon).iter().any(|file| file == "revocations.jsonl").then_some(())
    });
    let (code, output, _) = run(&daemon, &["revoke", "k1"]);
    assert!(code == Some(1) && output.contains("NOT DURABLE"), "{output}");
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["REVOKED", "REVOKED"]);
    fs::create_dir(&state).expect("makes");
    wait_for("all of it to be durable", || {
        let revocations = daemon.status().revocations;
        let files = unwritten(&daemon);
        (files.is_empty() && revocations.iter().all(|revoked| revoked.durable)).then_some(())
    });
    let daemon = daemon.restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["REVOKED", "REVOKED"]);
}

#[test]
fn lost_list_is_refused_until_the_loss_is_accepted() {
    let daemon = Setup::new(&export()).start();
    assert_eq!(run(&daemon, &["revoke", "k0"]).0, Some(0));
    let directory = daemon.setup.dir.path().to_owned();
    let (code, messages) = accept(&directory);
    assert!(
        code == Some(1) && messages.contains("a daemon is running with this state directory"),
        "{messages}"
    );
    let mut daemon = daemon;
    daemon.kill();
    fs::write(directory.join("revocations.jsonl"), "").expect("empties");
    let mut daemon = daemon.respawn();
    assert_eq!(daemon.wait_for_exit().code(), Some(78), "{}", daemon.log());
    let log = daemon.log();
    for part in ["revocations.jsonl: it is empty", "keyward state accept lost-revocations"] {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    assert_eq!(accept(&directory), (Some(0), String::new()));
    let daemon = daemon.restart();
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    daemon.assert_logged("a loss of revocations has been accepted");
    let trail = fs::read_to_string(directory.join("audit.jsonl")).expect("a trail");
    let uid = rustix::process::geteuid().as_raw();
    let event = format!("\"event\":\"lost_revocations_accepted\",\"by_uid\":{uid},");
    assert!(trail.contains(&event), "{trail}");
    // Once.
    assert_eq!(run(&daemon, &["revoke", "k0"]).0, Some(0));
    let mut daemon = daemon;
    daemon.kill();
    fs::remove_file(directory.join("revocations.jsonl")).expect("removes");
    let mut daemon = daemon.respawn();
    assert_eq!(daemon.wait_for_exit().code(), Some(78), "{}", daemon.log());
}

#[test]
fn lost_state_directory_is_said() {
    let place = tempfile::tempdir().expect("a directory");
    let state = place.path().join("state");
    let mut daemon = Setup::new(&export()).state_dir(&state).start();
    daemon.kill();
    let daemon = daemon.restart();
    assert!(!daemon.log().contains("the state directory is new"), "{}", daemon.log());
    let mut daemon = daemon;
    daemon.kill();
    fs::remove_dir_all(&state).expect("removes");
    let daemon = daemon.restart();
    daemon.assert_logged("the state directory is new");
    daemon.assert_logged("WARN");
}

#[test]
fn revocation_outlives_an_agreement_and_a_contradiction_is_shown() {
    let only_k0 = |status| move |number| if number == 0 { status } else { "active" };
    let daemon = Setup::new(&export()).start();
    assert_eq!(run(&daemon, &["revoke", "k0"]).0, Some(0));
    assert!(daemon.publish(&export_with(only_k0("revoked"))).accepted);
    assert!(revocation(&daemon, "k0").expect("still listed").agreed_since.is_some());
    // An export of a replica that lags, and a restart in between.
    let lagging = export();
    let outcome = daemon.publish(&lagging);
    assert_eq!((outcome.accepted, outcome.revocations_conflicting), (true, 1));
    assert_eq!(daemon.verdict("k0"), "REVOKED");
    let daemon = daemon.restart();
    assert_eq!(daemon.verdict("k0"), "REVOKED");
    assert!(revocation(&daemon, "k0").expect("listed").conflict_since.is_some());
    let (_, status, _) = run(&daemon, &["status"]);
    assert!(status.contains("CONFLICT: the source says active since "), "{status}");
    let (_, output, _) = run(&daemon, &["reload"]);
    assert!(output.contains("1 revocation conflicts with the source"), "{output}");
    let trail = fs::read_to_string(daemon.setup.path("audit.jsonl")).expect("a trail");
    let count = |event: &str| trail.matches(&format!("\"event\":\"{event}\",\"key_id\":\"k0\"")).count();
    assert_eq!([count("revocation_agreed"), count("revocation_conflict")], [1, 1], "once a change: {trail}");
    assert_eq!(run(&daemon, &["unrevoke", "k0"]).0, Some(0));
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
}
