//! `keyward http`.

use std::fs;
use std::path::Path;

use super::{Process, keyward, wait_until};

/// Starts `keyward http` with the http.toml in `directory`, which gets its log, and waits until it
/// listens.
pub(crate) fn start_companion(directory: &Path) -> Process {
    let log = directory.join("http.log");
    let config = directory.join("http.toml");
    let companion = Process::start(keyward().arg("http").arg("--config").arg(config), &log);
    wait_until("keyward http", || {
        let log = fs::read_to_string(&log).expect("a log");
        assert!(!log.contains("ERROR"), "{log}");
        log.contains("listening")
    });
    companion
}
