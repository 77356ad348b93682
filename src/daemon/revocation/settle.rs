//! Settling the list with the source: what the source says itself may leave the list, once it has said so for long enough.
//!
//! An export can be older than the one before it, for example where it comes from a replica that lags. So an entry that the
//! source agrees with, by calling all rows of that key or owner revoked, stays on the list until it has done so at every load
//! for as long as [`Retention`] says, by the [list's own clock](super::watermark). A load with a row that is active, or without
//! rows, begins that anew. A source that says active after it had said revoked contradicts the revocation: that is
//! reported once when it begins, and the key stays revoked.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::line::Line;
use super::list::{Entry, Source, SourceStatus, Target};
use super::{Durability, Revocations, current_second};
use crate::audit::{self, Audit, Event};
use keyward_engine::snapshot::Snapshot;

/// Conflicts that are named in the log, of those that begin with one load. The audit trail has all of them.
const MAX_LOGGED_CONFLICTS: usize = 20;

/// How long a revocation outlives the source's agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// So long; zero: it is dropped by the first load that agrees.
    For(Duration),
    /// Until it is taken back.
    Forever,
}

impl Retention {
    /// Long enough for an export that lags, or is restored from a backup of last week, to be found.
    pub const DEFAULT: Self = Self::For(Duration::from_secs(7 * 86_400));

    fn is_over(self, agreed: Duration) -> bool {
        matches!(self, Self::For(keep) if agreed >= keep)
    }
}

/// What a load changed about the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// Entries that the source has made superfluous, and that are off the list.
    pub dropped: usize,
    /// Entries on the list that the source contradicts.
    pub conflicts: usize,
}

/// Something that begins with a load.
pub(super) struct StatusChange {
    pub(super) target: Target,
    pub(super) says: SourceStatus,
    keys: usize,
}

impl Revocations {
    /// Compares the list with `snapshot`, which is the one in force, and drops what the source has said itself for as long
    /// as `keep` says; changes go to `audit`. What cannot be dropped durably stays, and is tried again after the next load.
    pub fn reconcile(&self, snapshot: &Snapshot, keep: Retention, audit: &Audit) -> Reconciliation {
        let (news, due) = self.compare(snapshot, keep);
        let dropped = self.drop_durably(snapshot, due);
        audit.set_generation(snapshot.generation());
        report(&news);
        let events: Vec<Event<'_>> = news.iter().map(event_of).chain(dropped.iter().map(drop_of)).collect();
        audit.record_all(&events);
        Reconciliation { dropped: dropped.len(), conflicts: self.list().conflicts() }
    }

    /// Notes what the source says of each entry, and returns what is new, and the entries that are due to be dropped.
    pub(super) fn compare(
        &self,
        snapshot: &Snapshot,
        keep: Retention,
    ) -> (Vec<StatusChange>, Vec<(Target, usize)>) {
        // The long part, beside commands that go on.
        let before = self.list().clone();
        let found = before.compare(snapshot);
        drop(before);

        let (mut news, mut due, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        let _order = self.order();
        let mut list = self.list_mut();
        let (clock_ms, since) = (self.clock.now_ms(), current_second());
        for (target, says, keys) in found {
            // One that was taken back meanwhile is not there any more.
            let Some(entry) = list.get_mut(&target) else { continue };
            let change = note(entry, says, since, clock_ms);
            if entry.record.agreed_since().is_some() && keep.is_over(agreed_for(entry, clock_ms)) {
                entry.dropping = true;
                due.push((target, keys));
            } else if let Some(source) = change {
                lines.push(Line::source(&target, source));
                news.push(StatusChange { target, says, keys });
            }
        }
        drop(list);
        // What is lost of these lines begins anew after a restart: the entry stays for longer.
        if !lines.is_empty() {
            self.enqueue(lines);
        }
        (news, due)
    }

    /// Takes entries off the list on disk, and then off the one in memory.
    pub(super) fn drop_durably(
        &self,
        snapshot: &Snapshot,
        mut due: Vec<(Target, usize)>,
    ) -> Vec<(Target, usize)> {
        let Some(durability) = self.drop_on_disk(&mut due) else { return Vec::new() };
        let _order = self.order();
        let mut list = self.list_mut();
        if let Durability::NotDurable(error) = durability {
            warn!(%error, "the list of revocations cannot be shortened; what the source agrees with stays on it");
            let mut lines = Vec::new();
            for (target, _) in due {
                if let Some(entry) = list.get_mut(&target).filter(|entry| entry.dropping) {
                    entry.dropping = false;
                    // It may be off the list on disk by now.
                    lines.push(Line::revoke(&target, &entry.record));
                }
            }
            drop(list);
            self.enqueue(lines);
            return Vec::new();
        }
        // One that was revoked again meanwhile stays.
        let is_dropping = |target: &Target| list.get(target).is_some_and(|entry| entry.dropping);
        let dropped: Vec<_> = due.into_iter().filter(|(target, _)| is_dropping(target)).collect();
        for (target, _) in &dropped {
            list.remove(target);
        }
        drop(list);
        // So that a row is called what the source calls it, as it will be after a restart. No answer turns into ALLOWED.
        let list = self.list();
        for (target, _) in &dropped {
            list.mark(snapshot, target);
        }
        dropped
    }

    /// Gives the lines that drop the entries, and waits for them. Entries that were revoked again or taken back since they
    /// became due are left out: behind the line of that command, a line that drops the entry would undo it at the next start.
    /// `None`: nothing is left to be dropped.
    fn drop_on_disk(&self, due: &mut Vec<(Target, usize)>) -> Option<Durability> {
        let order = self.order();
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
        // Commands do not wait for the disk.
        drop(order);
        Some(writer.wait_optional(ticket))
    }
}

/// Notes what the source says of an entry. Returns what is new about that; a source that has never said `revoked` says
/// nothing new.
fn note(entry: &mut Entry, says: SourceStatus, since: Timestamp, clock_ms: u64) -> Option<Source> {
    let before = entry.record.source;
    if before.map_or(says != SourceStatus::Revoked, |source| source.says == says) {
        return None;
    }
    let source = Source { says, since, clock_ms };
    entry.record.source = Some(source);
    Some(source)
}

/// How long the source has agreed with an entry.
fn agreed_for(entry: &Entry, clock_ms: u64) -> Duration {
    let since_ms = entry.record.source.map_or(clock_ms, |source| source.clock_ms);
    Duration::from_millis(clock_ms.saturating_sub(since_ms))
}

fn report(news: &[StatusChange]) {
    let of = |says: SourceStatus| news.iter().filter(move |news| news.says == says);
    let conflicts = of(SourceStatus::Active).count();
    for StatusChange { target, keys, .. } in of(SourceStatus::Active).take(MAX_LOGGED_CONFLICTS) {
        let (key_id, owner) = (target.key_id(), target.owner());
        warn!(
            key_id,
            owner,
            keys,
            "the source says active of what is revoked, and had said revoked: it stays revoked; if it is to be used again: \
             keyward unrevoke"
        );
    }
    if conflicts > MAX_LOGGED_CONFLICTS {
        warn!(conflicts, "more revocations are contradicted by the source: keyward status --json lists them");
    }
    let agreed = of(SourceStatus::Revoked).count();
    if agreed > 0 {
        info!(agreed, "the source says revoked itself; the revocations are kept for revocation.keep");
    }
}

/// Everything on the list may be named: it was in a source once, or its text cannot be a key.
fn named<'a>(target: &'a Target, keys: usize) -> audit::RevocationStatus<'a> {
    audit::RevocationStatus { key_id: target.key_id(), owner: target.owner(), keys }
}

fn event_of(news: &StatusChange) -> Event<'_> {
    let listed = named(&news.target, news.keys);
    match news.says {
        SourceStatus::Revoked => Event::RevocationAgreed(listed),
        SourceStatus::Active => Event::RevocationConflict(listed),
        SourceStatus::Absent => Event::RevocationUnconfirmed(listed),
    }
}

fn drop_of((target, keys): &(Target, usize)) -> Event<'_> {
    Event::RevocationDropped(named(target, *keys))
}
