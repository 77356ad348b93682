//! Operations that std does not offer for Unix sockets: connecting with a timeout, and checking an
//! idle socket without consuming data.

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

/// A connection that was used this recently is written to without a check. Writing to a connection
/// that the daemon has closed since then fails before any byte is written.
pub(crate) const CHECK_AFTER: Duration = Duration::from_millis(1);

/// The shortest timeout of a socket; zero would disable the timeout.
pub(crate) const MIN_TIMEOUT: Duration = Duration::from_micros(1);

/// What a read would return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadState {
    /// Nothing yet.
    Empty,
    /// Data.
    Readable,
    /// The end of the stream, or an error.
    Closed,
}

/// Checks what a read would return, without consuming data.
pub(crate) fn peek(socket: impl AsFd) -> ReadState {
    match recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN | Errno::INTR) => ReadState::Empty,
        Ok((_, count)) if count > 0 => ReadState::Readable,
        _ => ReadState::Closed,
    }
}

/// Connects. If the daemon's queue of connections is full, waits for up to `timeout`, and then
/// fails with `WouldBlock`.
pub(crate) fn connect_with_timeout(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(timeout.max(MIN_TIMEOUT)))?;
    connect(&fd, &address)?;
    Ok(UnixStream::from(fd))
}
