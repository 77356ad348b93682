//! The field `balances` of an ANSWER (SPEC.md section 6): every limit of a key, and its balance.

use std::fmt;

use crate::codec::{BodyReader, append_fixed, append_text8};
use crate::error::ProtocolError;
use crate::layout::{WireSize, wire_struct};
use crate::limits::{MAX_KEY_LIMITS, MAX_NAME};

/// Bytes of the number of limits, with which the field begins.
const COUNT_BYTES: usize = 1;

/// The enforced limits of a key, in the key's order: at most [`MAX_KEY_LIMITS`].
///
/// It borrows the encoded field, which has been validated. The daemon makes one with
/// [`BalancesBuf`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Balances<'a> {
    /// The encoded field.
    field: &'a [u8],
}

/// A limit of a key, and its balance after the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitBalance<'a> {
    /// Name of the limit.
    pub name: &'a str,
    /// What kind of limit it is.
    pub kind: LimitKind,
    /// The burst of a bucket, the count of a window, or the credits granted in total.
    pub limit: u64,
    /// What this request charged; for a REFUND, what it gave back.
    pub charged: u32,
    /// What can be spent now; below zero if the limit is overdrawn.
    pub balance: i64,
    /// Milliseconds until a bucket is full or a window ends, rounded up; [`u32::MAX`] for that many
    /// or more, and for credits.
    pub reset_ms: u32,
}

/// How a limit gets its balance back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// Continuously, at its rate.
    Bucket,
    /// All at once, when the next calendar window begins.
    Window,
    /// Only by a larger grant.
    Credits,
    /// A kind that this version does not know.
    Other(UnknownLimitKind),
}

/// A value on the wire that is not the value of a known kind of limit. Only
/// [`LimitKind::from_value`] creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnknownLimitKind(u8);

impl LimitKind {
    /// The value on the wire.
    pub const fn value(self) -> u8 {
        match self {
            Self::Bucket => 0,
            Self::Window => 1,
            Self::Credits => 2,
            Self::Other(UnknownLimitKind(value)) => value,
        }
    }

    /// The kind with this value.
    pub const fn from_value(value: u8) -> Self {
        match value {
            0 => Self::Bucket,
            1 => Self::Window,
            2 => Self::Credits,
            other => Self::Other(UnknownLimitKind(other)),
        }
    }

    /// SPEC.md's name, for example `BUCKET`; `OTHER` for an unknown value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bucket => "BUCKET",
            Self::Window => "WINDOW",
            Self::Credits => "CREDITS",
            Self::Other(_) => "OTHER",
        }
    }
}

wire_struct! {
    /// A limit after its name.
    struct BalanceFixed: 25 bytes {
        0 => kind: u8,
        1 => limit: u64,
        9 => charged: u32,
        13 => balance: i64,
        21 => reset_ms: u32,
    }
}

/// The longest field.
pub(crate) const MAX_BALANCES_BYTES: usize =
    COUNT_BYTES + MAX_KEY_LIMITS * (1 + MAX_NAME + BalanceFixed::WIRE_SIZE);

impl<'a> Balances<'a> {
    /// No limits.
    pub const EMPTY: Self = Self { field: &[0] };

    /// The limits, in the key's order.
    pub fn iter(&self) -> impl Iterator<Item = LimitBalance<'a>> + use<'a> {
        let mut reader = BodyReader::new(self.field.get(COUNT_BYTES..).unwrap_or_default(), 0);
        std::iter::from_fn(move || LimitBalance::read(&mut reader, 0).ok())
    }

    /// The limit with this name.
    pub fn get(&self, name: &str) -> Option<LimitBalance<'a>> {
        self.iter().find(|limit| limit.name == name)
    }

    /// Reads the field with this number and validates it.
    pub(crate) fn read(reader: &mut BodyReader<'a>, number: u32) -> Result<Self, ProtocolError> {
        let start = reader.rest();
        let count: u8 = reader.read_fixed()?;
        if usize::from(count) > MAX_KEY_LIMITS {
            return Err(reader.invalid_field(number));
        }
        for _ in 0..count {
            LimitBalance::read(reader, number)?;
        }
        let size = start.len() - reader.rest().len();
        Ok(Self { field: &start[..size] })
    }

    /// Appends the field.
    pub(crate) fn append(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.field);
    }
}

impl<'a> LimitBalance<'a> {
    fn read(reader: &mut BodyReader<'a>, number: u32) -> Result<Self, ProtocolError> {
        let name = reader.read_text8(MAX_NAME, number)?;
        let BalanceFixed { kind, limit, charged, balance, reset_ms } = reader.read_fixed()?;
        Ok(Self { name, kind: LimitKind::from_value(kind), limit, charged, balance, reset_ms })
    }
}

impl fmt::Debug for Balances<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Balances that the daemon collects for an ANSWER.
///
/// ```
/// use keyward_protocol::{Answer, BalancesBuf, LimitBalance, LimitKind, Verdict};
///
/// let mut balances = BalancesBuf::new();
/// let tokens = LimitBalance {
///     name: "tokens",
///     kind: LimitKind::Bucket,
///     limit: 90_000,
///     charged: 1500,
///     balance: -200,
///     reset_ms: 60_134,
/// };
/// balances.push(&tokens);
/// let answer = Answer { balances: Some(balances.as_balances()), ..Answer::without_key(1, Verdict::Allowed, 7) };
/// let mut frame = Vec::new();
/// answer.encode(&mut frame);
/// # assert_eq!(answer.balances.and_then(|balances| balances.get("tokens")), Some(tokens));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancesBuf {
    /// The encoded field.
    field: Vec<u8>,
}

impl BalancesBuf {
    /// No limits.
    pub fn new() -> Self {
        Self { field: vec![0] }
    }

    /// Adds a limit. A name of more than [`MAX_NAME`] bytes is truncated, and more than
    /// [`MAX_KEY_LIMITS`] limits are not added; a snapshot has neither.
    pub fn push(&mut self, limit: &LimitBalance<'_>) {
        let LimitBalance { name, kind, limit, charged, balance, reset_ms } = *limit;
        let Some(count) = self.field.first_mut().filter(|count| usize::from(**count) < MAX_KEY_LIMITS) else {
            return;
        };
        *count += 1;
        append_text8(name, MAX_NAME, &mut self.field);
        append_fixed(BalanceFixed { kind: kind.value(), limit, charged, balance, reset_ms }, &mut self.field);
    }

    /// The balances as a field.
    pub fn as_balances(&self) -> Balances<'_> {
        Balances { field: &self.field }
    }
}

/// Copies the balances.
impl From<Balances<'_>> for BalancesBuf {
    fn from(balances: Balances<'_>) -> Self {
        Self { field: balances.field.to_vec() }
    }
}

impl Default for BalancesBuf {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kinds_keep_their_value() {
        for value in 0..=u8::MAX {
            let kind = LimitKind::from_value(value);
            assert_eq!(kind.value(), value);
            assert_eq!(kind.name() == "OTHER", value > 2);
        }
    }

    #[test]
    fn name_is_truncated_and_the_17th_limit_is_not_added() {
        let long = "é".repeat(MAX_NAME);
        let limit = LimitBalance {
            name: &long,
            kind: LimitKind::Credits,
            limit: u64::MAX,
            charged: u32::MAX,
            balance: i64::MIN,
            reset_ms: u32::MAX,
        };
        let mut balances = BalancesBuf::new();
        assert_eq!(balances.as_balances(), Balances::EMPTY);
        (0..=MAX_KEY_LIMITS).for_each(|_| balances.push(&limit));
        let shorter = LimitBalance { name: &long[..MAX_NAME], ..limit };
        let all: Vec<_> = balances.as_balances().iter().collect();
        assert_eq!(all, [shorter; MAX_KEY_LIMITS]);
        assert_eq!(balances.field.len(), MAX_BALANCES_BYTES);
    }
}
