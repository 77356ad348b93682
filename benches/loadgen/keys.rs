//! Which keys a load asks for: the given ones in random order, mixed with random ones that nobody has.
//!
//! The order is the same in every run with the same keys, so that runs can be compared.

use zeroize::Zeroizing;

/// Most requests that are encoded in advance: 200 MB of ordinary ones. Of more keys than that, a random part is asked for.
pub(crate) const MAX_REQUESTS: usize = 1 << 22;

/// Fewest: with a handful of keys the unknown ones among them should still be many.
const MIN_REQUESTS: usize = 1 << 12;

/// The keys that a load knows.
#[derive(Default)]
pub(crate) struct Keys {
    digests: Vec<[u8; 32]>,
    raw: RawKeys,
}

/// Raw keys one after another, wiped when they are dropped.
#[derive(Default)]
struct RawKeys {
    bytes: Zeroizing<Vec<u8>>,
    ends: Vec<usize>,
}

/// One that is to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// By its SHA-256.
    Digest([u8; 32]),
    /// The key itself.
    Raw(&'a [u8]),
}

impl Keys {
    /// Keys by their SHA-256; none means that every request is for an unknown one.
    pub(crate) fn digests(digests: Vec<[u8; 32]>) -> Self {
        Self { digests, raw: RawKeys::default() }
    }

    /// Adds a key that will be sent as it is. Not to be mixed with digests.
    pub(crate) fn add_raw(&mut self, key: &[u8]) {
        if self.raw.bytes.capacity() - self.raw.bytes.len() < key.len() {
            // A vector that grew by itself would leave an unwiped copy behind.
            let room = (2 * self.raw.bytes.capacity()).max(self.raw.bytes.len() + key.len());
            let mut larger = Zeroizing::new(Vec::with_capacity(room));
            larger.extend_from_slice(&self.raw.bytes);
            self.raw.bytes = larger;
        }
        self.raw.bytes.extend_from_slice(key);
        self.raw.ends.push(self.raw.bytes.len());
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.digests.len() + self.raw.ends.len()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, index: usize) -> Wanted<'_> {
        match self.raw.ends.get(index) {
            Some(end) => {
                let start = index.checked_sub(1).map_or(0, |before| self.raw.ends[before]);
                Wanted::Raw(&self.raw.bytes[start..*end])
            }
            None => Wanted::Digest(self.digests[index]),
        }
    }

    /// Whom to ask for, a request each. `hit_rate` of them are known keys.
    pub(crate) fn plan(&self, hit_rate: f64) -> Plan<'_> {
        let hit_rate = if self.is_empty() { 0.0 } else { hit_rate.clamp(0.0, 1.0) };
        let mut random = Seeded(1);
        let mut order: Vec<u32> = (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        let for_all = if hit_rate > 0.0 { (self.len() as f64 / hit_rate).ceil() as usize } else { 0 };
        let count = for_all.clamp(MIN_REQUESTS, MAX_REQUESTS);
        Plan { keys: self, order, hit_rate, count, random, taken: 0, given: 0 }
    }
}

/// A sequence of keys to ask for.
pub(crate) struct Plan<'a> {
    keys: &'a Keys,
    order: Vec<u32>,
    hit_rate: f64,
    count: usize,
    random: Seeded,
    /// Known keys so far.
    taken: usize,
    /// All so far.
    given: usize,
}

impl Plan<'_> {
    /// How many the sequence has.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The next.
    pub(crate) fn next_key(&mut self) -> Wanted<'_> {
        self.given += 1;
        // Spread evenly, and exactly as many as were asked for.
        let due = (self.given as f64 * self.hit_rate).round() as usize;
        if self.taken < due && !self.order.is_empty() {
            let index = self.order[self.taken % self.order.len()] as usize;
            self.taken += 1;
            return self.keys.get(index);
        }
        let mut digest = [0; 32];
        for part in digest.chunks_exact_mut(8) {
            part.copy_from_slice(&self.random.next().to_le_bytes());
        }
        // Where raw keys are wanted, any 32 bytes are one that nobody has.
        Wanted::Digest(digest)
    }
}

/// A seeded generator (splitmix64).
struct Seeded(u64);

impl Seeded {
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

    fn sequence(keys: &Keys, hit_rate: f64) -> Vec<[u8; 32]> {
        let mut plan = keys.plan(hit_rate);
        (0..plan.len())
            .map(|_| match plan.next_key() {
                Wanted::Digest(digest) => digest,
                Wanted::Raw(_) => panic!("no raw key was given"),
            })
            .collect()
    }

    #[test]
    fn every_key_is_asked_for_and_as_many_unknown_ones_as_wanted() {
        let keys = known(200);
        for hit_rate in [1.0, 0.5, 0.1] {
            let sequence = sequence(&keys, hit_rate);
            let hits: Vec<_> = sequence.iter().filter(|digest| **digest == [digest[0]; 32]).collect();
            let share = hits.len() as f64 / sequence.len() as f64;
            assert!((share - hit_rate).abs() < 0.01, "{share} of {hit_rate}");
            assert_eq!(hits.iter().collect::<HashSet<_>>().len(), 200);
        }
        assert_eq!(sequence(&keys, 0.0).iter().collect::<HashSet<_>>().len(), MIN_REQUESTS);
    }

    #[test]
    fn without_keys_all_are_unknown() {
        let sequence = sequence(&Keys::default(), 1.0);
        assert_eq!(sequence.len(), MIN_REQUESTS);
        assert_eq!(sequence.iter().collect::<HashSet<_>>().len(), MIN_REQUESTS);
    }

    #[test]
    fn the_order_is_random_and_the_same_in_every_run() {
        let keys = known(200);
        let order = sequence(&keys, 1.0);
        assert_eq!(order, sequence(&keys, 1.0));
        assert!(order.windows(2).filter(|pair| pair[0][0].wrapping_add(1) == pair[1][0]).count() < 200);
    }

    #[test]
    fn raw_keys_are_given_back_as_they_were() {
        let mut keys = Keys::default();
        for key in ["a", "", "long enough to grow", "b"] {
            keys.add_raw(key.as_bytes());
        }
        let mut plan = keys.plan(1.0);
        let given: HashSet<Vec<u8>> = (0..4)
            .map(|_| match plan.next_key() {
                Wanted::Raw(key) => key.to_vec(),
                Wanted::Digest(_) => panic!("a digest"),
            })
            .collect();
        assert_eq!(given.len(), 4);
        assert!(given.contains(&b"long enough to grow"[..]));
    }
}
