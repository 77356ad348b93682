//! Other programs that tests start, and the ports that they listen on.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A process that is stopped when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a program whose output goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::create(log).expect("creates");
        let error_log = log.try_clone().expect("a descriptor");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(error_log).spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends the process with `signal`, and waits.
    pub(crate) fn end(&mut self, signal: Signal) {
        if self.0.try_wait().expect("its state").is_none() {
            kill_process(Pid::from_child(&self.0), signal).expect("signals");
            self.0.wait().expect("its end");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Signal::TERM);
    }
}

/// A TCP port that is free at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    listener.local_addr().expect("an address").port()
}
