//! Revocations: keys and owners that an operator has revoked, independently of the source, until
//! the source confirms them.
//!
//! A revocation is in force on every connection before its command is answered, and on disk unless
//! the disk fails. [`Revocations::revoke`] takes steps 1 to 4, and its caller, `edit_revocations`
//! in `server/admin_handler.rs`, takes steps 5 and 6:
//!
//! 1. lock the commands, which excludes other commands and the swap of snapshots;
//! 2. add the entry to the list in memory, and queue its line for the [`writer`];
//! 3. publish the change as an overlay in the next generation, which advances the
//!    [epoch](crate::publish), and unlock;
//! 4. wait until the line is durable, or the disk fails or takes too long;
//! 5. wait until every worker has passed the epoch, and only then answer the command;
//! 6. [mark](changes) the change in the entries of the snapshot, and publish the
//!    generation without the overlay. The answer does not wait for that.
//!
//! Putting a revocation in force never waits for the disk: its generation was
//! [reserved](keyward_state::Generations) before. A command whose line is not durable reports that
//! and why; the write is retried until it succeeds.
//!
//! A reload marks its new snapshot before the swap, under the same lock, so no revocation is missed
//! between the two. It does most of the marking before it locks, while commands go on. Under the
//! lock it repeats only the targets that changed meanwhile. So a revocation never waits for a
//! reload. Once the new snapshot is in force, the list is [reconciled](reconcile) with the source.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tracing::{info, warn};

use crate::publish::{Epochs, Published, Publisher, SnapshotReader};
use keyward_engine::snapshot::{CompareOptions, KeyTable, Overlay, Snapshot};
use keyward_state::{AcceptanceRecord, FileError, Generations, StateDir, current_second};

mod changes;
mod error;
mod lifted;
mod line;
mod list;
mod list_file;
mod reconcile;
mod replay;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use changes::{Change, Located, RowCounts, Unmarked};
pub use error::RevokeError;
use error::may_be_key;
pub use lifted::LiftedRevocations;
use line::Line;
use list::{Entry, List};
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
    publisher: Publisher,
    snapshots: SnapshotReader,
    epochs: Epochs,
    generations: Generations,
    /// Serializes commands and swaps of snapshots. It is released before a command waits.
    commands: Mutex<CommandLock>,
    /// Held while marks are set in the snapshot in force. Locked before `commands`.
    marking: Mutex<()>,
    /// Changed only under `commands`. It has its own lock, so that reading it waits for no command.
    list: Arc<RwLock<List>>,
    /// `None` without a state directory.
    writer: Option<Writer>,
    /// The list's clock.
    clock: ListClock,
}

struct CommandLock {
    /// The targets that have changed since a reload compared its keys with the list, or began to mark
    /// its snapshot; `None`: no reload has.
    changed: Option<Vec<Target>>,
    /// The changes that are in force and not in the entries of the current snapshot yet.
    unmarked: Unmarked,
}

/// What a start would do with the list of a state directory.
pub struct ListPreview {
    /// The revocations that would be in force.
    pub list: LoadedList,
    /// The loss that the start would accept, because an operator has accepted it.
    pub accepted_loss: Option<LoadError>,
}

/// A snapshot that is marked and not in force yet. No command runs while this exists.
pub struct MarkedSwap<'r> {
    revocations: &'r Revocations,
    commands: MutexGuard<'r, CommandLock>,
    generation: u64,
    /// The targets of commands since the comparison.
    changed: Vec<Target>,
}

impl MarkedSwap<'_> {
    /// The revocations that commands have added since the [comparison](Revocations::lifted_by), and
    /// that `new` would lift from rows of `old`.
    pub fn lifted_by(&self, new: &KeyTable, old: &KeyTable, options: CompareOptions) -> LiftedRevocations {
        let list = self.revocations.list();
        list.lifted_of(&list.only(&self.changed), new, old, options)
    }

    /// The generation in which the snapshot comes into force: its table generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Swaps the snapshot in. Returns the epoch that this advances to.
    pub fn finish(mut self, snapshot: Arc<Snapshot>) -> u64 {
        // They belong to the snapshot before, and this one has been marked.
        self.commands.unmarked = Unmarked::default();
        let published = Published::new(snapshot, self.generation, Overlay::default());
        self.revocations.publisher.publish(published)
    }
}

/// The list that was loaded from the state directory.
pub struct LoadedList {
    list: List,
    storage: Option<(Arc<StateDir>, ListFile, Option<FileError>)>,
    accepted: Option<(AcceptanceRecord, LoadError)>,
    has_changed: bool,
}

/// A change in force whose line is not known to be durable yet.
struct PendingCommand {
    /// The ticket of the line.
    ticket: u64,
    unchanged: bool,
    located: Located,
    change: Change,
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
    /// The generation from which the change is in force; 0 if no keys are loaded.
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
        return Ok(LoadedList { list: List::default(), storage: None, accepted: None, has_changed: false });
    };
    let list_file::OpenedList { file, list, accepted, unwritten } = ListFile::open(&directory)?;
    let has_changed = file.has_changed() || accepted.is_some();
    if let Some((AcceptanceRecord { by_uid, at }, loss)) = &accepted {
        warn!(by_uid, %at, %loss, entries = list.len(), "a loss of revocations has been accepted");
    }
    Ok(LoadedList { list, storage: Some((directory, file, unwritten)), accepted, has_changed })
}

/// Reads the list in `directory` as the next start would. Takes no lock and changes no file, so it
/// does not disturb a daemon that uses the directory.
///
/// # Errors
/// When a start would fail.
pub fn preview(directory: &Path) -> Result<ListPreview, LoadError> {
    let replay::ReplayPreview { list, has_changed, accepted } = replay::preview(directory)?;
    let list = LoadedList { list, storage: None, accepted: None, has_changed };
    Ok(ListPreview { list, accepted_loss: accepted })
}

impl LoadedList {
    /// All entries, in the order of their names.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn entries(&self) -> Vec<(Target, RevocationRecord)> {
        self.list.page(None, usize::MAX, |entry| entry.record)
    }

    /// The number of revocations.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.list.len() == 0
    }

    /// Whether a command has ever changed the list, so a daemon has served from this directory. A
    /// first start that was interrupted leaves a list that has not changed.
    pub fn has_changed(&self) -> bool {
        self.has_changed
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
        let generations = Generations::open(directory.clone(), 0);
        Self::start(load(directory)?, publisher, generations)
    }

    /// Puts a list in force. Call it before anything is served. `generations` are the numbers of the
    /// changes; they are reserved ahead of commands.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(
        loaded: LoadedList,
        publisher: &Publisher,
        generations: Generations,
    ) -> Result<Self, LoadError> {
        let LoadedList { list, storage, .. } = loaded;
        if list.len() > 0 {
            info!(entries = list.len(), conflicts = list.conflicts(), "revocations are in force");
        }
        let list = Arc::new(RwLock::new(list));
        let writer = storage.map(|(directory, file, unwritten)| {
            let path = directory.path(list_file::NAME);
            let writer =
                Writer::start(directory, file, Arc::clone(&list), generations.clone(), unwritten.as_ref());
            writer.map_err(|error| FileError { path, action: "start the thread that writes to it", error })
        });
        let writer = writer.transpose()?;
        Ok(Self {
            publisher: publisher.clone(),
            snapshots: publisher.reader(),
            epochs: publisher.epochs(),
            generations,
            commands: Mutex::new(CommandLock { changed: None, unmarked: Unmarked::default() }),
            marking: Mutex::new(()),
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
        let located = self.locate(target);
        let mut commands = self.lock_commands();
        let located = self.relocate(located);
        let target = &located.target;
        let known = self.list().get(target).copied();
        // An entry that is being dropped is revoked again, so that it stays.
        if let Some(known) = known.filter(|entry| !entry.dropping) {
            let change = self.publish_nothing();
            drop(commands);
            let pending = PendingCommand { ticket: known.ticket, unchanged: true, located, change };
            return Ok(self.wait_durable(pending));
        }
        match self.snapshots.published() {
            Some(published) if !located.has_rows(published.snapshot()) => {
                let generation = published.generation();
                return Err(RevokeError::Unknown { target: target.clone(), generation });
            }
            None if may_be_key(target) => return Err(RevokeError::MayBeKey { target: target.clone() }),
            _ => {}
        }
        if known.is_none() && self.list().len() >= MAX_ENTRIES {
            return Err(RevokeError::Full);
        }
        let source = known.and_then(|entry| entry.record.source);
        let record = RevocationRecord { when: current_second(), by_uid, source, durable: false };
        // Added before its line is queued: the writer may write the whole list instead of the line.
        self.list_mut().insert(target.clone(), record, NOT_QUEUED);
        let ticket = self.enqueue([Line::revoke(target, &record)]);
        if let Some(entry) = self.list_mut().get_mut(target) {
            entry.ticket = ticket;
        }
        let pending = self.apply_change(located, ticket, &mut commands);
        drop(commands);
        Ok(self.wait_durable(pending))
    }

    /// Removes a revocation, so the source decides again. If that cannot be written, a restart
    /// restores the revocation.
    ///
    /// # Errors
    /// See [`RevokeError`].
    pub fn unrevoke(&self, target: Target, by_uid: u32) -> Result<CommandOutcome, RevokeError> {
        let located = self.locate(target);
        let mut commands = self.lock_commands();
        let located = self.relocate(located);
        if self.list_mut().remove(&located.target).is_none() {
            return Err(RevokeError::NotRevoked { target: located.target });
        }
        let ticket = self.enqueue([Line::unrevoke(&located.target, current_second(), by_uid)]);
        let pending = self.apply_change(located, ticket, &mut commands);
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

    /// The numbers of changes and of reloads.
    pub fn generations(&self) -> &Generations {
        &self.generations
    }

    /// The ticket of the last durable line; `None`: nothing is stored.
    fn written(&self) -> Option<u64> {
        self.writer.as_ref().map(Writer::written)
    }

    /// Marks everything in `snapshot` that is revoked, and excludes commands until it is
    /// [swapped in](MarkedSwap::finish).
    pub fn mark_for_swap(&self, snapshot: &Snapshot) -> MarkedSwap<'_> {
        self.mark_before_swap(snapshot);
        self.mark_changed(snapshot)
    }

    /// A copy of the list. Changes are recorded from here on, so that a reload need not look at the
    /// whole list again.
    fn watch_changes(&self) -> List {
        self.lock_commands().changed.get_or_insert_default();
        // A command between these two statements is in both, and its target is marked twice.
        self.list().clone()
    }

    /// The end of a reload that has not swapped its snapshot in: changes are no longer recorded.
    pub fn forget_changes(&self) {
        self.lock_commands().changed = None;
    }

    /// Whether a reload has begun to compare its keys with the list, and has not ended.
    #[cfg(test)]
    pub fn is_watching_changes(&self) -> bool {
        self.lock_commands().changed.is_some()
    }

    /// Marks and swaps at once.
    #[cfg(test)]
    pub fn mark_and_swap(&self, snapshot: Arc<Snapshot>) -> u64 {
        self.mark_for_swap(&snapshot).finish(snapshot)
    }

    /// The larger part of the marking, while commands go on.
    fn mark_before_swap(&self, snapshot: &Snapshot) {
        self.watch_changes().mark_all(snapshot);
    }

    /// Marks what commands have changed since [`mark_before_swap`](Self::mark_before_swap). Commands
    /// wait from here on.
    fn mark_changed(&self, snapshot: &Snapshot) -> MarkedSwap<'_> {
        let mut commands = self.lock_commands();
        let changed = commands.changed.take().unwrap_or_default();
        let list = self.list();
        for target in &changed {
            list.mark(snapshot, target);
        }
        drop(list);
        MarkedSwap { revocations: self, commands, generation: self.generations.next_number(), changed }
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
        let PendingCommand { ticket, unchanged, located, change: Change { published, epoch } } = pending;
        let counts = published.as_ref().map(|published| located.count(published));
        let RowCounts { rows: keys, revoked } = counts.unwrap_or_default();
        let generation = published.as_ref().map_or(0, |published| published.generation());
        // Before waiting: a snapshot that a reload replaces meanwhile is to be freed.
        drop((located, published));
        let durability = match &self.writer {
            Some(writer) => writer.wait(ticket),
            None => Durability::NotDurable(NO_DIRECTORY.into()),
        };
        CommandOutcome { unchanged, keys, revoked, generation, epoch, durability }
    }

    /// The last steps of a command under the lock, after the list has changed.
    fn apply_change(&self, located: Located, ticket: u64, commands: &mut CommandLock) -> PendingCommand {
        let change = self.publish_change(commands, &located);
        if let Some(changed) = &mut commands.changed {
            changed.push(located.target.clone());
        }
        PendingCommand { ticket, unchanged: false, located, change }
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
