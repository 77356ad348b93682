//! What a reload would do, told before it happens: everything but the publishing, with the same reading, the same guard
//! and the same comparison.
//!
//! A daemon does it on its reload thread, one check at a time and after all reloads that wait: never are there more than
//! two sets of keys in memory, nor a check and a reload that disagree about what is served.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::reload::compare;
use crate::reload::load::{LoadOutcome, SettleWindow};
use crate::reload::room::MemoryLimits;
use crate::reload::{
    ATTEMPTS, Purpose, ReloadError, ReloadLoop, ReloadPolicy, SetAside, Settings, SourceFile, Stale,
    TakeawayReport,
};
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable};
use keyward_source::Format;

/// What would come of reloading a source.
#[derive(Debug)]
pub struct Preview {
    /// The source.
    pub source: PathBuf,
    /// The snapshot that it was compared with; 0: none is served, or it was compared with a file.
    pub generation: u64,
    /// Keys in what it was compared with.
    pub serving: usize,
    /// How long it took.
    pub took: Duration,
    /// What would change; or why it cannot be read, or is wrong.
    pub result: Result<Evaluation, ReloadError>,
    /// What a source that is refused would take away.
    pub taken: Option<TakeawayReport>,
}

/// A source that can be read, compared with what is there.
#[derive(Debug)]
pub struct Evaluation {
    /// Keys in it.
    pub keys: usize,
    /// What it would change.
    pub diff: Diff,
    /// What the guard would say against it.
    pub refused: Option<ReloadError>,
    /// That it would be too old to be served.
    pub stale: Option<Stale>,
    /// Rows that would be set aside.
    pub set_aside: Option<SetAside>,
}

impl Evaluation {
    /// Weighs `new`, read from `path`, against `old`.
    pub fn new(
        policy: &ReloadPolicy,
        path: &Path,
        new: &KeyTable,
        old: Option<&KeyTable>,
        options: CompareOptions,
    ) -> Self {
        let diff = new.diff_from(old, options);
        let refused = policy.tolerance.check(path, &diff, old.map_or(0, KeyTable::len), new.len()).err();
        Self { keys: new.len(), diff, refused, stale: None, set_aside: None }
    }
}

/// A check that is asked for.
#[derive(Debug)]
pub struct CheckRequest {
    /// What to read in place of the daemon's own source.
    pub source: Option<PathBuf>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Preview>,
}

impl ReloadLoop {
    /// Checks what was asked for, unless nobody waits for it any more.
    pub(super) fn check(&mut self, CheckRequest { source, reply }: CheckRequest) {
        if !reply.is_closed() {
            let _nobody_waits = reply.send(self.preview(source));
        }
    }

    /// By the configuration as it is now, which a reload that is asked for would read too.
    fn preview(&mut self, path: Option<PathBuf>) -> Preview {
        let start = Instant::now();
        let settings = self.configure(Purpose::Check);
        let own = settings.as_ref().map_or(&self.reloader.settings.source, |settings| &settings.source);
        let source = match path {
            None => own.clone(),
            // The name may tell no format: then it is the daemon's own.
            Some(path) => SourceFile {
                format: Format::from_path(&path).unwrap_or(own.format),
                path: path.into(),
                ..own.clone()
            },
        };
        let mut taken = None;
        let result = settings.and_then(|settings| {
            let settling = SettleWindow::new(settings.policy.settle);
            let mut result = self.judge(&source, &settings, settling, &mut taken);
            for _ in 1..ATTEMPTS {
                if !matches!(result, Err(ReloadError::Changing { .. })) || settling.is_over() {
                    break;
                }
                result = self.judge(&source, &settings, settling, &mut taken);
            }
            result
        });
        Preview {
            source: source.path.to_path_buf(),
            generation: self.generation,
            serving: self.current.as_ref().map_or(0, |snapshot| snapshot.len()),
            took: start.elapsed(),
            result,
            taken,
        }
    }

    fn judge(
        &self,
        source: &SourceFile,
        settings: &Settings,
        settling: SettleWindow,
        taken: &mut Option<TakeawayReport>,
    ) -> Result<Evaluation, ReloadError> {
        let seed = getrandom::u64().map_err(ReloadError::Random)?;
        let loaded = match source.load_settled(seed, settling)? {
            LoadOutcome::Loaded(loaded) => loaded,
            LoadOutcome::Refused { failure, rows, .. } => {
                let served = self.current.as_ref().filter(|_| settings.policy.apply_takeaways);
                *taken = served.map(|served| self.evaluate_takeaways(settings, &rows, served, false).1);
                return Err(failure);
            }
        };
        compare::require(&MemoryLimits::new(), &loaded.keys)
            .map_err(|shortage| ReloadError::Memory { path: source.path.to_path_buf(), shortage })?;
        let served = self.current.as_ref().map(|snapshot| snapshot.table());
        let mut judged = Evaluation::new(
            &settings.policy,
            &source.path,
            &loaded.keys,
            served,
            self.compare_options(settings),
        );
        let stranded = || self.guard_hashes(settings, &source.path, &loaded.keys).err();
        judged.refused = judged.refused.or_else(stranded);
        judged.stale = Stale::at(self.reloader.clock.now().unix, loaded.written_at, &settings.global_policy);
        if judged.refused.is_some() && loaded.set_aside.is_some() && settings.policy.apply_takeaways {
            let served = self.current.as_ref();
            *taken = served.map(|served| self.evaluate_takeaways(settings, &loaded.keys, served, false).1);
        }
        judged.set_aside = loaded.set_aside;
        Ok(judged)
    }
}
