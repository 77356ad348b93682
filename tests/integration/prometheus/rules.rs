//! The rules and the configuration, as `promtool` sees them.

use std::path::Path;
use std::process::Command;

use crate::support::run;

/// Runs `promtool ARGUMENTS FILE`.
fn promtool(arguments: &[&str], file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let output = run(Command::new("promtool").args(arguments).arg(path));
    assert_eq!(output.code, Some(0), "{output:?}");
}

#[test]
#[ignore = "needs Prometheus"]
fn rules_and_configuration_are_valid() {
    promtool(&["check", "rules"], "systemd/prometheus/alerts.yml");
    promtool(&["check", "config"], "systemd/prometheus/prometheus.yml");
}

#[test]
#[ignore = "needs Prometheus"]
fn alerts_fire_beyond_their_thresholds_and_not_before() {
    promtool(&["test", "rules"], "tests/integration/prometheus/alerts.test.yml");
}
