//! Revocations: keys and owners that an operator has taken out of force, whatever the source says of them, until it says
//! the same.
//!
//! A revocation is in force on every connection before its command returns, and on the list on disk if the disk takes it:
//!
//! 1. take the order, which commands and the swap of snapshots have one after the other;
//! 2. add the entry to the list in memory, and mark the rows in the snapshot that is being served;
//! 3. end the [epoch](crate::publish), give the line to the [`writer`], and give the order back;
//! 4. wait for the line to be durable, or for the disk to refuse it or to take too long;
//! 5. wait until every worker has passed that epoch; only then is the command answered (promise 2).
//!
//! Nothing that is in force waits for the disk. A command whose line is not durable says so and why; the line is tried
//! again until it is.
//!
//! A reload marks its new snapshot before the swap, under the same order, so that no revocation falls between the two. It
//! does the long part of that before, beside commands that go on; under the order it repeats only what they changed
//! meanwhile. So a revocation waits for no reload. When the new snapshot is in force, the list is [settled](settle) with
//! what the source says itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tracing::{info, warn};

use crate::publish::{Epochs, Published, Publisher, SnapshotReader};
use keyward_engine::record::Quoted;
use keyward_engine::snapshot::Snapshot;
use keyward_state::{AcceptanceRecord, FileError, StateDir, current_second};

mod file;
mod line;
mod list;
mod replay;
mod settle;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use file::File;
use line::Line;
use list::{Entry, List, MarkCounts};
pub use list::{RevocationRecord, Source, SourceStatus, Target, TargetError};
pub use replay::LoadError;
pub use settle::{Reconciliation, Retention};
use watermark::ListClock;
pub use writer::Durability;
use writer::Writer;

/// Most entries on the list. A revocation here is a stopgap until the source says so too; more than this is a change of the
/// source.
pub const MAX_ENTRIES: usize = 100_000;

/// Why nothing is durable where there is no state directory.
const NO_DIRECTORY: &str =
    "the daemon has no state directory: name one with --state-dir or server.state_dir, and start it again";

/// The ticket of a line that is not given to a disk, or not yet: it is behind all that are durable.
const NOT_QUEUED: u64 = u64::MAX;

/// The list, and what it is applied to.
pub struct Revocations {
    snapshots: SnapshotReader,
    epochs: Epochs,
    /// Held by commands and by swaps of snapshots, from the first step to the last but those that wait.
    order: Mutex<Order>,
    /// Changed under the order only; on its own so that looking at it waits for no command.
    list: Arc<RwLock<List>>,
    /// `None`: there is no state directory.
    writer: Option<Writer>,
    /// The list's clock.
    clock: ListClock,
}

struct Order {
    /// What has changed since a reload began to mark its snapshot.
    since: Option<Vec<Target>>,
}

/// The list, as it was found in the state directory.
pub struct LoadedList {
    list: List,
    kept: Option<(Arc<StateDir>, File, Option<FileError>)>,
    accepted: Option<(AcceptanceRecord, LoadError)>,
}

/// A command that was carried out. It may be answered when `epoch` is [passed](Epochs::passed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutcome {
    /// It was so before.
    pub already: bool,
    /// Rows that have that key id or owner; 0 where no keys are loaded.
    pub keys: usize,
    /// Those of them that are revoked now: by this command, by another, or by the source.
    pub revoked: usize,
    /// The snapshot being served; 0: none yet.
    pub generation: u64,
    /// What has to be passed before it is in force everywhere.
    pub epoch: u64,
    /// Whether a restart would find it.
    pub durability: Durability,
}

/// Why a command was not carried out. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// The source has no such key or owner.
    #[error("no key {} in generation {generation}{}", of(target), advice(target))]
    Unknown {
        /// What was named.
        target: Target,
        /// The snapshot that was looked through.
        generation: u64,
    },
    /// Without keys nobody can tell an id from a key, and a key must not be written to the disk (promise 7).
    #[error(
        "no keys are loaded, and {} may be a key itself, which is not to be written down: load the source first, then name \
         a key by its id",
        named(target)
    )]
    MayBeKey {
        /// What was named.
        target: Target,
    },
    /// It was not revoked here.
    #[error("{} is not on the list of revocations (keyward status --revocations shows it)", named(target))]
    NotRevoked {
        /// What was named.
        target: Target,
    },
    /// There are [`MAX_ENTRIES`].
    #[error(
        "{MAX_ENTRIES} revocations are on the list, and that is as many as it holds: revoke in the source, and reload"
    )]
    Full,
}

fn named(target: &Target) -> String {
    match target {
        Target::Key(key_id) => format!("key {}", Quoted(key_id)),
        Target::Owner(owner) => format!("owner {}", Quoted(owner)),
    }
}

fn of(target: &Target) -> String {
    match target {
        Target::Key(key_id) => format!("has the id {}", Quoted(key_id)),
        Target::Owner(owner) => format!("belongs to {}", Quoted(owner)),
    }
}

fn may_be_key(target: &Target) -> bool {
    let (Target::Key(text) | Target::Owner(text)) = target;
    Quoted(text).may_be_key()
}

fn advice(target: &Target) -> &'static str {
    match may_be_key(target) {
        true => "; name a key by its id, never by the key itself. If the source has it, reload first",
        false => "; if the source has it, reload first",
    }
}

/// Reads the list, before anything is served and before any other file of the directory is made. Without a directory
/// there is none.
///
/// # Errors
/// When it cannot be read to its end, or is not complete: what is in it must be in force from the first answer on.
pub fn load(directory: Option<Arc<StateDir>>) -> Result<LoadedList, LoadError> {
    let Some(directory) = directory else {
        return Ok(LoadedList { list: List::default(), kept: None, accepted: None });
    };
    let file::Opened { file, list, accepted, unwritten } = File::open(&directory)?;
    if let Some((AcceptanceRecord { by_uid, at }, loss)) = &accepted {
        warn!(by_uid, %at, %loss, entries = list.len(), "a loss of revocations has been accepted");
    }
    Ok(LoadedList { list, kept: Some((directory, file, unwritten)), accepted })
}

impl LoadedList {
    /// The loss that an operator has accepted, if there was one, and how many revocations are left.
    pub fn accepted_loss(&self) -> Option<(AcceptanceRecord, usize)> {
        self.accepted.as_ref().map(|(accepted, _)| (*accepted, self.list.len()))
    }
}

impl Revocations {
    /// [Loads](load) the list and puts it in force.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn open(directory: Option<Arc<StateDir>>, publisher: &Publisher) -> Result<Self, LoadError> {
        Self::start(load(directory)?, publisher)
    }

    /// Puts a list in force, before anything is served.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(loaded: LoadedList, publisher: &Publisher) -> Result<Self, LoadError> {
        let LoadedList { list, kept, .. } = loaded;
        if list.len() > 0 {
            info!(entries = list.len(), conflicts = list.conflicts(), "revocations are in force");
        }
        let list = Arc::new(RwLock::new(list));
        let writer = kept.map(|(directory, file, unwritten)| {
            let path = directory.path(file::NAME);
            let writer = Writer::start(directory, file, Arc::clone(&list), unwritten.as_ref());
            writer.map_err(|error| FileError { path, what: "start the thread that writes to it", error })
        });
        let writer = writer.transpose()?;
        Ok(Self {
            snapshots: publisher.reader(),
            epochs: publisher.epochs(),
            order: Mutex::new(Order { since: None }),
            list,
            clock: writer.as_ref().map_or_else(ListClock::from_zero, Writer::clock),
            writer,
        })
    }

    /// Revokes `target`. Waits for the disk: not for an asynchronous thread.
    ///
    /// # Errors
    /// See [`RevokeError`].
    pub fn revoke(&self, target: Target, by_uid: u32) -> Result<CommandOutcome, RevokeError> {
        let mut order = self.order();
        let snapshot = self.snapshots.current();
        let known = self.list().get(&target).copied();
        // One that is being dropped is revoked anew, so that it is not.
        if let Some(known) = known.filter(|entry| !entry.dropping) {
            let pending = self.change(snapshot.as_deref(), &target, true);
            drop(order);
            return Ok(self.wait(pending, known.ticket));
        }
        match (&snapshot, &target) {
            (Some(snapshot), target) if !exists(snapshot, target) => {
                return Err(RevokeError::Unknown {
                    target: target.clone(),
                    generation: snapshot.generation(),
                });
            }
            (None, target) if may_be_key(target) => {
                return Err(RevokeError::MayBeKey { target: target.clone() });
            }
            _ => {}
        }
        if known.is_none() && self.list().len() >= MAX_ENTRIES {
            return Err(RevokeError::Full);
        }
        let source = known.and_then(|entry| entry.record.source);
        let record = RevocationRecord { when: current_second(), by_uid, source, durable: false };
        // On the list before its line is given: where the whole list is written instead of the line, it must be there.
        self.list_mut().insert(target.clone(), record, NOT_QUEUED);
        let ticket = self.enqueue([Line::revoke(&target, &record)]);
        if let Some(entry) = self.list_mut().get_mut(&target) {
            entry.ticket = ticket;
        }
        let pending = self.put_in_force(snapshot.as_deref(), target, &mut order);
        drop(order);
        Ok(self.wait(pending, ticket))
    }

    /// Takes a revocation back: what the source says holds again. One that cannot be written is revoked again after a restart.
    ///
    /// # Errors
    /// See [`RevokeError`].
    pub fn unrevoke(&self, target: Target, by_uid: u32) -> Result<CommandOutcome, RevokeError> {
        let mut order = self.order();
        if self.list_mut().remove(&target).is_none() {
            return Err(RevokeError::NotRevoked { target });
        }
        let ticket = self.enqueue([Line::unrevoke(&target, current_second(), by_uid)]);
        let snapshot = self.snapshots.current();
        let pending = self.put_in_force(snapshot.as_deref(), target, &mut order);
        drop(order);
        Ok(self.wait(pending, ticket))
    }

    /// Everything on the list: what is not durable or contradicted by the source first, then the latest.
    #[cfg(test)]
    pub fn entries(&self) -> Vec<(Target, RevocationRecord)> {
        self.latest(usize::MAX).1
    }

    /// How many entries a restart would not find.
    pub fn not_durable(&self) -> usize {
        let (written, list) = (self.written(), self.list());
        list.iter().filter(|(_, entry)| !record(entry, written).durable).count()
    }

    /// How many entries are on the list, and the first `count`: what is not durable or contradicted by the
    /// source comes first, then the latest.
    pub fn latest(&self, count: usize) -> (usize, Vec<(Target, RevocationRecord)>) {
        let (written, list) = (self.written(), self.list());
        (list.len(), list.latest(count, |entry| record(entry, written)))
    }

    /// How many entries are on the list, and the next `count` behind `after`, in the order of their names.
    pub fn page(&self, after: Option<&Target>, count: usize) -> (usize, Vec<(Target, RevocationRecord)>) {
        let (written, list) = (self.written(), self.list());
        (list.len(), list.page(after, count, |entry| record(entry, written)))
    }

    /// The last line that is durable; `None`: nothing is kept.
    fn written(&self) -> Option<u64> {
        self.writer.as_ref().map(Writer::written)
    }

    /// Publishes a snapshot with everything marked in it that is revoked by the time of the swap.
    pub fn publish(&self, publisher: &Publisher, snapshot: Arc<Snapshot>) -> Published {
        // The long part, while commands go on.
        let before = {
            self.order().since = Some(Vec::new());
            // A command between the two is in both, and marked twice.
            self.list().clone()
        };
        before.mark_all(&snapshot);
        drop(before);

        let mut order = self.order();
        let list = self.list();
        for target in order.since.take().unwrap_or_default() {
            list.mark(&snapshot, &target);
        }
        publisher.publish(snapshot)
    }

    /// Gives lines to the disk, in the order in which the list changes; returns the number of the last.
    fn enqueue(&self, lines: impl IntoIterator<Item = Line>) -> u64 {
        self.writer.as_ref().map_or(NOT_QUEUED, |writer| writer.enqueue(lines))
    }

    /// Completes a change with what has become of its line.
    fn wait(&self, change: CommandOutcome, ticket: u64) -> CommandOutcome {
        let durability = match &self.writer {
            Some(writer) => writer.wait(ticket),
            None => Durability::NotDurable(NO_DIRECTORY.into()),
        };
        CommandOutcome { durability, ..change }
    }

    /// The last steps of a command under the order, once the list is changed.
    fn put_in_force(&self, snapshot: Option<&Snapshot>, target: Target, order: &mut Order) -> CommandOutcome {
        let change = self.change(snapshot, &target, false);
        if let Some(since) = &mut order.since {
            since.push(target);
        }
        change
    }

    /// Marks the rows, and ends the epoch: also where another command has, whose sender may still be waiting for it.
    fn change(&self, snapshot: Option<&Snapshot>, target: &Target, already: bool) -> CommandOutcome {
        let list = self.list();
        let MarkCounts { rows, revoked } =
            snapshot.map(|snapshot| list.mark(snapshot, target)).unwrap_or_default();
        let generation = snapshot.map_or(0, Snapshot::generation);
        let epoch = self.epochs.advance();
        CommandOutcome { already, keys: rows, revoked, generation, epoch, durability: Durability::Durable }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> std::sync::RwLockReadGuard<'_, List> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn list_mut(&self) -> std::sync::RwLockWriteGuard<'_, List> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an entry, given the last line that is durable.
fn record(entry: &Entry, written: Option<u64>) -> RevocationRecord {
    RevocationRecord { durable: written.is_some_and(|written| entry.ticket <= written), ..entry.record }
}

fn exists(snapshot: &Snapshot, target: &Target) -> bool {
    match target {
        Target::Key(key_id) => snapshot.rows_of_key(key_id).next().is_some(),
        Target::Owner(owner) => snapshot.rows_of_owner(owner).next().is_some(),
    }
}
