//! When to try again: the rules of both clients, as pure functions.

use std::io;
use std::time::Duration;

/// How often a request is attempted. Attempts after the first use a new connection, because the
/// previous one was dead or the daemon closed it without processing the request. A daemon that
/// closes the fourth connection is not going to answer.
pub(crate) const MAX_ATTEMPTS: u32 = 4;

/// How often one attempt to connect calls `connect` if the daemon is absent. A daemon that restarts
/// is back within milliseconds or, without socket activation, takes longer than any deadline.
const MAX_CONNECT_CALLS: u32 = 3;

/// Time limit for connecting and HELLO. Callers wait within their own, shorter deadlines; meanwhile
/// a slow daemon does not get more connections.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long past its deadline an answer may be missing before the connection is abandoned. Another
/// connection may be served by another, healthy worker of the daemon.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The delay before attempt number `attempt`, counted from 0. The first retry is immediate, because
/// a connection that ended while it was idle is the common case.
pub(crate) fn retry_delay(attempt: u32) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        later => Duration::from_millis(1 << later),
    }
}

/// The delay before the next call of `connect` after `calls` calls, the last of which failed with
/// `error`. `None` means that the error is final.
pub(crate) fn connect_retry_delay(calls: u32, error: &io::Error) -> Option<Duration> {
    let delay = Duration::from_millis(1 << calls.min(5));
    match error.kind() {
        // The daemon is running, but its queue of connections is full; or a signal interrupted the
        // call.
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Some(delay),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if calls < MAX_CONNECT_CALLS => {
            Some(delay)
        }
        _ => None,
    }
}

/// How long a connection may have been silent and still be written to: four fifths of the daemon's
/// idle timeout, since the daemon may close it between the check and the write.
pub(crate) fn max_silence(idle_timeout_ms: u32) -> Option<Duration> {
    match idle_timeout_ms {
        0 => None,
        timeout => Some(Duration::from_millis(u64::from(timeout)) * 4 / 5),
    }
}
