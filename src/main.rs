//! The `keyward` command: arguments in, exit code out.

fn main() {}
