//! Starts a whole daemon within the process of the model test (`tests/model`), and ends it as a
//! signal or a crash would. All its threads have ended afterwards.
//!
//! The test controls the clock ([`keyward_state::simulation`]), the disk
//! ([`keyward_state::disk::trace`]) and the sockets ([`crate::connection::simulation`]). It does
//! without the file of usage and the watch of the source. Everything else is the daemon of a normal
//! build: it is started by the same code, in the same order, and is used through its sockets.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;

use crate::reload::LastGoodStore;
use crate::server::control;
use crate::server::rollback::Rollback;
use crate::server::signals::SignalAction;
use crate::server::startup::Startup;
use crate::server::worker::Worker;
use crate::server::{LoadConfig, StartError};
use keyward_service::log::Log;

/// A running daemon.
pub struct Process {
    control: JoinHandle<Result<(), StartError>>,
    ending: watch::Sender<Ending>,
    last_good: Option<LastGoodStore>,
    loaded: Receiver<()>,
    /// Does not keep the workers alive.
    workers: Weak<[Worker]>,
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    NotYet,
    Terminated,
    Killed,
}

impl Process {
    /// Starts a daemon. `load_config` is called at the start and for each reload.
    ///
    /// # Errors
    /// When the daemon cannot start.
    pub fn start(load_config: LoadConfig, log: Log) -> Result<Self, StartError> {
        let (ending, ended) = watch::channel(Ending::NotYet);
        let (started_sender, started) = sync_channel(1);
        let (loaded_sender, loaded) = sync_channel(1);
        let control = std::thread::Builder::new().name("main".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(super::os_error("build a runtime"))?;
            let startup = Startup {
                load_config,
                set_up_log: |_, _| Ok(()),
                log: log.clone(),
                runtime: runtime.handle().clone(),
                rollback: Rollback::default(),
            };
            let mut daemon = startup.run()?;
            let (audit, last_good) = (daemon.recorders.audit.clone(), daemon.recorders.last_good.clone());
            // The test waits for the end of the first load, as systemd does.
            let (load_ended, first_load) = oneshot::channel();
            let real_first_load = std::mem::replace(&mut daemon.reload.first_load, first_load);
            let _ = started_sender.send((last_good.clone(), Arc::downgrade(&daemon.workers)));
            let served = LocalSet::new().block_on(&runtime, async {
                tokio::task::spawn_local(async move {
                    let _ = real_first_load.await;
                    let _ = load_ended.send(());
                    let _ = loaded_sender.send(());
                });
                let (mut terminated, mut killed) = (ended.clone(), ended);
                let next_signal = async || {
                    // An error means that the test has dropped the daemon.
                    let _ = terminated.wait_for(|ending| *ending == Ending::Terminated).await;
                    SignalAction::Stop
                };
                tokio::select! {
                    served = control::serve(daemon, next_signal, log) => Some(served),
                    _ = killed.wait_for(|ending| *ending == Ending::Killed) => None,
                }
            });
            last_good.iter().for_each(LastGoodStore::stop);
            // A killed daemon does nothing any more; its threads are only waited for.
            let Some(served) = served else { return Ok(()) };
            audit.stop();
            served
        });
        let control = control.map_err(super::os_error("start a thread"))?;
        match started.recv() {
            Ok((last_good, workers)) => Ok(Self { control, ending, last_good, loaded, workers }),
            Err(_) => match control.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(StartError::Panicked),
            },
        }
    }

    /// Waits until the first load has ended, or for `timeout`. Returns whether it has ended.
    pub fn wait_loaded(&self, timeout: Duration) -> bool {
        self.loaded.recv_timeout(timeout) != Err(RecvTimeoutError::Timeout)
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        let workers = self.workers.upgrade();
        workers.iter().flat_map(|workers| workers.iter()).map(Worker::open_connections).sum()
    }

    /// Waits until the last good keys are stored, or cannot be.
    pub fn wait_stored(&self) {
        self.last_good.iter().for_each(|last_good| _ = last_good.wait_idle());
    }

    /// Asks the daemon to end, as SIGTERM does.
    pub fn terminate(&self) {
        self.ending.send_replace(Ending::Terminated);
    }

    /// Ends the daemon without an orderly shutdown. The disk must refuse every call by now.
    pub fn kill(&self) {
        self.ending.send_replace(Ending::Killed);
    }

    /// Whether the daemon has ended: [`Process::join`] does not wait.
    pub fn has_ended(&self) -> bool {
        self.control.is_finished()
    }

    /// Waits until the daemon has ended.
    ///
    /// # Errors
    /// When serving has failed.
    pub fn join(self) -> Result<(), StartError> {
        self.control.join().unwrap_or(Err(StartError::Panicked))
    }
}
