//! What many keys have in common, stored once: most sources repeat a few combinations in millions
//! of rows. In others each key has scopes, networks or limits of its own, so a policy is a
//! [`PolicyRecord`] of 24 bytes that locates its parts, and equal parts are shared too ([`table`]).

use std::net::Ipv6Addr;

use keyward_protocol::AnswerTexts;

use crate::record::LimitRef;

mod ip_set;
mod origin_set;
mod restrictions;
mod scope_set;
mod span;
mod table;
#[cfg(test)]
mod tests;

use ip_set::IpSet;
use origin_set::OriginSet;
use restrictions::Restrictions;
use scope_set::ScopeSet;
use span::Span;
pub(crate) use table::PolicyLimit;
pub(super) use table::{PolicyIndexes, PolicyRecord, PolicyTable};

/// A view of the environment, plan, scopes, networks, origins and limits that rows share.
#[derive(Clone, Copy)]
pub struct Policy<'s> {
    table: &'s PolicyTable,
    record: &'s PolicyRecord,
}

impl<'s> Policy<'s> {
    /// The environment in which the key may be used; empty if the key belongs to no environment.
    pub fn environment(self) -> &'s str {
        self.texts().environment
    }

    /// The key's plan; empty if there is none.
    pub fn plan(self) -> &'s str {
        self.texts().plan
    }

    fn texts(self) -> AnswerTexts<'s> {
        AnswerTexts::decode(self.table.text(self.record.texts))
    }

    /// The limits that a request is charged to: the plan's, then the rows' own.
    pub fn limits(self) -> impl ExactSizeIterator<Item = LimitRef<'s>> + Clone {
        self.policy_limits().iter().map(move |limit| self.limit(limit))
    }

    /// The limit at a position, which has to be less than their [number](Self::limit_count). Takes
    /// fewer instructions than the list of all.
    #[inline]
    pub(crate) fn limit_at(self, position: usize) -> Option<&'s PolicyLimit> {
        debug_assert!(position < self.limit_count());
        self.table.limit_at(self.record.limits.range().start + position)
    }

    /// The [limits](Self::limits) as the table stores them.
    #[inline]
    pub(crate) fn policy_limits(self) -> &'s [PolicyLimit] {
        self.table.limits(self.record)
    }

    /// One of the [limits](Self::policy_limits) with its name.
    pub(crate) fn limit(self, limit: &'s PolicyLimit) -> LimitRef<'s> {
        self.table.limit(limit)
    }

    /// The number of [limits](Self::limits).
    #[inline]
    pub(crate) fn limit_count(self) -> usize {
        self.record.limits.length()
    }

    /// The encoded [texts](AnswerTexts) of an answer that names no limit.
    #[inline]
    pub(crate) fn texts_without_limit(self) -> Span {
        self.record.texts
    }

    /// Encoded texts of this policy: those [without a limit](Self::texts_without_limit), or those of
    /// one of its [limits](PolicyLimit::texts).
    #[inline]
    pub(crate) fn encoded_texts(self, texts: Span) -> &'s [u8] {
        self.table.text_bytes(texts)
    }

    /// Whether no property of a request other than its key, environment and scopes can be refused.
    /// This is the condition of the fast path of `first_denial`: every new restriction that a row
    /// can state must be part of it.
    #[inline]
    pub(crate) fn accepts_any_request_context(self) -> bool {
        self.record.accepts_any_request_context()
    }

    /// Whether the policy has a list of networks.
    pub(crate) fn is_limited_to_networks(self) -> bool {
        self.record.has_networks()
    }

    /// Whether the policy has a list of web origins.
    pub(crate) fn is_limited_to_origins(self) -> bool {
        self.record.has_origins()
    }

    /// Whether the policy has any scope.
    pub fn has_scopes(self) -> bool {
        !self.scopes().is_empty()
    }

    /// Whether `scope` is one of the key's scopes, or covered by one that ends in `*`.
    pub(crate) fn has_scope(self, scope: &str) -> bool {
        self.scopes().contains(scope)
    }

    /// Whether a request from `ip` is allowed. A policy without a list of networks allows every
    /// request. A policy with a list, which may be empty, refuses a request that states no address.
    pub(crate) fn allows_ip(self, ip: Option<Ipv6Addr>) -> bool {
        self.networks().is_none_or(|networks| ip.is_some_and(|ip| networks.contains(ip)))
    }

    /// Whether a request from `origin` is allowed, by the rules of [`allows_ip`](Self::allows_ip).
    pub(crate) fn allows_origin(self, origin: Option<&str>) -> bool {
        self.origins().is_none_or(|origins| origin.is_some_and(|origin| origins.matches(origin)))
    }

    fn restrictions(self) -> Restrictions<'s> {
        self.table.restrictions(self.record)
    }

    pub(super) fn scopes(self) -> ScopeSet<'s> {
        ScopeSet::new(self.restrictions().scopes)
    }

    /// `None` allows any address; an empty set allows none.
    pub(super) fn networks(self) -> Option<IpSet<'s>> {
        self.record.has_networks().then(|| IpSet::new(self.restrictions().networks))
    }

    /// `None` allows any origin; an empty set allows none.
    pub(super) fn origins(self) -> Option<OriginSet<'s>> {
        self.record.has_origins().then(|| OriginSet::new(self.restrictions().origins))
    }
}

/// Comparisons with an earlier policy.
impl Policy<'_> {
    /// Whether this policy admits an address that `before` refuses, or a request without an
    /// address.
    pub(crate) fn admits_networks_beyond(self, before: Policy<'_>) -> bool {
        match (before.networks(), self.networks()) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(networks)) => !before.covers(networks),
        }
    }

    /// Whether this policy admits an origin that `before` refuses, or a request without an origin.
    pub(crate) fn admits_origins_beyond(self, before: Policy<'_>) -> bool {
        match (before.origins(), self.origins()) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(origins)) => !before.covers(origins),
        }
    }

    /// Whether this policy has a scope that `before` lacks.
    pub(crate) fn has_scopes_beyond(self, before: Policy<'_>) -> bool {
        !before.scopes().covers(self.scopes())
    }
}

impl PartialEq for Policy<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.environment() == other.environment()
            && self.plan() == other.plan()
            && self.scopes() == other.scopes()
            && self.networks() == other.networks()
            && self.origins() == other.origins()
            && self.limits().eq(other.limits())
    }
}
