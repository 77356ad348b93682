//! The control loop on the main thread: accepting connections, the admin socket, signals, and the
//! shutdown.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tracing::{error, info, warn};

use crate::admin::{self, AdminUsers};
use crate::reload::Trigger;
use crate::server::StartError;
use crate::server::acceptor::{Acceptor, RefusalCounters};
use crate::server::admin_handler::{AdminHandler, KeyCounts};
use crate::server::listening_socket::ListeningSocket;
use crate::server::signals::SignalAction;
use crate::server::startup::Daemon;
use crate::server::systemd_sockets;
use crate::server::worker::Worker;
use keyward_service::log::Log;
use keyward_service::notify;

/// How long the end waits for workers that do not close their connections, or do not stop charging.
/// It takes them milliseconds, unless they get no processor time.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the drain checks whether connections are still open.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Serves until a signal stops the daemon, and shuts it down. `next_signal` waits for a signal. To be
/// run on a `LocalSet`.
pub(super) async fn serve(
    daemon: Daemon,
    mut next_signal: impl AsyncFnMut() -> SignalAction,
    log: Log,
) -> Result<(), StartError> {
    let verify = ListeningSocket::new(systemd_sockets::VERIFY, daemon.sockets.verify)?;
    let admin = ListeningSocket::new(systemd_sockets::ADMIN, daemon.sockets.admin)?;
    let refusals = Arc::new(RefusalCounters::default());
    let limits = daemon.open_connections.limits();
    let acceptor = Rc::new(Acceptor::new(
        Arc::clone(&daemon.workers),
        (daemon.config.server.clients.clone(), daemon.config.server.adjusters.clone()),
        daemon.open_connections,
        Arc::clone(&refusals),
        daemon.recorders.audit.clone(),
    ));
    let accept_task =
        spawn_local(accept_clients(Rc::clone(&acceptor), Rc::clone(&verify), daemon.reload.first_load));
    let handler = AdminHandler {
        workers: Arc::clone(&daemon.workers),
        refusals,
        max_connections: limits.total,
        key_counts: KeyCounts::default(),
        snapshots: daemon.snapshots,
        epochs: daemon.epochs.clone(),
        revocations: Arc::clone(&daemon.revocations),
        history: daemon.reload.history,
        last_good: daemon.recorders.last_good,
        trigger: daemon.reload.trigger.clone(),
        audit: daemon.recorders.audit,
        balances: daemon.balance_source,
        usage: daemon.recorders.usage.clone(),
        health: daemon.recorders.health,
        clock: daemon.clock,
        sockets: [Rc::clone(&verify), Rc::clone(&admin)],
        log,
        started: Instant::now(),
    };
    let admin_users = daemon.config.server.admin_users.clone();
    let admin_task = spawn_local(serve_admin(Rc::clone(&admin), admin_users, Rc::new(handler)));
    let [verify_watch, admin_watch] =
        [&verify, &admin].map(|socket| spawn_local(Rc::clone(socket).watch_file()));

    info!(
        socket = %daemon.config.server.socket.as_path().display(),
        adopted = verify.is_adopted(),
        workers = daemon.workers.len(),
        max_connections = limits.total,
        max_connections_per_uid = limits.per_uid,
        "listening"
    );
    while next_signal().await == SignalAction::Reload {
        // A full queue already contains a reload that has not begun.
        let _ = daemon.reload.trigger.try_send(Trigger::Signal);
    }

    info!("draining");
    notify::stopping();
    accept_task.abort();
    // Waits for the end of the task. The result says only that it was aborted.
    let _ = accept_task.await;
    // It would bind the socket again if its file were removed now.
    verify_watch.abort();
    // Connections in the backlog of an adopted socket are accepted by the next daemon. The daemon's
    // own socket has no next daemon.
    acceptor.close(&verify);
    daemon.shutdown.drain();
    if !drain(&daemon.workers, daemon.config.server.drain_timeout).await {
        warn!(
            open = open_connections(&daemon.workers),
            "server.drain_timeout has passed; the requests that remain are not answered"
        );
    }
    // The last save would miss later charges, so remaining requests are not answered any more.
    daemon.shutdown.close();
    let closed = daemon.epochs.wait_passed(daemon.epochs.advance());
    if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        warn!("a worker has not stopped in time; what it still charges is not saved");
    }
    // Connections no longer wait for their peers.
    drain(&daemon.workers, CLOSE_TIMEOUT).await;
    tokio::join!(daemon.recorders.usage.stop(), daemon.balances.stop());
    admin_task.abort();
    admin_watch.abort();
    match daemon.revocations.not_durable() {
        0 => {}
        entries => {
            error!(
                entries,
                "some revocations could not be written to revocations.jsonl, and the next start does not know them: \
                 correct what the log says about the file or the state directory, start again, and revoke them again"
            )
        }
    }
    info!("stopped");
    Ok(())
}

/// Accepts client connections, and tells systemd when the first load has ended.
async fn accept_clients(
    acceptor: Rc<Acceptor>,
    socket: Rc<ListeningSocket>,
    first_load: oneshot::Receiver<()>,
) {
    let ready = async {
        // An error means that the reload thread is gone.
        let _ = first_load.await;
        notify::ready();
    };
    if socket.is_adopted() {
        // Clients of systemd's socket have been waiting for the daemon to start, perhaps after a
        // crash. They wait for the keys too, rather than be denied.
        ready.await;
        acceptor.run(&socket).await;
    } else {
        // Requests are answered from the first moment, with NOT_READY if need be. systemd's
        // dependents wait for the keys.
        tokio::join!(ready, acceptor.run(&socket));
    }
}

/// Serves the admin socket, with the reserve descriptor if clients have taken all others.
async fn serve_admin(socket: Rc<ListeningSocket>, users: AdminUsers, handler: Rc<AdminHandler>) {
    let accept = async || loop {
        match socket.accept().await {
            Ok(stream) => break Ok(stream),
            Err(_) => {
                if let Some(accepted) = socket.accept_with_reserve().await {
                    break accepted;
                }
            }
        }
    };
    admin::serve(accept, users, handler).await;
}

/// Waits until the workers have no connections, at most for `timeout`. Returns whether they have
/// none.
async fn drain(workers: &[Worker], timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while open_connections(workers) > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
    }
    true
}

fn open_connections(workers: &[Worker]) -> usize {
    workers.iter().map(Worker::open_connections).sum()
}
