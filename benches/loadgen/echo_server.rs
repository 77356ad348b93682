//! An echo server, which shows what a socket costs by itself. For each request's size in bytes it
//! writes an answer of fixed size, all answers to one read in one write, and decides nothing.
//!
//! With one connection it blocks on the socket, which takes the fewest system calls; with several
//! it uses epoll. One thread serves, and another accepts connections.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Size of the input buffer: the same as the daemon's.
const INPUT_BYTES: usize = 32 << 10;

/// Longest wait for one connection before new ones are checked for.
const MAX_WAIT: Duration = Duration::from_millis(5);

/// The configuration of an echo server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EchoServer {
    /// Size of a request in bytes, at least 1.
    pub(crate) request_bytes: usize,
    /// Size of an answer in bytes.
    pub(crate) answer_bytes: usize,
    /// Whether to spin instead of sleeping.
    pub(crate) busy_poll: bool,
}

impl EchoServer {
    /// Serves at `path` until the process ends.
    ///
    /// # Errors
    /// When it cannot listen there, or a system call fails.
    pub(crate) fn serve(self, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        let (sender, receiver) = channel();
        let server = thread::Builder::new().name("echo".into()).spawn(move || self.run(&receiver))?;
        accept(&listener, &sender)?;
        drop(sender);
        server.join().unwrap_or_else(|_| Err(io::Error::other("the echo has failed")))
    }

    fn run(self, new: &Receiver<UnixStream>) -> io::Result<()> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Connections::default();
        let mut buffers = Buffers::new(self);
        loop {
            // Without a connection there is nothing to spin for.
            if connections.count == 0 {
                match new.recv() {
                    Ok(stream) => connections.add(stream, &epoll)?,
                    Err(_) => return Ok(()),
                }
            }
            while let Ok(stream) = new.try_recv() {
                connections.add(stream, &epoll)?;
            }
            if connections.count == 1 {
                connections.serve_only(&mut buffers, !self.busy_poll);
            } else {
                self.serve_many(&mut connections, &epoll, &mut buffers)?;
            }
        }
    }

    fn serve_many(
        self,
        connections: &mut Connections,
        epoll: &OwnedFd,
        buffers: &mut Buffers,
    ) -> io::Result<()> {
        let nanoseconds = if self.busy_poll { 0 } else { MAX_WAIT.subsec_nanos() };
        let timeout = Timespec { tv_sec: 0, tv_nsec: nanoseconds.into() };
        match epoll::wait(epoll, spare_capacity(&mut buffers.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = std::mem::take(&mut buffers.events);
        for event in events.drain(..) {
            connections.serve(event.data.u64() as usize, buffers, false);
        }
        buffers.events = events;
        Ok(())
    }
}

fn accept(listener: &UnixListener, server: &Sender<UnixStream>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(MAX_WAIT))?;
        if server.send(stream).is_err() {
            return Ok(());
        }
    }
}

struct Buffers {
    config: EchoServer,
    input: Vec<u8>,
    answers: Vec<u8>,
    events: Vec<epoll::Event>,
}

impl Buffers {
    fn new(config: EchoServer) -> Self {
        let answers = vec![0; (INPUT_BYTES / config.request_bytes + 1) * config.answer_bytes];
        Self { config, input: vec![0; INPUT_BYTES], answers, events: Vec::with_capacity(256) }
    }
}

/// Connections by file descriptor, which is unique while it is open. Finding one of five thousand
/// takes no search.
#[derive(Default)]
struct Connections {
    by_descriptor: Vec<Option<Connection>>,
    count: usize,
}

impl Connections {
    fn add(&mut self, stream: UnixStream, epoll: &OwnedFd) -> io::Result<()> {
        let descriptor = stream.as_raw_fd() as usize;
        epoll::add(epoll, &stream, epoll::EventData::new_u64(descriptor as u64), epoll::EventFlags::IN)?;
        self.by_descriptor.resize_with(self.by_descriptor.len().max(descriptor + 1), || None);
        self.by_descriptor[descriptor] = Some(Connection { stream, partial: 0, is_closed: false });
        self.count += 1;
        Ok(())
    }

    fn serve_only(&mut self, buffers: &mut Buffers, wait: bool) {
        if let Some(descriptor) = self.by_descriptor.iter().position(Option::is_some) {
            self.serve(descriptor, buffers, wait);
        }
    }

    fn serve(&mut self, descriptor: usize, buffers: &mut Buffers, wait: bool) {
        let Some(Some(connection)) = self.by_descriptor.get_mut(descriptor) else {
            return;
        };
        connection.serve(buffers, wait);
        if connection.is_closed {
            self.by_descriptor[descriptor] = None;
            self.count -= 1;
            // Descriptors are assigned from 0, so the vector stays short.
            let used = self.by_descriptor.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            self.by_descriptor.truncate(used);
        }
    }
}

struct Connection {
    stream: UnixStream,
    /// Bytes received of an incomplete request.
    partial: usize,
    is_closed: bool,
}

impl Connection {
    /// Reads once and writes once. An error closes this connection and does not affect the others.
    fn serve(&mut self, buffers: &mut Buffers, wait: bool) {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(&self.stream, buffers.input.as_mut_slice(), flags) {
            Ok((_, 0)) => self.is_closed = true,
            Ok((_, count)) => {
                let EchoServer { request_bytes, answer_bytes, .. } = buffers.config;
                let bytes = self.partial + count;
                self.partial = bytes % request_bytes;
                self.is_closed =
                    self.write(&buffers.answers[..bytes / request_bytes * answer_bytes]).is_err();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.is_closed = true,
        }
    }

    fn write(&self, mut answers: &[u8]) -> Result<(), Errno> {
        while !answers.is_empty() {
            match send(&self.stream, answers, SendFlags::NOSIGNAL) {
                Ok(count) => answers = &answers[count..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
