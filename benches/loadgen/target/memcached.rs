//! memcached: `get` of a key's record in the text protocol, pipelined. The key is the digest in
//! base64, so that a request is about as long as a VERIFY. A hit contains its key, so the order of
//! answers is checked.

use std::os::unix::net::UnixStream;

use data_encoding::BASE64URL_NOPAD;

use super::{EncodedRequests, LoadError, Tally, Target, parse_line, parse_number, round_trip};
use crate::keys::{Keys, RequestedKey};

/// Longest line of an answer: `VALUE`, a key of 250 bytes, and three numbers.
const MAX_LINE: usize = 512;

/// Longest value: the default limit of memcached.
const MAX_VALUE: usize = 1 << 20;

const HIT: u8 = 0;
const MISS: u8 = 1;

/// A memcached server.
pub(crate) struct Memcached {
    requests: EncodedRequests,
}

impl Memcached {
    /// Encodes a `get` of each digest.
    ///
    /// # Errors
    /// When there are no requests.
    pub(crate) fn new(keys: &Keys, hit_rate: f64) -> Result<Self, LoadError> {
        let mut sequence = keys.sequence(hit_rate);
        let requests = EncodedRequests::new(sequence.len(), |_, out| {
            if let RequestedKey::Digest(digest) = sequence.next_key() {
                out.extend_from_slice(b"get ");
                out.extend_from_slice(BASE64URL_NOPAD.encode(&digest).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        });
        Ok(Self { requests: requests? })
    }

    /// Checks the value whose first line is `head` and whose data begins at `start`. Returns the
    /// end of the answer.
    fn parse_value(
        &self,
        input: &[u8],
        number: u64,
        head: &[u8],
        start: usize,
    ) -> Result<Option<usize>, LoadError> {
        let mut words = head.split(|byte| *byte == b' ');
        let (key, length) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        let due = self.requests.request(number);
        if due.get(4..due.len() - 2) != Some(key) {
            return Err(LoadError::Protocol("it sent the value of another key".into()));
        }
        let length = parse_number(length)?;
        if length > MAX_VALUE {
            return Err(LoadError::Protocol(format!("a value of {length} bytes")));
        }
        const END: &[u8] = b"\r\nEND\r\n";
        match input.get(start + length..start + length + END.len()) {
            None => Ok(None),
            Some(END) => Ok(Some(start + length + END.len())),
            Some(_) => Err(LoadError::Protocol("a value does not end in END".into())),
        }
    }
}

impl Target for Memcached {
    fn name(&self) -> &'static str {
        "memcached get"
    }

    fn requests(&self) -> &EncodedRequests {
        &self.requests
    }

    fn handshake(&self, stream: &mut UnixStream) -> Result<(), LoadError> {
        round_trip(stream, b"version\r\n", |input| match parse_line(input, MAX_LINE)? {
            Some((text, _)) if text.starts_with(b"VERSION ") => Ok(Some(())),
            Some(_) => Err(LoadError::Protocol("version was not answered with VERSION".into())),
            None => Ok(None),
        })
    }

    fn parse_answer(
        &self,
        input: &[u8],
        number: u64,
        _: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, LoadError> {
        let Some((head, start)) = parse_line(input, MAX_LINE)? else {
            return Ok(None);
        };
        if head == b"END" {
            tally.count(MISS);
            return Ok(Some(start));
        }
        let Some(head) = head.strip_prefix(b"VALUE ") else {
            return Err(LoadError::Protocol(format!(
                "unexpected answer {:?}",
                String::from_utf8_lossy(head)
            )));
        };
        let size = self.parse_value(input, number, head, start)?;
        if size.is_some() {
            tally.count(HIT);
        }
        Ok(size)
    }

    fn outcome_name(&self, outcome: u8) -> String {
        if outcome == HIT { "hit".into() } else { "miss".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_complete_only_as_a_whole, parse_all};
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn target() -> Memcached {
        Memcached::new(&Keys::digests(vec![[0; 32]]), 1.0).expect("one key")
    }

    #[test]
    fn get_is_about_as_long_as_a_verify() {
        assert_eq!(target().requests.request(0), format!("get {KEY}\r\n").as_bytes());
        assert_eq!(target().requests.request(0).len(), 49);
    }

    #[test]
    fn hits_and_misses_are_counted() {
        let hit = format!("VALUE {KEY} 0 4\r\na\r\nb\r\nEND\r\n");
        let (tally, left) = parse_all(&target(), format!("{hit}END\r\n{hit}").as_bytes()).expect("answers");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(HIT, 2), (MISS, 1)], 0));
        assert_complete_only_as_a_whole(&target(), hit.as_bytes());
        assert_complete_only_as_a_whole(&target(), b"END\r\n");
    }

    #[test]
    fn answer_that_is_not_due_is_an_error() {
        for stream in [
            format!("VALUE {} 0 1\r\na\r\nEND\r\n", KEY.replace('A', "B")),
            format!("VALUE {KEY} 0 1\r\nab\r\nEND\r\n"),
            format!("VALUE {KEY} 0\r\na\r\nEND\r\n"),
            "ERROR\r\n".to_owned(),
        ] {
            assert!(parse_all(&target(), stream.as_bytes()).is_err(), "{stream}");
        }
    }
}
