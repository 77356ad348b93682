//! Carries out the commands of the admin socket.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::admin::{CommandHandler, Peer};
use crate::audit::{self, Audit, Event, Socket};
use crate::balances::{BalanceError, BalanceSource};
use crate::clock::Clock;
use crate::publish::{Epochs, SnapshotReader};
use crate::reload::{CheckRequest, History, LastGoodStore, Outcome, Trigger};
use crate::revocation::{CommandOutcome, Revocations, RevokeError, Target};
use crate::server::acceptor::RefusalCounters;
use crate::server::listening_socket::ListeningSocket;
use crate::server::messages;
use crate::server::worker::Worker;
use crate::usage::{Usage, UsageQuery};
use keyward_admin::message::{
    self, Command, KeyBalances, LATEST_REVOCATIONS, LimitBalance, REVOCATIONS_PER_PAGE, Reload, Reply,
    Revoked, Status, Version,
};
use keyward_engine::record::Quoted;
use keyward_service::log::Log;
use keyward_state::{WriteHealth, time};

mod key_counts;
mod metrics;

#[cfg(test)]
mod tests;

pub(super) use key_counts::KeyCounts;

/// Access to all parts of the daemon. It changes only the queue of reloads, the list of revocations,
/// and balances.
pub(super) struct AdminHandler {
    pub(super) workers: Arc<[Worker]>,
    pub(super) refusals: Arc<RefusalCounters>,
    /// The maximum number of open connections to the request socket.
    pub(super) max_connections: usize,
    pub(super) key_counts: KeyCounts,
    pub(super) snapshots: SnapshotReader,
    pub(super) epochs: Epochs,
    pub(super) revocations: Arc<Revocations>,
    pub(super) history: History,
    pub(super) last_good: Option<LastGoodStore>,
    pub(super) trigger: SyncSender<Trigger>,
    pub(super) audit: Audit,
    pub(super) balances: BalanceSource,
    pub(super) usage: Usage,
    pub(super) health: WriteHealth,
    pub(super) clock: Clock,
    pub(super) sockets: [Rc<ListeningSocket>; 2],
    pub(super) log: Log,
    pub(super) started: Instant,
}

impl CommandHandler for AdminHandler {
    async fn handle(&self, command: Command, peer: Peer) -> Reply {
        match command {
            Command::Status => self.status().await,
            Command::Metrics => self.metrics().await,
            Command::Reload { force } => self.reload(force, peer).await,
            Command::Check { source } => self.check(source, peer).await,
            Command::Usage { key_id, owner, top } => self.usage(key_id, owner, top).await,
            Command::Revoke(target) => self.edit_revocations(target, peer, Edit::Revoke).await,
            Command::Unrevoke(target) => self.edit_revocations(target, peer, Edit::Unrevoke).await,
            Command::Revocations { after } => self.list_revocations(after).await,
            Command::Balance { key_id } => self.balance(key_id).await,
            Command::ResetBalance { key_id, limit } => self.reset_balance(key_id, limit, peer).await,
            Command::ResetCalendar => self.reset_calendar(peer).await,
            Command::Version => Version::current().into(),
        }
    }

    fn on_refused(&self, peer: Peer) {
        self.audit.refuse_peer(Socket::Admin, peer);
    }
}

impl AdminHandler {
    async fn reload(&self, force: bool, peer: Peer) -> Reply {
        let (reply, outcome) = oneshot::channel();
        match self.request(Trigger::Command { force, peer, reply }, outcome).await {
            Ok(outcome) => self.reload_report(&outcome).into(),
            Err(error) => error,
        }
    }

    /// Only root and the daemon's own user may name a file. The daemon reads with its own
    /// permissions, and its diagnostics quote parts of the file.
    async fn check(&self, source: Option<String>, peer: Peer) -> Reply {
        let source = source.map(PathBuf::from);
        if source.is_some() && peer.uid != 0 && peer.uid != rustix::process::geteuid().as_raw() {
            return Reply::error(
                "only root and the daemon's own user may name a file to be read; without one, the daemon's source is \
                 checked",
            );
        }
        if source.as_ref().is_some_and(|source| !source.is_absolute()) {
            return Reply::error("source must be an absolute path: the daemon has another working directory");
        }
        let (reply, preview) = oneshot::channel();
        match self.request(Trigger::Check(CheckRequest { source, reply }), preview).await {
            Ok(preview) => message::Check::from(&preview).into(),
            Err(error) => error,
        }
    }

    /// Sends a request to the reload thread, and waits for the result.
    async fn request<T>(&self, trigger: Trigger, result: oneshot::Receiver<T>) -> Result<T, Reply> {
        match self.trigger.try_send(trigger) {
            Ok(()) => time::wake(),
            Err(TrySendError::Full(_)) => {
                return Err(Reply::error("too many reloads are waiting; try again"));
            }
            Err(TrySendError::Disconnected(_)) => return Err(shutting_down()),
        }
        result.await.map_err(|_| shutting_down())
    }

    async fn usage(&self, key_id: Option<String>, owner: Option<String>, top: Option<usize>) -> Reply {
        let query = match (key_id, owner, top) {
            (Some(key_id), None, None) => UsageQuery::Key(key_id),
            (None, Some(owner), None) => UsageQuery::Owner(owner),
            (None, None, Some(top)) => UsageQuery::Top(top),
            _ => return Reply::error("usage takes one of key_id, owner and top"),
        };
        self.usage.query(query).await.map_or_else(shutting_down, Reply::from)
    }

    /// Changes the list of revocations, and answers once the change is in force everywhere. The
    /// change waits for the disk, and therefore runs on a blocking thread.
    async fn edit_revocations(&self, requested: message::Target, peer: Peer, edit: Edit) -> Reply {
        let target = match Target::new(requested.key_id.as_deref(), requested.owner.as_deref()) {
            Ok(target) => target,
            Err(error) => return Reply::error(error.to_string()),
        };
        let (revocations, audit) = (Arc::clone(&self.revocations), self.audit.clone());
        let marking = Arc::clone(&self.revocations);
        let changed = tokio::task::spawn_blocking(move || {
            let change = match edit {
                Edit::Revoke => revocations.revoke(target.clone(), peer.uid),
                Edit::Unrevoke => revocations.unrevoke(target.clone(), peer.uid),
            }?;
            if !change.unchanged {
                audit.set_generation(change.generation);
                let event = revocation_event(&target, &change, peer);
                audit.record(&match edit {
                    Edit::Revoke => Event::Revoke(event),
                    Edit::Unrevoke => Event::Unrevoke(event),
                });
            }
            Ok::<CommandOutcome, RevokeError>(change)
        });
        let changed = changed.await;
        let change = match changed {
            Ok(Ok(change)) => change,
            Ok(Err(refused)) => return Reply::error(refused.to_string()),
            Err(_) => return shutting_down(),
        };
        self.epochs.wait_passed(change.epoch).await;
        // Nothing waits for its end: the change is in force.
        drop(tokio::task::spawn_blocking(move || marking.mark_passed()));
        let CommandOutcome { unchanged: already, keys, revoked, generation, durability, .. } = change;
        let not_durable = messages::not_durable(durability);
        let durable = not_durable.is_none();
        message::Revocation { target: requested, already, keys, revoked, generation, durable, not_durable }
            .into()
    }

    async fn balance(&self, key_id: String) -> Reply {
        let balances = self.balances.clone();
        match tokio::task::spawn_blocking(move || balances.of_key(&key_id)).await {
            Ok(Ok(balances)) => balances.into(),
            Ok(Err(error)) => Reply::error(error.to_string()),
            Err(_) => shutting_down(),
        }
    }

    /// Resets balances, and answers once the audit trail has it. Every charge since then sees them.
    async fn reset_balance(&self, key_id: String, limit: Option<String>, peer: Peer) -> Reply {
        let (balances, audit) = (self.balances.clone(), self.audit.clone());
        let reset = tokio::task::spawn_blocking(move || {
            let reset = balances.reset(&key_id, limit.as_deref())?;
            let event = |limit| balance_event(&reset, limit, peer);
            audit.record_all(&reset.limits.iter().map(event).collect::<Vec<_>>());
            Ok::<KeyBalances, BalanceError>(reset)
        });
        match reset.await {
            Ok(Ok(balances)) => balances.into(),
            Ok(Err(error)) => Reply::error(error.to_string()),
            Err(_) => shutting_down(),
        }
    }

    async fn reset_calendar(&self, peer: Peer) -> Reply {
        // A worker that has read the clock before it was set back would move the calendar forward
        // again. It does not use such a reading once it has passed a later epoch.
        self.epochs.wait_passed(self.epochs.advance()).await;
        let (balances, audit) = (self.balances.clone(), self.audit.clone());
        let reset = tokio::task::spawn_blocking(move || {
            let reset = balances.set_calendar_back();
            if reset.ahead_s > 0 {
                audit.record(&Event::CalendarReset { ahead_s: reset.ahead_s, moved: reset.moved, peer });
            }
            reset
        });
        reset.await.map_or_else(|_| shutting_down(), Reply::from)
    }

    async fn list_revocations(&self, after: Option<message::Target>) -> Reply {
        let after =
            after.map(|after| Target::new(after.key_id.as_deref(), after.owner.as_deref())).transpose();
        let after = match after {
            Ok(after) => after,
            Err(error) => return Reply::error(error.to_string()),
        };
        let page = self.read_revocations(move |revocations| {
            let (total, entries) = revocations.page(after.as_ref(), REVOCATIONS_PER_PAGE + 1);
            let more = entries.len() > REVOCATIONS_PER_PAGE;
            let entries = entries.into_iter().take(REVOCATIONS_PER_PAGE).map(messages::revoked).collect();
            message::Revocations { total, entries, more }
        });
        page.await.map_or_else(|error| error, Reply::from)
    }

    /// Reads the list of revocations on a blocking thread. Reading can take milliseconds, and would
    /// delay the thread that accepts connections.
    async fn read_revocations<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Revocations) -> T + Send + 'static,
    ) -> Result<T, Reply> {
        let revocations = Arc::clone(&self.revocations);
        tokio::task::spawn_blocking(move || read(&revocations)).await.map_err(|_| shutting_down())
    }

    async fn status(&self) -> Reply {
        let latest = self.read_revocations(|revocations| {
            let (total, entries) = revocations.latest(LATEST_REVOCATIONS);
            (total, entries.into_iter().map(messages::revoked).collect())
        });
        match latest.await {
            Ok((total, latest)) => self.status_with(total, latest).into(),
            Err(error) => error,
        }
    }

    fn status_with(&self, revocations_total: usize, revocations: Vec<Revoked>) -> Status {
        let published = self.snapshots.published();
        let snapshot = published.as_ref().map(|published| published.snapshot());
        let now = self.clock.now();
        let age = snapshot.as_ref().map(|snapshot| snapshot.meta().source_age(now).into());
        let (set_aside, takeaways) = (self.history.set_aside(), self.history.takeaways());
        let mut withheld = messages::withheld(set_aside.as_deref(), takeaways.as_ref());
        messages::set_takeaway_durability(withheld.as_mut(), self.last_good.as_ref());
        let stale = snapshot.as_ref().is_some_and(|snapshot| snapshot.meta().is_stale(now));
        let sum = |count: fn(&Worker) -> u64| self.workers.iter().map(count).sum();
        Status {
            ready: snapshot.is_some() && !stale,
            stale,
            generation: published.as_ref().map_or(0, |published| published.generation()),
            table_generation: snapshot.map_or(0, |snapshot| snapshot.table_generation()),
            keys: snapshot.as_ref().map_or(0, |snapshot| snapshot.len()),
            buckets: self.history.buckets(),
            source: self.history.source().display().to_string(),
            source_age_s: age,
            last_reload: self.history.last().map(|outcome| self.reload_report(&outcome)),
            configuration_refused: self.history.configuration_refused(),
            last_accepted: self.history.last_accepted().map(|outcome| self.reload_report(&outcome)),
            last_good: self.last_good.as_ref().map(|last_good| last_good.status().into()),
            withheld,
            unwritten: self.health.unwritten().into_iter().map(messages::unwritten).collect(),
            revocations,
            revocations_total,
            calendar_ahead_s: self.balances.calendar_ahead_s(),
            sockets: self.sockets.iter().map(|socket| (socket.name().to_owned(), socket.status())).collect(),
            log: messages::log_status(self.log.health()),
            connections: self.workers.iter().map(Worker::open_connections).sum(),
            accepted_connections: sum(|worker| worker.counters.connections()),
            refused_connections: self.refusals.by_reason(),
            verdicts: self.verdicts(),
            refunds: sum(|worker| worker.counters.refunds()),
            debits: sum(|worker| worker.counters.debits()),
            errors: sum(|worker| worker.counters.errors()),
            uptime_s: self.started.elapsed().as_secs(),
            workers: self.workers.len(),
            pid: std::process::id(),
            version: Version::current(),
        }
    }

    fn reload_report(&self, outcome: &Outcome) -> Reload {
        messages::reload(outcome, self.snapshots.published().as_deref(), self.last_good.as_ref())
    }
}

/// A change of the list of revocations.
#[derive(Clone, Copy)]
enum Edit {
    Revoke,
    Unrevoke,
}

/// The audit record of a change. Until keys are loaded, it omits a target that may be a key: an
/// operator can have typed a key in place of its id.
fn revocation_event<'a>(target: &'a Target, change: &CommandOutcome, peer: Peer) -> audit::Revocation<'a> {
    let may_be_recorded = |text: &&str| change.generation > 0 || !Quoted(text).may_be_key();
    audit::Revocation {
        key_id: target.key_id().filter(may_be_recorded),
        owner: target.owner().filter(may_be_recorded),
        keys: change.keys,
        revoked: change.revoked,
        peer,
    }
}

fn balance_event<'a>(reset: &'a KeyBalances, limit: &'a LimitBalance, peer: Peer) -> Event<'a> {
    Event::BalanceReset(audit::BalanceReset {
        key_id: &reset.key_id,
        owner: limit.owner.as_deref(),
        limit: &limit.name,
        balance: limit.before.unwrap_or(limit.balance),
        peer,
    })
}

fn shutting_down() -> Reply {
    Reply::error("the daemon is shutting down")
}
