//! `keyward-bench` with a running daemon: its figures are what happened, and it prints no figure
//! that it cannot measure.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, Export, Setup, TIMEOUT, keyward, keyward_bench, row, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const KEYS: usize = 100;

fn key(number: usize) -> String {
    format!("key-{number}")
}

fn export() -> Export {
    Export::of((0..KEYS).map(key))
}

fn command(socket: &Path, options: &[&str]) -> Command {
    let mut command = keyward_bench();
    command.arg("--socket").arg(socket).args(options).stdin(Stdio::null());
    for (option, time) in [("--warmup", "20ms"), ("--duration", "100ms")] {
        if !options.contains(&option) {
            command.args([option, time]);
        }
    }
    command
}

fn run(socket: &Path, options: &[&str]) -> Output {
    command(socket, options).output().expect("keyward-bench runs")
}

/// The figures of a successful run.
fn figures(daemon: &Daemon, options: &[&str]) -> Value {
    let output = run(&daemon.socket(), &[options, &["--json"]].concat());
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {messages}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn number(figures: &Value, path: &str) -> u64 {
    figures.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} of {figures}"))
}

/// A file with the hashes of all keys: the export as text, even if the daemon reads a compiled one.
fn digests(daemon: &Daemon) -> String {
    digests_of(daemon, &export())
}

fn digests_of(daemon: &Daemon, export: &Export) -> String {
    let path = daemon.setup.path("digests.csv");
    fs::write(&path, export.to_csv()).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn figures_add_up_for_every_kind_of_load() {
    let daemon = Daemon::serving(export());
    let digests = digests(&daemon);
    for options in [
        &[][..],
        &["--depth", "128"],
        &["--connections", "16"],
        &["--connections", "7", "--depth", "3", "--threads", "2"],
        &["--busy-poll"],
        &["--connections", "3", "--busy-poll"],
        &["--rate", "2000"],
        &["--rate", "2000", "--connections", "5", "--threads", "2"],
        &["--rate", "2000", "--busy-poll"],
        // More than fits into the socket buffer.
        &["--depth", "20000"],
    ] {
        let figures = figures(&daemon, &[&["--digests", &digests], options].concat());
        let answers = number(&figures, "/answers");
        let allowed = number(&figures, "/outcomes/ALLOWED");
        assert!(answers > 0 && allowed >= answers, "{options:?}: {figures}");
        assert_eq!(figures["outcomes"].as_object().expect("an object").len(), 1, "{options:?}: {figures}");
        assert_eq!(figures["errors"], serde_json::json!({}));
        assert_eq!(number(&figures, "/unanswered"), 0, "{options:?}: {figures}");
        let buckets = figures["histogram_ns"].as_array().expect("buckets");
        let counted: u64 = buckets.iter().map(|bucket| bucket[1].as_u64().expect("a count")).sum();
        assert_eq!(counted, allowed, "{options:?}: the histogram has each answer once");
        let latency = ["min", "p50", "p90", "p99", "p99_9", "max"]
            .map(|name| number(&figures["latency_ns"], &format!("/{name}")));
        assert!(latency[0] > 0 && latency.is_sorted(), "{options:?}: {latency:?}");
        assert_eq!(number(&figures, "/server/pid"), u64::from(daemon.pid()));
    }
    let status = daemon.status();
    assert_eq!(status.errors, 0, "{}", daemon.log());
}

#[test]
fn figures_agree_with_the_counters_of_the_daemon() {
    let daemon = Daemon::serving(export());
    let figures = figures(&daemon, &["--digests", &digests(&daemon), "--warmup", "0s", "--depth", "8"]);
    let verdicts = daemon.status().verdicts;
    assert_eq!(verdicts.get("ALLOWED").copied(), Some(number(&figures, "/outcomes/ALLOWED")));
}

#[test]
fn hit_rate_sets_the_share_of_known_keys() {
    let daemon = Daemon::serving(export());
    let digests = digests(&daemon);
    let figures = figures(&daemon, &["--digests", &digests, "--hit-rate", "0.25", "--depth", "64"]);
    let (hits, misses) = (number(&figures, "/outcomes/ALLOWED"), number(&figures, "/outcomes/UNKNOWN_KEY"));
    let share = hits as f64 / (hits + misses) as f64;
    assert!((0.2..0.3).contains(&share), "{share}");
}

#[test]
fn run_without_keys_uses_unknown_keys_and_warns() {
    let daemon = Daemon::serving(export());
    let output = run(&daemon.socket(), &[]);
    let (text, messages) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{messages}");
    assert!(messages.contains("every request is for an unknown key"), "{messages}");
    for part in [
        "keyward: 1 connection, 1 request",
        "throughput ",
        "UNKNOWN_KEY ",
        "p99.9 ",
        "█",
        "worker-",
        "machine ",
    ] {
        assert!(text.contains(part), "{part} of:\n{text}");
    }
}

#[test]
fn raw_keys_are_sent_as_digests_or_raw() {
    let daemon = Daemon::serving(export());
    let keys = daemon.setup.path("keys.txt");
    fs::write(&keys, (0..KEYS).map(|number| key(number) + "\n").collect::<String>()).expect("written");
    let keys = keys.to_str().expect("UTF-8");
    for options in [&["--keys", keys][..], &["--keys", keys, "--raw", "--hit-rate", "0.5"]] {
        let figures = figures(&daemon, options);
        assert!(number(&figures, "/outcomes/ALLOWED") > 0, "{figures}");
        assert_eq!(figures["outcomes"].get("UNKNOWN_KEY").is_some(), options.len() > 2, "{figures}");
    }
}

#[test]
fn limited_key_shows_in_the_outcomes_and_a_peek_charges_nothing() {
    let export = Export::new([row("k").limits("1/d burst 5")]);
    let daemon = Daemon::serving(&export);
    let digests = digests_of(&daemon, &export);
    let peeked = figures(&daemon, &["--digests", &digests, "--cost", "0"]);
    assert_eq!(peeked["outcomes"].as_object().expect("an object").len(), 1, "{peeked}");
    let charged = figures(&daemon, &["--digests", &digests, "--warmup", "0s"]);
    assert_eq!(number(&charged, "/outcomes/ALLOWED"), 5);
    assert!(number(&charged, "/outcomes/RATE_LIMITED") > 0);
}

/// Requests that arrive during a pause count as slow, not only the one that the pause interrupted.
#[test]
fn open_loop_measures_requests_delayed_by_a_pause() {
    const PAUSE: Duration = Duration::from_millis(300);
    let daemon = Daemon::serving(export());
    let options =
        ["--digests", &digests(&daemon), "--rate", "1000", "--warmup", "0s", "--duration", "1s", "--json"];
    let mut child = command(&daemon.socket(), &options).stdout(Stdio::piped()).spawn().expect("starts");
    // More than the first connection's probe: the measurement has begun.
    wait_until("the load", || daemon.status().verdicts.values().sum::<u64>() >= 100);
    daemon.pause();
    thread::sleep(PAUSE);
    daemon.resume();
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("UTF-8");
    assert!(child.wait().expect("ends").success());
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    // About 300 of 1000 requests arrive during the pause and wait for 150 ms on average. A closed
    // loop would have one slow request.
    let slow: u64 = figures["histogram_ns"]
        .as_array()
        .expect("buckets")
        .iter()
        .filter(|bucket| bucket[0].as_u64() > Some(30_000_000))
        .map(|bucket| bucket[1].as_u64().expect("a count"))
        .sum();
    assert!(slow > 150, "{slow} slow requests: {}", figures["latency_ns"]);
}

#[test]
fn unattainable_rate_is_reported() {
    let daemon = Daemon::serving(export());
    let output = run(&daemon.socket(), &["--digests", &digests(&daemon), "--rate", "50000000"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("BEHIND "), "{text}");
}

fn wait_for_answers(daemon: &Daemon) {
    wait_until("answers", || daemon.status().verdicts.get("ALLOWED").is_some_and(|count| *count > 100));
}

#[test]
fn sigint_ends_a_run_and_prints_its_figures() {
    let daemon = Daemon::serving(export());
    let options = ["--digests", &digests(&daemon), "--duration", "1h", "--warmup", "0s", "--json"];
    let child = command(&daemon.socket(), &options).stdout(Stdio::piped()).spawn().expect("starts");
    wait_for_answers(&daemon);
    let begin = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success() && begin.elapsed() < TIMEOUT);
    let figures: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(figures["interrupted"], true);
    assert!(number(&figures, "/answers") > 0);
}

#[test]
fn run_without_its_daemon_fails_without_figures() {
    let mut daemon = Daemon::serving(export());
    let options = ["--digests", &digests(&daemon), "--duration", "1h", "--json"];
    let mut child = command(&daemon.socket(), &options);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    wait_for_answers(&daemon);
    daemon.kill();
    let output = child.wait_with_output().expect("ends");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(69), 0), "{messages}");
    assert!(messages.contains("the server"), "{messages}");
}

/// A server that sends `greeting` to every client and closes the connection.
fn spawn_foreign_server(path: &Path, greeting: &'static [u8]) {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Fails if the client has closed the connection already.
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(greeting);
        }
    });
}

#[test]
fn foreign_server_is_reported() {
    let setup = Setup::without_export();
    for (name, greeting, error) in [
        ("http", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "broke the protocol"),
        ("silent", b"", "ended a connection"),
    ] {
        let path = setup.path(name);
        spawn_foreign_server(&path, greeting);
        let output = run(&path, &[]);
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{messages}");
        assert!(messages.contains(error), "{messages}");
    }
}

#[test]
fn pin_to_a_missing_processor_is_refused() {
    let daemon = Daemon::serving(export());
    let output = run(&daemon.socket(), &["--pin", "1000"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn unusable_key_file_is_reported_with_its_name() {
    let setup = Setup::without_export();
    let path = |name: &str| setup.path(name).to_str().expect("UTF-8").to_owned();
    fs::create_dir(path("directory")).expect("made");
    fs::write(path("k.csv"), export().to_csv()).expect("written");
    let compiled = keyward().args(["compile", &path("k.csv"), "--output", &path("k.kwc")]).output();
    assert!(compiled.expect("keyward runs").status.success());
    for (option, name, error) in [
        ("--keys", "directory", "Is a directory"),
        ("--digests", "k.kwc", "digests are not read from a compiled snapshot; give the export"),
    ] {
        let output = run(&setup.path("no.sock"), &[option, &path(name)]);
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{messages}");
        let named = format!("{option}: {}: ", path(name));
        assert!(messages.contains(&named) && messages.contains(error), "{messages}");
    }
}

/// A child that is killed when it is dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Fails only if the child has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn echo_server_answers_one_and_many_connections() {
    let setup = Setup::without_export();
    for spin in [&[][..], &["--busy-poll"]] {
        let path = setup.path(&format!("echo{}.sock", spin.len()));
        let mut serve = keyward_bench();
        serve.args(["--serve-echo", "--answer-size", "70", "--socket"]).arg(&path).args(spin);
        let _server = KillOnDrop(serve.spawn().expect("starts"));
        wait_for("the echo", || UnixStream::connect(&path).ok());
        for options in [&["--depth", "128"][..], &["--connections", "9"], &[]] {
            let fixed = ["--target", "echo", "--answer-size", "70", "--json"];
            let output = run(&path, &[&fixed, options].concat());
            let messages = String::from_utf8_lossy(&output.stderr).into_owned();
            let figures: Value = serde_json::from_slice(&output.stdout).expect(&messages);
            assert!(number(&figures, "/outcomes/echoed") > 0, "{options:?}: {figures}");
            assert_eq!(
                (number(&figures, "/unanswered"), &figures["bytes"]),
                (0, &serde_json::json!([48.0, 70.0]))
            );
        }
    }
}
