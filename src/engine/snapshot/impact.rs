//! What a new set of keys changes in access: keys that would stop working, keys that would start to, and
//! keys that would lose a restriction.
//!
//! Both sets are weighed at one instant, so that a key whose time has passed meanwhile counts as nothing.
//! Each count comes with the keys that it could have been, so that a guard can compare shares. A key
//! that an operator has revoked does not work in either set.

use crate::record::{Field, FieldSet, Limit, Per, Plans, Status};
use crate::snapshot::Policy;
use crate::snapshot::entry::Entry;

/// Some keys, out of all that are in the same position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Keys that the change applies to.
    pub count: usize,
    /// Keys that it could have applied to.
    pub of: usize,
}

/// A change in what a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessChange {
    /// The key works and would stop working. Out of the keys that work.
    Stops,
    /// The source says revoked and would say active. Out of the revoked keys.
    RevokedReturns,
    /// The source says disabled and would say active. Out of the disabled keys.
    DisabledReturns,
    /// The key has expired, or is not valid yet, and would be valid. Out of all such keys.
    ExpiredReturns,
    /// The key is out of force because of rows that cannot be understood: its own was set aside, or an export that was refused
    /// for others took it away. It would work. Out of all such keys.
    WithheldReturns,
    /// The environment disappears or is another one. Out of the keys that have one.
    LosesEnvironment,
    /// Addresses are admitted that were not. Out of the keys that are limited to networks.
    LosesNetworks,
    /// Origins are admitted that were not. Out of the keys that are limited to origins.
    LosesOrigins,
    /// A limit disappears, or refuses no one any more. Out of the keys that have limits.
    LosesLimits,
    /// A limit admits more, or its bucket begins anew. Out of the keys that have limits.
    RaisesLimits,
    /// The end disappears. Out of the keys that have one.
    LosesExpiry,
    /// Scopes are admitted that were not. Out of all keys that stay.
    GainsScopes,
    /// An environment is admitted where there was none. Out of all keys that stay.
    GainsEnvironment,
}

impl AccessChange {
    /// How many there are.
    const COUNT: usize = 13;

    /// Changes by which a key that does not work starts to work.
    pub const STARTS: [Self; 4] =
        [Self::RevokedReturns, Self::DisabledReturns, Self::ExpiredReturns, Self::WithheldReturns];

    /// Changes by which a key loses a restriction.
    pub const LOOSENS: [Self; 8] = [
        Self::LosesEnvironment,
        Self::LosesNetworks,
        Self::LosesOrigins,
        Self::LosesLimits,
        Self::RaisesLimits,
        Self::LosesExpiry,
        Self::GainsScopes,
        Self::GainsEnvironment,
    ];

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// The changes that apply to one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessChanges(u16);

impl AccessChanges {
    /// Whether this one does.
    pub fn has(self, change: AccessChange) -> bool {
        self.0 & change.bit() != 0
    }
}

/// How a new set of keys changes access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impact {
    shares: [Share; AccessChange::COUNT],
    /// Keys that would lose a restriction: one that loses several counts once.
    loosened: usize,
    /// Restrictions that a key of both sets had, and that no key of the new set has a value for.
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

    /// Adds what was counted of other rows.
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

/// What a row does not say by itself: how its policy changes, and whose key it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Matched {
    pub(super) pair: PolicyPair,
    /// Whether the bucket of a limit is named by something else: the key id.
    pub(super) is_renamed: bool,
    pub(super) has_other_owner: bool,
    /// Whether the key works afterwards.
    pub(super) works: bool,
    pub(super) expires_at: u32,
    /// Whether its row cannot be understood: it says nothing of restrictions.
    pub(super) is_set_aside: bool,
    /// The restrictions that the row has a value for; only where the row before was set aside.
    pub(super) given: FieldSet,
}

/// What applies to one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyImpact {
    pub(super) stops: bool,
    pub(super) starts: bool,
    pub(super) loosened: bool,
    pub(super) changes: AccessChanges,
}

/// Whether a row admits requests at the Unix second `now`.
pub(super) fn works(entry: &Entry, now: u32) -> bool {
    entry.status.in_force() == Status::Active && is_within(entry, now)
}

pub(super) fn is_within(entry: &Entry, now: u32) -> bool {
    entry.not_before <= now && now < entry.expires_at.get()
}

impl Impact {
    /// Counts a row before, and what has become of its key; `None`: the key is gone. `missing` are the
    /// restrictions that no row after has a value for.
    pub(super) fn add(
        &mut self,
        before: &Entry,
        after: Option<Matched>,
        now: u32,
        missing: FieldSet,
    ) -> KeyImpact {
        use AccessChange::{DisabledReturns, ExpiredReturns, RevokedReturns, Stops, WithheldReturns};
        let works_after = after.is_some_and(|after| after.works);
        let status = &before.status;
        let (mut impact, mut changes) = (KeyImpact::default(), 0);
        if works(before, now) {
            impact.stops = !works_after;
            self.count(Stops, impact.stops);
            changes |= if impact.stops { Stops.bit() } else { 0 };
        } else if !status.is_by_operator() {
            impact.starts = works_after;
            let change = match status.before_set_aside() {
                Status::Active if status.is_set_aside() => WithheldReturns,
                Status::Active
                    if status.is_taken_away() && (is_within(before, now) || status.has_taken_end()) =>
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
        // A row that is set aside says nothing of restrictions.
        if let Some(after) = after.filter(|after| !after.is_set_aside) {
            let (loosened, given) = match status.is_set_aside() {
                true => (self.add_remembered(before, &after), before.had.fields()),
                false => (self.add_restrictions(before, &after), after.pair.given.union(given(before))),
            };
            impact.loosened = loosened != 0;
            changes |= loosened;
            self.lost = self.lost.union(given.intersection(missing));
        }
        impact.changes = AccessChanges(changes);
        impact
    }

    /// Counts the restrictions of a key whose row before was set aside: which ones it had is known, and not how strict they were.
    fn add_remembered(&mut self, before: &Entry, after: &Matched) -> u16 {
        let (had, has) = (before.had.fields(), after.given);
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
            // A key that had no scopes gains those that it comes back with.
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

    /// Returns the restrictions that the key loses, by the bits of [`AccessChange`].
    fn add_restrictions(&mut self, before: &Entry, after: &Matched) -> u16 {
        let PolicyPair { carried, mut loosened, per_owner, .. } = after.pair;
        if after.is_renamed || (after.has_other_owner && per_owner) {
            loosened |= carried & AccessChange::RaisesLimits.bit();
        }
        let ends = before.status.has_end_of_row(before.expires_at.get());
        let carried = carried
            | AccessChange::GainsScopes.bit()
            | AccessChange::GainsEnvironment.bit()
            | if ends { AccessChange::LosesExpiry.bit() } else { 0 };
        if ends && after.expires_at == u32::MAX {
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

/// The restrictions of a row that are not its policy's.
pub(super) fn given(entry: &Entry) -> FieldSet {
    FieldSet::NONE
        .with_if(Field::Status, entry.status.of_row() != Status::Active)
        .with_if(Field::NotBefore, entry.not_before != 0)
        .with_if(Field::ExpiresAt, entry.expires_at.get() != u32::MAX)
}

/// How one policy differs from another: worked out once for all keys that go from one to the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PolicyPair {
    /// Whether they say the same.
    pub(super) is_same: bool,
    /// Restrictions that the first one has, by the bits of [`AccessChange`].
    carried: u16,
    /// Those of them that the second one does not have, or has more loosely.
    loosened: u16,
    /// Whether the first one has a limit that the keys of an owner share.
    per_owner: bool,
    /// The fields that the first one has a value for.
    given: FieldSet,
}

impl PolicyPair {
    /// Goes from `before`, with the plans of then, to `after`, with the plans of now.
    pub(super) fn new(before: &Policy, plans_before: &Plans, after: &Policy, plans_after: &Plans) -> Self {
        use AccessChange::{
            GainsEnvironment, GainsScopes, LosesEnvironment, LosesLimits, LosesNetworks, LosesOrigins,
            RaisesLimits,
        };
        let bits = |conditions: &[(AccessChange, bool)]| {
            conditions.iter().filter(|(_, holds)| *holds).fold(0, |bits, (change, _)| bits | change.bit())
        };
        let (environment, new_environment) = (before.environment(), after.environment());
        let enforced = || before.limits().iter().filter(|limit| !limit.shadow);
        let of_plan_before = limits_of(plans_before, before.plan());
        let of_plan_after = limits_of(plans_after, after.plan());
        // The configuration, not the source, has changed a plan.
        let by_configuration = |limit: &Limit| {
            before.plan() == after.plan()
                && named(of_plan_before, limit) == Some(limit)
                && named(after.limits(), limit) == named(of_plan_after, limit)
        };
        // By the source: those that the configuration changes do not count.
        let mut of_source = enforced().filter(|limit| !by_configuration(limit));
        let enforced_after = |limit: &Limit| named(after.limits(), limit).filter(|after| !after.shadow);
        let is_lost = |limit: &Limit| enforced_after(limit).is_none();
        let is_raised =
            |limit: &Limit| enforced_after(limit).is_some_and(|after| !is_as_strict(after, limit));
        Self {
            is_same: before == after,
            carried: bits(&[
                (LosesEnvironment, !environment.is_empty()),
                (LosesNetworks, before.is_limited_to_networks()),
                (LosesOrigins, before.is_limited_to_origins()),
                (LosesLimits, enforced().next().is_some()),
                (RaisesLimits, enforced().next().is_some()),
            ]),
            loosened: bits(&[
                (LosesEnvironment, !environment.is_empty() && environment != new_environment),
                (LosesNetworks, after.admits_networks_beyond(before)),
                (LosesOrigins, after.admits_origins_beyond(before)),
                (LosesLimits, of_source.clone().any(is_lost)),
                (RaisesLimits, of_source.any(is_raised)),
                (GainsScopes, after.has_scopes_beyond(before)),
                (GainsEnvironment, environment.is_empty() && !new_environment.is_empty()),
            ]),
            per_owner: before.limits().iter().any(|limit| limit.per == Per::Owner && !limit.shadow),
            given: given_by_policy(before, plans_before),
        }
    }
}

/// The restrictions that a policy has a value for.
pub(super) fn given_by_policy(policy: &Policy, plans: &Plans) -> FieldSet {
    let of_plan = limits_of(plans, policy.plan());
    let own_limits = policy.limits().iter().any(|limit| named(of_plan, limit) != Some(limit));
    FieldSet::NONE
        .with_if(Field::Environment, !policy.environment().is_empty())
        .with_if(Field::Plan, !policy.plan().is_empty())
        .with_if(Field::Scopes, policy.has_scopes())
        .with_if(Field::AllowedIps, policy.is_limited_to_networks())
        .with_if(Field::AllowedOrigins, policy.is_limited_to_origins())
        .with_if(Field::Limits, own_limits)
}

fn limits_of<'p>(plans: &'p Plans, plan: &'p str) -> &'p [Limit] {
    plans.resolve(plan).map_or(&[], |(_, limits)| limits)
}

fn named<'l>(limits: &'l [Limit], like: &Limit) -> Option<&'l Limit> {
    limits.iter().find(|limit| limit.name == like.name)
}

/// Whether a limit never admits what `before` refuses.
fn is_as_strict(after: &Limit, before: &Limit) -> bool {
    after.rate.burst() <= before.rate.burst()
        && after.rate.period() >= before.rate.period()
        && after.per == before.per
}
