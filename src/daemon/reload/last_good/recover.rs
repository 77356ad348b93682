//! Recovers the last good keys, and serves them if the source is refused while nothing is served.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{error, warn};

use super::manifest::Manifest;
use super::sealed::SealedError;
use super::{LastGoodStore, StoredKeys};
use crate::audit::{self, Event, Peer};
use crate::reload::load::LoadedSource;
use crate::reload::memory_limits::MemoryLimits;
use crate::reload::read::SourceReader;
use crate::reload::trigger::Cause;
use crate::reload::{
    BadRowPolicy, LoadedFrom, ReloadError, ReloadLoop, SetAside, Settings, SourceFile, compare,
};
use keyward_engine::global_policy::{GlobalPolicy, RetainedHashes};
use keyward_engine::record::{Plans, rfc3339};
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable, compiled};
use keyward_source::{ColumnMapping, Format};
use keyward_state::{self as state, AcceptanceRecord};

/// Attempts to open the file that a manifest names. A daemon may be replacing both.
const ATTEMPTS: usize = 5;

/// The last good keys, ready to be served.
pub struct Recovered {
    /// The keys, with the plans of the current configuration.
    pub keys: KeyTable,
    /// What is stored about them.
    pub stored: StoredKeys,
    manifest: Manifest,
}

/// Why last good keys cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] SealedError),
    /// The compiled file cannot be opened.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// The compiled file is not the one that the manifest describes.
    #[error("{}: {problem}; it is damaged", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// How it differs.
        problem: &'static str,
    },
    /// The compiled file cannot be read.
    #[error(transparent)]
    Load(ReloadError),
    /// None of the keys would be found.
    #[error(
        "they were hashed with another pepper than keys.pepper_file has now, or with none, so that none of them would be \
         found; name that pepper in keys.previous_pepper_file, or correct the source"
    )]
    OtherPepper,
    /// The keys cannot be published.
    #[error(transparent)]
    Publish(ReloadError),
}

impl RecoverError {
    /// A code for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manifest(SealedError::File(_)) => "unreadable",
            Self::Manifest(SealedError::Damaged { .. }) => "damaged",
            Self::Manifest(SealedError::Format { .. }) => "format",
            Self::Load(ReloadError::Compiled { error: compiled::ReadError::Version(_), .. }) => "format",
            // A file that was valid when it was written contradicts the current plans.
            Self::Load(ReloadError::Compiled { error: compiled::ReadError::Row { .. }, .. }) => "plans",
            Self::Io { .. } | Self::Mismatch { .. } | Self::Load(_) => "damaged",
            Self::OtherPepper => "pepper",
            Self::Publish(error) => error.kind(),
        }
    }
}

/// The last good keys in `directory`, with the plans of `source`; `None` if there are none. Takes
/// no lock, so it does not disturb a daemon that uses the directory.
///
/// # Errors
/// When there are last good keys that cannot be used.
pub fn recover(directory: &Path, source: &SourceFile) -> Result<Option<Recovered>, RecoverError> {
    for attempt in 1.. {
        let Some(manifest) = Manifest::read(directory)? else { return Ok(None) };
        let path = directory.join(&manifest.file);
        match state::open_to_read(&path) {
            Ok(file) => {
                let keys = load(&path, &file, &manifest, Arc::clone(&source.plans))?;
                return Ok(Some(Recovered { keys, stored: StoredKeys::from(&manifest), manifest }));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Err(error) => return Err(RecoverError::Io { path, error }),
        }
    }
    Ok(None)
}

fn load(
    path: &Path,
    file: &std::fs::File,
    manifest: &Manifest,
    plans: Arc<Plans>,
) -> Result<KeyTable, RecoverError> {
    let mismatch = |problem| RecoverError::Mismatch { path: path.to_path_buf(), problem };
    let is_named =
        manifest.names(file).map_err(|error| RecoverError::Io { path: path.to_path_buf(), error })?;
    if !is_named {
        return Err(mismatch("it is not the file that was written"));
    }
    let origin = SourceFile {
        path: path.into(),
        format: Format::Compiled,
        mapping: ColumnMapping::default(),
        plans,
        on_bad_row: BadRowPolicy::Refuse,
    };
    let reader = SourceReader {
        origin: &origin,
        file,
        size: manifest.bytes,
        // A compiled file has its own seed.
        seed: 0,
        limits: MemoryLimits::new(),
    };
    let parsed = reader.read(None, &mut |_| {}).map_err(RecoverError::Load)?;
    if parsed.builder.len() != manifest.keys {
        return Err(mismatch("it does not have as many keys as were written"));
    }
    Ok(parsed.builder.finish())
}

impl Recovered {
    /// Which of the hashes are found under `global_policy`.
    pub fn retained_hashes(&self, global_policy: &GlobalPolicy) -> RetainedHashes {
        self.manifest.retained_hashes(global_policy)
    }

    /// How a source that is read under `global_policy` is compared with these keys, at the Unix
    /// second `now`.
    pub fn compare_options(&self, global_policy: &GlobalPolicy, now: u32) -> CompareOptions {
        let retained = self.retained_hashes(global_policy);
        CompareOptions {
            now,
            by_key_id: global_policy.previous_pepper().is_some() || !(retained.current && retained.previous),
        }
    }
}

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
        let last_good = self.reloader.last_good.as_ref();
        if last_good.is_some_and(|last_good| {
            last_good.has_accepted(&loaded.state, &settings.source, &settings.global_policy)
        }) {
            return Ok(None);
        }
        let diff = self.diff_from_last_good(settings, new);
        let tolerance = &settings.policy.tolerance;
        let Some((old, diff)) = self.recovered.as_ref().zip(diff) else {
            tolerance.check(path, &Diff::default(), 0, new.len())?;
            return Ok(None);
        };
        tolerance.check(path, &diff, old.keys.len(), new.len())?;
        // If their pepper is gone, keys that the source lists with the same hash would not be
        // found.
        if !old.retained_hashes(&settings.global_policy).current {
            self.guard_removed_pepper(path, &old.keys, new)?;
        }
        Ok(Some(diff))
    }

    /// What `new` changes compared with the last good keys, if there are any that can be read.
    pub(in crate::reload) fn diff_from_last_good(
        &mut self,
        settings: &Settings,
        new: &KeyTable,
    ) -> Option<Diff> {
        self.recover(settings);
        let now = self.reloader.clock.now().unix;
        self.recovered
            .as_ref()
            .map(|old| compare::diff(new, &old.keys, old.compare_options(&settings.global_policy, now)))
    }

    /// Reads the last good keys, once in a reload.
    pub(in crate::reload) fn recover(&mut self, settings: &Settings) {
        let Some(last_good) = &self.reloader.last_good else { return };
        let plans = &settings.source.plans;
        // After a failure, only other plans can make them usable.
        if self.recovered.is_some() || self.unusable_with_plans.as_ref() == Some(plans) {
            return;
        }
        match recover(&last_good.directory(), &settings.source) {
            Ok(recovered) => self.recovered = recovered,
            Err(error) => {
                self.report_unusable(&error);
                self.unusable_with_plans = Some(Arc::clone(plans));
            }
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

    /// Serves the last good keys if nothing else is served. `refusal` is why the source was
    /// refused. Returns whether they are served.
    pub(in crate::reload) fn serve_last_good(&mut self, settings: &Settings, refusal: &ReloadError) -> bool {
        if self.current.is_some() {
            return false;
        }
        let manifest = self.reloader.last_good.as_ref().and_then(LastGoodStore::manifest);
        let retained = manifest.map(|manifest| manifest.retained_hashes(&settings.global_policy));
        if retained.is_some_and(|retained| !retained.current) {
            self.report_unusable(&RecoverError::OtherPepper);
            return false;
        }
        self.recover(settings);
        let Some(Recovered { keys, stored, manifest }) = self.recovered.take() else { return false };
        let (diff, row_map) = compare::compare(&keys, None, self.compare_options(settings));
        let set_aside = SetAside::of_last_good(&keys);
        let written_at = stored.written_at;
        if let Err(error) =
            self.swap_and_wait(settings, keys, written_at, diff, &row_map, LoadedFrom::LastGood)
        {
            self.report_unusable(&RecoverError::Publish(error));
            return false;
        }
        self.set_aside = set_aside.map(Arc::new);
        let [accepted_at, written_at] = [stored.accepted_at, stored.written_at].map(rfc3339);
        let (generation, keys) = (self.generation, stored.keys);
        error!(
            error = %refusal,
            generation, keys, accepted_at, source_written_at = written_at,
            taken_away = self.applied_takeaways.keys.len(),
            "the source is refused: the LAST GOOD KEYS are served in its place, until a source is accepted"
        );
        if !manifest.retained_hashes(&settings.global_policy).previous {
            warn!(
                "keys.previous_pepper_file is not what it was: last good keys that were hashed with it are not found"
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
}
