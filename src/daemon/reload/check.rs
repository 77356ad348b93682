//! Checks: what a reload would do, without publishing. The reading, the guard and the comparison
//! are those of a reload.
//!
//! A daemon runs a check on its reload thread, one at a time and after all pending reloads. So
//! there are never more than two sets of keys in memory, and a check and a reload agree about what
//! is served.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::reload::guard::Changes;
use crate::reload::load::{LoadOutcome, SettleWindow};
use crate::reload::memory_limits::MemoryLimits;
use crate::reload::{
    Purpose, ReloadError, ReloadLoop, ReloadPolicy, SetAside, Settings, SourceFile, Stale, TakeawayReport,
    compare, retry_while_changing,
};
use crate::revocation::LoadedList;
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable};
use keyward_source::Format;

/// A request to check a source.
#[derive(Debug)]
pub struct CheckRequest {
    /// The file to read; `None`: the daemon's own source.
    pub source: Option<PathBuf>,
    /// Where the result goes.
    pub reply: oneshot::Sender<Preview>,
}

/// What a reload of a source would do.
#[derive(Debug)]
pub struct Preview {
    /// The file that was checked: the one named in the request, or the configured one.
    pub source: PathBuf,
    /// The snapshot that it was compared with; 0 if none is served.
    pub generation: u64,
    /// Keys that are served.
    pub serving: usize,
    /// How long the check took.
    pub took: Duration,
    /// What would change, or why the source cannot be loaded.
    pub result: Result<Evaluation, ReloadError>,
    /// The takeaways of a source that would be refused.
    pub takeaways: Option<TakeawayReport>,
}

/// A source that was loaded, compared with the current keys.
#[derive(Debug)]
pub struct Evaluation {
    /// Keys in the source.
    pub keys: usize,
    /// What would change.
    pub diff: Diff,
    /// Why the guard would refuse it.
    pub refused: Option<ReloadError>,
    /// Set if it would be too old to be served.
    pub stale: Option<Stale>,
    /// Rows that would be set aside.
    pub set_aside: Option<SetAside>,
}

impl Evaluation {
    /// Compares `new`, read from `path`, with `old`. `revocations`: those in force, if any are known.
    pub fn new(
        policy: &ReloadPolicy,
        path: &Path,
        new: &KeyTable,
        old: &KeyTable,
        options: CompareOptions,
        revocations: Option<&LoadedList>,
    ) -> Self {
        let diff = new.diff_from(Some(old), options);
        let lifted = revocations.map(|list| list.lifted_by(new, old, options)).unwrap_or_default();
        let changes = Changes { diff: &diff, lifted };
        let refused = policy.tolerance.check(path, &changes, old.len(), new.len()).err();
        Self { keys: new.len(), diff, refused, stale: None, set_aside: None }
    }
}

impl ReloadLoop {
    /// Carries out a check, unless its client has gone.
    pub(super) fn check(&mut self, CheckRequest { source, reply }: CheckRequest) {
        if !reply.is_closed() {
            // The client may go at any time.
            let _ = reply.send(self.preview(source));
        }
    }

    /// Uses the configuration as it is now, as a reload that is requested now would.
    fn preview(&mut self, path: Option<PathBuf>) -> Preview {
        let start = Instant::now();
        let settings = self.load_config(Purpose::Check);
        let own = settings.as_ref().map_or(&self.reloader.settings.source, |settings| &settings.source);
        let source = match path {
            None => own.clone(),
            // A name that indicates no format has the daemon's own.
            Some(path) => SourceFile {
                format: Format::from_path(&path).unwrap_or(own.format),
                path: path.into(),
                ..own.clone()
            },
        };
        let mut takeaways = None;
        let result = settings.and_then(|settings| {
            let window = SettleWindow::new(settings.policy.settle);
            let settings = Settings { source: source.clone(), ..settings };
            retry_while_changing(window, || self.evaluate(&settings, window, &mut takeaways))
        });
        self.recovered = None;
        self.reloader.revocations.forget_changes();
        Preview {
            source: source.path.to_path_buf(),
            generation: self.table_generation,
            serving: self.current.as_ref().map_or(0, |snapshot| snapshot.len()),
            took: start.elapsed(),
            result,
            takeaways,
        }
    }

    fn evaluate(
        &mut self,
        settings: &Settings,
        window: SettleWindow,
        takeaways: &mut Option<TakeawayReport>,
    ) -> Result<Evaluation, ReloadError> {
        let source = &settings.source;
        let seed = getrandom::u64().map_err(ReloadError::Random)?;
        let loaded = match source.load_settled(seed, window)? {
            LoadOutcome::Loaded(loaded) => loaded,
            LoadOutcome::Refused { error, rows, .. } => {
                *takeaways = self.takeaways_of(settings, &rows);
                return Err(error);
            }
        };
        compare::require_memory(&MemoryLimits::new(), &loaded.keys)
            .map_err(|limit| ReloadError::Memory { path: source.path.to_path_buf(), limit })?;
        let current = self.current.as_ref().map(|snapshot| snapshot.table());
        let options = self.compare_options(settings);
        let diff = loaded.keys.diff_from(current, options);
        // Without served keys, the guard compares with the last good keys; `diff` remains the
        // difference from what is served.
        let refused = self.guard(settings, &loaded, &diff).err();
        if refused.is_some() && loaded.set_aside.is_some() {
            *takeaways = self.takeaways_of(settings, &loaded.keys);
        }
        let stale = Stale::at(self.reloader.clock.now().unix, loaded.written_at, &settings.global_policy);
        Ok(Evaluation { keys: loaded.keys.len(), diff, refused, stale, set_aside: loaded.set_aside })
    }

    /// The takeaways of `rows` from the current keys, if the settings ask for them.
    fn takeaways_of(&self, settings: &Settings, rows: &KeyTable) -> Option<TakeawayReport> {
        let current = self.current.as_ref().filter(|_| settings.policy.apply_takeaways)?;
        Some(self.evaluate_takeaways(settings, rows, current, false).1)
    }
}
