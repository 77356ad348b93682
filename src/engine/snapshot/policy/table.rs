//! The policies of a table.
//!
//! A [`PolicyRecord`] locates the parts of a policy: its texts, its limits and its
//! [restrictions](super::restrictions). The parts of all policies lie one after another in one list
//! of each kind, because small allocations of their own would take as much memory again. A part
//! that equals one of an earlier policy is stored once; the [`PolicyIndexes`] that find it are only
//! needed while policies are added.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};

use keyward_memory::{HugePages, HugeText, HugeVec, growth, push_bytes, trim};
use keyward_protocol::AnswerTexts;

use super::Policy;
use super::restrictions::{self, Restrictions};
use super::span::Span;
use crate::limiter::Rule;
use crate::record::{Limit, LimitRef, MAX_LIMITS, MAX_NAME, Per, Plans, merge_limits};
use crate::snapshot::index::{Index, IndexHash};
use crate::snapshot::key_table::IdHasher;
use crate::snapshot::row_policy::RowPolicy;

/// Most limits of a policy: those of its rows, and those of their plan.
const MAX_POLICY_LIMITS: usize = 2 * MAX_LIMITS;

// A span would cut off what is longer: some limits would not be charged.
const _: () = assert!(AnswerTexts::MAX_BYTES <= Span::MAX_LENGTH && MAX_POLICY_LIMITS <= Span::MAX_LENGTH);

/// The policies of a table, by number.
pub(in crate::snapshot) struct PolicyTable {
    records: HugeVec<PolicyRecord>,
    /// Encoded texts of answers.
    texts: HugeText,
    limits: HugeVec<PolicyLimit>,
    /// Begins with those of a policy that has none.
    restrictions: HugeVec<u8>,
}

/// Where the parts of a policy are.
#[derive(Clone, Copy)]
pub(in crate::snapshot) struct PolicyRecord {
    /// In `PolicyTable::texts`: the [`AnswerTexts`] of an answer that names no limit.
    pub(super) texts: Span,
    /// In `PolicyTable::limits`.
    pub(super) limits: Span,
    /// The start in `PolicyTable::restrictions`, and in the lower 8 bits [`HAS_NETWORKS`] and
    /// [`HAS_ORIGINS`].
    restrictions: u64,
}

const _: () = assert!(size_of::<PolicyRecord>() == 24);

/// Whether there is a list of networks. It may be empty, and then admits no address.
const HAS_NETWORKS: u64 = 1;
/// Whether there is a list of origins. It may be empty, and then admits no origin.
const HAS_ORIGINS: u64 = 2;

impl PolicyRecord {
    #[inline]
    pub(super) fn accepts_any_request_context(&self) -> bool {
        self.restrictions & (HAS_NETWORKS | HAS_ORIGINS) == 0
    }

    #[inline]
    pub(super) fn has_networks(&self) -> bool {
        self.restrictions & HAS_NETWORKS != 0
    }

    #[inline]
    pub(super) fn has_origins(&self) -> bool {
        self.restrictions & HAS_ORIGINS != 0
    }

    pub(super) fn restrictions_start(&self) -> usize {
        (self.restrictions >> 8) as usize
    }
}

/// A limit of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PolicyLimit {
    pub(crate) rule: Rule,
    /// In `PolicyTable::texts`: the [`AnswerTexts`] of an answer that names this limit.
    pub(crate) texts: Span,
    pub(crate) per: Per,
    pub(crate) shadow: bool,
    /// The name is at the end of `texts`.
    name_length: u8,
    /// The [limit](Rule::limit), as the fixed part of an answer states it.
    pub(crate) shown_limit: u32,
}

const _: () = assert!(size_of::<PolicyLimit>() == 40 && MAX_NAME <= u8::MAX as usize);

/// Finds the parts of earlier policies.
pub(in crate::snapshot) struct PolicyIndexes {
    hasher: IdHasher,
    /// A policy with these texts and names of limits, by number.
    texts: Index,
    /// A policy with these limits, by number.
    limits: Index,
    /// A policy with these restrictions, by number.
    restrictions: Index,
    /// The restrictions that are looked up.
    encoded: Vec<u8>,
}

impl Default for PolicyIndexes {
    fn default() -> Self {
        let [texts, limits, restrictions] = std::array::from_fn(|_| Index::with_capacity(0));
        Self { hasher: IdHasher::default(), texts, limits, restrictions, encoded: Vec::new() }
    }
}

impl PolicyTable {
    pub(in crate::snapshot) fn new() -> Self {
        let mut restrictions = HugeVec::new_in(HugePages);
        push_bytes(&mut restrictions, &restrictions::NONE);
        Self {
            records: HugeVec::new_in(HugePages),
            texts: HugeText::with_capacity(0),
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

    /// The policy with this number, which has to be that of an entry. Nothing can stand in for a
    /// policy that is missing: any other would widen some key.
    pub(in crate::snapshot) fn at(&self, number: u32) -> Policy<'_> {
        self.policy(&self.records[number as usize])
    }

    /// All policies, by number.
    pub(in crate::snapshot) fn iter(&self) -> impl Iterator<Item = Policy<'_>> {
        self.records.iter().map(|record| self.policy(record))
    }

    /// The names of all limits.
    pub(in crate::snapshot) fn limit_names(&self) -> HashSet<Box<str>> {
        let mut names = HashSet::new();
        let mut last = None;
        for limit in &self.limits {
            // Most limits have the texts of the one before, with another rule.
            if last.replace(limit.texts) != Some(limit.texts) {
                let name = self.limit(limit).name;
                if !names.contains(name) {
                    names.insert(name.into());
                }
            }
        }
        names
    }

    /// The rules of all limits.
    pub(in crate::snapshot) fn rules(&self) -> impl Iterator<Item = Rule> {
        self.limits.iter().map(|limit| limit.rule)
    }

    /// The limits of the policy with this number.
    pub(in crate::snapshot) fn limits_of(&self, number: u32) -> &[PolicyLimit] {
        self.limits(&self.records[number as usize])
    }

    #[inline]
    pub(super) fn limits(&self, record: &PolicyRecord) -> &[PolicyLimit] {
        self.limits.get(record.limits.range()).unwrap_or_default()
    }

    #[inline]
    pub(super) fn limit_at(&self, at: usize) -> Option<&PolicyLimit> {
        self.limits.get(at)
    }

    /// A limit with its name.
    pub(in crate::snapshot) fn limit(&self, limit: &PolicyLimit) -> LimitRef<'_> {
        let PolicyLimit { rule, texts, per, shadow, name_length, shown_limit: _ } = *limit;
        let end = texts.range().end;
        let name = self.texts.as_str().get(end.saturating_sub(name_length.into())..end);
        LimitRef { name: name.unwrap_or_default(), rule, per, shadow }
    }

    pub(super) fn text(&self, texts: Span) -> &str {
        self.texts.as_str().get(texts.range()).unwrap_or_default()
    }

    #[inline]
    pub(super) fn text_bytes(&self, texts: Span) -> &[u8] {
        self.texts.as_str().as_bytes().get(texts.range()).unwrap_or_default()
    }

    pub(super) fn restrictions(&self, record: &PolicyRecord) -> Restrictions<'_> {
        let from = self.restrictions.get(record.restrictions_start()..);
        from.and_then(Restrictions::read).unwrap_or_default()
    }

    /// Releases unused capacity.
    pub(in crate::snapshot) fn trim(&mut self) {
        trim(&mut self.records);
        self.texts.trim();
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
        let (texts, limits) = self.add_texts(row_policy.environment, plan, &limits, indexes);
        let has_networks = if row_policy.networks().is_some() { HAS_NETWORKS } else { 0 };
        let has_origins = if row_policy.origins().is_some() { HAS_ORIGINS } else { 0 };
        let record = PolicyRecord {
            texts,
            limits: self.add_limits(&limits, indexes),
            restrictions: (self.add_restrictions(row_policy, indexes) as u64) << 8
                | has_networks
                | has_origins,
        };
        self.records.push(record);
    }

    /// The position of the texts without a limit, and the limits with the positions of theirs.
    fn add_texts(
        &mut self,
        environment: &str,
        plan: &str,
        limits: &[LimitRef<'_>],
        PolicyIndexes { hasher, texts: index, .. }: &mut PolicyIndexes,
    ) -> (Span, Vec<PolicyLimit>) {
        let names = || limits.iter().map(|limit| limit.name);
        let hash = || hash_all(hasher, [environment, plan].into_iter().chain(names()));
        let of_policy = |number: u32| {
            let policy = self.policy(&self.records[number as usize]);
            let AnswerTexts { environment, plan, .. } = policy.texts();
            [environment, plan].into_iter().chain(policy.limits().map(|limit| limit.name))
        };
        let same = |number: u32| of_policy(number).eq([environment, plan].into_iter().chain(names()));
        let rehash = |number: u32| hash_all(hasher, of_policy(number));
        match self.find_or_insert(index, hash, same, rehash) {
            Some(number) => {
                let texts = self.limits_of(number).iter().map(|limit| limit.texts);
                let limits = limits.iter().zip(texts).map(|(limit, texts)| PolicyLimit::new(*limit, texts));
                (self.records[number as usize].texts, limits.collect())
            }
            None => {
                let mut push = |limit_name| self.push_texts(AnswerTexts { environment, plan, limit_name });
                let texts = push("");
                let limits = limits.iter().map(|limit| PolicyLimit::new(*limit, push(limit.name)));
                (texts, limits.collect())
            }
        }
    }

    /// A policy for which `same` holds. If there is none, the policy that is about to be added is
    /// inserted. The last policy is tried first: in most sources the next one has the same parts,
    /// except for one.
    fn find_or_insert(
        &self,
        index: &mut Index,
        hash: impl FnOnce() -> IndexHash,
        same: impl Fn(u32) -> bool,
        rehash: impl Fn(u32) -> IndexHash,
    ) -> Option<u32> {
        let next = self.records.len() as u32;
        let last = next.checked_sub(1).filter(|last| same(*last));
        last.or_else(|| index.find_or_insert(hash(), next, same, rehash))
    }

    fn push_texts(&mut self, texts: AnswerTexts<'_>) -> Span {
        let mut encoded = String::with_capacity(AnswerTexts::MAX_BYTES);
        texts.encode(&mut encoded);
        let start = self.texts.as_str().len();
        self.texts.push_str(&encoded);
        Span::new(start, encoded.len())
    }

    /// The position of these limits.
    fn add_limits(
        &mut self,
        limits: &[PolicyLimit],
        PolicyIndexes { hasher, limits: index, .. }: &mut PolicyIndexes,
    ) -> Span {
        if limits.is_empty() {
            return Span::default();
        }
        let hash = || hash_all(hasher, limits.iter());
        let same = |number: u32| self.limits_of(number) == limits;
        let rehash = |number: u32| hash_all(hasher, self.limits_of(number).iter());
        if let Some(number) = self.find_or_insert(index, hash, same, rehash) {
            return self.records[number as usize].limits;
        }
        let start = self.limits.len();
        self.limits.extend(limits.iter().copied());
        Span::new(start, limits.len())
    }

    /// The position of the restrictions of a row policy.
    fn add_restrictions(&mut self, row_policy: RowPolicy<'_>, indexes: &mut PolicyIndexes) -> usize {
        let PolicyIndexes { hasher, restrictions: index, encoded, .. } = indexes;
        encoded.clear();
        restrictions::encode(row_policy, encoded);
        if **encoded == restrictions::NONE {
            return 0;
        }
        let restrictions_of = |number: u32| self.restrictions(&self.records[number as usize]).encoded;
        let hash = || IndexHash::of(hasher, &**encoded);
        let same = |number: u32| *restrictions_of(number) == **encoded;
        let rehash = |number: u32| IndexHash::of(hasher, restrictions_of(number));
        if let Some(number) = self.find_or_insert(index, hash, same, rehash) {
            return self.records[number as usize].restrictions_start();
        }
        let start = self.restrictions.len();
        push_bytes(&mut self.restrictions, encoded);
        start
    }

    /// Bytes of each list.
    #[cfg(test)]
    pub(in crate::snapshot) fn allocated(&self) -> [usize; 4] {
        [
            self.records.capacity() * size_of::<PolicyRecord>(),
            self.texts.capacity(),
            self.limits.capacity() * size_of::<PolicyLimit>(),
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
        plans: &Plans,
    ) -> impl Iterator<Item = usize> {
        let Self { records, texts, limits, restrictions } = self;
        // The texts of one answer for each policy. A row policy is longer than its environment, its
        // plan and a name together, with their lengths.
        let one_answer = bytes
            .saturating_add(more.saturating_mul(plans.longest_texts()))
            .min(more.saturating_mul(AnswerTexts::MAX_BYTES));
        let lists = [
            growth::<PolicyRecord>(records.len(), records.capacity(), more),
            texts.growth(one_answer.saturating_mul(1 + MAX_POLICY_LIMITS)),
            growth::<PolicyLimit>(limits.len(), limits.capacity(), more.saturating_mul(MAX_POLICY_LIMITS)),
            growth::<u8>(restrictions.len(), restrictions.capacity(), restrictions::bytes_for(more, bytes)),
        ];
        lists.into_iter().chain(indexes.all().map(|index| index.growth(more)))
    }
}

impl PolicyIndexes {
    pub(in crate::snapshot) fn all(&self) -> [&Index; 3] {
        [&self.texts, &self.limits, &self.restrictions]
    }
}

impl PolicyLimit {
    fn new(limit: LimitRef<'_>, texts: Span) -> Self {
        let LimitRef { name, rule, per, shadow } = limit;
        Self {
            rule,
            texts,
            per,
            shadow,
            name_length: name.floor_char_boundary(MAX_NAME) as u8,
            shown_limit: u32::try_from(rule.limit()).unwrap_or(u32::MAX),
        }
    }
}

fn hash_all(hasher: &IdHasher, values: impl Iterator<Item = impl Hash>) -> IndexHash {
    let mut state = hasher.build_hasher();
    values.for_each(|value| value.hash(&mut state));
    IndexHash::of_hash(state.finish())
}
