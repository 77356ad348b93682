//! The servers that can be loaded: keyward, and those that it is compared with.
//!
//! A target implements one protocol: it encodes the requests once, before the load
//! ([`EncodedRequests`]), performs the handshake of a new connection, and parses one answer at a
//! time. Sending requests and measuring latencies is the same code for all targets
//! ([`crate::driver`]).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::encoded_requests::EncodedRequests;
use crate::error::LoadError;

mod echo;
mod keyward;
mod memcached;
mod postgres;
pub(crate) mod redis;

pub(crate) use echo::Echo;
pub(crate) use keyward::{Keyward, VerifyOptions};
pub(crate) use memcached::Memcached;
pub(crate) use postgres::Postgres;
pub(crate) use redis::Redis;

/// Longest wait for a handshake. It is long, because a busy machine is not an error of the server.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of different outcomes that a target can report.
const MAX_OUTCOMES: usize = 256;

/// A kind of server.
pub(crate) trait Target: Sync {
    /// Name of the server.
    fn name(&self) -> &'static str;

    /// The encoded requests.
    fn requests(&self) -> &EncodedRequests;

    /// Performs the handshake on a new connection, and reads the whole response.
    ///
    /// # Errors
    /// When the server refuses, or breaks the protocol.
    fn handshake(&self, _stream: &mut UnixStream) -> Result<(), LoadError> {
        Ok(())
    }

    /// Parses the answer to request `number` at the start of `input`, counts it, and returns its
    /// size. Returns `None` if the answer is incomplete. With `is_full_check`, every field is
    /// checked; otherwise checking the outcome and the order is enough.
    ///
    /// # Errors
    /// When the bytes are not an answer, or not the one to that request.
    fn parse_answer(
        &self,
        input: &[u8],
        number: u64,
        is_full_check: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, LoadError>;

    /// Name of an outcome.
    fn outcome_name(&self, outcome: u8) -> String;
}

/// Counts of answers by outcome.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    outcomes: Box<[u64; MAX_OUTCOMES]>,
    /// Answers that are errors, by the name of the error.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { outcomes: Box::new([0; MAX_OUTCOMES]), errors: BTreeMap::new() }
    }
}

impl Tally {
    /// Counts an answer.
    pub(crate) fn count(&mut self, outcome: u8) {
        self.outcomes[usize::from(outcome)] += 1;
    }

    /// Counts an answer that is an error.
    pub(crate) fn count_error(&mut self, name: String) {
        *self.errors.entry(name).or_default() += 1;
    }

    /// Adds the counts of another tally.
    pub(crate) fn add(&mut self, other: &Self) {
        for (own, other) in self.outcomes.iter_mut().zip(other.outcomes.iter()) {
            *own += other;
        }
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
    }

    /// The outcomes that occurred, with their counts.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = (u8, u64)> {
        (0..=u8::MAX).zip(self.outcomes.iter().copied()).filter(|(_, count)| *count > 0)
    }
}

/// Opens a blocking connection to `target` at `path`, and performs the handshake.
///
/// # Errors
/// When the connection or the handshake fails.
pub(crate) fn open(target: &dyn Target, path: &Path) -> Result<UnixStream, LoadError> {
    let mut stream = connect(target.name(), path)?;
    target.handshake(&mut stream)?;
    Ok(stream)
}

fn connect(target: &'static str, path: &Path) -> Result<UnixStream, LoadError> {
    UnixStream::connect(path)
        .and_then(|stream| {
            stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
            stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
            Ok(stream)
        })
        .map_err(|source| LoadError::Connect { target, path: path.into(), source })
}

/// Writes `request`, and reads until `parse` finds a complete response.
fn round_trip<T>(
    stream: &mut UnixStream,
    request: &[u8],
    mut parse: impl FnMut(&[u8]) -> Result<Option<T>, LoadError>,
) -> Result<T, LoadError> {
    stream.write_all(request).map_err(LoadError::system("greet the server"))?;
    let mut response = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(parsed) = parse(&response)? {
            return Ok(parsed);
        }
        match stream.read(&mut chunk).map_err(LoadError::system("read the server's greeting"))? {
            0 => return Err(LoadError::Closed { unanswered: 1 }),
            count => response.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Parses the line at the start of `input`, at most `max` bytes with its CR LF. Returns the line
/// without it, and the number of bytes with it; `None` if the line is incomplete.
fn parse_line(input: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, LoadError> {
    match input.iter().take(max).position(|byte| *byte == b'\n') {
        Some(end) if input[..end].ends_with(b"\r") => Ok(Some((&input[..end - 1], end + 1))),
        Some(_) => Err(LoadError::Protocol("a line does not end in CR LF".into())),
        None if input.len() >= max => Err(LoadError::Protocol(format!("a line is over {max} bytes"))),
        None => Ok(None),
    }
}

/// Parses a decimal number.
fn parse_number(digits: &[u8]) -> Result<usize, LoadError> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| LoadError::Protocol(format!("{:?} is not a number", String::from_utf8_lossy(digits))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses all complete answers in `input`, the first of which is to request 0. Returns the
    /// tally and the number of bytes left.
    pub(super) fn parse_all(target: &dyn Target, mut input: &[u8]) -> Result<(Tally, usize), LoadError> {
        let (mut tally, mut number) = (Tally::default(), 0);
        while let Some(size) = target.parse_answer(input, number, true, &mut tally)? {
            input = &input[size..];
            number += 1;
        }
        Ok((tally, input.len()))
    }

    /// Asserts that `answer` is parsed when it is complete, and that every shorter part of it is
    /// incomplete.
    pub(super) fn assert_complete_only_as_a_whole(target: &dyn Target, answer: &[u8]) {
        for is_full_check in [false, true] {
            for cut in 0..answer.len() {
                let parsed = target.parse_answer(&answer[..cut], 0, is_full_check, &mut Tally::default());
                assert!(matches!(parsed, Ok(None)), "{cut} of {}: {parsed:?}", answer.len());
            }
            let parsed = target.parse_answer(answer, 0, is_full_check, &mut Tally::default());
            assert_eq!(parsed.expect("an answer"), Some(answer.len()));
        }
    }

    #[test]
    fn line_needs_an_end_and_has_a_limit() {
        assert_eq!(parse_line(b"ab\r\nc", 9).expect("it is valid"), Some((&b"ab"[..], 4)));
        assert_eq!(parse_line(b"ab\r", 9).expect("it is valid"), None);
        assert!(parse_line(b"ab\n", 9).is_err());
        assert!(parse_line(b"abcdefghi", 9).is_err());
        assert!(parse_number(b"12").is_ok_and(|number| number == 12));
        assert!(parse_number(b"1x").is_err());
    }

    #[test]
    fn sum_of_tallies_has_the_counts_of_both() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.count(3);
        other.count(3);
        other.count(255);
        other.count_error("E".into());
        one.add(&other);
        assert_eq!(one.outcomes().collect::<Vec<_>>(), [(3, 2), (255, 1)]);
        assert_eq!(one.errors["E"], 1);
    }
}
