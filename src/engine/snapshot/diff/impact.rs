//! How a new table changes access: keys that would stop working, keys that would start working, and
//! keys that would lose a restriction.
//!
//! Both tables are evaluated at the same time, so a key that has expired in the meantime counts as
//! unchanged. Each count comes with the number of keys that it could have applied to, so that the
//! guard can compare shares. A key in rotation is counted once for each of its rows. A key that an
//! operator has revoked works in neither table.

use crate::record::{Field, FieldSet, Status};
use crate::snapshot::diff::access_change::{AccessChange, AccessChanges};
use crate::snapshot::diff::policy_change::PolicyChange;
use crate::snapshot::entry::Entry;

/// A number of keys, out of all keys that a change could apply to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Keys that the change applies to.
    pub count: usize,
    /// Keys that it could have applied to.
    pub of: usize,
}

/// How a new table changes access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impact {
    shares: [Share; AccessChange::COUNT],
    /// Keys that would lose a restriction. A key that loses several counts once.
    loosened: usize,
    /// Restrictions that a key of both tables had in the old one, and that no row of the new table
    /// has a value for.
    pub lost: FieldSet,
}

impl Impact {
    /// The keys that a change applies to.
    pub fn share(&self, change: AccessChange) -> Share {
        self.shares[change as usize]
    }

    /// Keys that work and would stop working.
    pub fn stopping(&self) -> usize {
        self.share(AccessChange::Stops).count
    }

    /// Keys that are listed, do not work, and would start working.
    pub fn starting(&self) -> usize {
        AccessChange::STARTS.into_iter().map(|change| self.share(change).count).sum()
    }

    /// Keys that would lose a restriction.
    pub fn loosened(&self) -> usize {
        self.loosened
    }

    /// Adds the counts of other rows.
    pub(super) fn append(&mut self, other: &Self) {
        for (share, other) in self.shares.iter_mut().zip(other.shares) {
            share.count += other.count;
            share.of += other.of;
        }
        self.loosened += other.loosened;
        self.lost = self.lost.union(other.lost);
    }

    fn count(&mut self, change: AccessChange, applies: bool) {
        let share = &mut self.shares[change as usize];
        share.of += 1;
        share.count += usize::from(applies);
    }
}

/// The state of a key in the new table, as far as it depends on more than the old row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NewState {
    pub(super) policy_change: PolicyChange,
    /// Whether the key id is another one, and with it the identity of the limits.
    pub(super) is_renamed: bool,
    pub(super) has_other_owner: bool,
    /// Whether the key no longer has an owner, and so shares no limit.
    pub(super) has_lost_owner: bool,
    /// Whether the key would work.
    pub(super) is_usable: bool,
    pub(super) expires_at: u32,
    /// Whether the row is set aside. It then states no restrictions.
    pub(super) is_set_aside: bool,
    /// The restrictions that the row has a value for. Only filled in if the old row was set aside.
    pub(super) present_fields: FieldSet,
}

/// What the changes mean for one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyImpact {
    pub(super) stops: bool,
    pub(super) starts: bool,
    pub(super) loosened: bool,
    pub(super) changes: AccessChanges,
}

/// Whether a row admits requests at the Unix second `now`.
pub(super) fn is_usable(entry: &Entry, now: u32) -> bool {
    entry.status.in_force() == Status::Active && is_within(entry, now)
}

/// Whether the Unix second `now` is within the row's period of validity.
pub(in crate::snapshot) fn is_within(entry: &Entry, now: u32) -> bool {
    entry.not_before <= now && now < entry.expires_at.get()
}

impl Impact {
    /// Counts the row `before` and the new state of its key; `None` if the key is gone. `missing`
    /// are the restrictions that no new row has a value for.
    pub(super) fn add(
        &mut self,
        before: &Entry,
        after: Option<NewState>,
        now: u32,
        missing: FieldSet,
    ) -> KeyImpact {
        use AccessChange::{DisabledReturns, ExpiredReturns, RevokedReturns, Stops, WithheldReturns};
        let works_after = after.is_some_and(|after| after.is_usable);
        let status = &before.status;
        let (mut impact, mut changes) = (KeyImpact::default(), 0);
        if is_usable(before, now) {
            impact.stops = !works_after;
            self.count(Stops, impact.stops);
            changes |= if impact.stops { Stops.bit() } else { 0 };
        } else if !status.is_revoked_by_operator() {
            impact.starts = works_after;
            let change = match status.before_set_aside() {
                Status::Active if status.is_set_aside() => WithheldReturns,
                Status::Active
                    if status.is_taken_away() && (is_within(before, now) || status.has_taken_expiry()) =>
                {
                    WithheldReturns
                }
                Status::Revoked => RevokedReturns,
                Status::Disabled => DisabledReturns,
                Status::Active => ExpiredReturns,
            };
            self.count(change, works_after);
            changes |= if works_after { change.bit() } else { 0 };
        }
        // A row that is set aside states no restrictions.
        if let Some(after) = after.filter(|after| !after.is_set_aside) {
            let (loosened, present_fields) = if status.is_set_aside() {
                (self.add_prior_restrictions(before, &after), before.prior_restrictions.fields())
            } else {
                let present_fields = after.policy_change.present_fields.union(row_fields(before));
                (self.add_restrictions(before, &after), present_fields)
            };
            impact.loosened = loosened != 0;
            changes |= loosened;
            self.lost = self.lost.union(present_fields.intersection(missing));
        }
        impact.changes = AccessChanges(changes);
        impact
    }

    /// Counts the restrictions of a key whose old row was set aside. It is known which restrictions
    /// the key had, but not how strict they were.
    fn add_prior_restrictions(&mut self, before: &Entry, after: &NewState) -> u16 {
        let (had, has) = (before.prior_restrictions.fields(), after.present_fields);
        let mut loosened = 0;
        for (change, fields) in [
            (AccessChange::LosesEnvironment, &[Field::Environment][..]),
            (AccessChange::LosesNetworks, &[Field::AllowedIps]),
            (AccessChange::LosesOrigins, &[Field::AllowedOrigins]),
            (AccessChange::LosesLimits, &[Field::Limits, Field::Plan]),
            (AccessChange::LosesExpiry, &[Field::ExpiresAt]),
            (AccessChange::GainsScopes, &[Field::Scopes]),
        ] {
            let any = |of: FieldSet| fields.iter().any(|field| of.contains(*field));
            // A key that had no scopes gains the scopes with which it returns.
            let (carried, loses) = match change {
                AccessChange::GainsScopes => (true, !any(had) && any(has)),
                _ => (any(had), any(had) && !any(has)),
            };
            if carried {
                self.count(change, loses);
                loosened |= if loses { change.bit() } else { 0 };
            }
        }
        self.loosened += usize::from(loosened != 0);
        loosened
    }

    /// Returns the restrictions that the key loses, as bits of [`AccessChange`].
    fn add_restrictions(&mut self, before: &Entry, after: &NewState) -> u16 {
        let PolicyChange { carried, mut loosened, per_owner, .. } = after.policy_change;
        if after.is_renamed || (after.has_other_owner && per_owner) {
            loosened |= carried & AccessChange::RaisesLimits.bit();
        }
        if after.has_lost_owner && per_owner {
            loosened |= carried & AccessChange::LosesLimits.bit();
        }
        let expires = before.status.row_has_expiry(before.expires_at.get());
        let carried = carried
            | AccessChange::GainsScopes.bit()
            | AccessChange::GainsEnvironment.bit()
            | if expires { AccessChange::LosesExpiry.bit() } else { 0 };
        if expires && after.expires_at == u32::MAX {
            loosened |= AccessChange::LosesExpiry.bit();
        }
        for change in AccessChange::LOOSENS {
            if carried & change.bit() != 0 {
                self.count(change, loosened & change.bit() != 0);
            }
        }
        self.loosened += usize::from(loosened != 0);
        loosened
    }
}

/// The restrictions that a row has a value for, apart from those of its policy.
pub(super) fn row_fields(entry: &Entry) -> FieldSet {
    FieldSet::NONE
        .with_if(Field::Status, entry.status.of_row() != Status::Active)
        .with_if(Field::NotBefore, entry.not_before != 0)
        .with_if(Field::ExpiresAt, entry.expires_at.get() != u32::MAX)
}
