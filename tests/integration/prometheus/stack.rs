//! A daemon, `keyward http` and a Prometheus that scrapes it.

use std::fs;
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, geteuid};
use serde_json::Value;
use tempfile::TempDir;

use super::server::{Prometheus, read, replace};
use crate::support::http_client::{Response, converse, send};
use crate::support::{Daemon, Process, TIMEOUT, free_port, start_companion, wait_until};

/// `keyward http` with a gateway like nginx, whose route "status" fails open. Few connections, so that a
/// test reaches the limit; a deadline that a busy machine keeps.
const CONFIG: &str = r#"
[server]
keyward = "{verify}"
deadline = "200ms"
max_connections = 10

[metrics]
listen = "127.0.0.1:{metrics}"
admin = "{admin}"

[[gateways]]
name = "nginx"
kind = "nginx"
listen = "127.0.0.1:{gateway}"
request_id = { header = "x-request-id", within = "10s" }

[settlement]
listen = "{settlement}"
uids = [{uid}]

[[routes]]
path = "/open"
access = "open"

[[routes]]
name = "status"
path = "/status"
fail_open = true

[[routes]]
path = "/**"
"#;

/// The socket for settlements.
const SETTLEMENT: &str = "settlement.sock";

/// Everything that a test of metrics needs.
pub(super) struct Stack {
    pub(super) prometheus: Prometheus,
    pub(super) companion: Process,
    pub(super) daemon: Daemon,
    /// Ports of `keyward http`.
    pub(super) gateway: u16,
    pub(super) metrics: u16,
    directory: TempDir,
}

impl Stack {
    /// Starts `keyward http` and Prometheus beside a daemon.
    pub(super) fn start(daemon: Daemon) -> Self {
        let directory = TempDir::new().expect("a directory");
        let [gateway, metrics] = [free_port(), free_port()];
        let config = CONFIG
            .replace("{verify}", daemon.socket().to_str().expect("UTF-8"))
            .replace("{admin}", daemon.admin_socket().to_str().expect("UTF-8"))
            .replace("{gateway}", &gateway.to_string())
            .replace("{settlement}", directory.path().join(SETTLEMENT).to_str().expect("UTF-8"))
            .replace("{uid}", &geteuid().as_raw().to_string())
            .replace("{metrics}", &metrics.to_string());
        fs::write(directory.path().join("http.toml"), config).expect("writes");
        let companion = start_companion(directory.path());
        let prometheus = Prometheus::start(metrics, &rules());
        Self { prometheus, companion, daemon, gateway, metrics, directory }
    }

    /// Stops `keyward http`, and starts it again.
    pub(super) fn restart_companion(&mut self) {
        self.companion.end(Signal::TERM);
        self.companion = start_companion(self.directory.path());
    }

    /// A check of a client's request, as the gateway sends it.
    pub(super) fn check(&self, target: &str, key: &str) -> Response {
        let target = format!("X-Original-URI: {target}");
        let key = format!("Authorization: Bearer {key}");
        send(self.gateway, "GET", "/", &["X-Original-Method: GET", &target, &key])
    }

    /// Reports what a response has cost.
    pub(super) fn settle(&self, path: &str, key: &str) -> Response {
        let socket = UnixStream::connect(self.directory.path().join(SETTLEMENT)).expect("connects");
        socket.set_read_timeout(Some(TIMEOUT)).expect("sets");
        let key = format!("Authorization: Bearer {key}");
        let body = r#"{"cost":1}"#;
        let length = format!("Content-Length: {}", body.len());
        converse(socket, "POST", path, &[&key, "Content-Type: application/json", &length], body)
    }

    /// Waits until the alerts fire. Causes them with `cause` again and again, because Prometheus sees an
    /// increase only between two scrapes.
    #[track_caller]
    pub(super) fn assert_fire(&self, names: &[&str], mut cause: impl FnMut()) {
        let mut firing = Vec::new();
        let name = |alert: &Value| alert["labels"]["alertname"].as_str().expect("a name").to_owned();
        wait_until(&format!("{names:?}"), || {
            cause();
            firing = self.prometheus.firing();
            names.iter().all(|expected| firing.iter().any(|alert| name(alert) == *expected))
        });
        for alert in &firing {
            for (field, text) in alert["annotations"].as_object().expect("annotations") {
                let text = text.as_str().expect("text");
                let is_rendered = !["{{", "<no value>", "<error", "  "].iter().any(|bad| text.contains(bad));
                assert!(is_rendered, "{}: {field}: {text}", name(alert));
            }
        }
    }
}

/// The alerts with a `for` of none, and with ranges and thresholds that a test reaches in seconds.
fn rules() -> String {
    let mut rules = read("alerts.yml");
    for minutes in ["1m", "2m", "5m", "10m"] {
        rules = rules.replace(&format!("for: {minutes}\n"), "for: 0s\n");
    }
    assert!(!rules.contains("m\n        labels:"), "an alert would not fire within seconds");
    rules = rules.replace("[5m]", "[5s]");
    // An answer is never as late, unless the whole machine is.
    rules = replace(
        &rules,
        "(rate(keyward_request_duration_seconds_bucket[5s]))) > 0.005",
        "(rate(keyward_request_duration_seconds_bucket[5s]))) > 0",
        1,
    );
    rules = replace(&rules, "keyward_usage_lag_seconds > 600", "keyward_usage_lag_seconds > 5", 1);
    replace(&rules, "keyward_unwritten_seconds > 60", "keyward_unwritten_seconds > 1", 1)
}
