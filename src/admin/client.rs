//! The command line's side of the admin socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::admin::message::{Command, Reply};

/// How long the daemon may take to answer. A reload of tens of millions of keys takes a while; one that takes this long
/// has died.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers at the socket.
    #[error("cannot reach the daemon at {path}: {error}{}", advice(error))]
    Unreachable {
        /// The socket.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// The connection broke.
    #[error("the daemon at {path} did not answer: {error}")]
    Broken {
        /// The socket.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// The deadline passed first.
    #[error("the daemon at {path} did not answer within {within:?}")]
    Late {
        /// The socket.
        path: String,
        /// How long it had.
        within: Duration,
    },
    /// Whoever answers does not speak JSON.
    #[error(
        "what answers at {path} is no admin socket: is this the request socket? status and reload need the admin socket"
    )]
    Foreign {
        /// The socket.
        path: String,
    },
    /// The daemon will not.
    #[error("{0}")]
    Refused(String),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "; this user may not open it",
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => "; is the daemon running?",
        _ => "",
    }
}

/// Asks the daemon at the admin socket `path`, and waits for its answer for as long as a reload may take.
///
/// # Errors
/// When there is no daemon, it does not answer, or it says that it will not.
pub fn ask(path: &Path, command: &Command) -> Result<Reply, AskError> {
    ask_within(path, command, PATIENCE)
}

/// As [`ask`], but connecting, asking and answering may not take longer than `within`.
///
/// # Errors
/// As [`ask`], and when the time is up.
pub fn ask_within(path: &Path, command: &Command, within: Duration) -> Result<Reply, AskError> {
    let named = || path.display().to_string();
    let late = |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let start = Instant::now();
    let stream = match open(path, within) {
        Err(error) if late(&error) => return Err(AskError::Late { path: named(), within }),
        opened => opened.map_err(|error| AskError::Unreachable { path: named(), error })?,
    };
    let answer = match exchange(&mut Timed { stream, start, within }, command) {
        Err(error) if late(&error) => return Err(AskError::Late { path: named(), within }),
        exchanged => exchanged.map_err(|error| AskError::Broken { path: named(), error })?,
    };
    let reply: Reply = match serde_json::from_slice(&answer) {
        Err(error) if error.is_syntax() => return Err(AskError::Foreign { path: named() }),
        parsed => parsed.map_err(|error| AskError::Broken { path: named(), error: error.into() })?,
    };
    match reply.error {
        Some(error) if !reply.ok => Err(AskError::Refused(error)),
        _ => Ok(reply),
    }
}

/// Connects. The time to send also bounds the wait for a place in the backlog of a daemon that accepts nothing.
fn open(path: &Path, within: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(within))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A stream that is read and written only until the time is up.
struct Timed {
    stream: UnixStream,
    start: Instant,
    within: Duration,
}

impl Timed {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let left = self.within.saturating_sub(self.start.elapsed());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.remaining()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.remaining()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Asks, and returns what comes back until the end of the line or of the connection.
fn exchange(stream: &mut Timed, command: &Command) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // A daemon that refuses this user says so without being asked, and hangs up.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        sent => sent?,
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"\n") {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It hung up without reading all that it was sent.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    match answer.is_empty() {
        true => Err(ErrorKind::UnexpectedEof.into()),
        false => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_stopped_daemon_is_given_up_on_even_with_a_full_backlog() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        rustix::net::listen(&listener, 0).expect("listens");
        let within = Duration::from_millis(50);
        for _ in 0..3 {
            let error = ask_within(&path, &Command::Status, within).expect_err("stopped");
            assert!(matches!(error, AskError::Late { .. }), "{error}");
        }
        drop(listener);
        let error = ask_within(&path, &Command::Status, within).expect_err("gone");
        assert!(error.to_string().ends_with("; is the daemon running?"), "{error}");
    }

    #[test]
    fn another_socket_is_recognised() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            stream.write_all(&[40, 0, 0, 0, 255]).expect("writes");
        });
        let error = ask(&path, &Command::Status).expect_err("no admin socket");
        assert!(error.to_string().contains("is this the request socket?"), "{error}");
        daemon.join().expect("ends");
    }

    #[test]
    fn a_socket_of_another_user_is_no_daemon_that_is_down() {
        let denied =
            AskError::Unreachable { path: "p".to_owned(), error: ErrorKind::PermissionDenied.into() };
        assert!(denied.to_string().ends_with("; this user may not open it"), "{denied}");
    }
}
