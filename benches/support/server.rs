//! Servers in processes of their own, pinned to a processor: the daemon, and an echo that does nothing but move as
//! many bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::keys;
use super::pin::Pinned;

/// Tells the bench's own program to be the echo.
const ECHO: &str = "KEYWARD_BENCH_ECHO";

/// How long a server may take to answer: the daemon has a million keys to read first.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes that the echo reads at once, at most: as many as the daemon.
const INPUT: usize = 32 * 1024;

/// A running server; it ends with this.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// The daemon, with all that it writes in `directory`.
    pub(crate) fn daemon(directory: &Path, source: &Path, processor: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        let (socket, state) = (directory.join("keyward.sock"), directory.join("state"));
        fs::create_dir_all(&state).expect("a directory for state");
        command.arg("serve").arg("--source").arg(source).arg("--socket").arg(&socket);
        command.arg("--state-dir").arg(state);
        Self::start(command, socket, &directory.join("daemon.log"), processor)
    }

    /// The echo: for every `request` bytes, `answer` bytes.
    pub(crate) fn echo(directory: &Path, request: usize, answer: usize, processor: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let socket = directory.join("echo.sock");
        command.env(ECHO, format!("{request} {answer} {}", socket.display()));
        Self::start(command, socket, &directory.join("echo.log"), processor)
    }

    /// A child inherits the processors of the thread that starts it, and passes them on to its own threads.
    fn start(mut command: Command, socket: PathBuf, log: &Path, processor: usize) -> Self {
        let output = File::create(log).expect("a log");
        let _pinned = Pinned::to(processor);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn();
        Self { child: child.expect("the server starts"), socket, log: log.into() }
    }

    /// Calls `ready` with new connections until it says yes.
    pub(crate) fn connect(
        &mut self,
        mut ready: impl FnMut(&mut UnixStream) -> io::Result<bool>,
    ) -> UnixStream {
        let deadline = Instant::now() + PATIENCE;
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
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        let _removed = fs::remove_file(&self.socket);
    }
}

/// Writes an export of the keys `0..count`, each with `limits`.
pub(crate) fn export(path: &Path, count: u64, limits: &str) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "key_hash,key_id,owner,environment,plan,limits")?;
    for number in 0..count {
        let hash = const_hex::encode(keys::digest(number));
        let (key_id, owner) = (keys::key_id(number), keys::owner(number));
        writeln!(file, "{hash},{key_id},{owner},live,pro,{limits}")?;
    }
    file.flush()
}

/// Is the echo, and never returns, if this process was started to be it.
pub(crate) fn be_echo_if_asked() {
    let Ok(asked) = std::env::var(ECHO) else {
        return;
    };
    let mut words = asked.splitn(3, ' ');
    let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number of bytes");
    let (request, answer): (usize, usize) = (number(), number());
    let listener = UnixListener::bind(words.next().expect("a path")).expect("the echo can listen");
    for stream in listener.incoming().flatten() {
        // The peer has gone: wait for the next.
        let _ended = echo(stream, request, answer);
    }
    std::process::exit(0);
}

fn echo(mut stream: UnixStream, request: usize, answer: usize) -> io::Result<()> {
    let mut input = vec![0; INPUT];
    let answers = vec![0; (INPUT / request + 1) * answer];
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
