//! The pepper guard: refuses a change of peppers after which keys would no longer be found.
//!
//! With one pepper in force, all rows are hashed with it. With two, the pepper of a row is known
//! only once its key has been found ([`HashedWith`]). A pepper that any other row may need is not
//! removed without `--force`. Rows that allow nothing (revoked, or past their expiry) need no
//! pepper, and a key that was not served before cannot be lost.

use std::path::Path;

use crate::reload::last_good::Recovered;
use crate::reload::pepper_in_use::{KeySample, PepperChange, PepperInUse};
use crate::reload::{ReloadError, ReloadLoop, Settings};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::snapshot::{HashedWith, KeyTable};

impl ReloadLoop {
    /// Checks that all keys of `new`, read from `path`, are still found under the peppers of
    /// `settings`.
    pub(super) fn guard_peppers(
        &self,
        settings: &Settings,
        path: &Path,
        new: &KeyTable,
    ) -> Result<(), ReloadError> {
        let Some(old) = self.current.as_deref() else {
            return Ok(());
        };
        let retained = settings.global_policy.retained_hashes(old.global_policy());
        if retained.current && retained.previous {
            return Ok(());
        }
        let has_two = old.global_policy().previous_pepper().is_some();
        let now = self.reloader.clock.now().unix;
        let (mut certain, mut possible) = (KeySample::default(), KeySample::default());
        for key in old.keys().filter(|key| new.has_live_key(key.digest(), now)) {
            let hashed_with = if has_two { key.hashed_with() } else { Some(HashedWith::CurrentPepper) };
            match hashed_with {
                Some(HashedWith::CurrentPepper) if retained.current => {}
                Some(HashedWith::PreviousPepper) if retained.previous => {}
                None if retained.current || retained.previous => possible.add(key.key_id()),
                Some(_) | None => certain.add(key.key_id()),
            }
        }
        let change = PepperChange::new(old.global_policy().peppers.is_some(), &settings.global_policy);
        refuse_if_any(path, PepperInUse { change, current: old.len(), certain, possible })
    }
}

impl Recovered {
    /// The same at the Unix second `now` of a start, where the keys before `new` are the last good
    /// ones: whether requests would still find a key that `new` lists with the hash that it had
    /// then.
    ///
    /// # Errors
    /// When all of the last good keys were hashed with a pepper that is gone, and `new` has some of
    /// their hashes.
    pub fn guard_peppers(
        &self,
        global_policy: &GlobalPolicy,
        path: &Path,
        new: &KeyTable,
        now: u32,
    ) -> Result<(), ReloadError> {
        if self.retained_hashes(global_policy).current {
            return Ok(());
        }
        let old = &self.keys;
        let mut certain = KeySample::default();
        for (_, key_id) in old.digests().filter(|(digest, _)| new.has_live_key(digest, now)) {
            certain.add(key_id);
        }
        let change = PepperChange::new(self.had_pepper(), global_policy);
        refuse_if_any(
            path,
            PepperInUse { change, current: old.len(), certain, possible: KeySample::default() },
        )
    }
}

fn refuse_if_any(path: &Path, keys: PepperInUse) -> Result<(), ReloadError> {
    if keys.certain.count + keys.possible.count == 0 {
        return Ok(());
    }
    Err(ReloadError::PepperInUse { path: path.to_path_buf(), keys: Box::new(keys) })
}
