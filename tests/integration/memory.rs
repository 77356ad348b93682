//! A reload that exceeds the daemon's address space (RLIMIT_AS) is refused. The keys in force are
//! served as before.

use std::fmt::Write;
use std::fs;

use crate::support::{Daemon, Setup, keyward, sha256_hex};
use keyward_admin::message::Command;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Rows of the large CSV export.
const ROWS: usize = 400_000;

/// Rows of the other large exports, which need more memory for each row.
const FEWER_ROWS: usize = 150_000;

/// Mebibytes of address space beyond what is in use.
const HEADROOM_MIB: [u64; 7] = [0, 8, 16, 32, 64, 96, 320];

/// Rows with the same policy, or each with a policy of its own, and the key `one`.
fn csv(rows: usize, distinct_policies: bool) -> String {
    let mut text = "key_hash,key_id,owner,environment,limits\n".to_owned();
    for number in 0..rows {
        let environment = if distinct_policies { format!("e{number}") } else { "live".to_owned() };
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

/// Limits the daemon's address space to its current size and `headroom` bytes. `None` removes the
/// limit.
fn limit_address_space(daemon: &Daemon, headroom: Option<u64>) {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a process");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a line");
    let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    let current = headroom.map(|headroom| size * 1024 + headroom);
    let pid = Pid::from_raw(daemon.pid() as i32);
    prlimit(pid, Resource::As, Rlimit { current, maximum: None }).expect("limits");
}

/// Reloads `large` with increasing headroom. The key `one` is allowed throughout, and without a
/// limit the reload is accepted.
fn reload_with_increasing_headroom(name: &str, small: &[u8], large: &[u8]) {
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
    for headroom in HEADROOM_MIB {
        limit_address_space(&daemon, Some(headroom << 20));
        publish(large);
        let reply = keyward_admin::send_command(&daemon.admin_socket(), &Command::Reload { force: false });
        let reply = reply.unwrap_or_else(|error| panic!("{headroom} MiB: {error}: {}", daemon.log()));
        let outcome = reply.reload.expect("an outcome");
        if !outcome.accepted {
            refused += 1;
            let error = outcome.error.expect("a reason");
            assert!(
                error.contains("not enough memory") && error.contains("RLIMIT_AS"),
                "{headroom} MiB: {error}"
            );
            if refused == 1 {
                let check = daemon.run_keyward(&["check", "--daemon"]).stderr;
                assert!(check.contains("not enough memory"), "{headroom} MiB: {check}");
            }
        }
        assert_eq!(daemon.verdict("one"), "ALLOWED", "{headroom} MiB: {}", daemon.log());
        limit_address_space(&daemon, None);
        // The next attempt starts from the small export again.
        publish(small);
        let outcome = daemon.reload();
        assert!(outcome.accepted, "{outcome:?}");
    }
    assert!(refused >= 2, "only {refused} reloads were refused");
    publish(large);
    let outcome = daemon.reload();
    assert!(outcome.accepted && outcome.keys > FEWER_ROWS, "{outcome:?}");
    assert_eq!(daemon.verdict("one"), "ALLOWED");
}

#[test]
fn csv_reload_that_exceeds_memory_is_refused() {
    reload_with_increasing_headroom("keys.csv", csv(3, false).as_bytes(), csv(ROWS, false).as_bytes());
}

#[test]
fn reload_of_distinct_policies_that_exceeds_memory_is_refused() {
    reload_with_increasing_headroom("keys.csv", csv(3, true).as_bytes(), csv(FEWER_ROWS, true).as_bytes());
}

#[test]
fn json_lines_reload_that_exceeds_memory_is_refused() {
    reload_with_increasing_headroom("keys.jsonl", jsonl(3).as_bytes(), jsonl(FEWER_ROWS).as_bytes());
}

#[test]
fn compiled_reload_that_exceeds_memory_is_refused() {
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
    let (small, large) =
        (compiled("small.kwc", &csv(3, false)), compiled("large.kwc", &csv(FEWER_ROWS, false)));
    reload_with_increasing_headroom("keys.kwc", &small, &large);
}
