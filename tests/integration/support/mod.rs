//! A real daemon for a test: started on sockets of its own, in the mode of this run, killed at the end whatever happens.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use keyward_client::blocking::Client;
use keyward_client::{Options, Request};
use keyward_daemon::admin::message::{Command as AdminCommand, Reload, Status};
use keyward_protocol::{Answer, MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) mod bad_rows;
pub(crate) mod loader;
pub(crate) mod memory;
pub(crate) mod mode;
pub(crate) mod process;

use mode::Mode;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long the daemon may take to answer a command: a reload of a large export takes a while on a busy machine.
const ANSWER: Duration = Duration::from_secs(60);

/// Waits until `ready` says so.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// SHA-256 in hex, as an export has it.
pub(crate) fn hex(key: &str) -> String {
    const_hex::encode(Sha256::digest(key))
}

/// What a daemon is started with.
pub(crate) struct Setup {
    pub(crate) dir: TempDir,
    config: String,
    mode: Mode,
    state_dir: Option<PathBuf>,
}

impl Setup {
    /// A directory of its own, and an export in it.
    pub(crate) fn new(export: &str) -> Self {
        let setup = Self::without_export();
        setup.export(export);
        setup
    }

    /// The same for a test that is about exports as text: never compiled.
    pub(crate) fn text(export: &str) -> Self {
        let setup = Self::without_export().with_text();
        setup.export(export);
        setup
    }

    /// The same for a test that is about compiled exports, in every mode.
    pub(crate) fn compiled(export: &str) -> Self {
        let mut setup = Self::without_export();
        setup.mode.compiled = true;
        setup.export(export);
        setup
    }

    pub(crate) fn without_export() -> Self {
        let dir = TempDir::new().expect("a directory");
        Self { dir, config: String::new(), mode: Mode::current().clone(), state_dir: None }
    }

    pub(crate) fn with_text(mut self) -> Self {
        self.mode.compiled = false;
        self
    }

    /// Writes the export, over what there is.
    pub(crate) fn export(&self, export: &str) {
        fs::write(self.source(), mode::form(&self.source(), export)).expect("the export");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the export is, as text or compiled: [`mode::form`] makes the one or the other of it.
    pub(crate) fn source(&self) -> PathBuf {
        self.path(if self.mode.compiled { "keys.kwc" } else { "keys.csv" })
    }

    /// A state directory elsewhere than beside the export.
    pub(crate) fn state_dir(mut self, path: &Path) -> Self {
        self.state_dir = Some(path.to_owned());
        self
    }

    /// Lines of the configuration file.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config += text;
        self.config.push('\n');
        self
    }

    /// Others instead of these; they count from the next start on.
    pub(crate) fn reconfigure(&mut self, text: &str) {
        self.config = text.to_owned();
    }

    /// `keyward serve`, not started yet.
    pub(crate) fn command(&self) -> Command {
        self.command_of(None)
    }

    /// The same with another binary.
    pub(crate) fn command_of(&self, binary: Option<&OsStr>) -> Command {
        let config = self.path("keyward.toml");
        fs::write(&config, self.mode.configure(&self.config)).expect("the configuration");
        let mut command = binary.map_or_else(keyward, isolated);
        command.arg("serve").arg("--config").arg(config);
        if !self.config.contains("source.path") {
            command.arg("--source").arg(self.source());
        }
        command.arg("--socket").arg(self.path("keyward.sock")).arg("--state-dir");
        command.arg(self.state_dir.as_deref().unwrap_or(self.dir.path()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(self.path("log")).expect("the log");
        command.stderr(log);
        command
    }

    /// Starts the daemon and waits until it has tried to load its source.
    pub(crate) fn start(self) -> Daemon {
        let command = self.command();
        self.start_as(command)
    }

    /// The same by a command of the test's own.
    pub(crate) fn start_as(self, mut command: Command) -> Daemon {
        let child = command.stdin(Stdio::null()).spawn().expect("the daemon starts");
        let mut daemon = Daemon { child: Some(child), setup: self };
        daemon.wait_until_loaded();
        daemon
    }
}

/// The `keyward` binary; no settings of the caller's reach it.
pub(crate) fn keyward() -> Command {
    isolated(env!("CARGO_BIN_EXE_keyward").as_ref())
}

/// A command of the load generator, which cargo builds beside the daemon.
pub(crate) fn keyward_bench() -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_keyward")).with_file_name("keyward-bench");
    assert!(program.exists(), "{} is missing: cargo build -p keyward-loadgen", program.display());
    isolated(program.as_ref())
}

fn isolated(binary: &OsStr) -> Command {
    let mut command = Command::new(binary);
    for name in ["KEYWARD_CONFIG", "KEYWARD_SOCKET", "KEYWARD_ADMIN_SOCKET", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Option<Child>,
    pub(crate) setup: Setup,
}

impl Daemon {
    /// One that serves `export`.
    pub(crate) fn serving(export: &str) -> Self {
        Self::ready(Setup::new(export))
    }

    /// The same for a test that is about exports as text.
    pub(crate) fn serving_text(export: &str) -> Self {
        Self::ready(Setup::text(export))
    }

    fn ready(setup: Setup) -> Self {
        let daemon = setup.start();
        assert!(daemon.status().ready, "{}", daemon.log());
        daemon
    }

    fn wait_until_loaded(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self
            .ask(&AdminCommand::Status)
            .is_none_or(|reply| reply.status.is_none_or(|status| status.last_reload.is_none()))
        {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the daemon does not come up: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn ask(&self, command: &AdminCommand) -> Option<keyward_daemon::admin::message::Reply> {
        keyward_daemon::admin::send_command_within(&self.admin(), command, ANSWER).ok()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.setup.path("keyward.sock")
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.setup.path("admin.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// The log has this text. It is written by a thread of its own, and can be behind what the daemon does.
    pub(crate) fn assert_logged(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "the log does not have {text:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.setup.path("log")).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> Status {
        self.ask(&AdminCommand::Status).and_then(|reply| reply.status).expect("a status")
    }

    /// The same of one that may not be there yet.
    pub(crate) fn status_if_any(&self) -> Option<Status> {
        self.ask(&AdminCommand::Status).and_then(|reply| reply.status)
    }

    pub(crate) fn reload(&self) -> Reload {
        self.ask(&AdminCommand::Reload { force: false }).and_then(|reply| reply.reload).expect("an outcome")
    }

    pub(crate) fn force_reload(&self) -> Reload {
        self.ask(&AdminCommand::Reload { force: true }).and_then(|reply| reply.reload).expect("an outcome")
    }

    /// Replaces the export by rename, and waits until the daemon has it.
    pub(crate) fn publish(&self, export: &str) -> Reload {
        replace(&self.setup.source(), export);
        self.reload()
    }

    /// A client that is patient: a loaded machine is not what is being tested.
    pub(crate) fn client(&self) -> Client {
        Client::with_options(Options::new(self.socket()).deadline(PATIENCE))
    }

    pub(crate) fn verdict(&self, key: &str) -> String {
        let decision = self.client().verify(&Request::new(key)).expect("an answer");
        decision.verdict().name().to_owned()
    }

    pub(crate) fn connect(&self) -> Raw {
        Raw::connect(&self.socket())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("the daemon is there");
    }

    /// Stops every thread of it where it is, and waits until they stand: one that is running goes on until the signal has
    /// reached its processor.
    pub(crate) fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        let stands = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state comes after the name, which is in brackets.
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        wait_for("all threads to stop", || {
            let mut threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("threads").flatten();
            threads.all(stands).then_some(())
        });
    }

    /// Has it go on from there.
    pub(crate) fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Waits for the daemon's end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("running");
        let status = wait_for("the daemon's end", || child.try_wait().expect("a child"));
        self.child = None;
        status
    }

    /// kill -9, and a new start in the same place.
    pub(crate) fn restart(self) -> Self {
        let mut daemon = self.start_again();
        daemon.wait_until_loaded();
        daemon
    }

    /// The same by a command of the test's own.
    pub(crate) fn restart_as(mut self, mut command: Command) -> Self {
        self.kill();
        self.child = Some(command.stdin(Stdio::null()).spawn().expect("the daemon starts"));
        self.wait_until_loaded();
        self
    }

    /// The same for one that may refuse to start.
    pub(crate) fn start_again(mut self) -> Self {
        self.kill();
        self.child = Some(self.setup.command().spawn().expect("the daemon starts"));
        self
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _already_gone = child.kill();
            let _reaped = child.wait();
        }
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The most that was, in bytes.
    pub(crate) fn peak(&self) -> usize {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a line");
        line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Replaces an export by writing another beside it and renaming it.
pub(crate) fn replace(path: &Path, export: &str) {
    let new = path.with_extension("new");
    fs::write(&new, mode::form(path, export)).expect("a new file");
    fs::rename(&new, path).expect("renamed");
}

/// A connection that says exactly what it is told to.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    buffer: Vec<u8>,
}

/// What a daemon said, in a form that a test can compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Welcome { request_id: u32 },
    Answer { request_id: u32, verdict: &'static str, generation: u64 },
    Error { request_id: u32, code: u8, detail: u32, closing: bool },
    End,
}

impl Said {
    fn new(response: Response<'_>) -> Self {
        match response {
            Response::Welcome(welcome) => Self::Welcome { request_id: welcome.request_id },
            Response::Error(error) => Self::Error {
                request_id: error.request_id,
                code: error.code,
                detail: error.detail,
                closing: error.closing,
            },
            Response::Answer(answer) => Self::Answer {
                request_id: answer.request_id,
                verdict: answer.verdict.name(),
                generation: answer.generation,
            },
        }
    }
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the daemon reads");
    }

    /// Sends `frame` again and again until the daemon reads no more, because it has answers for which there is no room: how many
    /// whole frames that were. A daemon that merely has no processor at the moment is waited for, as long as [`PATIENCE`].
    pub(crate) fn flood(&mut self, frame: &[u8]) -> usize {
        /// How often nothing may happen, for a tenth of a second each time.
        const STANDSTILL: usize = 3;
        let frames = frame.repeat(500);
        self.stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let (mut sent, mut unread, mut stands) = (0, 0, 0);
        let mut moved = Instant::now();
        while stands < STANDSTILL {
            match self.stream.write(&frames[sent % frames.len()..]) {
                Ok(written) => {
                    sent += written;
                    (stands, moved) = (0, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let before = std::mem::replace(
                        &mut unread,
                        rustix::io::ioctl_fionread(&self.stream).expect("a socket"),
                    );
                    stands = if unread > 0 && unread == before { stands + 1 } else { 0 };
                    assert!(moved.elapsed() < PATIENCE, "the daemon neither reads nor answers");
                }
                // It was given up meanwhile.
                Err(_) => break,
            }
            assert!(sent < 512 << 20, "the daemon reads on although its answers are not read");
        }
        self.stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        sent / frame.len()
    }

    /// Everything up to the end of a connection that the daemon gives up: it may cut the last frame short.
    pub(crate) fn hear_to_the_end(&mut self) -> Vec<Said> {
        let mut bytes = std::mem::take(&mut self.buffer);
        let end = self.stream.read_to_end(&mut bytes);
        let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(end.as_ref().map_or_else(is_reset, |_| true), "no end: {end:?}");
        let mut said = Vec::new();
        while let ParsedFrame::Complete { header, body, size } = parse_frame(&bytes, MAX_ANSWER_LENGTH) {
            said.push(Said::new(Response::decode(&header, body).expect("a frame of SPEC.md")));
            bytes.drain(..size);
        }
        said
    }

    /// The next frame, or the end of the stream.
    pub(crate) fn hear(&mut self) -> Said {
        self.hear_with(|_| ())
    }

    pub(crate) fn hear_with(&mut self, see: impl FnOnce(&Answer<'_>)) -> Said {
        loop {
            match parse_frame(&self.buffer, MAX_ANSWER_LENGTH) {
                ParsedFrame::Complete { header, body, size } => {
                    let response = Response::decode(&header, body).expect("a frame of SPEC.md");
                    if let Response::Answer(answer) = &response {
                        see(answer);
                    }
                    let said = Said::new(response);
                    self.buffer.drain(..size);
                    return said;
                }
                ParsedFrame::Invalid(fault) => panic!("the daemon broke the protocol: {fault}"),
                ParsedFrame::Incomplete => {}
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "the stream ended inside a frame");
                    return Said::End;
                }
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Said::End,
                Err(error) => panic!("the daemon does not answer: {error}"),
            }
        }
    }
}

/// The frame of an ordinary VERIFY.
pub(crate) fn ask(request_id: u32, key: &str) -> Vec<u8> {
    let digest = Sha256::digest(key).into();
    let mut frame = Vec::new();
    let verify = keyward_protocol::Verify::new(request_id, keyward_protocol::Credential::Digest(digest));
    verify.encode(&mut frame).expect("within all limits");
    frame
}
