//! Wiring: sockets, workers, the reload thread, the admin socket and signals, from the start to the drain.
//!
//! ```text
//! main thread     control runtime: accept, admin, signals, drain
//! (blocking)      revocations, as long as they wait for the disk
//! revocations     writes the list of revocations
//! worker-0..N     a runtime each: connections, for good
//! reload          reads, builds, publishes, waits, frees
//! keep            saves balances, at intervals and at the end
//! keys-writer     keeps the keys in force for the next start
//! watch           tells `reload` that a file changed
//! ```

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;
use tracing::{error, info, warn};

use crate::admin;
use crate::audit::{Audit, Event};
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::connection::{Counted, Counters, Shared, Stopping, Timeouts};
use crate::keep::{Balances, Keeper};
use crate::limiter::{Ledger, Limiter};
use crate::memory;
use crate::publish::{Epochs, Publisher, Served};
use crate::reload::{Configure, History, LastGood, Purpose, Reloader, Settings, Trigger, triggers};
use crate::revocation::{self, Revocations};
use crate::server::accept::{Acceptor, Refusals};
use crate::server::listener::{Listener, Wanted};
use crate::server::operator::Operator;
use crate::server::worker::Worker;
use crate::state::{self, Generations, StateDir, Unwritten, WriteHealth};
use crate::systemd;
use crate::usage::{Log, Usage};

mod accept;
mod listener;
mod operator;
mod preview;
mod worker;

pub use listener::ListenError;
pub use preview::diff;

/// Descriptors that are not connections: sockets, the admin socket's peers, epoll, inotify, the source, logs, and room to spare.
const OWN_DESCRIPTORS: u64 = 96;

/// A worker's: epoll, what wakes it, and its two timers.
const DESCRIPTORS_OF_WORKER: u64 = 4;

/// How long a reload or a revocation waits for peers to read answers that were made before it, before their connections
/// are ended. An acknowledgement must not depend on a peer that has stopped.
const OVERDUE: Duration = Duration::from_secs(1);

/// How often the end of the workers is looked for while draining.
const DRAIN_TICK: Duration = Duration::from_millis(5);

/// Names of the sockets in systemd's units (`FileDescriptorName=`).
const VERIFY_SOCKET: &str = "verify";
const ADMIN_SOCKET: &str = "admin";

/// Who may open the admin socket: only the daemon's own user (and root), as long as nobody else may use it. Where
/// `admin_uids` names others, everyone may open it, and the peer's credentials decide.
const ADMIN_MODE: u32 = 0o600;
const ADMIN_MODE_FOR_OTHERS: u32 = 0o666;

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration names what cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] state::OpenError),
    /// A file in it cannot be used.
    #[error(transparent)]
    File(#[from] state::FileError),
    /// What has been revoked is not known.
    #[error(transparent)]
    Revocations(#[from] revocation::OpenError),
    /// The system says no.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System { what, error }
}

/// Runs the daemon until SIGTERM or SIGINT, and drains it.
///
/// # Errors
/// When it cannot start. A source that cannot be loaded is no such reason: the daemon answers NOT_READY and goes on
/// looking.
pub fn run(config: &Config, configuration: Configuration) -> Result<(), StartError> {
    // A core dump would hold the keys that are being verified (promise 7).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| system("forbid core dumps")(error.into()))?;
    // Before anything large is allocated.
    memory::set_huge_pages(config.server.huge_pages);
    memory::keep_reserve();
    let max_connections = connection_limit(config.server.max_connections, config.server.workers);

    let mut passed = systemd::take_listeners().map_err(system("take systemd's sockets"))?;
    let verify = Wanted {
        name: VERIFY_SOCKET,
        path: config.server.socket.as_path(),
        mode: config.server.socket_mode.bits(),
        group: config.server.socket_group.as_ref(),
    };
    let admin_mode = if config.server.admin_uids.is_empty() { ADMIN_MODE } else { ADMIN_MODE_FOR_OTHERS };
    let admin = Wanted {
        name: ADMIN_SOCKET,
        path: config.server.admin_socket.as_path(),
        mode: admin_mode,
        group: None,
    };
    let verify = Listener::open(&verify, &mut passed)?;
    let admin = Listener::open(&admin, &mut passed)?;
    for unknown in passed {
        warn!(
            name = unknown.name,
            "systemd passed a socket that is not called verify or admin; it is closed"
        );
    }

    // After the sockets: who connects while another daemon is still leaving the directory waits to be answered.
    let health = WriteHealth::default();
    health.observe(|unwritten| systemd::unwritten(&names(unwritten)));
    let (path, is_chosen) = (&config.server.state_dir, config.server.state_dir_is_chosen);
    let state = StateDir::open_reporting(path, is_chosen, health.clone())?.map(Arc::new);
    // Before any other file of the directory: where one of those is, so is the list.
    let revocations = revocation::load(state.clone())?;
    if let Some(directory) =
        state.as_ref().filter(|state| state.is_new() || state.first_state_file().is_none())
    {
        warn!(
            directory = %directory.path("").display(),
            "the state directory is new: if there was one before, its revocations, balances and audit trail are lost"
        );
    }
    let audit = match &state {
        Some(directory) => Audit::open(directory, config.audit)?,
        None => Audit::off(),
    };
    let uid = rustix::process::geteuid().as_raw();
    audit.record(&Event::Start { version: env!("CARGO_PKG_VERSION"), pid: std::process::id(), uid });
    audit.record(&configured(config.file.as_deref(), None));
    if let Some((state::Accepted { by_uid, at }, left)) = revocations.accepted_loss() {
        audit.record(&Event::LostRevocationsAccepted { by_uid, at: at.to_string(), revocations: left });
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(system("start the control runtime"))?;
    let (usage, logs) = Usage::start(state.as_deref(), config.usage, config.server.workers)?;
    let last_good = LastGood::open(state.as_ref(), config.keep_snapshot)
        .map_err(system("start the thread that keeps the keys in force"))?;
    let accounts =
        Accounts { audit: audit.clone(), usage, logs, last_good: last_good.clone(), health, revocations };
    let daemon = Daemon::start(config, configuration, max_connections, state, runtime.handle(), accounts)?;
    let drained = LocalSet::new().block_on(&runtime, daemon.serve(config, &verify, &admin));
    // Unlinked before the exit, so that who connects from now on is refused instead of left waiting.
    drop((verify, admin));
    last_good.iter().for_each(LastGood::stop);
    audit.stop();
    drained
}

/// What is written down while the daemon runs.
struct Accounts {
    audit: Audit,
    usage: Usage,
    /// One for each worker.
    logs: Vec<Log>,
    last_good: Option<LastGood>,
    /// Which files are not being written.
    health: WriteHealth,
    revocations: revocation::Loaded,
}

fn names(unwritten: &[Unwritten]) -> String {
    unwritten.iter().map(|file| &*file.file).collect::<Vec<_>>().join(", ")
}

/// Reads the configuration again.
pub type Configuration = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

fn settings(config: &Config) -> Result<Settings, ConfigError> {
    Ok(Settings {
        source: config.file(),
        policy: config.policy(),
        rules: Arc::new(config.rules()?),
        keep_revocations: config.keep_revocations,
    })
}

/// What the audit trail says of a configuration: not the error's text, which may repeat a setting.
fn configured(file: Option<&Path>, error: Option<&ConfigError>) -> Event<'static> {
    let position = error.and_then(ConfigError::position);
    let count = |number: usize| u64::try_from(number).ok();
    Event::Configuration {
        file: file.map(|file| file.display().to_string()),
        valid: error.is_none(),
        line: position.and_then(|position| count(position.line)),
        column: position.and_then(|position| count(position.column)),
    }
}

/// For reloads: the settings that they can change, and a word about the others.
fn again(started_with: Config, configuration: Configuration, audit: Audit) -> Configure {
    Box::new(move |purpose| {
        let read = configuration().and_then(|config| Ok((settings(&config)?, config)));
        if purpose == Purpose::Reload {
            audit.record(&configured(started_with.file.as_deref(), read.as_ref().err()));
        }
        let (settings, config) = read.map_err(|error| error.to_string())?;
        let fixed = |config: &Config| {
            let state = (config.save_interval, config.keep_snapshot);
            (config.server.clone(), config.log, state, config.usage, config.audit)
        };
        if fixed(&config) != fixed(&started_with) {
            warn!(
                "[server], [state], [usage], [audit] or [log] has changed in the configuration; that takes effect at the \
                 next start"
            );
        }
        Ok(settings)
    })
}

/// The threads, and what the control runtime needs of them.
struct Daemon {
    workers: Arc<[Worker]>,
    draining: watch::Sender<bool>,
    closed: Arc<AtomicBool>,
    trigger: SyncSender<Trigger>,
    history: History,
    served: Served,
    audit: Audit,
    usage: Usage,
    health: WriteHealth,
    keeper: Keeper,
    last_good: Option<LastGood>,
    clock: Clock,
    epochs: Epochs,
    revocations: Arc<Revocations>,
    limit: usize,
    loaded: oneshot::Receiver<()>,
}

impl Daemon {
    fn start(
        config: &Config,
        configuration: Configuration,
        limit: usize,
        state: Option<Arc<StateDir>>,
        runtime: &tokio::runtime::Handle,
        accounts: Accounts,
    ) -> Result<Self, StartError> {
        let Accounts { audit, usage, logs, last_good, health, revocations } = accounts;
        let (publisher, subscriptions) = Publisher::new(config.server.workers);
        let epochs = publisher.epochs();
        // Before anything is served: what is on the list is in force from the first answer on.
        let revocations = Arc::new(Revocations::start(revocations, &publisher)?);
        let (draining, drain) = watch::channel(false);
        let closed = Arc::new(AtomicBool::new(false));
        let stopping = Stopping { draining: drain, closed: Arc::clone(&closed) };
        let limiter = Arc::new(Limiter::new());
        let clock = Clock::new();
        let settings = settings(config)?;
        let rules = Arc::clone(&settings.rules);
        let timeouts = Timeouts {
            idle: config.server.idle_timeout,
            overdue: OVERDUE,
            busy_poll: config.server.busy_poll,
        };

        let start = |(number, (subscription, log))| {
            let counters = Arc::new(Counters::default());
            let (limiter, rules, clock) = (Arc::clone(&limiter), Arc::clone(&rules), clock.clone());
            let (own_counters, stopping) = (Arc::clone(&counters), stopping.clone());
            Worker::start(number, counters, move || {
                let counted = Counted { counters: own_counters, usage: log };
                Shared::new(subscription, limiter, rules, clock, counted, timeouts, stopping)
            })
        };
        let workers: io::Result<Vec<Worker>> =
            subscriptions.into_iter().zip(logs).enumerate().map(start).collect();
        let workers = workers.map_err(system("start a worker"))?.into();

        let history = History::new(&settings.source.path);
        let served = publisher.served();
        let ledger = Arc::new(Mutex::new(Ledger::new()));
        let balances = Balances {
            limiter: Arc::clone(&limiter),
            ledger: Arc::clone(&ledger),
            served: served.clone(),
            clock: clock.clone(),
        };
        let used = last_good.as_ref().map_or(0, LastGood::generation);
        let generations = Generations::open(state.clone(), used);
        let keeper = Keeper::start(state, config.save_interval, balances)
            .map_err(system("start the thread that saves balances"))?;
        let reloader = Reloader {
            settings,
            configure: again(config.clone(), configuration, audit.clone()),
            publisher,
            revocations: Arc::clone(&revocations),
            limiter,
            ledger,
            clock: clock.clone(),
            history: history.clone(),
            audit: audit.clone(),
            last_good: last_good.clone(),
            generations,
            runtime: runtime.clone(),
        };
        let (trigger, triggers) = triggers();
        let (say_loaded, loaded) = oneshot::channel();
        let watch = trigger.clone();
        std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || reloader.run(watch, &triggers, || _ = say_loaded.send(())))
            .map_err(system("start the reload thread"))?;
        Ok(Self {
            workers,
            draining,
            closed,
            trigger,
            history,
            served,
            epochs,
            revocations,
            audit,
            usage,
            health,
            keeper,
            last_good,
            clock,
            limit,
            loaded,
        })
    }

    /// Serves until it is told to stop, and drains.
    async fn serve(self, config: &Config, verify: &Listener, admin: &Listener) -> Result<(), StartError> {
        let mut stop = signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(system("catch SIGHUP"))?;

        let refusals = Arc::new(Refusals::default());
        let acceptor = Rc::new(Acceptor {
            workers: Arc::clone(&self.workers),
            clients: config.server.clients.clone(),
            max_connections: self.limit,
            refusals: Arc::clone(&refusals),
            audit: self.audit.clone(),
            logged: Cell::new(None),
        });
        let listening = verify.for_tokio().map_err(system("listen"))?;
        let adopted = verify.is_adopted();
        let loaded = self.loaded;
        let accepts = Rc::clone(&acceptor);
        let accepting = tokio::task::spawn_local(async move {
            let loaded = async {
                let _reload_thread_is_there = loaded.await;
                systemd::ready();
            };
            if adopted {
                // Who asks on systemd's socket has been waiting for the daemon to start, perhaps after a crash, and
                // waits for the keys too rather than be denied.
                loaded.await;
                accepts.run(listening).await;
            } else {
                // Requests are answered from the first moment, NOT_READY if need be; systemd's dependents wait for the
                // keys.
                tokio::join!(loaded, accepts.run(listening));
            }
        });
        let (epochs, revocations) = (self.epochs.clone(), Arc::clone(&self.revocations));
        let operator = Operator {
            workers: Arc::clone(&self.workers),
            refusals,
            served: self.served,
            epochs: self.epochs,
            revocations: self.revocations,
            history: self.history,
            last_good: self.last_good,
            trigger: self.trigger.clone(),
            audit: self.audit,
            usage: self.usage.clone(),
            health: self.health,
            clock: self.clock,
            started: Instant::now(),
        };
        let operating = admin.for_tokio().map_err(system("listen on the admin socket"))?;
        let admins = config.server.admin_uids.clone();
        let operating = tokio::task::spawn_local(admin::serve(operating, admins, Rc::new(operator)));

        info!(
            socket = %config.server.socket.as_path().display(),
            adopted = verify.is_adopted(),
            workers = self.workers.len(),
            max_connections = self.limit,
            "listening"
        );
        loop {
            tokio::select! {
                _ = stop.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => {
                    // A queue that is full holds a reload that is still to begin.
                    let _queued = self.trigger.try_send(Trigger::Signal);
                }
            }
        }

        info!("draining");
        systemd::stopping();
        accepting.abort();
        let _aborted = accepting.await;
        // Who waits at systemd's socket is served by the next daemon; at this one's own there will be none.
        verify.waiting().for_each(|stream| acceptor.admit(stream));
        self.draining.send_replace(true);
        drain(&self.workers, config.server.drain_timeout).await;
        // What a connection that is still there would be charged now would be in no save: nothing more is answered.
        self.closed.store(true, Ordering::Release);
        let closed = epochs.passed(epochs.advance());
        if tokio::time::timeout(2 * OVERDUE, closed).await.is_err() {
            warn!("a worker does not end; what it still charges is not saved");
        }
        tokio::join!(self.usage.stop(), self.keeper.stop());
        operating.abort();
        match revocations.not_durable() {
            0 => {}
            entries => {
                error!(entries, "revocations were not durable at the end: a restart does not know them")
            }
        }
        info!("stopped");
        Ok(())
    }
}

/// Waits until the workers have no connections, at most for `patience`.
async fn drain(workers: &[Worker], patience: Duration) {
    let deadline = Instant::now() + patience;
    while workers.iter().any(|worker| worker.open() > 0) {
        if Instant::now() >= deadline {
            let open: usize = workers.iter().map(Worker::open).sum();
            return warn!(open, "drain_timeout has passed; what is left is closed unanswered");
        }
        tokio::time::sleep(DRAIN_TICK).await;
    }
}

/// Raises the limit of open files as far as it goes, and returns how many connections fit under it.
fn connection_limit(wanted: usize, workers: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let own = OWN_DESCRIPTORS + DESCRIPTORS_OF_WORKER * workers as u64;
    let room = current.map_or(u64::MAX, |files| files.saturating_sub(own));
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    if room < wanted {
        warn!(max_connections = wanted, possible = room, "the limit of open files allows fewer connections");
    }
    wanted.min(room)
}
