//! What the callers and the driver of one connection share: frames to be written, and who waits for which answer.

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

use super::within;
use crate::error::{ENDED, Error, Failure, Outcome};
use crate::forms::Forms;
use crate::socket::{FRESH, Idle, look};
use crate::wire::{HELLO_SEQUENCE, Outbox, Session};
use crate::{Options, Request};

pub(super) struct Connection {
    pub(super) writer: OwnedWriteHalf,
    session: Session,
    forms: Forms,
    /// How many more requests may be without an answer. Closed when the connection is.
    pub(super) permits: Semaphore,
    /// Whether the driver looks for answers instead of sleeping.
    is_busy: bool,
    /// The runtime that the driver runs in.
    home: Id,
    state: Mutex<State>,
}

pub(super) struct State {
    /// Whether requests are taken.
    pub(super) open: bool,
    /// Whether it ends with the last of those who wait.
    pub(super) retired: bool,
    /// Frames that the driver has not taken yet.
    pub(super) out: Outbox,
    /// Whether the driver holds frames of its own that come before those.
    pub(super) driver_writes: bool,
    /// Number of the next request.
    next: u64,
    /// Number of the request whose answer is due next: the first in `order`.
    pub(super) first: u64,
    /// Every request without an answer, in the order of their numbers.
    pub(super) order: VecDeque<Due>,
    /// What those wait in who want to know.
    slots: Slab<Slot>,
    /// The driver, while it sleeps.
    pub(super) driver: Option<Waker>,
    /// When the driver will look for deadlines that have passed; `None`: not at all.
    pub(super) timer: Option<Instant>,
    /// Whether the last answer was the only one, so that the next request is likely to be alone as well.
    pub(super) alone: bool,
    /// When the daemon last heard from us.
    last_sent: Instant,
}

/// A request without an answer.
pub(super) struct Due {
    /// Position of its first byte (see [`Outbox`]).
    pub(super) position: u64,
    pub(super) deadline: Instant,
    /// Who waits; `None` once they have given up. The answer is due all the same.
    pub(super) slot: Option<usize>,
}

/// Where a request's answer will be.
struct Place {
    slot: usize,
    number: u64,
    /// Whether the key was sent as it is.
    raw: bool,
}

enum Slot {
    Waiting(Option<Waker>),
    Done(Outcome),
}

impl Connection {
    pub(super) fn new(writer: OwnedWriteHalf, session: Session, options: &Options, home: Id) -> Self {
        let state = State {
            open: true,
            retired: false,
            out: Outbox::new(session),
            driver_writes: false,
            next: HELLO_SEQUENCE + 1,
            first: HELLO_SEQUENCE + 1,
            order: VecDeque::new(),
            slots: Slab::new(),
            driver: None,
            timer: None,
            alone: true,
            last_sent: Instant::now(),
        };
        Self {
            writer,
            session,
            forms: Forms::new(session.credentials),
            permits: Semaphore::new(options.in_flight()),
            is_busy: options.busy().is_on(),
            home,
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests can be written: it is open, and the daemon has neither ended it, nor is it about to for its
    /// silence (SPEC.md section 9). The driver sees an end, too, but not in a runtime that was not running meanwhile.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state();
        if !state.open || !state.order.is_empty() {
            return state.open;
        }
        let silent = state.last_sent.elapsed();
        self.session.usable_silence.is_none_or(|limit| silent <= limit)
            && (silent < FRESH || look(self.writer.as_ref()) == Idle::Quiet)
    }

    /// Lets the connection end as soon as nobody waits for an answer: no more requests are taken.
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

    /// Asks one request.
    pub(super) async fn ask(self: &Arc<Self>, request: &Request<'_>, deadline: Instant) -> Outcome {
        let credential = self.forms.credential(request);
        self.admit(1, deadline).await?;
        // Registered with the request, so that the first poll of the ticket has nothing left to do.
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let mut ticket = self.enqueue_one(request, credential, deadline, waker)?;
        match within(self.home, deadline, &mut ticket).await {
            Some(outcome) => outcome,
            None => Err(ticket.give_up()),
        }
    }

    /// Hands over those of `requests` that `indexes` lists, together.
    pub(super) async fn send(
        self: &Arc<Self>,
        requests: &[Request<'_>],
        indexes: &[usize],
        deadline: Instant,
    ) -> Result<Batch, Failure> {
        let credentials: Vec<_> =
            indexes.iter().map(|&index| self.forms.credential(&requests[index])).collect();
        self.admit(indexes.len() as u32, deadline).await?;
        let mut state = self.state();
        self.check_open(&state)?;
        let inline = state.order.is_empty() && state.out.unsent().is_empty();
        let mut tickets = Vec::with_capacity(indexes.len());
        let mut refused = 0;
        for (&index, credential) in indexes.iter().zip(credentials) {
            let ticket = match state.push(&requests[index], credential, deadline, None) {
                Ok(place) => Ok(Ticket::new(self, place)),
                Err(error) => {
                    refused += 1;
                    Err(error)
                }
            };
            tickets.push(ticket);
        }
        self.kick(state, inline, deadline);
        self.permits.add_permits(refused);
        Ok(Batch { connection: Arc::clone(self), tickets, deadline })
    }

    /// Waits until `count` more requests may be in flight. They are given back as answers come, whoever still waits for
    /// those: that is what bounds the memory.
    async fn admit(&self, count: u32, deadline: Instant) -> Result<(), Failure> {
        let permits = match self.permits.try_acquire_many(count) {
            Ok(permits) => Some(permits),
            Err(TryAcquireError::Closed) => None,
            Err(TryAcquireError::NoPermits) => {
                match timeout_at(deadline, self.permits.acquire_many(count)).await {
                    Ok(permits) => permits.ok(),
                    Err(_) => return Err(Failure::Late { written: false }),
                }
            }
        };
        permits.map(|permits| permits.forget()).ok_or(ENDED)
    }

    fn enqueue_one(
        self: &Arc<Self>,
        request: &Request<'_>,
        credential: Credential<'_>,
        deadline: Instant,
        waker: Waker,
    ) -> Result<Ticket, Failure> {
        let mut state = self.state();
        self.check_open(&state)?;
        let inline = state.alone && state.order.is_empty() && state.out.unsent().is_empty();
        match state.push(request, credential, deadline, Some(waker)) {
            Ok(place) => {
                self.kick(state, inline, deadline);
                Ok(Ticket::new(self, place))
            }
            Err(error) => {
                drop(state);
                self.permits.add_permits(1);
                Err(Failure::Final(error))
            }
        }
    }

    fn check_open(&self, state: &State) -> Result<(), Failure> {
        if state.open { Ok(()) } else { Err(ENDED) }
    }

    /// Sees to it that what has been pushed is written, and that its deadline is kept. With `inline`, nothing else is
    /// going on, and it can be written here and now; what does not fit, and what fails, is left to the driver.
    fn kick(&self, mut state: MutexGuard<'_, State>, inline: bool, deadline: Instant) {
        if inline
            && !state.driver_writes
            && let Ok(count) = self.writer.try_write(state.out.unsent())
        {
            state.out.advance(count);
        }
        state.last_sent = Instant::now();
        let mut needs_driver = self.is_busy || !state.out.unsent().is_empty();
        if state.timer.is_none_or(|timer| timer > deadline) {
            state.timer = Some(deadline);
            needs_driver = true;
        }
        let driver = if needs_driver { state.driver.take() } else { None };
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl State {
    /// Appends a request, and tells where its answer will be.
    fn push(
        &mut self,
        request: &Request<'_>,
        credential: Credential<'_>,
        deadline: Instant,
        waker: Option<Waker>,
    ) -> Result<Place, Error> {
        let number = self.next;
        let position = self.out.push(number, request, credential)?;
        let slot = self.slots.insert(Slot::Waiting(waker));
        self.order.push_back(Due { position, deadline, slot: Some(slot) });
        self.next += 1;
        Ok(Place { slot, number, raw: matches!(credential, Credential::RawKey(_)) })
    }

    /// Tells whoever waits in `slot`.
    pub(super) fn settle(&mut self, slot: usize, outcome: Outcome, wakers: &mut Vec<Waker>) {
        if let Some(slot) = self.slots.get_mut(slot)
            && let Slot::Waiting(Some(waker)) = std::mem::replace(slot, Slot::Done(outcome))
        {
            wakers.push(waker);
        }
    }
}

/// A claim to one answer.
pub(super) struct Ticket {
    connection: Arc<Connection>,
    slot: Option<usize>,
    number: u64,
    /// Whether the key was sent as it is.
    raw: bool,
    /// Whether the waker has just been registered.
    fresh: bool,
}

impl Ticket {
    fn new(connection: &Arc<Connection>, Place { slot, number, raw }: Place) -> Self {
        Self { connection: Arc::clone(connection), slot: Some(slot), number, raw, fresh: true }
    }

    /// The outcome, if it is there.
    fn take(&mut self, state: &mut State) -> Option<Outcome> {
        let slot = self.slot?;
        if matches!(state.slots.get(slot), Some(Slot::Waiting(_))) {
            return None;
        }
        self.slot = None;
        match state.slots.try_remove(slot) {
            Some(Slot::Done(Err(Failure::Final(error)))) => {
                Some(Err(self.connection.forms.failure(error, self.raw)))
            }
            Some(Slot::Done(outcome)) => Some(outcome),
            _ => Some(Err(ENDED)),
        }
    }

    /// Stops waiting: the answer, when it comes, is ignored, and what has not been written yet will charge nothing.
    fn give_up(mut self) -> Failure {
        Failure::Late { written: self.abandon() }
    }

    /// Tells whether something of the request may have been written. What the driver has taken counts as written.
    fn abandon(&mut self) -> bool {
        let Some(slot) = self.slot.take() else { return true };
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state();
        let state = &mut *state;
        state.slots.try_remove(slot);
        let index = self.number.checked_sub(state.first);
        let Some(due) = index.and_then(|index| state.order.get_mut(index as usize)) else { return true };
        due.slot = None;
        state.out.withdraw(due.position);
        due.position < state.out.written()
    }
}

impl Future for Ticket {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        if std::mem::take(&mut self.fresh) {
            return Poll::Pending;
        }
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state();
        if let Some(outcome) = self.take(&mut state) {
            return Poll::Ready(outcome);
        }
        if let Some(Slot::Waiting(waker)) = self.slot.and_then(|slot| state.slots.get_mut(slot)) {
            register(waker, cx);
        }
        Poll::Pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

/// Claims to the answers of requests that were handed over together.
pub(super) struct Batch {
    connection: Arc<Connection>,
    tickets: Vec<Result<Ticket, Error>>,
    deadline: Instant,
}

impl Batch {
    /// Waits for all of them.
    pub(super) async fn wait(mut self) -> Vec<Outcome> {
        let (connection, deadline) = (Arc::clone(&self.connection), self.deadline);
        let done = poll_fn(|cx| self.poll_last(cx));
        within(connection.home, deadline, done).await;
        let mut outcomes = Vec::with_capacity(self.tickets.len());
        for ticket in self.tickets {
            outcomes.push(match ticket {
                Err(error) => Err(Failure::Final(error)),
                Ok(mut ticket) => {
                    let outcome = ticket.take(&mut connection.state());
                    outcome.unwrap_or_else(|| Err(ticket.give_up()))
                }
            });
        }
        outcomes
    }

    /// Answers come in order, so that the last that is missing is the only one to be woken for.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.connection.state();
        for ticket in self.tickets.iter().rev().flatten() {
            if let Some(Slot::Waiting(waker)) = ticket.slot.and_then(|slot| state.slots.get_mut(slot)) {
                register(waker, cx);
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}
