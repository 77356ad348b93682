//! The async client: one connection, shared by all tasks as a pipeline.
//!
//! A request takes this way: `verify` hashes the key and appends a frame to the connection's buffer
//! ([`connection`]); the connection's one task ([`driver`]) writes everything that has gathered there in one go, reads
//! answers in bulk, and wakes those that wait. Where nothing else is going on, `verify` writes the frame itself, so
//! that a lone request costs one wake-up of the driver (for the answer) and one of the caller.
//!
//! The driver is a task of its own, and not whichever caller happens to be waiting: a caller that is dropped, or not
//! polled for a while, must not hold up the others.

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

use crate::error::{ENDED, Error, Failure, Outcome};
use crate::options::LONGEST_DEADLINE;
use crate::retry::{PASSES, pause};
use crate::{Decision, Options, Refund, Request};
use connection::Connection;

/// The async client. Clones share one connection; it is made on first use, and ends with the last clone.
///
/// Its methods need a tokio runtime with I/O and time enabled (tokio panics where one of these is missing; where there
/// is no runtime at all, that is an [`Error`]). The connection belongs to the runtime in which it was made, and is
/// replaced when that runtime is gone.
///
/// All futures may be dropped at any time: the pipeline goes on, and the answer of a dropped request is ignored. Whether
/// it was charged is then not known.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Duration,
}

struct Shared {
    options: Options,
    link: Mutex<Link>,
}

/// The way to the daemon.
enum Link {
    Down,
    Connecting(watch::Receiver<Attempt>),
    Up(Arc<Connection>),
}

/// How an attempt to connect went, once it is known.
type Attempt = Option<Result<Arc<Connection>, Failure>>;

impl Client {
    /// A client of the daemon at `socket`, with the default [`Options`]. Does not connect yet.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self::with_options(Options::new(socket))
    }

    /// A client with these options. Does not connect yet.
    pub fn with_options(options: Options) -> Self {
        let deadline = options.time();
        Self { shared: Arc::new(Shared { options, link: Mutex::new(Link::Down) }), deadline }
    }

    /// The same client, on the same connection, with another deadline for each call.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline: deadline.min(LONGEST_DEADLINE) }
    }

    /// Asks, and waits for the answer. A denial is an `Ok`.
    ///
    /// # Errors
    /// Where there is no answer; [`Error::may_have_been_charged`] tells whether it is safe to ask again.
    pub async fn verify(&self, request: &Request<'_>) -> Result<Decision, Error> {
        let deadline = Instant::now() + self.deadline;
        let mut last = None;
        for pass in 0..PASSES {
            if pass > 1 && !rest(pass, deadline).await {
                break;
            }
            let outcome = match self.connection(deadline).await {
                Ok(connection) => connection.ask(request, deadline).await,
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(decision) => return Ok(decision),
                Err(Failure::Retry(error)) => last = Some(error),
                Err(failure) => return Err(failure.into_error(self.deadline)),
            }
        }
        Err(last.unwrap_or_else(|| self.late()))
    }

    /// Gives back what a request was charged, and waits for the answer: ALLOWED, or that the key is not known.
    ///
    /// # Errors
    /// Where there is no answer. Where [`Error::may_have_been_charged`] then says so, the key may have got it back
    /// already, and another refund would be one too many.
    pub async fn refund(&self, refund: &Refund<'_>) -> Result<Decision, Error> {
        self.verify(refund.request()).await
    }

    /// Asks all of them at once: they leave in one write (as far as [`Options::max_in_flight`] allows), and the task is
    /// woken once. The answers are in the order of the requests. The deadline is for the whole call.
    ///
    /// Each answer stands for itself: one request may fail, and the next be answered.
    pub async fn verify_many(&self, requests: &[Request<'_>]) -> Vec<Result<Decision, Error>> {
        let deadline = Instant::now() + self.deadline;
        let mut outcomes: Vec<Option<Outcome>> = requests.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..requests.len()).collect();
        for pass in 0..PASSES {
            if open.is_empty() || (pass > 1 && !rest(pass, deadline).await) {
                break;
            }
            match self.connection(deadline).await {
                Ok(connection) => {
                    let window = self.window(open.len());
                    ask_all(&connection, requests, &open, window, &mut outcomes, deadline).await;
                }
                Err(failure) => {
                    for &index in &open {
                        outcomes[index] = Some(Err(failure.clone()));
                    }
                }
            }
            open.retain(|&index| matches!(outcomes[index], Some(Err(Failure::Retry(_))) | None));
        }
        let settle = |outcome: Option<Outcome>| match outcome {
            Some(outcome) => outcome.map_err(|failure| failure.into_error(self.deadline)),
            None => Err(self.late()),
        };
        outcomes.into_iter().map(settle).collect()
    }

    /// How many of `count` requests are handed over at once: all if they fit, else half of what fits, so that one half
    /// can be prepared while the other is under way.
    fn window(&self, count: usize) -> usize {
        let fits = self.shared.options.in_flight();
        if count <= fits { count.max(1) } else { fits.div_ceil(2) }
    }

    /// The connection; makes one where there is none, together with whoever else wants it now.
    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, Failure> {
        let runtime = Handle::try_current().map_err(|_| Failure::Final(Error::NoRuntime))?;
        let mut attempt = match &mut *self.shared.link() {
            Link::Up(connection) if connection.is_usable() => return Ok(Arc::clone(connection)),
            Link::Connecting(attempt) if attempt.has_changed().is_ok() => attempt.clone(),
            link => {
                if let Link::Up(silent) = link {
                    silent.retire();
                }
                let (outcome, attempt) = watch::channel(None);
                let shared = Arc::downgrade(&self.shared);
                runtime.spawn(connect::run(shared, self.shared.options.clone(), outcome));
                *link = Link::Connecting(attempt.clone());
                attempt
            }
        };
        match timeout_at(deadline, attempt.wait_for(Option::is_some)).await {
            Err(_) => Err(Failure::Late { written: false }),
            // The runtime that was connecting has ended.
            Ok(Err(_)) => Err(ENDED),
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(ENDED)),
        }
    }

    /// Too late, and nothing written.
    fn late(&self) -> Error {
        Error::Deadline { deadline: self.deadline, written: false }
    }
}

/// Waits for as long as is right before pass number `pass`; `false` where the deadline comes first.
async fn rest(pass: u32, deadline: Instant) -> bool {
    let until = Instant::now() + pause(pass);
    if until >= deadline {
        return false;
    }
    sleep_until(until).await;
    true
}

/// Asks those of `requests` that `open` lists, a window at a time, and one window ahead.
async fn ask_all(
    connection: &Arc<Connection>,
    requests: &[Request<'_>],
    open: &[usize],
    window: usize,
    outcomes: &mut [Option<Outcome>],
    deadline: Instant,
) {
    let mut ahead = None;
    for indexes in open.chunks(window) {
        let batch = connection.send(requests, indexes, deadline).await;
        collect(ahead.take(), outcomes).await;
        match batch {
            Ok(batch) => ahead = Some((indexes, batch)),
            Err(failure) => {
                for &index in indexes {
                    outcomes[index] = Some(Err(failure.clone()));
                }
                break;
            }
        }
    }
    collect(ahead, outcomes).await;
}

async fn collect(batch: Option<(&[usize], connection::Batch)>, outcomes: &mut [Option<Outcome>]) {
    if let Some((indexes, batch)) = batch {
        for (&index, outcome) in indexes.iter().zip(batch.wait().await) {
            outcomes[index] = Some(outcome);
        }
    }
}

/// Waits for `answer`, which the driver of the connection keeps within the deadline. A caller in another runtime must
/// not depend on that, since nobody may be running the connection's own.
async fn within<T>(
    home: tokio::runtime::Id,
    deadline: Instant,
    answer: impl Future<Output = T>,
) -> Option<T> {
    match Handle::try_current() {
        Ok(here) if here.id() != home => timeout_at(deadline, answer).await.ok(),
        _ => Some(answer.await),
    }
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Link::Up(connection) = &*self.link() {
            connection.retire();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.shared.options)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
