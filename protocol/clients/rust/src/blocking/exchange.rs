//! Sends requests on a connection, and receives their responses.
//!
//! A write never blocks. If the socket is full, the client waits until it is writable *or
//! readable*, because the daemon may have stopped reading until its responses are read (SPEC.md
//! section 1).

use std::collections::VecDeque;
use std::iter::Copied;
use std::slice;
use std::time::Instant;

use keyward_protocol::Credential;

use super::connection::{Connection, ExchangeError};
use crate::Request;
use crate::error::{Error, ProtocolViolationError};
use crate::event::Event;
use crate::failure::{CloseReason, Failure, Outcome};
use crate::sequence::check_request_id;

/// How many bytes are encoded ahead of the socket: about what it holds, so that short writes are
/// rare.
const ENCODE_AHEAD_BYTES: usize = 64 * 1024;

/// A set of requests that are sent together.
struct Exchange<'a, 'r> {
    requests: &'a [Request<'r>],
    /// Indexes of the requests that have not been encoded.
    remaining: Copied<slice::Iter<'a, usize>>,
    /// Encoded requests without a response, in order.
    in_flight: VecDeque<InFlight>,
    /// The outcome of each request.
    outcomes: &'a mut [Option<Outcome>],
    max_in_flight: usize,
    deadline: Instant,
}

/// An encoded request without a response.
struct InFlight {
    /// Index of the request.
    index: usize,
    sequence: u64,
    /// Position in the [`SendBuffer`](crate::send_buffer::SendBuffer).
    position: u64,
    /// Whether the raw key was sent.
    raw: bool,
}

impl Connection {
    /// Sends those of `requests` whose indexes are in `open`, and sets their outcomes as far as
    /// they can be determined. Returns whether the connection can be used again.
    pub(super) fn exchange(
        &mut self,
        requests: &[Request<'_>],
        open: &[usize],
        outcomes: &mut [Option<Outcome>],
        max_in_flight: usize,
        deadline: Instant,
    ) -> bool {
        let in_flight = VecDeque::with_capacity(open.len().min(max_in_flight));
        let remaining = open.iter().copied();
        let mut exchange = Exchange { requests, remaining, in_flight, outcomes, max_in_flight, deadline };
        match self.run_exchange(&mut exchange) {
            Ok(()) => true,
            Err(error) => self.abort_exchange(exchange, &error),
        }
    }

    fn run_exchange(&mut self, exchange: &mut Exchange<'_, '_>) -> Result<(), ExchangeError> {
        loop {
            // Refill when half of the window is answered, not after each answer: this makes few
            // large writes instead of many small ones.
            let half_window = exchange.max_in_flight / 2;
            if exchange.in_flight.len() <= half_window {
                self.encode_requests(exchange);
            }
            if exchange.in_flight.is_empty() && exchange.remaining.len() == 0 {
                return Ok(());
            }
            let socket_full = self.write(|connection| exchange.expects_responses(connection))?;
            let can_encode_more =
                exchange.in_flight.len() < exchange.max_in_flight && exchange.remaining.len() > 0;
            if socket_full {
                self.wait(exchange.deadline)?;
            } else if can_encode_more
                && self.send_buffer.unsent().is_empty()
                && exchange.in_flight.len() <= half_window
            {
                continue;
            }
            self.read(socket_full, exchange.deadline)?;
            self.receive_responses(exchange)?;
        }
    }

    /// Encodes requests, up to the limits on requests in flight and on encoded bytes.
    fn encode_requests(&mut self, exchange: &mut Exchange<'_, '_>) {
        while exchange.in_flight.len() < exchange.max_in_flight
            && self.send_buffer.unsent().len() < ENCODE_AHEAD_BYTES
        {
            let Some(index) = exchange.remaining.next() else { return };
            let request = &exchange.requests[index];
            let credential = self.credential_mode.credential(request);
            let raw = matches!(credential, Credential::RawKey(_));
            match self.send_buffer.push(self.next_request, request, credential) {
                Ok(position) => {
                    exchange.in_flight.push_back(InFlight {
                        index,
                        sequence: self.next_request,
                        position,
                        raw,
                    });
                    self.next_request += 1;
                }
                Err(error) => exchange.outcomes[index] = Some(Err(Failure::Final(error))),
            }
        }
    }

    /// Processes the responses that have been read. Responses to requests of earlier calls, whose
    /// deadlines have passed, come first and are ignored.
    fn receive_responses(&mut self, exchange: &mut Exchange<'_, '_>) -> Result<(), ExchangeError> {
        while let Some(event) = self.receive_buffer.next_event()? {
            let (id, reply, closing) = match event {
                Event::Reply(id, reply) => (id, reply, None),
                Event::Closing(Some(id), error) => (id, Err(Error::Daemon(error.clone())), Some(error)),
                Event::Closing(None, error) => return Err(CloseReason::ClosedByDaemon(error).into()),
            };
            if self.next_response == self.next_request {
                return Err(ProtocolViolationError::UnexpectedResponse { request_id: id }.into());
            }
            check_request_id(self.next_response, id)?;
            let awaited = exchange.in_flight.pop_front_if(|sent| sent.sequence == self.next_response);
            self.next_response += 1;
            if awaited.is_some() || self.next_response == self.next_request {
                self.overdue_since = None;
            }
            if let Some(sent) = awaited {
                let outcome = reply.map_err(|error| self.credential_mode.failure(error, sent.raw));
                exchange.outcomes[sent.index] = Some(outcome);
            }
            if let Some(error) = closing {
                return Err(CloseReason::ClosedByDaemon(error).into());
            }
        }
        Ok(())
    }

    /// Sets the outcomes of the requests that have none. Returns whether the connection can be used
    /// again.
    fn abort_exchange(&mut self, exchange: Exchange<'_, '_>, error: &ExchangeError) -> bool {
        let sent_position = self.send_buffer.sent_position();
        for sent in &exchange.in_flight {
            let failure = error.failure(sent.position < sent_position);
            exchange.outcomes[sent.index] = Some(Err(failure));
        }
        if !matches!(error, ExchangeError::DeadlinePassed) {
            return false;
        }
        for index in exchange.remaining {
            exchange.outcomes[index] = Some(Err(Failure::DeadlinePassed { written: false }));
        }
        self.discard_unsent(&exchange.in_flight)
    }

    /// After a deadline, discards the requests that have not been written. The responses to the
    /// others are overdue. Returns `false` if a frame has been written in part, so that the
    /// connection cannot be used again.
    fn discard_unsent(&mut self, in_flight: &VecDeque<InFlight>) -> bool {
        let sent_position = self.send_buffer.sent_position();
        let first_unsent = in_flight.iter().find(|sent| sent.position >= sent_position);
        let (end, next_request) = match first_unsent {
            Some(sent) => (sent.position, sent.sequence),
            None => (self.send_buffer.end_position(), self.next_request),
        };
        if end != sent_position {
            return false;
        }
        self.send_buffer.truncate(end);
        self.next_request = next_request;
        if self.next_response < self.next_request {
            self.overdue_since.get_or_insert_with(Instant::now);
        }
        true
    }
}

impl Exchange<'_, '_> {
    /// Whether a request that has been written at least in part waits for its response.
    fn expects_responses(&self, connection: &Connection) -> bool {
        self.in_flight.front().is_some_and(|sent| sent.position < connection.send_buffer.sent_position())
    }
}
