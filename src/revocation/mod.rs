//! Revocations: keys and owners that an operator has taken out of force, whatever the source says of them, until it says
//! the same.
//!
//! A revocation is on the list on disk before it is in force, and in force before its command returns:
//!
//! 1. take the order, which commands and the swap of snapshots have one after the other;
//! 2. add a line to the [`file`] and sync it;
//! 3. mark the rows in the snapshot that is being served;
//! 4. end the [epoch](crate::publish), and give the order back;
//! 5. wait until every worker has passed that epoch; only then is the command answered (promise 2).
//!
//! A reload marks its new snapshot before the swap, under the same order, so that no revocation falls between the two. It
//! does the long part of that before, beside commands that go on; under the order it repeats only what they changed
//! meanwhile. So a revocation waits for no reload. When the new snapshot is in force, what the source itself calls revoked
//! is dropped from the list.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use tracing::{error, info, warn};

use crate::audit::{self, Audit, Event};
use crate::publish::{Epochs, Published, Publisher, Served};
use crate::record::Quoted;
use crate::snapshot::Snapshot;
use crate::state::{FileError, StateDir};

mod file;
mod list;

#[cfg(test)]
mod tests;

use file::File;
pub use file::OpenError;
use list::{Action, Line, List, Marked};
pub use list::{Record, Target, TargetError};

/// Most entries on the list. What is revoked here is a stopgap until the source says so too, and `status` shows all of it; more
/// than this is a change of the source.
pub const MAX_ENTRIES: usize = 100_000;

/// The list, and what it is applied to.
pub struct Revocations {
    served: Served,
    epochs: Epochs,
    /// Held by whoever changes the list or swaps snapshots, from the first step to the last.
    order: Mutex<Order>,
    /// Changed under the order only; on its own so that looking at it waits for no disk.
    list: RwLock<List>,
}

struct Order {
    kept: Option<Kept>,
    /// What has changed since a reload began to mark its snapshot.
    since: Option<Vec<Target>>,
}

/// Where the list is kept, and what keeps others from it.
struct Kept {
    file: File,
    _directory: Arc<StateDir>,
}

/// A command that was carried out. It may be answered when `epoch` is [passed](Epochs::passed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
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
}

/// Why a command was not carried out. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no state directory.
    #[error(
        "revocations cannot be kept: the daemon has no state directory. Nothing was revoked; start it with --state-dir or \
         server.state_dir, or revoke in the source and reload"
    )]
    NotKept,
    /// It could not be made durable.
    #[error("{0}. Nothing has changed; make room or mend the disk, and try again")]
    File(#[from] FileError),
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
    #[error("{} is not on the list of revocations (keyward status shows it)", named(target))]
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

impl Revocations {
    /// Reads the list, before anything is served. Without a directory there is none, and nothing can be revoked.
    ///
    /// # Errors
    /// When it cannot be read to its end: what is in it must be in force from the first answer on.
    pub fn open(directory: Option<Arc<StateDir>>, publisher: &Publisher) -> Result<Self, OpenError> {
        let mut list = List::default();
        let mut kept = None;
        if let Some(directory) = directory {
            let opened = File::open(directory.path(file::NAME))?;
            list = opened.1;
            kept = Some(Kept { file: opened.0, _directory: directory });
        }
        if list.len() > 0 {
            info!(entries = list.len(), "revocations are in force");
        }
        Ok(Self {
            served: publisher.served(),
            epochs: publisher.epochs(),
            order: Mutex::new(Order { kept, since: None }),
            list: RwLock::new(list),
        })
    }

    /// Revokes `target`. Writes to the disk and waits for it: not for an asynchronous thread.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn revoke(&self, target: Target, by_uid: u32) -> Result<Change, Refused> {
        let mut order = self.order();
        let Order { kept, since } = &mut *order;
        let kept = kept.as_mut().ok_or(Refused::NotKept)?;
        let snapshot = self.served.snapshot();
        let list = self.list();
        if list.get(&target).is_some() {
            return Ok(self.change(snapshot.as_deref(), &target, &list, true));
        }
        match (&snapshot, &target) {
            (Some(snapshot), target) if !exists(snapshot, target) => {
                return Err(Refused::Unknown { target: target.clone(), generation: snapshot.generation() });
            }
            (None, target) if may_be_key(target) => {
                return Err(Refused::MayBeKey { target: target.clone() });
            }
            _ => {}
        }
        if list.len() >= MAX_ENTRIES {
            return Err(Refused::Full);
        }
        let record = Record { when: now(), by_uid };
        kept.file.add(&Line::new(Action::Revoke, &target, record), &list)?;
        drop(list);
        self.list_mut().insert(target.clone(), record);
        Ok(self.put_in_force(snapshot.as_deref(), target, kept, since))
    }

    /// Takes a revocation back: what the source says holds again.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn unrevoke(&self, target: Target, by_uid: u32) -> Result<Change, Refused> {
        let mut order = self.order();
        let Order { kept, since } = &mut *order;
        let list = self.list();
        let Some(kept) = kept.as_mut().filter(|_| list.get(&target).is_some()) else {
            return Err(Refused::NotRevoked { target });
        };
        kept.file.add(&Line::new(Action::Unrevoke, &target, Record { when: now(), by_uid }), &list)?;
        drop(list);
        self.list_mut().remove(&target);
        let snapshot = self.served.snapshot();
        Ok(self.put_in_force(snapshot.as_deref(), target, kept, since))
    }

    /// Everything on the list, the latest first.
    pub fn entries(&self) -> Vec<(Target, Record)> {
        self.list().entries()
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

    /// Drops what `snapshot`, which is the one in force, agrees with, and writes that down in `audit`; returns how many there
    /// were. What cannot be dropped durably stays, and is tried again after the next reload.
    pub fn settle(&self, snapshot: &Snapshot, audit: &Audit) -> usize {
        let dropped = self.drop_agreed(snapshot);
        audit.in_force(snapshot.generation());
        let events: Vec<Event<'_>> = dropped.iter().map(event_of).collect();
        audit.record_all(&events);
        dropped.len()
    }

    /// What is dropped, and how many rows each has.
    fn drop_agreed(&self, snapshot: &Snapshot) -> Vec<(Target, usize)> {
        let before = self.list().clone();
        let agreed = before.agreed(snapshot);
        if agreed.is_empty() {
            return Vec::new();
        }
        let mut order = self.order();
        let mut remaining = self.list().clone();
        // One that was taken back meanwhile is not there any more.
        let dropped: Vec<Target> =
            agreed.into_iter().filter(|target| remaining.remove(target).is_some()).collect();
        if let Some(kept) = &mut order.kept
            && let Err(error) = kept.file.rewrite(&remaining)
        {
            warn!(%error, "the list of revocations cannot be shortened; what the source agrees with stays on it");
            return Vec::new();
        }
        // So that a disabled key is called that again, as it will be after a restart. No answer turns into ALLOWED.
        let unmarked = dropped.into_iter().map(|target| {
            let rows = remaining.mark(snapshot, &target).rows;
            (target, rows)
        });
        let unmarked = unmarked.collect();
        *self.list_mut() = remaining;
        unmarked
    }

    /// The last steps of a command, once the list is changed.
    fn put_in_force(
        &self,
        snapshot: Option<&Snapshot>,
        target: Target,
        kept: &mut Kept,
        since: &mut Option<Vec<Target>>,
    ) -> Change {
        let list = self.list();
        let change = self.change(snapshot, &target, &list, false);
        if let Some(since) = since {
            since.push(target);
        }
        if kept.file.is_worn(&list)
            && let Err(error) = kept.file.rewrite(&list)
        {
            error!(%error, "the list of revocations cannot be written anew; it goes on growing");
        }
        change
    }

    /// Marks the rows, and ends the epoch: also where another command has, who may still be waiting for it.
    fn change(&self, snapshot: Option<&Snapshot>, target: &Target, list: &List, already: bool) -> Change {
        let Marked { rows, revoked } =
            snapshot.map(|snapshot| list.mark(snapshot, target)).unwrap_or_default();
        let generation = snapshot.map_or(0, Snapshot::generation);
        Change { already, keys: rows, revoked, generation, epoch: self.epochs.advance() }
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

/// Everything on the list was known to the source once, or has not the look of a key: it may be named.
fn event_of((target, keys): &(Target, usize)) -> Event<'_> {
    let (key_id, owner) = (target.key_id(), target.owner());
    Event::RevocationDropped(audit::Dropped { key_id, owner, keys: *keys })
}

fn exists(snapshot: &Snapshot, target: &Target) -> bool {
    match target {
        Target::Key(key_id) => snapshot.rows_of_key(key_id).next().is_some(),
        Target::Owner(owner) => snapshot.rows_of_owner(owner).next().is_some(),
    }
}

/// To the second: more is no use to who reads it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
