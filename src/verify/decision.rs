//! What was decided about a request, and the answer that it makes.

use keyward_protocol::{Answer, LimitState, PreparedAnswer, Verdict};

use crate::limiter::{Balance, Charged, Named};
use crate::record::Limit;
use crate::snapshot::{EntryId, Key};

/// What is counted of a request, beside its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestUsage {
    /// The row of the snapshot that it was about; `None` where the key is not known.
    pub entry: Option<EntryId>,
    /// What was charged, or given back.
    pub cost: u32,
}

/// A decision: the numbers; texts are fetched where they are written ([`encode`](Self::encode), [`answer`](Self::answer)).
#[derive(Clone, Copy)]
pub struct Decision<'s> {
    pub(super) request_id: u32,
    pub(super) verdict: Verdict,
    pub(super) generation: u64,
    pub(super) key: Option<Key<'s>>,
    /// The limits to be named.
    pub(super) charged: Charged,
    /// What was charged, or given back.
    pub(super) cost: u32,
    pub(super) want_metadata: bool,
}

impl<'s> Decision<'s> {
    /// One that knows nothing of a key.
    #[inline]
    pub(super) fn without_key(request_id: u32, verdict: Verdict, generation: u64) -> Self {
        let charged = Charged::default();
        Self { request_id, verdict, generation, key: None, charged, cost: 0, want_metadata: false }
    }

    /// Whether the request may go ahead, and why not.
    #[inline]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What is counted of it.
    #[inline]
    pub fn usage(&self) -> RequestUsage {
        RequestUsage { entry: self.key.map(Key::id), cost: self.cost }
    }

    /// Whether a limit in shadow mode would have refused.
    #[inline]
    pub fn is_shadow_limited(&self) -> bool {
        self.charged.shadow.is_some()
    }

    /// Appends the answer's frame.
    // Whatever the compiler thinks: with its callers it is 6 % fewer instructions a request.
    #[inline(always)]
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self.key {
            Some(key) if !self.want_metadata && self.charged.shadow.is_none() => {
                self.prepared(key).encode(out);
            }
            _ => self.answer().encode(out),
        }
    }

    /// The answer of a key, from what its policy has encoded already.
    #[inline(always)]
    fn prepared(&self, key: Key<'s>) -> PreparedAnswer<'s> {
        let policy = key.policy();
        let (key_id, owner) = key.identity();
        let mut answer = PreparedAnswer {
            request_id: self.request_id,
            verdict: self.verdict,
            generation: self.generation,
            limit: 0,
            remaining: 0,
            retry_after_ms: 0,
            reset_ms: 0,
            key_id,
            owner,
            texts: policy.texts(None),
        };
        if let Some(Named { position, balance }) = self.charged.limit {
            answer.limit = policy.limits().get(position).map_or(0, |limit| limit.rate.burst());
            answer.remaining = balance.remaining;
            answer.retry_after_ms = Balance::milliseconds(balance.retry_after);
            answer.reset_ms = Balance::milliseconds(balance.reset);
            answer.texts = policy.texts(Some(position));
        }
        answer
    }

    /// The answer.
    pub fn answer(&self) -> Answer<'s> {
        let blank = Answer::without_key(self.request_id, self.verdict, self.generation);
        let Some(key) = self.key else {
            return blank;
        };
        let policy = key.policy();
        let limit = |position: usize| policy.limits().get(position);
        Answer {
            limit: self
                .charged
                .limit
                .and_then(|named| Some(state(limit(named.position)?, named)))
                .unwrap_or_default(),
            shadow_limit: self.charged.shadow.and_then(limit).map(|limit| &*limit.name),
            key_id: key.key_id(),
            owner: key.owner(),
            environment: policy.environment(),
            plan: policy.plan(),
            metadata: if self.want_metadata { key.metadata() } else { None },
            ..blank
        }
    }
}

#[inline]
fn state<'s>(limit: &'s Limit, Named { balance, .. }: Named) -> LimitState<'s> {
    LimitState {
        name: &limit.name,
        limit: limit.rate.burst(),
        remaining: balance.remaining,
        retry_after_ms: Balance::milliseconds(balance.retry_after),
        reset_ms: Balance::milliseconds(balance.reset),
    }
}
