//! What `keyward http` answers to a scrape.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::stack::Stack;
use super::traffic;
use crate::support::http_client::send;

/// The exposition without an error, and without anything that Prometheus advises against.
fn assert_passes_promtool(stack: &Stack, file: &std::path::Path) -> String {
    let response = send(stack.metrics, "GET", "/metrics", &["Accept: text/plain"]);
    assert_eq!(response.status, 200, "{response:?}");
    fs::write(file, &response.body).expect("writes");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::from(fs::File::open(file).expect("opens")));
    let output = promtool.output().expect("runs");
    let problems = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && problems.trim().is_empty(), "{problems}\n{}", response.body);
    response.body
}

#[test]
#[ignore = "needs Prometheus"]
fn exposition_passes_promtool_with_and_without_the_daemon() {
    let mut stack = Stack::start(traffic::daemon());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("metrics");
    let idle = assert_passes_promtool(&stack, &file);
    // An alert sees the first of these requests only if there was a zero before.
    for series in [
        "keyward_http_failed_open_total{gateway=\"nginx\",route=\"status\"} 0\n",
        "keyward_http_requests_total{gateway=\"nginx\",outcome=\"MISCONFIGURED\"} 0\n",
        "keyward_http_requests_total{gateway=\"nginx\",outcome=\"UNAVAILABLE\"} 0\n",
        "keyward_refused_connections_total{reason=\"limit\"} 0\n",
    ] {
        assert!(idle.contains(series), "{series}: {idle}");
    }
    traffic::send_all(&stack);
    assert_passes_promtool(&stack, &file);
    stack.daemon.signal(Signal::TERM);
    stack.daemon.wait_for_exit();
    let without_daemon = assert_passes_promtool(&stack, &file);
    assert!(without_daemon.contains("\nkeyward_up 0.0\n"), "{without_daemon}");
    assert!(!without_daemon.contains("keyward_ready"), "{without_daemon}");
}
