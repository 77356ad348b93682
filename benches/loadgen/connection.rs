//! One connection of a load: which requests are on their way, since when, and the answers that have arrived.
//!
//! A request counts as asked from the moment it is *admitted*, whether or not the socket takes it at once: a server that
//! does not read makes its requests wait, and that is latency.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::fault::Fault;
use super::latency::Latency;
use super::target::{Tally, Target};

/// Bytes read at once: the answers to several hundred requests.
const INPUT: usize = 64 << 10;

/// A connection.
pub(super) struct Connection<'a> {
    target: &'a dyn Target,
    stream: UnixStream,
    /// Number of the next request to be written.
    next: u64,
    /// Bytes of it that have been written.
    partial: usize,
    /// Admitted, and not written as a whole.
    unwritten: usize,
    /// Whose answer is next: its number within the ring.
    due: u64,
    /// Requests without an answer: when they were asked (nanoseconds since the load's start), and how many at that moment.
    asked: VecDeque<(u64, usize)>,
    unanswered: usize,
    input: Box<[u8]>,
    /// Where in `input` the bytes are that no answer has been made of.
    filled: usize,
    /// Bytes received in all.
    received: u64,
}

/// What a look at the socket found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arrival {
    /// Nothing there.
    Nothing,
    /// Something came.
    Bytes,
}

impl<'a> Connection<'a> {
    /// A connection that begins with request `first`.
    pub(super) fn new(target: &'a dyn Target, stream: UnixStream, first: u64) -> Self {
        Self {
            target,
            stream,
            next: first,
            partial: 0,
            unwritten: 0,
            due: first % target.ring().len() as u64,
            asked: VecDeque::new(),
            unanswered: 0,
            input: vec![0; INPUT].into(),
            filled: 0,
            received: 0,
        }
    }

    /// The socket.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Requests that wait for an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Whether there is something to write.
    pub(super) fn is_behind(&self) -> bool {
        self.unwritten > 0
    }

    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Asks `count` more requests, as of `now`.
    pub(super) fn admit(&mut self, count: usize, now: u64) {
        self.unwritten += count;
        self.unanswered += count;
        self.asked.push_back((now, count));
    }

    /// Writes what has been admitted, as far as the socket takes it.
    ///
    /// # Errors
    /// When the server is not there any more.
    pub(super) fn write(&mut self) -> Result<(), Fault> {
        while self.unwritten > 0 {
            let (bytes, count) = self.target.ring().run(self.next, self.unwritten);
            let rest = &bytes[self.partial..];
            match send(&self.stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) if written == rest.len() => {
                    self.next += count as u64;
                    self.unwritten -= count;
                    self.partial = 0;
                }
                Ok(written) => self.partial += written,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // What the server said before it went is still to be read.
                Err(Errno::PIPE | Errno::CONNRESET) => return self.read_to_the_end(),
                Err(error) => return Err(Fault::system("write to the server")(error)),
            }
        }
        Ok(())
    }

    /// Reads what has arrived; with `wait`, until something has or the socket's timeout passes.
    ///
    /// # Errors
    /// When the server ends the connection.
    pub(super) fn read(&mut self, wait: bool) -> Result<Arrival, Fault> {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(&self.stream, &mut self.input[self.filled..], flags) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Err(Fault::Ended { unanswered: self.unanswered }),
            Ok((_, count)) => {
                self.filled += count;
                self.received += count as u64;
                Ok(Arrival::Bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Arrival::Nothing),
            Err(error) => Err(Fault::system("read from the server")(error)),
        }
    }

    /// Takes the answers that have arrived whole, as of `now`; returns how many.
    ///
    /// # Errors
    /// When the bytes are not the answers that are due.
    pub(super) fn take(
        &mut self,
        now: u64,
        tally: &mut Tally,
        latency: &mut Latency,
    ) -> Result<usize, Fault> {
        let (mut at, mut taken) = (0, 0);
        while at < self.filled {
            if taken == self.unanswered {
                return Err(Fault::Broken("there are more answers than requests".into()));
            }
            // Of each arrival, the first is looked at closely; at one request at a time, that is each.
            let input = &self.input[at..self.filled];
            match self.target.answer(input, self.due, taken == 0, tally)? {
                Some(size) => at += size,
                None => break,
            }
            self.due = self.target.ring().after(self.due);
            taken += 1;
        }
        if at == 0 && self.filled == self.input.len() {
            return Err(Fault::Broken(format!("an answer is longer than {INPUT} bytes")));
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.unanswered -= taken;
        self.record(taken, now, latency);
        Ok(taken)
    }

    /// Answers come in order: the oldest requests are the ones that were answered.
    fn record(&mut self, mut answers: usize, now: u64, latency: &mut Latency) {
        while answers > 0 {
            let Some((asked, count)) = self.asked.front_mut() else {
                return;
            };
            let part = answers.min(*count);
            latency.record(now.saturating_sub(*asked), part as u64);
            answers -= part;
            *count -= part;
            if *count == 0 {
                self.asked.pop_front();
            }
        }
    }

    /// The server has gone; what it said last may say why.
    fn read_to_the_end(&mut self) -> Result<(), Fault> {
        loop {
            self.read(false)?;
            let taken = self.take(0, &mut Tally::default(), &mut Latency::new()?)?;
            if taken == 0 {
                return Err(Fault::Ended { unanswered: self.unanswered });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::ring::Ring;
    use super::super::target::Echo;
    use super::*;

    fn echo() -> Echo {
        Echo::new(Ring::new(3, |number, out| out.extend([number as u8; 48])).expect("three"), 10)
    }

    fn pair(target: &Echo) -> (Connection<'_>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Connection::new(target, ours, 1), theirs)
    }

    #[test]
    fn requests_go_round_the_ring_in_order() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.admit(4, 0);
        connection.write().expect("written");
        assert!(!connection.is_behind());
        let mut requests = [0; 4 * 48];
        server.read_exact(&mut requests).expect("four requests");
        let first_bytes: Vec<u8> = requests.chunks(48).map(|request| request[0]).collect();
        assert_eq!(first_bytes, [1, 2, 0, 1]);
    }

    #[test]
    fn a_socket_that_is_full_is_written_on_later_from_the_same_byte() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        const MANY: usize = 20_000;
        connection.admit(MANY, 0);
        connection.write().expect("as much as fits");
        assert!(connection.is_behind(), "960 KB fit into a socket?");
        let mut requests = Vec::new();
        let mut chunk = [0; 1 << 16];
        while requests.len() < MANY * 48 {
            let count = server.read(&mut chunk).expect("requests");
            requests.extend_from_slice(&chunk[..count]);
            connection.write().expect("as much as fits");
        }
        assert!(!connection.is_behind());
        for (number, request) in requests.chunks(48).enumerate() {
            assert_eq!(request, [((number + 1) % 3) as u8; 48]);
        }
    }

    #[test]
    fn latency_is_counted_from_the_moment_of_admission() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.admit(2, 100);
        connection.admit(1, 500);
        let (mut tally, mut latency) = (Tally::default(), Latency::new().expect("memory"));
        assert_eq!(connection.read(false).expect("nothing yet"), Arrival::Nothing);
        // Two answers and a half.
        server.write_all(&[0; 25]).expect("written");
        assert_eq!(connection.read(true).expect("something"), Arrival::Bytes);
        assert_eq!(connection.take(600, &mut tally, &mut latency).expect("answers"), 2);
        assert_eq!((connection.unanswered(), latency.count(), latency.percentiles().max), (1, 2, 500));
        server.write_all(&[0; 5]).expect("written");
        connection.read(true).expect("the rest");
        assert_eq!(connection.take(600, &mut tally, &mut latency).expect("answers"), 1);
        assert_eq!((latency.percentiles().min, connection.received()), (100, 30));
    }

    #[test]
    fn an_answer_too_many_is_an_error_and_so_is_an_end() {
        let target = echo();
        let (mut connection, mut server) = pair(&target);
        connection.admit(1, 0);
        server.write_all(&[0; 20]).expect("written");
        connection.read(true).expect("something");
        let taken = connection.take(0, &mut Tally::default(), &mut Latency::new().expect("memory"));
        assert!(taken.expect_err("too many").to_string().contains("more answers than requests"));

        let (mut connection, server) = pair(&target);
        connection.admit(1, 0);
        drop(server);
        assert!(matches!(connection.read(true), Err(Fault::Ended { unanswered: 1 })));
        assert!(matches!(connection.write(), Err(Fault::Ended { .. })));
    }
}
