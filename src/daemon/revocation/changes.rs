//! The publication of changes to a snapshot that is in force: revocations and takeaways.
//!
//! The entries of the snapshot are read by workers, and all answers of a generation must agree. So a
//! change is first published as an [`Overlay`], in the next generation. Only when every worker has
//! passed the epoch of that, and so no worker uses a view that the overlay does not cover, are the
//! marks set in the entries. Then the generation is published again without the overlay: the change
//! is *marked*. Until then, further changes are published together with it.
//!
//! What makes this exact:
//!
//! * A mark of a row changes only while the row is covered in all views that workers may use. It is
//!   covered from the publication of its change, which is known to have been passed, until a later
//!   publication without it.
//! * A target leaves the overlay only if it has not changed since its marks were computed. Then the
//!   entries say what the overlay said, and the two publications of the generation answer alike.
//! * One thread at a time marks. It computes marks from the whole list, so that rows which are
//!   revoked by their key and by their owner get the right ones, whichever of them is marked last.
//!
//! A swap discards all of that: the new snapshot is marked before it comes into force.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::list::{List, Target};
use super::{CommandLock, Revocations};
use crate::publish::Published;
use keyward_engine::record::Digest;
use keyward_engine::snapshot::{Key, Overlay, OwnerNumber, RowTakeaways, Snapshot, Takeaway};

/// The epoch of a change that is being published.
const NOT_PUBLISHED: u64 = u64::MAX;

/// Changes that are in force and not in the entries of the snapshot yet.
#[derive(Default)]
pub(super) struct Unmarked {
    targets: Vec<UnmarkedTarget>,
    takeaways: Option<Arc<RowTakeaways>>,
}

#[derive(Clone)]
struct UnmarkedTarget {
    located: Located,
    /// The epoch of the first publication that covers its rows.
    covered_since: u64,
    /// The number of its changes since then.
    changes: u64,
}

/// A target in a snapshot.
#[derive(Clone)]
pub(super) struct Located {
    pub(super) target: Target,
    /// The snapshot that was looked at; `None` if none was in force.
    snapshot: Option<Arc<Snapshot>>,
    /// The numbers of an owner.
    owners: Box<[OwnerNumber]>,
}

/// The counts of the rows of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowCounts {
    /// Rows of the target.
    pub(super) rows: usize,
    /// The rows of these that are revoked, for any reason.
    pub(super) revoked: usize,
}

/// What workers answer from after a change, and the epoch of it.
pub(super) struct Change {
    /// `None` if no keys are loaded.
    pub(super) published: Option<Arc<Published>>,
    pub(super) epoch: u64,
}

impl Located {
    fn new(target: Target, snapshot: Option<Arc<Snapshot>>) -> Self {
        let owners = match (&snapshot, &target) {
            (Some(snapshot), Target::Owner(owner)) => snapshot.table().owner_numbers(owner),
            _ => Vec::new(),
        };
        Self { target, snapshot, owners: owners.into() }
    }

    /// Whether the target has rows in `snapshot`, which is the one that was looked at.
    pub(super) fn has_rows(&self, snapshot: &Snapshot) -> bool {
        match &self.target {
            Target::Key(key_id) => snapshot.rows_of_key(key_id).next().is_some(),
            Target::Owner(_) => !self.owners.is_empty(),
        }
    }

    /// Counts the rows of the target. This scans all rows for an owner.
    pub(super) fn count(&self, published: &Published) -> RowCounts {
        let view = published.view();
        let count = |counts: RowCounts, key: Key<'_>| RowCounts {
            rows: counts.rows + 1,
            revoked: counts.revoked + usize::from(view.is_revoked(key)),
        };
        match &self.target {
            Target::Key(key_id) => view.snapshot.rows_of_key(key_id).fold(RowCounts::default(), count),
            Target::Owner(_) => {
                view.snapshot.rows_of_owner_numbers(&self.owners).fold(RowCounts::default(), count)
            }
        }
    }
}

impl Unmarked {
    /// Adds a target whose entry on the list has changed.
    fn add(&mut self, located: &Located) {
        match self.targets.iter_mut().find(|unmarked| unmarked.located.target == located.target) {
            Some(unmarked) => unmarked.changes += 1,
            None => self.targets.push(UnmarkedTarget {
                located: located.clone(),
                covered_since: NOT_PUBLISHED,
                changes: 0,
            }),
        }
    }

    /// What has been added was published in `epoch`.
    fn set_published(&mut self, epoch: u64) {
        for unmarked in &mut self.targets {
            unmarked.covered_since = unmarked.covered_since.min(epoch);
        }
    }

    /// The targets whose rows are covered in all views in use, given that all workers have passed
    /// `passed`.
    fn covered(&self, passed: u64) -> Vec<UnmarkedTarget> {
        self.targets.iter().filter(|unmarked| unmarked.covered_since <= passed).cloned().collect()
    }

    /// Removes the targets of `marked` that have not changed since.
    fn remove(&mut self, marked: &[UnmarkedTarget]) {
        let is_marked = |unmarked: &UnmarkedTarget| {
            marked.iter().any(|marked| {
                marked.located.target == unmarked.located.target && marked.changes == unmarked.changes
            })
        };
        self.targets.retain(|unmarked| !is_marked(unmarked));
    }

    fn overlay(&self, list: &List, snapshot: &Snapshot) -> Overlay {
        let mut overlay = list.overlay(snapshot, &self.targets);
        if let Some(takeaways) = &self.takeaways {
            overlay.set_takeaways(Arc::clone(takeaways));
        }
        overlay
    }
}

impl List {
    /// The state of the rows of `targets`.
    fn overlay(&self, snapshot: &Snapshot, targets: &[UnmarkedTarget]) -> Overlay {
        let mut overlay = Overlay::default();
        let mut not_revoked = Vec::new();
        for UnmarkedTarget { located, .. } in targets {
            match &located.target {
                Target::Key(key_id) => {
                    snapshot.rows_of_key(key_id).for_each(|key| overlay.set_row(key, self.covers(key)));
                }
                Target::Owner(owner) => {
                    let is_revoked = self.covers_owner(owner);
                    located.owners.iter().for_each(|number| overlay.set_owner(*number, is_revoked));
                    if !is_revoked {
                        not_revoked.extend_from_slice(&located.owners);
                    }
                }
            }
        }
        // Some of their keys may be revoked by their ids.
        if !not_revoked.is_empty() {
            let revoked = self.key_ids().flat_map(|key_id| snapshot.rows_of_key(key_id));
            let is_of_owner =
                |key: &Key<'_>| key.owner_number().is_some_and(|own| not_revoked.contains(&own));
            revoked.filter(is_of_owner).for_each(|key| overlay.set_row(key, true));
        }
        overlay
    }
}

impl Revocations {
    /// Looks for the rows of `target` in the current snapshot. To find an owner, this reads the names
    /// of all owners, so it is done before the commands are locked.
    pub(super) fn locate(&self, target: Target) -> Located {
        Located::new(target, self.snapshots.current())
    }

    /// The same under the lock: only if the snapshot was swapped meanwhile, it is looked for again.
    pub(super) fn relocate(&self, located: Located) -> Located {
        let current = self.snapshots.current();
        let is_same = match (&current, &located.snapshot) {
            (Some(current), Some(before)) => Arc::ptr_eq(current, before),
            (None, None) => true,
            _ => false,
        };
        if is_same { located } else { Located::new(located.target, current) }
    }

    /// Publishes the state that the list now has for a target, and advances the epoch. Does not wait.
    pub(super) fn publish_change(&self, commands: &mut CommandLock, located: &Located) -> Change {
        let published = self.snapshots.published();
        let Some(current) = published.filter(|current| located.has_rows(current.snapshot())) else {
            return self.publish_nothing();
        };
        commands.unmarked.add(located);
        let epoch = self.publish_unmarked(commands, current.snapshot());
        Change { published: self.snapshots.published(), epoch }
    }

    /// Advances the epoch for a command that changes no answer: an earlier one may not be in force
    /// yet.
    pub(super) fn publish_nothing(&self) -> Change {
        Change { published: self.snapshots.published(), epoch: self.epochs.advance() }
    }

    fn publish_unmarked(&self, commands: &mut CommandLock, snapshot: &Arc<Snapshot>) -> u64 {
        let overlay = commands.unmarked.overlay(&self.list(), snapshot);
        let generation = self.generations.next_number();
        let published = Published::new(Arc::clone(snapshot), generation, overlay);
        let epoch = self.publisher.publish(published);
        commands.unmarked.set_published(epoch);
        epoch
    }

    /// Marks the changes that every worker has passed in the entries. A change that was acknowledged
    /// before this is called is marked when this returns.
    pub fn mark_passed(&self) {
        let _settling = self.lock_marking();
        let (snapshot, marked, overlay) = {
            let commands = self.lock_commands();
            let marked = commands.unmarked.covered(self.epochs.passed());
            let Some(snapshot) = self.snapshots.current().filter(|_| !marked.is_empty()) else { return };
            let overlay = self.list().overlay(&snapshot, &marked);
            (snapshot, marked, overlay)
        };
        // Commands go on meanwhile. An owner can have a million rows.
        snapshot.mark_revocations(&overlay);
        let mut commands = self.lock_commands();
        let Some(current) = self.snapshots.published() else { return };
        // A swap has discarded all changes.
        if Arc::ptr_eq(current.snapshot(), &snapshot) {
            commands.unmarked.remove(&marked);
            self.republish(&commands, &current);
        }
    }

    /// Publishes the current generation again, with what is left in the overlay.
    fn republish(&self, commands: &CommandLock, current: &Published) {
        let overlay = commands.unmarked.overlay(&self.list(), current.snapshot());
        let snapshot = Arc::clone(current.snapshot());
        self.publisher.replace(Published::new(snapshot, current.generation(), overlay));
    }

    /// Publishes takeaways, and returns the epoch. Once that is passed, they have to be
    /// [marked](Self::mark_takeaways), before the next ones are published or the snapshot is
    /// swapped.
    pub fn publish_takeaways(&self, takeaways: &[(Digest, Takeaway)]) -> u64 {
        // Only the caller's thread swaps snapshots.
        let Some(snapshot) = self.snapshots.current() else { return self.epochs.advance() };
        let located = snapshot.table().locate_takeaways(takeaways);
        let mut commands = self.lock_commands();
        commands.unmarked.takeaways = Some(Arc::new(located));
        self.publish_unmarked(&mut commands, &snapshot)
    }

    /// Marks published takeaways in the entries. Every worker must have passed their epoch.
    pub fn mark_takeaways(&self, takeaways: &[(Digest, Takeaway)]) {
        let Some(snapshot) = self.snapshots.current() else { return };
        snapshot.apply_takeaways(takeaways.iter().copied());
        let mut commands = self.lock_commands();
        commands.unmarked.takeaways = None;
        if let Some(current) = self.snapshots.published() {
            self.republish(&commands, &current);
        }
    }

    /// Excludes other threads from setting marks. Lock this before the commands.
    pub(super) fn lock_marking(&self) -> MutexGuard<'_, ()> {
        self.marking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
