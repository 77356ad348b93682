//! A running daemon: its sockets, signals, status and end.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use keyward_admin::message::{Command as AdminCommand, Reload, Reply, Revocation, Status, Target};
use keyward_admin::{CommandError, send_command_within};
use keyward_client::blocking::Client;
use keyward_client::{Options, Request};
use rustix::process::{Pid, Signal, kill_process};

use super::programs::{CommandOutput, keyward, run};
use super::raw_client::RawClient;
use super::setup::{Setup, replace_export};
use super::wait::{TIMEOUT, wait_for, wait_until};

/// How long a command may take: a reload of a large export is slow on a busy machine.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon process. It is killed when it is dropped.
pub(crate) struct Daemon {
    child: Option<Child>,
    pub(crate) setup: Setup,
}

impl Daemon {
    /// Starts a daemon that serves `export`.
    pub(crate) fn serving(export: impl Into<String>) -> Self {
        Self::start_ready(Setup::new(export))
    }

    /// As [`Daemon::serving`], for tests of text exports: never compiled.
    pub(crate) fn serving_text(export: impl Into<String>) -> Self {
        Self::start_ready(Setup::text(export))
    }

    fn start_ready(setup: Setup) -> Self {
        let daemon = setup.start();
        assert!(daemon.status().ready, "{}", daemon.log());
        daemon
    }

    pub(super) fn spawn(setup: Setup, mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn().expect("the daemon starts");
        let mut daemon = Self { child: Some(child), setup };
        daemon.wait_until_loaded();
        daemon
    }

    fn wait_until_loaded(&mut self) {
        wait_until("the first load", || {
            let exited = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(exited.is_none(), "the daemon exited: {}", self.log());
            self.try_status().is_some_and(|status| status.last_reload.is_some())
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.setup.path("keyward.sock")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.setup.path("admin.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.setup.path("log")).unwrap_or_default()
    }

    /// Waits until the log contains `text`: a thread of its own writes the log.
    #[track_caller]
    pub(crate) fn assert_logged(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.log().contains(text));
    }

    pub(crate) fn send_command(&self, command: &AdminCommand) -> Result<Reply, CommandError> {
        send_command_within(&self.admin_socket(), command, COMMAND_TIMEOUT)
    }

    /// Runs `keyward ARGUMENTS` with the admin socket of this daemon, in its directory.
    pub(crate) fn run_keyward(&self, arguments: &[&str]) -> CommandOutput {
        let mut command = keyward();
        command.args(arguments).arg("--admin-socket").arg(self.admin_socket());
        run(command.current_dir(self.setup.dir.path()))
    }

    pub(crate) fn status(&self) -> Status {
        self.try_status().expect("a status")
    }

    /// The status, or `None` if the daemon does not answer.
    pub(crate) fn try_status(&self) -> Option<Status> {
        self.send_command(&AdminCommand::Status).ok()?.status
    }

    pub(crate) fn reload(&self) -> Reload {
        self.send_command(&AdminCommand::Reload { force: false })
            .expect("a reply")
            .reload
            .expect("an outcome")
    }

    pub(crate) fn force_reload(&self) -> Reload {
        self.send_command(&AdminCommand::Reload { force: true }).expect("a reply").reload.expect("an outcome")
    }

    /// Replaces the export atomically and reloads it.
    pub(crate) fn publish(&self, export: impl Into<String>) -> Reload {
        replace_export(&self.setup.source(), export);
        self.reload()
    }

    /// Overwrites the source with text that every reload refuses.
    pub(crate) fn spoil_source(&self) {
        fs::write(self.setup.source(), "nonsense\n").expect("writes");
    }

    /// Waits until the keys in force are saved as the last good keys.
    pub(crate) fn wait_until_saved(&self) {
        wait_until("the keys in force to be saved", || {
            let status = self.status();
            status.last_good.is_some_and(|saved| saved.generation == status.table_generation)
        });
    }

    pub(crate) fn revoke(&self, target: Target) -> Revocation {
        self.send_command(&AdminCommand::Revoke(target)).expect("a reply").revocation.expect("a revocation")
    }

    pub(crate) fn unrevoke(&self, target: Target) -> Revocation {
        self.send_command(&AdminCommand::Unrevoke(target)).expect("a reply").revocation.expect("a revocation")
    }

    /// A client whose deadline a busy machine does not miss.
    pub(crate) fn client(&self) -> Client {
        Client::with_options(Options::new(self.socket()).deadline(TIMEOUT))
    }

    /// The verdict on a raw key.
    pub(crate) fn verdict(&self, key: &str) -> String {
        let decision = self.client().verify(&Request::new(key)).expect("an answer");
        decision.verdict().name().to_owned()
    }

    pub(crate) fn verdicts<const N: usize>(&self, keys: [&str; N]) -> [String; N] {
        keys.map(|key| self.verdict(key))
    }

    pub(crate) fn connect(&self) -> RawClient {
        RawClient::connect(&self.socket())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a pid");
        kill_process(pid, signal).expect("the daemon runs");
    }

    /// Stops every thread, and waits until all of them have stopped: a running thread continues
    /// until the signal has reached its processor.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let is_stopped = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in parentheses.
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        wait_until("all threads to stop", || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("threads");
            threads.flatten().all(is_stopped)
        });
    }

    /// Continues a paused daemon.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("running");
        let status = wait_for("the daemon to exit", || child.try_wait().expect("a child"));
        self.child = None;
        status
    }

    /// Stops the daemon with SIGTERM, in order, so that it saves.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert!(self.wait_for_exit().success(), "{}", self.log());
    }

    /// Stops the daemon with SIGTERM and starts it again in the same place.
    pub(crate) fn stop_and_restart(mut self) -> Self {
        self.stop();
        self.kill_and_restart()
    }

    /// Kills the daemon with SIGKILL and starts it again in the same place.
    pub(crate) fn kill_and_restart(self) -> Self {
        let mut daemon = self.respawn();
        daemon.wait_until_loaded();
        daemon
    }

    /// As [`Daemon::kill_and_restart`], with a command of the test's own.
    pub(crate) fn kill_and_restart_with(mut self, mut command: Command) -> Self {
        self.kill();
        self.child = Some(command.stdin(Stdio::null()).spawn().expect("the daemon starts"));
        self.wait_until_loaded();
        self
    }

    /// As [`Daemon::kill_and_restart`], for a daemon that may refuse to start: does not wait.
    pub(crate) fn respawn(mut self) -> Self {
        self.kill();
        self.child = Some(self.setup.command().spawn().expect("the daemon starts"));
        self
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only if the daemon has exited already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Resident memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        self.memory_bytes("VmRSS:")
    }

    /// The largest resident memory so far.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.memory_bytes("VmHWM:")
    }

    /// User and system time of the process, in clock ticks: hundredths of a second.
    pub(crate) fn processor_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("a process");
        // The name, in parentheses, is field 2; utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    fn memory_bytes(&self, field: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a line");
        line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All rows with a key id, as the target of a revocation.
pub(crate) fn key_target(key_id: &str) -> Target {
    Target { key_id: Some(key_id.to_owned()), owner: None }
}

/// All rows of an owner, as the target of a revocation.
pub(crate) fn owner_target(owner: &str) -> Target {
    Target { key_id: None, owner: Some(owner.to_owned()) }
}
