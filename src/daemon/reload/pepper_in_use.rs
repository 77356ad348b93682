//! The report of keys that still need a pepper that has been removed from the configuration.

use std::fmt;

use crate::reload::NAMED_KEYS;
use keyward_engine::record::Quoted;

/// Keys that the source lists with the same hash as the current snapshot, and that would no longer
/// be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PepperInUse {
    /// The number of current keys.
    pub current: usize,
    /// Keys that are hashed with a pepper that is gone.
    pub certain: KeySample,
    /// Keys that may be: they have not been verified since there have been two peppers.
    pub possible: KeySample,
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
        let Self { current, certain, possible } = self;
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
            ". Name the old pepper as the previous one{until}, or export hashes of the new one; if it is meant, reload \
             with --force (before a start: keyward state accept source)"
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
        let text = PepperInUse { current: 9, certain: keys.clone(), possible: keys }.to_string();
        assert!(text.starts_with("4 of 9 keys (\"a\", ") && text.contains("; 4 more (\"a\", "), "{text}");
        assert!(text.ends_with("until they have been verified, or export hashes of the new one; if it is meant, reload with --force (before a start: keyward state accept source)"));
    }
}
