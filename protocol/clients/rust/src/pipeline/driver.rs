//! The one task of a connection: writes what has gathered, reads what has come, and keeps the deadlines.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection::{Connection, Due, State};
use crate::Options;
use crate::busy::Busy;
use crate::error::{DaemonError, Error, Failure, Outcome};
use crate::retry::STALLED;
use crate::wire::{Event, Inbox, Outbox, Session, due};

pub(super) struct Driver {
    connection: Arc<Connection>,
    reader: OwnedReadHalf,
    inbox: Inbox,
    /// Frames that are being written.
    sending: Outbox,
    /// Whether writing has failed; answers to what was written before may still come.
    deaf: bool,
    busy: Busy,
    timer: Pin<Box<Sleep>>,
    /// What the timer is set to.
    armed: Option<Instant>,
    /// Whether other workers may be about to add requests.
    many_threads: bool,
    /// Whether they have been let go first.
    yielded: bool,
    /// Kept for their memory.
    events: Vec<Event>,
    wakers: Vec<Waker>,
}

/// Why a connection is over.
enum End {
    /// It ended without a word.
    Lost,
    /// The daemon closes it; what has no answer has not been processed.
    Closing(DaemonError),
    /// What came does not follow the protocol.
    Fault(Error),
    /// Nobody needs it.
    Retired,
}

impl Driver {
    pub(super) fn new(
        stream: UnixStream,
        inbox: Inbox,
        session: Session,
        options: &Options,
        runtime: &Handle,
    ) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            connection: Arc::new(Connection::new(writer, session, options, runtime.id())),
            reader,
            inbox,
            sending: Outbox::new(session),
            deaf: false,
            busy: options.busy(),
            timer: Box::pin(sleep_until(Instant::now())),
            armed: None,
            many_threads: runtime.runtime_flavor() != RuntimeFlavor::CurrentThread,
            yielded: false,
            events: Vec::new(),
            wakers: Vec::new(),
        }
    }

    pub(super) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }

    /// Reading comes first: a connection that has ended must not be written to.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.receive(cx)?;
        self.flush(cx)?;
        self.keep_deadlines(cx)?;
        self.look(cx)
    }

    /// Looks for the answers that are due, if that may pay, and comes back for more once others have had their turn.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if !self.busy.is_on() || self.connection.state().order.is_empty() {
            return Ok(());
        }
        match self.busy.look(self.reader.as_ref(), self.inbox.space()) {
            None => return Ok(()),
            Some(Ok(count)) => self.take(count)?,
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(_)) => return Err(End::Lost),
        }
        // Polled once, it leaves word that the task is to be polled again after the others and the system's events.
        let _leaves_word = pin!(yield_now()).poll(cx);
        Ok(())
    }

    /// Reads all that has come. A buffer that is larger than what is there saves asking once more.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let mut space = ReadBuf::new(self.inbox.space());
            match Pin::new(&mut self.reader).poll_read(cx, &mut space) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(_)) => return Err(End::Lost),
                Poll::Ready(Ok(())) => {}
            }
            let count = space.filled().len();
            self.take(count)?;
        }
    }

    /// Hands out what so many bytes say that have been read.
    fn take(&mut self, count: usize) -> Result<(), End> {
        if count == 0 {
            return Err(End::Lost);
        }
        self.busy.answered();
        self.inbox.filled(count);
        // Decoded before the lock is taken: others add requests meanwhile.
        let fault = loop {
            match self.inbox.event() {
                Ok(Some(event)) => self.events.push(event),
                Ok(None) => break None,
                Err(error) => break Some(End::Fault(error)),
            }
        };
        self.deliver()?;
        fault.map_or(Ok(()), Err)
    }

    /// Hands out what has been read.
    fn deliver(&mut self) -> Result<(), End> {
        let mut state = self.connection.state();
        let before = state.order.len();
        let mut end = Ok(());
        for event in self.events.drain(..) {
            end = match event {
                Event::Reply(id, reply) => state.answer(id, reply, &mut self.wakers),
                Event::Closing(None, error) => Err(End::Closing(error)),
                Event::Closing(Some(id), error) => state
                    .answer(id, Err(Error::Daemon(error.clone())), &mut self.wakers)
                    .and(Err(End::Closing(error))),
            };
            if end.is_err() {
                break;
            }
        }
        let answered = before - state.order.len();
        state.alone = answered <= 1 && state.order.is_empty();
        drop(state);
        self.events.clear();
        self.connection.permits.add_permits(answered);
        self.wake();
        end
    }

    /// Writes all that has gathered, and leaves word where to find the driver.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            if !self.deaf && !self.write(cx) {
                let mut state = self.connection.state();
                state.wait(cx);
                return state.check_needed();
            }
            let mut state = self.connection.state();
            state.check_needed()?;
            if self.deaf {
                state.open = false;
                self.connection.permits.close();
                fail_unwritten(&mut state, self.sending.written(), &mut self.wakers);
                state.wait(cx);
                drop(state);
                self.wake();
                return Ok(());
            }
            state.driver_writes = false;
            state.wait(cx);
            if state.out.unsent().is_empty() {
                self.yielded = false;
                return Ok(());
            }
            // A worker runs the task that it has woken last before the others: let these add theirs first.
            if self.many_threads && !state.alone && !std::mem::replace(&mut self.yielded, true) {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            state.driver_writes = true;
            self.sending.take_from(&mut state.out);
        }
    }

    /// Writes what is being written; `false` where the socket is full.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.sending.unsent().is_empty() {
            match self.connection.writer.try_write(self.sending.unsent()) {
                Ok(count) => self.sending.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.connection.writer.as_ref().poll_write_ready(cx).is_pending() {
                        return false;
                    }
                }
                Err(_) => {
                    self.deaf = true;
                    return true;
                }
            }
        }
        true
    }

    /// Ends the wait of those whose deadline has passed, and sets the timer for the next.
    fn keep_deadlines(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let wanted = self.connection.state().timer;
            if wanted != self.armed {
                if let Some(deadline) = wanted {
                    self.timer.as_mut().reset(deadline);
                }
                self.armed = wanted;
            }
            if self.armed.is_none() || self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.armed = None;
            self.expire(Instant::now())?;
        }
    }

    fn expire(&mut self, now: Instant) -> Result<(), End> {
        let connection = Arc::clone(&self.connection);
        let mut guard = connection.state();
        let state = &mut *guard;
        if state.order.front().is_some_and(|due| due.deadline + STALLED < now) {
            return Err(End::Lost);
        }
        state.timer = None;
        for index in 0..state.order.len() {
            let due = &mut state.order[index];
            let Some(slot) = due.slot else { continue };
            if due.deadline > now {
                state.timer = Some(state.timer.map_or(due.deadline, |timer| timer.min(due.deadline)));
                continue;
            }
            due.slot = None;
            let written = due.position < written(state.driver_writes, &self.sending, &state.out);
            let position = due.position;
            self.sending.withdraw(position);
            state.out.withdraw(position);
            let outcome = Err(Failure::Late { written });
            state.settle(slot, outcome, &mut self.wakers);
        }
        drop(guard);
        self.wake();
        Ok(())
    }

    /// Tells everyone that it is over, and how.
    fn end(&mut self, end: &End) {
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state();
        state.open = false;
        self.connection.permits.close();
        let written = written(state.driver_writes, &self.sending, &state.out);
        let rest = std::mem::take(&mut state.order);
        state.first += rest.len() as u64;
        for Due { position, slot, .. } in rest {
            if let Some(slot) = slot {
                let outcome = Err(end.failure(position < written));
                state.settle(slot, outcome, &mut self.wakers);
            }
        }
        drop(state);
        // The socket itself lives as long as the client keeps it, but the daemon need not wait for that.
        let _ = rustix::net::shutdown(self.connection.writer.as_ref(), rustix::net::Shutdown::Both);
        self.wake();
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

/// Position of the first byte that has not been written.
fn written(driver_writes: bool, sending: &Outbox, out: &Outbox) -> u64 {
    if driver_writes { sending.written() } else { out.written() }
}

/// Takes back those requests of which nothing has been written: they can go to another connection.
fn fail_unwritten(state: &mut State, written: u64, wakers: &mut Vec<Waker>) {
    while let Some(due) = state.order.pop_back_if(|due| due.position >= written) {
        if let Some(slot) = due.slot {
            let lost = Failure::Retry(Error::ConnectionLost { written: false });
            state.settle(slot, Err(lost), wakers);
        }
    }
}

impl State {
    /// Settles the request that is due, if `id` is its id.
    fn answer(
        &mut self,
        id: u32,
        reply: Result<crate::Decision, Error>,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), End> {
        if self.order.is_empty() {
            return Err(End::Fault(Error::Protocol(format!("an answer to request {id}, and none was due"))));
        }
        due(self.first, id).map_err(End::Fault)?;
        self.first += 1;
        if let Some(Due { slot: Some(slot), .. }) = self.order.pop_front() {
            let outcome: Outcome = reply.map_err(Failure::Final);
            self.settle(slot, outcome, wakers);
        }
        Ok(())
    }

    /// Whether anybody waits or may come.
    fn check_needed(&self) -> Result<(), End> {
        let over = self.retired && self.order.iter().all(|due| due.slot.is_none());
        if over { Err(End::Retired) } else { Ok(()) }
    }

    /// Leaves word where to find the driver.
    fn wait(&mut self, cx: &Context<'_>) {
        if !self.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            self.driver = Some(cx.waker().clone());
        }
    }
}

impl End {
    /// What it means for a request without an answer.
    fn failure(&self, written: bool) -> Failure {
        match self {
            Self::Closing(error) => Failure::Retry(Error::Daemon(error.clone())),
            _ if !written => Failure::Retry(Error::ConnectionLost { written }),
            Self::Fault(error) => Failure::Final(error.clone()),
            Self::Lost | Self::Retired => Failure::Final(Error::ConnectionLost { written }),
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => {
                self.end(&end);
                Poll::Ready(())
            }
        }
    }
}

/// Where the runtime ends first, nobody must be left waiting.
impl Drop for Driver {
    fn drop(&mut self) {
        self.end(&End::Lost);
    }
}
