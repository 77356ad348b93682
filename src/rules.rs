//! The daemon's own rules, which no key can change. They come from the configuration and are part of a snapshot, so that an
//! answer never mixes the rules of one with the keys of another.

use crate::key_format::Prefix;
use crate::pepper::Peppers;

/// What holds for every key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Prefixes of keys that keyward minted: raw keys that begin so are refused if their checksum is wrong.
    pub minted: Vec<Prefix>,
    /// Age of the source, in seconds, past which its snapshot may not be served.
    pub max_staleness: Option<u32>,
    /// What keys are hashed with, besides SHA-256; digests are not accepted then.
    pub peppers: Option<Peppers>,
}

impl Rules {
    /// Whether keys are still found that were hashed by the rules of `old`: with the same pepper, or with one that is the previous
    /// one now.
    pub fn keep_hashes_of(&self, old: &Self) -> bool {
        match (&self.peppers, &old.peppers) {
            (None, None) => true,
            (Some(new), Some(old)) => {
                new.current == old.current || new.previous.as_ref() == Some(&old.current)
            }
            _ => false,
        }
    }
}
