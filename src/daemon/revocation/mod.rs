//! Revocations: keys and owners that an operator has revoked, independently of the source, until
//! the source confirms them.
//!
//! A revocation is in force on every connection before its command is answered, and on disk unless
//! the disk fails. [`Revocations::revoke`] takes steps 1 to 4, and its caller, `edit_revocations`
//! in `server/admin_handler.rs`, takes step 5:
//!
//! 1. lock the commands, which excludes other commands and the swap of snapshots;
//! 2. add the entry to the list in memory, and mark the rows of the current snapshot;
//! 3. queue the line for the [`writer`], advance the [epoch](crate::publish), and unlock;
//! 4. wait until the line is durable, or the disk fails or takes too long;
//! 5. the caller waits until every worker has passed the epoch, and only then answers the command.
//!
//! Putting a revocation in force never waits for the disk. A command whose line is not durable
//! reports that and why; the write is retried until it succeeds.
//!
//! A reload marks its new snapshot before the swap, under the same lock, so no revocation is missed
//! between the two. It does most of the marking before it locks, while commands go on. Under the
//! lock it repeats only the targets that changed meanwhile. So a revocation never waits for a
//! reload. Once the new snapshot is in force, the list is [reconciled](reconcile) with the source.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tracing::{info, warn};

use crate::publish::{Epochs, Publisher, SnapshotReader};
use keyward_engine::snapshot::Snapshot;
use keyward_state::{AcceptanceRecord, FileError, StateDir, current_second};

mod error;
mod line;
mod list;
mod list_file;
mod reconcile;
mod replay;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

pub use error::RevokeError;
use error::may_be_key;
use line::Line;
use list::{Entry, List, MarkCounts};
pub use list::{RevocationRecord, SourceObservation, SourceStatus, Target, TargetError};
use list_file::ListFile;
pub use reconcile::{Reconciliation, Retention};
pub use replay::LoadError;
use watermark::ListClock;
pub use writer::Durability;
use writer::Writer;

/// Maximum number of entries on the list. A revocation is a stopgap until the source confirms it; a
/// larger number belongs in the source.
pub const MAX_ENTRIES: usize = 100_000;

/// Why nothing is durable without a state directory.
const NO_DIRECTORY: &str =
    "the daemon has no state directory: name one with --state-dir or server.state_dir, and start it again";

/// The ticket of a line that is not queued (yet): it is larger than that of any durable line.
const NOT_QUEUED: u64 = u64::MAX;

/// The list, and the snapshots that it applies to.
pub struct Revocations {
    snapshots: SnapshotReader,
    epochs: Epochs,
    /// Serializes commands and swaps of snapshots. It is released before a command waits.
    commands: Mutex<CommandLock>,
    /// Changed only under `commands`. It has its own lock, so that reading it waits for no command.
    list: Arc<RwLock<List>>,
    /// `None` without a state directory.
    writer: Option<Writer>,
    /// The list's clock.
    clock: ListClock,
}

struct CommandLock {
    /// The targets that have changed since a reload began to mark its snapshot; `None`: no reload
    /// is marking.
    changed: Option<Vec<Target>>,
}

/// The list that was loaded from the state directory.
pub struct LoadedList {
    list: List,
    storage: Option<(Arc<StateDir>, ListFile, Option<FileError>)>,
    accepted: Option<(AcceptanceRecord, LoadError)>,
}

/// A change in force whose line is not known to be durable yet.
struct PendingCommand {
    /// The ticket of the line.
    ticket: u64,
    unchanged: bool,
    keys: usize,
    revoked: usize,
    generation: u64,
    epoch: u64,
}

/// The result of a command. It may be answered when `epoch` is [passed](Epochs::wait_passed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutcome {
    /// Whether the command changed nothing.
    pub unchanged: bool,
    /// Rows with that key id or owner; 0 if no keys are loaded.
    pub keys: usize,
    /// The rows of these that are revoked now, by any command or by the source.
    pub revoked: usize,
    /// The current generation; 0 if no keys are loaded.
    pub generation: u64,
    /// The epoch that workers must pass before the change is in force everywhere.
    pub epoch: u64,
    /// Whether it survives a restart.
    pub durability: Durability,
}

/// Loads the list. Call it before anything is served and before any other file of the directory is
/// created. Without a directory the list is empty.
///
/// # Errors
/// When the list cannot be read or is incomplete: all of it must be in force from the first answer
/// on.
pub fn load(directory: Option<Arc<StateDir>>) -> Result<LoadedList, LoadError> {
    let Some(directory) = directory else {
        return Ok(LoadedList { list: List::default(), storage: None, accepted: None });
    };
    let list_file::OpenedList { file, list, accepted, unwritten } = ListFile::open(&directory)?;
    if let Some((AcceptanceRecord { by_uid, at }, loss)) = &accepted {
        warn!(by_uid, %at, %loss, entries = list.len(), "a loss of revocations has been accepted");
    }
    Ok(LoadedList { list, storage: Some((directory, file, unwritten)), accepted })
}

impl LoadedList {
    /// All entries, in the order of their names.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn entries(&self) -> Vec<(Target, RevocationRecord)> {
        self.list.page(None, usize::MAX, |entry| entry.record)
    }

    /// The loss that an operator has accepted, if there was one, and the number of remaining
    /// revocations.
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

    /// Puts a list in force. Call it before anything is served.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(loaded: LoadedList, publisher: &Publisher) -> Result<Self, LoadError> {
        let LoadedList { list, storage, .. } = loaded;
        if list.len() > 0 {
            info!(entries = list.len(), conflicts = list.conflicts(), "revocations are in force");
        }
        let list = Arc::new(RwLock::new(list));
        let writer = storage.map(|(directory, file, unwritten)| {
            let path = directory.path(list_file::NAME);
            let writer = Writer::start(directory, file, Arc::clone(&list), unwritten.as_ref());
            writer.map_err(|error| FileError { path, action: "start the thread that writes to it", error })
        });
        let writer = writer.transpose()?;
        Ok(Self {
            snapshots: publisher.reader(),
            epochs: publisher.epochs(),
            commands: Mutex::new(CommandLock { changed: None }),
            list,
            clock: writer.as_ref().map_or_else(ListClock::from_zero, Writer::clock),
            writer,
        })
    }

    /// Revokes `target`. This waits for the disk, so do not call it on an asynchronous thread.
    ///
    /// # Errors
    /// See [`RevokeError`].
    pub fn revoke(&self, target: Target, by_uid: u32) -> Result<CommandOutcome, RevokeError> {
        let mut commands = self.lock_commands();
        let snapshot = self.snapshots.current();
        let known = self.list().get(&target).copied();
        // An entry that is being dropped is revoked again, so that it stays.
        if let Some(known) = known.filter(|entry| !entry.dropping) {
            let pending = self.apply_marks(snapshot.as_deref(), &target, known.ticket, true);
            drop(commands);
            return Ok(self.wait_durable(pending));
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
        // Added before its line is queued: the writer may write the whole list instead of the line.
        self.list_mut().insert(target.clone(), record, NOT_QUEUED);
        let ticket = self.enqueue([Line::revoke(&target, &record)]);
        if let Some(entry) = self.list_mut().get_mut(&target) {
            entry.ticket = ticket;
        }
        let pending = self.apply_change(snapshot.as_deref(), target, ticket, &mut commands);
        drop(commands);
        Ok(self.wait_durable(pending))
    }

    /// Removes a revocation, so the source decides again. If that cannot be written, a restart
    /// restores the revocation.
    ///
    /// # Errors
    /// See [`RevokeError`].
    pub fn unrevoke(&self, target: Target, by_uid: u32) -> Result<CommandOutcome, RevokeError> {
        let mut commands = self.lock_commands();
        if self.list_mut().remove(&target).is_none() {
            return Err(RevokeError::NotRevoked { target });
        }
        let ticket = self.enqueue([Line::unrevoke(&target, current_second(), by_uid)]);
        let snapshot = self.snapshots.current();
        let pending = self.apply_change(snapshot.as_deref(), target, ticket, &mut commands);
        drop(commands);
        Ok(self.wait_durable(pending))
    }

    /// All entries, in the order of [`latest`](Self::latest).
    #[cfg(test)]
    pub fn entries(&self) -> Vec<(Target, RevocationRecord)> {
        self.latest(usize::MAX).1
    }

    /// The number of entries that would not survive a restart.
    pub fn not_durable(&self) -> usize {
        let (written, list) = (self.written(), self.list());
        list.iter().filter(|(_, entry)| !record(entry, written).durable).count()
    }

    /// The number of entries, and `count` of them. Entries that are not durable or contradicted by
    /// the source come first, then the latest.
    pub fn latest(&self, count: usize) -> (usize, Vec<(Target, RevocationRecord)>) {
        let (written, list) = (self.written(), self.list());
        (list.len(), list.latest(count, |entry| record(entry, written)))
    }

    /// The number of entries, and the `count` that follow `after` in the order of their names.
    pub fn page(&self, after: Option<&Target>, count: usize) -> (usize, Vec<(Target, RevocationRecord)>) {
        let (written, list) = (self.written(), self.list());
        (list.len(), list.page(after, count, |entry| record(entry, written)))
    }

    /// The ticket of the last durable line; `None`: nothing is stored.
    fn written(&self) -> Option<u64> {
        self.writer.as_ref().map(Writer::written)
    }

    /// Marks everything in `snapshot` that is revoked at the time of the swap, and swaps it in.
    /// Returns the epoch that the swap advances to.
    pub fn mark_and_swap(&self, publisher: &Publisher, snapshot: Arc<Snapshot>) -> u64 {
        self.mark_before_swap(&snapshot);
        self.mark_changed_and_swap(publisher, snapshot)
    }

    /// The larger part of the marking, while commands go on.
    fn mark_before_swap(&self, snapshot: &Snapshot) {
        let list = {
            self.lock_commands().changed = Some(Vec::new());
            // A command between these two statements is in both, and its target is marked twice.
            self.list().clone()
        };
        list.mark_all(snapshot);
    }

    /// Marks what commands have changed since [`mark_before_swap`](Self::mark_before_swap), and
    /// swaps while no command runs.
    fn mark_changed_and_swap(&self, publisher: &Publisher, snapshot: Arc<Snapshot>) -> u64 {
        let mut commands = self.lock_commands();
        let list = self.list();
        for target in commands.changed.take().unwrap_or_default() {
            list.mark(&snapshot, &target);
        }
        publisher.swap(snapshot)
    }

    /// Queues lines in the order in which the list changes. Returns the ticket of the last one.
    fn enqueue(&self, lines: impl IntoIterator<Item = Line>) -> u64 {
        self.writer.as_ref().map_or(NOT_QUEUED, |writer| writer.enqueue(lines))
    }

    /// In the model test, waits for an attempt to write a line that nothing else waits for. Otherwise
    /// the thread that writes it and the one that reloads would run in either order.
    fn settle(&self, ticket: u64) {
        #[cfg(feature = "simulation")]
        if keyward_state::simulation::time().is_some()
            && let Some(writer) = &self.writer
        {
            let _ = writer.wait(ticket);
        }
        let _ = ticket;
    }

    /// Waits for the line of a command, and returns the result.
    fn wait_durable(&self, pending: PendingCommand) -> CommandOutcome {
        let PendingCommand { ticket, unchanged, keys, revoked, generation, epoch } = pending;
        let durability = match &self.writer {
            Some(writer) => writer.wait(ticket),
            None => Durability::NotDurable(NO_DIRECTORY.into()),
        };
        CommandOutcome { unchanged, keys, revoked, generation, epoch, durability }
    }

    /// The last steps of a command under the lock, after the list has changed.
    fn apply_change(
        &self,
        snapshot: Option<&Snapshot>,
        target: Target,
        ticket: u64,
        commands: &mut CommandLock,
    ) -> PendingCommand {
        let pending = self.apply_marks(snapshot, &target, ticket, false);
        if let Some(changed) = &mut commands.changed {
            changed.push(target);
        }
        pending
    }

    /// Marks the rows and advances the epoch. Both are repeated for a command that changes nothing,
    /// because the earlier one may not be in force yet.
    fn apply_marks(
        &self,
        snapshot: Option<&Snapshot>,
        target: &Target,
        ticket: u64,
        unchanged: bool,
    ) -> PendingCommand {
        let list = self.list();
        let MarkCounts { rows: keys, revoked } =
            snapshot.map(|snapshot| list.mark(snapshot, target)).unwrap_or_default();
        let generation = snapshot.map_or(0, Snapshot::generation);
        let epoch = self.epochs.advance();
        PendingCommand { ticket, unchanged, keys, revoked, generation, epoch }
    }

    fn lock_commands(&self) -> MutexGuard<'_, CommandLock> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> std::sync::RwLockReadGuard<'_, List> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn list_mut(&self) -> std::sync::RwLockWriteGuard<'_, List> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The record of an entry, given the ticket of the last durable line.
fn record(entry: &Entry, written: Option<u64>) -> RevocationRecord {
    RevocationRecord { durable: written.is_some_and(|written| entry.ticket <= written), ..entry.record }
}

fn exists(snapshot: &Snapshot, target: &Target) -> bool {
    match target {
        Target::Key(key_id) => snapshot.rows_of_key(key_id).next().is_some(),
        Target::Owner(owner) => snapshot.rows_of_owner(owner).next().is_some(),
    }
}
