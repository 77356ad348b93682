//! SIGTERM, SIGINT and SIGHUP, caught from the beginning of the process.
//!
//! A signal that arrives during start-up is kept. SIGTERM and SIGINT end the start-up. SIGHUP
//! causes a reload once the daemon serves.

use std::time::Duration;
use std::{io, thread};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signal handlers, and the control runtime that receives the signals.
pub struct Signals {
    pub(super) runtime: Runtime,
    pub(super) receiver: SignalReceiver,
}

/// Receives the signals.
pub(super) struct SignalReceiver {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// The action that a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalAction {
    Stop,
    Reload,
}

/// The runtime of the main thread. It has a thread for blocking work from the beginning, which never
/// ends. Without one, a command or the stop that needs one would panic when the system has no
/// thread left; with one, it waits for it.
fn control_runtime() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().thread_keep_alive(Duration::MAX).build()?;
    // An error here would be a panic there.
    let _ = thread::Builder::new().spawn(|| ())?.join();
    drop(runtime.spawn_blocking(|| ()));
    Ok(runtime)
}

impl Signals {
    /// Installs the signal handlers. To be called first: until then a signal's default action ends
    /// the process.
    ///
    /// # Errors
    /// When the process has no descriptors or threads left.
    pub fn catch() -> io::Result<Self> {
        let runtime = control_runtime()?;
        let receiver = {
            let _entered = runtime.enter();
            // SIGHUP first: a script that has just replaced the export may already be sending it.
            let hang_up = signal(SignalKind::hangup())?;
            let terminate = signal(SignalKind::terminate())?;
            let interrupt = signal(SignalKind::interrupt())?;
            // With a handler, a write beyond RLIMIT_FSIZE fails instead of ending the process. The
            // handler stays.
            drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
            SignalReceiver { terminate, interrupt, hang_up }
        };
        Ok(Self { runtime, receiver })
    }
}

impl SignalReceiver {
    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for any of the signals.
    pub(super) async fn next(&mut self) -> SignalAction {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => SignalAction::Stop,
            _ = self.interrupt.recv() => SignalAction::Stop,
            _ = self.hang_up.recv() => SignalAction::Reload,
        }
    }
}
