//! One connection: read, answer, write, and nothing else.
//!
//! A worker's connections share one buffer for reading and one for writing ([`Shared`]), because between a read and the
//! write of its answers there is no await: an idle connection costs its task and its socket. A connection has
//! memory of its own only while it needs it: the rest of a filled buffer that could not be answered yet, or answers
//! that the peer is not reading. While there are such answers nothing more is read, so that what a peer can make the
//! daemon hold is bounded by one filled buffer and its answers, whatever it sends or fails to read (promise 6).

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use keyward_protocol::{ErrorCode, Fault, truncated};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use zeroize::{Zeroize, Zeroizing};

use crate::connection::respond::Stop;

mod counters;
mod in_flight;
mod respond;
mod shared;

pub use counters::Counters;
pub use respond::{Greeting, Progress, respond};
pub use shared::{Counted, INPUT, Shared, Timeouts};

/// How long after a read a connection looks again, without waiting to be told that there is something: a read that
/// stops at a passed descriptor (SCM_RIGHTS) leaves bytes behind that nobody announces.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// Fills that a connection still answers when the daemon shuts down, and discards after a fault: a peer that never stops
/// sending must not keep either from ending.
const LAST_FILLS: usize = 64;

/// An alarm for a connection that may be silent for ever.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// One accepted connection.
pub struct Connection {
    stream: UnixStream,
    shared: Rc<Shared>,
    /// What was read and not answered yet, as the beginning of a frame; it may hold a raw key.
    rest: Zeroizing<Vec<u8>>,
    last_read: Instant,
    /// Nothing was left behind by the last read.
    probed: bool,
}

/// What a connection was woken by.
#[derive(Clone, Copy)]
enum Wake {
    /// So many bytes were read; 0: the peer has finished.
    Read(usize),
    Alarm,
    Drain,
}

/// One pass over what has been read.
struct Answered {
    stop: Stop,
    /// What the socket did not take, and the epoch of its answers.
    unsent: Option<(Vec<u8>, u64)>,
}

/// Why a connection ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer finished.
    Finished,
    /// The peer broke the protocol, and was told how.
    Fault,
    /// Silent for too long.
    Idle,
    /// The daemon is going away.
    Drained,
}

impl Connection {
    /// A connection beside the others that share `shared`.
    pub fn new(stream: UnixStream, shared: Rc<Shared>) -> Self {
        Self { stream, shared, rest: Zeroizing::default(), last_read: Instant::now(), probed: true }
    }

    /// Serves it to its end.
    ///
    /// # Errors
    /// When the socket fails, or the peer does not read its answers in time.
    pub async fn serve(mut self) -> io::Result<End> {
        let mut alarm = Box::pin(sleep_until(self.next_alarm()));
        let mut draining = Box::pin(Rc::clone(&self.shared).draining());
        loop {
            let wake = self.wait(alarm.as_mut(), draining.as_mut()).await?;
            let end = match wake {
                Wake::Read(bytes) => self.read(bytes).await?,
                Wake::Alarm => self.look_again().await?,
                Wake::Drain => Some(self.drain().await?),
            };
            if let Some(end) = end {
                return Ok(end);
            }
            if matches!(wake, Wake::Alarm) || alarm.deadline() > self.next_alarm() {
                alarm.as_mut().reset(self.next_alarm());
            }
        }
    }

    /// Waits for bytes, and reads them into the shared buffer. tokio forgets the socket's readiness after a read that did
    /// not fill the buffer, which saves the read that would only say "nothing there".
    async fn wait(
        &mut self,
        mut alarm: Pin<&mut Sleep>,
        mut draining: Pin<&mut impl Future<Output = ()>>,
    ) -> io::Result<Wake> {
        std::future::poll_fn(|cx| {
            let mut buffers = self.shared.buffers.borrow_mut();
            let mut space = ReadBuf::new(buffers.space_after(self.rest.len()));
            if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut space) {
                return Poll::Ready(read.map(|()| Wake::Read(space.filled().len())));
            }
            if alarm.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Wake::Alarm));
            }
            draining.as_mut().poll(cx).map(|()| Ok(Wake::Drain))
        })
        .await
    }

    /// Answers what has been read: `bytes` after the rest of what was read before.
    async fn read(&mut self, bytes: usize) -> io::Result<Option<End>> {
        if bytes == 0 {
            return self.finish().await.map(Some);
        }
        self.last_read = Instant::now();
        self.probed = false;
        let mut answered = self.answer(bytes)?;
        loop {
            if let Some((unsent, epoch)) = answered.unsent {
                self.flush(&unsent, epoch).await?;
            }
            answered = match answered.stop {
                Stop::NeedInput => return Ok(None),
                Stop::Close => return Ok(Some(self.discard())),
                Stop::OutputFull => self.answer(0)?,
                Stop::Superseded => {
                    // The worker may have to take the new snapshot first.
                    tokio::task::yield_now().await;
                    self.answer(0)?
                }
            };
        }
    }

    /// One pass: from the shared input to the socket. No await, so that the buffers are this connection's throughout.
    fn answer(&mut self, new_bytes: usize) -> io::Result<Answered> {
        let shared = Rc::clone(&self.shared);
        let mut buffers = shared.buffers.borrow_mut();
        let (input, output) = buffers.filled(&mut self.rest, new_bytes);
        let (progress, epoch) = shared.respond(input, output);
        let (done, rest) = input.split_at_mut(progress.consumed);
        self.rest.extend_from_slice(rest);
        rest.zeroize();
        if progress.had_raw_key {
            done.zeroize();
        }
        let written = self.write_now(output)?;
        let unsent = (written < output.len()).then(|| (output[written..].to_vec(), epoch));
        Ok(Answered { stop: progress.stop, unsent })
    }

    /// Writes what the socket takes without waiting; how much that was.
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.try_write(&bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Writes all of `bytes`, waiting for the peer to read: as long as it may be silent, or until a reload or a
    /// revocation cannot be acknowledged because of it.
    async fn flush(&self, mut bytes: &[u8], epoch: u64) -> io::Result<()> {
        let pending = self.shared.in_flight.enter(epoch);
        while !bytes.is_empty() {
            let deadline = Instant::now() + self.shared.timeouts.idle.unwrap_or(NEVER);
            tokio::select! {
                writable = timeout_at(deadline, self.stream.writable()) => writable
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers"))??,
                () = pending.overdue() => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the peer did not read answers that a reload or a revocation has overtaken",
                    ));
                }
            }
            bytes = &bytes[self.write_now(bytes)?..];
        }
        Ok(())
    }

    /// Writes a last ERROR, as far as the socket takes it at once: nobody waits for a peer that is being left. Not through
    /// tokio, which may not have been told yet that the socket can be written to.
    fn say(&self, fault: Fault) -> io::Result<()> {
        let mut frame = Vec::new();
        fault.encode(&mut frame);
        self.shared.counters.fault();
        match send(&self.stream, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The peer will send no more.
    async fn finish(&mut self) -> io::Result<End> {
        if self.rest.is_empty() {
            return Ok(End::Finished);
        }
        self.say(truncated(&self.rest))?;
        Ok(End::Fault)
    }

    /// Reads what is left, so that closing the socket does not turn the ERROR into a reset.
    fn discard(&self) -> End {
        let mut buffers = self.shared.buffers.borrow_mut();
        let space = buffers.space_after(0);
        for _ in 0..LAST_FILLS {
            match recv(&self.stream, &mut *space, RecvFlags::DONTWAIT) {
                Ok((_, 1..)) => {}
                Ok((_, 0)) | Err(_) => break,
            }
        }
        space.zeroize();
        End::Fault
    }

    /// Reads without waiting and without asking tokio, which may not have been told. `None`: nothing is there.
    fn read_now(&self) -> io::Result<Option<usize>> {
        let mut buffers = self.shared.buffers.borrow_mut();
        match recv(&self.stream, buffers.space_after(self.rest.len()), RecvFlags::DONTWAIT) {
            Ok((_, bytes)) => Ok(Some(bytes)),
            Err(error) if error == Errno::AGAIN => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The alarm: whether something was left behind, and whether the peer has been silent for too long.
    async fn look_again(&mut self) -> io::Result<Option<End>> {
        if !self.probed {
            if let Some(bytes) = self.read_now()? {
                return self.read(bytes).await;
            }
            self.probed = true;
        }
        match self.shared.timeouts.idle {
            Some(idle) if self.last_read.elapsed() >= idle => {
                let ms = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
                self.say(Fault::new(ErrorCode::IdleTimeout, ms, 0))?;
                Ok(Some(End::Idle))
            }
            _ => Ok(None),
        }
    }

    fn next_alarm(&self) -> Instant {
        let wait = if self.probed { self.shared.timeouts.idle.unwrap_or(NEVER) } else { PROBE_AFTER };
        self.last_read + wait
    }

    /// Answers what has arrived, and says goodbye.
    async fn drain(&mut self) -> io::Result<End> {
        for _ in 0..LAST_FILLS {
            let Some(bytes) = self.read_now()? else {
                break;
            };
            if let Some(end) = self.read(bytes).await? {
                return Ok(end);
            }
        }
        self.say(Fault::new(ErrorCode::ShuttingDown, 0, 0))?;
        Ok(End::Drained)
    }
}
