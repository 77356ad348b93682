//! ANSWER frames whose texts have been encoded in advance.
//!
//! Nearly all answers of a daemon share a few combinations of environment, plan and limit name, so
//! it encodes each combination once ([`AnswerTexts`]) and copies the bytes into every answer. The
//! fixed part is written as one structure instead of field by field, because this is the busiest
//! code of the daemon. The tests compare the bytes with those of
//! [`Answer::encode`](crate::Answer::encode).

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::answer::AnswerFixed;
use crate::codec::truncate_text;
use crate::frame::FrameKind;
use crate::layout::WireSize;
use crate::limits::{HEADER_BYTES, LENGTH_BYTES, MAX_KEY_ID, MAX_NAME, MAX_OWNER, VERSION};
use crate::verdict::Verdict;

/// An [`Answer`](crate::Answer) about a known key, without metadata, shadow limit and balances.
#[derive(Clone, Copy, Debug)]
pub struct PreparedAnswer<'a> {
    /// The request id of the request.
    pub request_id: u32,
    /// Whether the request may go ahead, and why not.
    pub verdict: Verdict,
    /// The snapshot that the whole answer was taken from.
    pub generation: u64,
    /// The burst, count or grant of the limit that decided. This and the next three fields are 0 if
    /// no limit decided.
    pub limit: u32,
    /// What could be spent right now, after this request.
    pub remaining: u32,
    /// Milliseconds until the same cost would be admitted; 0 unless the verdict is RATE_LIMITED.
    pub retry_after_ms: u32,
    /// Milliseconds until the limit is full again.
    pub reset_ms: u32,
    /// UTF-8 of at most [`MAX_KEY_ID`] bytes.
    pub key_id: &'a [u8],
    /// UTF-8 of at most [`MAX_OWNER`] bytes.
    pub owner: &'a [u8],
    /// The other texts, as [`AnswerTexts::encode`] writes them.
    pub texts: &'a [u8],
}

/// The last three texts of an ANSWER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerTexts<'a> {
    /// At most [`MAX_NAME`] bytes, like the others.
    pub environment: &'a str,
    /// The plan of the key.
    pub plan: &'a str,
    /// The name of the limit that decided.
    pub limit_name: &'a str,
}

// The length of a text is an ASCII character, so encoded texts are UTF-8, and a string can hold them.
const _: () = assert!(MAX_NAME < 0x80);

impl<'a> AnswerTexts<'a> {
    /// Most bytes of encoded texts.
    pub const MAX_BYTES: usize = 3 * (1 + MAX_NAME);

    /// Appends the encoded texts. Texts over their limits are truncated, as by
    /// [`Answer::encode`](crate::Answer::encode).
    pub fn encode(self, out: &mut String) {
        for text in [self.environment, self.plan, self.limit_name] {
            let text = truncate_text(text, MAX_NAME);
            out.push(char::from(text.len() as u8));
            out.push_str(text);
        }
    }

    /// The texts that were [encoded](Self::encode) as `encoded`. Texts that are missing are empty.
    #[inline]
    pub fn decode(mut encoded: &'a str) -> Self {
        let mut take = || {
            let length = *encoded.as_bytes().first()?;
            let (text, rest) = encoded.get(1..)?.split_at_checked(length.into())?;
            encoded = rest;
            Some(text)
        };
        let [environment, plan, limit_name] = [take(), take(), take()].map(Option::unwrap_or_default);
        Self { environment, plan, limit_name }
    }
}

/// The frame up to the bytes of the first text: SPEC.md sections 3 and 6.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AnswerPrefix {
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

const _: () = {
    assert!(align_of::<AnswerPrefix>() == 1);
    assert!(size_of::<AnswerPrefix>() == HEADER_BYTES + AnswerFixed::WIRE_SIZE + 1);
    assert!(offset_of!(AnswerPrefix, length) == 0);
    assert!(offset_of!(AnswerPrefix, version) == 4);
    assert!(offset_of!(AnswerPrefix, kind) == 5);
    assert!(offset_of!(AnswerPrefix, flags) == 6);
    assert!(offset_of!(AnswerPrefix, request_id) == 8);
    assert!(offset_of!(AnswerPrefix, verdict) == HEADER_BYTES);
    assert!(offset_of!(AnswerPrefix, generation) == HEADER_BYTES + 1);
    assert!(offset_of!(AnswerPrefix, limit) == HEADER_BYTES + 9);
    assert!(offset_of!(AnswerPrefix, remaining) == HEADER_BYTES + 13);
    assert!(offset_of!(AnswerPrefix, retry_after_ms) == HEADER_BYTES + 17);
    assert!(offset_of!(AnswerPrefix, reset_ms) == HEADER_BYTES + 21);
    assert!(offset_of!(AnswerPrefix, key_id_length) == HEADER_BYTES + AnswerFixed::WIRE_SIZE);
};

impl PreparedAnswer<'_> {
    /// Appends the frame. Texts over their limits are truncated without regard to character
    /// boundaries; the texts of a snapshot never are.
    #[inline(always)]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let key_id = &self.key_id[..self.key_id.len().min(MAX_KEY_ID)];
        let owner = &self.owner[..self.owner.len().min(MAX_OWNER)];
        let size = size_of::<AnswerPrefix>() + key_id.len() + 1 + owner.len() + self.texts.len();
        // Reserved once, so that no later append reallocates the buffer.
        out.reserve(size);
        let start = out.len();
        out.extend_from_slice(&[0; size_of::<AnswerPrefix>()]);
        // Cannot fail: the size is right, and the alignment is 1.
        let Ok(prefix) = AnswerPrefix::mut_from_bytes(&mut out[start..]) else { return };
        // Written in place. Building the structure elsewhere and copying it with wider loads than
        // the stores that wrote it would defeat store forwarding.
        *prefix = AnswerPrefix {
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
        append_short(key_id, out);
        out.push(owner.len() as u8);
        append_short(owner, out);
        append_short(self.texts, out);
    }
}

/// Appends a text that is usually short without calling `memcpy`: the call would cost as much as
/// the copy, and would spill registers.
#[inline(always)]
fn append_short(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        8..=16 => append_halves::<8>(text, out),
        17..=32 => append_halves::<16>(text, out),
        33..=64 => append_halves::<32>(text, out),
        _ => out.extend_from_slice(text),
    }
}

/// Appends a text of `HALF` to `2 * HALF` bytes as its first and its last `HALF` bytes, which
/// overlap.
#[inline(always)]
fn append_halves<const HALF: usize>(text: &[u8], out: &mut Vec<u8>) {
    let (Some(first), Some(last)) = (text.first_chunk::<HALF>(), text.last_chunk::<HALF>()) else { return };
    let end = out.len() + text.len();
    out.extend_from_slice(first);
    out.truncate(end - HALF);
    out.extend_from_slice(last);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Answer, LimitState};

    #[test]
    fn prepared_answer_has_the_bytes_of_answer() {
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
                let mut texts = String::new();
                AnswerTexts { environment, plan, limit_name: name }.encode(&mut texts);
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
                    texts: texts.as_bytes(),
                };
                let (mut expected, mut actual) = (b"before".to_vec(), b"before".to_vec());
                answer.encode(&mut expected);
                prepared.encode(&mut actual);
                assert_eq!(actual, expected);
            }
        }
    }
    #[test]
    fn encoded_texts_decode_to_the_same_texts() {
        let long = "é".repeat(MAX_NAME / 2);
        for texts in [
            AnswerTexts::default(),
            AnswerTexts { environment: "live", plan: "", limit_name: "default" },
            AnswerTexts { environment: &long, plan: &long, limit_name: &long },
        ] {
            let mut encoded = String::new();
            texts.encode(&mut encoded);
            assert!(encoded.len() <= AnswerTexts::MAX_BYTES);
            assert_eq!(AnswerTexts::decode(&encoded), texts);
        }
    }

    #[test]
    fn truncated_texts_decode_to_empty_ones() {
        let texts = AnswerTexts { environment: "live", plan: "pro", limit_name: "é" };
        let mut encoded = String::new();
        texts.encode(&mut encoded);
        assert_eq!(AnswerTexts::decode(&encoded[..4]), AnswerTexts::default());
        assert_eq!(AnswerTexts::decode(&encoded[..9]), AnswerTexts { limit_name: "", ..texts });
    }
}
