//! The command line's side of the admin socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::admin::message::{Command, Reply};

/// How long the daemon may take to answer. A reload of tens of millions of keys takes a while; one that takes this long
/// has died.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers at the socket.
    #[error(
        "cannot reach the daemon at {path}: {error}. Is it running, and may this user open its admin socket?"
    )]
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
    /// The daemon will not.
    #[error("{0}")]
    Refused(String),
}

/// Asks the daemon at the admin socket `path`, and waits for its answer.
///
/// # Errors
/// When there is no daemon, it does not answer, or it says that it will not.
pub fn ask(path: &Path, command: &Command) -> Result<Reply, AskError> {
    let named = || path.display().to_string();
    let stream = UnixStream::connect(path).map_err(|error| AskError::Unreachable { path: named(), error })?;
    let reply = exchange(&stream, command).map_err(|error| AskError::Broken { path: named(), error })?;
    match reply.error {
        Some(error) if !reply.ok => Err(AskError::Refused(error)),
        _ => Ok(reply),
    }
}

fn exchange(mut stream: &UnixStream, command: &Command) -> io::Result<Reply> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // A daemon that refuses this user says so without being asked, and hangs up.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent?,
    }
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
