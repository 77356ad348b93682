//! Undoes the effects of a start-up that a signal ends before the daemon serves.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::info;

use crate::audit::Audit;
use crate::server::StartError;
use crate::server::acceptor::dismiss_backlog;
use keyward_service::socket_file::SocketFile;

/// Records the effects of a start-up; clones share them. The files of the state directory need no
/// rollback, because they are complete at any moment.
#[derive(Clone, Default)]
pub(super) struct Rollback(Arc<Mutex<Effects>>);

/// What a start-up has done so far.
#[derive(Default)]
pub(super) struct Effects {
    is_abandoned: bool,
    /// Socket files to be removed.
    pub(super) socket_files: Vec<SocketFile>,
    /// The socket of clients, unless systemd owns it. Clients that wait for an answer are told that
    /// there will be none.
    pub(super) listener: Option<UnixListener>,
    /// The audit trail to be ended.
    pub(super) audit: Option<Audit>,
}

impl Rollback {
    /// Runs a step that has effects, unless the start-up has been abandoned.
    ///
    /// # Errors
    /// [`StartError::Abandoned`], or the error of the step.
    pub(super) fn step<T>(
        &self,
        step: impl FnOnce(&mut Effects) -> Result<T, StartError>,
    ) -> Result<T, StartError> {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if effects.is_abandoned {
            return Err(StartError::Abandoned);
        }
        step(&mut effects)
    }

    /// Abandons the start-up: prevents further steps, and undoes those that were taken.
    pub(super) fn abandon(&self) {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        effects.is_abandoned = true;
        effects.socket_files.drain(..).for_each(|file| file.remove());
        effects.listener.take().iter().for_each(dismiss_backlog);
        if let Some(audit) = effects.audit.take() {
            audit.stop();
        }
        info!("stopped during the start");
    }

    /// Tells clients that the start-up has failed.
    pub(super) fn dismiss_clients(&self) {
        let listener = self.0.lock().unwrap_or_else(PoisonError::into_inner).listener.take();
        listener.iter().for_each(dismiss_backlog);
    }
}
