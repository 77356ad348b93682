//! What many keys have in common, held once: most exports repeat a few combinations millions of times.

use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::record::{Limit, Origin};
use crate::snapshot::diff::Difference;
use crate::snapshot::intern::PolicyKey;
use crate::snapshot::{IpSet, ScopeSet};

/// Everything of a key but its identity, its status and its times.
#[derive(PartialEq)]
pub struct Policy {
    environment: Box<str>,
    plan: Box<str>,
    scopes: ScopeSet,
    ips: IpSet,
    origins: Arc<[Origin]>,
    limits: Arc<[Limit]>,
}

impl Policy {
    /// `plan` and `limits` are what the rows' own come to with their plan's.
    pub(super) fn new(rows: &PolicyKey, plan: &str, limits: Arc<[Limit]>) -> Self {
        Self {
            environment: (*rows.environment).into(),
            plan: plan.into(),
            scopes: ScopeSet::new(&rows.scopes),
            ips: IpSet::new(&rows.ips),
            origins: Arc::clone(&rows.origins),
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

    /// Whether `scope` is one of the key's, or covered by one that ends in `*`.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
    }

    /// Whether a request from `ip` is let through: always, where the key lists no networks; never, where it does and
    /// the request names no address.
    pub fn allows_ip(&self, ip: Option<Ipv6Addr>) -> bool {
        self.ips.is_empty() || ip.is_some_and(|ip| self.ips.contains(ip))
    }

    /// Whether a request from `origin` is let through; as with [`allows_ip`](Self::allows_ip).
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        self.origins.is_empty()
            || origin.is_some_and(|origin| self.origins.iter().any(|own| own.matches(origin)))
    }
}
