//! The programs under test, run without the caller's `KEYWARD_` settings.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

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
