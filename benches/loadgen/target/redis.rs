//! Redis: GET of a key's record, or a common token bucket in Lua by EVALSHA, in RESP 2, pipelined.
//! Keys are binary, so that a GET is about as long as a VERIFY.
//! [`check_server`](crate::check_server) charges the same bucket.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{EncodedRequests, LoadError, Tally, Target, connect, parse_line, parse_number, round_trip};
use crate::keys::{Keys, RequestedKey};

/// Longest line of a reply, which may be an error message.
const MAX_LINE: usize = 1024;

/// Longest value that is accepted.
const MAX_VALUE: usize = 1 << 20;

/// Rate and burst: a limit that no load reaches, as in keyward's benches.
const RATE: &str = "10000000";
const BURST: &str = "1000000000";

const HIT: u8 = 0;
const MISS: u8 = 1;
const LIMITED: u8 = 2;

/// A token bucket as it is commonly written: read the balance, refill it by the server's clock,
/// charge it if it is enough, and write it back. The policy of the key would take another lookup.
const BUCKET_SCRIPT: &str = "\
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

/// A Redis server.
pub(crate) struct Redis {
    requests: EncodedRequests,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Get,
    Bucket,
}

impl Redis {
    /// Encodes a GET of each digest.
    ///
    /// # Errors
    /// When there are no requests.
    pub(crate) fn get(keys: &Keys, hit_rate: f64) -> Result<Self, LoadError> {
        Self::new(keys, hit_rate, Kind::Get, |digest, out| encode_command(&[b"GET", digest], out))
    }

    /// Loads the script into the server at `path`, and encodes an EVALSHA for each digest.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the script, or there are no requests.
    pub(crate) fn bucket(keys: &Keys, hit_rate: f64, path: &Path) -> Result<Self, LoadError> {
        let mut stream = connect("Redis", path)?;
        let sha = round_trip(&mut stream, &BucketCommand::load(), |input| match parse_reply(input)? {
            Some((Reply::Bulk(Some(sha)), _)) => Ok(Some(sha.to_vec())),
            Some((Reply::Error(message), _)) => Err(LoadError::Refused(message.into())),
            Some(_) => Err(LoadError::Protocol("SCRIPT LOAD did not return the script's name".into())),
            None => Ok(None),
        })?;
        let command = BucketCommand::new(sha);
        Self::new(keys, hit_rate, Kind::Bucket, |digest, out| command.encode(digest, out))
    }

    fn new(
        keys: &Keys,
        hit_rate: f64,
        kind: Kind,
        encode: impl Fn(&[u8], &mut Vec<u8>),
    ) -> Result<Self, LoadError> {
        let mut sequence = keys.sequence(hit_rate);
        let requests = EncodedRequests::new(sequence.len(), |_, out| {
            if let RequestedKey::Digest(digest) = sequence.next_key() {
                encode(&digest, out);
            }
        });
        Ok(Self { requests: requests?, kind })
    }
}

impl Target for Redis {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Get => "Redis GET",
            Kind::Bucket => "Redis Lua token bucket",
        }
    }

    fn requests(&self) -> &EncodedRequests {
        &self.requests
    }

    fn handshake(&self, stream: &mut UnixStream) -> Result<(), LoadError> {
        let mut ping = Vec::new();
        encode_command(&[b"PING"], &mut ping);
        round_trip(stream, &ping, |input| match parse_reply(input)? {
            Some((Reply::Simple(b"PONG"), _)) => Ok(Some(())),
            Some((Reply::Error(message), _)) => Err(LoadError::Refused(message.into())),
            Some(_) => Err(LoadError::Protocol("PING was not answered with PONG".into())),
            None => Ok(None),
        })
    }

    fn parse_answer(
        &self,
        input: &[u8],
        _: u64,
        _: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, LoadError> {
        let Some((reply, size)) = parse_reply(input)? else {
            return Ok(None);
        };
        match (self.kind, reply) {
            (Kind::Get, Reply::Bulk(Some(_))) | (Kind::Bucket, Reply::Pair(1)) => tally.count(HIT),
            (Kind::Get, Reply::Bulk(None)) => tally.count(MISS),
            (Kind::Bucket, Reply::Pair(0)) => tally.count(LIMITED),
            (_, Reply::Error(message)) => {
                tally.count_error(message.split(' ').next().unwrap_or_default().to_owned());
            }
            _ => return Err(LoadError::Protocol("a reply is of another type than the command's".into())),
        }
        Ok(Some(size))
    }

    fn outcome_name(&self, outcome: u8) -> String {
        match (self.kind, outcome) {
            (Kind::Bucket, HIT) => "allowed",
            (_, HIT) => "hit",
            (_, MISS) => "miss",
            _ => "limited",
        }
        .into()
    }
}

/// The command that charges a bucket. The bucket of a key is named `b:` followed by its digest.
pub(crate) struct BucketCommand {
    /// The name of the script, as the server states it.
    sha: Vec<u8>,
}

impl BucketCommand {
    /// The command that loads the script. Its reply is the script's name.
    pub(crate) fn load() -> Vec<u8> {
        let mut load = Vec::new();
        encode_command(&[b"SCRIPT", b"LOAD", BUCKET_SCRIPT.as_bytes()], &mut load);
        load
    }

    pub(crate) fn new(sha: Vec<u8>) -> Self {
        Self { sha }
    }

    /// Appends the command for a key.
    pub(crate) fn encode(&self, digest: &[u8], out: &mut Vec<u8>) {
        let name = [b"b:", digest].concat();
        let arguments = [RATE.as_bytes(), BURST.as_bytes(), b"1"];
        encode_command(&[&[b"EVALSHA", self.sha.as_slice(), b"1", &name][..], &arguments].concat(), out);
    }
}

/// Appends a command: an array of bulk strings.
fn encode_command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The replies that these commands can have.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a str),
    Bulk(Option<&'a [u8]>),
    /// The first integer of an array of two.
    Pair(usize),
}

/// Parses the reply at the start of `input`. Returns it with its size; `None` if it is incomplete.
pub(crate) fn parse_reply(input: &[u8]) -> Result<Option<(Reply<'_>, usize)>, LoadError> {
    let Some((head, size)) = parse_line(input, MAX_LINE)? else {
        return Ok(None);
    };
    match head.split_first() {
        Some((b'+', text)) => Ok(Some((Reply::Simple(text), size))),
        Some((b'-', text)) => Ok(Some((Reply::Error(std::str::from_utf8(text).unwrap_or("ERR")), size))),
        Some((b'$', b"-1")) => Ok(Some((Reply::Bulk(None), size))),
        Some((b'$', digits)) => parse_bulk(input, size, parse_number(digits)?),
        Some((b'*', b"2")) => parse_pair(input, size),
        _ => Err(LoadError::Protocol(format!("unexpected reply {:?}", String::from_utf8_lossy(head)))),
    }
}

fn parse_bulk(input: &[u8], start: usize, length: usize) -> Result<Option<(Reply<'_>, usize)>, LoadError> {
    if length > MAX_VALUE {
        return Err(LoadError::Protocol(format!("a value of {length} bytes")));
    }
    let Some(rest) = input.get(start..start + length + 2) else {
        return Ok(None);
    };
    match rest.strip_suffix(b"\r\n") {
        Some(value) => Ok(Some((Reply::Bulk(Some(value)), start + length + 2))),
        None => Err(LoadError::Protocol("a value does not end in CR LF".into())),
    }
}

fn parse_pair(input: &[u8], mut at: usize) -> Result<Option<(Reply<'_>, usize)>, LoadError> {
    let mut values = [0; 2];
    for value in &mut values {
        let Some((text, size)) = parse_line(&input[at..], MAX_LINE)? else {
            return Ok(None);
        };
        *value = match text.strip_prefix(b":") {
            Some(digits) => parse_number(digits)?,
            None => return Err(LoadError::Protocol("a reply has no integer where one is due".into())),
        };
        at += size;
    }
    Ok(Some((Reply::Pair(values[0]), at)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_complete_only_as_a_whole, parse_all};
    use super::*;

    fn get() -> Redis {
        Redis::get(&Keys::digests(vec![*b"0123456789abcdef0123456789abcdef"]), 1.0).expect("one key")
    }

    fn bucket() -> Redis {
        Redis { kind: Kind::Bucket, ..get() }
    }

    fn outcomes(target: &Redis, stream: &[u8]) -> Vec<(u8, u64)> {
        parse_all(target, stream).expect("replies").0.outcomes().collect()
    }

    #[test]
    fn get_is_about_as_long_as_a_verify() {
        let expected = b"*2\r\n$3\r\nGET\r\n$32\r\n0123456789abcdef0123456789abcdef\r\n";
        assert_eq!(get().requests.request(0), expected);
        assert_eq!(expected.len(), 52);
    }

    #[test]
    fn replies_are_counted() {
        assert_eq!(outcomes(&get(), b"$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n"), [(HIT, 2), (MISS, 1)]);
        assert_eq!(outcomes(&bucket(), b"*2\r\n:1\r\n:99\r\n*2\r\n:0\r\n:0\r\n"), [(HIT, 1), (LIMITED, 1)]);
        let (tally, _) = parse_all(&bucket(), b"-NOSCRIPT No matching script.\r\n").expect("counted");
        assert_eq!(tally.errors["NOSCRIPT"], 1);
        assert_complete_only_as_a_whole(&get(), b"$3\r\nabc\r\n");
        assert_complete_only_as_a_whole(&bucket(), b"*2\r\n:1\r\n:99\r\n");
    }

    #[test]
    fn invalid_reply_is_an_error() {
        for stream in [&b"$3\r\nabcde"[..], b"$x\r\n", b"hello\r\n", b"$9999999\r\n", b"*2\r\n:1\r\n:99\r\n"]
        {
            assert!(parse_all(&get(), stream).is_err(), "{:?}", String::from_utf8_lossy(stream));
        }
        assert!(parse_all(&bucket(), b"$3\r\nabc\r\n").is_err());
        assert!(parse_all(&bucket(), b"*2\r\n:1\r\n$1\r\n").is_err());
    }
}
