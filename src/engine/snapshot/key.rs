//! A key of a snapshot, as a look-up returns it.

use keyward_memory::prefetch;

use crate::limiter::{Charge, MAX_CHARGES};
use crate::record::{Digest, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::policy::{Policy, PolicyRecord};
use crate::snapshot::{EntryNumber, Snapshot};

/// One key of a snapshot.
#[derive(Clone, Copy)]
pub struct Key<'s> {
    pub(super) snapshot: &'s Snapshot,
    pub(super) entry: &'s Entry,
    pub(super) policy: &'s PolicyRecord,
    pub(super) number: EntryNumber,
}

impl<'s> Key<'s> {
    /// The snapshot that the key is in.
    pub(crate) fn snapshot(self) -> &'s Snapshot {
        self.snapshot
    }

    /// The number of its entry.
    pub fn entry_number(self) -> EntryNumber {
        self.number
    }

    /// The digest of the key.
    pub fn digest(self) -> &'s Digest {
        &self.entry.digest
    }

    /// The name of the key in answers, logs and metrics.
    pub fn key_id(self) -> &'s str {
        self.snapshot.keys.key_id(self.entry)
    }

    /// The owner's name; empty if the key has no owner.
    pub fn owner(self) -> &'s str {
        self.snapshot.keys.owner(self.entry)
    }

    /// The bytes of the key id and of the owner's name.
    #[inline]
    pub fn identity(self) -> (&'s [u8], &'s [u8]) {
        let arena = self.snapshot.keys.arena.as_str().as_bytes();
        let identity = self.entry.identity;
        let both = arena.get(identity.both()).unwrap_or_default();
        both.split_at_checked(identity.key_id_length()).unwrap_or_default()
    }

    /// Everything that the key shares with other keys.
    #[inline]
    pub fn policy(self) -> Policy<'s> {
        self.snapshot.keys.policies.policy(self.policy)
    }

    /// The status in the entry: the row's own, unless an operator or a refused source has narrowed
    /// it. An [overlay](crate::snapshot::Overlay) may have a later one.
    #[inline]
    pub fn status(self) -> Status {
        self.entry.status.in_force()
    }

    /// The status in the row.
    pub fn status_of_row(self) -> Status {
        self.entry.status.of_row()
    }

    /// The first Unix second at which the key is valid.
    pub fn not_before(self) -> u32 {
        self.entry.not_before
    }

    /// The first Unix second at which the key is no longer valid; `u32::MAX` if it never expires.
    pub fn expires_at(self) -> u32 {
        self.entry.expires_at.get()
    }

    /// The key's metadata, a JSON object, if it has any.
    pub fn metadata(self) -> Option<&'s str> {
        self.snapshot.keys.metadata_of(self.number.0)
    }

    /// The bucket slots of the key's limits, in the order of the limits.
    #[inline]
    pub(super) fn slots(self) -> &'s [u32] {
        match self.policy().limit_count() {
            0 => &[],
            1 => std::slice::from_ref(&self.entry.buckets),
            many => {
                let start = self.entry.buckets as usize;
                self.snapshot.slot_lists.get(start..start + many).unwrap_or_default()
            }
        }
    }

    /// The slot of the first limit: the one to prefetch ahead of a charge.
    #[inline]
    pub(crate) fn first_slot(self) -> Option<u32> {
        self.slots().first().copied()
    }

    /// Prefetches the key id and the owner's name, for an answer that is about to contain them.
    #[inline]
    pub fn prefetch_texts(self) {
        let arena = self.snapshot.keys.arena.as_str().as_bytes();
        if let Some(texts @ [first, ..]) = arena.get(self.entry.identity.both()) {
            prefetch(first);
            // The texts may span two cache lines.
            texts.last().into_iter().for_each(prefetch);
        }
    }

    /// Writes the charges of a request that costs `cost` on each limit to `charges`, and returns how
    /// many there are.
    pub fn charges(self, cost: u32, charges: &mut [Charge]) -> usize {
        let policy = self.policy();
        for ((charge, limit), slot) in charges.iter_mut().zip(policy.policy_limits()).zip(self.slots()) {
            *charge = Charge { slot: *slot, rule: limit.rule, cost, shadow: limit.shadow };
        }
        // Not the number of charges written: a limit that is missing must not let a request pass.
        policy.limit_count().min(MAX_CHARGES)
    }
}
