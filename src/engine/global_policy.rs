//! The global policy: the daemon's policy for all keys, from its configuration.
//!
//! It is part of each snapshot, so no answer combines the keys of one configuration with the policy
//! of another.

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::key_format::Prefix;
use crate::pepper::{Pepper, Peppers};
use crate::record::Plans;

/// What applies to every key.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalPolicy {
    /// Prefixes of keys minted by keyward. A raw key with one of them and a wrong checksum is
    /// malformed.
    pub minted_prefixes: Vec<Prefix>,
    /// The [age of the source](crate::snapshot::SnapshotMeta::source_age), in seconds, beyond which
    /// its snapshot is stale.
    pub max_staleness: Option<u32>,
    /// The peppers that keys are hashed with. If set, requests must carry raw keys instead of
    /// digests.
    pub peppers: Option<Peppers>,
    /// The time zone of calendar quotas.
    pub time_zone: TimeZone,
    /// The plans, which may name limits that no key has.
    pub plans: Arc<Plans>,
}

impl Default for GlobalPolicy {
    fn default() -> Self {
        Self {
            minted_prefixes: Vec::new(),
            max_staleness: None,
            peppers: None,
            time_zone: TimeZone::UTC,
            plans: Arc::default(),
        }
    }
}

/// Which digests of an earlier policy can still be looked up under a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedHashes {
    /// Digests under the earlier current pepper, or plain SHA-256 if there was no pepper.
    pub current: bool,
    /// Digests under the earlier previous pepper; true if there was none.
    pub previous: bool,
}

impl GlobalPolicy {
    /// The pepper that is being replaced.
    pub fn previous_pepper(&self) -> Option<&Pepper> {
        self.peppers.as_ref()?.previous.as_ref()
    }

    /// The fingerprints of the current pepper and of the previous one, in this order.
    pub fn pepper_fingerprints(&self) -> impl Iterator<Item = [u8; 8]> {
        let peppers = self.peppers.iter();
        peppers
            .flat_map(|peppers| std::iter::once(&peppers.current).chain(&peppers.previous))
            .map(Pepper::fingerprint)
    }

    /// Whether a key may have another digest in a source read under this policy than in one read
    /// under `old`: the peppers differ, or two are in force and rows are rehashed one by one.
    pub fn may_rehash(&self, old: Option<&Self>) -> bool {
        let has_two = |policy: &Self| policy.previous_pepper().is_some();
        has_two(self) || old.is_some_and(|old| old.peppers != self.peppers || has_two(old))
    }

    /// Which digests computed under `old` this policy can still look up.
    pub fn retained_hashes(&self, old: &Self) -> RetainedHashes {
        match (&self.peppers, &old.peppers) {
            (None, None) => RetainedHashes { current: true, previous: true },
            (Some(new), Some(old)) => RetainedHashes {
                current: new.contains(&old.current),
                previous: old.previous.as_ref().is_none_or(|previous| new.contains(previous)),
            },
            _ => RetainedHashes { current: false, previous: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter per pepper: in `"ba"`, `b` is the current pepper and `a` the previous one.
    fn policy(peppers: &str) -> GlobalPolicy {
        let mut peppers = peppers
            .chars()
            .map(|letter| Pepper::new(letter.to_string().repeat(16).as_bytes()).expect("long enough"));
        let peppers = peppers.next().map(|current| Peppers { current, previous: peppers.next() });
        GlobalPolicy { peppers, ..GlobalPolicy::default() }
    }

    #[test]
    fn hashes_are_retained_while_their_pepper_is_in_force() {
        for (old, new, current, previous) in [
            ("", "", true, true),
            ("", "a", false, false),
            ("a", "", false, false),
            ("a", "a", true, true),
            ("a", "ba", true, true),
            ("a", "b", false, true),
            ("ba", "ba", true, true),
            ("ba", "ab", true, true),
            ("ba", "b", true, false),
            ("ba", "a", false, true),
            ("ba", "cb", true, false),
            ("ba", "ca", false, true),
            ("ba", "c", false, false),
        ] {
            let retained = policy(new).retained_hashes(&policy(old));
            assert_eq!(retained, RetainedHashes { current, previous }, "{old:?} -> {new:?}");
        }
    }
}
