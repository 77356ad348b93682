//! A worker: a thread with a runtime of its own, and the connections that were handed to it for good.
//!
//! No work is stolen: a connection's buffers, the snapshot's cache line and the bucket it charges stay with one core, and
//! nothing between a read and its write can be moved elsewhere.

use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tracing::debug;

use crate::connection::{Connection, Counters, Shared};

/// A worker, as the rest of the daemon sees it.
pub(super) struct Worker {
    /// What it has done.
    pub(super) counters: Arc<Counters>,
    connections: mpsc::UnboundedSender<UnixStream>,
    open: Arc<AtomicUsize>,
}

impl Worker {
    /// Starts a worker; `shared` makes, on its thread, what its connections share. The thread lives as long as the daemon.
    ///
    /// # Errors
    /// When the system has no thread or no epoll instance left.
    pub(super) fn start(
        number: usize,
        counters: Arc<Counters>,
        shared: impl FnOnce() -> Rc<Shared> + Send + 'static,
    ) -> io::Result<Self> {
        let (connections, handed) = mpsc::unbounded_channel();
        let open = Arc::new(AtomicUsize::new(0));
        let still_open = Arc::clone(&open);
        let (say_started, started) = sync_channel(1);
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // It cannot leave the thread that makes it.
            let runtime =
                Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default());
            let (runtime, outcome) = match runtime {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _starter_waits = say_started.send(outcome);
            if let Some(runtime) = runtime {
                runtime.block_on(serve(handed, shared(), still_open));
            }
        })?;
        started.recv().map_err(|_| io::Error::other("the thread has ended"))??;
        Ok(Self { counters, connections, open })
    }

    /// Connections that it has.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Gives it a connection.
    pub(super) fn hand(&self, connection: UnixStream) {
        self.open.fetch_add(1, Ordering::Relaxed);
        // Its receiver lives as long as the thread, and the thread as long as the daemon.
        let _never_closed = self.connections.send(connection);
    }
}

/// Takes connections, and serves each in a task of its own.
async fn serve(mut handed: mpsc::UnboundedReceiver<UnixStream>, shared: Rc<Shared>, open: Arc<AtomicUsize>) {
    tokio::task::spawn_local(Rc::clone(&shared).follow());
    tokio::task::spawn_local(Rc::clone(&shared).account());
    tokio::task::spawn_local(Rc::clone(&shared).ring());
    while let Some(stream) = handed.recv().await {
        let counted = Open(Arc::clone(&open));
        let connection = Connection::new(stream, Rc::clone(&shared));
        tokio::task::spawn_local(async move {
            let _counted = counted;
            match connection.serve().await {
                Ok(end) => debug!(?end, "connection ended"),
                Err(error) => debug!(%error, "connection failed"),
            }
        });
    }
}

/// An open connection, counted from its hand-over to its end.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
