//! One connection of a load: the requests in flight, when each was issued, and the answers
//! received.
//!
//! The latency of a request counts from the moment it is *issued*, even if the socket does not
//! accept it yet: a server that does not read makes its requests wait, and that wait is latency.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::LoadError;
use crate::latency::LatencyHistogram;
use crate::target::{Tally, Target};

/// Size of the input buffer: the answers to several hundred requests.
const INPUT_BYTES: usize = 64 << 10;

/// A connection to the server.
pub(crate) struct Connection<'a> {
    target: &'a dyn Target,
    stream: UnixStream,
    /// Number of the next request to write.
    next_request: u64,
    /// Bytes of that request that have been written.
    partial: usize,
    /// Requests that have been issued but not completely written.
    unwritten: usize,
    /// Number of the request whose answer is next, below the number of different requests.
    next_answer: u64,
    /// Requests in flight: when they were issued (nanoseconds since the start of the load), and how
    /// many then.
    issued: VecDeque<(u64, usize)>,
    in_flight: usize,
    input: Box<[u8]>,
    /// Bytes in `input` that have not been parsed.
    filled: usize,
    bytes_received: u64,
}

impl<'a> Connection<'a> {
    /// A connection whose first request is number `first` of the target's requests.
    pub(crate) fn new(target: &'a dyn Target, stream: UnixStream, first: u64) -> Self {
        Self {
            target,
            stream,
            next_request: first,
            partial: 0,
            unwritten: 0,
            next_answer: first % target.requests().len() as u64,
            issued: VecDeque::new(),
            in_flight: 0,
            input: vec![0; INPUT_BYTES].into(),
            filled: 0,
            bytes_received: 0,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Requests that have been issued and not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether issued requests remain to be written.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.unwritten > 0
    }

    /// Bytes received so far.
    pub(crate) fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// Issues `count` requests at time `now`. [`write`](Self::write) sends them.
    pub(crate) fn issue(&mut self, count: usize, now: u64) {
        self.unwritten += count;
        self.in_flight += count;
        self.issued.push_back((now, count));
    }

    /// Writes issued requests until the socket is full.
    ///
    /// # Errors
    /// When the server has closed the connection, or the system call fails.
    pub(crate) fn write(&mut self) -> Result<(), LoadError> {
        while self.unwritten > 0 {
            let (bytes, count) = self.target.requests().slice(self.next_request, self.unwritten);
            let rest = &bytes[self.partial..];
            match send(&self.stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) if written == rest.len() => {
                    self.next_request += count as u64;
                    self.unwritten -= count;
                    self.partial = 0;
                }
                Ok(written) => self.partial += written,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // The server's last message may still be unread.
                Err(Errno::PIPE | Errno::CONNRESET) => return self.read_last_message(),
                Err(error) => return Err(LoadError::system("write to the server")(error)),
            }
        }
        Ok(())
    }

    /// Reads what has arrived; with `wait`, blocks until something arrives or the socket's timeout
    /// passes. Returns whether anything was read.
    ///
    /// # Errors
    /// When the server has closed the connection, or the system call fails.
    pub(crate) fn read(&mut self, wait: bool) -> Result<bool, LoadError> {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(&self.stream, &mut self.input[self.filled..], flags) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Err(LoadError::Closed { unanswered: self.in_flight }),
            Ok((_, count)) => {
                self.filled += count;
                self.bytes_received += count as u64;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(LoadError::system("read from the server")(error)),
        }
    }

    /// Parses the complete answers received, and records them at time `now`. Returns their number.
    ///
    /// # Errors
    /// When the bytes are not the answers that are due.
    pub(crate) fn parse_answers(
        &mut self,
        now: u64,
        tally: &mut Tally,
        latency: &mut LatencyHistogram,
    ) -> Result<usize, LoadError> {
        let (mut at, mut parsed) = (0, 0);
        while at < self.filled {
            if parsed == self.in_flight {
                return Err(LoadError::Protocol("there are more answers than requests".into()));
            }
            // Only the first answer of each read is checked in full. At depth 1, that is every
            // answer.
            let is_full_check = parsed == 0;
            let input = &self.input[at..self.filled];
            match self.target.parse_answer(input, self.next_answer, is_full_check, tally)? {
                Some(size) => at += size,
                None => break,
            }
            self.next_answer = self.target.requests().following(self.next_answer);
            parsed += 1;
        }
        if at == 0 && self.filled == self.input.len() {
            return Err(LoadError::Protocol(format!("an answer is longer than {INPUT_BYTES} bytes")));
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.in_flight -= parsed;
        self.record_latency(parsed, now, latency);
        Ok(parsed)
    }

    /// Records the latency of `answers` answers. They belong to the oldest requests, because
    /// answers arrive in order.
    fn record_latency(&mut self, mut answers: usize, now: u64, latency: &mut LatencyHistogram) {
        while answers > 0 {
            let Some((issued, count)) = self.issued.front_mut() else {
                return;
            };
            let part = answers.min(*count);
            latency.record(now.saturating_sub(*issued), part as u64);
            answers -= part;
            *count -= part;
            if *count == 0 {
                self.issued.pop_front();
            }
        }
    }

    /// Reads to the end of the stream after a failed write: the server's last message may say why
    /// it closed the connection.
    fn read_last_message(&mut self) -> Result<(), LoadError> {
        loop {
            self.read(false)?;
            let parsed = self.parse_answers(0, &mut Tally::default(), &mut LatencyHistogram::new()?)?;
            if parsed == 0 {
                return Err(LoadError::Closed { unanswered: self.in_flight });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::encoded_requests::EncodedRequests;
    use crate::target::Echo;

    fn echo() -> Echo {
        Echo::new(
            EncodedRequests::new(3, |number, out| out.extend([number as u8; 48])).expect("three requests"),
            10,
        )
    }

    fn pair(target: &Echo) -> (Connection<'_>, UnixStream) {
        let (client, server) = UnixStream::pair().expect("a socket pair");
        (Connection::new(target, client, 1), server)
    }

    #[test]
    fn requests_are_written_in_ring_order() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.issue(4, 0);
        connection.write().expect("the socket has room");
        assert!(!connection.has_unwritten());
        let mut requests = [0; 4 * 48];
        server.read_exact(&mut requests).expect("four requests");
        let first_bytes: Vec<u8> = requests.chunks(48).map(|request| request[0]).collect();
        assert_eq!(first_bytes, [1, 2, 0, 1]);
    }

    #[test]
    fn write_to_a_full_socket_continues_at_the_same_byte() {
        const REQUESTS: usize = 20_000;
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.issue(REQUESTS, 0);
        connection.write().expect("the socket takes a part");
        assert!(connection.has_unwritten(), "a socket does not hold 960 KB");
        let mut requests = Vec::new();
        let mut chunk = [0; 1 << 16];
        while requests.len() < REQUESTS * 48 {
            let count = server.read(&mut chunk).expect("requests");
            requests.extend_from_slice(&chunk[..count]);
            connection.write().expect("the socket takes a part");
        }
        assert!(!connection.has_unwritten());
        for (number, request) in requests.chunks(48).enumerate() {
            assert_eq!(request, [((number + 1) % 3) as u8; 48]);
        }
    }

    #[test]
    fn latency_counts_from_the_time_of_issue() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.issue(2, 100);
        connection.issue(1, 500);
        let (mut tally, mut latency) = (Tally::default(), LatencyHistogram::new().expect("memory"));
        assert!(!connection.read(false).expect("nothing has arrived"));
        // Two and a half answers.
        server.write_all(&[0; 25]).expect("the socket has room");
        assert!(connection.read(true).expect("bytes have arrived"));
        assert_eq!(connection.parse_answers(600, &mut tally, &mut latency).expect("answers"), 2);
        assert_eq!((connection.in_flight(), latency.count(), latency.percentiles().max), (1, 2, 500));
        server.write_all(&[0; 5]).expect("the socket has room");
        connection.read(true).expect("the rest has arrived");
        assert_eq!(connection.parse_answers(600, &mut tally, &mut latency).expect("answers"), 1);
        assert_eq!((latency.percentiles().min, connection.bytes_received()), (100, 30));
    }

    #[test]
    fn surplus_answer_is_an_error() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.issue(1, 0);
        server.write_all(&[0; 20]).expect("the socket has room");
        connection.read(true).expect("bytes have arrived");
        let (mut tally, mut latency) = (Tally::default(), LatencyHistogram::new().expect("memory"));
        let error = connection.parse_answers(0, &mut tally, &mut latency).expect_err("two answers to one");
        assert!(error.to_string().contains("more answers than requests"), "{error}");
    }

    #[test]
    fn closed_connection_is_an_error() {
        let target = echo();
        let (mut connection, server) = pair(&target);
        connection.issue(1, 0);
        drop(server);
        assert!(matches!(connection.read(true), Err(LoadError::Closed { unanswered: 1 })));
        assert!(matches!(connection.write(), Err(LoadError::Closed { .. })));
    }
}
