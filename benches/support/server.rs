//! Server processes pinned to a processor: the daemon, and an echo that only moves as many bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::pin::Pinned;
use keyward_bench_keys as keys;

/// Environment variable that makes the bench's own program run as the echo.
const ECHO_VARIABLE: &str = "KEYWARD_BENCH_ECHO";

/// How long a server may take to answer. The daemon reads a million keys first.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The most bytes that the echo reads at once: as many as the daemon.
const INPUT_BYTES: usize = 32 * 1024;

/// A running server, killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts the daemon. Its socket, state and log are in `directory`.
    pub(crate) fn daemon(directory: &Path, source: &Path, processor: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        let (socket, state) = (directory.join("keyward.sock"), directory.join("state"));
        fs::create_dir_all(&state).expect("the state directory is created");
        command.arg("serve").arg("--source").arg(source).arg("--socket").arg(&socket);
        command.arg("--state-dir").arg(state);
        Self::start(command, socket, &directory.join("daemon.log"), processor)
    }

    /// Starts the echo, which writes `answer` bytes for every `request` bytes.
    pub(crate) fn echo(directory: &Path, request: usize, answer: usize, processor: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        let socket = directory.join("echo.sock");
        command.env(ECHO_VARIABLE, format!("{request} {answer} {}", socket.display()));
        Self::start(command, socket, &directory.join("echo.log"), processor)
    }

    // A child inherits the affinity of the thread that starts it, and its threads inherit it too.
    fn start(mut command: Command, socket: PathBuf, log: &Path, processor: usize) -> Self {
        let output = File::create(log).expect("the log is created");
        let _pinned = Pinned::to(processor);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn();
        Self { child: child.expect("the server starts"), socket, log: log.into() }
    }

    /// Connects until `ready` returns true for a connection.
    pub(crate) fn connect(
        &mut self,
        mut ready: impl FnMut(&mut UnixStream) -> io::Result<bool>,
    ) -> UnixStream {
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline && self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if let Ok(mut stream) = UnixStream::connect(&self.socket)
                && ready(&mut stream).is_ok_and(|ready| ready)
            {
                return stream;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        panic!("{} does not answer; its log:\n{log}", self.socket.display());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // All of these fail if the server has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Writes an export of the keys `0..count`, each with `limits`.
pub(crate) fn write_export(path: &Path, count: u64, limits: &str) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "key_hash,key_id,owner,environment,plan,limits")?;
    for number in 0..count {
        let hash = const_hex::encode(keys::digest(number));
        let (key_id, owner) = (keys::key_id(number), keys::owner(number));
        writeln!(file, "{hash},{key_id},{owner},live,pro,{limits}")?;
    }
    file.flush()
}

/// Runs as the echo, without returning, if [`Server::echo`] started this process.
pub(crate) fn run_echo_if_requested() {
    let Ok(arguments) = std::env::var(ECHO_VARIABLE) else {
        return;
    };
    let mut arguments = arguments.splitn(3, ' ');
    let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number of bytes");
    let (request, answer): (usize, usize) = (number(), number());
    let listener = UnixListener::bind(arguments.next().expect("a path")).expect("the echo listens");
    for stream in listener.incoming().flatten() {
        // An error means that the client has disconnected.
        let _ = echo(stream, request, answer);
    }
    std::process::exit(0);
}

fn echo(mut stream: UnixStream, request: usize, answer: usize) -> io::Result<()> {
    let mut input = vec![0; INPUT_BYTES];
    let answers = vec![0; (INPUT_BYTES / request + 1) * answer];
    let mut unanswered = 0;
    loop {
        match stream.read(&mut input)? {
            0 => return Ok(()),
            read => unanswered += read,
        }
        stream.write_all(&answers[..unanswered / request * answer])?;
        unanswered %= request;
    }
}
