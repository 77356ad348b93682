//! The blocking client: one connection, one thread, no runtime.

mod connection;
mod exchange;

use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::failure::{Failure, Outcome};
use crate::retry::{MAX_ATTEMPTS, retry_delay};
use crate::{Debit, Decision, Options, Refund, Request};
use connection::Connection;

/// The blocking client. It connects on first use, and reconnects if necessary.
///
/// It is `Send`, and its methods take `&mut self`: give each thread its own, or share one behind a
/// mutex.
///
/// ```
/// use keyward_client::{Error, Request, blocking};
///
/// let mut keyward = blocking::Client::new("/nonexistent/keyward.sock");
/// match keyward.verify(&Request::new("acme_live_0123456789")) {
///     Ok(decision) if decision.is_allowed() => println!("allowed"),
///     Ok(decision) => println!("denied: {}", decision.verdict().name()),
///     // There is no answer. keyward recommends to deny.
///     Err(error) => {
///         assert!(matches!(error, Error::Connect { .. }));
///         assert!(!error.may_have_been_charged());
///     }
/// }
/// ```
pub struct Client {
    options: Options,
    connection: Option<Connection>,
}

impl Client {
    /// A client of the daemon at `socket`, with the default [`Options`]. It does not connect yet.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self::with_options(Options::new(socket))
    }

    /// A client with these options. It does not connect yet.
    pub fn with_options(options: Options) -> Self {
        Self { options, connection: None }
    }

    /// Changes the deadline of all further calls.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.options = self.options.clone().deadline(deadline);
    }

    /// Sends a request and waits for the answer. A denial is an `Ok`.
    ///
    /// # Errors
    /// If there is no answer. [`Error::may_have_been_charged`] tells whether it is safe to repeat
    /// the request.
    pub fn verify(&mut self, request: &Request<'_>) -> Result<Decision, Error> {
        let mut outcome = [None];
        self.run(std::slice::from_ref(request), &mut outcome);
        let [outcome] = outcome;
        self.result(outcome)
    }

    /// Gives back what a request was charged, and waits for the answer: ALLOWED, or that the key
    /// was not found.
    ///
    /// # Errors
    /// If there is no answer. If [`Error::may_have_been_charged`] is true, the refund may have been
    /// carried out, and must not be repeated.
    pub fn refund(&mut self, refund: &Refund<'_>) -> Result<Decision, Error> {
        self.verify(refund.request())
    }

    /// Charges what a response has cost, and waits for the answer: ALLOWED, or that the key was not
    /// found.
    ///
    /// # Errors
    /// If there is no answer. If [`Error::may_have_been_charged`] is true, the debit may have been
    /// carried out, and must not be repeated.
    pub fn debit(&mut self, debit: &Debit<'_>) -> Result<Decision, Error> {
        self.verify(debit.request())
    }

    /// Sends all requests, pipelined, with at most [`Options::max_in_flight`] in flight. The
    /// answers are in the order of the requests. The deadline applies to the whole call.
    ///
    /// The answers are independent: one request may fail and the next be answered.
    pub fn verify_many(&mut self, requests: &[Request<'_>]) -> Vec<Result<Decision, Error>> {
        let mut outcomes: Vec<_> = requests.iter().map(|_| None).collect();
        self.run(requests, &mut outcomes);
        outcomes.into_iter().map(|outcome| self.result(outcome)).collect()
    }

    fn result(&self, outcome: Option<Outcome>) -> Result<Decision, Error> {
        let outcome = outcome.unwrap_or(Err(Failure::DeadlinePassed { written: false }));
        outcome.map_err(|failure| failure.into_error(self.options.deadline))
    }

    fn run(&mut self, requests: &[Request<'_>], outcomes: &mut [Option<Outcome>]) {
        let deadline = Instant::now() + self.options.deadline;
        let mut open: Vec<usize> = (0..requests.len()).collect();
        for attempt in 0..MAX_ATTEMPTS {
            if open.is_empty() || !sleep_before(retry_delay(attempt), deadline) {
                return;
            }
            match self.take_connection(deadline) {
                Ok(mut connection) => {
                    let limit = self.options.max_in_flight;
                    if connection.exchange(requests, &open, outcomes, limit, deadline) {
                        self.connection = Some(connection);
                    }
                }
                Err(failure) => {
                    for &index in &open {
                        outcomes[index] = Some(Err(failure.clone()));
                    }
                }
            }
            open.retain(|&index| matches!(outcomes[index], None | Some(Err(Failure::Retryable(_)))));
        }
    }

    /// The current connection if it is usable, otherwise a new one.
    fn take_connection(&mut self, deadline: Instant) -> Result<Connection, Failure> {
        match self.connection.take().filter(Connection::is_usable) {
            Some(connection) => Ok(connection),
            None => Connection::open(&self.options, deadline),
        }
    }
}

/// Sleeps for `delay`. Returns `false` without sleeping if the deadline comes first.
fn sleep_before(delay: Duration, deadline: Instant) -> bool {
    if delay.is_zero() {
        return true;
    }
    let in_time = Instant::now() + delay < deadline;
    if in_time {
        thread::sleep(delay);
    }
    in_time
}

/// The time until `deadline`; `None` if it has passed.
fn time_left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.options)
            .field("connected", &self.connection.is_some())
            .finish()
    }
}
