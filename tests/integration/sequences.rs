//! `protocol/vectors/sequences.json`: what a client writes, what the daemon responds, and what happens
//! to the connection.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use keyward_protocol::{Answer, ErrorCode, MAX_ANSWER_LENGTH, ParsedFrame, Response, Welcome, parse_frame};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::notation::parse_bytes;
use crate::support::{Daemon, Export, Row, Setup, TIMEOUT, row};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    daemons: BTreeMap<String, DaemonConfig>,
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DaemonConfig {
    /// Bytes of the pepper's file.
    pepper: Option<String>,
    /// Lines of the configuration.
    config: Vec<String>,
    /// Rows of the export.
    keys: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sequence {
    name: String,
    daemon: String,
    #[serde(rename = "note")]
    _note: Option<String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Step {
    Send { send: String, pieces: Option<usize> },
    Receive { receive: Vec<Map<String, Value>> },
    ShutDown { shut_down: bool },
    End { end: bool },
}

fn file() -> File {
    let file = include_str!("../../protocol/vectors/sequences.json");
    serde_json::from_str(file).expect("sequences.json has the format that its README.md describes")
}

#[test]
fn sequences_are_answered_as_listed() {
    let File { daemons, sequences } = file();
    for (name, config) in &daemons {
        let daemon = start(config);
        let mut played = 0;
        for sequence in sequences.iter().filter(|sequence| sequence.daemon == *name) {
            play(&daemon, sequence);
            played += 1;
        }
        assert!(played > 0, "{name}");
    }
    for Sequence { name, daemon, .. } in &sequences {
        assert!(daemons.contains_key(daemon), "{name}");
    }
}

fn start(config: &DaemonConfig) -> Daemon {
    let setup = Setup::new(Export::new(config.keys.iter().map(export_row)));
    let mut settings = String::new();
    if let Some(pepper) = &config.pepper {
        let path = setup.write_secret("pepper", parse_bytes(pepper).expect("bytes"));
        settings += &format!("keys.pepper_file = {path:?}\n");
    }
    settings += &config.config.join("\n");
    let daemon = setup.config(&settings).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

fn export_row(fields: &Map<String, Value>) -> Row {
    let text = |name: &str| fields[name].as_str().expect("a text").to_owned();
    let mut row = row(text("key_id"));
    for column in ["key_hash", "key_id", "limits", "plan", "status", "expires_at"] {
        if fields.contains_key(column) {
            row = row.set(column, text(column));
        }
    }
    row
}

fn play(daemon: &Daemon, sequence: &Sequence) {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut received = Vec::new();
    for (number, step) in sequence.steps.iter().enumerate() {
        let context = format!("step {number} of {}", sequence.name);
        match step {
            Step::Send { send, pieces } => {
                let bytes = parse_bytes(send).expect("bytes");
                for piece in bytes.chunks(pieces.unwrap_or(bytes.len())) {
                    stream.write_all(piece).unwrap_or_else(|error| panic!("{context}: {error}"));
                }
            }
            Step::Receive { receive } => {
                for expected in receive {
                    let response = next_response(&mut stream, &mut received, &context);
                    assert_contains(&response, &Value::Object(expected.clone()), &context);
                }
            }
            Step::ShutDown { shut_down } => {
                assert!(shut_down, "{context}");
                stream.shutdown(Shutdown::Write).expect("connected");
            }
            Step::End { end } => {
                assert!(end, "{context}");
                let rest = stream.read_to_end(&mut received);
                // The daemon has closed the connection with bytes unread.
                let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
                assert!(rest.as_ref().map_or_else(is_reset, |_| true), "{context}: {rest:?}");
                assert!(received.is_empty(), "{context}: {received:?}");
            }
        }
    }
    assert!(received.is_empty(), "{}: {received:?}", sequence.name);
}

fn next_response(stream: &mut UnixStream, received: &mut Vec<u8>, context: &str) -> Value {
    loop {
        if let ParsedFrame::Complete { header, body, size } = parse_frame(received, MAX_ANSWER_LENGTH) {
            let response = to_json(&Response::decode(&header, body).expect("a frame of SPEC.md"));
            received.drain(..size);
            return response;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(read) if read > 0 => received.extend_from_slice(&chunk[..read]),
            other => panic!("{context}: no response: {other:?}"),
        }
    }
}

/// The fields of a response, in the form of the vectors.
fn to_json(response: &Response<'_>) -> Value {
    match response {
        Response::Welcome(welcome) => {
            let Welcome { request_id, version, min_version, max_version, credentials, max_length, .. } =
                welcome;
            json!({
                "kind": "WELCOME", "request_id": request_id, "version": version, "min_version": min_version,
                "max_version": max_version, "credentials": credentials, "max_length": max_length,
            })
        }
        Response::Error(error) => json!({
            "kind": "ERROR", "request_id": error.request_id,
            "flags": if error.closing { vec!["CLOSING"] } else { Vec::new() },
            "code": ErrorCode::from_value(error.code).map_or(json!(error.code), |code| json!(code.name())),
            "detail": error.detail,
        }),
        Response::Answer(answer) => answer_to_json(answer),
    }
}

fn answer_to_json(answer: &Answer<'_>) -> Value {
    let balances = answer.balances.map(|balances| {
        let limit = |limit: keyward_protocol::LimitBalance<'_>| {
            json!({
                "name": limit.name, "kind": limit.kind.name(), "limit": limit.limit, "charged": limit.charged,
                "balance": limit.balance, "reset_ms": limit.reset_ms,
            })
        };
        balances.iter().map(limit).collect::<Vec<_>>()
    });
    let flags = [
        ("METADATA", answer.metadata.is_some()),
        ("SHADOW", answer.shadow_limit.is_some()),
        ("BALANCES", balances.is_some()),
    ];
    let flags: Vec<_> = flags.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect();
    json!({
        "kind": "ANSWER", "request_id": answer.request_id, "flags": flags, "verdict": answer.verdict.name(),
        "limit": answer.limit.limit, "remaining": answer.limit.remaining,
        "retry_after_ms": answer.limit.retry_after_ms, "reset_ms": answer.limit.reset_ms,
        "key_id": answer.key_id, "owner": answer.owner, "environment": answer.environment,
        "plan": answer.plan, "limit_name": answer.limit.name, "metadata": answer.metadata,
        "shadow_limit": answer.shadow_limit, "balances": balances,
    })
}

/// `actual` has all members of `expected`, in objects at any depth.
fn assert_contains(actual: &Value, expected: &Value, context: &str) {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            for (name, expected) in expected {
                let context = format!("{name} in {context}");
                assert_contains(actual.get(name).unwrap_or(&Value::Null), expected, &context);
            }
        }
        (Value::Array(actual), Value::Array(expected)) if actual.len() == expected.len() => {
            actual
                .iter()
                .zip(expected)
                .for_each(|(actual, expected)| assert_contains(actual, expected, context));
        }
        _ => assert_eq!(actual, expected, "{context}"),
    }
}

#[test]
fn names_of_sequences_are_unique() {
    let names: Vec<_> = file().sequences.into_iter().map(|sequence| sequence.name).collect();
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
}
