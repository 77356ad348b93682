//! The programs under test, run without the caller's `KEYWARD_` settings.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// The outcome of a command that has ended.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    /// The exit code. `None`: a signal ended the process.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> CommandOutput {
    let output = command.output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    CommandOutput { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The `keyward` binary.
pub(crate) fn keyward() -> Command {
    without_settings(env!("CARGO_BIN_EXE_keyward").as_ref())
}

/// The load generator `keyward-bench`. Cargo builds it into the directory of the daemon.
pub(crate) fn keyward_bench() -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_keyward")).with_file_name("keyward-bench");
    assert!(program.exists(), "{} is missing: cargo build -p keyward-loadgen", program.display());
    without_settings(program.as_ref())
}

pub(super) fn without_settings(binary: &OsStr) -> Command {
    let mut command = Command::new(binary);
    for name in ["KEYWARD_CONFIG", "KEYWARD_SOCKET", "KEYWARD_ADMIN_SOCKET", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}
