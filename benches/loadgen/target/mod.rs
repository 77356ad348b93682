//! What can be loaded: keyward, and what it is compared with. All of them the same way.
//!
//! A target knows its protocol and nothing else: it encodes the requests once, before the load ([`Ring`]), says what a
//! new connection has to say first, and takes one answer at a time off the front of what has arrived. When requests are
//! sent, and how long the answers took, is the same code for all (`drive`).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::fault::Fault;
use super::ring::Ring;

mod echo;
mod keyward;
mod memcached;
mod postgres;
mod redis;

pub(crate) use echo::Echo;
pub(crate) use keyward::{Keyward, Style};
pub(crate) use memcached::Memcached;
pub(crate) use postgres::Postgres;
pub(crate) use redis::Redis;

/// How long a greeting may take: a machine that is busy elsewhere is no fault of the server's.
const GREETING: Duration = Duration::from_secs(10);

/// Kinds of answers that a target can tell apart, at most.
pub(crate) const OUTCOMES: usize = 256;

/// One kind of server.
pub(crate) trait Target: Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// The requests.
    fn ring(&self) -> &Ring;

    /// Says on a new connection what has to be said first, and reads all that comes of it.
    ///
    /// # Errors
    /// When the server does not take it.
    fn greet(&self, _stream: &mut UnixStream) -> Result<(), Fault> {
        Ok(())
    }

    /// Takes the answer to request `number` off the front of `input`, counts it, and returns its size; `None` while it is
    /// not there as a whole. `thorough` asks to look at every field; otherwise looking at what tells one answer from
    /// another is enough.
    ///
    /// # Errors
    /// When the bytes are no answer, or not to that request.
    fn answer(
        &self,
        input: &[u8],
        number: u64,
        thorough: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, Fault>;

    /// What the target calls an outcome.
    fn outcome(&self, outcome: u8) -> String;
}

/// How many answers there were of each kind.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    outcomes: Box<[u64; OUTCOMES]>,
    /// Requests that were answered with an error, by its name.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { outcomes: Box::new([0; OUTCOMES]), errors: BTreeMap::new() }
    }
}

impl Tally {
    /// Counts one.
    pub(crate) fn count(&mut self, outcome: u8) {
        self.outcomes[usize::from(outcome)] += 1;
    }

    /// Counts one that was answered with an error.
    pub(crate) fn error(&mut self, name: String) {
        *self.errors.entry(name).or_default() += 1;
    }

    /// Adds those of another.
    pub(crate) fn add(&mut self, other: &Self) {
        for (own, other) in self.outcomes.iter_mut().zip(other.outcomes.iter()) {
            *own += other;
        }
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
    }

    /// The kinds that there were, with how many.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = (u8, u64)> {
        (0..=u8::MAX).zip(self.outcomes.iter().copied()).filter(|(_, count)| *count > 0)
    }
}

/// A connection to `target` at `path`, greeted. It blocks.
///
/// # Errors
/// When nobody listens there, or it is not such a server.
pub(crate) fn open(target: &dyn Target, path: &Path) -> Result<UnixStream, Fault> {
    let mut stream = connect(target.name(), path)?;
    target.greet(&mut stream)?;
    Ok(stream)
}

fn connect(target: &'static str, path: &Path) -> Result<UnixStream, Fault> {
    let stream = UnixStream::connect(path)
        .and_then(|stream| {
            stream.set_read_timeout(Some(GREETING))?;
            stream.set_write_timeout(Some(GREETING))?;
            Ok(stream)
        })
        .map_err(|error| Fault::Connect { target, path: path.into(), error })?;
    Ok(stream)
}

/// Writes `request` and reads until `whole` has found an answer in what came.
fn ask<T>(
    stream: &mut UnixStream,
    request: &[u8],
    mut whole: impl FnMut(&[u8]) -> Result<Option<T>, Fault>,
) -> Result<T, Fault> {
    stream.write_all(request).map_err(Fault::system("greet the server"))?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(found) = whole(&answer)? {
            return Ok(found);
        }
        match stream.read(&mut chunk).map_err(Fault::system("read the server's greeting"))? {
            0 => return Err(Fault::Ended { unanswered: 1 }),
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// The line at the front of `input` and the bytes it takes with its CR LF; at most `longest` of them.
fn line(input: &[u8], longest: usize) -> Result<Option<(&[u8], usize)>, Fault> {
    match input.iter().take(longest).position(|byte| *byte == b'\n') {
        Some(end) if input[..end].ends_with(b"\r") => Ok(Some((&input[..end - 1], end + 1))),
        Some(_) => Err(Fault::Broken("a line does not end in CR LF".into())),
        None if input.len() >= longest => Err(Fault::Broken(format!("a line is over {longest} bytes"))),
        None => Ok(None),
    }
}

/// A number in decimal digits.
fn number(digits: &[u8]) -> Result<usize, Fault> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Fault::Broken(format!("{:?} is no number", String::from_utf8_lossy(digits))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the answers in `input` off it, as often as there is one, from request 0 on.
    pub(super) fn take_all(target: &dyn Target, mut input: &[u8]) -> Result<(Tally, usize), Fault> {
        let (mut tally, mut number) = (Tally::default(), 0);
        while let Some(size) = target.answer(input, number, true, &mut tally)? {
            input = &input[size..];
            number += 1;
        }
        Ok((tally, input.len()))
    }

    /// However the stream is cut, an answer is taken when it is there as a whole, and not before.
    pub(super) fn holds_for_every_cut(target: &dyn Target, answer: &[u8]) {
        for thorough in [false, true] {
            for cut in 0..answer.len() {
                let taken = target.answer(&answer[..cut], 0, thorough, &mut Tally::default());
                assert!(matches!(taken, Ok(None)), "{cut} of {}: {taken:?}", answer.len());
            }
            let taken = target.answer(answer, 0, thorough, &mut Tally::default());
            assert_eq!(taken.expect("an answer"), Some(answer.len()));
        }
    }

    #[test]
    fn a_line_has_an_end_and_a_limit() {
        assert_eq!(line(b"ab\r\nc", 9).expect("good"), Some((&b"ab"[..], 4)));
        assert_eq!(line(b"ab\r", 9).expect("good"), None);
        assert!(line(b"ab\n", 9).is_err());
        assert!(line(b"abcdefghi", 9).is_err());
        assert!(number(b"12").is_ok_and(|number| number == 12));
        assert!(number(b"1x").is_err());
    }

    #[test]
    fn tallies_add_up() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.count(3);
        other.count(3);
        other.count(255);
        other.error("E".into());
        one.add(&other);
        assert_eq!(one.outcomes().collect::<Vec<_>>(), [(3, 2), (255, 1)]);
        assert_eq!(one.errors["E"], 1);
    }
}
