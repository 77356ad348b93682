//! A client connection: reads requests, answers them and writes the answers.
//!
//! The connections of a worker share one buffer for input and one for output ([`WorkerContext`]).
//! This works because there is no await between a read and the write of its answers. An idle
//! connection costs its task and its socket. A connection owns memory only while it needs it: for
//! input that cannot be answered yet, or for answers that the peer has not read. While answers are
//! unsent the connection reads nothing more. The memory that a peer can occupy is therefore bounded
//! by one filled buffer and its answers, regardless of what it sends or fails to read.

use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use keyward_protocol::{ErrorCode, ProtocolError, truncated_frame};
use tokio::time::{Instant, sleep_until, timeout_at};
use zeroize::{Zeroize, Zeroizing};

use crate::connection::busy_poll::SpinBackoff;
use crate::connection::socket::Socket;
use crate::connection::timers::{NEVER, TimerHandle, Wakeup};
use crate::connection::turns::TurnHandle;
use crate::connection::uid_account::{Held, QuotaExceededError};

mod buffers;
mod busy_poll;
mod counters;
#[cfg(feature = "fuzzing")]
mod exchange;
mod in_flight;
mod respond;
#[cfg(feature = "simulation")]
pub mod simulation;
mod socket;
mod timer_fd;
mod timers;
mod turns;
mod uid_account;
mod worker_context;

#[cfg(test)]
mod tests;

pub use buffers::INPUT_BYTES;
pub use counters::Counters;
#[cfg(feature = "fuzzing")]
pub use exchange::Exchange;
pub use respond::{Progress, StopReason, respond};
pub use turns::IdleCount;
pub use uid_account::{UidAccount, UidQuotas};
pub use worker_context::{Metrics, Shutdown, Timeouts, VerifyInputs, WorkerContext};

/// How long after a read a connection reads again without having been woken. A read that stops at a
/// passed descriptor (SCM_RIGHTS) leaves bytes behind, for which epoll reports nothing.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// Maximum number of reads that a connection answers at shutdown, or discards after a fatal error.
/// A peer that never stops sending must not keep the connection open.
const MAX_FINAL_READS: usize = 64;

/// An accepted connection.
pub struct Connection {
    socket: Socket,
    context: Rc<WorkerContext>,
    timer: TimerHandle,
    turn: TurnHandle,
    account: Arc<UidAccount>,
    /// Input that was read and not answered yet. It may contain a raw key.
    unanswered: Zeroizing<Vec<u8>>,
    /// Counts `unanswered`, and answers that the peer has not read.
    held: Held,
    last_read: Instant,
    /// Whether a probe since the last read has found the socket empty.
    is_probed: bool,
    spin_backoff: SpinBackoff,
}

/// Why a waiting connection was woken.
#[derive(Clone, Copy)]
enum WakeReason {
    /// This many bytes were read. 0: the peer has closed its sending side.
    Input(usize),
    Timer(Wakeup),
    /// The rate of the peer's uid has to be considered before anything is read.
    Rate,
    /// The peer has closed the socket altogether.
    HungUp,
}

/// The result of answering one buffer of input.
struct Answered {
    stop: StopReason,
    /// Answers that did not fit into the socket's send buffer, and their epoch.
    unsent: Option<(Vec<u8>, u64)>,
    /// The number of requests that were answered.
    requests: usize,
}

/// Why a connection ended without an I/O error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed the connection.
    PeerClosed,
    /// The peer violated the protocol, and was sent an ERROR.
    ProtocolError,
    /// The connection would exceed a quota of the peer's uid.
    QuotaExceeded,
    /// The peer was silent for the idle timeout.
    IdleTimeout,
    /// The daemon is shutting down: the input was answered, and an ERROR announced it.
    Drained,
    /// The drain timeout has passed: the input was discarded unanswered, without an ERROR.
    ShutDown,
}

impl Connection {
    /// A connection on the worker that `context` belongs to, and the account of the peer's uid.
    pub fn new(stream: UnixStream, account: Arc<UidAccount>, context: Rc<WorkerContext>) -> Self {
        let last_read = Instant::now();
        let timer = context.timers.register(last_read + context.timeouts.idle.unwrap_or(NEVER));
        let turn = context.turns.register(account.uid());
        let held = Held::new(&account);
        Self {
            socket: Socket::new(stream),
            context,
            timer,
            turn,
            account,
            unanswered: Zeroizing::default(),
            held,
            last_read,
            is_probed: true,
            spin_backoff: SpinBackoff::default(),
        }
    }

    /// Serves the connection until it ends.
    ///
    /// # Errors
    /// When the socket fails, or the peer does not read its answers in time.
    pub async fn serve(mut self) -> io::Result<CloseReason> {
        loop {
            let wake = match self.account.delay() {
                Some(delay) => self.sleep(delay).await?,
                None => match self.spin().await? {
                    Some(bytes) => WakeReason::Input(bytes),
                    None => self.wait().await?,
                },
            };
            let closed = match wake {
                WakeReason::Input(bytes) => self.on_input(bytes).await?,
                WakeReason::Timer(Wakeup::Deadline) => self.on_timeout().await?,
                WakeReason::Timer(Wakeup::Drain) => Some(self.drain().await?),
                // After a delay, the idle timeout applies again.
                WakeReason::Rate => None,
                WakeReason::HungUp => Some(CloseReason::PeerClosed),
            };
            if let Some(reason) = closed {
                return Ok(reason);
            }
            self.timer.set_deadline(self.next_deadline());
        }
    }

    /// Waits for input and the connection's turn, and reads into the shared buffer.
    async fn wait(&mut self) -> io::Result<WakeReason> {
        std::future::poll_fn(|cx| {
            // Checked before the socket: a peer that never stops sending would otherwise hide the
            // shutdown. Draining answers the input that has arrived.
            if self.context.timers.is_draining() {
                return Poll::Ready(Ok(WakeReason::Timer(Wakeup::Drain)));
            }
            while let Poll::Ready(readable) = self.socket.poll_readable(cx) {
                let mut readable = readable?;
                if self.turn.poll_begin(cx).is_pending() {
                    // Only a shutdown matters while input waits: the peer is not silent.
                    let _ = self.timer.poll(cx);
                    return Poll::Pending;
                }
                // Other connections of the uid may have used up its rate meanwhile.
                if self.account.delay().is_some() {
                    self.turn.give_up();
                    return Poll::Ready(Ok(WakeReason::Rate));
                }
                let mut buffers = self.context.buffers.borrow_mut();
                let space = buffers.space_after(self.unanswered.len());
                let limit = self.turn.read_limit().min(space.len());
                if let Some(bytes) = readable.read(&mut space[..limit])? {
                    return Poll::Ready(Ok(WakeReason::Input(bytes)));
                }
                self.turn.give_up();
            }
            self.timer.poll(cx).map(|wakeup| Ok(WakeReason::Timer(wakeup)))
        })
        .await
    }

    /// Sleeps for as long as the rate of the peer's uid requires, until the peer closes the socket,
    /// or until the daemon shuts down.
    async fn sleep(&mut self, delay: Duration) -> io::Result<WakeReason> {
        let deadline = Instant::now() + delay;
        self.timer.set_deadline(deadline + NEVER);
        tokio::select! {
            wakeup = std::future::poll_fn(|cx| self.timer.poll(cx)) => Ok(WakeReason::Timer(wakeup)),
            hung_up = self.socket.hung_up() => hung_up.map(|()| WakeReason::HungUp),
            () = sleep_until(deadline) => Ok(WakeReason::Rate),
        }
    }

    /// Answers `bytes` of new input, which follow the input that is still unanswered.
    async fn on_input(&mut self, bytes: usize) -> io::Result<Option<CloseReason>> {
        if bytes == 0 {
            return self.on_peer_closed().map(Some);
        }
        let now = Instant::now();
        self.spin_backoff.record(now - self.last_read <= self.context.timeouts.busy_poll);
        self.last_read = now;
        self.is_probed = false;
        let mut answered = self.answer(bytes)?;
        loop {
            if let Some((unsent, epoch)) = answered.unsent {
                let buffered = unsent.len() + self.unanswered.len();
                if self.held.set(buffered, answered.requests).is_err() {
                    // There is no space for an ERROR.
                    return Ok(Some(CloseReason::QuotaExceeded));
                }
                self.flush(&unsent, epoch).await?;
            }
            if let Err(QuotaExceededError { quota }) = self.held.set(self.unanswered.len(), 0) {
                let detail = u32::try_from(quota).unwrap_or(u32::MAX);
                self.send_error(ProtocolError::new(ErrorCode::QuotaExceeded, detail, 0))?;
                self.discard_input();
                return Ok(Some(CloseReason::QuotaExceeded));
            }
            answered = match answered.stop {
                StopReason::NeedInput => return Ok(None),
                StopReason::FramingLost => {
                    self.discard_input();
                    return Ok(Some(CloseReason::ProtocolError));
                }
                StopReason::ShutDown => {
                    self.discard_input();
                    return Ok(Some(CloseReason::ShutDown));
                }
                StopReason::OutputFull => {
                    self.turn.begin().await;
                    self.answer(0)?
                }
                StopReason::Superseded => {
                    // Lets the worker take the new snapshot first.
                    tokio::task::yield_now().await;
                    self.turn.begin().await;
                    self.answer(0)?
                }
            };
        }
    }

    /// Answers the input once, writes as many answers as the socket takes, and ends the connection's
    /// turn. There is no await, so that the shared buffers belong to this connection throughout.
    fn answer(&mut self, new_bytes: usize) -> io::Result<Answered> {
        let context = Rc::clone(&self.context);
        let mut buffers = context.buffers.borrow_mut();
        let (progress, epoch, output) =
            buffers.answer(&mut self.unanswered, new_bytes, |input, output| context.respond(input, output));
        let written = self.socket.try_write(output);
        self.turn.end(progress.consumed + output.len());
        self.account.charge(progress.requests);
        let written = written?;
        let unsent = (written < output.len()).then(|| (output[written..].to_vec(), epoch));
        Ok(Answered { stop: progress.stop, unsent, requests: progress.requests })
    }

    /// Writes all of `bytes`, waiting for the peer to read. Gives up after the idle timeout, or
    /// when the answers delay the acknowledgement of a reload or a revocation for too long.
    async fn flush(&mut self, mut bytes: &[u8], epoch: u64) -> io::Result<()> {
        let in_flight = self.context.in_flight.enter(epoch);
        while !bytes.is_empty() {
            let deadline = Instant::now() + self.context.timeouts.idle.unwrap_or(NEVER);
            tokio::select! {
                writable = timeout_at(deadline, self.socket.writable()) => writable
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers"))??,
                () = in_flight.expired() => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the peer did not read answers that a reload or a revocation has overtaken",
                    ));
                }
            }
            bytes = &bytes[self.socket.try_write(bytes)?..];
        }
        Ok(())
    }

    /// Sends a final ERROR as far as the socket takes it at once, without waiting for the peer.
    fn send_error(&self, error: ProtocolError) -> io::Result<()> {
        let mut frame = Vec::new();
        error.encode(&mut frame);
        self.context.counters.count_error();
        self.socket.try_write(&frame).map(drop)
    }

    /// The peer has closed its sending side. An incomplete frame before that is an error.
    fn on_peer_closed(&self) -> io::Result<CloseReason> {
        if self.unanswered.is_empty() {
            return Ok(CloseReason::PeerClosed);
        }
        self.send_error(truncated_frame(&self.unanswered))?;
        Ok(CloseReason::ProtocolError)
    }

    /// Discards the input that has arrived. Closing a socket with unread input would reset the
    /// connection, and the peer would lose the ERROR.
    fn discard_input(&self) {
        let mut buffers = self.context.buffers.borrow_mut();
        let space = buffers.space_after(0);
        for _ in 0..MAX_FINAL_READS {
            if !matches!(self.socket.try_read(space), Ok(Some(1..))) {
                break;
            }
        }
        space.zeroize();
    }

    /// Reads at most `limit` bytes without waiting, and without asking tokio for the socket's
    /// readiness. `None`: there is no input.
    fn try_read(&self, limit: usize) -> io::Result<Option<usize>> {
        let mut buffers = self.context.buffers.borrow_mut();
        let space = buffers.space_after(self.unanswered.len());
        let limit = limit.min(space.len());
        self.socket.try_read(&mut space[..limit])
    }

    /// The timer has fired: probes the socket once, and closes the connection after the idle
    /// timeout.
    async fn on_timeout(&mut self) -> io::Result<Option<CloseReason>> {
        if !self.is_probed {
            if self.account.delay().is_some() {
                return Ok(None);
            }
            self.turn.begin().await;
            if let Some(bytes) = self.try_read(self.turn.read_limit())? {
                return self.on_input(bytes).await;
            }
            self.turn.give_up();
            self.is_probed = true;
        }
        match self.context.timeouts.idle {
            Some(idle) if self.last_read.elapsed() >= idle => {
                let ms = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
                self.send_error(ProtocolError::new(ErrorCode::IdleTimeout, ms, 0))?;
                Ok(Some(CloseReason::IdleTimeout))
            }
            _ => Ok(None),
        }
    }

    fn next_deadline(&self) -> Instant {
        let wait = if self.is_probed { self.context.timeouts.idle.unwrap_or(NEVER) } else { PROBE_AFTER };
        self.last_read + wait
    }

    /// Answers the input that has arrived, and sends the ERROR that announces the shutdown.
    async fn drain(&mut self) -> io::Result<CloseReason> {
        for _ in 0..MAX_FINAL_READS {
            self.turn.begin().await;
            let Some(bytes) = self.try_read(INPUT_BYTES)? else {
                break;
            };
            if let Some(reason) = self.on_input(bytes).await? {
                return Ok(reason);
            }
        }
        self.turn.give_up();
        self.announce_shutdown().await?;
        Ok(CloseReason::Drained)
    }

    /// Sends the ERROR that announces the shutdown. A peer that is still reading its answers may
    /// leave no space for it at first; the drain timeout bounds the wait.
    async fn announce_shutdown(&mut self) -> io::Result<()> {
        let mut frame = Vec::new();
        ProtocolError::new(ErrorCode::ShuttingDown, 0, 0).encode(&mut frame);
        self.context.counters.count_error();
        let mut unsent = &frame[..];
        loop {
            unsent = &unsent[self.socket.try_write(unsent)?..];
            if unsent.is_empty() {
                return Ok(());
            }
            self.socket.writable().await?;
        }
    }
}
