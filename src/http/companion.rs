//! The process: sockets, threads, and the stop.
//!
//! Each thread has a runtime of its own. Those that check accept connections from the listeners of all
//! gateways. A connection stays on its thread, and so do its requests to the daemon: no request wakes
//! another thread. Settlements and metrics have a thread each.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keyward_client::{Client, Options};
use keyward_service::listener::BoundSocket;
use keyward_service::passed_sockets::PassedSocket;
use keyward_service::{descriptors, notify};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime::{Builder, LocalOptions, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::charge_once::{ChargedRequests, RequestId};
use crate::config::{
    Config, GatewayListener, METRICS_NAME, MetricsListener, SETTLEMENT_NAME, SettlementListener,
};
use crate::endpoint::{self, Endpoint, EndpointError, Socket, Wanted};
use crate::gateway_handler::GatewayHandler;
use crate::handler::Handler;
use crate::limits::{MIN_HEADER_BYTES, ServerLimits};
use crate::metrics::CompanionMetrics;
use crate::monitor::Monitor;
use crate::server::serve;
use crate::settlement::SettlementHandler;

/// Descriptors that are not connections: listening sockets of each thread, the daemon, epoll, the log, and
/// a margin.
const OWN_DESCRIPTORS: u64 = 256;

/// Connections of a monitoring system. A collector has one.
const METRICS_CONNECTIONS: usize = 32;

/// How long a connection of a monitoring system may be silent: any process can open one, and Prometheus
/// connects again.
const METRICS_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the companion cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A socket cannot be listened on.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Os {
        /// The operation.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
}

/// SIGTERM, SIGINT and SIGHUP, and the runtime of the main thread, which receives them.
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Installs the signal handlers. Until then a signal's default action ends the process.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn catch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let [terminate, interrupt, hang_up] = {
            let _entered = runtime.enter();
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            let [terminate, interrupt, hang_up] = kinds.map(signal);
            [terminate?, interrupt?, hang_up?]
        };
        Ok(Self { runtime, terminate, interrupt, hang_up })
    }

    /// Waits for SIGTERM or SIGINT, or for the end of `work`. Returns whether that has ended.
    fn wait_unless(&mut self, work: impl Future<Output = ()>) -> bool {
        let Self { runtime, terminate, interrupt, hang_up } = self;
        runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                tokio::select! {
                    () = &mut work => return true,
                    _ = terminate.recv() => return false,
                    _ = interrupt.recv() => return false,
                    _ = hang_up.recv() => {
                        warn!("SIGHUP is ignored: the configuration is read at the start. Restart instead");
                    }
                }
            }
        })
    }
}

/// Serves until a signal ends the process; a second one ends the drain. `passed` are the sockets that systemd has opened.
///
/// # Errors
/// When a socket cannot be listened on, or a thread cannot be started.
pub fn run(config: Config, passed: Vec<PassedSocket>, mut signals: Signals) -> Result<(), RunError> {
    // A core dump would write the keys that are being checked to disk.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| os_error("forbid core dumps")(error.into()))?;
    let Config { server, gateways, settlement, metrics, .. } = config;
    let with_clients = gateways.len() + usize::from(settlement.is_some());
    warn_of_descriptors(with_clients * server.limits.max_connections);
    let wanted = |name, settings, unix_only| Wanted { name, settings, unix_only };
    let of_gateways = gateways.iter().map(|gateway| wanted(gateway.name.as_str(), &gateway.listen, false));
    let of_settlement = settlement.iter().map(|settlement| wanted(SETTLEMENT_NAME, &settlement.listen, true));
    let of_metrics = metrics.iter().map(|metrics| wanted(METRICS_NAME, &metrics.listen, false));
    let wanted: Vec<_> = of_gateways.chain(of_settlement).chain(of_metrics).collect();
    // In the same order.
    let endpoints = endpoint::open(&wanted, passed)?;
    let own_metrics = CompanionMetrics::default();
    for gateway in &gateways {
        own_metrics.set_connections_max(&gateway.name, server.limits.max_connections);
    }
    let (stop, stopping) = watch::channel(false);
    let (registered, all_registered) = mpsc::channel();
    // Closed when all threads have ended.
    let (working, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    let context = ThreadContext { stopping, registered, working };
    let limits = per_thread(server.limits, server.workers);
    let charged: Vec<Option<Arc<ChargedRequests>>> =
        gateways.iter().map(|gateway| charged_requests(gateway, server.deadline, &own_metrics)).collect();
    let mut threads = Vec::new();
    for number in 0..server.workers {
        let sockets = copies(&endpoints[..gateways.len()])?;
        let options = Options::new(&server.keyward).deadline(server.deadline);
        let (gateways, charged, own_metrics) = (gateways.clone(), charged.clone(), own_metrics.clone());
        let handlers = move || {
            let client = Client::with_options(options);
            let handler = |(GatewayListener { name, rules, .. }, charged)| {
                let (client, own_metrics) = (client.clone(), own_metrics.clone());
                GatewayHandler::new(name, rules, client, charged, limits, own_metrics)
            };
            gateways.into_iter().zip(charged).map(handler).collect()
        };
        threads.push(start_thread(format!("http-{number}"), limits, sockets, handlers, context.clone())?);
    }
    if let Some(SettlementListener { rules, .. }) = settlement.clone() {
        let sockets = copies(&endpoints[gateways.len()..][..1])?;
        let options = Options::new(&server.keyward).deadline(rules.deadline);
        let own_metrics = own_metrics.clone();
        let handlers =
            move || vec![SettlementHandler::new(rules, Client::with_options(options), own_metrics)];
        threads.push(start_thread(
            "settlement".to_owned(),
            server.limits,
            sockets,
            handlers,
            context.clone(),
        )?);
    }
    if let Some(MetricsListener { admin, .. }) = metrics.clone() {
        let sockets = copies(&endpoints[with_clients..])?;
        let limits = ServerLimits {
            max_connections: METRICS_CONNECTIONS,
            max_header_bytes: MIN_HEADER_BYTES,
            idle_timeout: METRICS_IDLE_TIMEOUT,
            ..server.limits
        };
        let handlers = move || vec![Monitor::new(own_metrics, admin)];
        threads.push(start_thread("metrics".to_owned(), limits, sockets, handlers, context.clone())?);
    }
    drop(context);
    let is_serving = threads.iter().all(|_| all_registered.recv().is_ok());
    for gateway in &gateways {
        info!(gateway = gateway.name, kind = ?gateway.rules.gateway, listen = %gateway.listen.address, "listening");
    }
    if let Some(SettlementListener { listen, rules }) = &settlement {
        info!(listen = %listen.address, uids = ?rules.uids, "listening for settlements");
    }
    if let Some(metrics) = &metrics {
        info!(listen = %metrics.listen.address, "listening for requests for metrics");
    }
    // Only the threads have the sockets now: the last one closes them when it stops.
    let files: Vec<Option<BoundSocket>> = endpoints.into_iter().map(|endpoint| endpoint.file).collect();
    if is_serving {
        notify::ready();
        signals.wait_unless(async { _ = ended.recv().await });
        notify::stopping();
        info!("stopping");
    }
    drop(files);
    // The receivers are gone if all threads have failed.
    let _ = stop.send(true);
    if !signals.wait_unless(async { _ = ended.recv().await }) {
        warn!("stopped by a second signal: requests in progress are not answered");
        return Ok(());
    }
    let results = threads.into_iter().map(|thread| {
        thread.join().unwrap_or_else(|_| Err(os_error("serve")(io::Error::other("a thread panicked"))))
    });
    results.collect()
}

/// Where the threads of a gateway record what they have charged.
fn charged_requests(
    gateway: &GatewayListener,
    deadline: Duration,
    metrics: &CompanionMetrics,
) -> Option<Arc<ChargedRequests>> {
    let new = |request_id: &RequestId| {
        ChargedRequests::new(request_id.within, deadline, metrics.repetitions(&gateway.name))
    };
    gateway.rules.request_id.as_ref().map(new)
}

/// What a thread needs to know about the process.
#[derive(Clone)]
struct ThreadContext {
    stopping: watch::Receiver<bool>,
    /// Told that the thread listens.
    registered: mpsc::Sender<()>,
    /// Dropped when the thread ends.
    working: tokio::sync::mpsc::Sender<()>,
}

/// Starts a thread that serves `sockets`, each with the handler at its place in what `handlers` returns.
fn start_thread<H: Handler>(
    name: String,
    limits: ServerLimits,
    sockets: Vec<Socket>,
    handlers: impl FnOnce() -> Vec<H> + Send + 'static,
    context: ThreadContext,
) -> Result<JoinHandle<Result<(), RunError>>, RunError> {
    let work = move || {
        let ThreadContext { stopping, registered, working: _working } = context;
        // Not a LocalSet, whose tasks and those of the runtime, such as the client's, wake each other by way
        // of epoll.
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        runtime.map_err(os_error("start a runtime"))?.block_on(async {
            let mut serving = JoinSet::new();
            for (socket, handler) in sockets.into_iter().zip(handlers()) {
                let listener = socket.register().map_err(os_error("listen"))?;
                serving.spawn_local(serve(listener, limits, Rc::new(handler), stopping.clone()));
            }
            // The main thread waits for it.
            let _ = registered.send(());
            drop(registered);
            serving.join_all().await;
            Ok(())
        })
    };
    thread::Builder::new().name(name).spawn(work).map_err(os_error("start a thread"))
}

fn copies(endpoints: &[Endpoint]) -> Result<Vec<Socket>, RunError> {
    let copies = endpoints.iter().map(|endpoint| endpoint.socket.try_clone());
    copies.collect::<io::Result<_>>().map_err(os_error("copy a listening socket"))
}

/// The limits of one of `threads` threads.
fn per_thread(limits: ServerLimits, threads: usize) -> ServerLimits {
    ServerLimits { max_connections: limits.max_connections.div_ceil(threads.max(1)), ..limits }
}

/// Raises the limit of open files as far as possible, and warns if it is lower than that of connections.
fn warn_of_descriptors(max_connections: usize) {
    let possible = descriptors::raise_limit().saturating_sub(OWN_DESCRIPTORS);
    if possible < max_connections as u64 {
        warn!(
            max_connections,
            possible,
            "the limit of open files allows fewer connections than server.max_connections for each gateway: raise LimitNOFILE= \
             in the unit (or ulimit -n), or lower the setting"
        );
    }
}

/// Converts the error of a system call. `what` completes the sentence "cannot …".
fn os_error(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Os { what, source }
}
