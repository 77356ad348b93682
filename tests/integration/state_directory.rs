//! A state directory that is full, read-only, removed or lost: revocations are in force all the
//! same, and the daemon reports what is not durable.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{
    CommandOutput, Daemon, Export, Setup, keyward, remove_dir_in_use, replace_export, row, wait_for,
    wait_until,
};
use keyward_admin::message::Revoked;
use serde_json::Value;

/// Enough revocations to fill the last page of a file.
const KEYS: usize = 200;

/// `k0` with this status, and active keys.
fn export_with(status_of_k0: &str) -> Export {
    let active = (1..KEYS).map(|number| row(format!("k{number}")).status("active"));
    Export::new([row("k0").status(status_of_k0)]).rows(active)
}

fn export() -> Export {
    export_with("active")
}

fn revoke_json(daemon: &Daemon, key_id: &str) -> (Option<i32>, Value) {
    let CommandOutput { code, stdout: output, stderr: messages } =
        daemon.run_keyward(&["revoke", key_id, "--json"]);
    (code, serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}{messages}")))
}

fn revocation(daemon: &Daemon, key_id: &str) -> Option<Revoked> {
    let revocations = daemon.status().revocations.into_iter();
    revocations.into_iter().find(|revoked| revoked.target.key_id.as_deref() == Some(key_id))
}

fn unwritten(daemon: &Daemon) -> Vec<String> {
    daemon.status().unwritten.into_iter().map(|unwritten| unwritten.file).collect()
}

/// Runs `keyward state accept lost-revocations`. Returns its exit code and standard error.
fn accept_loss(directory: &Path) -> (Option<i32>, String) {
    let mut command = keyward();
    let command = command.args(["state", "accept", "lost-revocations", "--state-dir"]).arg(directory);
    let output = command.output().expect("keyward runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// A tmpfs of one mebibyte in a mount namespace, reached through `/proc` of the process that holds
/// it.
struct Tmpfs {
    holder: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The mount point in the namespace of the holder.
    inside: PathBuf,
    /// The mount point from outside.
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

    /// Runs a command in the holder. Returns whether it succeeded.
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

    /// Fills the file system to the last page. What the daemon writes to a temporary file when the
    /// system is full becomes free again, so a test has to repeat this until it sees the effect.
    fn fill(&self) {
        let filler = fs::File::options().create(true).append(true).open(self.filler());
        let mut file = filler.expect("a file");
        let page = [b'x'; 4096];
        while file.write_all(&page).is_ok() {}
    }

    fn free_space(&self) {
        fs::remove_file(self.filler()).expect("removes");
    }

    fn setup(&self, export: Export) -> Setup {
        let state = self.path.join("state");
        Setup::new(export).state_dir(&state).config("state.save_interval = '100ms'\nusage.interval = '100ms'")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Fails only if the holder has exited already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Revokes one key after another until the disk is full. Returns the number of the first key whose
/// revocation is not durable.
fn revoke_until_full(daemon: &Daemon, from: usize) -> usize {
    let is_durable = |number: &usize| revoke_json(daemon, &format!("k{number}")).0 == Some(0);
    (from..KEYS).find(|number| !is_durable(number)).expect("the disk is full")
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn revocation_on_a_full_disk_is_in_force_at_once_and_durable_within_a_second_of_space() {
    let tmpfs = Tmpfs::mount();
    let daemon = tmpfs.setup(export()).start();
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
    let start = Instant::now();
    let CommandOutput { code, stdout: output, .. } = daemon.run_keyward(&["revoke", &key]);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    assert_eq!(code, Some(1), "{output}");
    for part in
        ["in force on every connection", "NOT DURABLE", "revocations.jsonl", "No space left on device"]
    {
        assert!(output.contains(part), "{part:?} is not in {output}");
    }
    assert_eq!(verdict(&key), "REVOKED", "on an existing connection");
    let (code, reply) = revoke_json(&daemon, &key);
    assert_eq!((code, &reply["durable"], &reply["already"]), (Some(1), &false.into(), &true.into()));

    // Every file is reported, and the daemon continues to serve.
    wait_until("all files to be reported", || {
        tmpfs.fill();
        // The last page of a file has room for some lines. Usage of all keys does not fit into it,
        // and neither do the records of many commands.
        (0..KEYS).for_each(|number| drop(verdict(&format!("k{number}"))));
        revoke_json(&daemon, &key);
        let files = unwritten(&daemon);
        let all = ["audit.jsonl", "revocations.jsonl", "usage.jsonl"];
        all.iter().all(|file| files.iter().any(|name| name == file))
    });
    let status = daemon.run_keyward(&["status"]).stdout;
    assert!(status.contains("NOT WRITTEN  ") && status.contains("; NOT DURABLE\n"), "{status}");
    assert!(!revocation(&daemon, &key).expect("listed").durable);
    assert!(revocation(&daemon, "k0").expect("listed").durable, "it was written before the disk was full");

    tmpfs.free_space();
    let start = Instant::now();
    wait_for("the revocation to be durable", || revocation(&daemon, &key).filter(|revoked| revoked.durable));
    assert!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    assert_eq!(daemon.run_keyward(&["revoke", &key]).code, Some(0));
    wait_until("everything to be written", || unwritten(&daemon).is_empty());
    daemon.assert_logged("the file is being written again");
    let log = daemon.log();
    let count = |text: &str| {
        log.lines().filter(|line| line.contains(text) && line.contains("revocations.jsonl")).count()
    };
    let counts = [count("the file is not being written"), count("the file is being written again")];
    assert_eq!(counts, [1, 1], "logged once each: {log}");

    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict(&key), "REVOKED");
    assert_eq!(daemon.status().revocations.len(), last + 2);
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn reload_on_a_full_disk_is_in_force_at_once_and_says_that_it_is_not_durable() {
    let tmpfs = Tmpfs::mount();
    let daemon = tmpfs.setup(export()).start();
    daemon.wait_until_saved();
    let wait_for_failure = || {
        wait_until("the disk to be full", || {
            tmpfs.fill();
            replace_export(&daemon.setup.source(), export_with("revoked"));
            let CommandOutput { code, stdout, stderr } = daemon.run_keyward(&["reload"]);
            let is_reported = stderr.contains("NOT DURABLE: the keys are in force");
            assert_eq!(code, Some(is_reported.into()), "{stdout}{stderr}");
            is_reported
                && stderr.contains("accepted_source.json")
                && stderr.contains("No space left on device")
        });
    };
    wait_for_failure();
    assert_eq!(daemon.verdict("k0"), "REVOKED");
    tmpfs.free_space();
    wait_until("the record", || daemon.status().last_accepted.is_some_and(|reload| reload.durable));
    assert_eq!(daemon.run_keyward(&["reload"]).code, Some(0));
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart();
    // The keys of that source have been stored, or are known to be missing.
    assert!(["REVOKED", "NOT_READY"].contains(&daemon.verdict("k0").as_str()), "{}", daemon.log());
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn full_disk_at_the_start_does_not_prevent_serving() {
    let tmpfs = Tmpfs::mount();
    let mut daemon = tmpfs.setup(export()).start();
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    tmpfs.fill();
    let last = revoke_until_full(&daemon, 1);
    daemon.kill();
    let daemon = daemon.kill_and_restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k199")], ["REVOKED", "ALLOWED"]);
    // A revocation that was never durable is lost, as the command reported.
    assert_eq!(daemon.verdict(&format!("k{last}")), "ALLOWED");
    assert_eq!(daemon.run_keyward(&["revoke", "k199"]).code, Some(1));
    assert_eq!(daemon.verdict("k199"), "REVOKED");
    tmpfs.free_space();
    wait_for("the revocation to be durable", || {
        revocation(&daemon, "k199").filter(|revoked| revoked.durable)
    });
    assert_eq!(daemon.kill_and_restart().verdict("k199"), "REVOKED");
}

#[test]
#[ignore = "needs to mount a tmpfs: tests/run runs it"]
fn read_only_disk_at_the_start_keeps_revocations_in_force() {
    let mut tmpfs = Tmpfs::mount();
    let mut daemon = tmpfs.setup(export()).start();
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    daemon.stop();
    let remount = |tmpfs: &mut Tmpfs, option: &str| {
        // With the source and the target, mount(8) does not pass the ids of the mount again, which
        // are unknown in a user namespace.
        let command = format!("mount -t tmpfs -o remount,{option} keyward {}", tmpfs.inside.display());
        wait_until("the remount", || tmpfs.run(&command));
    };
    remount(&mut tmpfs, "ro");
    let daemon = daemon.kill_and_restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["REVOKED", "ALLOWED"]);
    let CommandOutput { code, stdout: output, .. } = daemon.run_keyward(&["revoke", "k1"]);
    assert!(code == Some(1) && output.contains("Read-only file system"), "{output}");
    assert_eq!(daemon.verdict("k1"), "REVOKED");
    assert!(unwritten(&daemon).iter().any(|file| file == "revocations.jsonl"), "{:?}", daemon.status());
    // An unrevocation that is not durable is undone by a restart, which is the safe direction.
    let CommandOutput { code, stdout: output, .. } = daemon.run_keyward(&["unrevoke", "k0"]);
    assert!(code == Some(1) && output.contains("a restart revokes it again"), "{output}");
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    remount(&mut tmpfs, "rw");
    wait_until("everything to be written", || unwritten(&daemon).is_empty());
    let daemon = daemon.kill_and_restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["ALLOWED", "REVOKED"]);
}

#[test]
fn removed_state_directory_is_reported_and_rewritten_when_recreated() {
    let place = tempfile::tempdir().expect("a directory");
    let state = place.path().join("state");
    let daemon = Setup::new(export()).state_dir(&state).start();
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    remove_dir_in_use(&state);
    wait_until("the daemon to report the directory without a command", || {
        unwritten(&daemon).iter().any(|file| file == "revocations.jsonl")
    });
    let CommandOutput { code, stdout: output, .. } = daemon.run_keyward(&["revoke", "k1"]);
    assert!(code == Some(1) && output.contains("NOT DURABLE"), "{output}");
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["REVOKED", "REVOKED"]);
    fs::create_dir(&state).expect("makes");
    wait_until("all of it to be durable", || {
        let revocations = daemon.status().revocations;
        let files = unwritten(&daemon);
        files.is_empty() && revocations.iter().all(|revoked| revoked.durable)
    });
    let daemon = daemon.kill_and_restart();
    assert_eq!([daemon.verdict("k0"), daemon.verdict("k1")], ["REVOKED", "REVOKED"]);
}

#[test]
fn lost_revocation_list_prevents_the_start_until_accepted() {
    let daemon = Setup::new(export()).start();
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    let directory = daemon.setup.dir.path().to_owned();
    let (code, messages) = accept_loss(&directory);
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
    assert_eq!(accept_loss(&directory), (Some(0), String::new()));
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
    daemon.assert_logged("a loss of revocations has been accepted");
    let accepted = daemon.setup.audit_events("lost_revocations_accepted");
    let by_uid: Vec<_> = accepted.iter().map(|event| event["by_uid"].as_u64()).collect();
    assert_eq!(by_uid, [Some(rustix::process::geteuid().as_raw().into())]);
    // A second loss is refused again.
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    let mut daemon = daemon;
    daemon.kill();
    fs::remove_file(directory.join("revocations.jsonl")).expect("removes");
    let mut daemon = daemon.respawn();
    assert_eq!(daemon.wait_for_exit().code(), Some(78), "{}", daemon.log());
}

#[test]
fn lost_state_directory_is_logged() {
    let place = tempfile::tempdir().expect("a directory");
    let state = place.path().join("state");
    let mut daemon = Setup::new(export()).state_dir(&state).start();
    daemon.kill();
    let daemon = daemon.kill_and_restart();
    assert!(!daemon.log().contains("the state directory is new"), "{}", daemon.log());
    let mut daemon = daemon;
    daemon.kill();
    fs::remove_dir_all(&state).expect("removes");
    let daemon = daemon.kill_and_restart();
    daemon.assert_logged("the state directory is new");
    daemon.assert_logged("WARN");
}

#[test]
fn revocation_survives_agreement_and_a_conflict_is_reported() {
    let daemon = Setup::new(export()).start();
    assert_eq!(daemon.run_keyward(&["revoke", "k0"]).code, Some(0));
    assert!(daemon.publish(export_with("revoked")).accepted);
    assert!(revocation(&daemon, "k0").expect("still listed").agreed_since.is_some());
    // The export of a lagging replica, then a restart.
    let outcome = daemon.publish(export());
    assert_eq!((outcome.accepted, outcome.revocations_conflicting), (true, 1));
    assert_eq!(daemon.verdict("k0"), "REVOKED");
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("k0"), "REVOKED");
    assert!(revocation(&daemon, "k0").expect("listed").conflict_since.is_some());
    let status = daemon.run_keyward(&["status"]).stdout;
    assert!(status.contains("CONFLICT: the source says active since "), "{status}");
    let output = daemon.run_keyward(&["reload"]).stdout;
    assert!(output.contains("1 revocation conflicts with the source"), "{output}");
    for name in ["revocation_agreed", "revocation_conflict"] {
        let events = daemon.setup.audit_events(name);
        assert!(events.len() == 1 && events[0]["key_id"] == "k0", "one event per change: {events:?}");
    }
    assert_eq!(daemon.run_keyward(&["unrevoke", "k0"]).code, Some(0));
    assert_eq!(daemon.verdict("k0"), "ALLOWED");
}
