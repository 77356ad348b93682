//! The report of keys that still need a pepper that has been removed from the configuration.

use std::fmt;

use crate::reload::NAMED_KEYS;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::record::Quoted;

/// Keys that the source lists with the same hash as the current snapshot, and that would no longer
/// be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PepperInUse {
    /// How the configuration has changed.
    pub change: PepperChange,
    /// The number of current keys.
    pub current: usize,
    /// Keys that are hashed with a pepper that is gone.
    pub certain: KeySample,
    /// Keys that may be: they have not been verified since there have been two peppers.
    pub possible: KeySample,
}

/// How the peppers of the configuration have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PepperChange {
    /// There was no pepper, and there is one.
    Introduced,
    /// There was a pepper, and there is none.
    Abolished,
    /// Other peppers have taken the place of one.
    #[default]
    Replaced,
}

impl PepperChange {
    /// The change to the peppers of `new`. `had_pepper`: there was one before.
    pub(super) fn new(had_pepper: bool, new: &GlobalPolicy) -> Self {
        match (had_pepper, new.peppers.is_some()) {
            (false, true) => Self::Introduced,
            (true, false) => Self::Abolished,
            _ => Self::Replaced,
        }
    }
}

/// The number of some keys, and the ids of the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySample {
    /// How many there are.
    pub count: usize,
    first: Vec<Box<str>>,
}

impl KeySample {
    pub(super) fn add(&mut self, key_id: &str) {
        self.count += 1;
        if self.first.len() < NAMED_KEYS {
            self.first.push(key_id.into());
        }
    }
}

/// As in `("a", "b", "c" and others)`.
impl fmt::Display for KeySample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "(";
        for key_id in &self.first {
            write!(f, "{separator}{}", Quoted(key_id))?;
            separator = ", ";
        }
        f.write_str(if self.count > self.first.len() { " and others)" } else { ")" })
    }
}

/// The problem and the ways to solve it.
impl fmt::Display for PepperInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GONE: &str =
            "hashed with a pepper that is neither keys.pepper_file nor keys.previous_pepper_file now";
        const IF_MEANT: &str =
            "; if it is meant, reload with --force (before a start: keyward state accept source)";
        let Self { change, current, certain, possible } = self;
        let all =
            format_args!("{} of {current} keys {certain} are served already, and were hashed", certain.count);
        match change {
            PepperChange::Introduced => {
                return write!(
                    f,
                    "{all} without a pepper, and keys.pepper_file is set now: they would no longer be found. Their hashes \
                     cannot be converted. Export hashes of the keys themselves under the pepper (keyward key hash \
                     --pepper-file), or new keys, when the setting comes into force{IF_MEANT}"
                );
            }
            PepperChange::Abolished => {
                return write!(
                    f,
                    "{all} with a pepper, and keys.pepper_file is not set now: they would no longer be found. Set it again, \
                     or export hashes without a pepper (keyward key hash){IF_MEANT}"
                );
            }
            PepperChange::Replaced => {}
        }
        match (certain.count, possible.count) {
            (0, maybe) => write!(
                f,
                "{maybe} of {current} keys {possible} may have been {GONE}: which of the two peppers they need is known when \
                 they are verified, and they have not been since the daemon has had both"
            ),
            (count, 0) => write!(
                f,
                "{count} of {current} keys {certain} are served already, and were {GONE}: they would no longer be found"
            ),
            (count, maybe) => write!(
                f,
                "{count} of {current} keys {certain} are served already, and were {GONE}: they would no longer be found; \
                 {maybe} more {possible} may have been, and have not been verified since the daemon has had both peppers"
            ),
        }?;
        let until = if possible.count > 0 { " until they have been verified" } else { "" };
        write!(
            f,
            ". Name the old pepper as the previous one{until}, or export hashes of the new one{IF_MEANT}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_first_keys_and_abbreviates_possible_raw_keys() {
        let mut keys = KeySample::default();
        keys.add("a");
        assert_eq!(keys.to_string(), "(\"a\")");
        ["b", "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsE", "d"].into_iter().for_each(|key_id| keys.add(key_id));
        assert_eq!(keys.to_string(), "(\"a\", \"b\", \"acme_liv…\" and others)");
        let text =
            PepperInUse { change: PepperChange::Replaced, current: 9, certain: keys.clone(), possible: keys }
                .to_string();
        assert!(text.starts_with("4 of 9 keys (\"a\", ") && text.contains("; 4 more (\"a\", "), "{text}");
        assert!(text.ends_with("until they have been verified, or export hashes of the new one; if it is meant, reload with --force (before a start: keyward state accept source)"));
    }

    /// The old pepper can be named as the previous one only if there was one, and there is one now.
    #[test]
    fn message_gives_advice_that_can_be_followed() {
        let mut certain = KeySample::default();
        certain.add("a");
        for (change, advice, is_previous_possible) in [
            (PepperChange::Introduced, "keyward key hash --pepper-file", false),
            (PepperChange::Abolished, "Set it again, or export hashes without a pepper", false),
            (PepperChange::Replaced, "Name the old pepper as the previous one", true),
        ] {
            let keys = PepperInUse { change, current: 3, certain: certain.clone(), ..PepperInUse::default() };
            let text = keys.to_string();
            assert!(text.starts_with("1 of 3 keys (\"a\") are served already"), "{text}");
            assert!(text.contains(advice) && text.ends_with("keyward state accept source)"), "{text}");
            assert_eq!(text.contains("previous"), is_previous_possible, "{text}");
        }
    }
}
