//! Reconciles the list with the source: a revocation may leave the list once the source has
//! confirmed it for long enough.
//!
//! An export can be older than the previous one, for example if it comes from a replica that lags.
//! So an entry stays on the list until the source has confirmed it at every load for the time that
//! [`Retention`] sets, by the [list's clock](super::watermark). The source confirms it by listing
//! all rows of the key or owner as revoked. A load with an active row, or without rows, restarts
//! that time. A source that lists a row as active after it had confirmed the revocation contradicts
//! it. Such a conflict is reported once when it begins, and the key stays revoked.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::line::Line;
use super::list::{Entry, SourceObservation, SourceStatus, Target};
use super::{Durability, Revocations, current_second};
use crate::audit::{self, Audit, Event};
use keyward_engine::snapshot::Snapshot;

/// Maximum number of conflicts of one load that the log names. The audit trail has all of them.
const MAX_LOGGED_CONFLICTS: usize = 20;

/// How long a revocation stays on the list after the source has confirmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// For this time; zero: until the first load that confirms it.
    For(Duration),
    /// Until an operator removes it.
    Forever,
}

impl Retention {
    /// Long enough to notice an export that lags or was restored from a backup of last week.
    pub const DEFAULT: Self = Self::For(Duration::from_secs(7 * 86_400));

    fn is_over(self, confirmed: Duration) -> bool {
        matches!(self, Self::For(retention) if confirmed >= retention)
    }
}

/// The effect of a load on the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// Entries that have left the list.
    pub dropped: usize,
    /// Entries that the source contradicts.
    pub conflicts: usize,
}

/// A change of an entry's status in the source.
pub(super) struct StatusChange {
    pub(super) target: Target,
    pub(super) status: SourceStatus,
    rows: usize,
}

impl Revocations {
    /// Compares the list with `snapshot`, which is in force, and drops entries that the source has
    /// confirmed for `retention`. Changes are recorded in `audit`. An entry whose removal cannot
    /// be made durable stays until the next load.
    pub fn reconcile(&self, snapshot: &Snapshot, retention: Retention, audit: &Audit) -> Reconciliation {
        let (changes, due) = self.compare(snapshot, retention);
        let dropped = self.drop_durably(snapshot, due);
        log(&changes);
        let dropped_events =
            dropped.iter().map(|(target, rows)| Event::RevocationDropped(describe(target, *rows)));
        let events: Vec<Event<'_>> = changes.iter().map(change_event).chain(dropped_events).collect();
        audit.record_all(&events);
        Reconciliation { dropped: dropped.len(), conflicts: self.list().conflicts() }
    }

    /// Records the status of each entry in the source. Returns the changes, and the entries that
    /// are due to be dropped with the number of their rows.
    pub(super) fn compare(
        &self,
        snapshot: &Snapshot,
        retention: Retention,
    ) -> (Vec<StatusChange>, Vec<(Target, usize)>) {
        // The look-ups take long, so they work on a copy while commands go on.
        let copy = self.list().clone();
        let statuses = copy.compare(snapshot);
        drop(copy);

        let (mut changes, mut due, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        let _commands = self.lock_commands();
        let mut list = self.list_mut();
        let (clock_ms, since) = (self.clock.now_ms(), current_second());
        for (target, status, rows) in statuses {
            // A command may have removed the entry meanwhile.
            let Some(entry) = list.get_mut(&target) else { continue };
            let change = record_status(entry, status, since, clock_ms);
            if entry.record.confirmed_since().is_some() && retention.is_over(confirmed_for(entry, clock_ms)) {
                entry.dropping = true;
                due.push((target, rows));
            } else if let Some(observation) = change {
                lines.push(Line::source(&target, observation));
                changes.push(StatusChange { target, status, rows });
            }
        }
        drop(list);
        // If these lines are lost, the time restarts after a restart, and the entry stays longer.
        if !lines.is_empty() {
            let ticket = self.enqueue(lines);
            self.settle(ticket);
        }
        (changes, due)
    }

    /// Removes entries from the list on disk, and then from the one in memory. Returns the removed
    /// ones.
    pub(super) fn drop_durably(
        &self,
        snapshot: &Snapshot,
        mut due: Vec<(Target, usize)>,
    ) -> Vec<(Target, usize)> {
        match self.drop_on_disk(&mut due) {
            Some(durability) => self.drop_in_memory(snapshot, due, durability),
            None => Vec::new(),
        }
    }

    /// Removes entries whose removal is durable, and keeps the others.
    pub(super) fn drop_in_memory(
        &self,
        snapshot: &Snapshot,
        due: Vec<(Target, usize)>,
        durability: Durability,
    ) -> Vec<(Target, usize)> {
        let _settling = self.lock_marking();
        let _commands = self.lock_commands();
        let mut list = self.list_mut();
        if let Durability::NotDurable(error) = durability {
            warn!(%error, "the list of revocations cannot be shortened; what the source agrees with stays on it");
            let mut lines = Vec::new();
            for (target, _) in due {
                if let Some(entry) = list.get_mut(&target).filter(|entry| entry.dropping) {
                    entry.dropping = false;
                    // The list on disk may have lost the entry already.
                    lines.push(Line::revoke(&target, &entry.record));
                }
            }
            drop(list);
            self.enqueue(lines);
            return Vec::new();
        }
        // An entry that was revoked again meanwhile stays.
        let is_dropping = |target: &Target| list.get(target).is_some_and(|entry| entry.dropping);
        let dropped: Vec<_> = due.into_iter().filter(|(target, _)| is_dropping(target)).collect();
        for (target, _) in &dropped {
            list.remove(target);
        }
        drop(list);
        // Clears the marks, so that rows have the status that they will have after a restart. All
        // of them are revoked by the source, so no answer changes, and no overlay is needed.
        let list = self.list();
        for (target, _) in &dropped {
            list.mark(snapshot, target);
        }
        dropped
    }

    /// Queues the lines that drop the entries, and waits for them. Entries that were revoked again
    /// or removed since they became due are left out: after the line of that command, a line that
    /// drops the entry would undo it at the next start. `None`: no entries are left.
    pub(super) fn drop_on_disk(&self, due: &mut Vec<(Target, usize)>) -> Option<Durability> {
        let commands = self.lock_commands();
        {
            let list = self.list();
            due.retain(|(target, _)| list.get(target).is_some_and(|entry| entry.dropping));
        }
        if due.is_empty() {
            return None;
        }
        let Some(writer) = &self.writer else { return Some(Durability::Durable) };
        let when = current_second();
        let ticket = writer.enqueue_optional(due.iter().map(|(target, _)| Line::dropped(target, when)));
        // Commands must not wait for the disk.
        drop(commands);
        Some(writer.wait_optional(ticket))
    }
}

/// Records the status of an entry in the source. Returns the observation if it is a change. Before
/// the source has confirmed it for the first time, any other status is no change.
fn record_status(
    entry: &mut Entry,
    status: SourceStatus,
    since: Timestamp,
    clock_ms: u64,
) -> Option<SourceObservation> {
    let before = entry.record.source;
    if before.map_or(status != SourceStatus::Revoked, |before| before.status == status) {
        return None;
    }
    let observation = SourceObservation { status, since, clock_ms };
    entry.record.source = Some(observation);
    Some(observation)
}

/// How long the source has confirmed an entry.
fn confirmed_for(entry: &Entry, clock_ms: u64) -> Duration {
    let since_ms = entry.record.source.map_or(clock_ms, |source| source.clock_ms);
    Duration::from_millis(clock_ms.saturating_sub(since_ms))
}

fn log(changes: &[StatusChange]) {
    let with = |status: SourceStatus| changes.iter().filter(move |change| change.status == status);
    let conflicts = with(SourceStatus::Active).count();
    for StatusChange { target, rows, .. } in with(SourceStatus::Active).take(MAX_LOGGED_CONFLICTS) {
        let (key_id, owner) = (target.key_id(), target.owner());
        warn!(
            key_id,
            owner,
            keys = rows,
            "the source lists a revoked target as active, after it had agreed: it stays revoked; to use it again: keyward \
             unrevoke"
        );
    }
    if conflicts > MAX_LOGGED_CONFLICTS {
        warn!(conflicts, "more revocations are contradicted by the source: keyward status --json lists them");
    }
    let confirmed = with(SourceStatus::Revoked).count();
    if confirmed > 0 {
        info!(
            agreed = confirmed,
            "the source agrees with revocations; they stay on the list for revocation.keep"
        );
    }
}

/// Any entry may be named: it was in a source once, or its text cannot be a key.
fn describe(target: &Target, rows: usize) -> audit::RevocationStatus<'_> {
    audit::RevocationStatus { key_id: target.key_id(), owner: target.owner(), keys: rows }
}

fn change_event(change: &StatusChange) -> Event<'_> {
    let described = describe(&change.target, change.rows);
    match change.status {
        SourceStatus::Revoked => Event::RevocationConfirmed(described),
        SourceStatus::Active => Event::RevocationConflict(described),
        SourceStatus::Unconfirmed => Event::RevocationUnconfirmed(described),
    }
}
