//! The task of a connection: it writes the buffered frames, reads the responses, and enforces the
//! deadlines.

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

use super::connection::{Connection, Pending, State, register_waker};
use crate::busy_poll::BusyPoll;
use crate::error::{Error, ProtocolViolationError};
use crate::event::Event;
use crate::failure::{CONNECTION_ENDED, CloseReason, Failure};
use crate::receive_buffer::ReceiveBuffer;
use crate::retry::STALL_TIMEOUT;
use crate::send_buffer::SendBuffer;
use crate::sequence::check_request_id;
use crate::session::Session;
use crate::{Decision, Options};

pub(super) struct Driver {
    connection: Arc<Connection>,
    reader: OwnedReadHalf,
    receive_buffer: ReceiveBuffer,
    /// Frames that are being written.
    sending: SendBuffer,
    /// Whether a write has failed. Responses to earlier requests may still arrive.
    write_failed: bool,
    busy_poll: BusyPoll,
    timer: Pin<Box<Sleep>>,
    /// The instant that the timer is set to.
    timer_deadline: Option<Instant>,
    /// Whether other threads of the runtime may be about to add requests.
    multi_threaded: bool,
    /// Whether the driver has already yielded to them.
    yielded: bool,
    /// Empty between polls; a field so that its memory is reused.
    events: Vec<Event>,
    /// Wakers of callers whose requests have outcomes.
    wakers: Vec<Waker>,
}

impl Driver {
    pub(super) fn new(
        stream: UnixStream,
        receive_buffer: ReceiveBuffer,
        session: Session,
        options: &Options,
        runtime: &Handle,
    ) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            connection: Arc::new(Connection::new(writer, session, options, runtime.id())),
            reader,
            receive_buffer,
            sending: SendBuffer::new(session),
            write_failed: false,
            busy_poll: BusyPoll::new(options.busy_poll),
            timer: Box::pin(sleep_until(Instant::now())),
            timer_deadline: None,
            multi_threaded: runtime.runtime_flavor() != RuntimeFlavor::CurrentThread,
            yielded: false,
            events: Vec::new(),
            wakers: Vec::new(),
        }
    }

    pub(super) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }

    /// Does everything that is possible without waiting. Reading comes first, because a connection
    /// that has ended must not be written to.
    fn run_once(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        self.read_all(cx)?;
        self.flush(cx)?;
        self.enforce_deadlines(cx)?;
        self.spin(cx)
    }

    /// Polls for the responses that are due, if that is likely to pay, and asks to be polled again
    /// after the other tasks.
    fn spin(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        if !self.busy_poll.is_enabled() || self.connection.state().pending.is_empty() {
            return Ok(());
        }
        match self.busy_poll.try_recv(self.reader.as_ref(), self.receive_buffer.free_space()) {
            None => return Ok(()),
            Some(Ok(count)) => self.process_read(count)?,
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(_)) => return Err(CloseReason::Lost),
        }
        // One poll is enough: it schedules the driver after the other tasks and the I/O events.
        let _ = pin!(yield_now()).poll(cx);
        Ok(())
    }

    /// Reads everything that has arrived. A read that does not fill the buffer has emptied the
    /// socket, and tokio then returns `Pending` without another system call.
    fn read_all(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        loop {
            let mut space = ReadBuf::new(self.receive_buffer.free_space());
            match Pin::new(&mut self.reader).poll_read(cx, &mut space) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(_)) => return Err(CloseReason::Lost),
                Poll::Ready(Ok(())) => {}
            }
            let count = space.filled().len();
            self.process_read(count)?;
        }
    }

    /// Processes `count` bytes that have been read into the receive buffer.
    fn process_read(&mut self, count: usize) -> Result<(), CloseReason> {
        if count == 0 {
            return Err(CloseReason::Lost);
        }
        self.busy_poll.record_answer();
        self.receive_buffer.advance(count);
        // The events are decoded before the lock is taken, so that callers can add requests
        // meanwhile.
        let violation = loop {
            match self.receive_buffer.next_event() {
                Ok(Some(event)) => self.events.push(event),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        self.dispatch_events()?;
        violation.map_or(Ok(()), |error| Err(CloseReason::Violation(error)))
    }

    /// Completes the requests that have been answered.
    fn dispatch_events(&mut self) -> Result<(), CloseReason> {
        let mut state = self.connection.state();
        let pending_before = state.pending.len();
        let mut result = Ok(());
        for event in self.events.drain(..) {
            result = match event {
                Event::Reply(id, reply) => state.complete_next(id, reply, &mut self.wakers),
                Event::Closing(None, error) => Err(CloseReason::ClosedByDaemon(error)),
                Event::Closing(Some(id), error) => state
                    .complete_next(id, Err(Error::Daemon(error.clone())), &mut self.wakers)
                    .and(Err(CloseReason::ClosedByDaemon(error))),
            };
            if result.is_err() {
                break;
            }
        }
        let answered = pending_before - state.pending.len();
        state.likely_alone = answered <= 1 && state.pending.is_empty();
        drop(state);
        self.events.clear();
        self.connection.permits.add_permits(answered);
        self.wake_callers();
        result
    }

    /// Writes all buffered frames, and registers the waker of the driver.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        loop {
            if !self.write_failed && !self.write(cx) {
                let mut state = self.connection.state();
                state.register_driver(cx);
                return state.check_needed();
            }
            let mut state = self.connection.state();
            state.check_needed()?;
            if self.write_failed {
                state.open = false;
                self.connection.permits.close();
                fail_unwritten(&mut state, self.sending.sent_position(), &mut self.wakers);
                state.register_driver(cx);
                drop(state);
                self.wake_callers();
                return Ok(());
            }
            state.driver_writes = false;
            state.register_driver(cx);
            if state.send_buffer.unsent().is_empty() {
                self.yielded = false;
                return Ok(());
            }
            // A worker thread runs the task that it woke last before the others. Yield once, so
            // that the others can add their requests to the same write.
            if self.multi_threaded && !state.likely_alone && !std::mem::replace(&mut self.yielded, true) {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            state.driver_writes = true;
            self.sending.take_from(&mut state.send_buffer);
        }
    }

    /// Writes the frames in `sending`. Returns `false` if the socket is full.
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
                    self.write_failed = true;
                    return true;
                }
            }
        }
        true
    }

    /// Fails the requests whose deadlines have passed, and sets the timer to the next deadline.
    fn enforce_deadlines(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        loop {
            let wanted = self.connection.state().timer;
            if wanted != self.timer_deadline {
                if let Some(deadline) = wanted {
                    self.timer.as_mut().reset(deadline);
                }
                self.timer_deadline = wanted;
            }
            if self.timer_deadline.is_none() || self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.timer_deadline = None;
            self.fail_expired(Instant::now())?;
        }
    }

    fn fail_expired(&mut self, now: Instant) -> Result<(), CloseReason> {
        let connection = Arc::clone(&self.connection);
        let mut guard = connection.state();
        let state = &mut *guard;
        if state.pending.front().is_some_and(|pending| pending.deadline + STALL_TIMEOUT < now) {
            return Err(CloseReason::Lost);
        }
        state.timer = None;
        for index in 0..state.pending.len() {
            let pending = &mut state.pending[index];
            let Some(slot) = pending.slot else { continue };
            if pending.deadline > now {
                let timer = state.timer.map_or(pending.deadline, |timer| timer.min(pending.deadline));
                state.timer = Some(timer);
                continue;
            }
            pending.slot = None;
            let position = pending.position;
            let sent_position = sent_position(state.driver_writes, &self.sending, &state.send_buffer);
            self.sending.cancel(position);
            state.send_buffer.cancel(position);
            let outcome = Err(Failure::DeadlinePassed { written: position < sent_position });
            state.complete(slot, outcome, &mut self.wakers);
        }
        drop(guard);
        self.wake_callers();
        Ok(())
    }

    /// Closes the connection and fails all pending requests.
    fn close(&mut self, reason: &CloseReason) {
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state();
        state.open = false;
        self.connection.permits.close();
        let sent_position = sent_position(state.driver_writes, &self.sending, &state.send_buffer);
        let pending = std::mem::take(&mut state.pending);
        state.next_response += pending.len() as u64;
        for Pending { position, slot, .. } in pending {
            if let Some(slot) = slot {
                let outcome = Err(reason.failure(position < sent_position));
                state.complete(slot, outcome, &mut self.wakers);
            }
        }
        drop(state);
        // Callers may hold the connection, and thereby the socket, for longer. The daemon need not
        // wait for them.
        let _ = rustix::net::shutdown(self.connection.writer.as_ref(), rustix::net::Shutdown::Both);
        self.wake_callers();
    }

    fn wake_callers(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

/// Position of the first byte that has not been written.
fn sent_position(driver_writes: bool, sending: &SendBuffer, send_buffer: &SendBuffer) -> u64 {
    if driver_writes { sending.sent_position() } else { send_buffer.sent_position() }
}

/// Fails the requests of which nothing has been written, so that they can be sent on another
/// connection.
fn fail_unwritten(state: &mut State, sent_position: u64, wakers: &mut Vec<Waker>) {
    while let Some(pending) = state.pending.pop_back_if(|pending| pending.position >= sent_position) {
        if let Some(slot) = pending.slot {
            state.complete(slot, Err(CONNECTION_ENDED), wakers);
        }
    }
}

impl State {
    /// Completes the request whose response is due. Its id must be `id`.
    fn complete_next(
        &mut self,
        id: u32,
        reply: Result<Decision, Error>,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), CloseReason> {
        if self.pending.is_empty() {
            return Err(ProtocolViolationError::UnexpectedResponse { request_id: id }.into());
        }
        check_request_id(self.next_response, id)?;
        self.next_response += 1;
        if let Some(Pending { slot: Some(slot), .. }) = self.pending.pop_front() {
            self.complete(slot, reply.map_err(Failure::Final), wakers);
        }
        Ok(())
    }

    /// Returns [`CloseReason::Retired`] if the connection is retired and no caller waits.
    fn check_needed(&self) -> Result<(), CloseReason> {
        let unneeded = self.retired && self.pending.iter().all(|pending| pending.slot.is_none());
        if unneeded { Err(CloseReason::Retired) } else { Ok(()) }
    }

    fn register_driver(&mut self, cx: &Context<'_>) {
        register_waker(&mut self.driver, cx);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.run_once(cx) {
            Ok(()) => Poll::Pending,
            Err(reason) => {
                self.close(&reason);
                Poll::Ready(())
            }
        }
    }
}

/// If the runtime ends first, callers in other runtimes must not wait forever.
impl Drop for Driver {
    fn drop(&mut self) {
        self.close(&CloseReason::Lost);
    }
}
