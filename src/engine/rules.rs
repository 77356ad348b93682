//! The daemon's own rules, which no key can change. They come from the configuration and are part of a snapshot, so that an
//! answer never mixes the rules of one with the keys of another.

use crate::key_format::Prefix;
use crate::pepper::{Pepper, Peppers};

/// What holds for every key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GlobalPolicy {
    /// Prefixes of keys that keyward minted: raw keys that begin so are refused if their checksum is wrong.
    pub minted_prefixes: Vec<Prefix>,
    /// [Age of the source](crate::snapshot::SnapshotMeta::source_age), in seconds, past which its snapshot may not be served.
    pub max_staleness: Option<u32>,
    /// What keys are hashed with, besides SHA-256; digests are not accepted then.
    pub peppers: Option<Peppers>,
}

/// Which hashes of the rules before are still found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedHashes {
    /// Those of the pepper that was the current one, or of none where there was none.
    pub current: bool,
    /// Those of the one that was the previous one, if there was one.
    pub previous: bool,
}

impl GlobalPolicy {
    /// The pepper that is being replaced.
    pub fn previous_pepper(&self) -> Option<&Pepper> {
        self.peppers.as_ref()?.previous.as_ref()
    }

    /// The fingerprints of the peppers in force: of the current one, then of the one before it.
    pub fn pepper_fingerprints(&self) -> impl Iterator<Item = [u8; 8]> {
        let peppers = self.peppers.iter();
        peppers
            .flat_map(|peppers| std::iter::once(&peppers.current).chain(&peppers.previous))
            .map(Pepper::fingerprint)
    }

    /// Whether a source that is read by these rules may hash keys otherwise than one that was read by `old`:
    /// the peppers differ, or there are two, so that rows are hashed anew one by one.
    pub fn may_rehash(&self, old: Option<&Self>) -> bool {
        let has_two = |global_policy: &Self| global_policy.previous_pepper().is_some();
        has_two(self) || old.is_some_and(|old| old.peppers != self.peppers || has_two(old))
    }

    /// Which keys are still found that were hashed by the rules of `old`.
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

    /// `"ba"`: the pepper b is in force, and a is the one before it.
    fn global_policy(peppers: &str) -> GlobalPolicy {
        let mut peppers = peppers
            .chars()
            .map(|letter| Pepper::new(letter.to_string().repeat(16).as_bytes()).expect("long enough"));
        let peppers = peppers.next().map(|current| Peppers { current, previous: peppers.next() });
        GlobalPolicy { peppers, ..GlobalPolicy::default() }
    }

    #[test]
    fn hashes_are_kept_as_long_as_their_pepper_is_one_of_the_two() {
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
            let kept = global_policy(new).retained_hashes(&global_policy(old));
            assert_eq!(kept, RetainedHashes { current, previous }, "{old:?} -> {new:?}");
        }
    }
}
