//! `keyward serve` as a plain process, for daemons that may not start or that inherit sockets.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Setup, wait_for, wait_until};

/// Bits of SIGHUP, SIGINT and SIGTERM in a signal mask.
const HANDLED_SIGNALS: u64 = 1 << 0 | 1 << 1 | 1 << 14;

/// Whether a process has installed its signal handlers.
pub(crate) fn handles_signals(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & HANDLED_SIGNALS == HANDLED_SIGNALS)
}

/// A process. It is killed when it is dropped.
pub(crate) struct ServeProcess(Child);

impl ServeProcess {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("starts"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id() as i32).expect("a pid");
        kill_process(pid, signal).expect("the daemon runs");
    }

    pub(crate) fn handles_signals(&self) -> bool {
        handles_signals(self.0.id())
    }

    pub(crate) fn wait_for_signal_handlers(&self) {
        wait_until("the signal handlers", || self.handles_signals());
    }

    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        wait_for("the process to exit", || self.0.try_wait().expect("a child"))
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        // Fails only if the process has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `keyward serve` with two descriptors passed as systemd passes them, under `names`.
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
