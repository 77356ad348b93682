//! A connection's socket: watched for bytes to read, and for room to write only while there is none.
//!
//! tokio's own stream is watched for both, always. Every answer that a peer reads makes room for another, so that its worker
//! would be woken for each, and for nothing. Reads and writes ask the system at once and never wait; tokio is only asked
//! when something has come.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connected socket, closed when it is dropped.
pub(super) struct Socket {
    stream: Rc<UnixStream>,
    /// The same, registered for reading; `None` as long as nothing is to be read.
    watch: Option<AsyncFd<Rc<UnixStream>>>,
}

impl Socket {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: Rc::new(stream), watch: None }
    }

    /// Reads into `space` what is there, or leaves word that the task is to be woken when there is something.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(watch(Rc::clone(&self.stream), Interest::READABLE)?),
        };
        loop {
            let mut ready = ready!(watch.poll_read_ready(cx))?;
            let read = recv(&self.stream, &mut *space, RecvFlags::DONTWAIT);
            // A read that leaves room has emptied the socket: it saves the read that would only say "nothing there".
            if read.is_ok_and(|(_, count)| count < space.len()) || read == Err(Errno::AGAIN) {
                ready.clear_ready();
            }
            if !matches!(read, Err(Errno::AGAIN | Errno::INTR)) {
                return Poll::Ready(read.map(|(_, count)| count).map_err(Into::into));
            }
        }
    }

    /// Reads without asking tokio, which may not have been told. `None`: nothing is there.
    pub(super) fn read_now(&self, space: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.stream, space, RecvFlags::DONTWAIT) {
            Ok((_, count)) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the socket takes without waiting; how much that was.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
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

    /// Waits for room to write. Nothing is read meanwhile.
    pub(super) async fn writable(&mut self) -> io::Result<()> {
        // epoll takes a descriptor only once.
        self.watch = None;
        watch(Rc::clone(&self.stream), Interest::WRITABLE)?.writable().await.map(drop)
    }
}

/// Registers a descriptor with the worker's runtime, for one thing only.
#[expect(
    deprecated,
    reason = "what takes its place is `unsafe`, for who watches a descriptor that is not their own"
)]
pub(super) fn watch<D: AsRawFd>(descriptor: D, interest: Interest) -> io::Result<AsyncFd<D>> {
    AsyncFd::with_interest(descriptor, interest)
}
