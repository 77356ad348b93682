//! SIGTERM, SIGINT and SIGHUP, caught from the beginning of the start.
//!
//! A signal that arrives while the daemon starts is kept: SIGTERM and SIGINT end the start, and SIGHUP leads to a reload
//! once the daemon serves.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals, and the control runtime, which receives them.
pub struct Signals {
    pub(super) runtime: Runtime,
    pub(super) caught: Caught,
}

/// The signals that have arrived.
pub(super) struct Caught {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What the daemon is asked to do by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Stop,
    Reload,
}

impl Signals {
    /// Catches the signals from now on. To be called first: until then their default action ends the process.
    ///
    /// # Errors
    /// When the system has no descriptors left for it.
    pub fn catch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let caught = {
            let _in_runtime = runtime.enter();
            // SIGHUP first: it may be sent by a script that has just replaced the export.
            let hang_up = signal(SignalKind::hangup())?;
            let terminate = signal(SignalKind::terminate())?;
            let interrupt = signal(SignalKind::interrupt())?;
            Caught { terminate, interrupt, hang_up }
        };
        Ok(Self { runtime, caught })
    }
}

impl Caught {
    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for any of them.
    pub(super) async fn next(&mut self) -> Order {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hang_up.recv() => Order::Reload,
        }
    }
}
