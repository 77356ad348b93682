//! Decisions: an owned copy of ANSWER (SPEC.md section 6).

use std::fmt;
use std::time::Duration;

use keyward_protocol::{Answer, BalancesBuf, LimitBalance, LimitKind, Verdict};

/// The daemon's answer. A denial is also an answer: check [`is_allowed`](Self::is_allowed).
#[derive(Clone, PartialEq, Eq)]
pub struct Decision {
    verdict: Verdict,
    generation: u64,
    limit: u32,
    remaining: u32,
    retry_after_ms: u32,
    reset_ms: u32,
    /// All texts in one allocation, because most callers read two or three fields and drop the
    /// answer.
    texts: Box<str>,
    /// The end of each text in `texts`; the metadata follows the last one.
    ends: [u16; TEXTS],
    has_metadata: bool,
    balances: Option<BalancesBuf>,
}

/// Number of the texts before the metadata, whose indexes follow.
const TEXTS: usize = 6;
const KEY_ID: usize = 0;
const OWNER: usize = 1;
const ENVIRONMENT: usize = 2;
const PLAN: usize = 3;
const LIMIT_NAME: usize = 4;
const SHADOW_LIMIT: usize = 5;

/// The limit that decided, and its balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<'a> {
    /// Name of the limit, as configured.
    pub name: &'a str,
    /// The most that the limit ever holds, in units of cost: the burst of a bucket, the count of a
    /// window, or the credits granted in total. `u32::MAX` stands for that or more.
    pub limit: u32,
    /// What could be spent right now, after this request, in units of cost; zero also if the limit is
    /// overdrawn. `u32::MAX` stands for that or more.
    pub remaining: u32,
    /// Time until the same cost would be admitted, in whole milliseconds, rounded up; zero unless
    /// the verdict is RATE_LIMITED. 49.7 days stands for that time or longer. Round up when you
    /// convert it to seconds, for example for `Retry-After`.
    pub retry_after: Duration,
    /// Time until a bucket is full again or a window ends, rounded and capped in the same way; 49.7
    /// days for credits.
    pub reset: Duration,
}

/// The balance of one limit of a key, after the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance<'a> {
    /// Name of the limit, as configured.
    pub name: &'a str,
    /// How the limit gets its balance back.
    pub kind: LimitKind,
    /// The burst of a bucket, the count of a window, or the credits granted in total.
    pub limit: u64,
    /// What this request charged; for a refund, what it gave back.
    pub charged: u32,
    /// What can be spent now; below zero if the limit is overdrawn.
    pub balance: i64,
    /// Time until a bucket is full or a window ends, as in [`Limit::reset`].
    pub reset: Duration,
}

impl Decision {
    pub(crate) fn new(answer: &Answer<'_>) -> Self {
        let shadow_limit = answer.shadow_limit.unwrap_or_default();
        let fields =
            [answer.key_id, answer.owner, answer.environment, answer.plan, answer.limit.name, shadow_limit];
        let metadata = answer.metadata.unwrap_or_default();
        let size = fields.iter().map(|text| text.len()).sum::<usize>() + metadata.len();
        let mut texts = String::with_capacity(size);
        let mut ends = [0; TEXTS];
        for (text, end) in fields.iter().zip(&mut ends) {
            texts.push_str(text);
            // Fits: the decoder has checked that these are at most 64 + 128 + 4 x 64 bytes.
            *end = texts.len() as u16;
        }
        texts.push_str(metadata);
        Self {
            verdict: answer.verdict,
            generation: answer.generation,
            limit: answer.limit.limit,
            remaining: answer.limit.remaining,
            retry_after_ms: answer.limit.retry_after_ms,
            reset_ms: answer.limit.reset_ms,
            texts: texts.into_boxed_str(),
            ends,
            has_metadata: answer.metadata.is_some(),
            balances: answer.balances.map(BalancesBuf::from),
        }
    }

    /// Whether the request may go ahead: only with ALLOWED. A verdict that this version does not
    /// know is a denial.
    pub fn is_allowed(&self) -> bool {
        self.verdict.is_allowed()
    }

    /// The verdict, with the reason of a denial.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The number of the state of all keys that the whole answer was taken from; 0 with NOT_READY. Two
    /// decisions of one run of the daemon with the same number differ only by time and balances.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The limit that decided; `None` if none did (a key without limits, or a denial for another
    /// reason).
    pub fn limit(&self) -> Option<Limit<'_>> {
        let name = self.text(LIMIT_NAME)?;
        Some(Limit {
            name,
            limit: self.limit,
            remaining: self.remaining,
            retry_after: Duration::from_millis(u64::from(self.retry_after_ms)),
            reset: Duration::from_millis(u64::from(self.reset_ms)),
        })
    }

    /// The name of the first limit in shadow mode that would have refused this request, had it been
    /// enforced. It does not influence the verdict.
    pub fn shadow_limit(&self) -> Option<&str> {
        self.text(SHADOW_LIMIT)
    }

    /// The key's id; `None` if the key is unknown.
    pub fn key_id(&self) -> Option<&str> {
        self.text(KEY_ID)
    }

    /// The key's owner, if it has one.
    pub fn owner(&self) -> Option<&str> {
        self.text(OWNER)
    }

    /// The key's environment, if it has one.
    pub fn environment(&self) -> Option<&str> {
        self.text(ENVIRONMENT)
    }

    /// The key's plan, if it has one.
    pub fn plan(&self) -> Option<&str> {
        self.text(PLAN)
    }

    /// The key's metadata as the text of a JSON object; `None` if it has none or the request did
    /// not ask for it.
    pub fn metadata(&self) -> Option<&str> {
        let start = usize::from(self.ends[SHADOW_LIMIT]);
        if self.has_metadata { self.texts.get(start..) } else { None }
    }

    /// The balance of every enforced limit of the key, in the key's order: empty if the request did
    /// not ask for them, or the key is unknown.
    pub fn balances(&self) -> impl Iterator<Item = Balance<'_>> {
        self.balances.iter().flat_map(|balances| balances.as_balances().iter()).map(Balance::from)
    }

    /// The one of the [balances](Self::balances) with this name.
    pub fn balance(&self, limit: &str) -> Option<Balance<'_>> {
        self.balances().find(|balance| balance.name == limit)
    }

    /// The text with this index. On the wire, an absent text is empty.
    fn text(&self, index: usize) -> Option<&str> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let text = self.texts.get(usize::from(start)..usize::from(self.ends[index]))?;
        if text.is_empty() { None } else { Some(text) }
    }
}

impl From<&Answer<'_>> for Decision {
    fn from(answer: &Answer<'_>) -> Self {
        Self::new(answer)
    }
}

impl<'a> From<LimitBalance<'a>> for Balance<'a> {
    fn from(limit: LimitBalance<'a>) -> Self {
        let LimitBalance { name, kind, limit, charged, balance, reset_ms } = limit;
        Self { name, kind, limit, charged, balance, reset: Duration::from_millis(u64::from(reset_ms)) }
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decision")
            .field("verdict", &self.verdict)
            .field("generation", &self.generation)
            .field("limit", &self.limit())
            .field("shadow_limit", &self.shadow_limit())
            .field("key_id", &self.key_id())
            .field("owner", &self.owner())
            .field("environment", &self.environment())
            .field("plan", &self.plan())
            .field("metadata", &self.metadata())
            .field("balances", &self.balances)
            .finish()
    }
}
