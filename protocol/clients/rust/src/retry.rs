//! When to try again, and when not: the rules that both clients keep, as pure functions.

use std::io;
use std::time::Duration;

/// How often one request may be taken up: once, and again on connections that turned out to be dead or that the daemon
/// closed without processing it. A daemon that closes the fourth one, too, is not going to answer.
pub(crate) const PASSES: u32 = 4;

/// How often one attempt to connect knocks at a socket where nobody answers: a daemon that replaces itself is back
/// within milliseconds or (without socket activation) takes longer than any deadline.
const KNOCKS: u32 = 3;

/// Longest that one connect and HELLO may take. Callers wait for it within their own, shorter deadlines; a slow daemon
/// is not given more connections meanwhile.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// A connection that has owed an answer for so long past its deadline is given up: another one may be served by
/// another, healthy worker of the daemon.
pub(crate) const STALLED: Duration = Duration::from_secs(1);

/// The pause before pass number `pass`, counted from 0. The first repetition is immediate: a connection that died
/// while it was idle is the common case.
pub(crate) fn pause(pass: u32) -> Duration {
    match pass {
        0 | 1 => Duration::ZERO,
        later => Duration::from_millis(1 << later),
    }
}

/// How long to wait before knocking again after `error`; `None`: that was the last time.
pub(crate) fn knock_again(knocks: u32, error: &io::Error) -> Option<Duration> {
    let pause = Duration::from_millis(1 << knocks.min(5));
    match error.kind() {
        // The daemon is there, and its queue of connections is full for the moment; or a signal came in between.
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Some(pause),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if knocks < KNOCKS => Some(pause),
        _ => None,
    }
}

/// After how much silence a connection is no longer written to: at four fifths of the daemon's idle timeout, since the
/// daemon may end it between our look and our write.
pub(crate) fn usable_silence(idle_timeout_ms: u32) -> Option<Duration> {
    match idle_timeout_ms {
        0 => None,
        timeout => Some(Duration::from_millis(u64::from(timeout)) * 4 / 5),
    }
}
