//! Numbers row policies in the order in which they first appear.

use std::sync::Arc;

use ipnet::IpNet;

use crate::record::{KeyRecord, Limit, Origin};
use crate::snapshot::index::{Index, IndexHash};
use crate::snapshot::key_table::IdHasher;
use crate::snapshot::row_policy::{RowPolicies, RowPolicy, encode};

/// Assigns equal row policies the same number.
pub(in crate::snapshot) struct Interner {
    hasher: IdHasher,
    index: Index,
    policies: RowPolicies,
    /// The policy of the previous row: in most sources the next row has the same.
    last: LastPolicy,
    /// The policy that was looked up last.
    encoded: Vec<u8>,
}

/// A policy that has no number yet. [`Interner::add`] gives it one.
pub(super) struct NewPolicy {
    hash: IndexHash,
    /// Whether it is the policy of the previous row.
    is_last: bool,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            hasher: IdHasher::default(),
            index: Index::with_capacity(0),
            policies: RowPolicies::default(),
            last: LastPolicy::default(),
            encoded: Vec::new(),
        }
    }
}

impl Interner {
    /// The number of a record's policy.
    pub(super) fn find(&mut self, record: &KeyRecord<'_>) -> Result<u32, NewPolicy> {
        if let Some(number) = self.last.number_of(record) {
            return Ok(number);
        }
        self.last.set(record);
        self.encoded.clear();
        encode(record, &mut self.encoded);
        let found = self.find_encoded();
        self.last.number = found.ok();
        found.map_err(|hash| NewPolicy { hash, is_last: true })
    }

    /// The number of a policy.
    pub(super) fn find_policy(&mut self, policy: &[u8]) -> Result<u32, NewPolicy> {
        self.encoded.clear();
        self.encoded.extend_from_slice(policy);
        self.find_encoded().map_err(|hash| NewPolicy { hash, is_last: false })
    }

    /// The number of the encoded policy, or its hash if it has none.
    fn find_encoded(&self) -> Result<u32, IndexHash> {
        let hash = IndexHash::of(&self.hasher, &*self.encoded);
        let same = |number| self.policies.get(number) == self.encoded;
        self.index.find(hash, same).ok_or(hash)
    }

    /// The policy that was looked up last.
    pub(super) fn looked_up(&self) -> RowPolicy<'_> {
        RowPolicy::new(&self.encoded)
    }

    /// Adds the policy that was looked up last, and returns its number.
    pub(super) fn add(&mut self, new: NewPolicy) -> u32 {
        let Self { hasher, index, policies, last, encoded } = self;
        let number = policies.push(encoded);
        index.insert(new.hash, number, |number| IndexHash::of(hasher, policies.get(number)));
        if new.is_last {
            last.number = Some(number);
        }
        number
    }

    /// All policies, by number.
    pub(in crate::snapshot) fn policies(&self) -> &RowPolicies {
        &self.policies
    }

    /// Whether a record has the policy of the previous row.
    pub(in crate::snapshot) fn is_last(&self, record: &KeyRecord<'_>) -> bool {
        self.last.number_of(record).is_some()
    }

    /// Makes room for `policies` policies of `bytes` bytes in total, if there is as much.
    pub(in crate::snapshot) fn reserve_if_possible(&mut self, policies: usize, bytes: usize) {
        self.policies.reserve_if_possible(policies, bytes);
    }

    /// All policies, by number.
    pub(super) fn into_policies(self) -> RowPolicies {
        self.policies
    }

    /// Moves all policies out, by number, and starts over with room for as many.
    pub(super) fn take(&mut self) -> RowPolicies {
        self.index = Index::with_capacity(self.policies.len());
        self.last.number = None;
        let next = RowPolicies::with_capacity(self.policies.len(), self.policies.bytes());
        std::mem::replace(&mut self.policies, next)
    }

    /// The index, for estimates of its size.
    pub(in crate::snapshot) fn index(&self) -> &Index {
        &self.index
    }
}

/// The policy of a row. Its lists are shared with the record, so that they can be compared by
/// address.
#[derive(Default)]
struct LastPolicy {
    /// `None`: the policy has no number.
    number: Option<u32>,
    environment: String,
    plan: String,
    scopes: Arc<[Box<str>]>,
    ips: Option<Arc<[IpNet]>>,
    origins: Option<Arc<[Origin]>>,
    limits: Arc<[Limit]>,
}

impl LastPolicy {
    fn set(&mut self, record: &KeyRecord<'_>) {
        self.environment.clear();
        self.environment.push_str(record.environment);
        self.plan.clear();
        self.plan.push_str(record.plan);
        self.scopes = Arc::clone(&record.scopes);
        self.ips.clone_from(&record.allowed_ips);
        self.origins.clone_from(&record.allowed_origins);
        self.limits = Arc::clone(&record.limits);
    }

    /// The number of the policy if it is that of the record.
    fn number_of(&self, record: &KeyRecord<'_>) -> Option<u32> {
        let is_same = same_text(&self.environment, record.environment)
            && same_text(&self.plan, record.plan)
            && same_list(&self.scopes, &record.scopes)
            && same_optional_list(self.ips.as_ref(), record.allowed_ips.as_ref())
            && same_optional_list(self.origins.as_ref(), record.allowed_origins.as_ref())
            && same_list(&self.limits, &record.limits);
        self.number.filter(|_| is_same)
    }
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
