//! Every verdict of SPEC.md through the Rust client, the command line and the Python client.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clients::{assert_succeeds, python};
use crate::support::{Daemon, Export, Setup, keyward, row, wait_until};
use keyward_client::Request;
use keyward_protocol::Verdict;
use serde_json::{Value, json};

/// A key in the format of keyward, with an invalid checksum.
const MINTED: &str = "acme_live_0123456789ABCDEFGHIJabcdefghijEXAMPL";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A key for each verdict.
fn export() -> Export {
    Export::new([
        row("plain"),
        row("revoked").status("revoked"),
        row("disabled").status("disabled"),
        row("later").status("active").set("not_before", "2099-01-01T00:00:00Z"),
        row("expired").status("active").expires_at("2001-01-01 00:00:00+00"),
        // The empty arrays of PostgreSQL and JSON: lists that admit nothing.
        row("no-networks").status("active").allowed_ips("{}"),
        row("no-origins").status("active").set("allowed_origins", "[]"),
        row("full")
            .owner("acme")
            .environment("live")
            .plan("pro")
            .status("active")
            .set("scopes", "invoices:read orders:*")
            .allowed_ips("10.0.0.0/8,2001:db8::/32")
            .set("allowed_origins", "https://*.example.com")
            .limits("requests=1/d burst 3; daily=10000/d")
            .metadata(r#"{"tier":1}"#),
        row("prepaid").limits("credits=3"),
    ])
}

/// Requests and the expected answers. The Python client gets the same list.
fn expectations() -> Vec<Value> {
    let good = json!({
        "key": "full", "ip": "10.1.2.3", "origin": "https://app.example.com", "environment": "live",
        "scopes": ["invoices:read", "orders:write"],
    });
    let with = |changes: Value, expect: Value| {
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
        json!({"key": "unlisted", "expect": {"verdict": "UNKNOWN_KEY", "key_id": "", "owner": ""}}),
        json!({"key": MINTED, "raw": true, "expect": {"verdict": "MALFORMED_KEY", "key_id": ""}}),
        json!({"key": MINTED, "expect": {"verdict": "UNKNOWN_KEY"}}),
    ];
    for (key, name) in
        [("revoked", "REVOKED"), ("disabled", "DISABLED"), ("later", "NOT_YET_VALID"), ("expired", "EXPIRED")]
    {
        list.push(json!({"key": key, "expect": {"verdict": name, "key_id": key, "limit": 0}}));
    }
    list.extend([
        with(json!({"environment": "test"}), json!({"verdict": "WRONG_ENVIRONMENT", "environment": "live"})),
        with(json!({"environment": ""}), verdict("WRONG_ENVIRONMENT")),
        json!({"key": "plain", "environment": "", "expect": {"verdict": "WRONG_ENVIRONMENT"}}),
        json!({"key": "no-networks", "expect": {"verdict": "IP_NOT_ALLOWED"}}),
        json!({"key": "no-networks", "ip": "10.1.2.3", "expect": {"verdict": "IP_NOT_ALLOWED"}}),
        json!({"key": "no-origins", "expect": {"verdict": "ORIGIN_NOT_ALLOWED"}}),
        json!({"key": "no-origins", "origin": "https://a.test", "expect": {"verdict": "ORIGIN_NOT_ALLOWED"}}),
        with(json!({"ip": "11.1.2.3"}), verdict("IP_NOT_ALLOWED")),
        with(json!({"ip": Value::Null}), verdict("IP_NOT_ALLOWED")),
        with(json!({"origin": "https://app.example.org"}), verdict("ORIGIN_NOT_ALLOWED")),
        with(json!({"origin": Value::Null}), verdict("ORIGIN_NOT_ALLOWED")),
        with(json!({"scopes": ["invoices:read", "users:read"]}), verdict("MISSING_SCOPE")),
        with(
            json!({"cost": 4}),
            json!({"verdict": "COST_EXCEEDS_BURST", "limit": 3, "remaining": 3, "retry_after_ms": 0, "limit_name": "requests"}),
        ),
        json!({"key": "prepaid", "cost": 4, "expect": {
            "verdict": "OUT_OF_CREDIT", "limit": 3, "remaining": 3, "retry_after_ms": 0, "limit_name": "credits",
        }}),
        with(json!({"cost": 0}), json!({"verdict": "ALLOWED", "remaining": 3, "retry_after_ms": 0})),
        with(
            json!({"cost": 2, "ip": "2001:db8::7", "metadata": true}),
            json!({
                "verdict": "ALLOWED", "key_id": "full", "owner": "acme", "environment": "live", "plan": "pro",
                "limit": 3, "remaining": 1, "limit_name": "requests", "metadata": "{\"tier\":1}",
            }),
        ),
        with(
            json!({"cost": 2, "scopes": ["users:read", "orders:read"], "any_scope": true}),
            json!({"verdict": "RATE_LIMITED", "limit": 3, "remaining": 1, "limit_name": "requests"}),
        ),
    ]);
    list
}

/// Verifies with the Rust client.
fn verify(daemon: &Daemon, case: &Value) -> keyward_client::Decision {
    let key = case["key"].as_str().expect("a key");
    let mut request = Request::new(key).cost(case["cost"].as_u64().unwrap_or(1) as u32);
    if let Some(scopes) = case["scopes"].as_array() {
        let names: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
        request = if case["any_scope"] == true { request.any_scope(names) } else { request.scopes(names) };
    }
    if let Some(ip) = case["ip"].as_str() {
        request = request.ip(ip.parse().expect("an address"));
    }
    if let Some(origin) = case["origin"].as_str() {
        request = request.origin(origin.to_owned());
    }
    if let Some(environment) = case["environment"].as_str() {
        request = request.environment(environment.to_owned());
    }
    if case["metadata"] == true {
        request = request.metadata();
    }
    daemon.client().verify(&request).expect("an answer")
}

#[test]
fn rust_client_gets_every_verdict() {
    let daemon = Daemon::serving(export());
    // The client sends digests, so a malformed key is an unknown key.
    for case in expectations().iter().filter(|case| case["raw"] != true) {
        let (answer, expect) = (verify(&daemon, case), &case["expect"]);
        assert_eq!(answer.verdict().name(), expect["verdict"], "{case}");
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
                assert_eq!(&got, wanted, "{name} of {case}");
            }
        }
    }
}

/// Verifies with `keyward verify`.
fn run_verify(daemon: &Daemon, case: &Value, json: bool) -> Output {
    let mut command = keyward();
    command.arg("verify").arg("--socket").arg(daemon.socket()).arg("--deadline").arg("20s");
    if json {
        command.arg("--json");
    }
    for (name, option) in
        [("ip", "--ip"), ("origin", "--origin"), ("environment", "--environment"), ("cost", "--cost")]
    {
        match &case[name] {
            Value::Null => {}
            Value::String(text) => _ = command.arg(option).arg(text),
            other => _ = command.arg(option).arg(other.to_string()),
        }
    }
    for scope in case["scopes"].as_array().into_iter().flatten() {
        command.arg("--scope").arg(scope.as_str().expect("a scope"));
    }
    for (name, option) in [("any_scope", "--any-scope"), ("metadata", "--metadata"), ("raw", "--raw")] {
        if case[name] == true {
            command.arg(option);
        }
    }
    run_with_input(command, case["key"].as_str().expect("a key"))
}

fn run_with_input(mut command: Command, input: &str) -> Output {
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
fn command_line_gets_every_verdict_and_its_exit_code() {
    let daemon = Daemon::serving(export());
    for case in expectations() {
        let output = run_verify(&daemon, &case, true);
        let verdict = case["expect"]["verdict"].as_str().expect("a verdict");
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} of {case}", output));
        assert_eq!(answer["verdict"], verdict, "{case}");
        assert_eq!(answer["generation"], 1);
        assert_eq!(output.status.code(), Some(i32::from(verdict != "ALLOWED")), "{case}");
    }
    let output = run_verify(&daemon, &json!({"key": "revoked\n"}), false);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("REVOKED"), "{output:?}");
}

#[test]
fn daemon_without_keys_answers_not_ready() {
    let daemon = Setup::without_export().start();
    assert_eq!(daemon.verdict("plain"), "NOT_READY");
    let output = run_verify(&daemon, &json!({"key": "plain"}), true);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((answer["verdict"].as_str(), answer["generation"].as_u64()), (Some("NOT_READY"), Some(0)));
    assert!(!daemon.status().ready);
    daemon.setup.write_export(export());
    wait_until("the export", || daemon.verdict("plain") == "ALLOWED");
}

#[test]
fn stale_source_is_not_served() {
    let setup = Setup::new(export()).config("[source]\nmax_staleness = \"1h\"");
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

/// To the second, on an existing connection.
#[test]
fn key_expires_without_a_reload() {
    let expires = now() + 2;
    let daemon = Daemon::serving(Export::new([row("short").expires_at(expires.to_string())]));
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
fn every_verdict_is_tested() {
    let mut tested: BTreeSet<String> = expectations()
        .iter()
        .map(|case| case["expect"]["verdict"].as_str().expect("a verdict").to_owned())
        .collect();
    // These depend on the daemon, not on a key, and have tests of their own above.
    tested.extend(["NOT_READY".into(), "STALE_SNAPSHOT".into()]);
    // Named costs have tests of their own in `budgets`.
    tested.insert("UNKNOWN_LIMIT".into());
    let all: BTreeSet<String> = Verdict::all().map(|verdict| verdict.name().into()).collect();
    assert_eq!(tested, all);
}

#[test]
#[ignore = "needs Python"]
fn python_client_gets_every_verdict() {
    let daemon = Daemon::serving(export());
    let cases = daemon.setup.path("expectations.json");
    fs::write(&cases, serde_json::to_vec(&expectations()).expect("JSON")).expect("a file");
    assert_succeeds(python().arg("tests/verdicts.py").arg(daemon.socket()).arg(cases));
}

#[test]
#[ignore = "needs Python: tests/run runs it"]
fn python_client_agrees_on_every_vector_and_verdict() {
    let daemon = Daemon::serving(export());
    let cases_path = daemon.setup.path("expectations.json");
    fs::write(&cases_path, serde_json::to_vec(&expectations()).expect("JSON")).expect("a file");
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("python3")
        .arg(format!("{root}/tests/client.py"))
        .arg(daemon.socket())
        .arg(format!("{root}/protocol/vectors/vectors.json"))
        .arg(&cases_path)
        .output()
        .expect("python3 runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
