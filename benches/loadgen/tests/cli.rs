//! The binary as a user starts it. `tests/integration/bench.rs` of the workspace runs it against a
//! daemon.

#![allow(clippy::expect_used, reason = "a test may panic")]

use std::process::Command;

#[test]
fn help_shows_an_example() {
    let output = Command::new(env!("CARGO_BIN_EXE_keyward-bench")).arg("--help").output().expect("it runs");
    assert!(output.status.success());
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("Examples:") && help.contains("keyward-bench --digests keys.csv"), "{help}");
}

#[test]
fn wrong_option_exits_with_2() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_keyward-bench")).arg("--no-such-option").output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
}
