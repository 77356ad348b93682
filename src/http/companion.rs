//! The process: sockets, threads, and the stop.
//!
//! Each thread has a runtime of its own, and accepts connections from all listeners. A connection
//! stays on its thread, and so do its requests to the daemon: no request wakes another thread.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use keyward_client::{Client, Options};
use keyward_service::listener::{BoundSocket, ListenError, Listener as UnixSocket, ListenerSpec};
use keyward_service::passed_sockets::{PassedKind, PassedSocket};
use keyward_service::{descriptors, notify};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::interval;
use tracing::{info, warn};

use crate::config::{Config, GatewayListener, ListenAddress};
use crate::gateway_handler::GatewayHandler;
use crate::server::{Listener, ServerLimits, serve};

/// Descriptors that are not connections: listening sockets of each thread, the daemon, epoll, the log, and
/// a margin.
const OWN_DESCRIPTORS: u64 = 256;

/// Why the companion cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A Unix socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A TCP port cannot be listened on.
    #[error("{address}: cannot listen: {source}")]
    Tcp {
        /// The address and the port.
        address: std::net::SocketAddr,
        /// The error of the system call.
        source: io::Error,
    },
    /// systemd passed a socket that no gateway needs.
    #[error(
        "systemd passed {name:?} ({kind}), and {problem}. FileDescriptorName= of a socket unit has to be the name of a gateway \
         in the configuration, with ListenStream="
    )]
    Passed {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Os {
        /// The operation.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
}

/// A listening socket, before a thread registers it with its runtime.
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket and what is done with its connections.
struct Endpoint {
    gateway: GatewayListener,
    socket: Socket,
    /// The file of a socket that this process has bound. It is removed on drop.
    file: Option<BoundSocket>,
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
    let server = config.server;
    warn_of_descriptors(config.gateways.len() * server.limits.max_connections);
    let endpoints = open(config.gateways, passed)?;
    let (stop, stopping) = watch::channel(false);
    let (registered, all_registered) = mpsc::channel();
    // Closed when all threads have ended.
    let (working, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    let limits = per_thread(server.limits, server.workers);
    let mut threads = Vec::new();
    for number in 0..server.workers {
        let listeners = endpoints
            .iter()
            .map(|endpoint| Ok((endpoint.gateway.clone(), endpoint.socket.try_clone()?)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(os_error("copy a listening socket"))?;
        let options = Options::new(&server.keyward).deadline(server.deadline);
        let (stopping, registered, working) = (stopping.clone(), registered.clone(), working.clone());
        let thread = thread::Builder::new().name(format!("http-{number}"));
        let thread = thread.spawn(move || {
            let _working = working;
            work(listeners, limits, options, stopping, registered)
        });
        threads.push(thread.map_err(os_error("start a thread"))?);
    }
    drop((registered, working));
    let is_serving = (0..server.workers).all(|_| all_registered.recv().is_ok());
    // Only the threads have the sockets now: the last one closes them when it stops.
    let files: Vec<Option<BoundSocket>> = endpoints
        .into_iter()
        .map(|Endpoint { gateway, file, .. }| {
            info!(gateway = gateway.name, kind = ?gateway.rules.gateway, listen = %gateway.listen, "listening");
            file
        })
        .collect();
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

/// One thread.
fn work(
    listeners: Vec<(GatewayListener, Socket)>,
    limits: ServerLimits,
    options: Options,
    stopping: watch::Receiver<bool>,
    registered: mpsc::Sender<()>,
) -> Result<(), RunError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(os_error("start a runtime"))?;
    LocalSet::new().block_on(&runtime, async {
        let client = Client::with_options(options);
        let mut serving = JoinSet::new();
        let mut handlers = Vec::new();
        for (GatewayListener { name, rules, .. }, socket) in listeners {
            let listener = socket.register().map_err(os_error("listen"))?;
            let handler = Rc::new(GatewayHandler::new(name, rules, client.clone()));
            handlers.push(Rc::clone(&handler));
            serving.spawn_local(serve(listener, limits, handler, stopping.clone()));
        }
        // The main thread waits for it.
        let _ = registered.send(());
        drop(registered);
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                ended = serving.join_next() => if ended.is_none() { break },
                _ = seconds.tick() => handlers.iter().for_each(|handler| handler.flush_log()),
            }
        }
        handlers.iter().for_each(|handler| handler.flush_log());
        Ok(())
    })
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

/// Takes the sockets from systemd, and binds the others.
fn open(gateways: Vec<GatewayListener>, passed: Vec<PassedSocket>) -> Result<Vec<Endpoint>, RunError> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for PassedSocket { name, kind } in passed {
        let refused = |kind: &PassedKind, problem| RunError::Passed {
            name: name.clone(),
            kind: kind.to_string(),
            problem,
        };
        let Some(gateway) = gateways.iter().find(|gateway| gateway.name == name) else {
            return Err(refused(&kind, "no gateway has this name"));
        };
        if endpoints.iter().any(|endpoint| endpoint.gateway.name == name) {
            return Err(refused(&kind, "there is another of this name"));
        }
        let socket = match kind {
            PassedKind::Unix(listener) => Socket::Unix(listener),
            PassedKind::Tcp(listener) => match listener.local_addr() {
                Ok(address) if address.ip().is_loopback() => Socket::Tcp(listener),
                _ => return Err(refused(&PassedKind::Tcp(listener), "it is not on the loopback interface")),
            },
            kind @ PassedKind::Other(_) => return Err(refused(&kind, "it is not a listening stream socket")),
        };
        endpoints.push(Endpoint { gateway: gateway.clone(), socket, file: None });
    }
    for gateway in gateways {
        if !endpoints.iter().any(|endpoint| endpoint.gateway.name == gateway.name) {
            endpoints.push(bind(gateway)?);
        }
    }
    Ok(endpoints)
}

fn bind(gateway: GatewayListener) -> Result<Endpoint, RunError> {
    let (socket, file) = match &gateway.listen {
        ListenAddress::Unix(path) => {
            let mode = gateway.socket_mode.bits();
            let spec = ListenerSpec::new(path.as_path(), mode, gateway.socket_group.as_ref())?;
            let UnixSocket { socket, bound } = UnixSocket::bind(spec)?;
            (Socket::Unix(socket), bound)
        }
        ListenAddress::Tcp(address) => {
            let bound = TcpListener::bind(address);
            (Socket::Tcp(bound.map_err(|source| RunError::Tcp { address: *address, source })?), None)
        }
    };
    Ok(Endpoint { gateway, socket, file })
}

impl Socket {
    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
        }
    }

    /// Registers the socket with the current runtime.
    fn register(self) -> io::Result<Listener> {
        match self {
            Self::Unix(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(socket).map(Listener::Unix)
            }
            Self::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(socket).map(Listener::Tcp)
            }
        }
    }
}

/// Converts the error of a system call. `what` completes the sentence "cannot …".
fn os_error(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Os { what, source }
}
