//! The start-up: configuration, sockets, state directory, workers, balances and the reload thread,
//! in this order.
//!
//! It runs on a thread of its own, while the main thread waits for it and for signals. SIGTERM can
//! therefore end a start-up at any moment; [`Rollback`] undoes what has been done by then.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use crate::audit::{Audit, Event};
use crate::balances::{self, BalanceRenewal, BalanceSaver, BalanceSource, LoadedBalances, RENEWAL_INTERVAL};
use crate::clock::Clock;
use crate::config::Config;
use crate::connection::{
    Counters, Metrics, Shutdown, ShutdownControl, Timeouts, VerifyInputs, WorkerContext,
};
use crate::publish::{Epochs, Publisher, SnapshotReader, Subscription};
use crate::reload::{History, LastGoodStore, Reloader, Settings, Trigger, trigger_channel};
use crate::revocation::{self, Revocations};
use crate::server::connection_limits::{ConnectionLimits, OpenConnections};
use crate::server::descriptors::connection_limit;
use crate::server::reload_config::{config_loader, configuration_event, settings};
use crate::server::rollback::Rollback;
use crate::server::systemd_sockets::{self, SystemdSockets};
use crate::server::worker::Worker;
use crate::server::{LoadConfig, SetUpLog, StartError, os_error};
use crate::usage::{self, Usage};
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_memory as memory;
use keyward_service::listener::{Listener, ListenerSpec};
use keyward_service::log::Log;
use keyward_service::notify;
use keyward_state::{self as state, Generations, StateDir, Unwritten, WriteHealth};

/// How long a reload or a revocation waits for peers to read answers that were made before it.
/// After that their connections are closed, so that an acknowledgement does not depend on a peer
/// that has stopped reading.
const UNSENT_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Permissions of the admin socket. By default only the daemon's own user and root may open it.
/// Where `admin_uids` or `admin_read_uids` names other users, everyone may open it, and the credentials
/// of the peer decide.
const ADMIN_MODE: u32 = 0o600;
const ADMIN_MODE_WITH_UIDS: u32 = 0o666;

/// What the start-up needs.
pub(super) struct Startup {
    pub(super) load_config: LoadConfig,
    pub(super) set_up_log: SetUpLog,
    pub(super) log: Log,
    /// The control runtime.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) rollback: Rollback,
}

/// A started daemon: its threads run, and its sockets are bound but not accepted from yet.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) open_connections: OpenConnections,
    pub(super) sockets: Sockets,
    pub(super) recorders: Recorders,
    pub(super) revocations: Arc<Revocations>,
    pub(super) snapshots: SnapshotReader,
    pub(super) epochs: Epochs,
    pub(super) clock: Clock,
    pub(super) workers: Arc<[Worker]>,
    pub(super) shutdown: ShutdownControl,
    pub(super) balances: BalanceSaver,
    pub(super) balance_source: BalanceSource,
    pub(super) reload: ReloadThread,
}

impl Startup {
    /// Starts the daemon.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(super) fn run(self) -> Result<Daemon, StartError> {
        let Self { load_config, set_up_log, log, runtime, rollback } = self;
        let config = load_config()?;
        set_up_log(config.log, &log).map_err(os_error("start the log"))?;
        // Before anything large is allocated.
        memory::set_huge_pages(config.server.huge_pages);
        memory::ensure_reserve();
        let max_connections = connection_limit(config.server.max_connections, config.server.workers);
        let limits = ConnectionLimits::new(max_connections, config.max_connections_per_uid);

        // Before the state directory, which another daemon may still hold: clients that connect
        // meanwhile wait for their answers.
        let sockets = Sockets::open(&config, &rollback)?;
        let State { directory, health, revocations, balances } = State::open(&config)?;
        let (recorders, usage_logs) =
            Recorders::start(&config, directory.as_ref(), health, (&revocations, &balances), &rollback)?;

        let (publisher, subscriptions) = Publisher::new(config.server.workers);
        // Before any answer, so that every revocation is in force from the first one on.
        let last_generation = recorders.last_good.as_ref().map_or(0, LastGoodStore::generation);
        let generations = Generations::open(directory.clone(), last_generation);
        let revocations = Arc::new(Revocations::start(revocations, &publisher, generations)?);
        let settings = settings(&config)?;
        let (limiter, clock) = (Arc::new(Limiter::new()), Clock::new());
        limiter.set_time_zone(settings.global_policy.time_zone.clone());
        let (shutdown, worker_shutdown) = ShutdownControl::new();
        let workers =
            start_workers(&config, &settings, subscriptions, usage_logs, &limiter, &clock, &worker_shutdown)?;

        let (snapshots, epochs) = (publisher.reader(), publisher.epochs());
        let allocator = Arc::new(Mutex::new(SlotAllocator::new()));
        let pending_loss = balances.pending_loss();
        let source = BalanceSource {
            limiter: Arc::clone(&limiter),
            allocator: Arc::clone(&allocator),
            snapshots: snapshots.clone(),
            clock: clock.clone(),
            pending_loss: pending_loss.clone(),
        };
        let balances = BalanceSaver::start(directory, balances, config.save_interval, source.clone())?;

        let audit = &recorders.audit;
        let reload = ReloadThread::start(Reloader {
            history: History::new(&settings.source.path),
            settings,
            load_config: config_loader(config.clone(), load_config, audit.clone()),
            publisher,
            revocations: Arc::clone(&revocations),
            limiter,
            allocator,
            clock: clock.clone(),
            audit: audit.clone(),
            last_good: recorders.last_good.clone(),
            pending_loss,
            renewal: BalanceRenewal::every(RENEWAL_INTERVAL),
            runtime,
        })?;
        Ok(Daemon {
            open_connections: OpenConnections::new(limits, config.uid_quotas),
            config,
            sockets,
            recorders,
            revocations,
            snapshots,
            epochs,
            clock,
            workers,
            shutdown,
            balances,
            balance_source: source,
            reload,
        })
    }
}

/// The listening sockets.
pub(super) struct Sockets {
    pub(super) verify: Listener,
    pub(super) admin: Listener,
}

impl Sockets {
    /// Takes systemd's sockets, or binds new ones.
    fn open(config: &Config, rollback: &Rollback) -> Result<Self, StartError> {
        rollback.step(|effects| {
            if let Some(SystemdSockets { verify, admin }) = systemd_sockets::take()? {
                return Ok(Self { verify: Listener::adopt(verify), admin: Listener::adopt(admin) });
            }
            let server = &config.server;
            let verify = ListenerSpec::new(
                server.socket.as_path(),
                server.socket_mode.bits(),
                server.socket_group.as_ref(),
            )?;
            let admin_mode = if server.admin_users.has_others() { ADMIN_MODE_WITH_UIDS } else { ADMIN_MODE };
            let admin = ListenerSpec::new(server.admin_socket.as_path(), admin_mode, None)?;
            let sockets = Self { verify: Listener::bind(verify)?, admin: Listener::bind(admin)? };
            let bound = [&sockets.verify, &sockets.admin].into_iter().filter_map(|it| it.bound.as_ref());
            effects.socket_files.extend(bound.map(|bound| bound.file.clone()));
            effects.listener = sockets.verify.socket.try_clone().ok();
            Ok(sockets)
        })
    }
}

/// The state directory.
struct State {
    /// `None`: the daemon runs without one.
    directory: Option<Arc<StateDir>>,
    health: WriteHealth,
    revocations: revocation::LoadedList,
    balances: LoadedBalances,
}

impl State {
    /// Opens the state directory, and reads the list of revocations before any other file: where
    /// there is another file, the list must exist too.
    fn open(config: &Config) -> Result<Self, StartError> {
        let health = WriteHealth::default();
        health.observe(|unwritten| notify::unwritten(&file_names(unwritten)));
        let (path, is_explicit) = (&config.server.state_dir, config.server.state_dir_is_explicit);
        let directory = StateDir::open_reporting(path, is_explicit, health.clone())?.map(Arc::new);
        let revocations = revocation::load(directory.clone())?;
        if let Some(used) = &directory {
            let directory = used.path("");
            let directory = directory.display();
            if used.is_new() || !(revocations.has_changed() || used.first_state_file().is_some()) {
                warn!(
                    %directory,
                    "the state directory is new: if there was one before, its revocations, balances and audit trail are lost"
                );
            }
        }
        let load = |directory| balances::load(directory, revocations.has_changed());
        let balances = directory.as_deref().map(load).transpose()?.unwrap_or_default();
        Ok(Self { directory, health, revocations, balances })
    }
}

fn file_names(unwritten: &[Unwritten]) -> String {
    unwritten.iter().map(|file| &*file.file).collect::<Vec<_>>().join(", ")
}

/// What the daemon records in the state directory while it runs, balances and revocations apart.
pub(super) struct Recorders {
    pub(super) audit: Audit,
    pub(super) usage: Usage,
    /// `None`: the last good keys are not kept.
    pub(super) last_good: Option<LastGoodStore>,
    /// Which files cannot be written.
    pub(super) health: WriteHealth,
}

impl Recorders {
    /// Opens the audit trail and starts the recording threads. Also returns a usage log for each
    /// worker.
    fn start(
        config: &Config,
        directory: Option<&Arc<StateDir>>,
        health: WriteHealth,
        (revocations, balances): (&revocation::LoadedList, &LoadedBalances),
        rollback: &Rollback,
    ) -> Result<(Self, Vec<usage::UsageLog>), StartError> {
        let audit = rollback.step(|effects| {
            let audit = match directory {
                Some(directory) => Audit::open(directory, config.audit)?,
                None => Audit::disabled(),
            };
            record_start(&audit, config, revocations, balances);
            effects.audit = Some(audit.clone());
            Ok::<_, StartError>(audit)
        })?;
        let directory_ref = directory.map(|directory| &**directory);
        // The threads that write usage live as long as the process, so the model test, which
        // starts many daemons in one, does without them.
        #[cfg(feature = "simulation")]
        let directory_ref = directory_ref.filter(|_| keyward_state::simulation::time().is_none());
        let (usage, usage_logs) = Usage::start(directory_ref, config.usage, config.server.workers)?;
        let last_good = LastGoodStore::open(directory, config.keep_snapshot)
            .map_err(os_error("start the thread that keeps the keys in force"))?;
        Ok((Self { audit, usage, last_good, health }, usage_logs))
    }
}

/// Records the start, the configuration, and losses that the operator has accepted.
fn record_start(
    audit: &Audit,
    config: &Config,
    revocations: &revocation::LoadedList,
    balances: &LoadedBalances,
) {
    let uid = rustix::process::geteuid().as_raw();
    audit.record(&Event::Start { version: env!("CARGO_PKG_VERSION"), pid: std::process::id(), uid });
    audit.record(&configuration_event(config.file.as_deref(), None));
    if let Some((state::AcceptanceRecord { by_uid, at }, remaining)) = revocations.accepted_loss() {
        let at = at.to_string();
        audit.record(&Event::LostRevocationsAccepted { by_uid, at, revocations: remaining });
    }
    if let Some(state::AcceptanceRecord { by_uid, at }) = balances.accepted_loss() {
        audit.record(&Event::LostBalancesAccepted { by_uid, at: at.to_string() });
    }
}

fn start_workers(
    config: &Config,
    settings: &Settings,
    subscriptions: Vec<Subscription>,
    usage_logs: Vec<usage::UsageLog>,
    limiter: &Arc<Limiter>,
    clock: &Clock,
    shutdown: &Shutdown,
) -> Result<Arc<[Worker]>, StartError> {
    let timeouts = Timeouts {
        idle: config.server.idle_timeout,
        unsent_answers: UNSENT_ANSWER_TIMEOUT,
        busy_poll: config.server.busy_poll,
    };
    let mut workers = Vec::with_capacity(subscriptions.len());
    for (number, (subscription, usage)) in subscriptions.into_iter().zip(usage_logs).enumerate() {
        let counters = Arc::new(Counters::default());
        let metrics = Metrics { counters: Arc::clone(&counters), usage };
        let inputs = VerifyInputs {
            subscription,
            limiter: Arc::clone(limiter),
            global_policy: Arc::clone(&settings.global_policy),
            clock: clock.clone(),
        };
        let shutdown = shutdown.clone();
        let worker = Worker::start(number, counters, move |idle_count| {
            WorkerContext::new(inputs, metrics, timeouts, shutdown, idle_count)
        });
        workers.push(worker.map_err(os_error("start a worker"))?);
    }
    Ok(workers.into())
}

/// The thread that loads the source at the start and reloads it.
pub(super) struct ReloadThread {
    pub(super) trigger: SyncSender<Trigger>,
    pub(super) history: History,
    /// Resolves when the first load has ended, successfully or not.
    pub(super) first_load: oneshot::Receiver<()>,
}

impl ReloadThread {
    fn start(reloader: Reloader) -> Result<Self, StartError> {
        let history = reloader.history.clone();
        let (trigger, triggers) = trigger_channel();
        let watch_trigger = trigger.clone();
        let (sender, first_load) = oneshot::channel();
        std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || reloader.run(watch_trigger, &triggers, || _ = sender.send(())))
            .map_err(os_error("start the reload thread"))?;
        Ok(Self { trigger, history, first_load })
    }
}
