//! Combinations that many rows have in common, numbered as they are first seen.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use ipnet::IpNet;

use crate::record::{KeyRecord, Limit, Origin};
use crate::snapshot::IdHasher;
use keyward_memory::growth;

/// What makes two policies the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PolicyKey {
    pub(super) environment: Arc<str>,
    pub(super) plan: Arc<str>,
    pub(super) scopes: Arc<[Box<str>]>,
    pub(super) ips: Option<Arc<[IpNet]>>,
    pub(super) origins: Option<Arc<[Origin]>>,
    pub(super) limits: Arc<[Limit]>,
}

impl PolicyKey {
    fn of(record: &KeyRecord<'_>) -> Self {
        Self {
            environment: record.environment.into(),
            plan: record.plan.into(),
            scopes: Arc::clone(&record.scopes),
            ips: record.allowed_ips.clone(),
            origins: record.allowed_origins.clone(),
            limits: Arc::clone(&record.limits),
        }
    }

    fn is_of(&self, record: &KeyRecord<'_>) -> bool {
        same_text(&self.environment, record.environment)
            && same_text(&self.plan, record.plan)
            && same(&self.scopes, &record.scopes)
            && same_option(self.ips.as_ref(), record.allowed_ips.as_ref())
            && same_option(self.origins.as_ref(), record.allowed_origins.as_ref())
            && same(&self.limits, &record.limits)
    }

    fn hash(&self, hasher: &IdHasher) -> u64 {
        let lists = (&*self.scopes, self.ips.as_deref(), self.origins.as_deref(), &*self.limits);
        hash(hasher, &self.environment, &self.plan, lists)
    }
}

/// Lists of a policy.
type Lists<'a> = (&'a [Box<str>], Option<&'a [IpNet]>, Option<&'a [Origin]>, &'a [Limit]);

/// Most often both are empty. An empty text has no address, and a comparison of nothing that begins there costs some C libraries a
/// hundred times what it costs not to make it.
fn same_text(a: &str, b: &str) -> bool {
    a.len() == b.len() && (a.is_empty() || a == b)
}

fn same<T: PartialEq>(a: &Arc<[T]>, b: &Arc<[T]>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// No list and an empty list are different policies.
fn same_option<T: PartialEq>(a: Option<&Arc<[T]>>, b: Option<&Arc<[T]>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn hash(hasher: &IdHasher, environment: &str, plan: &str, lists: Lists<'_>) -> u64 {
    hasher.hash_one((environment, plan, lists))
}

/// Numbers policies.
#[derive(Default)]
pub(super) struct Interner {
    hasher: IdHasher,
    table: HashTable<(u64, u32)>,
    keys: Vec<PolicyKey>,
    /// The policy of the row before: in most exports the next row has it too.
    last: u32,
}

impl Interner {
    /// The number of a record's policy, and whether it is the first that has it.
    pub(super) fn number(&mut self, record: &KeyRecord<'_>) -> (u32, bool) {
        if self.keys.get(self.last as usize).is_some_and(|key| key.is_of(record)) {
            return (self.last, false);
        }
        let KeyRecord { scopes, allowed_ips, allowed_origins, limits, .. } = record;
        let lists = (&**scopes, allowed_ips.as_deref(), allowed_origins.as_deref(), &**limits);
        let hash = hash(&self.hasher, record.environment, record.plan, lists);
        let found = self.table.find(hash, |(_, number)| self.keys[*number as usize].is_of(record)).copied();
        match found {
            Some((_, number)) => {
                self.last = number;
                (number, false)
            }
            None => (self.push(hash, PolicyKey::of(record)), true),
        }
    }

    /// The same of a policy.
    pub(super) fn intern(&mut self, key: PolicyKey) -> (u32, bool) {
        let hash = key.hash(&self.hasher);
        let found = self.table.find(hash, |(_, number)| self.keys[*number as usize] == key).copied();
        found.map_or_else(|| (self.push(hash, key), true), |(_, number)| (number, false))
    }

    fn push(&mut self, hash: u64, key: PolicyKey) -> u32 {
        let number = self.keys.len() as u32;
        self.keys.push(key);
        self.table.insert_unique(hash, (hash, number), |(hash, _)| *hash);
        self.last = number;
        number
    }

    /// Bytes that it asks for before it has `more`; 0: it has room for them.
    pub(super) fn growth(&self, more: usize) -> usize {
        /// An entry of the table, and a byte that says what it is.
        const ENTRY: usize = size_of::<(u64, u32)>() + 1;
        // The table is made of a power of two, of which it fills seven eighths.
        let table = match self.table.len() + more > self.table.capacity() {
            true => (self.table.len() + more).saturating_mul(3 * ENTRY),
            false => 0,
        };
        growth::<PolicyKey>(self.keys.len(), self.keys.capacity(), more) + table
    }

    /// Takes the newest back.
    pub(super) fn forget_last(&mut self) {
        let Some(key) = self.keys.pop() else { return };
        let number = self.keys.len() as u32;
        let place = self.table.find_entry(key.hash(&self.hasher), |(_, other)| *other == number);
        place.ok().map(|place| place.remove());
    }

    /// All of them, by number.
    pub(super) fn keys(&self) -> &[PolicyKey] {
        &self.keys
    }

    /// All of them, by number, and nothing else of the interner.
    pub(super) fn into_keys(self) -> Vec<PolicyKey> {
        self.keys
    }

    /// All of them, by number; none are left.
    pub(super) fn take(&mut self) -> Vec<PolicyKey> {
        self.table.clear();
        std::mem::take(&mut self.keys)
    }
}
