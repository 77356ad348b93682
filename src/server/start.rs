//! The start, on a thread of its own: the main thread waits for it and for signals, so that SIGTERM ends a start at any moment.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use crate::audit::{Audit, Event};
use crate::config::{Config, ConfigError};
use crate::log::Log;
use crate::memory;
use crate::reload::LastGood;
use crate::revocation;
use crate::server::listener::{Listener, Wanted};
use crate::server::socket_file::SocketFile;
use crate::server::{
    ADMIN_MODE, ADMIN_MODE_FOR_OTHERS, Accounts, Configuration, Daemon, SetUpLog, StartError,
    connection_limit, system,
};
use crate::state::{self, StateDir, Unwritten, WriteHealth};
use crate::systemd;
use crate::usage::Usage;

/// What a daemon is started with.
pub(super) struct Start {
    pub(super) configuration: Configuration,
    pub(super) set_up_log: SetUpLog,
    pub(super) log: Log,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) undo: Undo,
}

/// A daemon that is ready to serve.
pub(super) struct Started {
    pub(super) config: Config,
    pub(super) daemon: Daemon,
    pub(super) verify: Listener,
    pub(super) admin: Listener,
    pub(super) audit: Audit,
    pub(super) last_good: Option<LastGood>,
}

fn names(unwritten: &[Unwritten]) -> String {
    unwritten.iter().map(|file| &*file.file).collect::<Vec<_>>().join(", ")
}

impl Start {
    /// Starts the daemon.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(super) fn run(self) -> Result<Started, StartError> {
        let Self { configuration, set_up_log, log, runtime, undo } = self;
        let config = configuration()?;
        set_up_log(config.log, &log).map_err(system("start the log"))?;
        // Before anything large is allocated.
        memory::set_huge_pages(config.server.huge_pages);
        memory::keep_reserve();
        let max_connections = connection_limit(config.server.max_connections, config.server.workers);
        let (verify, admin) = undo.collect(|files| {
            let sockets = open_sockets(&config)?;
            let own = [&sockets.0, &sockets.1].into_iter().filter_map(|socket| socket.own.as_ref());
            files.sockets.extend(own.map(|bound| bound.file.clone()));
            Ok::<_, StartError>(sockets)
        })?;

        // After the sockets: a client that connects while another daemon still has the directory waits for its answer.
        let health = WriteHealth::default();
        health.observe(|unwritten| systemd::unwritten(&names(unwritten)));
        let (path, is_chosen) = (&config.server.state_dir, config.server.state_dir_is_chosen);
        let state = StateDir::open_reporting(path, is_chosen, health.clone())?.map(Arc::new);
        // Before any other file of the directory: where one of those is, so is the list.
        let revocations = revocation::load(state.clone())?;
        if let Some(directory) =
            state.as_ref().filter(|state| state.is_new() || state.first_state_file().is_none())
        {
            warn!(
                directory = %directory.path("").display(),
                "the state directory is new: if there was one before, its revocations, balances and audit trail are lost"
            );
        }
        let audit = undo.collect(|files| {
            let audit = match &state {
                Some(directory) => Audit::open(directory, config.audit)?,
                None => Audit::disabled(),
            };
            let uid = rustix::process::geteuid().as_raw();
            audit.record(&Event::Start { version: env!("CARGO_PKG_VERSION"), pid: std::process::id(), uid });
            audit.record(&configured(config.file.as_deref(), None));
            if let Some((state::AcceptanceRecord { by_uid, at }, left)) = revocations.accepted_loss() {
                let at = at.to_string();
                audit.record(&Event::LostRevocationsAccepted { by_uid, at, revocations: left });
            }
            files.audit = Some(audit.clone());
            Ok::<_, StartError>(audit)
        })?;
        let (usage, logs) = Usage::start(state.as_deref(), config.usage, config.server.workers)?;
        let last_good = LastGood::open(state.as_ref(), config.keep_snapshot)
            .map_err(system("start the thread that keeps the keys in force"))?;
        let accounts =
            Accounts { audit: audit.clone(), usage, logs, last_good: last_good.clone(), health, revocations };
        let daemon = Daemon::start(&config, configuration, max_connections, state, &runtime, accounts)?;
        Ok(Started { config, daemon, verify, admin, audit, last_good })
    }
}

/// The sockets, verify and admin: systemd's, or new ones.
fn open_sockets(config: &Config) -> Result<(Listener, Listener), StartError> {
    if let Some(systemd::Sockets { verify, admin }) = systemd::take_sockets()? {
        return Ok((Listener::adopt(verify), Listener::adopt(admin)));
    }
    let server = &config.server;
    let verify =
        Wanted::new(server.socket.as_path(), server.socket_mode.bits(), server.socket_group.as_ref())?;
    let admin_mode = if server.admin_uids.is_empty() { ADMIN_MODE } else { ADMIN_MODE_FOR_OTHERS };
    let admin = Wanted::new(server.admin_socket.as_path(), admin_mode, None)?;
    Ok((Listener::bind(verify)?, Listener::bind(admin)?))
}

/// What the audit trail says of a configuration: not the error's text, which may repeat a setting.
pub(super) fn configured(file: Option<&Path>, error: Option<&ConfigError>) -> Event<'static> {
    let position = error.and_then(ConfigError::position);
    let count = |number: usize| u64::try_from(number).ok();
    Event::Configuration {
        file: file.map(|file| file.display().to_string()),
        valid: error.is_none(),
        line: position.and_then(|position| count(position.line)),
        column: position.and_then(|position| count(position.column)),
    }
}

/// What a start leaves behind when the daemon is told to stop before it serves.
#[derive(Clone, Default)]
pub(super) struct Undo(Arc<Mutex<Effects>>);

#[derive(Default)]
struct Effects {
    is_abandoned: bool,
    sockets: Vec<SocketFile>,
    audit: Option<Audit>,
}

impl Undo {
    /// Takes a step that leaves something behind, unless the start has been abandoned.
    fn collect<T>(&self, step: impl FnOnce(&mut Effects) -> Result<T, StartError>) -> Result<T, StartError> {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if effects.is_abandoned {
            return Err(StartError::Abandoned);
        }
        step(&mut effects)
    }

    /// Ends the start, which may be anywhere: the files of the state directory are whole at any moment.
    pub(super) fn abandon(&self) {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        effects.is_abandoned = true;
        effects.sockets.drain(..).for_each(|socket| socket.remove());
        if let Some(audit) = effects.audit.take() {
            audit.stop();
        }
        info!("stopped during the start");
    }
}
