//! What many keys have in common, held once: most exports repeat a few combinations millions of times.

use std::net::Ipv6Addr;
use std::sync::Arc;

use keyward_protocol::AnswerTexts;

use crate::record::{Limit, Origin};
use crate::snapshot::example::Difference;
use crate::snapshot::intern::PolicyKey;
use crate::snapshot::{IpSet, ScopeSet};

/// Everything of a key but its identity, its status and its times.
#[derive(PartialEq)]
pub struct Policy {
    environment: Box<str>,
    plan: Box<str>,
    scopes: ScopeSet,
    /// `None`: any address is allowed; an empty set allows no address.
    ips: Option<IpSet>,
    /// `None`: any origin is allowed; an empty list allows no origin.
    origins: Option<Arc<[Origin]>>,
    limits: Arc<[Limit]>,
    /// How answers end: one that names no limit, and then one for each limit.
    texts: Box<[AnswerTexts]>,
}

impl Policy {
    /// `plan` and `limits` are what the rows' own come to with their plan's.
    pub(super) fn new(rows: &PolicyKey, plan: &str, limits: Arc<[Limit]>) -> Self {
        let names = std::iter::once("").chain(limits.iter().map(|limit| &*limit.name));
        Self {
            texts: names.map(|name| AnswerTexts::new(&rows.environment, plan, name)).collect(),
            environment: (*rows.environment).into(),
            plan: plan.into(),
            scopes: ScopeSet::new(&rows.scopes),
            ips: rows.ips.as_deref().map(IpSet::new),
            origins: rows.origins.clone(),
            limits,
        }
    }

    /// What `after` says differently, by the fields' names in an export.
    pub(super) fn differences(&self, after: &Self, differences: &mut Vec<Difference>) {
        let texts =
            [("environment", &self.environment, &after.environment), ("plan", &self.plan, &after.plan)];
        let texts = texts.into_iter().filter(|(_, before, after)| before != after);
        differences.extend(texts.map(|(field, before, after)| Difference::between(field, before, after)));
        let lists = [
            ("scopes", self.scopes != after.scopes),
            ("allowed_ips", self.ips != after.ips),
            ("allowed_origins", self.origins != after.origins),
            ("limits", self.limits != after.limits),
        ];
        differences
            .extend(lists.into_iter().filter(|(_, differ)| *differ).map(|(field, _)| Difference::of(field)));
    }

    /// Where the key may be used; empty where it belongs to no environment.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// The plan that the key is on; empty where there is none.
    pub fn plan(&self) -> &str {
        &self.plan
    }

    /// The limits that a request is charged to: the plan's, and the rows' own on top.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// The texts of an answer that are the policy's: those that end it, if it names the limit at `position`, or none.
    #[inline]
    pub fn texts(&self, position: Option<usize>) -> &AnswerTexts {
        // A position is one of the limits'; there is always a first.
        self.texts.get(position.map_or(0, |position| position + 1)).unwrap_or(&self.texts[0])
    }

    /// Whether it does not matter where a request comes from.
    #[inline]
    pub fn is_for_everyone(&self) -> bool {
        self.ips.is_none() && self.origins.is_none()
    }

    /// Whether requests are refused by the address that they come from.
    pub fn is_limited_to_networks(&self) -> bool {
        self.ips.is_some()
    }

    /// Whether requests are refused by their web origin.
    pub fn is_limited_to_origins(&self) -> bool {
        self.origins.is_some()
    }

    /// Whether there is any scope.
    pub fn has_scopes(&self) -> bool {
        !self.scopes.is_empty()
    }

    /// Whether `before` refuses an address, or a request without one, that is admitted here.
    pub fn admits_networks_beyond(&self, before: &Self) -> bool {
        match (&before.ips, &self.ips) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(ips)) => !before.covers(ips),
        }
    }

    /// Whether `before` refuses an origin, or a request without one, that is admitted here.
    pub fn admits_origins_beyond(&self, before: &Self) -> bool {
        match (&before.origins, &self.origins) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(origins)) => {
                !origins.iter().all(|origin| before.iter().any(|own| own.covers(origin)))
            }
        }
    }

    /// Whether `before` lacks a scope that is there.
    pub fn has_scopes_beyond(&self, before: &Self) -> bool {
        !before.scopes.covers(&self.scopes)
    }

    /// Whether `scope` is one of the key's, or covered by one that ends in `*`.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
    }

    /// Whether a request from `ip` is allowed. A key without a list of networks allows every request; a key with one, which
    /// may be empty, refuses a request that names no address.
    pub fn allows_ip(&self, ip: Option<Ipv6Addr>) -> bool {
        self.ips.as_ref().is_none_or(|ips| ip.is_some_and(|ip| ips.contains(ip)))
    }

    /// Whether a request from `origin` is allowed; as with [`allows_ip`](Self::allows_ip).
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        self.origins
            .as_ref()
            .is_none_or(|origins| origin.is_some_and(|origin| origins.iter().any(|own| own.matches(origin))))
    }
}
