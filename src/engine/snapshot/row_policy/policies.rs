//! Row policies, one after another.

use keyward_memory::{HugePages, HugeVec, growth, push_bytes, reserve_if_possible};

/// The policies of a [`KeyTable`](crate::snapshot::KeyTable) as its rows state them, before plans
/// are applied. Only needed to write the table to a compiled file.
pub struct RowPolicies {
    bytes: HugeVec<u8>,
    /// Where each policy ends in `bytes`.
    ends: HugeVec<u64>,
}

impl Default for RowPolicies {
    fn default() -> Self {
        Self { bytes: HugeVec::new_in(HugePages), ends: HugeVec::new_in(HugePages) }
    }
}

impl RowPolicies {
    /// Room for `policies` policies of `bytes` bytes in total.
    pub(in crate::snapshot) fn with_capacity(policies: usize, bytes: usize) -> Self {
        Self {
            bytes: HugeVec::with_capacity_in(bytes, HugePages),
            ends: HugeVec::with_capacity_in(policies, HugePages),
        }
    }

    pub(in crate::snapshot) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of all policies.
    pub(in crate::snapshot) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The policy with this number; no bytes if there is none.
    pub(in crate::snapshot) fn get(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let end_of = |number: usize| self.ends.get(number).map(|end| *end as usize);
        let start = number.checked_sub(1).map_or(Some(0), end_of);
        let range = start.zip(end_of(number));
        range.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or_default()
    }

    /// All policies, by number.
    pub(in crate::snapshot) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len() as u32).map(|number| self.get(number))
    }

    /// Adds a policy and returns its number.
    pub(in crate::snapshot) fn push(&mut self, policy: &[u8]) -> u32 {
        let number = self.ends.len() as u32;
        push_bytes(&mut self.bytes, policy);
        self.ends.push(self.bytes.len() as u64);
        number
    }

    /// Makes room for `more` policies of `bytes` bytes in total, if there is as much address space.
    /// The room takes no memory until it is filled.
    pub(in crate::snapshot) fn reserve_if_possible(&mut self, more: usize, bytes: usize) {
        reserve_if_possible(&mut self.bytes, bytes);
        reserve_if_possible(&mut self.ends, more);
    }

    /// Bytes of each list.
    #[cfg(test)]
    pub(in crate::snapshot) fn allocated(&self) -> [usize; 2] {
        [self.bytes.capacity(), self.ends.capacity() * size_of::<u64>()]
    }

    /// Bytes that two lists allocate before they hold `more` policies of `bytes` bytes in total: for
    /// the bytes and for the ends.
    pub(in crate::snapshot) fn growth(&self, more: usize, bytes: usize) -> [usize; 2] {
        [
            growth::<u8>(self.bytes.len(), self.bytes.capacity(), bytes),
            growth::<u64>(self.ends.len(), self.ends.capacity(), more),
        ]
    }
}
