//! A look at a connection that has been idle, without touching what is there to be read.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// A connection that was used so recently is written to without a look: writing to one that the daemon has closed
/// meanwhile fails before a byte is written.
pub(crate) const FRESH: Duration = Duration::from_millis(1);

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
