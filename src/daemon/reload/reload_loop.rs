//! The reload thread: waits for triggers and carries out one reload or check at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::audit;
use crate::reload::file_state::TIME_GRANULARITY;
use crate::reload::guard::Changes;
use crate::reload::last_good::{AppliedTakeaways, LastGoodStore, RecoverError, Recovered};
use crate::reload::load::{LoadOutcome, SettleWindow};
use crate::reload::memory_limits::MemoryLimits;
use crate::reload::trigger::{Cause, PendingTriggers, change_notifier};
use crate::reload::watch::SourceWatch;
use crate::reload::{
    AcceptedReload, CheckRequest, FileState, LoadedSource, Outcome, Purpose, Refusal, ReloadError, Reloader,
    SetAside, Settings, Trigger, compare,
};
use keyward_engine::snapshot::{CompareOptions, Diff, KeyTable, Snapshot};
use keyward_service::notify;
use keyward_state::time;

/// Attempts to read a file that changes while it is read. Each attempt first waits until it
/// settles.
const ATTEMPTS: usize = 3;

/// Nice value of the reload thread from the second load on. Against one busy thread of nice 0, it
/// still gets about 9 % of a processor (weights 110 and 1024): a reload that starves would keep a
/// revoked key in force.
const NICENESS: i32 = 10;

/// Where published keys come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum LoadedFrom {
    /// The configured file.
    Source {
        /// How its keys were compared with the current ones; `None` if an operator forces them.
        guarded: Option<CompareOptions>,
        /// The user that accepts a loss of balances, by forcing a reload.
        loss_accepted_by: Option<u32>,
    },
    /// The state directory.
    LastGood,
}

/// The state of the reload thread.
pub(super) struct ReloadLoop {
    pub(super) reloader: Reloader,
    /// The table generation of `current`; 0 if there is none.
    pub(super) table_generation: u64,
    /// The snapshot in force.
    pub(super) current: Option<Arc<Snapshot>>,
    /// The state of the file when it was last read, successfully or not. The file is not read again
    /// until its state differs.
    last_read: Option<FileState>,
    /// Whether a change waits in the queue of triggers: one is enough.
    change_pending: Arc<AtomicBool>,
    watch: SourceWatch,
    /// When [`maintain`](Self::maintain) last ran.
    maintained: time::Instant,
    /// Triggers that arrived during a reload and do not share its result.
    deferred: PendingTriggers,
    /// The previous snapshot, no longer in use. It is freed after the reload is acknowledged.
    pub(super) retired: Option<Arc<Snapshot>>,
    /// The last good keys, or why they cannot be used, if this reload has read them.
    pub(super) recovered: Option<Result<Recovered, Arc<RecoverError>>>,
    /// The good rows of a source that this reload refused, if its takeaways are to be applied.
    pub(super) refused_rows: Option<KeyTable>,
    /// The takeaways that have been applied since a source was accepted.
    pub(super) applied_takeaways: AppliedTakeaways,
    /// The rows of the current source that were set aside.
    pub(super) set_aside: Option<Arc<SetAside>>,
    /// Checks, which yield to reloads. There are at most as many as connections to the admin
    /// socket.
    checks: VecDeque<CheckRequest>,
}

impl Reloader {
    /// Loads the source, calls `ready`, and then reloads until all senders of `triggers` are gone.
    pub fn run(self, trigger: SyncSender<Trigger>, triggers: &Receiver<Trigger>, ready: impl FnOnce()) {
        let change_pending = Arc::new(AtomicBool::new(false));
        let notify = change_notifier(trigger, Arc::clone(&change_pending));
        let watch = SourceWatch::new(&self.settings.source.path, notify);
        let mut reload_loop = ReloadLoop {
            reloader: self,
            table_generation: 0,
            current: None,
            last_read: None,
            change_pending,
            watch,
            maintained: time::Instant::now(),
            deferred: PendingTriggers::default(),
            retired: None,
            recovered: None,
            refused_rows: None,
            applied_takeaways: AppliedTakeaways::default(),
            set_aside: None,
            checks: VecDeque::new(),
        };
        let cause = reload_loop.start_cause();
        reload_loop.reload(cause, triggers);
        ready();
        lower_priority();
        while let Some(pending) = reload_loop.next_triggers(triggers) {
            reload_loop.handle(pending, triggers);
            if let Some(request) = reload_loop.checks.pop_front() {
                reload_loop.check(request);
            }
        }
    }
}

/// Yields to the workers once there are requests to answer. Threads that this one starts inherit
/// it.
fn lower_priority() {
    // In Linux, process 0 means the calling thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        debug!(%error, "the priority of this thread cannot be lowered; reloads compete with the workers");
    }
}

/// Runs `attempt` again while the file changes during the reading, within the limits of `window`.
pub(super) fn retry_while_changing<T>(
    window: SettleWindow,
    mut attempt: impl FnMut() -> Result<T, ReloadError>,
) -> Result<T, ReloadError> {
    let mut result = attempt();
    for _ in 1..ATTEMPTS {
        if !matches!(result, Err(ReloadError::Changing { .. })) || window.is_over() {
            break;
        }
        result = attempt();
    }
    result
}

impl ReloadLoop {
    /// Waits for a trigger, at most until the next poll is due, and takes all triggers that are
    /// queued by then. A poll is due `source.poll` after the previous one: triggers do not postpone
    /// it. `None`: the daemon is shutting down.
    fn next_triggers(&mut self, triggers: &Receiver<Trigger>) -> Option<PendingTriggers> {
        let mut pending = std::mem::take(&mut self.deferred);
        // A waiting check is next, unless a reload has been requested meanwhile.
        let is_idle = self.checks.is_empty() && !pending.any;
        let timeout =
            if is_idle { self.until_poll().min(self.reloader.renewal.due_in()) } else { Duration::ZERO };
        match time::recv_timeout(triggers, timeout) {
            Ok(trigger) => pending.add(trigger),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        if self.until_poll().is_zero() {
            self.maintain();
        }
        self.renew_balances();
        pending.drain_queue(triggers);
        if pending.is_change_only() {
            // The load would wait for this long anyway. A command right after a rename then shares
            // the reload that the watch triggered.
            thread::sleep(self.reloader.settings.policy.settle.min(TIME_GRANULARITY));
            pending.drain_queue(triggers);
        }
        self.change_pending.store(false, Ordering::Release);
        Some(pending)
    }

    fn until_poll(&self) -> Duration {
        self.reloader.settings.policy.poll.saturating_sub(self.maintained.elapsed())
    }

    /// Renews the watch, and retries the writes of small files that have failed.
    fn maintain(&mut self) {
        self.watch.follow(&self.reloader.settings.source.path);
        self.reloader.revocations.generations().retry();
        self.reloader.last_good.iter().for_each(LastGoodStore::retry_takeaways);
        self.reloader.last_good.iter().for_each(LastGoodStore::retry_record);
        self.maintained = time::Instant::now();
    }

    fn renew_balances(&mut self) {
        let Reloader { renewal, limiter, allocator, clock, .. } = &mut self.reloader;
        renewal.renew_if_due(limiter, allocator, self.current.as_deref(), clock);
    }

    fn handle(&mut self, pending: PendingTriggers, triggers: &Receiver<Trigger>) {
        let PendingTriggers { signal, unforced, forced, checks, any: _ } = pending;
        self.checks.extend(checks);
        let has_changed = FileState::of(&self.reloader.settings.source.path) != self.last_read;
        // A change of the file alone does not cause the configuration to be read again.
        let reads_config = signal || !unforced.is_empty() || !forced.is_empty();
        let is_unforced_due = signal || !unforced.is_empty() || (has_changed && forced.is_empty());
        if is_unforced_due || !forced.is_empty() {
            notify::reloading();
        }
        if is_unforced_due {
            let trigger = match (unforced.is_empty(), signal) {
                (false, _) => audit::TriggerKind::Command,
                (true, true) => audit::TriggerKind::Signal,
                (true, false) => audit::TriggerKind::Change,
            };
            self.reload(Cause { trigger, waiters: unforced, reads_config, force: false }, triggers);
        }
        if !forced.is_empty() {
            let trigger = audit::TriggerKind::Command;
            self.reload(Cause { trigger, waiters: forced, reads_config, force: true }, triggers);
        }
    }

    /// A whole reload, up to the answer to its waiters.
    fn reload(&mut self, cause: Cause, triggers: &Receiver<Trigger>) {
        let start = Instant::now();
        let settings = if cause.reads_config {
            self.load_config(Purpose::Reload)
        } else {
            Ok(self.reloader.settings.clone())
        };
        let last_read = self.last_read;
        let (mut settings_differ, mut takeaways) = (false, None);
        let result = settings.and_then(|settings| {
            settings_differ = settings != self.reloader.settings;
            let is_other_file = settings.source.path != self.reloader.settings.source.path;
            let window = SettleWindow::new(settings.policy.settle);
            let result = retry_while_changing(window, || self.try_reload(&settings, window, &cause));
            let fell_back = result.as_ref().is_err_and(|error| self.serve_last_good(&settings, error));
            // A file other than the served one says nothing about the served keys.
            if !fell_back && is_other_file {
                self.refused_rows = None;
            }
            takeaways = self.apply_takeaways(&settings, cause.force);
            // The settings come into force with the keys that were read by them, or not at all.
            if result.is_ok() || fell_back {
                self.reloader.settings = settings;
            } else if is_other_file {
                // The file that was read is not the one that is still followed.
                self.last_read = last_read;
            }
            result
        });
        if result.as_ref().is_err_and(ReloadError::is_transient) {
            // The next poll tries again.
            self.last_read = None;
        }
        self.reloader.revocations.forget_changes();
        let outcome = Outcome { at: Instant::now(), took: start.elapsed(), result, takeaways };
        self.finish(cause, outcome, settings_differ, triggers);
    }

    /// Makes the outcome known, and frees the old snapshot: steps 10 to 12 of
    /// [a reload](crate::reload#the-order-of-a-reload).
    fn finish(
        &mut self,
        mut cause: Cause,
        outcome: Outcome,
        settings_differ: bool,
        triggers: &Receiver<Trigger>,
    ) {
        let outcome = Arc::new(outcome);
        if outcome.result.is_ok() {
            self.coalesce(&mut cause, triggers);
        }
        self.record(&cause, &outcome);
        if cause.reads_config {
            let error = outcome.result.as_ref().err();
            let refused = error.and_then(|error| error.config_error(settings_differ));
            self.reloader.history.lock().configuration_refused = refused;
        }
        self.report(&outcome);
        self.watch.follow(&self.reloader.settings.source.path);
        if cause.trigger != audit::TriggerKind::Start {
            notify::ready();
        }
        cause.waiters.answer(&outcome);
        (self.retired, self.recovered) = (None, None);
    }

    /// Adds requests that arrived during the reload to `cause`, if another reload would read the
    /// same file by the same settings. Both are observed after the requests arrived. All other
    /// triggers wait for the next reload.
    fn coalesce(&mut self, cause: &mut Cause, triggers: &Receiver<Trigger>) {
        self.deferred.drain_queue(triggers);
        // An unforced request must not be recorded as forced, nor be answered with success for what
        // the guard would refuse.
        if cause.force {
            return;
        }
        let state = FileState::of(&self.reloader.settings.source.path);
        if self.deferred.unforced.is_empty() || state.is_none() || state != self.last_read {
            return;
        }
        if self.load_config(Purpose::Check).is_ok_and(|settings| settings == self.reloader.settings) {
            cause.add_waiters(std::mem::take(&mut self.deferred.unforced));
        }
    }

    pub(super) fn load_config(&mut self, purpose: Purpose) -> Result<Settings, ReloadError> {
        (self.reloader.load_config)(purpose).map_err(ReloadError::Configuration)
    }

    fn try_reload(
        &mut self,
        settings: &Settings,
        window: SettleWindow,
        cause: &Cause,
    ) -> Result<AcceptedReload, ReloadError> {
        let source = &settings.source;
        if let Some(last_good) = &self.reloader.last_good {
            last_good.cancel_outdated_write(self.table_generation);
        }
        // Taken before the reading: every later change is noticed as one.
        self.last_read = FileState::of(&source.path);
        let seed = getrandom::u64().map_err(ReloadError::Random)?;
        self.refused_rows = None;
        let outcome = source.load_settled(seed, window)?;
        // The file that was read. The path may have led to another one a moment before.
        self.last_read = Some(outcome.state());
        let loaded = match outcome {
            LoadOutcome::Loaded(loaded) => loaded,
            LoadOutcome::Refused { error, rows, .. } => {
                self.refused_rows = Some(rows).filter(|_| settings.policy.apply_takeaways);
                return Err(error);
            }
        };
        let current = self.current.clone();
        let options = self.compare_options(settings);
        // The comparison reads the marks of acknowledged revocations.
        self.reloader.revocations.mark_passed();
        compare::require_memory(&MemoryLimits::new(), &loaded.keys)
            .map_err(|limit| ReloadError::Memory { path: source.path.to_path_buf(), limit })?;
        let (diff, row_map) = compare::compare(&loaded.keys, current.as_deref(), options);
        let since_last_good = if !cause.force {
            match self.guard(settings, &loaded, &diff) {
                Ok(since_last_good) => since_last_good,
                Err(error) => {
                    // If bad rows were not set aside, they would have refused the source, and its
                    // takeaways would apply as well.
                    let apply = settings.policy.apply_takeaways && loaded.set_aside.is_some();
                    self.refused_rows = Some(loaded.keys).filter(|_| apply);
                    return Err(error);
                }
            }
        } else {
            // For the report: at startup there is nothing else to compare with.
            let diff = match current {
                Some(_) => None,
                None => self.diff_from_last_good(settings, &loaded.keys),
            };
            self.warn_of_lifted_revocations(settings, &loaded.keys);
            diff
        };
        let LoadedSource { mut keys, state, file, policies, written_at, set_aside } = loaded;
        // Without a comparison it is not known.
        let takes_away =
            since_last_good.as_ref().or(current.as_ref().map(|_| &diff)).is_none_or(Diff::may_take_away);
        let diff = since_last_good.unwrap_or(diff);
        if set_aside.is_some() {
            if current.is_none() {
                self.recover_once(settings);
            }
            match (&current, &self.recovered) {
                (Some(current), _) => keys.inherit_prior_state(current.table(), options),
                (None, Some(Ok(recovered))) => {
                    let options = recovered.compare_options(&settings.global_policy, options.now);
                    keys.inherit_prior_state(&recovered.keys, options);
                }
                (None, Some(Err(_)) | None) => {}
            }
        }
        let loaded_from = LoadedFrom::Source {
            guarded: Some(options).filter(|_| !cause.force),
            loss_accepted_by: cause.forced_by(),
        };
        let accepted = self.put_in_force(settings, keys, written_at, diff, &row_map, loaded_from)?;
        self.store_last_good(settings, state, file, policies, takes_away);
        self.clear_takeaways();
        self.set_aside = set_aside.map(Arc::new);
        Ok(AcceptedReload { set_aside: self.set_aside.clone(), ..accepted })
    }

    /// How a source that is read by `settings` is compared with the current keys.
    pub(super) fn compare_options(&self, settings: &Settings) -> CompareOptions {
        let now = self.reloader.clock.now().unix;
        let current = self.current.as_ref().map(|snapshot| snapshot.global_policy());
        CompareOptions { now, by_key_id: settings.global_policy.may_rehash(current) }
    }

    /// Names keys that work again because an operator has forced a source.
    fn warn_of_lifted_revocations(&self, settings: &Settings, new: &KeyTable) {
        let options = self.compare_options(settings);
        let lifted = match (&self.current, &self.recovered) {
            (Some(current), _) => self.reloader.revocations.lifted_by(new, current.table(), options),
            (None, Some(Ok(old))) => {
                let options = old.compare_options(&settings.global_policy, options.now);
                self.reloader.revocations.lifted_by(new, &old.keys, options)
            }
            (None, Some(Err(_)) | None) => return,
        };
        if lifted.count > 0 {
            warn!(
                "an operator forces a source that lifts revocations: {}",
                Refusal::LiftsRevocations(lifted)
            );
        }
    }

    /// Checks whether the loaded keys may replace the current ones, or else the last good ones.
    /// Returns the difference from the last good keys, if they were compared.
    pub(super) fn guard(
        &mut self,
        settings: &Settings,
        loaded: &LoadedSource,
        diff: &Diff,
    ) -> Result<Option<Diff>, ReloadError> {
        let path = &settings.source.path;
        let since_last_good = match &self.current {
            Some(current) => {
                let (new, options) = (&loaded.keys, self.compare_options(settings));
                let lifted = self.reloader.revocations.lifted_by(new, current.table(), options);
                settings.policy.tolerance.check(path, &Changes { diff, lifted }, current.len(), new.len())?;
                None
            }
            None => self.guard_by_last_good(settings, loaded)?,
        };
        self.guard_peppers(settings, path, &loaded.keys)?;
        Ok(since_last_good)
    }
}
