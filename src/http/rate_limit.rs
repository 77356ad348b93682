//! The limits of a key, in headers for the client.
//!
//! `RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-11:
//! structured fields with one item for each limit. The older `X-RateLimit-*` headers state the limit
//! that decided; they have no specification, and seconds until the reset are the most common reading.

use std::fmt::Write;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use keyward_client::{Balance, Decision, Limit, LimitKind};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The largest integer of a structured field (RFC 9651, section 3.3.1).
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// Characters that a string of a structured field cannot have, or only escaped, and the percent sign.
const ENCODED: AsciiSet = CONTROLS.add(b'"').add(b'\\').add(b'%');

/// A time that stands for that time or longer.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

/// Which headers state the limits of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitHeaders {
    /// Whether `RateLimit` and `RateLimit-Policy` are sent.
    pub standard: bool,
    /// Whether they state all limits of the key, instead of the one that decided.
    pub all: bool,
    /// Whether `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` are sent.
    pub legacy: bool,
}

impl Default for RateLimitHeaders {
    /// `RateLimit` and `RateLimit-Policy` of the limit that decided.
    fn default() -> Self {
        Self { standard: true, all: false, legacy: false }
    }
}

/// One limit, as it is stated.
pub(crate) struct LimitState<'d> {
    pub(crate) name: &'d str,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// `None`: time does not change the balance, or takes longer than can be stated.
    pub(crate) reset: Option<Duration>,
}

impl RateLimitHeaders {
    /// Whether the balances of a key have to be asked for.
    pub fn needs_balances(&self) -> bool {
        self.standard && self.all
    }

    /// The limits that are stated: all of the key, or the one that decided.
    pub(crate) fn states<'d>(&self, decision: &'d Decision) -> Vec<LimitState<'d>> {
        let all = decision.balances().map(LimitState::from);
        let mut states: Vec<_> = if self.all { all.collect() } else { Vec::new() };
        // An answer without balances is that of a key without limits, or of an unknown key.
        if states.is_empty() {
            states.extend(decision.limit().map(LimitState::from));
        }
        states
    }

    /// Adds the headers of a decision. Without a limit there are none.
    pub fn add(&self, decision: &Decision, headers: &mut HeaderMap) {
        if self.standard {
            let states = self.states(decision);
            insert(headers, RATE_LIMIT_POLICY, &list(&states, LimitState::write_policy));
            insert(headers, RATE_LIMIT, &list(&states, LimitState::write_state));
        }
        if let Some(state) = decision.limit().map(LimitState::from).filter(|_| self.legacy) {
            insert(headers, X_RATE_LIMIT, &state.limit.to_string());
            insert(headers, X_RATE_LIMIT_REMAINING, &state.remaining.to_string());
            if let Some(reset) = state.reset {
                insert(headers, X_RATE_LIMIT_RESET, &seconds(reset).to_string());
            }
        }
    }
}

/// Whole seconds, rounded up: a client that waits so long finds what it waits for.
pub(crate) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

impl<'d> From<Limit<'d>> for LimitState<'d> {
    fn from(limit: Limit<'d>) -> Self {
        Self {
            name: limit.name,
            limit: limit.limit.into(),
            remaining: limit.remaining.into(),
            reset: Some(limit.reset).filter(|reset| *reset < LONGEST),
        }
    }
}

impl<'d> From<Balance<'d>> for LimitState<'d> {
    fn from(balance: Balance<'d>) -> Self {
        let is_refilled = balance.kind != LimitKind::Credits && balance.reset < LONGEST;
        Self {
            name: balance.name,
            limit: balance.limit,
            remaining: u64::try_from(balance.balance).unwrap_or(0),
            reset: is_refilled.then_some(balance.reset),
        }
    }
}

impl LimitState<'_> {
    fn write_policy(&self, to: &mut String) {
        // Writing to a string does not fail.
        let _ = write!(to, "{};q={}", quoted(self.name), self.limit.min(MAX_INTEGER));
    }

    fn write_state(&self, to: &mut String) {
        let _ = write!(to, "{};r={}", quoted(self.name), self.remaining.min(MAX_INTEGER));
        if let Some(reset) = self.reset {
            let _ = write!(to, ";t={}", seconds(reset));
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", utf8_percent_encode(name, &ENCODED))
}

fn list<'d>(states: &[LimitState<'d>], write: fn(&LimitState<'d>, &mut String)) -> String {
    let mut text = String::new();
    for state in states {
        if !text.is_empty() {
            text.push_str(", ");
        }
        write(state, &mut text);
    }
    text
}

/// Sets a header, unless its value is empty.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if !value.is_empty()
        && let Ok(value) = HeaderValue::from_str(value)
    {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use keyward_protocol::{Answer, BalancesBuf, LimitBalance, LimitState, Verdict};

    use super::*;

    const STATE: LimitState<'_> =
        LimitState { name: "per minute", limit: 100, remaining: 50, retry_after_ms: 0, reset_ms: 29_001 };

    fn added(which: RateLimitHeaders, answer: &Answer<'_>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        which.add(&Decision::from(answer), &mut headers);
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("ASCII"))
        };
        let mut lines: Vec<String> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn answer() -> Answer<'static> {
        Answer { limit: STATE, ..Answer::without_key(1, Verdict::Allowed, 1) }
    }

    #[test]
    fn deciding_limit_is_stated() {
        let standard = RateLimitHeaders::default();
        let expected = [r#"ratelimit-policy: "per minute";q=100"#, r#"ratelimit: "per minute";r=50;t=30"#];
        assert_eq!(added(standard, &answer()), expected);
        let legacy = RateLimitHeaders { standard: false, all: false, legacy: true };
        let expected = ["x-ratelimit-limit: 100", "x-ratelimit-remaining: 50", "x-ratelimit-reset: 30"];
        assert_eq!(added(legacy, &answer()), expected);
        let both = RateLimitHeaders { legacy: true, ..standard };
        assert_eq!(added(both, &answer()).len(), 5);
    }

    #[test]
    fn key_without_limits_has_no_headers() {
        let every = RateLimitHeaders { standard: true, all: true, legacy: true };
        assert_eq!(added(every, &Answer::without_key(1, Verdict::Allowed, 1)), [""; 0]);
    }

    #[test]
    fn name_is_a_string_of_a_structured_field() {
        let name = "\"a\\b\u{e4}%\n";
        let answer = Answer { limit: LimitState { name, ..STATE }, ..answer() };
        let lines = added(RateLimitHeaders::default(), &answer);
        assert_eq!(lines[1], r#"ratelimit: "%22a%5Cb%C3%A4%25%0A";r=50;t=30"#);
    }

    #[test]
    fn all_limits_are_stated_if_they_were_asked_for() {
        let every = RateLimitHeaders { all: true, ..RateLimitHeaders::default() };
        let mut balances = BalancesBuf::new();
        let balance = |name, kind, limit, balance, reset_ms| LimitBalance {
            name,
            kind,
            limit,
            charged: 1,
            balance,
            reset_ms,
        };
        for balance in [
            balance("requests", LimitKind::Bucket, 10, -3, 1_500),
            balance("tokens", LimitKind::Window, 1_000, 999, 86_400_000),
            balance("credits", LimitKind::Credits, 1 << 53, 1 << 53, u32::MAX),
        ] {
            balances.push(&balance);
        }
        let answer = Answer { balances: Some(balances.as_balances()), ..answer() };
        let expected = [
            r#"ratelimit-policy: "requests";q=10, "tokens";q=1000, "credits";q=999999999999999"#,
            r#"ratelimit: "requests";r=0;t=2, "tokens";r=999;t=86400, "credits";r=999999999999999"#,
        ];
        assert_eq!(added(every, &answer), expected);
    }
}
