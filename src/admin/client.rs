//! Sends a command, and waits for the answer.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::message::{Command, Reply};

/// How long the daemon may take to answer by default. A reload of tens of millions of keys takes a
/// while, but not this long.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Connecting failed.
    #[error("cannot reach the daemon at {path}: {source}{}", hint(source))]
    Unreachable {
        /// The socket.
        path: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The connection failed before the answer was complete.
    #[error("the daemon at {path} did not answer: {source}")]
    Broken {
        /// The socket.
        path: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The time limit was exceeded.
    #[error("the daemon at {path} did not answer within {limit:?}")]
    Timeout {
        /// The socket.
        path: String,
        /// The time limit.
        limit: Duration,
    },
    /// The answer is not JSON.
    #[error(
        "{path} is not an admin socket: is this the request socket? status and reload need the admin socket"
    )]
    NotAdminSocket {
        /// The socket.
        path: String,
    },
    /// The daemon refused the command.
    #[error("{0}")]
    Refused(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "; this user may not open it",
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => "; is the daemon running?",
        _ => "",
    }
}

/// Sends a command to the daemon at the admin socket `path`, and waits for the answer as long as a
/// reload may take.
///
/// # Errors
/// See [`CommandError`].
pub fn send_command(path: &Path, command: &Command) -> Result<Reply, CommandError> {
    send_command_within(path, command, DEFAULT_TIMEOUT)
}

/// As [`send_command`], but the whole exchange may not take longer than `limit`.
///
/// # Errors
/// See [`CommandError`].
pub fn send_command_within(path: &Path, command: &Command, limit: Duration) -> Result<Reply, CommandError> {
    let path_name = || path.display().to_string();
    let is_timeout = |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let start = Instant::now();
    let stream = match connect_within(path, limit) {
        Err(error) if is_timeout(&error) => return Err(CommandError::Timeout { path: path_name(), limit }),
        connected => connected.map_err(|source| CommandError::Unreachable { path: path_name(), source })?,
    };
    let answer = match exchange(&mut DeadlineStream { stream, start, limit }, command) {
        Err(error) if is_timeout(&error) => return Err(CommandError::Timeout { path: path_name(), limit }),
        exchanged => exchanged.map_err(|source| CommandError::Broken { path: path_name(), source })?,
    };
    let reply: Reply = match serde_json::from_slice(&answer) {
        Err(error) if error.is_syntax() => return Err(CommandError::NotAdminSocket { path: path_name() }),
        parsed => parsed.map_err(|error| CommandError::Broken { path: path_name(), source: error.into() })?,
    };
    match reply.error {
        Some(error) if !reply.ok => Err(CommandError::Refused(error)),
        _ => Ok(reply),
    }
}

/// Connects. The send timeout also limits how long `connect` waits while the backlog of the daemon
/// is full.
fn connect_within(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A stream whose reads and writes share one time limit.
struct DeadlineStream {
    stream: UnixStream,
    start: Instant,
    limit: Duration,
}

impl DeadlineStream {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let left = self.limit.saturating_sub(self.start.elapsed());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.remaining()?)?;
        self.stream.read(buffer)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.remaining()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Sends a command, and returns the answer up to the end of the line or of the connection.
fn exchange(stream: &mut DeadlineStream, command: &Command) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // A daemon that refuses this user sends its answer and closes the connection without
        // reading.
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
            // The daemon has closed the connection without reading the whole command.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    // The reply is one line. If the daemon evicts the idle connection before the reply is read, an
    // error follows it.
    if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
        answer.truncate(end);
    }
    if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn command_to_a_stopped_daemon_times_out_even_with_a_full_backlog() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        rustix::net::listen(&listener, 0).expect("listens");
        let limit = Duration::from_millis(50);
        for _ in 0..3 {
            let error = send_command_within(&path, &Command::Status, limit).expect_err("stopped");
            assert!(matches!(error, CommandError::Timeout { .. }), "{error}");
        }
        drop(listener);
        let error = send_command_within(&path, &Command::Status, limit).expect_err("gone");
        assert!(error.to_string().ends_with("; is the daemon running?"), "{error}");
    }

    #[test]
    fn request_socket_is_recognised() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            stream.write_all(&[40, 0, 0, 0, 255]).expect("writes");
        });
        let error = send_command(&path, &Command::Status).expect_err("no admin socket");
        assert!(error.to_string().contains("is this the request socket?"), "{error}");
        daemon.join().expect("ends");
    }

    /// The daemon evicts idle connections with an error, which may arrive with the reply.
    #[test]
    fn only_the_first_line_is_the_reply() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            stream.write_all(b"{\"ok\":true}\n{\"ok\":false,\"error\":\"evicted\"}\n").expect("writes");
        });
        let reply = send_command(&path, &Command::Status).expect("a reply");
        assert!(reply.ok && reply.error.is_none(), "{reply:?}");
        daemon.join().expect("ends");
    }

    #[test]
    fn permission_error_has_its_own_hint() {
        let denied =
            CommandError::Unreachable { path: "p".to_owned(), source: ErrorKind::PermissionDenied.into() };
        assert!(denied.to_string().ends_with("; this user may not open it"), "{denied}");
    }
}
