//! A source that is older than `max_staleness`. Its keys are loaded, because it may revoke some,
//! but every request is answered STALE_SNAPSHOT.

use std::fmt;
use std::time::Duration;

use keyward_engine::global_policy::GlobalPolicy;

/// The age of a stale source, and the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Stale {
    /// Seconds since the source was written.
    pub age_s: u32,
    /// The most seconds that are allowed.
    pub max_staleness_s: u32,
}

impl Stale {
    /// Some if `age` exceeds the limit of the policy.
    pub fn of(age: u32, global_policy: &GlobalPolicy) -> Option<Self> {
        let max_staleness_s = global_policy.max_staleness.filter(|limit| age > *limit)?;
        Some(Self { age_s: age, max_staleness_s })
    }

    /// The same for a source that was written at the Unix second `written_at`, at the Unix second
    /// `now`.
    pub fn at(now: u32, written_at: u32, global_policy: &GlobalPolicy) -> Option<Self> {
        Self::of(now.saturating_sub(written_at), global_policy)
    }
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |seconds: u32| humantime::format_duration(Duration::from_secs(seconds.into()));
        write!(
            f,
            "the source was written {} ago, and source.max_staleness is {}: every request is answered STALE_SNAPSHOT. Write the \
             export again, make source.max_staleness longer, or set the system's clock if it is wrong",
            time(self.age_s),
            time(self.max_staleness_s)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_stale_only_past_its_limit() {
        let limited = GlobalPolicy { max_staleness: Some(60), ..GlobalPolicy::default() };
        assert_eq!(Stale::at(1_060, 1_000, &limited), None);
        assert_eq!(Stale::at(900, 1_000, &limited), None, "from the future");
        assert_eq!(Stale::at(1_061, 1_000, &GlobalPolicy::default()), None);
        let stale = Stale::at(1_061, 1_000, &limited).expect("stale");
        let text = stale.to_string();
        assert!(
            text.starts_with("the source was written 1m 1s ago, and source.max_staleness is 1m:"),
            "{text}"
        );
    }
}
