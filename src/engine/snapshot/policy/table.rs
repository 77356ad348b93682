//! The policies of a table.
//!
//! A [`PolicyRecord`] locates the parts of a policy: its [base](PolicyBase), its limits and its
//! [restrictions](super::restrictions). Each list that is large if every key has a policy of its own
//! lies in one block of memory, because the C library's allocator keeps the gaps between small
//! blocks that outlive others. A part that equals one of an earlier policy is stored once; the
//! [`PolicyIndexes`] that find it are only needed while policies are added.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use keyward_memory::{HugePages, HugeVec, growth, push_bytes, trim};
use keyward_protocol::AnswerTexts;

use super::Policy;
use super::restrictions::{self, Restrictions};
use crate::record::{Limit, LimitRef, MAX_LIMITS, merge_limits};
use crate::snapshot::index::{Index, IndexHash};
use crate::snapshot::key_table::IdHasher;
use crate::snapshot::row_policy::RowPolicy;

/// The policies of a table, by number.
pub(in crate::snapshot) struct PolicyTable {
    records: HugeVec<PolicyRecord>,
    bases: Vec<PolicyBase>,
    limits: HugeVec<Limit>,
    /// Begins with those of a policy that has none.
    restrictions: HugeVec<u8>,
}

/// Where the parts of a policy are.
#[derive(Clone, Copy)]
pub(in crate::snapshot) struct PolicyRecord {
    /// The first limit in `PolicyTable::limits`.
    limits: u64,
    /// The start in `PolicyTable::restrictions`.
    restrictions: u64,
    /// Index into `PolicyTable::bases`.
    base: u32,
    pub(super) limit_count: u16,
    /// Whether there is a list of networks. It may be empty, and then admits no address.
    pub(super) has_networks: bool,
    /// Whether there is a list of origins. It may be empty, and then admits no origin.
    pub(super) has_origins: bool,
}

const _: () = assert!(size_of::<PolicyRecord>() == 24);

#[cfg(test)]
impl PolicyRecord {
    pub(super) fn limits_start(&self) -> u64 {
        self.limits
    }

    pub(super) fn restrictions_start(&self) -> u64 {
        self.restrictions
    }
}

/// The texts of a policy. Nearly all policies of a table share a few of them.
pub(super) struct PolicyBase {
    pub(super) environment: Box<str>,
    pub(super) plan: Box<str>,
    limit_names: Box<[Arc<str>]>,
    /// The texts at the end of an answer: one that names no limit, then one for each limit.
    pub(super) texts: Box<[AnswerTexts]>,
}

/// Finds the parts of earlier policies.
pub(in crate::snapshot) struct PolicyIndexes {
    hasher: IdHasher,
    /// Bases by number.
    bases: Index,
    /// A policy with these limits, by number.
    limits: Index,
    /// A policy with these restrictions, by number.
    restrictions: Index,
    /// The restrictions that are looked up.
    encoded: Vec<u8>,
}

impl Default for PolicyIndexes {
    fn default() -> Self {
        let [bases, limits, restrictions] = std::array::from_fn(|_| Index::with_capacity(0));
        Self { hasher: IdHasher::default(), bases, limits, restrictions, encoded: Vec::new() }
    }
}

impl PolicyTable {
    pub(in crate::snapshot) fn new() -> Self {
        let mut restrictions = HugeVec::new_in(HugePages);
        push_bytes(&mut restrictions, &restrictions::NONE);
        Self {
            records: HugeVec::new_in(HugePages),
            bases: Vec::new(),
            limits: HugeVec::new_in(HugePages),
            restrictions,
        }
    }

    pub(in crate::snapshot) fn len(&self) -> usize {
        self.records.len()
    }

    /// The record of the policy with this number.
    #[inline]
    pub(in crate::snapshot) fn record(&self, number: u32) -> Option<&PolicyRecord> {
        self.records.get(number as usize)
    }

    /// The policy with this record, which is one of this table.
    #[inline]
    pub(in crate::snapshot) fn policy<'s>(&'s self, record: &'s PolicyRecord) -> Policy<'s> {
        Policy { table: self, record }
    }

    /// The policy with this number.
    pub(in crate::snapshot) fn get(&self, number: u32) -> Option<Policy<'_>> {
        self.record(number).map(|record| self.policy(record))
    }

    /// All policies, by number.
    pub(in crate::snapshot) fn iter(&self) -> impl Iterator<Item = Policy<'_>> {
        self.records.iter().map(|record| self.policy(record))
    }

    /// The limits of the policy with this number.
    pub(in crate::snapshot) fn limits_of(&self, number: u32) -> &[Limit] {
        self.limits(&self.records[number as usize])
    }

    #[inline]
    pub(super) fn base(&self, record: &PolicyRecord) -> &PolicyBase {
        &self.bases[record.base as usize]
    }

    #[inline]
    pub(super) fn limits(&self, record: &PolicyRecord) -> &[Limit] {
        let start = record.limits as usize;
        self.limits.get(start..start + usize::from(record.limit_count)).unwrap_or_default()
    }

    pub(super) fn restrictions(&self, record: &PolicyRecord) -> Restrictions<'_> {
        let from = self.restrictions.get(record.restrictions as usize..);
        from.and_then(Restrictions::read).unwrap_or_default()
    }

    /// Releases unused capacity.
    pub(in crate::snapshot) fn trim(&mut self) {
        trim(&mut self.records);
        self.bases.shrink_to_fit();
        trim(&mut self.limits);
        trim(&mut self.restrictions);
    }
}

/// Adding policies.
impl PolicyTable {
    /// Adds the policy of rows on the plan `plan`, which has the limits `plan_limits`.
    pub(in crate::snapshot) fn add(
        &mut self,
        row_policy: RowPolicy<'_>,
        plan: &str,
        plan_limits: &[Limit],
        indexes: &mut PolicyIndexes,
    ) {
        let limits = merge_limits(plan_limits, row_policy.limits());
        let base = self.add_base(row_policy.environment, plan, &limits, indexes);
        let record = PolicyRecord {
            limits: self.add_limits(&limits, base, indexes),
            restrictions: self.add_restrictions(row_policy, indexes),
            base,
            // Rows and plans have at most `MAX_LIMITS` each.
            limit_count: u16::try_from(limits.len()).unwrap_or(u16::MAX),
            has_networks: row_policy.networks().is_some(),
            has_origins: row_policy.origins().is_some(),
        };
        self.records.push(record);
    }

    /// The number of the base with these texts.
    fn add_base(
        &mut self,
        environment: &str,
        plan: &str,
        limits: &[LimitRef<'_>],
        PolicyIndexes { hasher, bases: index, .. }: &mut PolicyIndexes,
    ) -> u32 {
        let names = || limits.iter().map(|limit| limit.name);
        let number = self.bases.len() as u32;
        let hash = hash_base(hasher, environment, plan, names());
        let same = |number: u32| self.bases[number as usize].has_texts(environment, plan, names());
        let rehash = |number: u32| {
            let base = &self.bases[number as usize];
            hash_base(hasher, &base.environment, &base.plan, base.limit_names.iter().map(|name| &**name))
        };
        if let Some(number) = index.find_or_insert(hash, number, same, rehash) {
            return number;
        }
        let all_names = std::iter::once("").chain(names());
        self.bases.push(PolicyBase {
            environment: environment.into(),
            plan: plan.into(),
            limit_names: names().map(Arc::from).collect(),
            texts: all_names.map(|name| AnswerTexts::new(environment, plan, name)).collect(),
        });
        number
    }

    /// The position of these limits, which have the names of the base.
    fn add_limits(
        &mut self,
        limits: &[LimitRef<'_>],
        base: u32,
        PolicyIndexes { hasher, limits: index, .. }: &mut PolicyIndexes,
    ) -> u64 {
        if limits.is_empty() {
            return 0;
        }
        let limits_of = |number: u32| self.limits_of(number).iter().map(Limit::as_ref);
        let next = self.records.len() as u32;
        let hash = hash_all(hasher, limits.iter().copied());
        let same = |number: u32| limits_of(number).eq(limits.iter().copied());
        let rehash = |number: u32| hash_all(hasher, limits_of(number));
        if let Some(number) = index.find_or_insert(hash, next, same, rehash) {
            return self.records[number as usize].limits;
        }
        let start = self.limits.len() as u64;
        let names = self.bases[base as usize].limit_names.iter().map(Arc::clone);
        self.limits.extend(limits.iter().zip(names).map(|(limit, name)| limit.with_name(name)));
        start
    }

    /// The position of the restrictions of a row policy.
    fn add_restrictions(&mut self, row_policy: RowPolicy<'_>, indexes: &mut PolicyIndexes) -> u64 {
        let PolicyIndexes { hasher, restrictions: index, encoded, .. } = indexes;
        encoded.clear();
        restrictions::encode(row_policy, encoded);
        if **encoded == restrictions::NONE {
            return 0;
        }
        let restrictions_of = |number: u32| self.restrictions(&self.records[number as usize]).encoded;
        let next = self.records.len() as u32;
        let hash = hash_bytes(hasher, encoded);
        let same = |number: u32| *restrictions_of(number) == **encoded;
        let rehash = |number: u32| hash_bytes(hasher, restrictions_of(number));
        if let Some(number) = index.find_or_insert(hash, next, same, rehash) {
            return self.records[number as usize].restrictions;
        }
        let start = self.restrictions.len() as u64;
        push_bytes(&mut self.restrictions, encoded);
        start
    }

    #[cfg(test)]
    pub(super) fn base_count(&self) -> usize {
        self.bases.len()
    }

    /// Bytes of each list.
    #[cfg(test)]
    pub(in crate::snapshot) fn allocated(&self) -> [usize; 4] {
        [
            self.records.capacity() * size_of::<PolicyRecord>(),
            self.bases.capacity() * size_of::<PolicyBase>(),
            self.limits.capacity() * size_of::<Limit>(),
            self.restrictions.capacity(),
        ]
    }

    /// Bytes that each list and index allocates before it holds `more` policies, whose row policies
    /// have `bytes` bytes in total; 0 for those that have room for them.
    pub(in crate::snapshot) fn growth(
        &self,
        more: usize,
        bytes: usize,
        indexes: &PolicyIndexes,
    ) -> impl Iterator<Item = usize> {
        /// A row policy can take its own limits and those of its plan.
        const LIMITS: usize = 2 * MAX_LIMITS;
        let Self { records, bases, limits, restrictions } = self;
        let lists = [
            growth::<PolicyRecord>(records.len(), records.capacity(), more),
            growth::<PolicyBase>(bases.len(), bases.capacity(), more),
            growth::<Limit>(limits.len(), limits.capacity(), more.saturating_mul(LIMITS)),
            growth::<u8>(restrictions.len(), restrictions.capacity(), restrictions::bytes_for(more, bytes)),
        ];
        lists.into_iter().chain(indexes.all().map(|index| index.growth(more)))
    }
}

impl PolicyIndexes {
    pub(in crate::snapshot) fn all(&self) -> [&Index; 3] {
        [&self.bases, &self.limits, &self.restrictions]
    }
}

impl PolicyBase {
    fn has_texts<'n>(&self, environment: &str, plan: &str, names: impl Iterator<Item = &'n str>) -> bool {
        *self.environment == *environment
            && *self.plan == *plan
            && self.limit_names.iter().map(|name| &**name).eq(names)
    }
}

fn hash_base<'n>(
    hasher: &IdHasher,
    environment: &'n str,
    plan: &'n str,
    names: impl Iterator<Item = &'n str>,
) -> IndexHash {
    hash_all(hasher, [environment, plan].into_iter().chain(names))
}

fn hash_all(hasher: &IdHasher, values: impl Iterator<Item = impl Hash>) -> IndexHash {
    let mut state = hasher.build_hasher();
    values.for_each(|value| value.hash(&mut state));
    IndexHash::of_hash(state.finish())
}

fn hash_bytes(hasher: &IdHasher, bytes: &[u8]) -> IndexHash {
    IndexHash::of_hash(hasher.hash_one(bytes))
}
