//! memcached: `get` of a key's record in the text protocol, pipelined. Keys are the digest in base64, so that a request
//! is about as long as a VERIFY. A hit names its key, so that the order is checked.

use std::os::unix::net::UnixStream;

use data_encoding::BASE64URL_NOPAD;

use super::{Fault, Ring, Tally, Target, ask, line, number};
use crate::keys::{Keys, Wanted};

/// Longest line of an answer: `VALUE`, a key of 250 bytes and three numbers.
const MAX_LINE: usize = 512;

/// Longest value: memcached's own limit.
const MAX_VALUE: usize = 1 << 20;

const HIT: u8 = 0;
const MISS: u8 = 1;

/// A memcached to load.
pub(crate) struct Memcached {
    ring: Ring,
}

impl Memcached {
    /// `get` of each key's digest.
    ///
    /// # Errors
    /// When there is nothing to ask for.
    pub(crate) fn new(keys: &Keys, hit_rate: f64) -> Result<Self, Fault> {
        let mut plan = keys.plan(hit_rate);
        let ring = Ring::new(plan.len(), |_, out| {
            if let Wanted::Digest(digest) = plan.next_key() {
                out.extend_from_slice(b"get ");
                out.extend_from_slice(BASE64URL_NOPAD.encode(&digest).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        });
        Ok(Self { ring: ring.map_err(|error| Fault::Unfit(error.to_string()))? })
    }

    fn value(&self, input: &[u8], number_of: u64, head: &[u8], start: usize) -> Result<Option<usize>, Fault> {
        let mut words = head.split(|byte| *byte == b' ');
        let (key, length) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        let due = self.ring.request(number_of);
        if due.get(4..due.len() - 2) != Some(key) {
            return Err(Fault::Broken("the value of another key came".into()));
        }
        let length = number(length)?;
        if length > MAX_VALUE {
            return Err(Fault::Broken(format!("a value of {length} bytes")));
        }
        const END: &[u8] = b"\r\nEND\r\n";
        match input.get(start + length..start + length + END.len()) {
            None => Ok(None),
            Some(END) => Ok(Some(start + length + END.len())),
            Some(_) => Err(Fault::Broken("a value does not end in END".into())),
        }
    }
}

impl Target for Memcached {
    fn name(&self) -> &'static str {
        "memcached get"
    }

    fn ring(&self) -> &Ring {
        &self.ring
    }

    fn greet(&self, stream: &mut UnixStream) -> Result<(), Fault> {
        ask(stream, b"version\r\n", |input| match line(input, MAX_LINE)? {
            Some((text, _)) if text.starts_with(b"VERSION ") => Ok(Some(())),
            Some(_) => Err(Fault::Broken("version was not answered with VERSION".into())),
            None => Ok(None),
        })
    }

    fn answer(&self, input: &[u8], number: u64, _: bool, tally: &mut Tally) -> Result<Option<usize>, Fault> {
        let Some((head, start)) = line(input, MAX_LINE)? else {
            return Ok(None);
        };
        if head == b"END" {
            tally.count(MISS);
            return Ok(Some(start));
        }
        let Some(head) = head.strip_prefix(b"VALUE ") else {
            return Err(Fault::Broken(format!("unexpected answer {:?}", String::from_utf8_lossy(head))));
        };
        let size = self.value(input, number, head, start)?;
        if size.is_some() {
            tally.count(HIT);
        }
        Ok(size)
    }

    fn outcome(&self, outcome: u8) -> String {
        if outcome == HIT { "hit".into() } else { "miss".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_for_every_cut, take_all};
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn target() -> Memcached {
        Memcached::new(&Keys::digests(vec![[0; 32]]), 1.0).expect("one key")
    }

    #[test]
    fn a_get_is_about_as_long_as_a_verify() {
        assert_eq!(target().ring.request(0), format!("get {KEY}\r\n").as_bytes());
        assert_eq!(target().ring.request(0).len(), 49);
    }

    #[test]
    fn hits_and_misses_are_told_apart() {
        let hit = format!("VALUE {KEY} 0 4\r\na\r\nb\r\nEND\r\n");
        let (tally, left) = take_all(&target(), format!("{hit}END\r\n{hit}").as_bytes()).expect("answers");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(HIT, 2), (MISS, 1)], 0));
        holds_for_every_cut(&target(), hit.as_bytes());
        holds_for_every_cut(&target(), b"END\r\n");
    }

    #[test]
    fn what_is_not_the_answer_that_is_due_is_an_error() {
        for stream in [
            format!("VALUE {} 0 1\r\na\r\nEND\r\n", KEY.replace('A', "B")),
            format!("VALUE {KEY} 0 1\r\nab\r\nEND\r\n"),
            format!("VALUE {KEY} 0\r\na\r\nEND\r\n"),
            "ERROR\r\n".to_owned(),
        ] {
            assert!(take_all(&target(), stream.as_bytes()).is_err(), "{stream}");
        }
    }
}
