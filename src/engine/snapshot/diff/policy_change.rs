//! How one policy differs from another, evaluated once for all keys that go from one to the other.

use crate::record::{Field, FieldSet, Limit, LimitRef, Per, Plans};
use crate::snapshot::Policy;
use crate::snapshot::diff::access_change::AccessChange;

/// The change from one policy to another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PolicyChange {
    /// Whether the policies are equal.
    pub(super) is_same: bool,
    /// The restrictions that the first policy has, as bits of [`AccessChange`].
    pub(super) carried: u16,
    /// Those restrictions that the second policy lacks or loosens, and the access it gains.
    pub(super) loosened: u16,
    /// Whether the first policy has a limit that the keys of an owner share.
    pub(super) per_owner: bool,
    /// The fields that the first policy has a value for.
    pub(super) present_fields: FieldSet,
}

impl PolicyChange {
    /// The change from `before`, under the plans of its table, to `after`, under the plans of its
    /// table.
    pub(super) fn new(
        before: Policy<'_>,
        plans_before: &Plans,
        after: Policy<'_>,
        plans_after: &Plans,
    ) -> Self {
        use AccessChange::{
            GainsEnvironment, GainsScopes, LosesEnvironment, LosesLimits, LosesNetworks, LosesOrigins,
            RaisesLimits, ReplacesLimits,
        };
        let bits = |conditions: &[(AccessChange, bool)]| {
            conditions.iter().filter(|(_, holds)| *holds).fold(0, |bits, (change, _)| bits | change.bit())
        };
        let (environment, new_environment) = (before.environment(), after.environment());
        let enforced = || before.limits().filter(|limit| !limit.shadow);
        let is_same_plan = before.plan() == after.plan();
        let plan_limits_before = limits_of(plans_before, before.plan());
        let plan_limits_after = limits_of(plans_after, after.plan());
        // Whether the configuration, and not the source, has changed this limit of the plan.
        let is_from_configuration = |limit: LimitRef<'_>| {
            is_same_plan
                && is_one_of(plan_limits_before, limit)
                && named(after.limits(), limit) == named(refs(plan_limits_after), limit)
        };
        // Changes by the configuration do not count.
        let mut from_source = enforced().filter(|limit| !is_from_configuration(*limit));
        let enforced_after = |limit: LimitRef<'_>| named(after.limits(), limit).filter(|after| !after.shadow);
        let is_lost = |limit: LimitRef<'_>| enforced_after(limit).is_none();
        let is_replaced =
            |limit: LimitRef<'_>| enforced_after(limit).is_some_and(|after| !keeps_balance(after, limit));
        let is_raised = |limit: LimitRef<'_>| {
            enforced_after(limit)
                .is_some_and(|after| keeps_balance(after, limit) && !after.rule.is_as_strict_as(limit.rule))
        };
        Self {
            is_same: before == after,
            carried: bits(&[
                (LosesEnvironment, !environment.is_empty()),
                (LosesNetworks, before.is_limited_to_networks()),
                (LosesOrigins, before.is_limited_to_origins()),
                (LosesLimits, enforced().next().is_some()),
                (ReplacesLimits, enforced().next().is_some()),
                (RaisesLimits, enforced().next().is_some()),
            ]),
            loosened: bits(&[
                (LosesEnvironment, !environment.is_empty() && environment != new_environment),
                (LosesNetworks, after.admits_networks_beyond(before)),
                (LosesOrigins, after.admits_origins_beyond(before)),
                (LosesLimits, from_source.clone().any(is_lost)),
                (ReplacesLimits, from_source.clone().any(is_replaced)),
                (RaisesLimits, from_source.any(is_raised)),
                (GainsScopes, after.has_scopes_beyond(before)),
                (GainsEnvironment, environment.is_empty() && !new_environment.is_empty()),
            ]),
            per_owner: before.limits().any(|limit| limit.per == Per::Owner && !limit.shadow),
            present_fields: policy_fields(before, plan_limits_before),
        }
    }
}

/// The restrictions that a policy has a value for, on a plan with the limits `plan_limits`.
pub(super) fn policy_fields(policy: Policy<'_>, plan_limits: &[Limit]) -> FieldSet {
    let has_own_limits = !policy.limits().all(|limit| is_one_of(plan_limits, limit));
    FieldSet::NONE
        .with_if(Field::Environment, !policy.environment().is_empty())
        .with_if(Field::Plan, !policy.plan().is_empty())
        .with_if(Field::Scopes, policy.has_scopes())
        .with_if(Field::AllowedIps, policy.is_limited_to_networks())
        .with_if(Field::AllowedOrigins, policy.is_limited_to_origins())
        .with_if(Field::Limits, has_own_limits)
}

/// The limits of a plan.
pub(super) fn limits_of<'p>(plans: &'p Plans, plan: &'p str) -> &'p [Limit] {
    plans.resolve(plan).map_or(&[], |(_, limits)| limits)
}

fn refs(limits: &[Limit]) -> impl Iterator<Item = LimitRef<'_>> {
    limits.iter().map(Limit::as_ref)
}

fn is_one_of(limits: &[Limit], limit: LimitRef<'_>) -> bool {
    named(refs(limits), limit) == Some(limit)
}

/// The limit with the name of `like`.
fn named<'l>(mut limits: impl Iterator<Item = LimitRef<'l>>, like: LimitRef<'_>) -> Option<LimitRef<'l>> {
    limits.find(|limit| limit.name == like.name)
}

/// Whether what was spent of `before` counts for `after`, a limit of the same name. Otherwise `after`
/// starts unspent, however strict it is.
fn keeps_balance(after: LimitRef<'_>, before: LimitRef<'_>) -> bool {
    after.rule.kind() == before.rule.kind() && after.per == before.per
}
