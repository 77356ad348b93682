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
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_send_buffer_size};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A connected socket.
pub(super) struct Socket {
    stream: Rc<UnixStream>,
    /// The same socket, registered for reading. `None` until the first read, and while waiting to
    /// write.
    readable: Option<AsyncFd<Rc<UnixStream>>>,
}

impl Socket {
    pub(super) fn new(stream: UnixStream) -> Self {
        #[cfg(feature = "simulation")]
        super::simulation::shrink_send_buffer(&stream);
        Self { stream: Rc::new(stream), readable: None }
    }

    /// Waits until there may be input; otherwise registers the task to be woken when there is.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Readable<'_>>> {
        let readable = match &mut self.readable {
            Some(readable) => readable,
            none => none.insert(register(Rc::clone(&self.stream), Interest::READABLE)?),
        };
        let stream = &self.stream;
        readable.poll_read_ready(cx).map_ok(|readiness| Readable { stream, readiness })
    }

    /// Reads without waiting, regardless of the readiness that tokio has recorded. `None`: there is
    /// no input.
    pub(super) fn try_read(&self, space: &mut [u8]) -> io::Result<Option<usize>> {
        #[cfg(feature = "simulation")]
        let space = super::simulation::shortened(space);
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

    /// Writes the last bytes of the connection without waiting. What does not fit the send buffer is
    /// written with a larger one, as far as the system allows it (`net.core.wmem_max`).
    pub(super) fn write_last(&self, bytes: &[u8]) -> io::Result<()> {
        let rest = &bytes[self.try_write(bytes)?..];
        if !rest.is_empty() {
            // The kernel doubles the size, for its own structures.
            let size = socket_send_buffer_size(&self.stream)? + rest.len();
            set_socket_send_buffer_size(&self.stream, size)?;
            self.try_write(rest)?;
        }
        Ok(())
    }

    /// Waits until the peer has closed the socket altogether. The socket is not registered for
    /// reading meanwhile.
    pub(super) async fn hung_up(&mut self) -> io::Result<()> {
        self.readable = None;
        let writable = register(Rc::clone(&self.stream), Interest::WRITABLE)?;
        loop {
            let mut readiness = writable.writable().await?;
            if readiness.ready().is_write_closed() {
                return Ok(());
            }
            readiness.clear_ready();
        }
    }

    /// Waits for space in the send buffer. The socket is not registered for reading meanwhile.
    pub(super) async fn writable(&mut self) -> io::Result<()> {
        // epoll accepts a descriptor only once.
        self.readable = None;
        register(Rc::clone(&self.stream), Interest::WRITABLE)?.writable().await.map(drop)
    }
}

/// A socket that may have input.
pub(super) struct Readable<'a> {
    stream: &'a UnixStream,
    readiness: AsyncFdReadyGuard<'a, Rc<UnixStream>>,
}

impl Readable<'_> {
    /// Reads into `space`. `None`: there is no input.
    pub(super) fn read(&mut self, space: &mut [u8]) -> io::Result<Option<usize>> {
        #[cfg(feature = "simulation")]
        let space = super::simulation::shortened(space);
        loop {
            let read = recv(self.stream, &mut *space, RecvFlags::DONTWAIT);
            // A short read has emptied the socket, and saves the read that would return EAGAIN.
            if read.is_ok_and(|(_, count)| count < space.len()) || read == Err(Errno::AGAIN) {
                self.readiness.clear_ready();
            }
            return match read {
                Ok((_, count)) => Ok(Some(count)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// Registers a descriptor with the current runtime, for one kind of readiness.
#[expect(deprecated, reason = "the replacement is `unsafe`, because it accepts borrowed descriptors")]
pub(super) fn register<D: AsRawFd>(descriptor: D, interest: Interest) -> io::Result<AsyncFd<D>> {
    AsyncFd::with_interest(descriptor, interest)
}
