//! Serves the last good keys when the source is refused and nothing is served yet.

use std::sync::Arc;

use tracing::{error, warn};

use super::LastGoodStore;
use super::recover::{RecoverError, Recovered, recover};
use crate::audit::{self, Event};
use crate::reload::{LoadedFrom, ReloadError, ReloadLoop, SetAside, Settings, compare};
use keyward_engine::record::rfc3339;

impl ReloadLoop {
    /// Serves the last good keys if nothing else is served. `refusal` is why the source was
    /// refused. Returns whether they are served.
    pub(in crate::reload) fn serve_last_good(&mut self, settings: &Settings, refusal: &ReloadError) -> bool {
        if self.current.is_some() {
            return false;
        }
        self.recover_once(settings);
        let Some(Ok(recovered)) = self.recovered.take() else { return false };
        let retained = recovered.retained_hashes(&settings.global_policy);
        if !retained.current {
            self.report_unusable(&RecoverError::OtherPepper);
            return false;
        }
        if let Some(superseded) = &recovered.superseded {
            self.report_unusable(&superseded.error);
            return false;
        }
        match self.reloader.last_good.as_ref().map(LastGoodStore::applied_takeaways) {
            Some(Ok(takeaways)) => self.applied_takeaways = takeaways,
            Some(Err(error)) => {
                self.report_unusable(&RecoverError::Takeaways(error));
                return false;
            }
            None => {}
        }
        let Recovered { keys, stored, .. } = recovered;
        let (diff, row_map) = compare::compare(&keys, None, self.compare_options(settings));
        let set_aside = SetAside::of_last_good(&keys);
        let written_at = stored.written_at;
        if let Err(error) =
            self.put_in_force(settings, keys, written_at, diff, &row_map, LoadedFrom::LastGood)
        {
            self.report_unusable(&RecoverError::Swap(error));
            return false;
        }
        self.set_aside = set_aside.map(Arc::new);
        let [accepted_at, written_at] = [stored.accepted_at, stored.written_at].map(rfc3339);
        let (generation, keys) = (self.table_generation, stored.keys);
        error!(
            error = %refusal,
            generation, keys, accepted_at, source_written_at = written_at,
            taken_away = self.applied_takeaways.keys.len(),
            "the source is refused: the LAST GOOD KEYS are served in its place, until a source is accepted"
        );
        if !retained.previous {
            warn!(
                "the last good keys were accepted with a pepper in keys.previous_pepper_file that is no longer \
                 configured: requests do not find the keys that were hashed with it"
            );
        }
        self.reloader.audit.record(&Event::LastGood(audit::LastGood {
            in_use: true,
            reason: refusal.kind(),
            keys,
            accepted_at: Some(accepted_at),
            source_written_at: Some(written_at),
        }));
        if let Some(last_good) = &self.reloader.last_good {
            last_good.set_in_use(refusal.to_string());
        }
        true
    }

    /// Sets `recovered`, unless this reload has read the last good keys already.
    pub(in crate::reload) fn recover_once(&mut self, settings: &Settings) {
        let Some(last_good) = &self.reloader.last_good else { return };
        if self.recovered.is_some() {
            return;
        }
        self.recovered = recover(&last_good.directory(), &settings.source).map_err(Arc::new).transpose();
        match &self.recovered {
            Some(Ok(recovered)) => last_good.manifest_read(&recovered.manifest),
            Some(Err(error)) => self.report_unusable(error),
            None => {}
        }
    }

    /// Reports, once, that the last good keys cannot be served.
    fn report_unusable(&self, error: &RecoverError) {
        let Some(last_good) = &self.reloader.last_good else { return };
        if last_good.set_unusable(&error.to_string()) {
            error!(%error, "the last good keys cannot be served");
            self.reloader.audit.record(&Event::LastGood(audit::LastGood::unusable(error.kind())));
        }
    }
}
