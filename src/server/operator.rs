//! What the admin socket's commands do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keyward_protocol::Verdict;
use tokio::sync::oneshot;

use crate::admin::check::Check;
use crate::admin::message::{
    self, Command, LATEST_REVOCATIONS, LogStatus, PAGE_OF_REVOCATIONS, Reload, Reply, Status, Version,
};
use crate::admin::{Operate, Peer};
use crate::audit::{self, Audit, Event, Socket};
use crate::clock::Clock;
use crate::log::{self, Log};
use crate::publish::{Epochs, SnapshotReader};
use crate::record::Quoted;
use crate::reload::last_good::State;
use crate::reload::{CheckRequest, History, LastGood, Outcome, Trigger};
use crate::revocation::{CommandOutcome, Durability, RevocationRecord, Revocations, RevokeError, Target};
use crate::server::accept::Refusals;
use crate::server::listening::Listening;
use crate::server::preview::withheld;
use crate::server::worker::Worker;
use crate::state::WriteHealth;
use crate::usage::{Usage, UsageQuery};

/// Sees all parts of a daemon, and touches only the trigger of reloads and the list of revocations.
pub(super) struct Operator {
    pub(super) workers: Arc<[Worker]>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) snapshots: SnapshotReader,
    pub(super) epochs: Epochs,
    pub(super) revocations: Arc<Revocations>,
    pub(super) history: History,
    pub(super) last_good: Option<LastGood>,
    pub(super) trigger: SyncSender<Trigger>,
    pub(super) audit: Audit,
    pub(super) usage: Usage,
    pub(super) health: WriteHealth,
    pub(super) clock: Clock,
    pub(super) sockets: [Rc<Listening>; 2],
    pub(super) log: Log,
    pub(super) started: Instant,
}

/// What a command does to the list.
#[derive(Clone, Copy)]
enum Edit {
    Revoke,
    Unrevoke,
}

/// What the audit trail says of a change. Before any keys are loaded nobody can tell whether what was named is an id or a
/// key that somebody typed by mistake: then it is not repeated.
fn revocation<'a>(target: &'a Target, change: &CommandOutcome, peer: Peer) -> audit::Revocation<'a> {
    let is_known = |text: &&str| change.generation > 0 || !Quoted(text).may_be_key();
    audit::Revocation {
        key_id: target.key_id().filter(is_known),
        owner: target.owner().filter(is_known),
        keys: change.keys,
        revoked: change.revoked,
        peer,
    }
}

/// What `status` says of the last good keys.
fn last_good(last_good: &LastGood) -> message::LastGood {
    let State { stored, in_use, unusable } = last_good.state();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = |second: u32| now.saturating_sub(Duration::from_secs(second.into())).as_secs();
    message::LastGood {
        in_use: in_use.is_some(),
        in_use_s: in_use.as_ref().map(|in_use| in_use.since.elapsed().as_secs()),
        why: in_use.map(|in_use| in_use.why),
        generation: stored.as_ref().map_or(0, |stored| stored.generation),
        keys: stored.as_ref().map_or(0, |stored| stored.keys),
        accepted_age_s: stored.as_ref().map(|stored| age(stored.accepted_at)),
        source_age_s: stored.as_ref().map(|stored| age(stored.written_at)),
        source: stored.map(|stored| stored.source),
        unusable,
    }
}

/// What `status` says of a revocation.
fn revoked((target, record): (Target, RevocationRecord)) -> message::Revoked {
    message::Revoked {
        target: message::Target {
            key_id: target.key_id().map(str::to_owned),
            owner: target.owner().map(str::to_owned),
        },
        when: record.when.to_string(),
        by_uid: record.by_uid,
        durable: record.durable,
        agreed_since: record.agreed_since().map(|since| since.to_string()),
        conflict_since: record.conflict_since().map(|since| since.to_string()),
    }
}

impl Operate for Operator {
    async fn operate(&self, command: Command, peer: Peer) -> Reply {
        match command {
            Command::Status => self.status().await,
            Command::Reload { force } => self.reload(force, peer).await,
            Command::Check { source } => self.check(source, peer).await,
            Command::Usage { key_id, owner, top } => self.usage(key_id, owner, top).await,
            Command::Revoke(target) => self.revoke(target, peer, Edit::Revoke).await,
            Command::Unrevoke(target) => self.revoke(target, peer, Edit::Unrevoke).await,
            Command::Revocations { after } => self.page(after).await,
            Command::Version => Version::current().into(),
        }
    }

    fn refused(&self, peer: Peer) {
        self.audit.refuse_peer(Socket::Admin, peer);
    }
}

impl Operator {
    async fn reload(&self, force: bool, peer: Peer) -> Reply {
        let (reply, outcome) = oneshot::channel();
        match self.ask(Trigger::Command { force, peer, reply }, outcome).await {
            Ok(outcome) => self.report(&outcome).into(),
            Err(refused) => refused,
        }
    }

    /// The daemon reads what its own user may read, and what is wrong with a file is told with parts of it: so only who
    /// could read it anyway may name one.
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
        match self.ask(Trigger::Check(CheckRequest { source, reply }), preview).await {
            Ok(preview) => Check::from(&preview).into(),
            Err(refused) => refused,
        }
    }

    /// Has the reload thread do something, and waits for what comes of it.
    async fn ask<T>(&self, trigger: Trigger, answer: oneshot::Receiver<T>) -> Result<T, Reply> {
        match self.trigger.try_send(trigger) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(Reply::error("too many reloads are waiting; try again"));
            }
            Err(TrySendError::Disconnected(_)) => return Err(Reply::error("the daemon is shutting down")),
        }
        answer.await.map_err(|_| Reply::error("the daemon is shutting down"))
    }

    async fn usage(&self, key_id: Option<String>, owner: Option<String>, top: Option<usize>) -> Reply {
        let question = match (key_id, owner, top) {
            (Some(key_id), None, None) => UsageQuery::Key(key_id),
            (None, Some(owner), None) => UsageQuery::Owner(owner),
            (None, None, Some(top)) => UsageQuery::Top(top),
            _ => return Reply::error("usage takes one of key_id, owner and top"),
        };
        match self.usage.query(question).await {
            Some(totals) => totals.into(),
            None => Reply::error("the daemon is shutting down"),
        }
    }

    /// Changes the list, which waits for the disk and so has a thread of its own meanwhile, and answers once
    /// the change is in force everywhere.
    async fn revoke(&self, asked: message::Target, peer: Peer, edit: Edit) -> Reply {
        let target = match Target::new(asked.key_id.as_deref(), asked.owner.as_deref()) {
            Ok(target) => target,
            Err(error) => return Reply::error(error.to_string()),
        };
        let (revocations, audit) = (Arc::clone(&self.revocations), self.audit.clone());
        let changed = tokio::task::spawn_blocking(move || {
            let change = match edit {
                Edit::Revoke => revocations.revoke(target.clone(), peer.uid),
                Edit::Unrevoke => revocations.unrevoke(target.clone(), peer.uid),
            }?;
            if !change.already {
                let revocation = revocation(&target, &change, peer);
                audit.record(&match edit {
                    Edit::Revoke => Event::Revoke(revocation),
                    Edit::Unrevoke => Event::Unrevoke(revocation),
                });
            }
            Ok::<CommandOutcome, RevokeError>(change)
        });
        let changed = changed.await;
        let change = match changed {
            Ok(Ok(change)) => change,
            Ok(Err(refused)) => return Reply::error(refused.to_string()),
            Err(_) => return Reply::error("the daemon is shutting down"),
        };
        self.epochs.wait_passed(change.epoch).await;
        let CommandOutcome { already, keys, revoked, generation, durability, .. } = change;
        let not_durable = match durability {
            Durability::Durable => None,
            Durability::NotDurable(reason) => Some(reason.to_string()),
        };
        let durable = not_durable.is_none();
        message::Revocation { target: asked, already, keys, revoked, generation, durable, not_durable }.into()
    }

    fn unwritten(&self) -> Vec<message::Unwritten> {
        let files = self.health.unwritten().into_iter().map(|file| message::Unwritten {
            file: file.file.into(),
            since: file.since.to_string(),
            since_s: file.lasting.as_secs(),
            error: file.error,
            dropped: file.dropped,
        });
        files.collect()
    }

    /// Looks at the list of revocations, which can take milliseconds, beside the thread that accepts connections.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Revocations) -> T + Send + 'static,
    ) -> Result<T, Reply> {
        let revocations = Arc::clone(&self.revocations);
        let looked = tokio::task::spawn_blocking(move || look(&revocations)).await;
        looked.map_err(|_| Reply::error("the daemon is shutting down"))
    }

    async fn page(&self, after: Option<message::Target>) -> Reply {
        let after =
            after.map(|after| Target::new(after.key_id.as_deref(), after.owner.as_deref())).transpose();
        let after = match after {
            Ok(after) => after,
            Err(error) => return Reply::error(error.to_string()),
        };
        let page = self.look(move |revocations| {
            let (total, entries) = revocations.page(after.as_ref(), PAGE_OF_REVOCATIONS + 1);
            let more = entries.len() > PAGE_OF_REVOCATIONS;
            let entries = entries.into_iter().take(PAGE_OF_REVOCATIONS).map(revoked).collect();
            message::Revocations { total, entries, more }
        });
        page.await.map_or_else(|refused| refused, Reply::from)
    }

    async fn status(&self) -> Reply {
        let latest = self.look(|revocations| {
            let (total, entries) = revocations.latest(LATEST_REVOCATIONS);
            (total, entries.into_iter().map(revoked).collect())
        });
        match latest.await {
            Ok((total, latest)) => self.status_with(total, latest).into(),
            Err(refused) => refused,
        }
    }

    fn status_with(&self, revocations_total: usize, revocations: Vec<message::Revoked>) -> Status {
        let snapshot = self.snapshots.current();
        let now = self.clock.now();
        let age = snapshot.as_ref().map(|snapshot| snapshot.meta().source_age(now).into());
        let stale = snapshot.as_ref().is_some_and(|snapshot| snapshot.meta().is_stale(now));
        let sum = |count: fn(&Worker) -> u64| self.workers.iter().map(count).sum();
        let verdicts: BTreeMap<String, u64> = Verdict::all()
            .map(|verdict| {
                let answered = self.workers.iter().map(|worker| worker.counters.answered(verdict)).sum();
                (verdict.name().to_owned(), answered)
            })
            .collect();
        Status {
            ready: snapshot.is_some() && !stale,
            stale,
            generation: snapshot.as_ref().map_or(0, |snapshot| snapshot.generation()),
            keys: snapshot.as_ref().map_or(0, |snapshot| snapshot.len()),
            buckets: self.history.buckets(),
            source: self.history.source().display().to_string(),
            source_age_s: age,
            last_reload: self.history.last().map(|outcome| self.report(&outcome)),
            configuration_refused: self.history.configuration_refused(),
            last_accepted: self.history.last_accepted().map(|outcome| self.report(&outcome)),
            last_good: self.last_good.as_ref().map(last_good),
            withheld: withheld(self.history.set_aside().as_deref(), self.history.taken().as_ref()),
            unwritten: self.unwritten(),
            revocations,
            revocations_total,
            sockets: self.sockets.iter().map(|socket| (socket.name().to_owned(), socket.status())).collect(),
            log: self.log_status(),
            connections: self.workers.iter().map(Worker::open).sum(),
            accepted_connections: sum(|worker| worker.counters.connections()),
            refused_connections: self.refusals.by_reason(),
            verdicts,
            refunds: sum(|worker| worker.counters.refunds()),
            errors: sum(|worker| worker.counters.faults()),
            uptime_s: self.started.elapsed().as_secs(),
            workers: self.workers.len(),
            pid: std::process::id(),
            version: Version::current(),
        }
    }

    fn log_status(&self) -> LogStatus {
        let log::Health { dropped, failing_since, error } = self.log.health();
        LogStatus { dropped, failing_since: failing_since.map(|since| since.to_string()), error }
    }

    /// An outcome, as of now: a reload that was refused leaves in force what was there.
    fn report(&self, outcome: &Outcome) -> Reload {
        let in_force = self.snapshots.current();
        let generation = in_force.as_ref().map_or(0, |snapshot| snapshot.generation());
        let keys = in_force.as_ref().map_or(0, |snapshot| snapshot.len());
        let took_ms = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        let age_s = outcome.at.elapsed().as_secs();
        match &outcome.result {
            Ok(accepted) => Reload {
                accepted: true,
                generation: accepted.generation,
                keys: accepted.keys,
                changes: Some((&accepted.diff).into()),
                examples: (&accepted.diff.examples).into(),
                withheld: withheld(accepted.set_aside.as_deref(), None),
                error: None,
                stale: accepted.stale.as_ref().map(ToString::to_string),
                unchanged: accepted.diff.is_unchanged(),
                revocations_agreed: accepted.revocations_agreed,
                revocations_conflicting: accepted.revocations_conflicting,
                took_ms,
                age_s,
            },
            Err(failure) => Reload {
                accepted: false,
                generation,
                keys,
                changes: failure.diff().map(Into::into),
                examples: failure.diff().map(|diff| (&diff.examples).into()).unwrap_or_default(),
                withheld: withheld(None, outcome.taken.as_ref()),
                error: Some(failure.to_string()),
                stale: None,
                unchanged: false,
                revocations_agreed: 0,
                revocations_conflicting: 0,
                took_ms,
                age_s,
            },
        }
    }
}
