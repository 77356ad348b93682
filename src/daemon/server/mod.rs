//! The daemon process: start-up, serving and shutdown.
//!
//! [`run`] is the life of the process. It waits for the [start-up](startup), which runs on a thread
//! of its own, or for a signal that ends it. Then it runs the [control loop](control) on the main
//! thread: accepting connections, the admin socket, signals, and the drain at the end. Requests are
//! answered by the [workers](worker).

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::config::{Config, ConfigError};
use crate::reload::LastGoodStore;
use crate::revocation;
use crate::server::rollback::Rollback;
use crate::server::startup::Startup;
use keyward_service::listener::ListenError;
use keyward_service::log::Log;
use keyward_state as state;

mod acceptor;
mod admin_handler;
mod connection_limits;
mod control;
mod descriptors;
mod listening_socket;
mod messages;
mod reload_config;
mod rollback;
mod signals;
#[cfg(feature = "simulation")]
pub mod simulation;
mod socket_preview;
mod startup;
mod systemd_sockets;
mod worker;

pub use messages::{diagnostics, diff, withheld};
pub use signals::Signals;
pub use socket_preview::preview_sockets;
pub use systemd_sockets::SystemdSocketsError;

/// Reads the configuration. Called at the start, and again for each reload.
pub type LoadConfig = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

/// Sets up logging according to the configuration.
pub type SetUpLog = fn(keyward_settings::Log, &Log) -> io::Result<()>;

/// Runs the daemon until SIGTERM or SIGINT, and drains its connections.
///
/// # Errors
/// When the daemon cannot start. A source that cannot be loaded is no error: the daemon answers
/// NOT_READY and retries.
pub fn run(
    signals: Signals,
    log: &Log,
    load_config: LoadConfig,
    set_up_log: SetUpLog,
) -> Result<(), StartError> {
    // A core dump would write the raw keys that are being verified to disk.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| os_error("forbid core dumps")(error.into()))?;
    let Signals { runtime, receiver: mut signals } = signals;
    let rollback = Rollback::default();
    let startup = Startup {
        load_config,
        set_up_log,
        log: log.clone(),
        runtime: runtime.handle().clone(),
        rollback: rollback.clone(),
    };
    let (sender, started) = oneshot::channel();
    std::thread::Builder::new()
        .name("start".into())
        .spawn(move || sender.send(startup.run()).map_err(drop))
        .map_err(os_error("start a thread"))?;
    let started = runtime.block_on(async {
        tokio::select! {
            biased;
            started = started => Some(started),
            () = signals.stop() => None,
        }
    });
    let Some(started) = started else {
        rollback.abandon();
        return Ok(());
    };
    // The thread sends its result unless it panics.
    let daemon = started.map_err(|_| StartError::Panicked).flatten();
    if daemon.is_err() {
        rollback.dismiss_clients();
    }
    drop(rollback);
    let daemon = daemon?;
    let (audit, last_good) = (daemon.recorders.audit.clone(), daemon.recorders.last_good.clone());
    let served = LocalSet::new()
        .block_on(&runtime, control::serve(daemon, async || signals.next().await, log.clone()));
    last_good.iter().for_each(LastGoodStore::stop);
    audit.stop();
    served
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] state::StateDirError),
    /// A file of the state directory cannot be used.
    #[error(transparent)]
    File(#[from] state::FileError),
    /// The list of revocations cannot be read.
    #[error(transparent)]
    Revocations(#[from] revocation::LoadError),
    /// systemd passed other sockets than the daemon needs.
    #[error(transparent)]
    Sockets(#[from] SystemdSocketsError),
    /// A signal stopped the daemon before it served.
    #[error("stopped during the start")]
    Abandoned,
    /// The start-up thread panicked.
    #[error("the start-up thread panicked: the log has its message")]
    Panicked,
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Os {
        /// The operation.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
}

/// Converts the error of a system call. `what` completes the sentence "cannot …".
fn os_error(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Os { what, source }
}
