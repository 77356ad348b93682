//! Wiring: sockets, workers, the reload thread, the admin socket and signals, from the start to the drain.
//!
//! ```text
//! main thread     control runtime: accept, admin, signals, drain
//! start           starts the rest, and ends
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
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;
use tracing::{error, info, warn};

use crate::admin;
use crate::audit::Audit;
use crate::balances::{BalanceSaver, BalanceSource};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError};
use crate::connection::{Counted, Counters, Shared, Stopping, Timeouts};
use crate::limiter::{Limiter, SlotAllocator};
use crate::log::Log;
use crate::publish::{Epochs, Publisher, SnapshotReader};
use crate::reload::{ConfigLoader, History, LastGood, Purpose, Reloader, Settings, Trigger, triggers};
use crate::revocation::{self, Revocations};
use crate::server::accept::{Acceptor, Refusals};
use crate::server::listening::Listening;
use crate::server::operator::Operator;
use crate::server::signals::{Caught, Order};
use crate::server::start::{Start, Started, Undo, configured};
use crate::server::worker::Worker;
use crate::state::{self, Generations, StateDir, WriteHealth};
use crate::systemd;
use crate::usage::{self, Usage};

mod accept;
mod listener;
mod listening;
mod operator;
mod preview;
mod signals;
mod socket_file;
mod start;
mod worker;

pub use listener::ListenError;
pub use preview::{diff, withheld};
pub use signals::Signals;

/// Descriptors that are not connections: sockets, the admin socket's peers, epoll, inotify, the source, logs, and room to spare.
const OWN_DESCRIPTORS: u64 = 96;

/// A worker's: epoll, what wakes it, and its two timers.
const DESCRIPTORS_OF_WORKER: u64 = 4;

/// How long a reload or a revocation waits for peers to read answers that were made before it, before their connections
/// are ended. An acknowledgement must not depend on a peer that has stopped.
const OVERDUE: Duration = Duration::from_secs(1);

/// How often the end of the workers is looked for while draining.
const DRAIN_TICK: Duration = Duration::from_millis(5);

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
    State(#[from] state::StateDirError),
    /// A file in it cannot be used.
    #[error(transparent)]
    File(#[from] state::FileError),
    /// What has been revoked is not known.
    #[error(transparent)]
    Revocations(#[from] revocation::LoadError),
    /// systemd's sockets are not those that the daemon needs.
    #[error(transparent)]
    Sockets(#[from] systemd::SocketsError),
    /// The daemon was told to stop before it served.
    #[error("stopped during the start")]
    Abandoned,
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
pub fn run(
    signals: Signals,
    log: &Log,
    configuration: Configuration,
    set_up_log: SetUpLog,
) -> Result<(), StartError> {
    // A core dump would hold the keys that are being verified (promise 7).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| system("forbid core dumps")(error.into()))?;
    let Signals { runtime, mut caught } = signals;
    let (undo, handle) = (Undo::default(), runtime.handle().clone());
    let start = Start { configuration, set_up_log, log: log.clone(), runtime: handle, undo: undo.clone() };
    let (reply, started) = oneshot::channel();
    std::thread::Builder::new()
        .name("start".into())
        .spawn(move || reply.send(start.run()).map_err(drop))
        .map_err(system("start a thread"))?;
    let started = runtime.block_on(async {
        tokio::select! {
            biased;
            started = started => Some(started),
            () = caught.stop() => None,
        }
    });
    let Some(started) = started else {
        undo.abandon();
        return Ok(());
    };
    let started = started.map_err(|error| system("start")(io::Error::other(error)))??;
    let (audit, last_good) = (started.audit.clone(), started.last_good.clone());
    let drained = LocalSet::new().block_on(&runtime, serve(started, caught, log.clone()));
    last_good.iter().for_each(LastGood::stop);
    audit.stop();
    drained
}

/// What is written down while the daemon runs.
struct Accounts {
    audit: Audit,
    usage: Usage,
    /// One for each worker.
    logs: Vec<usage::UsageLog>,
    last_good: Option<LastGood>,
    /// Which files are not being written.
    health: WriteHealth,
    revocations: revocation::LoadedList,
}

/// Reads the configuration: at the start, and again for reloads.
pub type Configuration = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

/// Begins to log as configured.
pub type SetUpLog = fn(config::Log, &Log) -> io::Result<()>;

fn settings(config: &Config) -> Result<Settings, ConfigError> {
    Ok(Settings {
        source: config.file(),
        policy: config.policy(),
        global_policy: Arc::new(config.global_policy()?),
        revocation_retention: config.revocation_retention,
    })
}

/// For reloads: the settings that they can change, and a word about the others.
fn again(started_with: Config, configuration: Configuration, audit: Audit) -> ConfigLoader {
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
    snapshots: SnapshotReader,
    audit: Audit,
    usage: Usage,
    health: WriteHealth,
    balances: BalanceSaver,
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
        let global_policy = Arc::clone(&settings.global_policy);
        let timeouts = Timeouts {
            idle: config.server.idle_timeout,
            overdue: OVERDUE,
            busy_poll: config.server.busy_poll,
        };

        let start = |(number, (subscription, log))| {
            let counters = Arc::new(Counters::default());
            let (limiter, global_policy, clock) =
                (Arc::clone(&limiter), Arc::clone(&global_policy), clock.clone());
            let (own_counters, stopping) = (Arc::clone(&counters), stopping.clone());
            Worker::start(number, counters, move || {
                let counted = Counted { counters: own_counters, usage: log };
                Shared::new(subscription, limiter, global_policy, clock, counted, timeouts, stopping)
            })
        };
        let workers: io::Result<Vec<Worker>> =
            subscriptions.into_iter().zip(logs).enumerate().map(start).collect();
        let workers = workers.map_err(system("start a worker"))?.into();

        let history = History::new(&settings.source.path);
        let snapshots = publisher.reader();
        let allocator = Arc::new(Mutex::new(SlotAllocator::new()));
        let source = BalanceSource {
            limiter: Arc::clone(&limiter),
            allocator: Arc::clone(&allocator),
            snapshots: snapshots.clone(),
            clock: clock.clone(),
        };
        let used = last_good.as_ref().map_or(0, LastGood::generation);
        let generations = Generations::open(state.clone(), used);
        let balances = BalanceSaver::start(state, config.save_interval, source)
            .map_err(system("start the thread that saves balances"))?;
        let reloader = Reloader {
            settings,
            configure: again(config.clone(), configuration, audit.clone()),
            publisher,
            revocations: Arc::clone(&revocations),
            limiter,
            allocator,
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
            snapshots,
            epochs,
            revocations,
            audit,
            usage,
            health,
            balances,
            last_good,
            clock,
            limit,
            loaded,
        })
    }
}

/// Serves until it is told to stop, and drains.
async fn serve(started: Started, mut caught: Caught, log: Log) -> Result<(), StartError> {
    let Started { config, daemon, verify, admin, .. } = started;
    let verify = Listening::new(systemd::VERIFY, verify)?;
    let admin = Listening::new(systemd::ADMIN, admin)?;
    let refusals = Arc::new(Refusals::default());
    let acceptor = Rc::new(Acceptor {
        workers: Arc::clone(&daemon.workers),
        clients: config.server.clients.clone(),
        max_connections: daemon.limit,
        refusals: Arc::clone(&refusals),
        audit: daemon.audit.clone(),
        logged: Cell::new(None),
    });
    let loaded = daemon.loaded;
    let (accepts, listening) = (Rc::clone(&acceptor), Rc::clone(&verify));
    let accepting = tokio::task::spawn_local(async move {
        let loaded = async {
            let _reload_thread_is_there = loaded.await;
            systemd::ready();
        };
        if listening.is_adopted() {
            // Clients on systemd's socket have been waiting for the daemon to start, perhaps after a crash. They wait for
            // the keys too, rather than be denied.
            loaded.await;
            accepts.run(&listening).await;
        } else {
            // Requests are answered from the first moment, NOT_READY if need be; systemd's dependents wait for the
            // keys.
            tokio::join!(loaded, accepts.run(&listening));
        }
    });
    let operator = Operator {
        workers: Arc::clone(&daemon.workers),
        refusals,
        snapshots: daemon.snapshots,
        epochs: daemon.epochs.clone(),
        revocations: Arc::clone(&daemon.revocations),
        history: daemon.history,
        last_good: daemon.last_good,
        trigger: daemon.trigger.clone(),
        audit: daemon.audit,
        usage: daemon.usage.clone(),
        health: daemon.health,
        clock: daemon.clock,
        sockets: [Rc::clone(&verify), Rc::clone(&admin)],
        log,
        started: Instant::now(),
    };
    let (admins, operating) = (config.server.admin_uids.clone(), Rc::clone(&admin));
    let operating = tokio::task::spawn_local(async move {
        // An operator is served although clients have taken all descriptors.
        let accept = async || loop {
            match operating.accept().await {
                Ok(stream) => break Ok(stream),
                Err(_) => {
                    if let Some(accepted) = operating.accept_by_reserve().await {
                        break accepted;
                    }
                }
            }
        };
        admin::serve(accept, admins, Rc::new(operator)).await;
    });
    let watching = [&verify, &admin].map(|socket| tokio::task::spawn_local(Rc::clone(socket).watch()));

    info!(
        socket = %config.server.socket.as_path().display(),
        adopted = verify.is_adopted(),
        workers = daemon.workers.len(),
        max_connections = daemon.limit,
        "listening"
    );
    while caught.next().await == Order::Reload {
        // A queue that is full holds a reload that is still to begin.
        let _queued = daemon.trigger.try_send(Trigger::Signal);
    }

    info!("draining");
    systemd::stopping();
    accepting.abort();
    let _aborted = accepting.await;
    // Connections that wait at systemd's socket are accepted by the next daemon. There will be none at this one's own.
    verify.take_waiting().into_iter().for_each(|stream| acceptor.admit(stream));
    daemon.draining.send_replace(true);
    drain(&daemon.workers, config.server.drain_timeout).await;
    // What a connection that is still there would be charged now would be in no save: nothing more is answered.
    daemon.closed.store(true, Ordering::Release);
    let closed = daemon.epochs.wait_passed(daemon.epochs.advance());
    if tokio::time::timeout(2 * OVERDUE, closed).await.is_err() {
        warn!("a worker does not end; what it still charges is not saved");
    }
    tokio::join!(daemon.usage.stop(), daemon.balances.stop());
    operating.abort();
    watching.iter().for_each(tokio::task::JoinHandle::abort);
    match daemon.revocations.not_durable() {
        0 => {}
        entries => error!(entries, "revocations were not durable at the end: a restart does not know them"),
    }
    info!("stopped");
    Ok(())
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
