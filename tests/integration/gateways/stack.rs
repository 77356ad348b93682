//! The daemon, `keyward http`, a gateway and the upstream, each on sockets of its own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::upstream::Upstream;
use crate::support::http_client::{Response, send};
use crate::support::{Daemon, Export, Process, TIMEOUT, free_port, start_companion};

/// Everything that a request passes.
pub(super) struct Stack {
    pub(super) gateway: Option<Process>,
    pub(super) companion: Process,
    pub(super) daemon: Daemon,
    pub(super) upstream: Upstream,
    /// The port of the gateway.
    pub(super) port: u16,
    directory: TempDir,
}

impl Stack {
    /// Starts everything but the gateway. `listener` makes the gateway's table in http.toml from the
    /// directory of the test; `routes` follow it.
    pub(super) fn start(export: Export, listener: impl FnOnce(&Path) -> String, routes: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        // Gateways give up the privileges of root.
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("sets");
        let daemon = Daemon::serving(export);
        let server = format!("[server]\nkeyward = {:?}\ndeadline = \"5s\"\n\n", daemon.socket());
        let text = format!("{server}{}\n{routes}", listener(directory.path()));
        fs::write(directory.path().join("http.toml"), text).expect("writes");
        let companion = start_companion(directory.path());
        Self { gateway: None, companion, daemon, upstream: Upstream::start(), port: free_port(), directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the gateway, and waits until it lets requests through.
    pub(super) fn start_gateway(&mut self, command: &mut Command) {
        self.gateway = Some(Process::start(command, &self.path("gateway.log")));
        let (port, deadline) = (self.port, Instant::now() + TIMEOUT);
        while TcpStream::connect(("127.0.0.1", port)).is_err() || self.send("GET", "/open", &[]).status != 200
        {
            assert!(Instant::now() < deadline, "the gateway does not serve: {}", self.logs());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a request with these header lines through the gateway.
    pub(super) fn send(&self, method: &str, target: &str, headers: &[&str]) -> Response {
        send(self.port, method, target, headers)
    }

    /// Everything that was written to logs by the gateway and by `keyward http`.
    pub(super) fn logs(&self) -> String {
        let files =
            fs::read_dir(self.directory.path()).expect("reads").map(|entry| entry.expect("an entry").path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| fs::read_to_string(path).expect("reads")).collect()
    }
}

/// The path of a gateway's program. `KEYWARD_GATEWAYS` names the directory that `tests/run` has
/// installed them in; without it, they are looked for in PATH.
pub(super) fn program(name: &str) -> PathBuf {
    std::env::var_os("KEYWARD_GATEWAYS")
        .map_or_else(|| name.into(), |directory| Path::new(&directory).join(name))
}
