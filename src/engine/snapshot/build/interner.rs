//! Numbers row policies in the order in which they first appear.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use ipnet::IpNet;
use keyward_memory::growth;

use crate::record::{KeyRecord, Limit, Origin};
use crate::snapshot::key_table::IdHasher;
use crate::snapshot::policy::RowPolicy;

/// Assigns equal row policies the same number.
#[derive(Default)]
pub(in crate::snapshot) struct Interner {
    hasher: IdHasher,
    /// (hash, number)
    table: HashTable<(u64, u32)>,
    policies: Vec<RowPolicy>,
    /// The number of the previous row: in most sources the next row has the same policy.
    last: u32,
}

impl Interner {
    /// The number of a record's policy, and whether the policy is new.
    pub(super) fn number(&mut self, record: &KeyRecord<'_>) -> (u32, bool) {
        if self.policies.get(self.last as usize).is_some_and(|policy| policy.is_of(record)) {
            return (self.last, false);
        }
        let KeyRecord { scopes, allowed_ips, allowed_origins, limits, .. } = record;
        let lists = (&**scopes, allowed_ips.as_deref(), allowed_origins.as_deref(), &**limits);
        let hash = hash(&self.hasher, record.environment, record.plan, lists);
        let found =
            self.table.find(hash, |(_, number)| self.policies[*number as usize].is_of(record)).copied();
        match found {
            Some((_, number)) => {
                self.last = number;
                (number, false)
            }
            None => (self.push(hash, RowPolicy::of(record)), true),
        }
    }

    /// The number of a row policy, and whether it is new.
    pub(super) fn intern(&mut self, policy: RowPolicy) -> (u32, bool) {
        let hash = policy.hash(&self.hasher);
        let found = self.table.find(hash, |(_, number)| self.policies[*number as usize] == policy).copied();
        found.map_or_else(|| (self.push(hash, policy), true), |(_, number)| (number, false))
    }

    fn push(&mut self, hash: u64, policy: RowPolicy) -> u32 {
        let number = self.policies.len() as u32;
        self.policies.push(policy);
        self.table.insert_unique(hash, (hash, number), |(hash, _)| *hash);
        self.last = number;
        number
    }

    /// Removes the policy with the highest number.
    pub(super) fn remove_last(&mut self) {
        let Some(policy) = self.policies.pop() else { return };
        let number = self.policies.len() as u32;
        let entry = self.table.find_entry(policy.hash(&self.hasher), |(_, other)| *other == number);
        entry.ok().map(|entry| entry.remove());
    }

    /// All policies, by number.
    pub(in crate::snapshot) fn policies(&self) -> &[RowPolicy] {
        &self.policies
    }

    /// All policies, by number.
    pub(super) fn into_policies(self) -> Vec<RowPolicy> {
        self.policies
    }

    /// Moves all policies out, by number, and starts over.
    pub(super) fn take(&mut self) -> Vec<RowPolicy> {
        self.table.clear();
        std::mem::take(&mut self.policies)
    }

    /// Bytes that the interner allocates before it holds `more` policies; 0 if there is room for
    /// them.
    pub(in crate::snapshot) fn growth(&self, more: usize) -> usize {
        /// An entry of the table and its control byte.
        const ENTRY: usize = size_of::<(u64, u32)>() + 1;
        // The size of the table is a power of two, and it fills up to seven eighths.
        let table = if self.table.len() + more > self.table.capacity() {
            (self.table.len() + more).saturating_mul(3 * ENTRY)
        } else {
            0
        };
        growth::<RowPolicy>(self.policies.len(), self.policies.capacity(), more) + table
    }
}

impl RowPolicy {
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
            && same_list(&self.scopes, &record.scopes)
            && same_optional_list(self.ips.as_ref(), record.allowed_ips.as_ref())
            && same_optional_list(self.origins.as_ref(), record.allowed_origins.as_ref())
            && same_list(&self.limits, &record.limits)
    }

    fn hash(&self, hasher: &IdHasher) -> u64 {
        let lists = (&*self.scopes, self.ips.as_deref(), self.origins.as_deref(), &*self.limits);
        hash(hasher, &self.environment, &self.plan, lists)
    }
}

/// The lists of a row policy.
type Lists<'a> = (&'a [Box<str>], Option<&'a [IpNet]>, Option<&'a [Origin]>, &'a [Limit]);

fn hash(hasher: &IdHasher, environment: &str, plan: &str, lists: Lists<'_>) -> u64 {
    hasher.hash_one((environment, plan, lists))
}

/// Skips the comparison of two empty texts, the most common case. An empty text has a dangling
/// address, and comparing zero bytes there costs some C libraries a hundred times as much as this
/// check.
fn same_text(a: &str, b: &str) -> bool {
    a.len() == b.len() && (a.is_empty() || a == b)
}

fn same_list<T: PartialEq>(a: &Arc<[T]>, b: &Arc<[T]>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// A missing list and an empty list are different policies.
fn same_optional_list<T: PartialEq>(a: Option<&Arc<[T]>>, b: Option<&Arc<[T]>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same_list(a, b),
        (None, None) => true,
        _ => false,
    }
}
