//! What std cannot do with a Unix socket: connect within a time, and look at one that has been idle without touching what
//! is there to be read.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

/// A connection that was used so recently is written to without a look: writing to one that the daemon has closed
/// meanwhile fails before a byte is written.
pub(crate) const FRESH: Duration = Duration::from_millis(1);

/// The shortest timeout that can be set: zero would be none.
pub(crate) const SHORTEST_TIMEOUT: Duration = Duration::from_micros(1);

/// What there is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Nothing, and more may come.
    Quiet,
    /// Something.
    Speaks,
    /// The end.
    Ended,
}

pub(crate) fn look(socket: impl AsFd) -> Idle {
    match recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN | Errno::INTR) => Idle::Quiet,
        Ok((_, count)) if count > 0 => Idle::Speaks,
        _ => Idle::Ended,
    }
}

/// Connects; a daemon whose queue of connections is full is waited for until `left` is over (then the error is
/// `WouldBlock`). std has no such timeout for Unix sockets.
pub(crate) fn connect_within(socket: &Path, left: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(left.max(SHORTEST_TIMEOUT)))?;
    connect(&fd, &address)?;
    Ok(UnixStream::from(fd))
}
