//! What many keys have in common, stored once: most sources repeat a few combinations in millions
//! of rows.

use std::net::Ipv6Addr;
use std::sync::Arc;

use ipnet::IpNet;
use keyward_protocol::AnswerTexts;

use crate::record::{Limit, Origin};
use crate::snapshot::{IpSet, ScopeSet};

/// The environment, plan, scopes, networks, origins and limits that rows share, ready for look-ups.
#[derive(PartialEq)]
pub struct Policy {
    pub(super) environment: Box<str>,
    pub(super) plan: Box<str>,
    pub(super) scopes: ScopeSet,
    /// `None` allows any address; an empty set allows none.
    pub(super) ips: Option<IpSet>,
    /// `None` allows any origin; an empty list allows none.
    pub(super) origins: Option<Arc<[Origin]>>,
    pub(super) limits: Arc<[Limit]>,
    /// The texts at the end of an answer: one that names no limit, then one for each limit.
    texts: Box<[AnswerTexts]>,
}

/// A policy as the rows state it, before their plan is applied. Equal row policies share one
/// [`Policy`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RowPolicy {
    pub(super) environment: Arc<str>,
    pub(super) plan: Arc<str>,
    pub(super) scopes: Arc<[Box<str>]>,
    pub(super) ips: Option<Arc<[IpNet]>>,
    pub(super) origins: Option<Arc<[Origin]>>,
    pub(super) limits: Arc<[Limit]>,
}

impl Policy {
    /// The policy of rows on the plan `plan`; `limits` are the plan's limits and the rows' own.
    pub(super) fn new(row_policy: &RowPolicy, plan: &str, limits: Arc<[Limit]>) -> Self {
        let names = std::iter::once("").chain(limits.iter().map(|limit| &*limit.name));
        Self {
            texts: names.map(|name| AnswerTexts::new(&row_policy.environment, plan, name)).collect(),
            environment: (*row_policy.environment).into(),
            plan: plan.into(),
            scopes: ScopeSet::new(&row_policy.scopes),
            ips: row_policy.ips.as_deref().map(IpSet::new),
            origins: row_policy.origins.clone(),
            limits,
        }
    }

    /// The environment in which the key may be used; empty if the key belongs to no environment.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// The key's plan; empty if there is none.
    pub fn plan(&self) -> &str {
        &self.plan
    }

    /// The limits that a request is charged to: the plan's, then the rows' own.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// The policy's texts at the end of an answer that names the limit at `position`, or no limit.
    #[inline]
    pub fn texts(&self, position: Option<usize>) -> &AnswerTexts {
        // The position is that of a limit, and there is always a first text.
        self.texts.get(position.map_or(0, |position| position + 1)).unwrap_or(&self.texts[0])
    }

    /// Whether no property of a request other than its key, environment and scopes can be refused.
    /// This is the condition of the fast path of `first_denial`: every new restriction that a row
    /// can state must be part of it.
    #[inline]
    pub(crate) fn accepts_any_request_context(&self) -> bool {
        self.ips.is_none() && self.origins.is_none()
    }

    /// Whether the policy has a list of networks.
    pub(crate) fn is_limited_to_networks(&self) -> bool {
        self.ips.is_some()
    }

    /// Whether the policy has a list of web origins.
    pub(crate) fn is_limited_to_origins(&self) -> bool {
        self.origins.is_some()
    }

    /// Whether the policy has any scope.
    pub fn has_scopes(&self) -> bool {
        !self.scopes.is_empty()
    }

    /// Whether `scope` is one of the key's scopes, or covered by one that ends in `*`.
    pub(crate) fn has_scope(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
    }

    /// Whether a request from `ip` is allowed. A policy without a list of networks allows every
    /// request. A policy with a list, which may be empty, refuses a request that states no address.
    pub(crate) fn allows_ip(&self, ip: Option<Ipv6Addr>) -> bool {
        self.ips.as_ref().is_none_or(|ips| ip.is_some_and(|ip| ips.contains(ip)))
    }

    /// Whether a request from `origin` is allowed, by the rules of [`allows_ip`](Self::allows_ip).
    pub(crate) fn allows_origin(&self, origin: Option<&str>) -> bool {
        self.origins
            .as_ref()
            .is_none_or(|origins| origin.is_some_and(|origin| origins.iter().any(|own| own.matches(origin))))
    }
}

/// Comparisons with an earlier policy.
impl Policy {
    /// Whether this policy admits an address that `before` refuses, or a request without an
    /// address.
    pub(crate) fn admits_networks_beyond(&self, before: &Self) -> bool {
        match (&before.ips, &self.ips) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(ips)) => !before.covers(ips),
        }
    }

    /// Whether this policy admits an origin that `before` refuses, or a request without an origin.
    pub(crate) fn admits_origins_beyond(&self, before: &Self) -> bool {
        match (&before.origins, &self.origins) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(origins)) => {
                !origins.iter().all(|origin| before.iter().any(|own| own.covers(origin)))
            }
        }
    }

    /// Whether this policy has a scope that `before` lacks.
    pub(crate) fn has_scopes_beyond(&self, before: &Self) -> bool {
        !before.scopes.covers(&self.scopes)
    }
}
