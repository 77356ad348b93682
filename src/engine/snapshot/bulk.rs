//! A table that is filled first, and indexed then: the fast way, for a large export with which nothing is wrong.
//!
//! A row that is put into an index at once is put at a place that no cache holds, and so is the next one. When all rows are there,
//! those that belong to one part of an index go in together, while that part is in the cache; and the two indexes, by digest and by
//! id, are made at the same time.
//!
//! The price is that a contradiction between rows is found late, and not by its lines: who wants to know them has to
//! [`add`](Builder::add) the rows one by one. And where a key has several rows, their texts are kept several times.

use std::hash::BuildHasher;

use crate::snapshot::batch::Gather;
use crate::snapshot::build::{Builder, IDENTITY_BYTES, RowError};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::{Index, Probe};
use crate::snapshot::kept::WINDOW;
use crate::snapshot::{Keys, same_digest};
use keyward_memory as memory;

/// Parts of an index. That of a million keys has 12 MiB, so that a part of it is in the first caches.
const PARTS: usize = 256;

/// Rows that wait to be put into one part.
const WAITING: usize = 1024;

/// What all of them take.
pub(super) const INDEXING_BYTES: usize = PARTS * WAITING * size_of::<(Probe, u32)>();

/// A table to which rows are added in [batches](super::Batch).
pub struct Bulk {
    pub(super) builder: Builder,
    /// Entries up to which there is memory.
    pub(super) ready: usize,
}

/// No two rows have the same digest.
pub struct Distinct(());

/// Rows that have the key id of an earlier one, with that, in no order.
pub struct Rotated(Vec<(u32, u32)>);

impl Builder {
    /// To be filled in batches. There must be no rows in it. It does not have to grow for as many as are `expected`; where there are
    /// fewer, it takes the memory of those.
    pub fn in_bulk(mut self, expected: usize) -> Bulk {
        let Keys { entries, arena, .. } = &mut self.keys;
        memory::make_room(entries, expected);
        arena.make_room(expected.saturating_mul(IDENTITY_BYTES));
        Bulk { builder: self, ready: 0 }
    }
}

impl Bulk {
    /// For another thread: takes rows of this table.
    pub fn gather(&self) -> Gather {
        Gather::new(self.builder.keys.hasher.clone())
    }

    /// Two things that are left to be done when all rows are there, at the same time or one after the other.
    pub fn indexes(
        &mut self,
    ) -> (impl FnOnce() -> Result<Distinct, RowError> + Send, impl FnOnce() -> Rotated + Send) {
        let Keys { index, ids, entries, arena, seed, hasher, .. } = &mut self.builder.keys;
        let (entries, arena, seed, hasher) = (&**entries, &*arena, *seed, &*hasher);
        let probe = move |entry: &Entry| Probe::of_digest(&entry.digest, seed);
        // Only now it is known how many there are.
        let room =
            move |index: &mut Index| *index = memory::populated(|| Index::with_capacity(entries.len()));
        let digests = move || {
            room(index);
            let same = |a: &Entry, b: &Entry| same_digest(&a.digest, &b.digest);
            match fill(index, entries, probe, same).is_empty() {
                true => Ok(Distinct(())),
                // In which lines is not known here.
                false => Err(RowError::DuplicateHash { line: 0 }),
            }
        };
        let key_id = move |entry: &Entry| arena.as_str().get(entry.identity.key_id()).unwrap_or_default();
        let by_id = move || {
            room(ids);
            let probe = |entry: &Entry| Probe::of_hash(hasher.hash_one(key_id(entry)));
            Rotated(fill(ids, entries, probe, |a, b| key_id(a) == key_id(b)))
        };
        (digests, by_id)
    }

    /// The table as if its rows had been [added](Builder::add) one by one.
    ///
    /// # Errors
    /// When rows that share a key id contradict each other. The lines in the error mean nothing.
    pub fn finish(self, _: Distinct, Rotated(mut rotated): Rotated) -> Result<Builder, RowError> {
        let Self { mut builder, .. } = self;
        rotated.sort_unstable_by_key(|(_, id)| *id);
        for (first, id) in rotated {
            let entry = &builder.keys.entries[id as usize];
            builder.agrees(first, builder.keys.owner(entry), entry.policy)?;
            let identity = builder.keys.entries[first as usize].identity;
            let entry = &mut builder.keys.entries[id as usize];
            (entry.identity, entry.buckets) = (identity, first);
            builder.keys.rotated.push((first, id));
        }
        Ok(builder)
    }
}

/// Puts all entries into an index, by what `probe` says of them. Those that are the `same` as an earlier one stay out, and are returned
/// with that.
fn fill(
    index: &mut Index,
    entries: &[Entry],
    probe: impl Fn(&Entry) -> Probe,
    same: impl Fn(&Entry, &Entry) -> bool,
) -> Vec<(u32, u32)> {
    let mut twice = Vec::new();
    let mut put = |waiting: &[(Probe, u32)]| {
        for window in waiting.chunks(WINDOW) {
            window.iter().for_each(|(probe, _)| index.prefetch(*probe));
            for (of_entry, id) in window {
                let entry = &entries[*id as usize];
                match index.find(*of_entry, |other| same(&entries[other as usize], entry)) {
                    Some(first) => twice.push((first, *id)),
                    None => index.insert(*of_entry, *id, |other| probe(&entries[other as usize])),
                }
            }
        }
    };
    // Rows stay in their order within a part: of several that are the same, the first goes in.
    let mut parts: Vec<Vec<(Probe, u32)>> = (0..PARTS).map(|_| Vec::with_capacity(WAITING)).collect();
    for (entry, id) in entries.iter().zip(0..) {
        let probe = probe(entry);
        let part = &mut parts[probe.home(PARTS)];
        part.push((probe, id));
        if part.len() == WAITING {
            put(part);
            part.clear();
        }
    }
    parts.iter().for_each(|part| put(part));
    twice
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{KeyRecord, Limit, parse_limits};

    fn record<'a>(digest: u16, key_id: &'a str, owner: &'a str, limits: &Arc<[Limit]>) -> KeyRecord<'a> {
        let mut hash = [0; 32];
        hash[..2].copy_from_slice(&digest.to_le_bytes());
        let (not_before, limits) = (digest.into(), Arc::clone(limits));
        let metadata = if digest.is_multiple_of(5) { "{}" } else { "" };
        KeyRecord { owner, not_before, limits, metadata, ..KeyRecord::new(hash, key_id) }
    }

    fn in_bulk(batches: &[&[KeyRecord<'_>]]) -> Result<Builder, RowError> {
        let mut bulk = Builder::new(7, 0).in_bulk(0);
        let mut gather = bulk.gather();
        for batch in batches {
            batch.iter().for_each(|record| gather.add(record));
            bulk.add_batch(gather.batch())?;
        }
        let (digests, ids) = bulk.indexes();
        let (distinct, rotated) = (digests()?, ids());
        bulk.finish(distinct, rotated)
    }

    fn described(builder: &Builder) -> (Vec<String>, Vec<(u32, u32)>) {
        let keys = &builder.keys;
        let entries = keys.entries.iter().zip(0..).map(|(entry, id)| {
            let Entry { owner, policy, buckets, not_before, .. } = entry;
            let (found, first) = (keys.find_exactly(&entry.digest), keys.find_by_id(keys.key_id(entry)));
            let (key_id, owner_name) = (keys.key_id(entry), keys.owner(entry));
            let metadata = keys.metadata_of(id);
            format!("{key_id} {owner_name} {owner} {policy} {buckets} {not_before} {found:?} {first:?} {metadata:?}")
        });
        (entries.collect(), keys.rotated.clone())
    }

    proptest! {
        #[test]
        fn it_is_the_same_table_as_row_by_row(
            rows in prop::collection::vec((0_u16..5_000, 0_u16..900), 0..400),
            other in prop::option::of((0_u16..900, 0..2_u8)),
            at in 0_usize..400,
        ) {
            let limits: [Arc<[Limit]>; 2] =
                ["1/s", "2/s"].map(|text| parse_limits(text).expect("limits").into());
            let ids: Vec<String> = rows.iter().map(|(_, key)| format!("k{key}")).collect();
            // Rows of a key agree, but for one key's last.
            let records: Vec<_> = rows.iter().zip(&ids).enumerate().map(|(row, ((digest, key), id))| {
                let odd = other.filter(|(odd, _)| odd == key && row + 1 == rows.len()).map(|(_, what)| what);
                let owner = if odd == Some(0) { "other" } else { ["", "acme", "b"][usize::from(key % 3)] };
                let limits = &limits[usize::from((key % 2 == 0) == (odd == Some(1)))];
                record(*digest, id, owner, limits)
            }).collect();
            let mut builder = Builder::new(7, 0);
            let added = records.iter().zip(1..).try_for_each(|(record, line)| builder.add(line, record));
            let (before, after) = records.split_at(at.min(records.len()));
            match (added, in_bulk(&[before, after])) {
                (Ok(()), Ok(bulk)) => prop_assert_eq!(described(&bulk), described(&builder)),
                (added, bulk) => prop_assert!(added.is_err() && bulk.is_err()),
            }
        }
    }
}
