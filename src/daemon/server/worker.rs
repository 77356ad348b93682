//! A worker: a thread with its own runtime, and the connections that were assigned to it.
//!
//! There is no work stealing: a connection stays on its worker, so that its buffers, the snapshot's
//! cache lines and the buckets that it charges stay in one core's caches.

use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tracing::debug;

use crate::connection::{Connection, Counters, IdleCount, Permissions, WorkerContext};
use crate::server::connection_limits::ConnectionGuard;

/// A handle to a worker thread. The thread lives as long as the daemon.
pub(super) struct Worker {
    pub(super) counters: Arc<Counters>,
    connections: mpsc::UnboundedSender<AssignedConnection>,
    open_connections: Arc<AtomicUsize>,
}

/// A connection on its way to its worker.
pub(super) struct AssignedConnection {
    pub(super) stream: UnixStream,
    pub(super) permissions: Permissions,
    pub(super) guard: ConnectionGuard,
}

impl Worker {
    /// Starts a worker. `new_context` is called on the worker's thread.
    ///
    /// # Errors
    /// When the system has no thread or no epoll instance left.
    pub(super) fn start(
        number: usize,
        counters: Arc<Counters>,
        new_context: impl FnOnce(IdleCount) -> Rc<WorkerContext> + Send + 'static,
    ) -> io::Result<Self> {
        let (connections, assigned) = mpsc::unbounded_channel();
        let open_connections = Arc::new(AtomicUsize::new(0));
        let open = Arc::clone(&open_connections);
        let (started_sender, started) = sync_channel(1);
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // A local runtime cannot leave the thread that builds it.
            let idle_count = IdleCount::default();
            let on_park = idle_count.clone();
            let runtime = Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .on_thread_park(move || on_park.increment())
                .build_local(LocalOptions::default());
            let (runtime, result) = match runtime {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // The receiver waits until this is sent.
            let _ = started_sender.send(result);
            if let Some(runtime) = runtime {
                runtime.block_on(serve(assigned, new_context(idle_count), open));
            }
        })?;
        started.recv().map_err(|_| io::Error::other("the thread has ended"))??;
        Ok(Self { counters, connections, open_connections })
    }

    /// The number of open connections.
    pub(super) fn open_connections(&self) -> usize {
        self.open_connections.load(Ordering::Relaxed)
    }

    /// Assigns a connection to the worker.
    pub(super) fn assign(&self, connection: AssignedConnection) {
        self.open_connections.fetch_add(1, Ordering::Relaxed);
        // Cannot fail: the receiver lives as long as the thread.
        let _ = self.connections.send(connection);
    }
}

/// Serves each assigned connection in a task of its own.
async fn serve(
    mut assigned: mpsc::UnboundedReceiver<AssignedConnection>,
    context: Rc<WorkerContext>,
    open: Arc<AtomicUsize>,
) {
    tokio::task::spawn_local(Rc::clone(&context).follow_epochs());
    tokio::task::spawn_local(Rc::clone(&context).flush_usage());
    tokio::task::spawn_local(Rc::clone(&context).run_timers());
    tokio::task::spawn_local(Rc::clone(&context).run_turns());
    while let Some(AssignedConnection { stream, permissions, guard }) = assigned.recv().await {
        let open = OpenConnection(Arc::clone(&open));
        let connection =
            Connection::new(stream, Arc::clone(guard.account()), permissions, Rc::clone(&context));
        tokio::task::spawn_local(async move {
            let _counted = (guard, open);
            match connection.serve().await {
                Ok(end) => debug!(?end, "connection ended"),
                Err(error) => debug!(%error, "connection failed"),
            }
        });
    }
}

/// Counts an open connection from its assignment until it is dropped.
struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
