//! A Prometheus process with a directory of its own, and its HTTP API.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::http_client::send;
use crate::support::{Process, free_port, wait_until};

/// Interval of scrapes, and of evaluations of the rules.
const INTERVAL: &str = "500ms";

/// A file of `systemd/prometheus`.
pub(super) fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/prometheus").join(name);
    fs::read_to_string(path).expect("a file of the repository")
}

/// Replaces `old`, which has to be there `count` times.
pub(super) fn replace(text: &str, old: &str, new: &str, count: usize) -> String {
    assert_eq!(text.matches(old).count(), count, "{old:?}");
    text.replace(old, new)
}

/// A Prometheus. It is stopped when it is dropped.
pub(super) struct Prometheus {
    port: u16,
    _process: Process,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts a Prometheus with prometheus.yml as it stands, apart from the port of the target and the
    /// intervals. Waits until it has scraped.
    pub(super) fn start(target: u16, rules: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let config =
            replace(&read("prometheus.yml"), "\"127.0.0.1:9181\"]", &format!("\"127.0.0.1:{target}\"]"), 1);
        fs::write(path("prometheus.yml"), replace(&config, ": 15s", &format!(": {INTERVAL}"), 2))
            .expect("writes");
        fs::write(path("alerts.yml"), rules).expect("writes");

        let port = free_port();
        let mut command = Command::new("prometheus");
        command.arg("--config.file").arg(path("prometheus.yml"));
        command.arg("--storage.tsdb.path").arg(path("data"));
        command.arg("--web.listen-address").arg(format!("127.0.0.1:{port}"));
        let log = path("prometheus.log");
        let process = Process::start(&mut command, &log);
        wait_until("Prometheus", || {
            let log = fs::read_to_string(&log).expect("a log");
            assert!(!log.contains("level=error"), "{log}");
            log.contains("Server is ready to receive web requests")
        });
        let prometheus = Self { port, _process: process, _directory: directory };
        wait_until("the first scrape", || prometheus.value("up").is_some());
        prometheus
    }

    /// The `data` of the API's answer.
    fn get(&self, target: &str) -> Value {
        let response = send(self.port, "GET", target, &[]);
        let mut answer: Value = serde_json::from_str(&response.body)
            .unwrap_or_else(|error| panic!("{target}: {error}: {response:?}"));
        assert_eq!(answer["status"], "success", "{target}: {answer}");
        answer["data"].take()
    }

    /// The series of an instant query: each has a `metric` and a `value`.
    pub(super) fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = expression
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        match self.get(&format!("/api/v1/query?query={encoded}"))["result"].take() {
            Value::Array(series) => series,
            other => panic!("{expression}: {other}"),
        }
    }

    /// The value of the only series of an expression. `None`: there is none.
    pub(super) fn value(&self, expression: &str) -> Option<f64> {
        let series = self.query(expression);
        assert!(series.len() < 2, "{expression}: {series:?}");
        let text = series.first()?["value"][1].as_str().expect("a value").parse();
        Some(text.expect("a number"))
    }

    /// The alerts that are firing.
    pub(super) fn firing(&self) -> Vec<Value> {
        let mut alerts = match self.get("/api/v1/alerts")["alerts"].take() {
            Value::Array(alerts) => alerts,
            other => panic!("{other}"),
        };
        alerts.retain(|alert| alert["state"] == "firing");
        alerts
    }
}
