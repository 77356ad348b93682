//! Reloading: notice, wait until the file holds still, read, weigh, publish, wait, and only then free the old snapshot.
//!
//! All of it happens on one thread, one reload at a time, in the order of [`Running::reload`]; no request ever waits for
//! it. Whatever fails before the swap leaves everything as it was. Requests to reload that arrive while one is running
//! are answered together, by the next one, which begins after all of them were made.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::audit::{self, Audit, Event, Peer};
use crate::clock::Clock;
use crate::limiter::{Ledger, Limiter};
use crate::publish::Publisher;
use crate::revocation::Revocations;
use crate::rules::Rules;
use crate::snapshot::{Diff, Keys, Snapshot, Stamp};
use crate::systemd;

mod check;
mod failure;
mod fan;
mod history;
mod load;
mod read;
mod watch;

pub use check::{Asked, Judged, Preview};
pub use failure::Failure;
pub use history::{Accepted, History, Outcome};
pub use load::{Built, FileState, Loaded, See, SourceFile};
use watch::Watch;

/// Triggers that may wait; they are taken together, so that more say nothing new.
const WAITING: usize = 1024;

/// How often a file is read that changes meanwhile, before that is the outcome. Each time it is waited for first.
const ATTEMPTS: usize = 3;

/// What makes a reload happen.
#[derive(Debug)]
pub enum Trigger {
    /// Something in the source's directory changed: compare.
    Changed,
    /// SIGHUP.
    Signal,
    /// `keyward reload`.
    Asked {
        /// Publish even what the guard refuses.
        force: bool,
        /// Who asks.
        peer: Peer,
        /// Where the outcome goes.
        reply: oneshot::Sender<Arc<Outcome>>,
    },
    /// `keyward check --daemon`: nothing is published.
    Check(Asked),
}

/// The reload thread's side: everything that a reload needs.
pub struct Reloader {
    /// What the configuration says of them.
    pub settings: Settings,
    /// Reads the configuration again; called for reloads that somebody asks for.
    pub configure: Configure,
    /// Where snapshots go.
    pub publisher: Publisher,
    /// What is revoked in every one of them.
    pub revocations: Arc<Revocations>,
    /// The buckets.
    pub limiter: Arc<Limiter>,
    /// Which is whose.
    pub ledger: Arc<Mutex<Ledger>>,
    /// For the buckets' balances.
    pub clock: Clock,
    /// Where outcomes go.
    pub history: History,
    /// And where they are kept.
    pub audit: Audit,
    /// To wait for the workers, which run on tokio.
    pub runtime: tokio::runtime::Handle,
}

/// What the configuration says of reloads.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where keys come from.
    pub source: SourceFile,
    /// When, and how far.
    pub policy: Policy,
    /// What holds for every key.
    pub rules: Arc<Rules>,
}

/// Yields the settings as they are now, or what is wrong with them, for people.
pub type Configure = Box<dyn FnMut(Purpose) -> Result<Settings, String> + Send>;

/// What the configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be taken, if all goes well.
    Reload,
    /// To tell what would come of that.
    Check,
}

/// When a source is read, and what of it is believed.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// How often the file is compared, whatever the watch says.
    pub poll: Duration,
    /// How long a file must not have been written to.
    pub settle: Duration,
    /// The largest part of the keys that may go, from 0 to 1.
    pub max_shrink: f64,
}

impl Policy {
    /// A set that is empty, or has lost more than it may at once, is more likely a broken export than a decision.
    ///
    /// # Errors
    /// When `new` keys, read from `path`, must not take the place of `old` ones.
    pub fn guard(&self, path: &Path, old: usize, new: usize) -> Result<(), Failure> {
        let path = || path.to_path_buf();
        if new == 0 {
            return Err(Failure::Empty { path: path() });
        }
        let max_shrink = self.max_shrink;
        if (old.saturating_sub(new)) as f64 > old as f64 * max_shrink {
            return Err(Failure::Shrunk { path: path(), old, new, max_shrink });
        }
        Ok(())
    }
}

/// A queue of triggers: bounded, since what waits is taken together.
pub fn triggers() -> (SyncSender<Trigger>, Receiver<Trigger>) {
    sync_channel(WAITING)
}

/// What the thread remembers between reloads.
struct Running {
    reloader: Reloader,
    generation: u64,
    current: Option<Arc<Snapshot>>,
    /// The file as it was when it was last read, successfully or not: it is not read again until it differs.
    seen: Option<FileState>,
    /// A change is waiting among the triggers: one is enough.
    noticed: Arc<AtomicBool>,
    watch: Watch,
    /// Checks that wait until no reload does. As many as there can be connections to the admin socket.
    checks: VecDeque<Asked>,
}

impl Reloader {
    /// Loads the source, calls `ready`, and then reloads until all senders of `triggers` are gone.
    pub fn run(self, trigger: SyncSender<Trigger>, triggers: &Receiver<Trigger>, ready: impl FnOnce()) {
        let noticed = Arc::new(AtomicBool::new(false));
        let watch = Watch::new(&self.settings.source.path, changes(trigger, Arc::clone(&noticed)));
        let mut running = Running {
            reloader: self,
            generation: 0,
            current: None,
            seen: None,
            noticed,
            watch,
            checks: VecDeque::new(),
        };
        let start = audit::Trigger::Start;
        running.reload(&Cause { trigger: start, peers: Vec::new(), configure: false, force: false });
        ready();
        lower_priority();
        while let Some(batch) = running.next(triggers) {
            running.serve(batch);
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

/// Reports a change, unless one is waiting already: a directory in which much happens must not crowd out who asks.
fn changes(trigger: SyncSender<Trigger>, noticed: Arc<AtomicBool>) -> impl Fn() + Send + 'static {
    move || {
        if !noticed.swap(true, Ordering::AcqRel) {
            // A queue that is full is about to be taken, and the file to be compared.
            let _full = trigger.try_send(Trigger::Changed);
        }
    }
}

/// Triggers that were waiting together.
#[derive(Default)]
struct Batch {
    signal: bool,
    asked: Askers,
    forced: Askers,
    checks: Vec<Asked>,
}

/// Who asked, and where the outcome goes.
#[derive(Default)]
struct Askers {
    peers: Vec<Peer>,
    replies: Vec<oneshot::Sender<Arc<Outcome>>>,
}

impl Askers {
    fn add(&mut self, peer: Peer, reply: oneshot::Sender<Arc<Outcome>>) {
        self.peers.push(peer);
        self.replies.push(reply);
    }

    fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Whoever asked may have gone; the reload was made all the same.
    fn answer(self, outcome: &Arc<Outcome>) {
        self.replies.into_iter().for_each(|reply| drop(reply.send(Arc::clone(outcome))));
    }
}

/// Why a reload is made.
struct Cause {
    trigger: audit::Trigger,
    peers: Vec<Peer>,
    /// Whether the configuration is read again too.
    configure: bool,
    force: bool,
}

impl Batch {
    fn add(&mut self, trigger: Trigger) {
        match trigger {
            Trigger::Changed => {}
            Trigger::Signal => self.signal = true,
            Trigger::Asked { force: false, peer, reply } => self.asked.add(peer, reply),
            Trigger::Asked { force: true, peer, reply } => self.forced.add(peer, reply),
            Trigger::Check(asked) => self.checks.push(asked),
        }
    }
}

impl Running {
    /// Waits for a trigger, at most until the next comparison is due, then until the file holds still, and takes all
    /// triggers that are there by then: who renames a file and asks for a reload finds it not begun by the watch.
    /// `None`: the daemon is going away.
    fn next(&self, triggers: &Receiver<Trigger>) -> Option<Batch> {
        let mut batch = Batch::default();
        // A check that waits is next, unless a reload has been asked for meanwhile.
        let patience = match self.checks.is_empty() {
            true => self.reloader.settings.policy.poll,
            false => Duration::ZERO,
        };
        match triggers.recv_timeout(patience) {
            Ok(trigger) => batch.add(trigger),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        let Settings { source, policy, .. } = &self.reloader.settings;
        source.settle(policy.settle);
        triggers.try_iter().for_each(|trigger| batch.add(trigger));
        self.noticed.store(false, Ordering::Release);
        Some(batch)
    }

    fn serve(&mut self, batch: Batch) {
        let Batch { signal, mut asked, mut forced, checks } = batch;
        self.checks.extend(checks);
        let has_changed = FileState::of(&self.reloader.settings.source.path) != self.seen;
        // The file alone has changed: the configuration is read again only where somebody says so.
        let configure = signal || !asked.is_empty() || !forced.is_empty();
        let plain = signal || !asked.is_empty() || (has_changed && forced.is_empty());
        if plain || !forced.is_empty() {
            systemd::reloading();
        }
        if plain {
            let trigger = match (asked.is_empty(), signal) {
                (false, _) => audit::Trigger::Command,
                (true, true) => audit::Trigger::Signal,
                (true, false) => audit::Trigger::Change,
            };
            let peers = std::mem::take(&mut asked.peers);
            let outcome = self.reload(&Cause { trigger, peers, configure, force: false });
            systemd::ready();
            asked.answer(&outcome);
        }
        if !forced.is_empty() {
            let peers = std::mem::take(&mut forced.peers);
            let outcome =
                self.reload(&Cause { trigger: audit::Trigger::Command, peers, configure, force: true });
            systemd::ready();
            forced.answer(&outcome);
        }
    }

    fn reload(&mut self, cause: &Cause) -> Arc<Outcome> {
        let start = Instant::now();
        let settings = if cause.configure {
            self.configure(Purpose::Reload)
        } else {
            Ok(self.reloader.settings.clone())
        };
        let seen = self.seen;
        let result = settings.and_then(|settings| {
            let mut result = self.try_reload(&settings, cause.force);
            for _ in 1..ATTEMPTS {
                if !matches!(result, Err(Failure::Changing { .. })) {
                    break;
                }
                result = self.try_reload(&settings, cause.force);
            }
            // The configuration is taken with the keys that were read by it, or not at all.
            if result.is_ok() {
                self.reloader.settings = settings;
            } else if settings.source.path != self.reloader.settings.source.path {
                // What was looked at is another file than the one that is served on.
                self.seen = seen;
            }
            result
        });
        if result.as_ref().is_err_and(Failure::is_passing) {
            // As if it had not been looked at: the next comparison tries again.
            self.seen = None;
        }
        let outcome = Arc::new(Outcome { at: Instant::now(), took: start.elapsed(), result });
        self.record(cause, &outcome);
        if cause.configure {
            let refused = outcome.result.as_ref().err().map(ToString::to_string);
            self.reloader.history.lock().configuration_refused = refused;
        }
        self.report(&outcome);
        self.watch.follow(&self.reloader.settings.source.path);
        outcome
    }

    fn configure(&mut self, purpose: Purpose) -> Result<Settings, Failure> {
        (self.reloader.configure)(purpose).map_err(Failure::Configuration)
    }

    fn try_reload(&mut self, settings: &Settings, force: bool) -> Result<Accepted, Failure> {
        let source = &settings.source;
        source.settle(settings.policy.settle);
        // Before the reading: what changes from here on is seen as a change.
        self.seen = FileState::of(&source.path);
        let seed = getrandom::u64().map_err(Failure::Random)?;
        let loaded = source.load(seed)?;
        if !force {
            let served = self.current.as_ref().map_or(0, |snapshot| snapshot.len());
            settings.policy.guard(&source.path, served, loaded.keys.len())?;
            self.guard_hashes(settings, &source.path, &loaded.keys)?;
        }
        self.publish(settings, loaded)
    }

    /// With another pepper the same hashes open nothing: an export that still lists most of them was written for the old one.
    fn guard_hashes(&self, settings: &Settings, path: &Path, new: &Keys) -> Result<(), Failure> {
        let Some(old) = self.current.as_deref().filter(|old| !settings.rules.keep_hashes_of(old.rules()))
        else {
            return Ok(());
        };
        let kept = old.keys().filter(|key| new.contains(key.digest())).count();
        if kept as f64 > old.len() as f64 * settings.policy.max_shrink {
            return Err(Failure::Stranded { path: path.to_path_buf(), old: old.len(), kept });
        }
        Ok(())
    }

    /// Claims buckets, swaps, waits until every worker has left the old snapshot, settles the buckets, and frees it.
    fn publish(
        &mut self,
        settings: &Settings,
        Loaded { keys, written_at, .. }: Loaded,
    ) -> Result<Accepted, Failure> {
        let Reloader { limiter, ledger, publisher, revocations, audit, runtime, clock, .. } =
            &mut self.reloader;
        let old = self.current.as_deref();
        let diff = keys.diff(old);
        let generation = self.generation + 1;
        // A file from the future is not younger than one that was written now.
        let source_time = written_at.min(clock.now().unix);
        // Held until they are settled: whoever saves balances sees none that is on its way from one slot to another.
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut claim = ledger.claim(limiter);
        let snapshot = keys
            .publishable(
                &mut claim,
                old,
                Stamp { generation, source_time, rules: Arc::clone(&settings.rules) },
            )
            .map_err(|error| Failure::TooManyBuckets { path: settings.source.path.to_path_buf(), error })?;
        let mut accepted = Accepted { generation, keys: snapshot.len(), diff, revocations_agreed: 0 };

        let settlement = claim.commit();
        let snapshot = Arc::new(snapshot);
        let epoch = revocations.publish(publisher, Arc::clone(&snapshot)).epoch;
        self.generation = generation;
        let old = self.current.replace(Arc::clone(&snapshot));
        runtime.block_on(publisher.epochs().passed(epoch));
        accepted.revocations_agreed = revocations.settle(&snapshot, audit);

        let buckets = old.iter().flat_map(|old| old.buckets());
        ledger.settle(limiter, settlement, buckets, clock.now().ticks);
        Ok(accepted)
    }

    /// Whether the log has said so already: a failure that passes by itself is tried again at every poll.
    fn is_old_news(&self, failure: &Failure) -> bool {
        let before = self.reloader.history.last();
        let before = before.as_ref().and_then(|outcome| outcome.result.as_ref().err());
        failure.is_passing() && before.is_some_and(|before| before.to_string() == failure.to_string())
    }

    /// Before anyone is told: an outcome that is acknowledged is in the audit trail.
    fn record(&self, cause: &Cause, outcome: &Outcome) {
        let refused = match &outcome.result {
            Ok(_) => None,
            Err(failure) if self.is_old_news(failure) && cause.peers.is_empty() => return,
            Err(failure) => Some(failure),
        };
        let changes = outcome.result.as_ref().ok().map(|Accepted { diff, .. }| audit::Changes {
            added: diff.added,
            removed: diff.removed,
            changed: diff.changed,
            revoked: diff.revoked,
        });
        self.reloader.audit.record(&Event::Reload(audit::Reload {
            trigger: cause.trigger,
            peers: &cause.peers,
            force: cause.force,
            accepted: refused.is_none(),
            keys: self.current.as_ref().map_or(0, |snapshot| snapshot.len()),
            changes,
            reason: refused.map(Failure::kind),
            place: refused.and_then(Failure::place),
            findings: refused.and_then(Failure::findings),
            took_ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        }));
    }

    fn report(&self, outcome: &Arc<Outcome>) {
        let took_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        match &outcome.result {
            Ok(Accepted {
                generation,
                keys,
                diff: Diff { added, removed, changed, revoked, .. },
                revocations_agreed,
            }) => {
                info!(
                    generation,
                    keys, added, removed, changed, revoked, revocations_agreed, took_ms, "source loaded"
                );
                systemd::status(&format!("serving {keys} keys, generation {generation}"));
            }
            Err(failure) if self.is_old_news(failure) => debug!(error = %failure, "source refused again"),
            Err(failure) => {
                let serving = self.generation;
                error!(error = %failure, serving_generation = serving, "source refused");
                systemd::status(&format!("source refused, serving generation {serving}: {failure}"));
            }
        }
        if self.current.is_none() && self.reloader.history.last().is_none() {
            warn!("no keys are loaded: every request is answered NOT_READY");
        }
        let buckets = self.reloader.ledger.lock().unwrap_or_else(PoisonError::into_inner).in_use();
        let mut last = self.reloader.history.lock();
        last.buckets = buckets;
        last.source = self.reloader.settings.source.path.clone();
        if outcome.result.is_ok() {
            last.accepted = Some(Arc::clone(outcome));
        }
        last.outcome = Some(Arc::clone(outcome));
    }
}
