//! Digests that share the whole 64-bit hash of the index, so only a comparison of all 256 bits
//! distinguishes them.
//!
//! The index hashes with a secret seed, so a client cannot find such digests. A table must not
//! depend on that: a look-up that trusts the hash, or the 32 bits of it that the index stores,
//! would admit a key that was never issued.

use std::hash::BuildHasher;
use std::io::Cursor;

use super::build::ParallelBuildError;
use super::compiled::{ReadError, Reader};
use super::index::IndexHash;
use super::*;
use crate::limiter::{Limiter, SlotAllocator};
use crate::record::KeyRecord;

const SEED: u64 = 0x0005_eed0_f7e5_7ab1;
const NOW: u32 = 1_000_000;

fn digest_of(words: [u64; 4]) -> Digest {
    let mut digest = Digest::default();
    for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    digest
}

/// Other digests with the hash of `digest` under `seed`. Each half of a digest is hashed by a
/// multiplication of its two words, whose factors can be exchanged.
pub(crate) fn forgeries(digest: &Digest, seed: u64) -> [Digest; 3] {
    let [a, b, c, d] = as_le_u64s(digest);
    let low = seed ^ seed.rotate_left(17) ^ index::MIX;
    let high = seed.rotate_left(31) ^ seed.rotate_left(47) ^ index::MIX;
    let forged =
        [[b ^ low, a ^ low, c, d], [a, b, d ^ high, c ^ high], [b ^ low, a ^ low, d ^ high, c ^ high]];
    forged.map(digest_of)
}

/// Pairs of digests with one hash that differ in a single byte, one pair for each byte. If one
/// factor of a multiplication is 0, the other has no effect.
fn neighbours(seed: u64) -> Vec<(Digest, Digest)> {
    let zeros =
        [seed, seed.rotate_left(17) ^ index::MIX, seed.rotate_left(31), seed.rotate_left(47) ^ index::MIX];
    let mut pairs = Vec::new();
    for (word, partner) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        for byte in 0..8 {
            let number = (8 * word + byte) as u64;
            let mut listed =
                [1, 2, 3, 4].map(|factor: u64| (number + 1).wrapping_mul(factor).wrapping_mul(index::MIX));
            listed[partner] = zeros[partner];
            let mut forged = listed;
            forged[word] ^= 1 << (8 * byte);
            pairs.push((digest_of(listed), digest_of(forged)));
        }
    }
    pairs
}

/// Pairs of a listed digest and an unlisted one with the same hash.
fn collisions(seed: u64) -> Vec<(Digest, Digest)> {
    let ordinary = (0..20_u8).map(|number| crate::key_format::hash(&[number]));
    let exchanged = ordinary.flat_map(|digest| forgeries(&digest, seed).map(|forged| (digest, forged)));
    let pairs: Vec<_> = exchanged.chain(neighbours(seed)).collect();
    for (listed, forged) in &pairs {
        assert_ne!(listed, forged);
        assert_eq!(IndexHash::of_digest(listed, seed), IndexHash::of_digest(forged, seed), "a collision");
    }
    pairs
}

fn name(digest: &Digest) -> String {
    const_hex::encode(digest)
}

/// Adds each digest as a key whose id is the digest.
fn builder(seed: u64, digests: &[Digest]) -> Builder {
    let mut builder = Builder::new(seed, 0);
    for (digest, line) in digests.iter().zip(2..) {
        builder.add(line, &KeyRecord::new(*digest, &name(digest))).expect("no two digests are the same");
    }
    builder
}

fn in_parallel(seed: u64, digests: &[Digest]) -> Result<Builder, ParallelBuildError> {
    let mut builder = Builder::new(seed, 0).into_parallel(digests.len());
    let mut batch_builder = builder.batch_builder();
    digests.iter().for_each(|digest| batch_builder.add(&KeyRecord::new(*digest, &name(digest))));
    builder.add_batch(batch_builder.take())?;
    let (by_digest, by_id) = builder.index_builders();
    let (unique, rotated) = (by_digest()?, by_id());
    builder.finish(unique, rotated)
}

fn snapshot(keys: KeyTable) -> Snapshot {
    let (mut allocator, limiter) = (SlotAllocator::new(), Limiter::new());
    let mut allocation = allocator.begin(&limiter);
    let snapshot = keys.into_snapshot(&mut allocation, None, SnapshotMeta::default()).expect("room");
    let _ = allocation.commit();
    snapshot
}

fn compile(builder: &Builder) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    builder.compile(&mut file, NOW, &mut |_| {}).expect("memory is writable");
    file.into_inner()
}

fn load(file: &[u8]) -> Result<Builder, ReadError> {
    let read = |at: u64, bytes: &mut [u8]| {
        let from = file.get(at as usize..).and_then(|from| from.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let mut reader = Reader::open(read, file.len() as u64)?;
    let mut builder = reader.builder();
    let decoder = reader.read_policies(&mut builder, |_| Ok(()))?;
    let (mut buffers, mut merge, mut partitions) =
        (reader.buffers(), reader.merge(), reader.hash_partitions(1));
    let mut slots = buffers.block_slots();
    while let Some(block) = reader.next_block(&mut slots)? {
        let (at, bytes) = block.range();
        let mut payload = vec![0; bytes];
        read(at, &mut payload).map_err(|error| block.read_error(error))?;
        merge.add(decoder.decode(block, &payload, &mut partitions[0])?, &mut builder)?;
    }
    for part in buffers.id_partitions(&partitions) {
        merge.add_ids(part.fill(&partitions));
    }
    merge.finish(buffers, &decoder, &partitions, &mut builder)?;
    Ok(builder)
}

/// A table of the same rows from each of the three builders.
fn tables(digests: &[Digest]) -> [KeyTable; 3] {
    let compiled = load(&compile(&builder(SEED, digests))).expect("a good file");
    [builder(SEED, digests), in_parallel(SEED, digests).expect("no two digests are the same"), compiled]
        .map(Builder::finish)
}

/// Each digest of `all` is found as its own key if it is among the `listed`, and not at all
/// otherwise.
fn assert_found(keys: KeyTable, listed: &[Digest], all: &[Digest]) {
    for digest in all {
        assert_eq!(keys.has_live_key(digest, NOW), listed.contains(digest), "{}", name(digest));
    }
    let snapshot = snapshot(keys);
    for digest in all {
        let expected = listed.contains(digest).then(|| name(digest));
        let found = snapshot.find(digest).map(|key| (key.key_id().to_owned(), *key.digest()));
        assert_eq!(found, expected.map(|name| (name, *digest)));
        let candidate = snapshot.candidate(snapshot.index_hash(digest)).expect("the hash is in the index");
        let confirmed = snapshot.confirm(candidate, digest).map(|key| *key.digest());
        assert_eq!(confirmed, listed.contains(digest).then_some(*digest));
    }
}

#[test]
fn digest_with_the_hash_of_a_listed_key_is_not_found() {
    for (listed, forged) in collisions(SEED) {
        for keys in tables(&[listed]) {
            assert_found(keys, &[listed], &[listed, forged]);
        }
    }
}

#[test]
fn keys_with_the_same_hash_are_distinguished_by_their_digests() {
    let digest = crate::key_format::hash(b"a key");
    let all = [&[digest][..], &forgeries(&digest, SEED)].concat();
    for count in 2..=all.len() {
        for keys in tables(&all[..count]) {
            assert_found(keys, &all[..count], &all);
        }
    }
    // More than a group of the index has slots.
    let crowd: Vec<Digest> = (0..40_u8)
        .map(|number| digest_of([SEED, u64::from(number), SEED.rotate_left(31), 1 + u64::from(number)]))
        .collect();
    for keys in tables(&crowd[..39]) {
        assert_found(keys, &crowd[..39], &crowd);
    }
}

#[test]
fn duplicate_is_refused_and_digest_with_the_same_hash_is_not() {
    for (listed, forged) in collisions(SEED) {
        let mut builder = builder(SEED, &[listed, forged]);
        for (digest, line) in [(listed, 2), (forged, 3)] {
            let refused = builder.add(4, &KeyRecord::new(digest, "again"));
            assert_eq!(refused, Err(RowError::DuplicateHash { line }));
        }
        let digests = [listed, forged, listed];
        assert_eq!(in_parallel(SEED, &digests).err(), Some(ParallelBuildError::DuplicateHash));
        assert!(in_parallel(SEED, &digests[..2]).is_ok());
    }
}

#[test]
fn key_replaced_by_one_with_the_same_hash_is_removed_and_added() {
    let other = crate::key_format::hash(b"in both exports");
    for (before, after) in collisions(SEED) {
        // Where the comparison expects the row, and elsewhere.
        for (old, new) in [([before, other], [after, other]), ([before, other], [other, after])] {
            for (old, new) in tables(&old).into_iter().zip(tables(&new)) {
                let options = CompareOptions { now: 1, by_key_id: false };
                let Diff { added, removed, changed, deactivated, examples, .. } =
                    new.diff_from(Some(&old), options);
                assert_eq!((added, removed, changed, deactivated), (1, 1, 0, 1), "{}", name(&before));
                assert_eq!(*examples.removed[0].key_id, *name(&before));
                assert_eq!(*examples.added[0].key_id, *name(&after));
            }
        }
        for (old, new) in tables(&[before, other, after]).into_iter().zip(tables(&[after])) {
            let Diff { added, removed, changed, .. } =
                new.diff_from(Some(&old), CompareOptions { now: 1, by_key_id: false });
            assert_eq!((added, removed, changed), (0, 2, 0));
        }
    }
}

#[test]
fn key_id_with_the_hash_of_another_is_not_found() {
    let listed = crate::key_format::hash(b"a key");
    let [keys, ..] = tables(&[listed]);
    let hash = keys.hasher.hash_one(name(&listed));
    assert_eq!(keys.find_by_id_hash(hash, &name(&listed)), Some(0));
    assert_eq!(keys.find_by_id_hash(hash, "another"), None);
}
