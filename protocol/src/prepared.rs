//! Answers that are put together from texts that were encoded before: a daemon gives nearly all of its answers from a few
//! policies, and has the rest of each at hand as bytes.
//!
//! The fixed part is laid out by the compiler instead of being written field by field, because this is what a daemon does
//! millions of times a second; that the bytes are those of [`Answer::encode`](crate::Answer::encode) is what the tests are for.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::codec::put_text8;
use crate::frame::FrameKind;
use crate::limits::{LENGTH_BYTES, MAX_KEY_ID, MAX_NAME, MAX_OWNER, VERSION};
use crate::response::Verdict;

/// The last three texts of an ANSWER (`environment`, `plan`, `limit_name`), as they are on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerTexts(Box<[u8]>);

impl AnswerTexts {
    /// Texts over their limits are cut, as [`Answer::encode`](crate::Answer::encode) cuts them.
    pub fn new(environment: &str, plan: &str, limit_name: &str) -> Self {
        let mut bytes = Vec::new();
        [environment, plan, limit_name].into_iter().for_each(|text| put_text8(text, MAX_NAME, &mut bytes));
        Self(bytes.into())
    }
}

/// An [`Answer`](crate::Answer) about a key, without metadata and without a shadow limit.
#[derive(Clone, Copy, Debug)]
pub struct PreparedAnswer<'a> {
    /// Of the request.
    pub request_id: u32,
    /// Whether the request may go ahead, and why not.
    pub verdict: Verdict,
    /// The snapshot that the whole answer was taken from.
    pub generation: u64,
    /// The burst of the limit that decided; 0 where none did, as the next three.
    pub limit: u32,
    /// What could be spent right now, after this request.
    pub remaining: u32,
    /// Milliseconds until the same cost would be admitted, where it was not.
    pub retry_after_ms: u32,
    /// Milliseconds until it is full again.
    pub reset_ms: u32,
    /// UTF-8 of at most [`MAX_KEY_ID`] bytes.
    pub key_id: &'a [u8],
    /// UTF-8 of at most [`MAX_OWNER`] bytes.
    pub owner: &'a [u8],
    /// The rest.
    pub texts: &'a AnswerTexts,
}

/// The frame up to the first text's bytes: SPEC.md sections 3 and 6.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Start {
    length: U32,
    version: u8,
    kind: u8,
    flags: U16,
    request_id: U32,
    verdict: u8,
    generation: U64,
    limit: U32,
    remaining: U32,
    retry_after_ms: U32,
    reset_ms: U32,
    key_id_length: u8,
}

impl PreparedAnswer<'_> {
    /// Appends the frame. Texts over their limits are cut, wherever that is; a snapshot holds none.
    #[inline(always)]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let key_id = &self.key_id[..self.key_id.len().min(MAX_KEY_ID)];
        let owner = &self.owner[..self.owner.len().min(MAX_OWNER)];
        let size = size_of::<Start>() + key_id.len() + 1 + owner.len() + self.texts.0.len();
        // Asked once, so that no text has the whole moved.
        out.reserve(size);
        let at = out.len();
        out.extend_from_slice(&[0; size_of::<Start>()]);
        // It is as long as that, and needs no alignment.
        let Ok(start) = Start::mut_from_bytes(&mut out[at..]) else { return };
        // In its place: a processor waits for what it copies in larger pieces than it has just been written in.
        *start = Start {
            length: U32::new((size - LENGTH_BYTES) as u32),
            version: VERSION,
            kind: FrameKind::Answer as u8,
            flags: U16::ZERO,
            request_id: U32::new(self.request_id),
            verdict: self.verdict.value(),
            generation: U64::new(self.generation),
            limit: U32::new(self.limit),
            remaining: U32::new(self.remaining),
            retry_after_ms: U32::new(self.retry_after_ms),
            reset_ms: U32::new(self.reset_ms),
            key_id_length: key_id.len() as u8,
        };
        put_short(key_id, out);
        out.push(owner.len() as u8);
        put_short(owner, out);
        put_short(&self.texts.0, out);
    }
}

/// Appends a text that is most often short, without calling the C library for it: a call costs as much as the copy, and whatever is
/// in registers has to be put away for it.
#[inline(always)]
fn put_short(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        8..=16 => put_halves::<8>(text, out),
        17..=32 => put_halves::<16>(text, out),
        33..=64 => put_halves::<32>(text, out),
        _ => out.extend_from_slice(text),
    }
}

/// The first `HALF` bytes and the last, which overlap: a text of `HALF` to twice as many is whole then.
#[inline(always)]
fn put_halves<const HALF: usize>(text: &[u8], out: &mut Vec<u8>) {
    let (Some(first), Some(last)) = (text.first_chunk::<HALF>(), text.last_chunk::<HALF>()) else { return };
    let end = out.len() + text.len();
    out.extend_from_slice(first);
    out.truncate(end - HALF);
    out.extend_from_slice(last);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::response::{Answer, LimitState};

    #[test]
    fn it_is_the_frame_that_an_answer_makes() {
        let long = "a".repeat(200);
        let lengths = (0..=70).map(|length| (&long[..length], &long[..length / 2], "default"));
        let others = [("k1", "acmé", ""), (&*long, &*long, &*long)];
        for (key_id, owner, name) in lengths.chain(others) {
            for verdict in Verdict::all() {
                let limit =
                    LimitState { name, limit: 1, remaining: 2, retry_after_ms: 3, reset_ms: u32::MAX };
                let (environment, plan) = (name, owner);
                let blank = Answer::without_key(7, verdict, u64::MAX - 1);
                let answer = Answer { limit, key_id, owner, environment, plan, ..blank };
                let prepared = PreparedAnswer {
                    request_id: 7,
                    verdict,
                    generation: u64::MAX - 1,
                    limit: 1,
                    remaining: 2,
                    retry_after_ms: 3,
                    reset_ms: u32::MAX,
                    key_id: key_id.as_bytes(),
                    owner: owner.as_bytes(),
                    texts: &AnswerTexts::new(environment, plan, name),
                };
                let (mut whole, mut parts) = (b"before".to_vec(), b"before".to_vec());
                answer.encode(&mut whole);
                prepared.encode(&mut parts);
                assert_eq!(whole, parts);
            }
        }
    }
}
