//! `keyward-bench` against a real daemon: what it prints is what happened, and what it cannot measure it does not print.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, Setup, TIMEOUT, keyward, keyward_bench, sha256_hex, wait_for};
use serde_json::Value;

const KEYS: usize = 100;

/// Keys that nothing limits.
fn export() -> String {
    let mut text = String::from("key_hash,key_id,limits\n");
    for number in 0..KEYS {
        text += &format!("{},key_{number},\n", sha256_hex(&format!("key-{number}")));
    }
    text
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

/// The JSON of a load that was carried out.
fn figures(daemon: &Daemon, options: &[&str]) -> Value {
    let output = run(&daemon.socket(), &[options, &["--json"]].concat());
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {messages}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn number(figures: &Value, path: &str) -> u64 {
    figures.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} of {figures}"))
}

/// A file with all keys' hashes: the export as text, whatever the daemon reads.
fn digests(daemon: &Daemon) -> String {
    digests_of(daemon, &export())
}

fn digests_of(daemon: &Daemon, export: &str) -> String {
    let path = daemon.setup.path("digests.csv");
    fs::write(&path, export).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn every_shape_of_load_is_answered_and_adds_up() {
    let daemon = Daemon::serving(&export());
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
        // More than fits into the socket at once.
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
        assert_eq!(counted, allowed, "{options:?}: each answer is in the histogram once");
        let latency = ["min", "p50", "p90", "p99", "p99_9", "max"]
            .map(|name| number(&figures["latency_ns"], &format!("/{name}")));
        assert!(latency[0] > 0 && latency.is_sorted(), "{options:?}: {latency:?}");
        assert_eq!(number(&figures, "/server/pid"), u64::from(daemon.pid()));
    }
    let status = daemon.status();
    assert_eq!(status.errors, 0, "{}", daemon.log());
}

#[test]
fn the_daemon_counts_what_the_client_counts() {
    let daemon = Daemon::serving(&export());
    let figures = figures(&daemon, &["--digests", &digests(&daemon), "--warmup", "0s", "--depth", "8"]);
    let verdicts = daemon.status().verdicts;
    assert_eq!(verdicts.get("ALLOWED").copied(), Some(number(&figures, "/outcomes/ALLOWED")));
}

#[test]
fn as_many_are_unknown_as_were_asked_for() {
    let daemon = Daemon::serving(&export());
    let digests = digests(&daemon);
    let figures = figures(&daemon, &["--digests", &digests, "--hit-rate", "0.25", "--depth", "64"]);
    let (hits, misses) = (number(&figures, "/outcomes/ALLOWED"), number(&figures, "/outcomes/UNKNOWN_KEY"));
    let share = hits as f64 / (hits + misses) as f64;
    assert!((0.2..0.3).contains(&share), "{share}");
}

#[test]
fn without_keys_all_are_unknown_and_it_says_so() {
    let daemon = Daemon::serving(&export());
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
fn raw_keys_are_for_a_daemon_that_wants_them() {
    let daemon = Daemon::serving(&export());
    let keys = daemon.setup.path("keys.txt");
    fs::write(&keys, (0..KEYS).map(|number| format!("key-{number}\n")).collect::<String>()).expect("written");
    let keys = keys.to_str().expect("UTF-8");
    for options in [&["--keys", keys][..], &["--keys", keys, "--raw", "--hit-rate", "0.5"]] {
        let figures = figures(&daemon, options);
        assert!(number(&figures, "/outcomes/ALLOWED") > 0, "{figures}");
        assert_eq!(figures["outcomes"].get("UNKNOWN_KEY").is_some(), options.len() > 2, "{figures}");
    }
}

#[test]
fn a_limit_shows_in_the_verdicts_and_a_peek_charges_nothing() {
    let export = format!("key_hash,key_id,limits\n{},k,1/d burst 5\n", sha256_hex("k"));
    let daemon = Daemon::serving(&export);
    let digests = digests_of(&daemon, &export);
    let peeked = figures(&daemon, &["--digests", &digests, "--cost", "0"]);
    assert_eq!(peeked["outcomes"].as_object().expect("an object").len(), 1, "{peeked}");
    let charged = figures(&daemon, &["--digests", &digests, "--warmup", "0s"]);
    assert_eq!(number(&charged, "/outcomes/ALLOWED"), 5);
    assert!(number(&charged, "/outcomes/RATE_LIMITED") > 0);
}

/// A daemon that does not answer for a while, between two requests' arrivals as much as behind one.
#[test]
fn an_open_loop_counts_the_requests_that_a_pause_held_up() {
    const PAUSE: Duration = Duration::from_millis(300);
    let daemon = Daemon::serving(&export());
    let options =
        ["--digests", &digests(&daemon), "--rate", "1000", "--warmup", "0s", "--duration", "1s", "--json"];
    let mut child = command(&daemon.socket(), &options).stdout(Stdio::piped()).spawn().expect("starts");
    // So many that it has begun to measure: its first connection only asks who is there.
    let answered = || daemon.status().verdicts.values().sum::<u64>();
    wait_for("the load", || (answered() >= 100).then_some(()));
    daemon.signal(rustix::process::Signal::STOP);
    thread::sleep(PAUSE);
    daemon.signal(rustix::process::Signal::CONT);
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("UTF-8");
    assert!(child.wait().expect("ends").success());
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    // About 300 of 1000 requests fell into the pause, and waited 150 ms on average; a closed loop would have had one.
    let slow: u64 = figures["histogram_ns"]
        .as_array()
        .expect("buckets")
        .iter()
        .filter(|bucket| bucket[0].as_u64() > Some(30_000_000))
        .map(|bucket| bucket[1].as_u64().expect("a count"))
        .sum();
    assert!(slow > 150, "{slow} slow ones of {}", figures["latency_ns"]);
}

#[test]
fn a_rate_that_cannot_be_kept_is_said_not_to_be() {
    let daemon = Daemon::serving(&export());
    let output = run(&daemon.socket(), &["--digests", &digests(&daemon), "--rate", "50000000"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("BEHIND "), "{text}");
}

fn wait_for_answers(daemon: &Daemon) {
    wait_for("answers", || daemon.status().verdicts.get("ALLOWED").filter(|count| **count > 100).map(drop));
}

#[test]
fn ctrl_c_prints_what_there_is() {
    let daemon = Daemon::serving(&export());
    let options = ["--digests", &digests(&daemon), "--duration", "1h", "--warmup", "0s", "--json"];
    let child = command(&daemon.socket(), &options).stdout(Stdio::piped()).spawn().expect("starts");
    wait_for_answers(&daemon);
    let begin = Instant::now();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success() && begin.elapsed() < TIMEOUT);
    let figures: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(figures["interrupted"], true);
    assert!(number(&figures, "/answers") > 0);
}

#[test]
fn a_daemon_that_goes_away_is_no_figure() {
    let mut daemon = Daemon::serving(&export());
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

/// A server that says `greeting` to everyone.
fn impostor(path: &Path, greeting: &'static [u8]) {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _hello = stream.read(&mut [0; 64]);
            let _gone = stream.write_all(greeting);
        }
    });
}

#[test]
fn what_is_no_keyward_is_told() {
    let setup = Setup::without_export();
    for (name, greeting, complaint) in [
        ("http", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "broke the protocol"),
        ("mute", b"", "ended a connection"),
    ] {
        let path = setup.path(name);
        impostor(&path, greeting);
        let output = run(&path, &[]);
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{messages}");
        assert!(messages.contains(complaint), "{messages}");
    }
    let daemon = Daemon::serving(&export());
    let output = run(&daemon.socket(), &["--pin", "1000"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn unusable_key_files_are_named() {
    let setup = Setup::without_export();
    let path = |name: &str| setup.path(name).to_str().expect("UTF-8").to_owned();
    fs::create_dir(path("directory")).expect("made");
    fs::write(path("k.csv"), export()).expect("written");
    let compiled = keyward().args(["compile", &path("k.csv"), "--output", &path("k.kwc")]).output();
    assert!(compiled.expect("keyward runs").status.success());
    for (option, name, complaint) in [
        ("--keys", "directory", "Is a directory"),
        ("--digests", "k.kwc", "a compiled snapshot has no digests to be read here: give the export"),
    ] {
        let output = run(&setup.path("no.sock"), &[option, &path(name)]);
        let messages = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{messages}");
        assert!(messages.contains(complaint) && messages.contains(name), "{messages}");
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn the_echo_echoes_to_one_and_to_many() {
    let setup = Setup::without_export();
    for spin in [&[][..], &["--busy-poll"]] {
        let path = setup.path(&format!("echo{}.sock", spin.len()));
        let mut serve = keyward_bench();
        serve.args(["--serve-echo", "--answer-size", "70", "--socket"]).arg(&path).args(spin);
        let _server = Ended(serve.spawn().expect("starts"));
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
