//! The keys of a load, and the sequence in which requests use them: known keys in random order,
//! mixed with random unknown ones.
//!
//! The sequence is the same in every run with the same keys, so that runs are comparable.

use zeroize::Zeroizing;

/// Most requests that are encoded: 200 MB of ordinary ones. With more keys, a random part of them
/// is used.
pub(crate) const MAX_REQUESTS: usize = 1 << 22;

/// Fewest requests that are encoded: even with a handful of keys, there are many different unknown
/// ones.
const MIN_REQUESTS: usize = 1 << 12;

/// The known keys: either digests or raw keys.
#[derive(Default)]
pub(crate) struct Keys {
    digests: Vec<[u8; 32]>,
    raw: RawKeys,
}

/// Raw keys, stored one after another and wiped on drop.
#[derive(Default)]
struct RawKeys {
    bytes: Zeroizing<Vec<u8>>,
    ends: Vec<usize>,
}

/// The key of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestedKey<'a> {
    /// The SHA-256 of a key.
    Digest([u8; 32]),
    /// The key itself.
    Raw(&'a [u8]),
}

impl Keys {
    /// Keys given by their SHA-256. Without keys, every request is for an unknown one.
    pub(crate) fn digests(digests: Vec<[u8; 32]>) -> Self {
        Self { digests, raw: RawKeys::default() }
    }

    /// Adds a key that is sent as it is. Raw keys and digests cannot be mixed.
    pub(crate) fn add_raw(&mut self, key: &[u8]) {
        if self.raw.bytes.capacity() - self.raw.bytes.len() < key.len() {
            // A vector that grows by itself would leave a copy that is not wiped.
            let capacity = (2 * self.raw.bytes.capacity()).max(self.raw.bytes.len() + key.len());
            let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
            larger.extend_from_slice(&self.raw.bytes);
            self.raw.bytes = larger;
        }
        self.raw.bytes.extend_from_slice(key);
        self.raw.ends.push(self.raw.bytes.len());
    }

    /// Number of known keys.
    pub(crate) fn len(&self) -> usize {
        self.digests.len() + self.raw.ends.len()
    }

    /// Whether there are no known keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, index: usize) -> RequestedKey<'_> {
        match self.raw.ends.get(index) {
            Some(end) => {
                let start = index.checked_sub(1).map_or(0, |previous| self.raw.ends[previous]);
                RequestedKey::Raw(&self.raw.bytes[start..*end])
            }
            None => RequestedKey::Digest(self.digests[index]),
        }
    }

    /// The keys of all requests, in order. The share `hit_rate` of them are known keys.
    pub(crate) fn sequence(&self, hit_rate: f64) -> KeySequence<'_> {
        let hit_rate = if self.is_empty() { 0.0 } else { hit_rate.clamp(0.0, 1.0) };
        let mut random = SplitMix64(1);
        let mut order: Vec<u32> = (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        let needed = if hit_rate > 0.0 { (self.len() as f64 / hit_rate).ceil() as usize } else { 0 };
        let count = needed.clamp(MIN_REQUESTS, MAX_REQUESTS);
        KeySequence { keys: self, order, hit_rate, count, random, known: 0, total: 0 }
    }
}

/// A sequence of keys, one for each request.
pub(crate) struct KeySequence<'a> {
    keys: &'a Keys,
    order: Vec<u32>,
    hit_rate: f64,
    count: usize,
    random: SplitMix64,
    /// Known keys returned so far.
    known: usize,
    /// All keys returned so far.
    total: usize,
}

impl KeySequence<'_> {
    /// Length of the sequence.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The next key.
    pub(crate) fn next_key(&mut self) -> RequestedKey<'_> {
        self.total += 1;
        // The known keys are spread evenly, and their number is exact.
        let due = (self.total as f64 * self.hit_rate).round() as usize;
        if self.known < due && !self.order.is_empty() {
            let index = self.order[self.known % self.order.len()] as usize;
            self.known += 1;
            return self.keys.get(index);
        }
        let mut digest = [0; 32];
        for part in digest.chunks_exact_mut(8) {
            part.copy_from_slice(&self.random.next().to_le_bytes());
        }
        // As a raw key, these 32 bytes are unknown too.
        RequestedKey::Digest(digest)
    }
}

/// A random number generator with a fixed seed.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn known(count: u8) -> Keys {
        Keys::digests((0..count).map(|number| [number; 32]).collect())
    }

    fn digests(keys: &Keys, hit_rate: f64) -> Vec<[u8; 32]> {
        let mut sequence = keys.sequence(hit_rate);
        (0..sequence.len())
            .map(|_| match sequence.next_key() {
                RequestedKey::Digest(digest) => digest,
                RequestedKey::Raw(_) => panic!("there are no raw keys"),
            })
            .collect()
    }

    #[test]
    fn sequence_has_every_key_and_the_given_share_of_unknown_ones() {
        let keys = known(200);
        for hit_rate in [1.0, 0.5, 0.1] {
            let digests = digests(&keys, hit_rate);
            let hits: Vec<_> = digests.iter().filter(|digest| **digest == [digest[0]; 32]).collect();
            let share = hits.len() as f64 / digests.len() as f64;
            assert!((share - hit_rate).abs() < 0.01, "{share} of {hit_rate}");
            assert_eq!(hits.iter().collect::<HashSet<_>>().len(), 200);
        }
        assert_eq!(digests(&keys, 0.0).iter().collect::<HashSet<_>>().len(), MIN_REQUESTS);
    }

    #[test]
    fn sequence_without_known_keys_has_only_unknown_ones() {
        let digests = digests(&Keys::default(), 1.0);
        assert_eq!(digests.len(), MIN_REQUESTS);
        assert_eq!(digests.iter().collect::<HashSet<_>>().len(), MIN_REQUESTS);
    }

    #[test]
    fn order_is_random_and_reproducible() {
        let keys = known(200);
        let order = digests(&keys, 1.0);
        assert_eq!(order, digests(&keys, 1.0));
        assert!(order.windows(2).filter(|pair| pair[0][0].wrapping_add(1) == pair[1][0]).count() < 200);
    }

    #[test]
    fn raw_keys_are_returned_unchanged() {
        let mut keys = Keys::default();
        for key in ["a", "", "long enough to grow", "b"] {
            keys.add_raw(key.as_bytes());
        }
        let mut sequence = keys.sequence(1.0);
        let returned: HashSet<Vec<u8>> = (0..4)
            .map(|_| match sequence.next_key() {
                RequestedKey::Raw(key) => key.to_vec(),
                RequestedKey::Digest(_) => panic!("every key is known"),
            })
            .collect();
        assert_eq!(returned.len(), 4);
        assert!(returned.contains(&b"long enough to grow"[..]));
    }
}
