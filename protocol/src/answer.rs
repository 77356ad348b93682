//! ANSWER (SPEC.md section 6): the verdict, the limit that decided, and the identity of the key.

use crate::balances::{Balances, MAX_BALANCES_BYTES};
use crate::codec::{BodyReader, append_bytes16, append_text8, truncate_text};
use crate::error::ProtocolError;
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::layout::{WireSize, wire_struct};
use crate::limits::{
    HEADER_BYTES, LENGTH_BYTES, MAX_ANSWER_LENGTH, MAX_KEY_ID, MAX_METADATA, MAX_NAME, MAX_OWNER,
};
use crate::verdict::Verdict;

/// Flags of ANSWER.
pub mod answer_flag {
    /// `metadata` is present.
    pub const METADATA: u16 = 0x0040;
    /// `shadow_limit` is present.
    pub const SHADOW: u16 = 0x0080;
    /// `balances` is present.
    pub const BALANCES: u16 = 0x0100;
    /// All of the above.
    pub const ALL: u16 = 0x01c0;
}

/// Numbers of ANSWER's fields, as reported by INVALID_FIELD.
mod answer_field {
    pub(super) const KEY_ID: u32 = 7;
    pub(super) const OWNER: u32 = 8;
    pub(super) const ENVIRONMENT: u32 = 9;
    pub(super) const PLAN: u32 = 10;
    pub(super) const LIMIT_NAME: u32 = 11;
    pub(super) const METADATA: u32 = 12;
    pub(super) const SHADOW_LIMIT: u32 = 13;
    pub(super) const BALANCES: u32 = 14;
}

/// The daemon's answer to VERIFY, REFUND and DEBIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The request id of the request.
    pub request_id: u32,
    /// Whether the request may go ahead, and why not.
    pub verdict: Verdict,
    /// The state of all keys that the whole answer was taken from.
    pub generation: u64,
    /// The limit that decided.
    pub limit: LimitState<'a>,
    /// Empty if the key is unknown.
    pub key_id: &'a str,
    /// The key's owner. This and the next two texts are empty if the key is unknown or has none.
    pub owner: &'a str,
    /// The key's environment.
    pub environment: &'a str,
    /// The key's plan.
    pub plan: &'a str,
    /// A JSON object; present if the request asked for it and the key has one.
    pub metadata: Option<&'a str>,
    /// The first limit in shadow mode that would have refused.
    pub shadow_limit: Option<&'a str>,
    /// Every enforced limit of the key; present if the request asked for it and the key is known.
    pub balances: Option<Balances<'a>>,
}

/// The limit that decided, and its balance. All fields are zero or empty if no limit decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitState<'a> {
    /// Name of the limit.
    pub name: &'a str,
    /// The burst of a bucket, the count of a window, or the credits granted in total; [`u32::MAX`]
    /// stands for that or more.
    pub limit: u32,
    /// What could be spent right now, after this request; [`u32::MAX`] stands for that or more, and
    /// 0 also for an overdrawn limit.
    pub remaining: u32,
    /// Milliseconds until the same cost would be admitted; 0 unless the verdict is RATE_LIMITED.
    pub retry_after_ms: u32,
    /// Milliseconds until a bucket is full again or a window ends; [`u32::MAX`] for credits.
    pub reset_ms: u32,
}

wire_struct! {
    /// The body up to `key_id`.
    pub(crate) struct AnswerFixed: 25 bytes {
        0 => verdict: u8,
        1 => generation: u64,
        9 => limit: u32,
        13 => remaining: u32,
        17 => retry_after_ms: u32,
        21 => reset_ms: u32,
    }
}

/// The `length` of an answer whose texts are all as long as they may be.
const LARGEST_ANSWER: usize = HEADER_BYTES - LENGTH_BYTES
    + AnswerFixed::WIRE_SIZE
    + (1 + MAX_KEY_ID)
    + (1 + MAX_OWNER)
    + 3 * (1 + MAX_NAME)
    + (2 + MAX_METADATA)
    + (1 + MAX_NAME)
    + MAX_BALANCES_BYTES;

const _: () = assert!(LARGEST_ANSWER == 6026 && LARGEST_ANSWER <= MAX_ANSWER_LENGTH as usize);

impl<'a> Answer<'a> {
    /// An answer that carries nothing but a verdict, for a request whose key was not found or not
    /// looked up.
    #[inline]
    pub fn without_key(request_id: u32, verdict: Verdict, generation: u64) -> Self {
        Self {
            request_id,
            verdict,
            generation,
            limit: LimitState::default(),
            key_id: "",
            owner: "",
            environment: "",
            plan: "",
            metadata: None,
            shadow_limit: None,
            balances: None,
        }
    }

    /// Appends the frame. Texts over their limits are truncated; the texts of a snapshot never are.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = AnswerFixed {
            verdict: self.verdict.value(),
            generation: self.generation,
            limit: self.limit.limit,
            remaining: self.limit.remaining,
            retry_after_ms: self.limit.retry_after_ms,
            reset_ms: self.limit.reset_ms,
        };
        let flag_if = |flag, condition| if condition { flag } else { 0 };
        let flags = flag_if(answer_flag::METADATA, self.metadata.is_some())
            | flag_if(answer_flag::SHADOW, self.shadow_limit.is_some())
            | flag_if(answer_flag::BALANCES, self.balances.is_some());
        append_frame(FrameKind::Answer as u8, flags, self.request_id, fixed, out, |out| {
            append_text8(self.key_id, MAX_KEY_ID, out);
            append_text8(self.owner, MAX_OWNER, out);
            append_text8(self.environment, MAX_NAME, out);
            append_text8(self.plan, MAX_NAME, out);
            append_text8(self.limit.name, MAX_NAME, out);
            if let Some(metadata) = self.metadata {
                append_bytes16(truncate_text(metadata, MAX_METADATA).as_bytes(), out);
            }
            if let Some(shadow_limit) = self.shadow_limit {
                append_text8(shadow_limit, MAX_NAME, out);
            }
            if let Some(balances) = self.balances {
                balances.append(out);
            }
        });
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.check_flags(answer_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut reader = BodyReader::new(body, header.request_id);
        let fixed: AnswerFixed = reader.read_fixed()?;
        let key_id = reader.read_text8(MAX_KEY_ID, answer_field::KEY_ID)?;
        let owner = reader.read_text8(MAX_OWNER, answer_field::OWNER)?;
        let environment = reader.read_text8(MAX_NAME, answer_field::ENVIRONMENT)?;
        let plan = reader.read_text8(MAX_NAME, answer_field::PLAN)?;
        let name = reader.read_text8(MAX_NAME, answer_field::LIMIT_NAME)?;
        let metadata = if has(answer_flag::METADATA) {
            Some(reader.read_text16(MAX_METADATA, answer_field::METADATA)?)
        } else {
            None
        };
        let shadow_limit = if has(answer_flag::SHADOW) {
            Some(reader.read_text8(MAX_NAME, answer_field::SHADOW_LIMIT)?)
        } else {
            None
        };
        let balances = if has(answer_flag::BALANCES) {
            Some(Balances::read(&mut reader, answer_field::BALANCES)?)
        } else {
            None
        };
        reader.finish()?;
        Ok(Self {
            request_id: header.request_id,
            verdict: Verdict::from_value(fixed.verdict),
            generation: fixed.generation,
            limit: LimitState {
                name,
                limit: fixed.limit,
                remaining: fixed.remaining,
                retry_after_ms: fixed.retry_after_ms,
                reset_ms: fixed.reset_ms,
            },
            key_id,
            owner,
            environment,
            plan,
            metadata,
            shadow_limit,
            balances,
        })
    }
}
