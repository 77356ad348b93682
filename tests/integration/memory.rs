//! A daemon whose address space is limited to little more than it uses: a reload that does not fit is refused, and nothing else happens.

use std::fmt::Write;
use std::fs;

use crate::support::{Daemon, Setup, keyward, sha256_hex};
use keyward_daemon::admin::message::Command;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Rows of the export that is too large.
const ROWS: usize = 400_000;

/// Rows of the others, which are read in the same two ways.
const FEWER: usize = 150_000;

/// Mebibytes beyond what is in use.
const ROOM: [u64; 7] = [0, 8, 16, 32, 64, 96, 320];

fn csv(rows: usize, policies: bool) -> String {
    let mut text = "key_hash,key_id,owner,environment,limits\n".to_owned();
    for number in 0..rows {
        let environment = if policies { format!("e{number}") } else { "live".to_owned() };
        writeln!(text, "{number:064x},key_{number},owner_{},{environment},10/s", number / 10)
            .expect("memory");
    }
    writeln!(text, "{},one,,,", sha256_hex("one")).expect("memory");
    text
}

fn jsonl(rows: usize) -> String {
    let mut text = String::new();
    for number in 0..rows {
        let owner = number / 10;
        writeln!(text, "{{\"key_hash\":\"{number:064x}\",\"key_id\":\"key_{number}\",\"owner\":\"owner_{owner}\",\"limits\":\"10/s\"}}")
            .expect("memory");
    }
    writeln!(text, "{{\"key_hash\":\"{}\",\"key_id\":\"one\"}}", sha256_hex("one")).expect("memory");
    text
}

/// Limits the daemon's address space to what it uses and so many bytes more; `None` for no limit.
fn limit(daemon: &Daemon, room: Option<u64>) {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a process");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a line");
    let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    let current = room.map(|room| size * 1024 + room);
    let pid = Pid::from_raw(daemon.pid() as i32);
    prlimit(pid, Resource::As, Rlimit { current, maximum: None }).expect("limits");
}

/// Reloads with little room, then with less little, until it fits; the keys are served throughout, and taken in the end.
fn reload_within_limits(name: &str, small: &[u8], large: &[u8]) {
    let setup = Setup::without_export();
    let source = setup.path(name);
    fs::write(&source, small).expect("an export");
    let config = format!("source.path = '{}'\nsource.poll = '1h'\nsource.max_shrink = 1.0", source.display());
    let daemon = setup.config(&config).start();
    assert_eq!(daemon.verdict("one"), "ALLOWED", "{}", daemon.log());
    let publish = |content: &[u8]| {
        let new = daemon.setup.path("new");
        fs::write(&new, content).expect("a file");
        fs::rename(&new, &source).expect("renames");
    };
    let mut refused = 0;
    for room in ROOM {
        limit(&daemon, Some(room << 20));
        publish(large);
        let reply =
            keyward_daemon::admin::send_command(&daemon.admin_socket(), &Command::Reload { force: false });
        let reply = reply.unwrap_or_else(|error| panic!("{room} MiB: {error}: {}", daemon.log()));
        let outcome = reply.reload.expect("an outcome");
        if !outcome.accepted {
            refused += 1;
            let error = outcome.error.expect("a reason");
            assert!(
                error.contains("not enough memory") && error.contains("RLIMIT_AS"),
                "{room} MiB: {error}"
            );
            if refused == 1 {
                let check = keyward()
                    .args(["check", "--daemon", "--admin-socket"])
                    .arg(daemon.admin_socket())
                    .output();
                let check = String::from_utf8_lossy(&check.expect("runs").stderr).into_owned();
                assert!(check.contains("not enough memory"), "{room} MiB: {check}");
            }
        }
        assert_eq!(daemon.verdict("one"), "ALLOWED", "{room} MiB: {}", daemon.log());
        limit(&daemon, None);
        // From a small set again, whatever was taken.
        publish(small);
        let outcome = daemon.reload();
        assert!(outcome.accepted, "{outcome:?}");
    }
    assert!(refused >= 2, "{refused} were refused");
    publish(large);
    let outcome = daemon.reload();
    assert!(outcome.accepted && outcome.keys > FEWER, "{outcome:?}");
    assert_eq!(daemon.verdict("one"), "ALLOWED");
}

#[test]
fn reload_of_text_without_memory_is_refused_and_its_keys_are_served_on() {
    reload_within_limits("keys.csv", csv(3, false).as_bytes(), csv(ROWS, false).as_bytes());
}

#[test]
fn reload_of_rows_with_policies_of_their_own_without_memory_is_refused() {
    reload_within_limits("keys.csv", csv(3, true).as_bytes(), csv(FEWER, true).as_bytes());
}

#[test]
fn reload_of_json_lines_without_memory_is_refused_and_its_keys_are_served_on() {
    reload_within_limits("keys.jsonl", jsonl(3).as_bytes(), jsonl(FEWER).as_bytes());
}

#[test]
fn reload_of_a_compiled_source_without_memory_is_refused_and_its_keys_are_served_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let compiled = |name: &str, text: &str| {
        let (text_file, file) = (directory.path().join(format!("{name}.csv")), directory.path().join(name));
        fs::write(&text_file, text).expect("an export");
        let mut command = keyward();
        command.arg("compile").arg(&text_file).arg("--output").arg(&file);
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        fs::read(&file).expect("a compiled file")
    };
    let (small, large) = (compiled("small.kwc", &csv(3, false)), compiled("large.kwc", &csv(FEWER, false)));
    reload_within_limits("keys.kwc", &small, &large);
}
