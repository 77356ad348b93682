//! An echo: what a socket costs by itself, to hold every other server against. For every request's worth of bytes it
//! writes an answer's worth, all of a read in one write, and decides nothing.
//!
//! With one connection it blocks on it, which is the fewest system calls there can be; with more it waits for all by
//! epoll. Either way it is one thread that serves, beside one that accepts.

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

/// Bytes read at once: as many as the daemon.
const INPUT: usize = 32 << 10;

/// How long a new connection may wait for the one that is being served alone.
const TICK: Duration = Duration::from_millis(5);

/// Sizes and manners of an echo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo {
    /// Bytes of a request, at least 1.
    pub(crate) request: usize,
    /// Bytes of an answer.
    pub(crate) answer: usize,
    /// Whether to spin instead of sleeping.
    pub(crate) busy_poll: bool,
}

impl Echo {
    /// Serves at `path` for good.
    ///
    /// # Errors
    /// When it cannot listen there.
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
        let mut peers = Peers::default();
        let mut buffers = Buffers::new(self);
        loop {
            // Nothing to serve: nothing to spin for either.
            if peers.count == 0 {
                match new.recv() {
                    Ok(stream) => peers.add(stream, &epoll)?,
                    Err(_) => return Ok(()),
                }
            }
            while let Ok(stream) = new.try_recv() {
                peers.add(stream, &epoll)?;
            }
            if peers.count == 1 {
                peers.serve_only(&mut buffers, !self.busy_poll);
            } else {
                self.serve_many(&mut peers, &epoll, &mut buffers)?;
            }
        }
    }

    fn serve_many(self, peers: &mut Peers, epoll: &OwnedFd, buffers: &mut Buffers) -> io::Result<()> {
        let nanoseconds = if self.busy_poll { 0 } else { TICK.subsec_nanos() };
        let timeout = Timespec { tv_sec: 0, tv_nsec: nanoseconds.into() };
        match epoll::wait(epoll, spare_capacity(&mut buffers.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = std::mem::take(&mut buffers.events);
        for event in events.drain(..) {
            peers.serve(event.data.u64() as usize, buffers, false);
        }
        buffers.events = events;
        Ok(())
    }
}

fn accept(listener: &UnixListener, server: &Sender<UnixStream>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(TICK))?;
        if server.send(stream).is_err() {
            return Ok(());
        }
    }
}

struct Buffers {
    echo: Echo,
    input: Vec<u8>,
    answers: Vec<u8>,
    events: Vec<epoll::Event>,
}

impl Buffers {
    fn new(echo: Echo) -> Self {
        let answers = vec![0; (INPUT / echo.request + 1) * echo.answer];
        Self { echo, input: vec![0; INPUT], answers, events: Vec::with_capacity(256) }
    }
}

/// Peers by the number of their descriptor, which is their own for as long as it is open: what one of five thousand costs
/// must not be the search for it.
#[derive(Default)]
struct Peers {
    by_descriptor: Vec<Option<Peer>>,
    count: usize,
}

impl Peers {
    fn add(&mut self, stream: UnixStream, epoll: &OwnedFd) -> io::Result<()> {
        let place = stream.as_raw_fd() as usize;
        epoll::add(epoll, &stream, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN)?;
        self.by_descriptor.resize_with(self.by_descriptor.len().max(place + 1), || None);
        self.by_descriptor[place] = Some(Peer { stream, partial: 0, gone: false });
        self.count += 1;
        Ok(())
    }

    fn serve_only(&mut self, buffers: &mut Buffers, wait: bool) {
        if let Some(place) = self.by_descriptor.iter().position(Option::is_some) {
            self.serve(place, buffers, wait);
        }
    }

    fn serve(&mut self, place: usize, buffers: &mut Buffers, wait: bool) {
        let Some(Some(peer)) = self.by_descriptor.get_mut(place) else {
            return;
        };
        peer.serve(buffers, wait);
        if peer.gone {
            self.by_descriptor[place] = None;
            self.count -= 1;
            // The descriptors in front are few.
            let used = self.by_descriptor.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            self.by_descriptor.truncate(used);
        }
    }
}

struct Peer {
    stream: UnixStream,
    /// Bytes of a request that has not come as a whole.
    partial: usize,
    gone: bool,
}

impl Peer {
    /// One read and one write. A peer that ends or fails is gone, and nobody else notices.
    fn serve(&mut self, buffers: &mut Buffers, wait: bool) {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(&self.stream, buffers.input.as_mut_slice(), flags) {
            Ok((_, 0)) => self.gone = true,
            Ok((_, count)) => {
                let Echo { request, answer, .. } = buffers.echo;
                let bytes = self.partial + count;
                self.partial = bytes % request;
                self.gone = self.write(&buffers.answers[..bytes / request * answer]).is_err();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.gone = true,
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
