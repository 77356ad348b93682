//! A gateway repeats checks, and states an id of the request: it is charged once.

use std::fs;

use tempfile::TempDir;

use crate::support::http_client::{Response, send};
use crate::support::{Daemon, Export, Process, free_port, key_target, row, start_companion};

/// A daemon whose keys have a daily quota of 3, and `keyward http`.
struct Stack {
    daemon: Daemon,
    _companion: Process,
    port: u16,
    metrics: u16,
    _directory: TempDir,
}

impl Stack {
    /// `settings` are added to the table of the gateway.
    fn start(settings: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        let [port, metrics] = [free_port(), free_port()];
        let keys = ["a", "b"].map(|key| row(key).id(key).limits("requests=3/day"));
        let daemon = Daemon::serving(Export::new(keys));
        let config = format!(
            "server = {{ keyward = {:?}, deadline = \"5s\", workers = 2 }}\n\
             metrics = {{ listen = \"127.0.0.1:{metrics}\" }}\n\
             [[gateways]]\nname = \"g\"\nkind = \"traefik\"\nlisten = \"127.0.0.1:{port}\"\n{settings}",
            daemon.socket()
        );
        fs::write(directory.path().join("http.toml"), config).expect("writes");
        let companion = start_companion(directory.path());
        Self { daemon, _companion: companion, port, metrics, _directory: directory }
    }

    /// Checks a request of `key` with this id. Returns the status, and what is left of the quota.
    fn check(&self, key: &str, id: &str) -> (u16, Option<u64>) {
        let response = self.send(key, &[&format!("X-Request-Id: {id}")]);
        let state = response.header("ratelimit").map(str::to_owned);
        let left = state.and_then(|state| {
            let (_, after) = state.split_once("r=")?;
            after.split(';').next()?.parse().ok()
        });
        (response.status, left)
    }

    fn send(&self, key: &str, more: &[&str]) -> Response {
        let key = format!("X-API-Key: {key}");
        let headers = ["X-Forwarded-Method: GET", "X-Forwarded-Uri: /", &key];
        send(self.port, "GET", "/", &[&headers[..], more].concat())
    }
}

#[test]
fn repeated_check_is_charged_once_and_decided_anew() {
    let stack = Stack::start("request_id = { header = \"x-request-id\" }");
    for _ in 0..5 {
        assert_eq!(stack.check("a", "one"), (200, Some(2)));
    }
    assert_eq!(stack.check("a", "two"), (200, Some(1)));
    assert_eq!(stack.check("b", "one"), (200, Some(2)), "of another key");
    // The last of the quota: what was charged may be repeated, and nothing else is admitted.
    assert_eq!(stack.check("a", "three"), (200, Some(0)));
    assert_eq!(stack.check("a", "four").0, 429);
    assert_eq!(stack.check("a", "three"), (200, Some(0)));
    assert_eq!(stack.check("a", "four").0, 429, "a denied check is not remembered");
    // Without an id, or with two, each check is charged.
    let headers = ["X-Request-Id: one", "X-Request-Id: one"];
    for more in [&headers[..], &[]] {
        assert_eq!(stack.send("b", more).status, 200);
    }
    assert_eq!(stack.check("b", "five").0, 429);
    stack.daemon.revoke(key_target("a"));
    assert_eq!(stack.check("a", "one").0, 401, "the key was revoked in the meantime");
    let exposition = send(stack.metrics, "GET", "/metrics", &[]).body;
    // "one" four times, "three" once, and "one" of the key that was revoked.
    for line in [
        "keyward_http_repeated_checks_total{gateway=\"g\"} 6",
        "keyward_http_unremembered_checks_total{gateway=\"g\"} 0",
    ] {
        assert!(exposition.lines().any(|exposed| exposed == line), "{exposition}");
    }
}

#[test]
fn without_the_setting_every_check_is_charged() {
    let stack = Stack::start("");
    for left in [2, 1, 0] {
        assert_eq!(stack.check("a", "one"), (200, Some(left)));
    }
    assert_eq!(stack.check("a", "one").0, 429);
}
