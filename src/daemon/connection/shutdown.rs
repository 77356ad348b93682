//! The shutdown, as connections see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// How far the shutdown of the daemon has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ShutdownPhase {
    /// The daemon serves.
    Serving,
    /// Connections answer the input that has arrived, and close.
    Draining,
    /// The drain timeout has passed: connections close without waiting for their peers.
    Closing,
}

/// Shuts the workers' connections down. Dropping it closes them.
pub struct ShutdownControl {
    phase: watch::Sender<ShutdownPhase>,
    closed: Arc<AtomicBool>,
}

/// A worker's view of the shutdown.
#[derive(Clone)]
pub struct Shutdown {
    /// Connections are told of each further phase.
    pub(super) phase: watch::Receiver<ShutdownPhase>,
    /// Once set, workers answer no more requests: balances are being saved.
    closed: Arc<AtomicBool>,
}

impl ShutdownControl {
    /// A daemon that serves, and the view of its workers.
    pub fn new() -> (Self, Shutdown) {
        let (phase_sender, phase) = watch::channel(ShutdownPhase::Serving);
        let closed = Arc::<AtomicBool>::default();
        (Self { phase: phase_sender, closed: Arc::clone(&closed) }, Shutdown { phase, closed })
    }

    /// Connections answer the input that has arrived, and close.
    pub fn drain(&self) {
        self.phase.send_replace(ShutdownPhase::Draining);
    }

    /// Workers answer no more requests, and connections close without waiting for their peers. An
    /// answer that is being made may still be sent: a worker makes no more once it has passed an
    /// epoch that begins after the call.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.phase.send_replace(ShutdownPhase::Closing);
    }
}

impl Shutdown {
    /// Whether no more requests are answered. To be called after the epoch is read.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}
