//! A connection as its callers and its driver share it: frames to be written, and requests that
//! wait for their responses.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use keyward_protocol::Credential;
use slab::Slab;
use tokio::net::unix::OwnedWriteHalf;
use tokio::runtime::Id;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};

use super::await_response;
use crate::credential_mode::CredentialMode;
use crate::error::Error;
use crate::failure::{CONNECTION_ENDED, Failure, Outcome};
use crate::send_buffer::SendBuffer;
use crate::sequence::FIRST_SEQUENCE;
use crate::session::Session;
use crate::socket::{CHECK_AFTER, ReadState, peek};
use crate::{Options, Request};

pub(super) struct Connection {
    pub(super) writer: OwnedWriteHalf,
    session: Session,
    credential_mode: CredentialMode,
    /// One permit for each further request that may be in flight. Closed together with the
    /// connection.
    pub(super) permits: Semaphore,
    /// Whether the driver polls for responses instead of sleeping.
    busy_polls: bool,
    /// The runtime of the driver.
    driver_runtime: Id,
    state: Mutex<State>,
}

pub(super) struct State {
    /// Whether requests are accepted.
    pub(super) open: bool,
    /// Whether the connection ends when no caller waits any more.
    pub(super) retired: bool,
    /// Frames that the driver has not taken yet.
    pub(super) send_buffer: SendBuffer,
    /// Whether the driver has frames to write that precede those in `send_buffer`.
    pub(super) driver_writes: bool,
    /// Sequence number of the next request.
    next_request: u64,
    /// Sequence number of the request whose response is due: the first of `pending`.
    pub(super) next_response: u64,
    /// The requests without a response, in order.
    pub(super) pending: VecDeque<Pending>,
    /// Where the callers of pending requests wait.
    slots: Slab<Slot>,
    /// Wakes the driver, while it sleeps.
    pub(super) driver: Option<Waker>,
    /// When the driver will check for expired deadlines; `None` means never.
    pub(super) timer: Option<Instant>,
    /// Whether the last response left no request in flight and came alone, so that the next request
    /// probably will, too.
    pub(super) likely_alone: bool,
    /// When something was last sent to the daemon.
    last_sent: Instant,
}

/// A request without a response.
pub(super) struct Pending {
    /// Position of its first byte in the [`SendBuffer`].
    pub(super) position: u64,
    pub(super) deadline: Instant,
    /// Where the caller waits; `None` after it has stopped waiting. The response is still due then.
    pub(super) slot: Option<usize>,
}

/// Where a caller waits for the outcome of its request.
enum Slot {
    Waiting(Option<Waker>),
    Done(Outcome),
}

impl Connection {
    pub(super) fn new(
        writer: OwnedWriteHalf,
        session: Session,
        options: &Options,
        driver_runtime: Id,
    ) -> Self {
        let state = State {
            open: true,
            retired: false,
            send_buffer: SendBuffer::new(session),
            driver_writes: false,
            next_request: FIRST_SEQUENCE,
            next_response: FIRST_SEQUENCE,
            pending: VecDeque::new(),
            slots: Slab::new(),
            driver: None,
            timer: None,
            likely_alone: true,
            last_sent: Instant::now(),
        };
        Self {
            writer,
            session,
            credential_mode: CredentialMode::new(session.credentials),
            permits: Semaphore::new(options.max_in_flight),
            busy_polls: !options.busy_poll.is_zero(),
            driver_runtime,
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests can be written: the connection is open, the daemon has not closed it, and
    /// is not about to do so because of its idle timeout (SPEC.md section 9). The driver also
    /// notices the end of the stream, but not while its runtime is not running.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state();
        if !state.open || !state.pending.is_empty() {
            return state.open;
        }
        let silence = state.last_sent.elapsed();
        self.session.max_silence.is_none_or(|max| silence <= max)
            && (silence < CHECK_AFTER || peek(self.writer.as_ref()) == ReadState::Empty)
    }

    /// Stops accepting requests, and lets the connection end as soon as no caller waits.
    pub(super) fn retire(&self) {
        let mut state = self.state();
        state.open = false;
        state.retired = true;
        self.permits.close();
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Sends a request and waits for its outcome.
    pub(super) async fn send(self: &Arc<Self>, request: &Request<'_>, deadline: Instant) -> Outcome {
        let credential = self.credential_mode.credential(request);
        self.acquire_permits(1, deadline).await?;
        // The waker is registered together with the request, so that the first poll of the response
        // has nothing to do.
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let mut response = self.enqueue(request, credential, deadline, waker)?;
        match await_response(self.driver_runtime, deadline, &mut response).await {
            Some(outcome) => outcome,
            None => Err(response.into_timeout()),
        }
    }

    /// Enqueues those of `requests` whose indexes are in `indexes`, so that they are written
    /// together.
    pub(super) async fn send_batch(
        self: &Arc<Self>,
        requests: &[Request<'_>],
        indexes: &[usize],
        deadline: Instant,
    ) -> Result<ResponseBatch, Failure> {
        let credentials: Vec<_> =
            indexes.iter().map(|&index| self.credential_mode.credential(&requests[index])).collect();
        self.acquire_permits(indexes.len() as u32, deadline).await?;
        let mut state = self.state();
        self.check_open(&state)?;
        let write_inline = state.pending.is_empty() && state.send_buffer.unsent().is_empty();
        let mut responses = Vec::with_capacity(indexes.len());
        let mut rejected = 0;
        for (&index, credential) in indexes.iter().zip(credentials) {
            let response = match state.push(&requests[index], credential, deadline, None) {
                Ok(enqueued) => Ok(PendingResponse::new(self, enqueued)),
                Err(error) => {
                    rejected += 1;
                    Err(error)
                }
            };
            responses.push(response);
        }
        self.start_writing(state, write_inline, deadline);
        self.permits.add_permits(rejected);
        Ok(ResponseBatch { connection: Arc::clone(self), responses, deadline })
    }

    /// Waits until `count` more requests may be in flight. The driver returns the permits when the
    /// responses arrive, even if their callers have stopped waiting: this bounds the memory.
    async fn acquire_permits(&self, count: u32, deadline: Instant) -> Result<(), Failure> {
        let permits = match self.permits.try_acquire_many(count) {
            Ok(permits) => Some(permits),
            Err(TryAcquireError::Closed) => None,
            Err(TryAcquireError::NoPermits) => {
                match timeout_at(deadline, self.permits.acquire_many(count)).await {
                    Ok(permits) => permits.ok(),
                    Err(_) => return Err(Failure::DeadlinePassed { written: false }),
                }
            }
        };
        permits.map(|permits| permits.forget()).ok_or(CONNECTION_ENDED)
    }

    fn enqueue(
        self: &Arc<Self>,
        request: &Request<'_>,
        credential: Credential<'_>,
        deadline: Instant,
        waker: Waker,
    ) -> Result<PendingResponse, Failure> {
        let mut state = self.state();
        self.check_open(&state)?;
        let write_inline =
            state.likely_alone && state.pending.is_empty() && state.send_buffer.unsent().is_empty();
        match state.push(request, credential, deadline, Some(waker)) {
            Ok(enqueued) => {
                self.start_writing(state, write_inline, deadline);
                Ok(PendingResponse::new(self, enqueued))
            }
            Err(error) => {
                drop(state);
                self.permits.add_permits(1);
                Err(Failure::Final(error))
            }
        }
    }

    fn check_open(&self, state: &State) -> Result<(), Failure> {
        if state.open { Ok(()) } else { Err(CONNECTION_ENDED) }
    }

    /// Ensures that the pushed requests are written and that their deadline is enforced. With
    /// `write_inline`, no other request is in flight, and they are written here. The driver writes
    /// what does not fit into the socket, and handles errors.
    fn start_writing(&self, mut state: MutexGuard<'_, State>, write_inline: bool, deadline: Instant) {
        if write_inline
            && !state.driver_writes
            && let Ok(count) = self.writer.try_write(state.send_buffer.unsent())
        {
            state.send_buffer.advance(count);
        }
        state.last_sent = Instant::now();
        let mut wake_driver = self.busy_polls || !state.send_buffer.unsent().is_empty();
        if state.timer.is_none_or(|timer| timer > deadline) {
            state.timer = Some(deadline);
            wake_driver = true;
        }
        let driver = if wake_driver { state.driver.take() } else { None };
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// A request that has been pushed.
struct Enqueued {
    slot: usize,
    sequence: u64,
    /// Whether the raw key was sent.
    raw: bool,
}

impl State {
    /// Appends a request.
    fn push(
        &mut self,
        request: &Request<'_>,
        credential: Credential<'_>,
        deadline: Instant,
        waker: Option<Waker>,
    ) -> Result<Enqueued, Error> {
        let sequence = self.next_request;
        let position = self.send_buffer.push(sequence, request, credential)?;
        let slot = self.slots.insert(Slot::Waiting(waker));
        self.pending.push_back(Pending { position, deadline, slot: Some(slot) });
        self.next_request += 1;
        Ok(Enqueued { slot, sequence, raw: matches!(credential, Credential::RawKey(_)) })
    }

    /// Stores the outcome for the caller that waits in `slot`, and adds its waker to `wakers`.
    pub(super) fn complete(&mut self, slot: usize, outcome: Outcome, wakers: &mut Vec<Waker>) {
        if let Some(slot) = self.slots.get_mut(slot)
            && let Slot::Waiting(Some(waker)) = std::mem::replace(slot, Slot::Done(outcome))
        {
            wakers.push(waker);
        }
    }
}

/// Waits for the outcome of one request. Dropping it cancels the request if nothing of it has been
/// written.
struct PendingResponse {
    connection: Arc<Connection>,
    slot: Option<usize>,
    sequence: u64,
    /// Whether the raw key was sent.
    raw: bool,
    /// Whether this has not been polled since the waker was registered with the request.
    unpolled: bool,
}

impl PendingResponse {
    fn new(connection: &Arc<Connection>, Enqueued { slot, sequence, raw }: Enqueued) -> Self {
        Self { connection: Arc::clone(connection), slot: Some(slot), sequence, raw, unpolled: true }
    }

    /// Takes the outcome, if there is one.
    fn take_outcome(&mut self, state: &mut State) -> Option<Outcome> {
        let slot = self.slot?;
        if matches!(state.slots.get(slot), Some(Slot::Waiting(_))) {
            return None;
        }
        self.slot = None;
        match state.slots.try_remove(slot) {
            Some(Slot::Done(Err(Failure::Final(error)))) => {
                Some(Err(self.connection.credential_mode.failure(error, self.raw)))
            }
            Some(Slot::Done(outcome)) => Some(outcome),
            _ => Some(Err(CONNECTION_ENDED)),
        }
    }

    /// Stops waiting because the deadline has passed.
    fn into_timeout(mut self) -> Failure {
        Failure::DeadlinePassed { written: self.cancel() }
    }

    /// Stops waiting: the response will be ignored, and a request that has not been written will
    /// charge nothing. Returns whether any part of the request may have been written. Frames that
    /// the driver has taken count as written.
    fn cancel(&mut self) -> bool {
        let Some(slot) = self.slot.take() else { return true };
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state();
        let state = &mut *state;
        state.slots.try_remove(slot);
        let index = self.sequence.checked_sub(state.next_response);
        let Some(pending) = index.and_then(|index| state.pending.get_mut(index as usize)) else {
            return true;
        };
        pending.slot = None;
        state.send_buffer.cancel(pending.position);
        pending.position < state.send_buffer.sent_position()
    }
}

impl Future for PendingResponse {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        if std::mem::take(&mut self.unpolled) {
            return Poll::Pending;
        }
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state();
        if let Some(outcome) = self.take_outcome(&mut state) {
            return Poll::Ready(outcome);
        }
        if let Some(Slot::Waiting(waker)) = self.slot.and_then(|slot| state.slots.get_mut(slot)) {
            register_waker(waker, cx);
        }
        Poll::Pending
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Stores the waker of `cx`, unless `waker` already wakes the same task.
pub(super) fn register_waker(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

/// Waits for the outcomes of requests that were sent together.
pub(super) struct ResponseBatch {
    connection: Arc<Connection>,
    responses: Vec<Result<PendingResponse, Error>>,
    deadline: Instant,
}

impl ResponseBatch {
    /// Waits for all outcomes, in the order of the requests.
    pub(super) async fn outcomes(mut self) -> Vec<Outcome> {
        let (connection, deadline) = (Arc::clone(&self.connection), self.deadline);
        let all_complete = poll_fn(|cx| self.poll_complete(cx));
        await_response(connection.driver_runtime, deadline, all_complete).await;
        let mut outcomes = Vec::with_capacity(self.responses.len());
        for response in self.responses {
            outcomes.push(match response {
                Err(error) => Err(Failure::Final(error)),
                Ok(mut response) => {
                    let outcome = response.take_outcome(&mut connection.state());
                    outcome.unwrap_or_else(|| Err(response.into_timeout()))
                }
            });
        }
        outcomes
    }

    /// Responses arrive in order, so only the last missing one needs the waker.
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.connection.state();
        for response in self.responses.iter().rev().flatten() {
            if let Some(Slot::Waiting(waker)) = response.slot.and_then(|slot| state.slots.get_mut(slot)) {
                register_waker(waker, cx);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}
