//! PostgreSQL: one row by its indexed hash, prepared once, in the extended protocol (version 3), pipelined. Every request
//! is Bind, Execute and Sync, a transaction of its own, as an application asks one question.
//!
//! As much of the protocol as that takes, over a Unix socket that trusts its peer: a load has to be encoded in advance,
//! which no client library does.

use std::os::unix::net::UnixStream;

use super::{Fault, Ring, Tally, Target, ask};
use crate::keys::{Keys, Wanted};

/// Who asks, and where.
const STARTUP: &[(&str, &str)] = &[("user", "postgres"), ("database", "postgres")];

/// Version 3.0.
const VERSION: i32 = 3 << 16;

/// What is asked, under this name.
const STATEMENT: &[u8] = b"q\0";
const QUERY: &[u8] = b"SELECT key_id, owner, environment, plan, limits FROM api_keys WHERE key_hash = $1\0";

/// The type of the parameter: bytea.
const BYTEA: i32 = 17;

/// Longest message that is taken for one.
const MAX_MESSAGE: usize = 1 << 20;

const HIT: u8 = 0;
const MISS: u8 = 1;

/// A PostgreSQL to load: its table is `api_keys`.
pub(crate) struct Postgres {
    ring: Ring,
}

impl Postgres {
    /// SELECT by each key's digest.
    ///
    /// # Errors
    /// When there is nothing to ask for.
    pub(crate) fn new(keys: &Keys, hit_rate: f64) -> Result<Self, Fault> {
        let mut plan = keys.plan(hit_rate);
        let ring = Ring::new(plan.len(), |_, out| {
            if let Wanted::Digest(digest) = plan.next_key() {
                request(&digest, out);
            }
        });
        Ok(Self { ring: ring.map_err(|error| Fault::Unfit(error.to_string()))? })
    }
}

/// Bind to the unnamed portal, Execute, Sync.
fn request(digest: &[u8; 32], out: &mut Vec<u8>) {
    message(b'B', out, |out| {
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
    // Of the unnamed portal, all rows.
    message(b'E', out, |out| out.extend_from_slice(&[0; 5]));
    message(b'S', out, |_| ());
}

/// Startup, and, as a trusting server needs no answer in between, Parse and Sync.
fn greeting() -> Vec<u8> {
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
    message(b'P', &mut out, |out| {
        out.extend_from_slice(STATEMENT);
        out.extend_from_slice(QUERY);
        out.extend_from_slice(&1_i16.to_be_bytes());
        out.extend_from_slice(&BYTEA.to_be_bytes());
    });
    message(b'S', &mut out, |_| ());
    out
}

/// Appends a message: its type, its length, and what `write` appends.
fn message(kind: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = (out.len() - start) as i32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// A message's type, its body and its size.
type Message<'a> = (u8, &'a [u8], usize);

/// The message at the front of `input`.
fn split(input: &[u8]) -> Result<Option<Message<'_>>, Fault> {
    let Some((head, _)) = input.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..=MAX_MESSAGE).contains(&length) {
        return Err(Fault::Broken(format!("a message of {length} bytes")));
    }
    Ok(input.get(5..1 + length).map(|body| (head[0], body, 1 + length)))
}

/// What an ErrorResponse says: the text of field M.
fn error_text(body: &[u8]) -> String {
    let text = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(text.unwrap_or(b"an error")).into_owned()
}

impl Target for Postgres {
    fn name(&self) -> &'static str {
        "PostgreSQL SELECT"
    }

    fn ring(&self) -> &Ring {
        &self.ring
    }

    fn greet(&self, stream: &mut UnixStream) -> Result<(), Fault> {
        ask(stream, &greeting(), |input| {
            let (mut at, mut parsed) = (0, false);
            while let Some((kind, body, size)) = split(&input[at..])? {
                at += size;
                match kind {
                    b'E' => return Err(Fault::Refused(error_text(body))),
                    b'R' if body != [0; 4] => return Err(Fault::Refused("it asks for a password".into())),
                    b'1' => parsed = true,
                    b'Z' if parsed => return Ok(Some(())),
                    _ => {}
                }
            }
            Ok(None)
        })
    }

    /// Everything up to ReadyForQuery.
    fn answer(&self, input: &[u8], _: u64, _: bool, tally: &mut Tally) -> Result<Option<usize>, Fault> {
        let (mut at, mut bound, mut rows, mut error) = (0, false, 0, None);
        while let Some((kind, body, size)) = split(&input[at..])? {
            at += size;
            match kind {
                b'2' => bound = true,
                b'D' if bound => rows += 1,
                b'C' if bound => {}
                b'N' | b'S' => {}
                b'E' => error = Some(error_text(body)),
                b'Z' => {
                    match (error, bound, rows) {
                        (Some(error), ..) => tally.error(error),
                        (None, true, 0) => tally.count(MISS),
                        (None, true, 1) => tally.count(HIT),
                        _ => return Err(Fault::Broken("a query has not one row or none".into())),
                    }
                    return Ok(Some(at));
                }
                other => return Err(Fault::Broken(format!("a message of type {:?}", char::from(other)))),
            }
        }
        Ok(None)
    }

    fn outcome(&self, outcome: u8) -> String {
        if outcome == HIT { "hit".into() } else { "miss".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_for_every_cut, take_all};
    use super::*;

    fn target() -> Postgres {
        Postgres::new(&Keys::digests(vec![[7; 32]]), 1.0).expect("one key")
    }

    fn stream(kinds: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, body) in kinds {
            message(*kind, &mut out, |out| out.extend_from_slice(body));
        }
        out
    }

    #[test]
    fn a_request_is_bind_execute_sync() {
        let target = target();
        let mut input = target.ring.request(0);
        let mut kinds = Vec::new();
        while let Some((kind, _, size)) = split(input).expect("messages") {
            kinds.push(kind);
            input = &input[size..];
        }
        assert_eq!((kinds.as_slice(), input.len()), (&b"BES"[..], 0));
        assert_eq!(target.ring.request(0).len(), 69);
    }

    #[test]
    fn rows_are_counted_and_errors_are_named() {
        let hit = stream(&[(b'2', b""), (b'D', b"row"), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
        let miss = stream(&[(b'2', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]);
        let error = stream(&[(b'E', b"SERROR\0Mno such table\0\0"), (b'Z', b"I")]);
        let (tally, left) = take_all(&target(), &[&hit[..], &miss, &error].concat()).expect("answers");
        assert_eq!((tally.outcomes().collect::<Vec<_>>(), left), (vec![(HIT, 1), (MISS, 1)], 0));
        assert_eq!(tally.errors["no such table"], 1);
        holds_for_every_cut(&target(), &hit);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for kinds in [
            &[(b'Z', &b"I"[..])][..],
            &[(b'D', b"row"), (b'Z', b"I")],
            &[(b'2', b""), (b'D', b""), (b'D', b""), (b'Z', b"I")],
            &[(b'?', b"")],
        ] {
            assert!(take_all(&target(), &stream(kinds)).is_err(), "{kinds:?}");
        }
        assert!(take_all(&target(), &[b'2', 0, 0, 0, 3]).is_err());
    }
}
