//! A daemon that may not come up, or whose sockets a test passes to it: a process, killed at the end whatever happens.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Setup, wait_for};

/// SIGHUP, SIGINT and SIGTERM in a mask of signals.
const CAUGHT: u64 = 1 << 0 | 1 << 1 | 1 << 14;

pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("starts"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id() as i32).expect("a pid");
        kill_process(pid, signal).expect("the daemon is there");
    }

    /// Whether it catches signals, as the kernel shows it.
    pub(crate) fn is_catching(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & CAUGHT == CAUGHT)
    }

    pub(crate) fn wait_until_catching(&self) {
        wait_for("the signals' handlers", || self.is_catching().then_some(()));
    }

    /// Waits for its end, and returns its exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        wait_for("the end", || self.0.try_wait().expect("a child")).code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// `keyward serve` with two descriptors as systemd passes them, under `names`.
pub(crate) fn with_sockets(setup: &Setup, sockets: [OwnedFd; 2], names: &str) -> Command {
    let serve = setup.command();
    let [first, second] = sockets;
    let count = names.split(':').count();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "exec 3<&0 4<&1 0</dev/null 1>/dev/null; \
             LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names} exec \"$0\" \"$@\""
        ))
        .arg(serve.get_program())
        .args(serve.get_args());
    command.stdin(Stdio::from(first)).stdout(Stdio::from(second));
    command.stderr(fs::File::create(setup.path("log")).expect("the log"));
    command
}
