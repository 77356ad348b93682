//! A connection's socket. It is registered with epoll for reading, and for writing only while its
//! send buffer is full.
//!
//! tokio's own `UnixStream` is always registered for both. Every answer that a peer reads frees
//! space in the send buffer, so each would wake the worker for nothing. Reads and writes call the
//! kernel directly and never block; tokio is asked only whether there is input.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connected socket.
pub(super) struct Socket {
    stream: Rc<UnixStream>,
    /// The same socket, registered for reading. `None` until the first read, and while waiting to
    /// write.
    readable: Option<AsyncFd<Rc<UnixStream>>>,
}

impl Socket {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: Rc::new(stream), readable: None }
    }

    /// Reads into `space`, or registers the task to be woken when there is input.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let readable = match &mut self.readable {
            Some(readable) => readable,
            none => none.insert(register(Rc::clone(&self.stream), Interest::READABLE)?),
        };
        loop {
            let mut ready = ready!(readable.poll_read_ready(cx))?;
            let read = recv(&self.stream, &mut *space, RecvFlags::DONTWAIT);
            // A short read has emptied the socket, and saves the read that would return EAGAIN.
            if read.is_ok_and(|(_, count)| count < space.len()) || read == Err(Errno::AGAIN) {
                ready.clear_ready();
            }
            if !matches!(read, Err(Errno::AGAIN | Errno::INTR)) {
                return Poll::Ready(read.map(|(_, count)| count).map_err(Into::into));
            }
        }
    }

    /// Reads without waiting, regardless of the readiness that tokio has recorded. `None`: there is
    /// no input.
    pub(super) fn try_read(&self, space: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.stream, space, RecvFlags::DONTWAIT) {
            Ok((_, count)) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes as much as the socket takes without waiting; returns the number of bytes.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match send(&self.stream, &bytes[written..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// Waits for space in the send buffer. The socket is not registered for reading meanwhile.
    pub(super) async fn writable(&mut self) -> io::Result<()> {
        // epoll accepts a descriptor only once.
        self.readable = None;
        register(Rc::clone(&self.stream), Interest::WRITABLE)?.writable().await.map(drop)
    }
}

/// Registers a descriptor with the current runtime, for one kind of readiness.
#[expect(deprecated, reason = "the replacement is `unsafe`, because it accepts borrowed descriptors")]
pub(super) fn register<D: AsRawFd>(descriptor: D, interest: Interest) -> io::Result<AsyncFd<D>> {
    AsyncFd::with_interest(descriptor, interest)
}
