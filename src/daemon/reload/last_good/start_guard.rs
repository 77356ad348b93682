//! The guard at startup, where no snapshot is in force yet. The source is compared with the last
//! good keys, unless it was accepted before or an operator has accepted it for this start. It is
//! refused if they are damaged, cannot be read or are gone, and if an earlier source than the one
//! that was accepted last would give access back.

use std::sync::Arc;

use tracing::{error, warn};

use super::LastGoodStore;
use crate::audit::Peer;
use crate::reload::guard::Changes;
use crate::reload::load::LoadedSource;
use crate::reload::trigger::Cause;
use crate::reload::{ReloadError, ReloadLoop, Settings, compare};
use keyward_engine::snapshot::{Diff, KeyTable};
use keyward_state::AcceptanceRecord;

impl ReloadLoop {
    /// The cause of the first load. An operator may have decided that this start accepts the source
    /// without a comparison.
    pub(in crate::reload) fn start_cause(&self) -> Cause {
        let mut cause = Cause::start();
        let accepted = self.reloader.last_good.as_ref().map(LastGoodStore::take_acceptance);
        match accepted {
            Some(Ok(Some(AcceptanceRecord { by_uid, at }))) => {
                warn!(by_uid, %at, "an operator has accepted the source for this start: it is not compared with the last good keys");
                cause.force = true;
                cause.waiters.peers.push(Peer { uid: by_uid, pid: None });
            }
            Some(Err(error)) => {
                error!(%error, "whether the source is accepted for this start is not known; it is compared");
            }
            Some(Ok(None)) | None => {}
        }
        cause
    }

    /// Guards the first load: compares the loaded keys with the last good keys. A source that is
    /// recorded as accepted is not compared.
    pub(in crate::reload) fn guard_by_last_good(
        &mut self,
        settings: &Settings,
        loaded: &LoadedSource,
    ) -> Result<Option<Diff>, ReloadError> {
        let (path, new) = (&settings.source.path, &loaded.keys);
        let has_accepted = |last_good: &LastGoodStore| {
            last_good.has_accepted(&loaded.state, &settings.source, &settings.global_policy)
        };
        if self.reloader.last_good.as_ref().is_some_and(has_accepted) {
            return Ok(None);
        }
        let diff = self.diff_from_last_good(settings, new);
        let tolerance = &settings.policy.tolerance;
        let (old, diff) = match (&self.recovered, diff) {
            (Some(Err(error)), _) if error.prevents_comparison() => {
                return Err(ReloadError::NotCompared { path: path.to_path_buf(), error: Arc::clone(error) });
            }
            (Some(Ok(old)), Some(diff)) => (old, diff),
            _ => {
                tolerance.check(path, &Changes::of(&Diff::default()), 0, new.len())?;
                return Ok(None);
            }
        };
        old.guard_earlier_source(path, &diff, &loaded.state)?;
        let now = self.reloader.clock.now().unix;
        let options = old.compare_options(&settings.global_policy, now);
        let lifted = self.reloader.revocations.lifted_by(new, &old.keys, options);
        tolerance.check(path, &Changes { diff: &diff, lifted }, old.keys.len(), new.len())?;
        old.guard_peppers(&settings.global_policy, path, new, now)?;
        Ok(Some(diff))
    }

    /// What `new` changes compared with the last good keys, if there are any that can be read.
    pub(in crate::reload) fn diff_from_last_good(
        &mut self,
        settings: &Settings,
        new: &KeyTable,
    ) -> Option<Diff> {
        self.recover_once(settings);
        let now = self.reloader.clock.now().unix;
        let Some(Ok(old)) = &self.recovered else { return None };
        Some(compare::diff(new, &old.keys, old.compare_options(&settings.global_policy, now)))
    }
}
