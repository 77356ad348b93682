//! Redis: GET of a key's record, or the usual token bucket in Lua by EVALSHA. RESP 2, pipelined; keys are binary, so
//! that a GET is about as long as a VERIFY.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Fault, Ring, Tally, Target, ask, connect, line, number};
use crate::keys::{Keys, Wanted};

/// Longest line of a reply: an error's message.
const MAX_LINE: usize = 1024;

/// Longest value that is taken for one.
const MAX_VALUE: usize = 1 << 20;

/// A limit that no load reaches, as in keyward's benches.
const RATE: &str = "10000000";
const BURST: &str = "1000000000";

const HIT: u8 = 0;
const MISS: u8 = 1;
const LIMITED: u8 = 2;

/// A token bucket as it is commonly written: read the balance, refill by the server's own clock, charge if there is
/// enough, write it back. The bucket alone: what the key may do would be another look-up.
const BUCKET: &str = "\
local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local bucket = redis.call('HMGET', KEYS[1], 't', 'at')
local tokens, at = tonumber(bucket[1]) or burst, tonumber(bucket[2]) or now
tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
local allowed = 0
if tokens >= cost then
  tokens = tokens - cost
  allowed = 1
end
redis.call('HSET', KEYS[1], 't', tokens, 'at', now)
return {allowed, math.floor(tokens)}";

/// A Redis to load.
pub(crate) struct Redis {
    ring: Ring,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Get,
    Bucket,
}

impl Redis {
    /// GET of each key's digest.
    ///
    /// # Errors
    /// When there is nothing to ask for.
    pub(crate) fn get(keys: &Keys, hit_rate: f64) -> Result<Self, Fault> {
        Self::new(keys, hit_rate, Kind::Get, |digest, out| command(&[b"GET", digest], out))
    }

    /// The token bucket of each key, named `b:` and the digest, in the Redis at `path`.
    ///
    /// # Errors
    /// When there is no Redis there, or it takes no script.
    pub(crate) fn bucket(keys: &Keys, hit_rate: f64, path: &Path) -> Result<Self, Fault> {
        let mut load = Vec::new();
        command(&[b"SCRIPT", b"LOAD", BUCKET.as_bytes()], &mut load);
        let mut stream = connect("Redis", path)?;
        let sha = ask(&mut stream, &load, |input| match reply(input)? {
            Some((Reply::Bulk(Some(sha)), _)) => Ok(Some(sha.to_vec())),
            Some((Reply::Error(message), _)) => Err(Fault::Refused(message.into())),
            Some(_) => Err(Fault::Broken("SCRIPT LOAD does not name the script".into())),
            None => Ok(None),
        })?;
        Self::new(keys, hit_rate, Kind::Bucket, |digest, out| {
            let name = [b"b:", digest].concat();
            let arguments = [RATE.as_bytes(), BURST.as_bytes(), b"1"];
            command(&[&[b"EVALSHA", sha.as_slice(), b"1", &name][..], &arguments].concat(), out);
        })
    }

    fn new(
        keys: &Keys,
        hit_rate: f64,
        kind: Kind,
        encode: impl Fn(&[u8], &mut Vec<u8>),
    ) -> Result<Self, Fault> {
        let mut plan = keys.plan(hit_rate);
        let ring = Ring::new(plan.len(), |_, out| {
            let (Wanted::Digest(digest), out) = (plan.next_key(), out) else {
                return;
            };
            encode(&digest, out);
        });
        Ok(Self { ring: ring.map_err(|error| Fault::Unfit(error.to_string()))?, kind })
    }
}

impl Target for Redis {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Get => "Redis GET",
            Kind::Bucket => "Redis Lua token bucket",
        }
    }

    fn ring(&self) -> &Ring {
        &self.ring
    }

    fn greet(&self, stream: &mut UnixStream) -> Result<(), Fault> {
        let mut ping = Vec::new();
        command(&[b"PING"], &mut ping);
        ask(stream, &ping, |input| match reply(input)? {
            Some((Reply::Simple(b"PONG"), _)) => Ok(Some(())),
            Some((Reply::Error(message), _)) => Err(Fault::Refused(message.into())),
            Some(_) => Err(Fault::Broken("PING was not answered with PONG".into())),
            None => Ok(None),
        })
    }

    fn answer(&self, input: &[u8], _: u64, _: bool, tally: &mut Tally) -> Result<Option<usize>, Fault> {
        let Some((reply, size)) = reply(input)? else {
            return Ok(None);
        };
        match (self.kind, reply) {
            (Kind::Get, Reply::Bulk(Some(_))) | (Kind::Bucket, Reply::Pair(1)) => tally.count(HIT),
            (Kind::Get, Reply::Bulk(None)) => tally.count(MISS),
            (Kind::Bucket, Reply::Pair(0)) => tally.count(LIMITED),
            (_, Reply::Error(message)) => {
                tally.error(message.split(' ').next().unwrap_or_default().to_owned());
            }
            _ => return Err(Fault::Broken("a reply is of another type than the command's".into())),
        }
        Ok(Some(size))
    }

    fn outcome(&self, outcome: u8) -> String {
        match (self.kind, outcome) {
            (Kind::Bucket, HIT) => "allowed",
            (_, HIT) => "hit",
            (_, MISS) => "miss",
            _ => "limited",
        }
        .into()
    }
}

/// Appends a command: an array of bulk strings.
fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// As much of RESP as these commands are answered with.
#[derive(Debug, PartialEq)]
enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a str),
    Bulk(Option<&'a [u8]>),
    /// An array of two integers; the first of them.
    Pair(usize),
}

/// The reply at the front of `input`, and its size.
fn reply(input: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Fault> {
    let Some((head, size)) = line(input, MAX_LINE)? else {
        return Ok(None);
    };
    match head.split_first() {
        Some((b'+', text)) => Ok(Some((Reply::Simple(text), size))),
        Some((b'-', text)) => Ok(Some((Reply::Error(std::str::from_utf8(text).unwrap_or("ERR")), size))),
        Some((b'$', b"-1")) => Ok(Some((Reply::Bulk(None), size))),
        Some((b'$', digits)) => bulk(input, size, number(digits)?),
        Some((b'*', b"2")) => pair(input, size),
        _ => Err(Fault::Broken(format!("unexpected reply {:?}", String::from_utf8_lossy(head)))),
    }
}

fn bulk(input: &[u8], start: usize, length: usize) -> Result<Option<(Reply<'_>, usize)>, Fault> {
    if length > MAX_VALUE {
        return Err(Fault::Broken(format!("a value of {length} bytes")));
    }
    let Some(rest) = input.get(start..start + length + 2) else {
        return Ok(None);
    };
    match rest.strip_suffix(b"\r\n") {
        Some(value) => Ok(Some((Reply::Bulk(Some(value)), start + length + 2))),
        None => Err(Fault::Broken("a value does not end in CR LF".into())),
    }
}

fn pair(input: &[u8], mut at: usize) -> Result<Option<(Reply<'_>, usize)>, Fault> {
    let mut values = [0; 2];
    for value in &mut values {
        let Some((text, size)) = line(&input[at..], MAX_LINE)? else {
            return Ok(None);
        };
        *value = match text.strip_prefix(b":") {
            Some(digits) => number(digits)?,
            None => return Err(Fault::Broken("no integer where one was due".into())),
        };
        at += size;
    }
    Ok(Some((Reply::Pair(values[0]), at)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_for_every_cut, take_all};
    use super::*;

    fn get() -> Redis {
        Redis::get(&Keys::digests(vec![*b"0123456789abcdef0123456789abcdef"]), 1.0).expect("one key")
    }

    fn bucket() -> Redis {
        Redis { kind: Kind::Bucket, ..get() }
    }

    fn outcomes(target: &Redis, stream: &[u8]) -> Vec<(u8, u64)> {
        take_all(target, stream).expect("replies").0.outcomes().collect()
    }

    #[test]
    fn a_get_is_about_as_long_as_a_verify() {
        let expected = b"*2\r\n$3\r\nGET\r\n$32\r\n0123456789abcdef0123456789abcdef\r\n";
        assert_eq!(get().ring.request(0), expected);
        assert_eq!(expected.len(), 52);
    }

    #[test]
    fn replies_are_counted() {
        assert_eq!(outcomes(&get(), b"$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n"), [(HIT, 2), (MISS, 1)]);
        assert_eq!(outcomes(&bucket(), b"*2\r\n:1\r\n:99\r\n*2\r\n:0\r\n:0\r\n"), [(HIT, 1), (LIMITED, 1)]);
        let (tally, _) = take_all(&bucket(), b"-NOSCRIPT No matching script.\r\n").expect("counted");
        assert_eq!(tally.errors["NOSCRIPT"], 1);
        holds_for_every_cut(&get(), b"$3\r\nabc\r\n");
        holds_for_every_cut(&bucket(), b"*2\r\n:1\r\n:99\r\n");
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for stream in [&b"$3\r\nabcde"[..], b"$x\r\n", b"hello\r\n", b"$9999999\r\n", b"*2\r\n:1\r\n:99\r\n"]
        {
            assert!(take_all(&get(), stream).is_err(), "{:?}", String::from_utf8_lossy(stream));
        }
        assert!(take_all(&bucket(), b"$3\r\nabc\r\n").is_err());
        assert!(take_all(&bucket(), b"*2\r\n:1\r\n$1\r\n").is_err());
    }
}
