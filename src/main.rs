//! The `keyward` command: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyward::cli::run(std::env::args_os()).into()
}
