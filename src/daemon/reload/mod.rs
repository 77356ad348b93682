//! Reloading: notice, open, wait until the file holds still, read, weigh, publish, wait, and only then free the old snapshot.
//!
//! All of it happens on one thread, one reload at a time, in the order of [`ReloadLoop::reload`]; no request ever waits for
//! it. Whatever fails before the swap leaves everything as it was; at a start, it leaves the [last good keys](last_good) in force.
//!
//! Who asks for a reload while one is running is answered by it if another could come to nothing else: if nobody has forced it, and,
//! after they asked, the file is the one that was read, and the configuration says what it was read by. Otherwise, all who asked meanwhile are
//! answered together, by the next one, which begins after all of them did.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tracing::debug;

use crate::audit::{self, Audit};
use crate::clock::Clock;
use crate::publish::Publisher;
use crate::revocation::{Retention, Revocations};
use crate::systemd;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::record::Plans;
use keyward_engine::rules::GlobalPolicy;
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable, Snapshot};
use keyward_state::Generations;

mod bad_rows;
mod check;
mod compare;
mod failure;
mod fan;
mod guard;
mod history;
pub mod last_good;
mod load;
mod peppers;
mod read;
mod report;
mod room;
mod stale;
mod swap;
mod takeaways;
#[cfg(test)]
mod tests;
mod trigger;
mod watch;

pub use bad_rows::{BadRowPolicy, SetAside};
pub use check::{CheckRequest, Evaluation, Preview};
pub use failure::ReloadError;
pub use guard::{Refusal, Tolerance, counts};
pub use history::{AcceptedReload, History, Outcome};
pub use last_good::LastGood;
pub use load::{FileState, LoadedSource, ParsedSource, RowObserver, SourceFile};
use load::{LoadOutcome, SettleWindow, TIME_GRANULARITY};
pub use peppers::KeySample;
pub use room::MemoryError;
use room::MemoryLimits;
pub use stale::Stale;
pub use takeaways::TakeawayReport;
use trigger::{Batch, Cause, changes};
pub use trigger::{Trigger, triggers};
use watch::Watch;

/// How often a file is read that changes meanwhile, before that is the outcome. Each time it is waited for first.
const ATTEMPTS: usize = 3;

/// The reload thread's side: everything that a reload needs.
pub struct Reloader {
    /// What the configuration says of them.
    pub settings: Settings,
    /// Reads the configuration again; called for reloads that somebody asks for.
    pub configure: ConfigLoader,
    /// Where snapshots go.
    pub publisher: Publisher,
    /// What is revoked in every one of them.
    pub revocations: Arc<Revocations>,
    /// The buckets.
    pub limiter: Arc<Limiter>,
    /// Which is whose.
    pub allocator: Arc<Mutex<SlotAllocator>>,
    /// For the buckets' balances.
    pub clock: Clock,
    /// Where outcomes go.
    pub history: History,
    /// And where they are kept.
    pub audit: Audit,
    /// Where the keys in force are kept for the next start, if they are.
    pub last_good: Option<LastGood>,
    /// Numbers for snapshots.
    pub generations: Generations,
    /// To wait for the workers, which run on tokio.
    pub runtime: tokio::runtime::Handle,
}

/// What the configuration says of reloads.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where keys come from.
    pub source: SourceFile,
    /// When, and how far.
    pub policy: ReloadPolicy,
    /// What holds for every key.
    pub global_policy: Arc<GlobalPolicy>,
    /// How long revocations outlive the source's agreement.
    pub revocation_retention: Retention,
}

/// Yields the settings as they are now, or what is wrong with them, for people.
pub type ConfigLoader = Box<dyn FnMut(Purpose) -> Result<Settings, String> + Send>;

/// What the configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be taken, if all goes well.
    Reload,
    /// To tell what would come of that.
    Check,
}

/// When a source is read, and what of it is believed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReloadPolicy {
    /// How often the file is compared, whatever the watch says.
    pub poll: Duration,
    /// How long a file must not have been written to.
    pub settle: Duration,
    /// How far it may change access.
    pub tolerance: Tolerance,
    /// Whether a source that is refused for rows that cannot be understood still takes access away.
    pub apply_takeaways: bool,
}

/// Where keys come from that are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The source.
    Source,
    /// The state directory.
    LastGood,
}

/// What the thread remembers between reloads.
struct ReloadLoop {
    reloader: Reloader,
    generation: u64,
    current: Option<Arc<Snapshot>>,
    /// The file as it was when it was last read, successfully or not: it is not read again until it differs.
    seen: Option<FileState>,
    /// A change is waiting among the triggers: one is enough.
    noticed: Arc<AtomicBool>,
    watch: Watch,
    /// Triggers that arrived while a reload was running, and that it did not answer.
    waiting: Batch,
    /// The snapshot before, which nobody uses any more: to be freed when the reload has been acknowledged.
    retired: Option<Arc<Snapshot>>,
    /// The last good keys, if they were read in this reload: to judge the source by, or to be served.
    recovered: Option<last_good::Recovered>,
    /// The plans with which the last good keys could not be read.
    unusable_with: Option<Arc<Plans>>,
    /// The good rows of a source that this reload refused for its bad rows, if they are to take access away.
    refused_rows: Option<KeyTable>,
    /// What refused sources have taken away since a source was accepted.
    taken_away: last_good::AppliedTakeaways,
    /// The rows that were set aside of the source that is served.
    set_aside: Option<Arc<SetAside>>,
    /// Checks that wait until no reload does. As many as there can be connections to the admin socket.
    checks: VecDeque<CheckRequest>,
}

impl Reloader {
    /// Loads the source, calls `ready`, and then reloads until all senders of `triggers` are gone.
    pub fn run(self, trigger: SyncSender<Trigger>, triggers: &Receiver<Trigger>, ready: impl FnOnce()) {
        let noticed = Arc::new(AtomicBool::new(false));
        let watch = Watch::new(&self.settings.source.path, changes(trigger, Arc::clone(&noticed)));
        let taken_away = self.last_good.as_ref().map(LastGood::taken_away).unwrap_or_default();
        let mut running = ReloadLoop {
            reloader: self,
            generation: 0,
            current: None,
            retired: None,
            seen: None,
            noticed,
            watch,
            waiting: Batch::default(),
            recovered: None,
            refused_rows: None,
            taken_away,
            set_aside: None,
            unusable_with: None,
            checks: VecDeque::new(),
        };
        let cause = running.first_cause();
        running.reload(cause, triggers);
        ready();
        lower_priority();
        while let Some(batch) = running.next(triggers) {
            running.serve(batch, triggers);
            if let Some(check) = running.checks.pop_front() {
                running.check(check);
            }
        }
    }
}

/// How much the workers are preferred to a reload: with no processor free, it gets a tenth of one at least. A reload that could be
/// starved would keep a revoked key in force.
const NICENESS: i32 = 10;

/// From the first load on, there are requests to be answered meanwhile. Threads that this one starts are as polite.
fn lower_priority() {
    // In Linux, a process of number 0 is the calling thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        debug!(%error, "reloads go on at the workers' priority");
    }
}

impl ReloadLoop {
    /// Waits for a trigger, at most until the next comparison is due, and takes all triggers that are there by then.
    /// `None`: the daemon is going away.
    fn next(&mut self, triggers: &Receiver<Trigger>) -> Option<Batch> {
        let mut batch = std::mem::take(&mut self.waiting);
        // A check that waits is next, unless a reload has been asked for meanwhile.
        let patience = match self.checks.is_empty() && !batch.any {
            true => self.reloader.settings.policy.poll,
            false => Duration::ZERO,
        };
        match triggers.recv_timeout(patience) {
            Ok(trigger) => batch.add(trigger),
            Err(RecvTimeoutError::Timeout) => {
                self.watch.follow(&self.reloader.settings.source.path);
                self.reloader.generations.retry();
                self.reloader.last_good.iter().for_each(LastGood::retry_taken_away);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        batch.take(triggers);
        if batch.is_change_only() {
            // The load would wait for this long anyway. A command that follows a rename finds no reload begun by the watch.
            thread::sleep(self.reloader.settings.policy.settle.min(TIME_GRANULARITY));
            batch.take(triggers);
        }
        self.noticed.store(false, Ordering::Release);
        Some(batch)
    }

    fn serve(&mut self, batch: Batch, triggers: &Receiver<Trigger>) {
        let Batch { signal, unforced, forced, checks, any: _ } = batch;
        self.checks.extend(checks);
        let has_changed = FileState::of(&self.reloader.settings.source.path) != self.seen;
        // The file alone has changed: the configuration is read again only where somebody says so.
        let configure = signal || !unforced.is_empty() || !forced.is_empty();
        let plain = signal || !unforced.is_empty() || (has_changed && forced.is_empty());
        if plain || !forced.is_empty() {
            systemd::reloading();
        }
        if plain {
            let trigger = match (unforced.is_empty(), signal) {
                (false, _) => audit::Trigger::Command,
                (true, true) => audit::Trigger::Signal,
                (true, false) => audit::Trigger::Change,
            };
            self.reload(Cause { trigger, askers: unforced, configure, force: false }, triggers);
        }
        if !forced.is_empty() {
            let trigger = audit::Trigger::Command;
            self.reload(Cause { trigger, askers: forced, configure, force: true }, triggers);
        }
    }

    /// A whole reload, up to the answer to who asked for it.
    fn reload(&mut self, mut cause: Cause, triggers: &Receiver<Trigger>) {
        let start = Instant::now();
        let settings = if cause.configure {
            self.configure(Purpose::Reload)
        } else {
            Ok(self.reloader.settings.clone())
        };
        let seen = self.seen;
        let (mut is_other, mut taken) = (false, None);
        let result = settings.and_then(|settings| {
            is_other = settings != self.reloader.settings;
            let settling = SettleWindow::new(settings.policy.settle);
            let mut result = self.try_reload(&settings, settling, cause.force);
            for _ in 1..ATTEMPTS {
                if !matches!(result, Err(ReloadError::Changing { .. })) || settling.is_over() {
                    break;
                }
                result = self.try_reload(&settings, settling, cause.force);
            }
            let fell_back = result.as_ref().is_err_and(|failure| self.serve_last_good(&settings, failure));
            // Another file than the one that is served says nothing of its keys.
            if !fell_back && settings.source.path != self.reloader.settings.source.path {
                self.refused_rows = None;
            }
            taken = self.apply_takeaways(&settings, cause.force);
            // The configuration is taken with the keys that were read by it, or not at all.
            if result.is_ok() || fell_back {
                self.reloader.settings = settings;
            } else if settings.source.path != self.reloader.settings.source.path {
                // What was looked at is another file than the one that is served on.
                self.seen = seen;
            }
            result
        });
        if result.as_ref().is_err_and(ReloadError::is_passing) {
            // As if it had not been looked at: the next comparison tries again.
            self.seen = None;
        }
        let outcome = Arc::new(Outcome { at: Instant::now(), took: start.elapsed(), result, taken });
        if outcome.result.is_ok() {
            self.join(&mut cause, triggers);
        }
        self.record(&cause, &outcome);
        if cause.configure {
            let refused = outcome.result.as_ref().err();
            let refused = refused.and_then(|failure| failure.of_configuration(is_other));
            self.reloader.history.lock().configuration_refused = refused;
        }
        self.report(&outcome);
        self.watch.follow(&self.reloader.settings.source.path);
        if cause.trigger != audit::Trigger::Start {
            systemd::ready();
        }
        cause.askers.answer(&outcome);
        (self.retired, self.recovered) = (None, None);
    }

    /// Whoever has asked since the reload of `cause` began is answered by it, if another would read the same file by the same
    /// settings. Both are looked at after they asked. What else has arrived waits for the next.
    fn join(&mut self, cause: &mut Cause, triggers: &Receiver<Trigger>) {
        self.waiting.take(triggers);
        // Who did not ask to force is neither said to have, nor told that all is well with what the guard refuses.
        if cause.force {
            return;
        }
        let state = FileState::of(&self.reloader.settings.source.path);
        if self.waiting.unforced.is_empty() || state.is_none() || state != self.seen {
            return;
        }
        if self.configure(Purpose::Check).is_ok_and(|settings| settings == self.reloader.settings) {
            cause.join(std::mem::take(&mut self.waiting.unforced));
        }
    }

    fn configure(&mut self, purpose: Purpose) -> Result<Settings, ReloadError> {
        (self.reloader.configure)(purpose).map_err(ReloadError::Configuration)
    }

    fn try_reload(
        &mut self,
        settings: &Settings,
        settling: SettleWindow,
        force: bool,
    ) -> Result<AcceptedReload, ReloadError> {
        let source = &settings.source;
        if let Some(last_good) = &self.reloader.last_good {
            last_good.make_room(self.generation);
        }
        // Before the reading: what changes from here on is seen as a change.
        self.seen = FileState::of(&source.path);
        let seed = getrandom::u64().map_err(ReloadError::Random)?;
        self.refused_rows = None;
        let read = source.load_settled(seed, settling)?;
        // What was read, and not what was at the path a moment before: a link may have been turned between the two.
        self.seen = Some(read.state());
        let loaded = match read {
            LoadOutcome::Loaded(loaded) => loaded,
            LoadOutcome::Refused { failure, rows, .. } => {
                self.refused_rows = Some(rows).filter(|_| settings.policy.apply_takeaways);
                return Err(failure);
            }
        };
        let served = self.current.clone();
        let options = self.compare_options(settings);
        let short = |shortage| ReloadError::Memory { path: source.path.to_path_buf(), shortage };
        compare::require(&MemoryLimits::new(), &loaded.keys).map_err(short)?;
        let (diff, kept) = compare::compare(&loaded.keys, served.as_deref(), options);
        let since_last_good = match force {
            // For the report: at a start there is nothing else to compare with.
            true if served.is_none() => self.diff_from_last_good(settings, &loaded.keys),
            true => None,
            false => match self.guard(settings, &loaded, &diff) {
                Ok(since_last_good) => since_last_good,
                Err(failure) => {
                    // Without set-aside, the rows would have refused the source, with the same effect.
                    let apply_takeaways = settings.policy.apply_takeaways && loaded.set_aside.is_some();
                    self.refused_rows = Some(loaded.keys).filter(|_| apply_takeaways);
                    return Err(failure);
                }
            },
        };
        let LoadedSource { mut keys, state, file, policies, written_at, set_aside } = loaded;
        let diff = since_last_good.unwrap_or(diff);
        if set_aside.is_some() {
            if served.is_none() {
                self.recover(settings);
            }
            match (&served, &self.recovered) {
                (Some(served), _) => keys.inherit_prior_state(served.table(), options),
                (None, Some(recovered)) => {
                    let options = recovered.compare_options(&settings.global_policy, options.now);
                    keys.inherit_prior_state(&recovered.keys, options);
                }
                (None, None) => {}
            }
        }
        let accepted = self.publish(settings, keys, written_at, (diff, &kept), Origin::Source)?;
        self.keep(settings, state, file, policies);
        self.forget_taken_away();
        self.set_aside = set_aside.map(Arc::new);
        Ok(AcceptedReload { set_aside: self.set_aside.clone(), ..accepted })
    }

    /// How a source that is read by `settings` is compared with what is served.
    fn compare_options(&self, settings: &Settings) -> CompareOptions {
        let now = self.reloader.clock.now().unix;
        let served = self.current.as_ref().map(|snapshot| snapshot.global_policy());
        let by_key_id = settings.global_policy.may_rehash(served);
        CompareOptions { now, by_key_id }
    }

    /// Whether keys that were read may take the place of those that are served, or else of the last good ones.
    /// Returns what has changed since the last good ones, if they were compared.
    fn guard(
        &mut self,
        settings: &Settings,
        loaded: &LoadedSource,
        diff: &Diff,
    ) -> Result<Option<Diff>, ReloadError> {
        let path = &settings.source.path;
        let since_last_good = match &self.current {
            Some(served) => {
                let keys = loaded.keys.len();
                settings.policy.tolerance.check(path, diff, served.len(), keys)?;
                None
            }
            None => self.guard_by_last_good(settings, loaded)?,
        };
        self.guard_hashes(settings, path, &loaded.keys)?;
        Ok(since_last_good)
    }
}
