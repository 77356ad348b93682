//! Reading the last good keys, and serving them in place of a source that is refused while nothing else is served.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::{error, warn};

use super::manifest::Manifest;
use super::sealed::SealedError;
use super::{LastGood, Stored};
use crate::audit::{self, Event, Peer};
use crate::reload::load::LoadedSource;
use crate::reload::room::MemoryLimits;
use crate::reload::trigger::Cause;
use crate::reload::{
    BadRowPolicy, Origin, ReloadError, ReloadLoop, SetAside, Settings, SourceFile, compare, read,
};
use keyward_engine::record::{Plans, rfc3339};
use keyward_engine::rules::{GlobalPolicy, RetainedHashes};
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable, compiled};
use keyward_source::{ColumnMapping, Format};
use keyward_state::{self as state, AcceptanceRecord};

/// How often it is tried to open the file that a manifest names, where a daemon may be replacing both.
const ATTEMPTS: usize = 5;

/// The last good keys, as they would be served.
pub struct Recovered {
    /// The keys, on the plans of the configuration as it is now.
    pub keys: KeyTable,
    /// What is known of them.
    pub stored: Stored,
    manifest: Manifest,
}

/// Why last good keys cannot be served.
#[derive(Debug)]
pub struct Unusable {
    /// In a word, for programs.
    pub kind: &'static str,
    /// For people.
    pub why: String,
}

impl Unusable {
    fn new(kind: &'static str, why: impl fmt::Display) -> Self {
        Self { kind, why: why.to_string() }
    }

    fn damaged(path: &Path, why: impl fmt::Display) -> Self {
        Self::new("damaged", format_args!("{}: {why}", path.display()))
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<SealedError> for Unusable {
    fn from(error: SealedError) -> Self {
        let kind = match &error {
            SealedError::File(_) => "unreadable",
            SealedError::Damaged(_) => "damaged",
            SealedError::Format { .. } => "format",
        };
        Self::new(kind, error)
    }
}

/// The last good keys in `directory`, on the plans of `source`; `None` if there are none. Takes no lock: a daemon that uses the
/// directory is not disturbed.
///
/// # Errors
/// When there are some, and they cannot be used.
pub fn recover(directory: &Path, source: &SourceFile) -> Result<Option<Recovered>, Unusable> {
    for attempt in 1.. {
        let Some(manifest) = Manifest::read(directory)? else { return Ok(None) };
        let path = directory.join(&manifest.file);
        match state::open_to_read(&path) {
            Ok(file) => {
                let keys = load(&path, &file, &manifest, Arc::clone(&source.plans))?;
                return Ok(Some(Recovered { keys, stored: Stored::from(&manifest), manifest }));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Err(error) => return Err(Unusable::damaged(&path, error)),
        }
    }
    Ok(None)
}

fn load(
    path: &Path,
    file: &std::fs::File,
    manifest: &Manifest,
    plans: Arc<Plans>,
) -> Result<KeyTable, Unusable> {
    if !manifest.names(file).map_err(|error| Unusable::damaged(path, error))? {
        return Err(Unusable::damaged(path, "it is not the file that was written; it is damaged"));
    }
    let origin = SourceFile {
        path: path.into(),
        format: Format::Compiled,
        mapping: ColumnMapping::default(),
        plans,
        on_bad_row: BadRowPolicy::Refuse,
    };
    // The seed is in the file.
    let source =
        read::Source { origin: &origin, file, size: manifest.bytes, seed: 0, room: MemoryLimits::new() };
    let read = source.read(None, &mut |_| {}).map_err(|failure| match &failure {
        ReloadError::Compiled { error: compiled::ReadError::Version(_), .. } => {
            Unusable::new("format", failure)
        }
        // What was whole when it was written contradicts the plans as they are now.
        ReloadError::Compiled { error: compiled::ReadError::Row { .. }, .. } => {
            Unusable::new("plans", failure)
        }
        _ => Unusable::new("damaged", failure),
    })?;
    match read.builder.len() == manifest.keys {
        true => Ok(read.builder.finish()),
        false => Err(Unusable::damaged(path, "it does not have as many keys as were written; it is damaged")),
    }
}

impl Recovered {
    /// Which of its hashes are found by `rules`.
    pub fn usable_hashes(&self, global_policy: &GlobalPolicy) -> RetainedHashes {
        self.manifest.usable_hashes(global_policy)
    }

    /// How a source that is read by `rules` is compared with them, at the Unix second `now`.
    pub fn compare_options(&self, global_policy: &GlobalPolicy, now: u32) -> CompareOptions {
        let kept = self.usable_hashes(global_policy);
        CompareOptions {
            now,
            by_key_id: global_policy.previous_pepper().is_some() || !(kept.current && kept.previous),
        }
    }
}

impl ReloadLoop {
    /// The cause of the first load. An operator may have decided, once, that it takes the source whatever the guard says of it.
    pub(in crate::reload) fn first_cause(&self) -> Cause {
        let mut cause = Cause::of(audit::Trigger::Start);
        let accepted = self.reloader.last_good.as_ref().map(LastGood::take_acceptance);
        match accepted {
            Some(Ok(Some(AcceptanceRecord { by_uid, at }))) => {
                warn!(by_uid, %at, "an operator has accepted the source for this start: it is not compared with the last good keys");
                cause.force = true;
                cause.askers.peers.push(Peer { uid: by_uid, pid: None });
            }
            Some(Err(error)) => {
                error!(%error, "whether the source is accepted for this start is not known; it is compared")
            }
            Some(Ok(None)) | None => {}
        }
        cause
    }

    /// What the guard says of keys that were read, where nothing is served yet: they are compared with the last good keys. A
    /// source that is the very file that was accepted, read in the same way, need not be.
    pub(in crate::reload) fn guard_by_last_good(
        &mut self,
        settings: &Settings,
        loaded: &LoadedSource,
    ) -> Result<Option<Diff>, ReloadError> {
        let (path, new) = (&settings.source.path, &loaded.keys);
        let last_good = self.reloader.last_good.as_ref();
        if last_good
            .is_some_and(|keys| keys.has_accepted(&loaded.state, &settings.source, &settings.global_policy))
        {
            return Ok(None);
        }
        let diff = self.diff_from_last_good(settings, new);
        let tolerance = &settings.policy.tolerance;
        let Some((old, diff)) = self.recovered.as_ref().zip(diff) else {
            tolerance.check(path, &Diff::default(), 0, new.len())?;
            return Ok(None);
        };
        tolerance.check(path, &diff, old.keys.len(), new.len())?;
        // The pepper that they were hashed with is gone: keys that the source lists with the same hash would not be found.
        match old.usable_hashes(&settings.global_policy).current {
            true => {}
            false => self.guard_stranded(path, &old.keys, new)?,
        }
        Ok(Some(diff))
    }

    /// What `new` changes since the last good keys, if there are some that can be read.
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

    /// Reads the last good keys, if they have not been read in this reload.
    pub(in crate::reload) fn recover(&mut self, settings: &Settings) {
        let Some(last_good) = &self.reloader.last_good else { return };
        let plans = &settings.source.plans;
        // Nothing else can make them usable but other plans.
        if self.recovered.is_some() || self.unusable_with.as_ref() == Some(plans) {
            return;
        }
        match recover(&last_good.directory(), &settings.source) {
            Ok(recovered) => self.recovered = recovered,
            Err(unusable) => {
                self.give_up_last_good(&unusable);
                self.unusable_with = Some(Arc::clone(plans));
            }
        }
    }

    /// The last good keys cannot be served; that is said once.
    fn give_up_last_good(&self, Unusable { kind, why }: &Unusable) {
        let Some(last_good) = &self.reloader.last_good else { return };
        if last_good.set_unusable(why) {
            error!(error = why, "the last good keys cannot be served");
            self.reloader.audit.record(&Event::LastGood(audit::LastGood::unusable(kind)));
        }
    }

    /// Serves the last good keys, where nothing else is served and the source is refused by `failure`. Returns whether it does.
    pub(in crate::reload) fn serve_last_good(&mut self, settings: &Settings, failure: &ReloadError) -> bool {
        if self.current.is_some() {
            return false;
        }
        let manifest = self.reloader.last_good.as_ref().and_then(LastGood::manifest);
        let kept = manifest.map(|manifest| manifest.usable_hashes(&settings.global_policy));
        if kept.is_some_and(|kept| !kept.current) {
            let why = "they were hashed with another pepper than keys.pepper_file has now, or with none, so that none of them \
                       would be found; name that pepper in keys.previous_pepper_file, or mend the source";
            self.give_up_last_good(&Unusable::new("pepper", why));
            return false;
        }
        self.recover(settings);
        let Some(Recovered { keys, stored, manifest }) = self.recovered.take() else { return false };
        let (diff, kept) = compare::compare(&keys, None, self.compare_options(settings));
        let set_aside = SetAside::of_last_good(&keys);
        let written_at = stored.written_at;
        if let Err(failure) = self.publish(settings, keys, written_at, (diff, &kept), Origin::LastGood) {
            self.give_up_last_good(&Unusable::new(failure.kind(), failure));
            return false;
        }
        self.set_aside = set_aside.map(Arc::new);
        let [accepted_at, written_at] = [stored.accepted_at, stored.written_at].map(rfc3339);
        let (generation, keys) = (self.generation, stored.keys);
        error!(
            error = %failure,
            generation, keys, accepted_at, source_written_at = written_at,
            taken_away = self.taken_away.keys.len(),
            "the source is refused: the LAST GOOD KEYS are served in its place, until a source is accepted"
        );
        if !manifest.usable_hashes(&settings.global_policy).previous {
            warn!(
                "keys.previous_pepper_file is not what it was: last good keys that were hashed with it are not found"
            );
        }
        self.reloader.audit.record(&Event::LastGood(audit::LastGood {
            in_use: true,
            reason: failure.kind(),
            keys,
            accepted_at: Some(accepted_at),
            source_written_at: Some(written_at),
        }));
        if let Some(last_good) = &self.reloader.last_good {
            last_good.set_in_use(failure.to_string());
        }
        true
    }
}
