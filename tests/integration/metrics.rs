//! The command `metrics`, and the users that may only read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use crate::support::{Daemon, Export, Received, Setup, encode_verify, key_target, row, wait_for, wait_until};
use keyward_admin::message::{Command as AdminCommand, Histogram, Metrics};
use keyward_client::Request;
use serde_json::Value;

fn metrics(daemon: &Daemon) -> Metrics {
    daemon.send_command(&AdminCommand::Metrics).expect("an answer").metrics.expect("metrics")
}

/// The number of values.
fn count(histogram: &Histogram) -> u64 {
    histogram.above + histogram.buckets.iter().map(|(_, count)| count).sum::<u64>()
}

fn reloads(daemon: &Daemon) -> [u64; 3] {
    let durations = metrics(daemon).reloads.duration_s;
    ["accepted", "unchanged", "refused"].map(|result| count(&durations[result]))
}

fn now_unix_s() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64()
}

/// Counts by name, without zeros.
fn nonzero(counts: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| (name.as_str(), *count)).collect()
}

#[test]
fn answers_are_counted_by_verdict() {
    let export = Export::new([row("a"), row("gone").status("revoked"), row("few").limits("1/d burst 2")]);
    let daemon = Daemon::serving(export);
    let mut client = daemon.connect();
    for (times, key) in [(5, "a"), (3, "gone"), (6, "few"), (2, "unknown")] {
        for id in 0..times {
            client.send(&encode_verify(id, key));
            assert!(matches!(client.receive(), Received::Answer { .. }));
        }
    }
    let Metrics { answers, connections, .. } = metrics(&daemon);
    let expected = [("ALLOWED", 7), ("RATE_LIMITED", 4), ("REVOKED", 3), ("UNKNOWN_KEY", 2)];
    assert_eq!(nonzero(&answers.verdicts), expected);
    assert_eq!((answers.errors, answers.refunds, answers.debits, answers.shadow_denials), (0, 0, 0, 0));
    assert_eq!((connections.open, connections.accepted), (1, 1));
    assert!(connections.max >= 1 && connections.refused.values().all(|count| *count == 0));
}

#[test]
fn requests_that_a_shadow_limit_would_refuse_are_counted() {
    let config = "[plans.observed]\nsoft = { limit = '3/d', shadow = true }\nhard = '5/d'";
    let export = Export::new([row("a").plan("observed"), row("b")]);
    let daemon = Setup::new(export).config(config).start();
    let mut client = daemon.client();
    let mut shadowed = 0;
    for _ in 0..8 {
        let decision = client.verify(&Request::new("a")).expect("an answer");
        shadowed += u64::from(decision.shadow_limit().is_some());
        client.verify(&Request::new("b")).expect("an answer");
    }
    assert!(shadowed >= 2, "{shadowed}");
    assert_eq!(metrics(&daemon).answers.shadow_denials, shadowed);
}

#[test]
fn one_batch_in_64_is_measured() {
    const BATCHES: u32 = 12_800;
    const REQUESTS: u32 = 3;
    let daemon = Setup::new(Export::of(["a"])).config("[server]\nworkers = 1").start();
    let mut client = daemon.connect();
    let batch: Vec<u8> = (0..REQUESTS).flat_map(|id| encode_verify(id, "a")).collect();
    for _ in 0..BATCHES {
        client.send(&batch);
        (0..REQUESTS).for_each(|_| assert!(matches!(client.receive(), Received::Answer { .. })));
    }
    let answers = metrics(&daemon).answers;
    assert_eq!(nonzero(&answers.verdicts), [("ALLOWED", u64::from(BATCHES * REQUESTS))]);
    let measured = count(&answers.batch_requests);
    assert!((120..=280).contains(&measured), "{measured} instead of 200");
    assert_eq!(count(&answers.duration_s), measured);
    let of_three: Vec<_> = answers.batch_requests.buckets.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(of_three, [&(4.0, measured)]);
    assert_eq!(answers.batch_requests.sum, (measured * u64::from(REQUESTS)) as f64);
    assert!(answers.duration_s.sum > 0.0 && answers.duration_s.sum < 10.0, "{answers:?}");
}

#[test]
fn keys_are_counted_by_status_with_revocations_and_expiry() {
    let seconds = |offset: i64| (now_unix_s() as i64 + offset).to_string();
    let export = Export::new([
        row("a"),
        row("b"),
        row("off").status("disabled"),
        row("gone").status("revoked"),
        row("past").expires_at(seconds(-60)),
        row("soon").expires_at(seconds(3)),
        row("later").set("not_before", seconds(3_600)),
    ]);
    let daemon = Daemon::serving(export);
    let keys = || metrics(&daemon).keys;
    let counts = |active, expired, revoked| -> BTreeMap<String, u64> {
        let all = [
            ("active", active),
            ("disabled", 1),
            ("expired", expired),
            ("not_yet_valid", 1),
            ("revoked", revoked),
        ];
        all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    };
    assert_eq!(keys(), counts(3, 1, 1));
    daemon.revoke(key_target("a"));
    assert_eq!(keys(), counts(2, 1, 2));
    wait_until("a key to expire", || daemon.verdict("soon") == "EXPIRED");
    daemon.unrevoke(key_target("a"));
    assert_eq!(keys(), counts(2, 2, 1));
    let Metrics { revocations, revocations_not_durable, .. } = metrics(&daemon);
    assert_eq!((revocations, revocations_not_durable), (0, 0));
}

#[test]
fn reloads_are_counted_by_result() {
    let start = now_unix_s();
    let daemon = Daemon::serving(Export::of(["a"]));
    assert_eq!(reloads(&daemon), [1, 0, 0]);
    assert!(daemon.reload().accepted);
    assert!(daemon.publish(Export::of(["a", "b"])).accepted);
    // The watch may have noticed the new file too.
    let [accepted, unchanged, refused] = reloads(&daemon);
    assert_eq!((accepted, unchanged >= 1, refused), (2, true, 0));
    let before = metrics(&daemon);
    assert!(before.reloads.last_successful && before.ready && !before.stale, "{before:?}");
    let accepted = before.reloads.last_success_unix_s.expect("a time");
    assert!((start..=now_unix_s()).contains(&accepted), "{accepted}");

    daemon.spoil_source();
    assert!(!daemon.reload().accepted);
    assert!(reloads(&daemon)[2] >= 1);
    let after = metrics(&daemon);
    assert!(!after.reloads.last_successful && after.ready, "{after:?}");
    assert!(after.reloads.last_success_unix_s >= Some(accepted));
    assert_eq!(after.generation, before.generation);
    assert!(after.snapshot_age_s.is_some_and(|age| age < 300.0), "{after:?}");
    let sum = after.reloads.duration_s["accepted"].sum;
    assert!(sum > 0.0 && sum < 60.0, "{sum}");
}

#[test]
fn values_that_are_not_known_are_absent_before_there_are_keys() {
    let daemon = Setup::without_export().start();
    let reply = daemon.send_command(&AdminCommand::Metrics).expect("an answer");
    let json = serde_json::to_value(reply.metrics.expect("metrics")).expect("JSON");
    assert_eq!(
        (&json["ready"], &json["generation"], &json["keys"]),
        (&false.into(), &0.into(), &Value::Object(Default::default()))
    );
    let absent = ["snapshot_age_s", "source_age_s"].map(|name| json.get(name));
    assert_eq!((absent, json["reloads"].get("last_success_unix_s")), ([None; 2], None), "{json}");
    let sockets = &json["socket_reachable"];
    assert_eq!((&sockets["verify"], &sockets["admin"]), (&true.into(), &true.into()));
}

/// The age of unwritten usage returns to 0 when the file is written again.
#[test]
fn unwritten_usage_and_files_have_an_age() {
    let daemon =
        Setup::new(Export::of(["a"])).config("[usage]\ninterval = \"100ms\"\n[server]\nworkers = 1").start();
    assert_eq!((metrics(&daemon).usage.lag_s, metrics(&daemon).unwritten_s), (0.0, BTreeMap::new()));
    // A directory replaces the file.
    let file = daemon.setup.path("usage.jsonl");
    if file.exists() {
        fs::remove_file(&file).expect("removed");
    }
    fs::create_dir(&file).expect("in the way");
    daemon.verdict("a");
    let metrics_of_failure = wait_for("a failure that lasts", || {
        let metrics = metrics(&daemon);
        (metrics.unwritten_s.get("usage.jsonl").is_some_and(|age| *age > 0.5)).then_some(metrics)
    });
    assert!(metrics_of_failure.usage.lag_s >= 0.5, "{metrics_of_failure:?}");
    assert!(metrics_of_failure.usage.lag_s < 60.0 && metrics_of_failure.usage.dropped == 0);
    fs::remove_dir(&file).expect("out of the way");
    wait_until("the usage to be written", || {
        let metrics = metrics(&daemon);
        metrics.usage.lag_s == 0.0 && metrics.unwritten_s.is_empty()
    });
}

#[test]
fn process_is_that_of_the_daemon() {
    let daemon = Setup::new(Export::of(["a"])).config("[server]\nworkers = 2").start();
    let before = metrics(&daemon).process.expect("/proc is mounted");
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let mut client = daemon.connect();
            client.send(&encode_verify(0, "a"));
            assert!(matches!(client.receive(), Received::Answer { .. }));
            client
        })
        .collect();
    let after = metrics(&daemon).process.expect("/proc is mounted");
    assert!((45..=55).contains(&(after.open_fds - before.open_fds)), "{before:?} {after:?}");
    assert!(after.max_fds > after.open_fds && after.threads > 5 && after.cpu_s >= before.cpu_s);
    assert!(after.resident_bytes > 1 << 20 && after.virtual_bytes >= after.resident_bytes, "{after:?}");
    assert_eq!(after.start_unix_s, before.start_unix_s);
    assert!((now_unix_s() - 120.0..=now_unix_s()).contains(&after.start_unix_s), "{after:?}");
    drop(clients);
}

/// A user in `admin_read_uids`.
const READER: u32 = 64_322;

/// Sends the command lines of its arguments on one connection each, and prints the answers.
const SEND: &str = "
import socket, sys
for line in sys.argv[2:]:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(sys.argv[1])
    try:
        peer.sendall(line.encode() + b'\\n')
    except BrokenPipeError:
        pass  # The daemon has sent its refusal, and closed the connection.
    print(peer.makefile().readline(), end='')
";

/// Occupies the admin socket with as many commands as it takes, until it is killed.
const FLOOD: &str = "
import socket, sys, threading
def flood():
    while True:
        try:
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(sys.argv[1])
            threading.Thread(target=lambda: [None for _ in iter(lambda: peer.recv(65536), b'')]).start()
            while True:
                peer.sendall(b'{\"command\":\"metrics\"}\\n' * 100)
        except OSError:
            pass
for _ in range(60):
    threading.Thread(target=flood).start()
print('flooding', flush=True)
";

/// A daemon whose socket [`READER`] may read from. Its own user is root.
fn daemon_with_reader() -> Daemon {
    let config = format!("server.admin_read_uids = [{READER}]");
    let setup = Setup::new(Export::of(["a", "b"])).config(&config);
    fs::set_permissions(setup.dir.path(), PermissionsExt::from_mode(0o755)).expect("open to all");
    setup.start()
}

fn python(script: &str, daemon: &Daemon, lines: &[&str], uid: u32) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(daemon.admin_socket()).args(lines).current_dir("/").uid(uid);
    command
}

fn answers(daemon: &Daemon, lines: &[&str], uid: u32) -> Vec<Value> {
    let output = python(SEND, daemon, lines, uid).output().expect("python3");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let answers: Vec<_> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), lines.len(), "{text}");
    answers
}

#[test]
#[ignore = "needs root, to run as another user, and python3: tests/run runs it"]
fn reader_may_read_and_change_nothing() {
    const PERMITTED: [(&str, &str); 4] = [
        (r#"{"command":"status"}"#, "status"),
        (r#"{"command":"metrics"}"#, "metrics"),
        (r#"{"command":"usage","top":3}"#, "usage"),
        (r#"{"command":"version"}"#, "version"),
    ];
    const REFUSED: [&str; 8] = [
        r#"{"command":"revoke","key_id":"a"}"#,
        r#"{"command":"unrevoke","key_id":"b"}"#,
        r#"{"command":"revocations"}"#,
        r#"{"command":"reload","force":true}"#,
        r#"{"command":"check"}"#,
        r#"{"command":"balance","key_id":"a"}"#,
        r#"{"command":"reset_balance","key_id":"a"}"#,
        r#"{"command":"reset_calendar"}"#,
    ];
    let mut daemon = daemon_with_reader();
    daemon.revoke(key_target("b"));
    let before = daemon.status();
    for (answer, (_, field)) in
        answers(&daemon, &PERMITTED.map(|(line, _)| line), READER).iter().zip(PERMITTED)
    {
        assert_eq!((&answer["ok"], answer[field].is_object()), (&true.into(), true), "{answer}");
    }
    for answer in answers(&daemon, &REFUSED, READER) {
        let error = answer["error"].as_str().expect("an error");
        assert!(answer["ok"] == false && error.contains("need admin_uids"), "{answer}");
    }
    let after = daemon.status();
    assert_eq!((after.generation, after.revocations_total), (before.generation, 1));
    assert_eq!(daemon.verdicts(["a", "b"]), ["ALLOWED", "REVOKED"]);
    let answer = &answers(&daemon, &[PERMITTED[0].0], READER + 1)[0];
    assert!(
        answer["error"].as_str().is_some_and(|error| error.contains("admin_read_uids may use")),
        "{answer}"
    );

    daemon.stop();
    let mut refused = BTreeMap::new();
    for event in daemon.setup.audit_events("peer_refused") {
        assert_eq!(event["socket"], "admin");
        *refused.entry(event["uid"].as_u64()).or_insert(0) += event["count"].as_u64().expect("a number");
    }
    let expected = [(Some(READER.into()), REFUSED.len() as u64), (Some(u64::from(READER) + 1), 1)];
    assert_eq!(refused, BTreeMap::from(expected));
}

/// A program that runs as another user. It is killed when it is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root, to run as another user, and python3: tests/run runs it"]
fn readers_do_not_keep_operators_out() {
    let daemon = daemon_with_reader();
    let mut flood = python(FLOOD, &daemon, &[], READER);
    let _flood = Program(flood.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("python3"));
    // All that readers may occupy is occupied.
    wait_until("a reader to be refused", || {
        let output = python(SEND, &daemon, &[r#"{"command":"status"}"#], READER).output().expect("python3");
        String::from_utf8_lossy(&output.stdout).contains("too many connections of admin_read_uids")
    });
    for _ in 0..10 {
        assert!(daemon.revoke(key_target("a")).durable);
        daemon.unrevoke(key_target("a"));
    }
}
