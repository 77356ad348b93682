//! A client connection: reads requests, answers them and writes the answers.
//!
//! The connections of a worker share one buffer for input and one for output ([`WorkerContext`]).
//! This works because there is no await between a read and the write of its answers. An idle
//! connection costs its task and its socket. A connection owns memory only while it needs it: for
//! input that cannot be answered yet, or for answers that the peer has not read. While answers are
//! unsent the connection reads nothing more. The memory that a peer can occupy is therefore bounded
//! by one filled buffer and its answers, regardless of what it sends or fails to read.
//!
//! A connection that the daemon ends gets all answers that were made, and an ERROR with the reason:
//! what does not fit the socket's send buffer is written with a larger one.

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
use crate::connection::silence::Silence;
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
mod sample;
mod shutdown;
mod silence;
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
pub use respond::{Permissions, Progress, StopReason, Terms, respond};
pub use sample::Samples;
pub use shutdown::{Shutdown, ShutdownControl};
pub use turns::IdleCount;
pub use uid_account::{UidAccount, UidQuotas};
pub use worker_context::{Metrics, Timeouts, VerifyInputs, WorkerContext};

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
    permissions: Permissions,
    /// Input that was read and not answered yet. It may contain a raw key.
    unanswered: Zeroizing<Vec<u8>>,
    /// Counts `unanswered`, and answers that the peer has not read.
    held: Held,
    silence: Silence,
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

/// Answers that did not fit into the socket's send buffer.
#[derive(Default)]
struct Unsent<'a> {
    answers: &'a [u8],
    epoch: u64,
    /// Whether they end with an ERROR that ends the connection.
    has_error: bool,
}

/// What a wait for the peer to read has ended with.
enum Waited {
    Writable,
    /// The idle timeout has passed.
    Stalled,
    /// A reload or a revocation waits no longer.
    Overtaken,
    /// The drain timeout has passed.
    Closing,
}

/// Why a connection ended without an I/O error. Unless the peer closed it, it was sent an ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed the connection.
    PeerClosed,
    /// The peer violated the protocol.
    ProtocolError,
    /// The connection would exceed a quota of the peer's uid.
    QuotaExceeded,
    /// The peer was silent, or its frame stayed incomplete, for the idle timeout.
    IdleTimeout,
    /// The peer did not read its answers in time.
    NotReading,
    /// The daemon is shutting down: the input was answered.
    Drained,
    /// The drain timeout has passed: the input was discarded unanswered.
    ShutDown,
}

impl Connection {
    /// A connection on the worker that `context` belongs to, the account of the peer's uid, and what
    /// the peer may send.
    pub fn new(
        stream: UnixStream,
        account: Arc<UidAccount>,
        permissions: Permissions,
        context: Rc<WorkerContext>,
    ) -> Self {
        let silence = Silence::new(context.timeouts.idle, Instant::now());
        let timer = context.timers.register(silence.next_deadline());
        let turn = context.turns.register(account.uid());
        let held = Held::new(&account);
        Self {
            socket: Socket::new(stream),
            context,
            timer,
            turn,
            account,
            permissions,
            unanswered: Zeroizing::default(),
            held,
            silence,
            spin_backoff: SpinBackoff::default(),
        }
    }

    /// Serves the connection until it ends.
    ///
    /// # Errors
    /// When the socket fails.
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
            // Bytes that keep arriving keep the timer from being polled.
            let closed = if closed.is_none() && self.silence.is_frame_late() {
                self.on_timeout().await?
            } else {
                closed
            };
            if let Some(reason) = closed {
                return Ok(reason);
            }
            self.timer.set_deadline(self.silence.next_deadline());
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
        self.spin_backoff.record(now - self.silence.last_read() <= self.context.timeouts.busy_poll);
        self.silence.read(now);
        let mut answered = self.answer(bytes)?;
        if self.context.sampler.is_due() {
            self.context.counters.samples().record(now, answered.requests);
        }
        let mut has_completed = false;
        loop {
            has_completed |= answered.requests > 0;
            if let Some((unsent, epoch)) = answered.unsent {
                let buffered = unsent.len() + self.unanswered.len();
                let unsent =
                    Unsent { answers: &unsent, epoch, has_error: answered.stop == StopReason::FramingLost };
                if let Err(error) = self.held.set(buffered, answered.requests) {
                    self.end(&unsent, quota_exceeded(error))?;
                    return Ok(Some(CloseReason::QuotaExceeded));
                }
                if let Some(reason) = self.flush(unsent).await? {
                    return Ok(Some(reason));
                }
                self.silence.delivered(Instant::now());
            }
            if let Err(error) = self.held.set(self.unanswered.len(), 0) {
                self.end(&Unsent::default(), quota_exceeded(error))?;
                return Ok(Some(CloseReason::QuotaExceeded));
            }
            answered = match answered.stop {
                StopReason::NeedInput => {
                    self.silence.received(has_completed, !self.unanswered.is_empty());
                    return Ok(None);
                }
                StopReason::FramingLost => {
                    self.discard_input();
                    return Ok(Some(CloseReason::ProtocolError));
                }
                StopReason::ShutDown => {
                    self.end(&Unsent::default(), shutting_down())?;
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
        let permissions = self.permissions;
        let (progress, epoch, output) = buffers.answer(&mut self.unanswered, new_bytes, |input, output| {
            context.respond(permissions, input, output)
        });
        let written = self.socket.try_write(output);
        self.turn.end(progress.consumed + output.len());
        self.account.charge(progress.requests);
        let written = written?;
        let unsent = (written < output.len()).then(|| (output[written..].to_vec(), epoch));
        Ok(Answered { stop: progress.stop, unsent, requests: progress.requests })
    }

    /// Writes all of the unsent answers, waiting for the peer to read. Ends the connection when the
    /// kernel has taken no byte for the idle timeout, when the answers delay the acknowledgement of
    /// a reload or a revocation for too long, and when the drain timeout passes.
    async fn flush(&mut self, mut unsent: Unsent<'_>) -> io::Result<Option<CloseReason>> {
        let in_flight = self.context.in_flight.enter(unsent.epoch);
        let Timeouts { idle, unsent_answers, .. } = self.context.timeouts;
        while !unsent.answers.is_empty() {
            let deadline = Instant::now() + idle.unwrap_or(NEVER);
            let waited = tokio::select! {
                writable = timeout_at(deadline, self.socket.writable()) => match writable {
                    Ok(writable) => writable.map(|()| Waited::Writable)?,
                    Err(_) => Waited::Stalled,
                },
                () = in_flight.expired() => Waited::Overtaken,
                () = std::future::poll_fn(|cx| self.timer.poll_closing(cx)) => Waited::Closing,
            };
            // epoll reports the socket as writable only when most of the send buffer is free. That
            // the peer has read less than that shows only here.
            let written = self.socket.try_write(unsent.answers)?;
            unsent.answers = &unsent.answers[written..];
            let (reason, error) = match waited {
                Waited::Stalled if written == 0 => {
                    (CloseReason::NotReading, idle_timeout(idle.unwrap_or(NEVER)))
                }
                Waited::Overtaken => (CloseReason::NotReading, idle_timeout(unsent_answers)),
                Waited::Closing => (CloseReason::ShutDown, shutting_down()),
                Waited::Writable | Waited::Stalled => continue,
            };
            if !unsent.answers.is_empty() {
                self.end(&unsent, error)?;
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    /// Ends the connection: writes the answers that the peer has not read and an ERROR with the
    /// reason, and discards the input, all without waiting. Requests without an answer before the
    /// ERROR were not processed.
    fn end(&self, unsent: &Unsent<'_>, error: ProtocolError) -> io::Result<()> {
        let mut last = unsent.answers.to_vec();
        if !unsent.has_error {
            error.encode(&mut last);
            self.context.counters.count_error();
        }
        self.socket.write_last(&last)?;
        self.discard_input();
        Ok(())
    }

    /// The peer has closed its sending side. An incomplete frame before that is an error.
    fn on_peer_closed(&self) -> io::Result<CloseReason> {
        if self.unanswered.is_empty() {
            return Ok(CloseReason::PeerClosed);
        }
        self.end(&Unsent::default(), truncated_frame(&self.unanswered))?;
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

    /// The timer has fired: reads what has arrived, and closes the connection if the idle timeout
    /// has passed regardless.
    async fn on_timeout(&mut self) -> io::Result<Option<CloseReason>> {
        loop {
            if self.account.delay().is_some() {
                return Ok(None);
            }
            self.turn.begin().await;
            let Some(bytes) = self.try_read(self.turn.read_limit())? else {
                break;
            };
            let closed = self.on_input(bytes).await?;
            if closed.is_some() || !self.silence.is_frame_late() {
                return Ok(closed);
            }
        }
        self.turn.give_up();
        self.silence.probed();
        match self.context.timeouts.idle {
            Some(idle) if self.silence.is_over(Instant::now()) => {
                self.end(&Unsent::default(), idle_timeout(idle))?;
                Ok(Some(CloseReason::IdleTimeout))
            }
            _ => Ok(None),
        }
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
        self.end(&Unsent::default(), shutting_down())?;
        Ok(CloseReason::Drained)
    }
}

fn idle_timeout(timeout: Duration) -> ProtocolError {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    ProtocolError::new(ErrorCode::IdleTimeout, ms, 0)
}

fn shutting_down() -> ProtocolError {
    ProtocolError::new(ErrorCode::ShuttingDown, 0, 0)
}

fn quota_exceeded(QuotaExceededError { quota }: QuotaExceededError) -> ProtocolError {
    ProtocolError::new(ErrorCode::QuotaExceeded, u32::try_from(quota).unwrap_or(u32::MAX), 0)
}
