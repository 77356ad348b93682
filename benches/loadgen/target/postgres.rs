//! PostgreSQL: a SELECT of one row by its indexed hash, prepared once, in the extended query
//! protocol (version 3), pipelined. Each request is Bind, Execute and Sync, and so a transaction of
//! its own, like a single query of an application.
//!
//! This implements only the messages that are needed, over a Unix socket with `trust`
//! authentication: no client library can encode requests in advance.

use std::os::unix::net::UnixStream;

use super::{EncodedRequests, LoadError, Tally, Target, round_trip};
use crate::keys::{Keys, RequestedKey};

/// Parameters of the startup message.
const STARTUP: &[(&str, &str)] = &[("user", "postgres"), ("database", "postgres")];

/// Protocol version 3.0.
const VERSION: i32 = 3 << 16;

/// Name of the prepared statement.
const STATEMENT: &[u8] = b"q\0";
/// The prepared statement.
const QUERY: &[u8] = b"SELECT key_id, owner, environment, plan, limits FROM api_keys WHERE key_hash = $1\0";

/// The type of the parameter: bytea.
const BYTEA: i32 = 17;

/// Longest message that is accepted.
const MAX_MESSAGE: usize = 1 << 20;

const HIT: u8 = 0;
const MISS: u8 = 1;

/// A PostgreSQL server with the table `api_keys`.
pub(crate) struct Postgres {
    requests: EncodedRequests,
}

impl Postgres {
    /// Encodes a SELECT of each digest.
    ///
    /// # Errors
    /// When there are no requests.
    pub(crate) fn new(keys: &Keys, hit_rate: f64) -> Result<Self, LoadError> {
        let mut sequence = keys.sequence(hit_rate);
        let requests = EncodedRequests::new(sequence.len(), |_, out| {
            if let RequestedKey::Digest(digest) = sequence.next_key() {
                encode_request(&digest, out);
            }
        });
        Ok(Self { requests: requests? })
    }
}

/// Appends Bind to the unnamed portal, Execute and Sync.
fn encode_request(digest: &[u8; 32], out: &mut Vec<u8>) {
    encode_message(b'B', out, |out| {
        out.push(0);
        out.extend_from_slice(STATEMENT);
        // One format for all parameters: binary. One parameter.
        for number in [1_i16, 1, 1] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&(digest.len() as i32).to_be_bytes());
        out.extend_from_slice(digest);
        // One format for all columns: binary.
        for number in [1_i16, 1] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    });
    // The unnamed portal, all rows.
    encode_message(b'E', out, |out| out.extend_from_slice(&[0; 5]));
    encode_message(b'S', out, |_| ());
}

/// The startup message, followed by Parse and Sync: without a password, the server needs no message
/// in between.
fn handshake_request() -> Vec<u8> {
    let mut startup = Vec::new();
    startup.extend_from_slice(&VERSION.to_be_bytes());
    for (name, value) in STARTUP {
        for text in [name, value] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
    }
    startup.push(0);
    let mut out = (4 + startup.len() as i32).to_be_bytes().to_vec();
    out.extend_from_slice(&startup);
    encode_message(b'P', &mut out, |out| {
        out.extend_from_slice(STATEMENT);
        out.extend_from_slice(QUERY);
        out.extend_from_slice(&1_i16.to_be_bytes());
        out.extend_from_slice(&BYTEA.to_be_bytes());
    });
    encode_message(b'S', &mut out, |_| ());
    out
}

/// Appends a message: its type, its length, and the body that `write` appends.
fn encode_message(kind: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = (out.len() - start) as i32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// A message's type, its body and its size.
type Message<'a> = (u8, &'a [u8], usize);

/// Parses the message at the start of `input`; `None` if it is incomplete.
fn parse_message(input: &[u8]) -> Result<Option<Message<'_>>, LoadError> {
    let Some((head, _)) = input.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..=MAX_MESSAGE).contains(&length) {
        return Err(LoadError::Protocol(format!("a message of {length} bytes")));
    }
    Ok(input.get(5..1 + length).map(|body| (head[0], body, 1 + length)))
}

/// The text of an ErrorResponse: its field M.
fn error_text(body: &[u8]) -> String {
    let text = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(text.unwrap_or(b"an error")).into_owned()
}

impl Target for Postgres {
    fn name(&self) -> &'static str {
        "PostgreSQL SELECT"
    }

    fn requests(&self) -> &EncodedRequests {
        &self.requests
    }

    fn handshake(&self, stream: &mut UnixStream) -> Result<(), LoadError> {
        round_trip(stream, &handshake_request(), |input| {
            let (mut at, mut parsed) = (0, false);
            while let Some((kind, body, size)) = parse_message(&input[at..])? {
                at += size;
                match kind {
                    b'E' => return Err(LoadError::Refused(error_text(body))),
                    b'R' if body != [0; 4] => {
                        return Err(LoadError::Refused("it asks for a password".into()));
                    }
                    b'1' => parsed = true,
                    b'Z' if parsed => return Ok(Some(())),
                    _ => {}
                }
            }
            Ok(None)
        })
    }

    /// Parses all messages up to ReadyForQuery.
    fn parse_answer(
        &self,
        input: &[u8],
        _: u64,
        _: bool,
        tally: &mut Tally,
    ) -> Result<Option<usize>, LoadError> {
        let (mut at, mut bound, mut rows, mut error) = (0, false, 0, None);
        while let Some((kind, body, size)) = parse_message(&input[at..])? {
            at += size;
            match kind {
                b'2' => bound = true,
                b'D' if bound => rows += 1,
                b'C' if bound => {}
                b'N' | b'S' => {}
                b'E' => error = Some(error_text(body)),
                b'Z' => {
                    match (error, bound, rows) {
                        (Some(error), ..) => tally.count_error(error),
                        (None, true, 0) => tally.count(MISS),
                        (None, true, 1) => tally.count(HIT),
                        _ => return Err(LoadError::Protocol("a query has neither one row nor none".into())),
                    }
                    return Ok(Some(at));
                }
                other => {
                    return Err(LoadError::Protocol(format!("a message of type {:?}", char::from(other))));
                }
            }
        }
        Ok(None)
    }

    fn outcome_name(&self, outcome: u8) -> String {
        if outcome == HIT { "hit".into() } else { "miss".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_complete_only_as_a_whole, parse_all};
    use super::*;

    fn target() -> Postgres {
        Postgres::new(&Keys::digests(vec![[7; 32]]), 1.0).expect("one key")
    }

    fn stream(kinds: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, body) in kinds {
            encode_message(*kind, &mut out, |out| out.extend_from_slice(body));
        }
        out
    }

    #[test]
    fn request_is_bind_execute_and_sync() {
        let target = target();
        let mut input = target.requests.request(0);
        let mut kinds = Vec::new();
        while let Some((kind, _, size)) = parse_message(input).expect("messages") {
            kinds.push(kind);
            input = &input[size..];
        }
        assert_eq!((kinds.as_slice(), input.len()), (&b"BES"[..], 0));
        assert_eq!(target.requests.request(0).len(), 69);
    }

    #[test]
    fn rows_and_errors_are_counted() {
        let hit = stream(&[(b'2', b""), (b'D', b"row"), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
        let miss = stream(&[(b'2', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]);
        let error = stream(&[(b'E', b"SERROR\0Mno such table\0\0"), (b'Z', b"I")]);
        let (tally, left) = parse_all(&target(), &[&hit[..], &miss, &error].concat()).expect("answers");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(HIT, 1), (MISS, 1)], 0));
        assert_eq!(tally.errors["no such table"], 1);
        assert_complete_only_as_a_whole(&target(), &hit);
    }

    #[test]
    fn invalid_answer_is_an_error() {
        for kinds in [
            &[(b'Z', &b"I"[..])][..],
            &[(b'D', b"row"), (b'Z', b"I")],
            &[(b'2', b""), (b'D', b""), (b'D', b""), (b'Z', b"I")],
            &[(b'?', b"")],
        ] {
            assert!(parse_all(&target(), &stream(kinds)).is_err(), "{kinds:?}");
        }
        assert!(parse_all(&target(), &[b'2', 0, 0, 0, 3]).is_err());
    }
}
