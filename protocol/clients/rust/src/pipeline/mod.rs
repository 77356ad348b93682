//! The async client: one connection, on which all tasks pipeline their requests.
//!
//! `verify` hashes the key and appends a frame to the send buffer of the [`connection`]. One task
//! per connection, the [`driver`], writes all buffered frames at once, reads many responses at
//! once, and wakes the callers. If no other request is in flight, `verify` writes the frame itself,
//! so that a single request costs one wake-up of the driver (for the response) and one of the
//! caller.
//!
//! The driver is a task of its own rather than one of the waiting callers, because a caller may be
//! dropped or not polled for a while, and must not delay the others.

mod connect;
mod connection;
mod driver;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::Error;
use crate::failure::{CONNECTION_ENDED, Failure, Outcome};
use crate::options::MAX_DEADLINE;
use crate::retry::{MAX_ATTEMPTS, retry_delay};
use crate::{Debit, Decision, Options, Refund, Request};
use connection::{Connection, ResponseBatch};

/// The async client. Clones share one connection, which is made on first use and ends with the last
/// clone.
///
/// Its methods need a tokio runtime with I/O and time enabled. Without a runtime, they return an
/// [`Error`]; in a runtime without I/O or time, tokio panics. The connection belongs to the runtime
/// in which it was made, and is replaced when that runtime has ended.
///
/// All futures may be dropped at any time. The pipeline continues, and the answer to a dropped
/// request is ignored; whether the request was charged is unknown then.
#[derive(Clone)]
pub struct Client {
    inner: Arc<ClientInner>,
    deadline: Duration,
}

struct ClientInner {
    options: Options,
    link: Mutex<Link>,
}

/// The state of the connection to the daemon.
enum Link {
    Disconnected,
    Connecting(watch::Receiver<ConnectResult>),
    Connected(Arc<Connection>),
}

/// The result of connecting; `None` while it is in progress.
type ConnectResult = Option<Result<Arc<Connection>, Failure>>;

impl Client {
    /// A client of the daemon at `socket`, with the default [`Options`]. It does not connect yet.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self::with_options(Options::new(socket))
    }

    /// A client with these options. It does not connect yet.
    pub fn with_options(options: Options) -> Self {
        let deadline = options.deadline;
        let link = Mutex::new(Link::Disconnected);
        Self { inner: Arc::new(ClientInner { options, link }), deadline }
    }

    /// A client on the same connection whose calls have another deadline.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { inner: Arc::clone(&self.inner), deadline: deadline.min(MAX_DEADLINE) }
    }

    /// Sends a request and waits for the answer. A denial is an `Ok`.
    ///
    /// # Errors
    /// If there is no answer. [`Error::may_have_been_charged`] tells whether it is safe to repeat
    /// the request.
    pub async fn verify(&self, request: &Request<'_>) -> Result<Decision, Error> {
        let deadline = Instant::now() + self.deadline;
        let mut last_error = None;
        for attempt in 0..MAX_ATTEMPTS {
            if attempt > 1 && !sleep_before_attempt(attempt, deadline).await {
                break;
            }
            let outcome = match self.connection(deadline).await {
                Ok(connection) => connection.send(request, deadline).await,
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(decision) => return Ok(decision),
                Err(Failure::Retryable(error)) => last_error = Some(error),
                Err(failure) => return Err(failure.into_error(self.deadline)),
            }
        }
        Err(last_error.unwrap_or_else(|| self.deadline_error()))
    }

    /// Gives back what a request was charged, and waits for the answer: ALLOWED, or that the key
    /// was not found.
    ///
    /// # Errors
    /// If there is no answer. If [`Error::may_have_been_charged`] is true, the refund may have been
    /// carried out, and must not be repeated.
    pub async fn refund(&self, refund: &Refund<'_>) -> Result<Decision, Error> {
        self.verify(refund.request()).await
    }

    /// Charges what a response has cost, and waits for the answer: ALLOWED, or that the key was not
    /// found.
    ///
    /// # Errors
    /// If there is no answer. If [`Error::may_have_been_charged`] is true, the debit may have been
    /// carried out, and must not be repeated.
    pub async fn debit(&self, debit: &Debit<'_>) -> Result<Decision, Error> {
        self.verify(debit.request()).await
    }

    /// Sends all requests at once: in one write, as far as [`Options::max_in_flight`] allows, and
    /// with one wake-up of the task. The answers are in the order of the requests. The deadline
    /// applies to the whole call.
    ///
    /// The answers are independent: one request may fail and the next be answered.
    pub async fn verify_many(&self, requests: &[Request<'_>]) -> Vec<Result<Decision, Error>> {
        let deadline = Instant::now() + self.deadline;
        let mut outcomes: Vec<Option<Outcome>> = requests.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..requests.len()).collect();
        for attempt in 0..MAX_ATTEMPTS {
            if open.is_empty() || (attempt > 1 && !sleep_before_attempt(attempt, deadline).await) {
                break;
            }
            match self.connection(deadline).await {
                Ok(connection) => {
                    let window = self.window(open.len());
                    send_windows(&connection, requests, &open, window, &mut outcomes, deadline).await;
                }
                Err(failure) => {
                    for &index in &open {
                        outcomes[index] = Some(Err(failure.clone()));
                    }
                }
            }
            open.retain(|&index| matches!(outcomes[index], Some(Err(Failure::Retryable(_))) | None));
        }
        let into_result = |outcome: Option<Outcome>| match outcome {
            Some(outcome) => outcome.map_err(|failure| failure.into_error(self.deadline)),
            None => Err(self.deadline_error()),
        };
        outcomes.into_iter().map(into_result).collect()
    }

    /// How many of `count` requests are sent at once: all if they may be in flight together,
    /// otherwise half of the limit, so that one half can be encoded while the other is in flight.
    fn window(&self, count: usize) -> usize {
        let limit = self.inner.options.max_in_flight;
        if count <= limit { count.max(1) } else { limit.div_ceil(2) }
    }

    /// The connection. If there is none, the callers of this method make one together.
    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, Failure> {
        let runtime = Handle::try_current().map_err(|_| Failure::Final(Error::NoRuntime))?;
        let mut connecting = match &mut *self.inner.link() {
            Link::Connected(connection) if connection.is_usable() => return Ok(Arc::clone(connection)),
            Link::Connecting(receiver) if receiver.has_changed().is_ok() => receiver.clone(),
            link => {
                if let Link::Connected(unusable) = link {
                    unusable.retire();
                }
                let (sender, receiver) = watch::channel(None);
                let client = Arc::downgrade(&self.inner);
                runtime.spawn(connect::run(client, self.inner.options.clone(), sender));
                *link = Link::Connecting(receiver.clone());
                receiver
            }
        };
        match timeout_at(deadline, connecting.wait_for(Option::is_some)).await {
            Err(_) => Err(Failure::DeadlinePassed { written: false }),
            // The runtime that was connecting has ended.
            Ok(Err(_)) => Err(CONNECTION_ENDED),
            Ok(Ok(result)) => result.clone().unwrap_or(Err(CONNECTION_ENDED)),
        }
    }

    /// The error of a request that was not written within the deadline.
    fn deadline_error(&self) -> Error {
        Error::Deadline { deadline: self.deadline, written: false }
    }
}

/// Sleeps before attempt number `attempt`. Returns `false` without sleeping if the deadline comes
/// first.
async fn sleep_before_attempt(attempt: u32, deadline: Instant) -> bool {
    let until = Instant::now() + retry_delay(attempt);
    if until >= deadline {
        return false;
    }
    sleep_until(until).await;
    true
}

/// Sends those of `requests` whose indexes are in `open`, a window at a time. The next window is
/// sent before the responses to the previous one are awaited.
async fn send_windows(
    connection: &Arc<Connection>,
    requests: &[Request<'_>],
    open: &[usize],
    window: usize,
    outcomes: &mut [Option<Outcome>],
    deadline: Instant,
) {
    let mut previous = None;
    for indexes in open.chunks(window) {
        let batch = connection.send_batch(requests, indexes, deadline).await;
        collect_outcomes(previous.take(), outcomes).await;
        match batch {
            Ok(batch) => previous = Some((indexes, batch)),
            Err(failure) => {
                for &index in indexes {
                    outcomes[index] = Some(Err(failure.clone()));
                }
                break;
            }
        }
    }
    collect_outcomes(previous, outcomes).await;
}

async fn collect_outcomes(batch: Option<(&[usize], ResponseBatch)>, outcomes: &mut [Option<Outcome>]) {
    if let Some((indexes, batch)) = batch {
        for (&index, outcome) in indexes.iter().zip(batch.outcomes().await) {
            outcomes[index] = Some(outcome);
        }
    }
}

/// Waits for a response until `deadline`, and returns `None` if there is none.
///
/// The driver enforces the deadline in its own runtime, whose id is `driver_runtime`. A caller in
/// another runtime enforces the deadline itself, because the driver's runtime may not be running.
async fn await_response<T>(
    driver_runtime: tokio::runtime::Id,
    deadline: Instant,
    response: impl Future<Output = T>,
) -> Option<T> {
    match Handle::try_current() {
        Ok(current) if current.id() != driver_runtime => timeout_at(deadline, response).await.ok(),
        _ => Some(response.await),
    }
}

impl ClientInner {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClientInner {
    fn drop(&mut self) {
        if let Link::Connected(connection) = &*self.link() {
            connection.retire();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.inner.options)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
