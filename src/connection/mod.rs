//! One connection: read, answer, write, and nothing else.
//!
//! A worker's connections share one buffer for reading and one for writing ([`Shared`]), because between a read and the
//! write of its answers there is no await: an idle connection costs its task and its socket. A connection has
//! memory of its own only while it needs it: the rest of a filled buffer that could not be answered yet, or answers
//! that the peer is not reading. While there are such answers nothing more is read, so that what a peer can make the
//! daemon hold is bounded by one filled buffer and its answers, whatever it sends or fails to read (promise 6).

use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use keyward_protocol::{ErrorCode, ProtocolError, truncated_frame};
use tokio::time::{Instant, timeout_at};
use zeroize::{Zeroize, Zeroizing};

use crate::connection::bell::{Ring, Seat};
use crate::connection::busy::Habit;
use crate::connection::respond::Stop;
use crate::connection::socket::Socket;

mod bell;
mod busy;
mod counters;
mod in_flight;
mod respond;
mod shared;
mod socket;
mod timer;

#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use respond::{Greeting, Progress, respond};
pub use shared::{Counted, INPUT, Shared, Stopping, Timeouts};

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
    socket: Socket,
    shared: Rc<Shared>,
    seat: Seat,
    /// What was read and not answered yet, as the beginning of a frame; it may hold a raw key.
    rest: Zeroizing<Vec<u8>>,
    last_read: Instant,
    /// Nothing was left behind by the last read.
    probed: bool,
    habit: Habit,
}

/// What a connection was woken by.
#[derive(Clone, Copy)]
enum Wake {
    /// So many bytes were read; 0: the peer has finished.
    Read(usize),
    Ring(Ring),
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
        let (socket, last_read) = (Socket::new(stream), Instant::now());
        let seat = shared.bell.seat(last_read + shared.timeouts.idle.unwrap_or(NEVER));
        let (rest, habit) = (Zeroizing::default(), Habit::default());
        Self { socket, shared, seat, rest, last_read, probed: true, habit }
    }

    /// Serves it to its end.
    ///
    /// # Errors
    /// When the socket fails, or the peer does not read its answers in time.
    pub async fn serve(mut self) -> io::Result<End> {
        loop {
            let wake = match self.spin().await? {
                Some(bytes) => Wake::Read(bytes),
                None => self.wait().await?,
            };
            let end = match wake {
                Wake::Read(bytes) => self.read(bytes).await?,
                Wake::Ring(Ring::Alarm) => self.look_again().await?,
                Wake::Ring(Ring::Drain) => Some(self.drain().await?),
            };
            if let Some(end) = end {
                return Ok(end);
            }
            self.seat.set_alarm(self.next_alarm());
        }
    }

    /// Waits for bytes, and reads them into the shared buffer.
    async fn wait(&mut self) -> io::Result<Wake> {
        std::future::poll_fn(|cx| {
            // Before the socket: who never stops sending would never be told. Draining answers what has arrived.
            if self.shared.bell.is_draining() {
                return Poll::Ready(Ok(Wake::Ring(Ring::Drain)));
            }
            let mut buffers = self.shared.buffers.borrow_mut();
            if let Poll::Ready(read) = self.socket.poll_read(cx, buffers.space_after(self.rest.len())) {
                return Poll::Ready(read.map(Wake::Read));
            }
            self.seat.listen(cx).map_or(Poll::Pending, |ring| Poll::Ready(Ok(Wake::Ring(ring))))
        })
        .await
    }

    /// Answers what has been read: `bytes` after the rest of what was read before.
    async fn read(&mut self, bytes: usize) -> io::Result<Option<End>> {
        if bytes == 0 {
            return self.finish().await.map(Some);
        }
        let now = Instant::now();
        self.habit.learn(now - self.last_read <= self.shared.timeouts.busy_poll);
        self.last_read = now;
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
        let written = self.socket.write_now(output)?;
        let unsent = (written < output.len()).then(|| (output[written..].to_vec(), epoch));
        Ok(Answered { stop: progress.stop, unsent })
    }

    /// Writes all of `bytes`, waiting for the peer to read: as long as it may be silent, or until a reload or a
    /// revocation cannot be acknowledged because of it.
    async fn flush(&mut self, mut bytes: &[u8], epoch: u64) -> io::Result<()> {
        let pending = self.shared.in_flight.enter(epoch);
        while !bytes.is_empty() {
            let deadline = Instant::now() + self.shared.timeouts.idle.unwrap_or(NEVER);
            tokio::select! {
                writable = timeout_at(deadline, self.socket.writable()) => writable
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers"))??,
                () = pending.overdue() => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the peer did not read answers that a reload or a revocation has overtaken",
                    ));
                }
            }
            bytes = &bytes[self.socket.write_now(bytes)?..];
        }
        Ok(())
    }

    /// Writes a last ERROR, as far as the socket takes it at once: nobody waits for a peer that is being left.
    fn say(&self, fault: ProtocolError) -> io::Result<()> {
        let mut frame = Vec::new();
        fault.encode(&mut frame);
        self.shared.counters.fault();
        self.socket.write_now(&frame).map(drop)
    }

    /// The peer will send no more.
    async fn finish(&mut self) -> io::Result<End> {
        if self.rest.is_empty() {
            return Ok(End::Finished);
        }
        self.say(truncated_frame(&self.rest))?;
        Ok(End::Fault)
    }

    /// Reads what is left, so that closing the socket does not turn the ERROR into a reset.
    fn discard(&self) -> End {
        let mut buffers = self.shared.buffers.borrow_mut();
        let space = buffers.space_after(0);
        for _ in 0..LAST_FILLS {
            if !matches!(self.socket.read_now(space), Ok(Some(1..))) {
                break;
            }
        }
        space.zeroize();
        End::Fault
    }

    /// Reads without waiting and without asking tokio, which may not have been told. `None`: nothing is there.
    fn read_now(&self) -> io::Result<Option<usize>> {
        let mut buffers = self.shared.buffers.borrow_mut();
        self.socket.read_now(buffers.space_after(self.rest.len()))
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
                self.say(ProtocolError::new(ErrorCode::IdleTimeout, ms, 0))?;
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
        self.say(ProtocolError::new(ErrorCode::ShuttingDown, 0, 0))?;
        Ok(End::Drained)
    }
}
