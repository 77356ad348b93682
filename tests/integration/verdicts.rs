//! Every verdict of SPEC.md, through the real socket, the Rust client, the command line and the Python client.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Daemon, Setup, keyward, sha256_hex};
use keyward_client::Request;
use keyward_protocol::Verdict;
use serde_json::{Value, json};

/// A key that keyward minted, and the same with one character changed.
const MINTED: &str = "acme_live_0123456789ABCDEFGHIJabcdefghijEXAMPL";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// One key for each verdict.
fn export() -> String {
    let rows = [
        ("plain", "", ""),
        ("revoked", "revoked", ""),
        ("disabled", "disabled", ""),
        ("later", "active", "not_before"),
        ("expired", "active", "expires_at"),
    ];
    let mut text = String::from(
        "key_hash,key_id,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,allowed_origins,limits,metadata\n",
    );
    let later = "2099-01-01T00:00:00Z";
    for (key, status, column) in rows {
        let not_before = if column == "not_before" { later } else { "" };
        let expires_at = if column == "expires_at" { "2001-01-01 00:00:00+00" } else { "" };
        text += &format!("{},{key},,,,{status},{not_before},{expires_at},,,,,\n", sha256_hex(key));
    }
    let full = [
        sha256_hex("full"),
        "full,acme,live,pro,active,,".into(),
        "invoices:read orders:*".into(),
        "\"10.0.0.0/8,2001:db8::/32\"".into(),
        "https://*.example.com".into(),
        "requests=1/d burst 3; daily=10000/d".into(),
        "\"{\"\"tier\"\":1}\"".into(),
    ];
    // PostgreSQL's empty array and JSON's: lists that admit nothing.
    text += &format!("{},no-networks,,,,active,,,,{{}},,,\n", sha256_hex("no-networks"));
    text += &format!("{},no-origins,,,,active,,,,,[],,\n", sha256_hex("no-origins"));
    text + &full.join(",") + "\n"
}

/// What is asked, and what has to come back; the same list goes to the Python client.
fn expectations() -> Vec<Value> {
    let good = json!({
        "key": "full", "ip": "10.1.2.3", "origin": "https://app.example.com", "environment": "live",
        "scopes": ["invoices:read", "orders:write"],
    });
    let but = |changes: Value, expect: Value| {
        let mut all = good.clone();
        for (name, value) in changes.as_object().expect("an object") {
            all[name] = value.clone();
        }
        all["expect"] = expect;
        all
    };
    let verdict = |name: &str| json!({ "verdict": name });
    let mut list = vec![
        json!({"key": "plain", "expect": {"verdict": "ALLOWED", "key_id": "plain", "limit": 0, "limit_name": ""}}),
        json!({"key": "nobody", "expect": {"verdict": "UNKNOWN_KEY", "key_id": "", "owner": ""}}),
        json!({"key": MINTED, "raw": true, "expect": {"verdict": "MALFORMED_KEY", "key_id": ""}}),
        json!({"key": MINTED, "expect": {"verdict": "UNKNOWN_KEY"}}),
    ];
    for (key, name) in
        [("revoked", "REVOKED"), ("disabled", "DISABLED"), ("later", "NOT_YET_VALID"), ("expired", "EXPIRED")]
    {
        list.push(json!({"key": key, "expect": {"verdict": name, "key_id": key, "limit": 0}}));
    }
    list.extend([
        but(json!({"environment": "test"}), json!({"verdict": "WRONG_ENVIRONMENT", "environment": "live"})),
        but(json!({"environment": ""}), verdict("WRONG_ENVIRONMENT")),
        json!({"key": "plain", "environment": "", "expect": {"verdict": "WRONG_ENVIRONMENT"}}),
        json!({"key": "no-networks", "expect": {"verdict": "IP_NOT_ALLOWED"}}),
        json!({"key": "no-networks", "ip": "10.1.2.3", "expect": {"verdict": "IP_NOT_ALLOWED"}}),
        json!({"key": "no-origins", "expect": {"verdict": "ORIGIN_NOT_ALLOWED"}}),
        json!({"key": "no-origins", "origin": "https://a.test", "expect": {"verdict": "ORIGIN_NOT_ALLOWED"}}),
        but(json!({"ip": "11.1.2.3"}), verdict("IP_NOT_ALLOWED")),
        but(json!({"ip": Value::Null}), verdict("IP_NOT_ALLOWED")),
        but(json!({"origin": "https://app.example.org"}), verdict("ORIGIN_NOT_ALLOWED")),
        but(json!({"origin": Value::Null}), verdict("ORIGIN_NOT_ALLOWED")),
        but(json!({"scopes": ["invoices:read", "users:read"]}), verdict("MISSING_SCOPE")),
        but(
            json!({"cost": 4}),
            json!({"verdict": "COST_EXCEEDS_BURST", "limit": 3, "remaining": 3, "retry_after_ms": 0, "limit_name": "requests"}),
        ),
        but(json!({"cost": 0}), json!({"verdict": "ALLOWED", "remaining": 3, "retry_after_ms": 0})),
        but(
            json!({"cost": 2, "ip": "2001:db8::7", "metadata": true}),
            json!({
                "verdict": "ALLOWED", "key_id": "full", "owner": "acme", "environment": "live", "plan": "pro",
                "limit": 3, "remaining": 1, "limit_name": "requests", "metadata": "{\"tier\":1}",
            }),
        ),
        but(
            json!({"cost": 2, "scopes": ["users:read", "orders:read"], "any_scope": true}),
            json!({"verdict": "RATE_LIMITED", "limit": 3, "remaining": 1, "limit_name": "requests"}),
        ),
    ]);
    list
}

/// Asks with the Rust client.
fn ask(daemon: &Daemon, question: &Value) -> keyward_client::Decision {
    let key = question["key"].as_str().expect("a key");
    let mut request = Request::new(key).cost(question["cost"].as_u64().unwrap_or(1) as u32);
    if let Some(scopes) = question["scopes"].as_array() {
        let names: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
        request =
            if question["any_scope"] == true { request.any_scope(names) } else { request.scopes(names) };
    }
    if let Some(ip) = question["ip"].as_str() {
        request = request.ip(ip.parse().expect("an address"));
    }
    if let Some(origin) = question["origin"].as_str() {
        request = request.origin(origin.to_owned());
    }
    if let Some(environment) = question["environment"].as_str() {
        request = request.environment(environment.to_owned());
    }
    if question["metadata"] == true {
        request = request.metadata();
    }
    daemon.client().verify(&request).expect("an answer")
}

#[test]
fn the_rust_client_gets_every_verdict() {
    let daemon = Daemon::serving(&export());
    // The client sends digests, so that a malformed key is one that is not known.
    for question in expectations().iter().filter(|question| question["raw"] != true) {
        let (answer, expect) = (ask(&daemon, question), &question["expect"]);
        assert_eq!(answer.verdict().name(), expect["verdict"], "{question}");
        let limit = answer.limit();
        for (name, got) in [
            ("key_id", json!(answer.key_id().unwrap_or_default())),
            ("owner", json!(answer.owner().unwrap_or_default())),
            ("environment", json!(answer.environment().unwrap_or_default())),
            ("plan", json!(answer.plan().unwrap_or_default())),
            ("metadata", json!(answer.metadata())),
            ("limit", json!(limit.as_ref().map_or(0, |limit| limit.limit))),
            ("remaining", json!(limit.as_ref().map_or(0, |limit| limit.remaining))),
            ("limit_name", json!(limit.as_ref().map_or("", |limit| limit.name))),
        ] {
            if let Some(wanted) = expect.get(name) {
                assert_eq!(&got, wanted, "{name} of {question}");
            }
        }
    }
}

/// `keyward verify` with what the question says.
fn run(daemon: &Daemon, question: &Value, json: bool) -> Output {
    let mut command = keyward();
    command.arg("verify").arg("--socket").arg(daemon.socket()).arg("--deadline").arg("20s");
    if json {
        command.arg("--json");
    }
    for (name, option) in
        [("ip", "--ip"), ("origin", "--origin"), ("environment", "--environment"), ("cost", "--cost")]
    {
        match &question[name] {
            Value::Null => {}
            Value::String(text) => _ = command.arg(option).arg(text),
            other => _ = command.arg(option).arg(other.to_string()),
        }
    }
    for scope in question["scopes"].as_array().into_iter().flatten() {
        command.arg("--scope").arg(scope.as_str().expect("a scope"));
    }
    for (name, option) in [("any_scope", "--any-scope"), ("metadata", "--metadata"), ("raw", "--raw")] {
        if question[name] == true {
            command.arg(option);
        }
    }
    pipe(command, question["key"].as_str().expect("a key"))
}

fn pipe(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("keyward runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

#[test]
fn the_command_line_gets_every_verdict_and_says_so_in_its_exit_code() {
    let daemon = Daemon::serving(&export());
    for question in expectations() {
        let output = run(&daemon, &question, true);
        let verdict = question["expect"]["verdict"].as_str().expect("a verdict");
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} of {question}", output));
        assert_eq!(answer["verdict"], verdict, "{question}");
        assert_eq!(answer["generation"], 1);
        assert_eq!(output.status.code(), Some(i32::from(verdict != "ALLOWED")), "{question}");
    }
    let output = run(&daemon, &json!({"key": "revoked\n"}), false);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("REVOKED"), "{output:?}");
}

#[test]
fn a_daemon_without_keys_says_so_instead_of_refusing_connections() {
    let daemon = Setup::without_export().start();
    assert_eq!(daemon.verdict("plain"), "NOT_READY");
    let output = run(&daemon, &json!({"key": "plain"}), true);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((answer["verdict"].as_str(), answer["generation"].as_u64()), (Some("NOT_READY"), Some(0)));
    assert!(!daemon.status().ready);
    daemon.setup.write_export(&export());
    crate::support::wait_for("the export", || (daemon.verdict("plain") == "ALLOWED").then_some(()));
}

#[test]
fn a_source_that_is_too_old_is_not_served() {
    let setup = Setup::new(&export()).config("[source]\nmax_staleness = \"1h\"");
    let source = fs::File::options().write(true).open(setup.source()).expect("the export");
    source.set_modified(SystemTime::now() - Duration::from_secs(3_700)).expect("a file time");
    let daemon = setup.start();
    assert_eq!(daemon.verdict("plain"), "STALE_SNAPSHOT");
    let status = daemon.status();
    assert!(status.stale && !status.ready);
    source.set_modified(SystemTime::now()).expect("a file time");
    assert!(daemon.reload().accepted);
    assert_eq!(daemon.verdict("plain"), "ALLOWED");
}

/// Promise: answered to the second, on every connection, without a reload.
#[test]
fn a_key_expires_by_itself() {
    let expires = now() + 2;
    let daemon =
        Daemon::serving(&format!("key_hash,key_id,expires_at\n{},short,{expires}\n", sha256_hex("short")));
    let mut client = daemon.client();
    loop {
        let before = now();
        let verdict = client.verify(&Request::new("short")).expect("an answer").verdict();
        let after = now();
        if before >= expires {
            assert_eq!(verdict, Verdict::Expired);
            break;
        }
        assert!(
            verdict == Verdict::Allowed || after >= expires,
            "{verdict:?} at {before}, expires {expires}"
        );
    }
    assert_eq!(daemon.status().generation, 1);
}

#[test]
fn no_verdict_is_left_out() {
    let mut seen: BTreeSet<String> = expectations()
        .iter()
        .map(|question| question["expect"]["verdict"].as_str().expect("a verdict").to_owned())
        .collect();
    // These are about the daemon, not about a key, and have tests of their own above.
    seen.extend(["NOT_READY".into(), "STALE_SNAPSHOT".into()]);
    let all: BTreeSet<String> = Verdict::all().map(|verdict| verdict.name().into()).collect();
    assert_eq!(seen, all);
}

#[test]
#[ignore = "needs Python: tests/run runs it"]
fn the_python_client_agrees_on_every_vector_and_every_verdict() {
    let daemon = Daemon::serving(&export());
    let questions = daemon.setup.path("expectations.json");
    fs::write(&questions, serde_json::to_vec(&expectations()).expect("JSON")).expect("a file");
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("python3")
        .arg(format!("{root}/tests/client.py"))
        .arg(daemon.socket())
        .arg(format!("{root}/protocol/vectors/vectors.json"))
        .arg(&questions)
        .output()
        .expect("python3 runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
