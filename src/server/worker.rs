//! A worker: a thread with a runtime of its own, and the connections that were handed to it for good.
//!
//! No work is stolen: a connection's buffers, the snapshot's cache line and the bucket it charges stay with one core, and
//! nothing between a read and its write can be moved elsewhere.

use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tracing::{debug, warn};

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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (connections, handed) = mpsc::unbounded_channel();
        let open = Arc::new(AtomicUsize::new(0));
        let still_open = Arc::clone(&open);
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            LocalSet::new().block_on(&runtime, serve(handed, shared(), still_open));
        })?;
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
    while let Some(stream) = handed.recv().await {
        let counted = Open(Arc::clone(&open));
        match adopt(stream) {
            Ok(stream) => {
                let connection = Connection::new(stream, Rc::clone(&shared));
                tokio::task::spawn_local(async move {
                    let _counted = counted;
                    match connection.serve().await {
                        Ok(end) => debug!(?end, "connection ended"),
                        Err(error) => debug!(%error, "connection failed"),
                    }
                });
            }
            Err(error) => warn!(%error, "cannot serve a connection"),
        }
    }
}

fn adopt(stream: UnixStream) -> io::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

/// An open connection, counted from its hand-over to its end.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
