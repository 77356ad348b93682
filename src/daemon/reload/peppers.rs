//! The guard of keys that a change of peppers would strand: nobody would find them any more, and nothing else would be wrong.
//!
//! With one pepper in force, all rows are hashed with it. With two, only a key that was found tells which its row is hashed with
//! ([`HashedWith`]): of the others nothing is known, and a pepper that any of them may need is not taken away unless somebody
//! insists. Rows that nobody is allowed anything by (revoked, past their end) need none, and what was not served before cannot
//! be stranded.

use std::fmt;
use std::path::Path;

use crate::reload::{ReloadError, ReloadLoop, Settings};
use keyward_engine::record::Quoted;
use keyward_engine::snapshot::{HashedWith, KeyTable};

/// Key ids that are named: enough to find out what they have in common.
const NAMED: usize = 3;

/// Some of the keys that are served: how many, and what the first are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySample {
    /// How many there are.
    pub count: usize,
    first: Vec<Box<str>>,
}

impl KeySample {
    fn add(&mut self, key_id: &str) {
        self.count += 1;
        if self.first.len() < NAMED {
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

impl ReloadLoop {
    /// Whether `new`, read from `path`, lists keys that would not be found any more by the rules of `settings`.
    pub(super) fn guard_hashes(
        &self,
        settings: &Settings,
        path: &Path,
        new: &KeyTable,
    ) -> Result<(), ReloadError> {
        let Some(old) = self.current.as_deref() else {
            return Ok(());
        };
        let kept = settings.global_policy.retained_hashes(old.global_policy());
        if kept.current && kept.previous {
            return Ok(());
        }
        let has_two = old.global_policy().previous_pepper().is_some();
        let now = self.reloader.clock.now().unix;
        let (mut stranded, mut unknown) = (KeySample::default(), KeySample::default());
        for key in old.keys().filter(|key| new.has_live_key(key.digest(), now)) {
            let hashed_with = if has_two { key.hashed_with() } else { Some(HashedWith::CurrentPepper) };
            match hashed_with {
                Some(HashedWith::CurrentPepper) if kept.current => {}
                Some(HashedWith::PreviousPepper) if kept.previous => {}
                None if kept.current || kept.previous => unknown.add(key.key_id()),
                Some(_) | None => stranded.add(key.key_id()),
            }
        }
        match stranded.count + unknown.count {
            0 => Ok(()),
            _ => Err(ReloadError::Stranded { path: path.to_path_buf(), old: old.len(), stranded, unknown }),
        }
    }
}

impl ReloadLoop {
    /// The same where the keys that `new` follows upon are not served, and all of them were hashed with a pepper that is gone.
    pub(super) fn guard_stranded(
        &self,
        path: &Path,
        old: &KeyTable,
        new: &KeyTable,
    ) -> Result<(), ReloadError> {
        let now = self.reloader.clock.now().unix;
        let mut stranded = KeySample::default();
        for (_, key_id) in old.digests().filter(|(digest, _)| new.has_live_key(digest, now)) {
            stranded.add(key_id);
        }
        match stranded.count {
            0 => Ok(()),
            _ => {
                let unknown = KeySample::default();
                Err(ReloadError::Stranded { path: path.to_path_buf(), old: old.len(), stranded, unknown })
            }
        }
    }
}

/// What is wrong, and what can be done, in the words of [`ReloadError::Stranded`].
pub(super) fn stranding(old: usize, stranded: &KeySample, unknown: &KeySample) -> String {
    const GONE: &str =
        "hashed with a pepper that is neither keys.pepper_file nor keys.previous_pepper_file now";
    let (count, maybe) = (stranded.count, unknown.count);
    let problem = match (count, maybe) {
        (0, _) => format!(
            "{maybe} of {old} keys {unknown} may have been {GONE}: which of the two peppers they need is known when they are \
             verified, and they have not been since the daemon has had both"
        ),
        (_, 0) => format!(
            "{count} of {old} keys {stranded} are served already, and were {GONE}: nobody would find them any more"
        ),
        _ => format!(
            "{count} of {old} keys {stranded} are served already, and were {GONE}: nobody would find them any more; {maybe} more \
             {unknown} may have been, and have not been verified since the daemon has had both peppers"
        ),
    };
    let until = if maybe > 0 { " until they have been verified" } else { "" };
    format!(
        "{problem}. Name the old pepper as the previous one{until}, or export hashes of the new one; if it is meant, reload with \
         --force"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_named_and_none_that_may_be_a_key() {
        let mut counted = KeySample::default();
        counted.add("a");
        assert_eq!(counted.to_string(), "(\"a\")");
        ["b", "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsE", "d"].into_iter().for_each(|key_id| counted.add(key_id));
        assert_eq!(counted.to_string(), "(\"a\", \"b\", \"acme_liv…\" and others)");
        let text = stranding(9, &counted, &counted);
        assert!(text.starts_with("4 of 9 keys (\"a\", ") && text.contains("; 4 more (\"a\", "), "{text}");
        assert!(text.ends_with("until they have been verified, or export hashes of the new one; if it is meant, reload with --force"));
    }
}
