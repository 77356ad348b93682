//! Numbered keys. Key, digest and record are computed from the number, so preparing a request does
//! not touch the snapshot that it is looked up in.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::io::Write;
use std::sync::Arc;

use keyward_engine::key_format;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::record::{Digest, KeyRecord, Plans, parse_limits};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta};

/// Bytes of a key: a prefix and 30 hexadecimal digits.
pub const KEY_BYTES: usize = 40;

/// A limit that no bench reaches.
pub const HIGH_LIMIT: &str = "10000000/s burst 1000000000";

/// Two limits that no bench reaches.
pub const TWO_HIGH_LIMITS: &str = "requests=10000000/s burst 1000000000; daily=10000000/s burst 2000000000";

/// A limit that the first request uses up for a day.
pub const ONE_PER_DAY: &str = "1/d burst 1";

/// Keys that share an owner.
const KEYS_PER_OWNER: u64 = 10;

/// The time at which a bench starts: some minutes after the clock's origin, in 2027.
pub const START: Now = Now { nanoseconds: 1 << 42, unix: 1_800_000_000, millisecond: 0 };

/// The key with a number.
pub fn raw_key(number: u64) -> [u8; KEY_BYTES] {
    let mut random = Seeded::new(number);
    let (high, low) = (random.next(), random.next() >> 8);
    let mut key = *b"acme_live_..............................";
    write!(&mut key[10..], "{high:016x}{low:014x}").expect("30 digits fit");
    key
}

/// The SHA-256 of the key with a number.
pub fn digest(number: u64) -> Digest {
    key_format::hash(&raw_key(number))
}

/// The `key_id` in exports. All have the same length, and so have the answers.
pub fn key_id(number: u64) -> String {
    format!("key_{number:08}")
}

/// The `owner` in exports.
pub fn owner(number: u64) -> String {
    format!("owner_{:07}", number / KEYS_PER_OWNER)
}

/// A limiter, and the snapshots that charge its buckets.
#[derive(Default)]
pub struct Fixture {
    /// The buckets.
    pub limiter: Limiter,
    allocator: SlotAllocator,
}

impl Fixture {
    /// An empty limiter.
    pub fn new() -> Self {
        Self { limiter: Limiter::new(), allocator: SlotAllocator::new() }
    }

    /// A snapshot of the keys `0..keys`, each with `limits` (none if empty). With the same limits
    /// as `previous`, it charges the same buckets.
    pub fn snapshot(&mut self, keys: u64, limits: &str, previous: Option<&Snapshot>) -> Snapshot {
        self.snapshot_with(keys, limits, SnapshotMeta::default(), previous, Arc::default(), |_| ())
    }

    /// The same with plans, the global policy of the metadata, and records completed by
    /// `configure`.
    pub fn snapshot_with(
        &mut self,
        keys: u64,
        limits: &str,
        stamp: SnapshotMeta,
        previous: Option<&Snapshot>,
        plans: Arc<Plans>,
        configure: impl Fn(&mut KeyRecord<'_>),
    ) -> Snapshot {
        let limits = if limits.is_empty() { Vec::new() } else { parse_limits(limits).expect("limits") };
        let mut common = KeyRecord {
            environment: "live",
            plan: "pro",
            limits: limits.into(),
            ..KeyRecord::new([0; 32], "")
        };
        configure(&mut common);
        // The daemon uses a random seed. A fixed one gives every run the same layout.
        let expected = usize::try_from(keys).expect("a number of keys");
        let mut builder = Builder::new(0x5eed, expected).with_plans(plans);
        let peppers = stamp.global_policy.peppers.clone();
        let hash = |number| match &peppers {
            Some(peppers) => peppers.current.hash(&raw_key(number)),
            None => digest(number),
        };
        for number in 0..keys {
            let (key_id, owner) = (key_id(number), owner(number));
            let record = KeyRecord { hash: hash(number), key_id: &key_id, owner: &owner, ..common.clone() };
            builder.add(number + 1, &record).expect("all keys differ");
        }
        let generation = previous.map_or(1, |previous| previous.table_generation() + 1);
        let mut allocation = self.allocator.begin(&self.limiter);
        let snapshot = builder
            .finish()
            .into_snapshot(
                &mut allocation,
                previous,
                SnapshotMeta { generation, source_time: START.unix, ..stamp },
            )
            .expect("fewer limits than slots");
        // Nothing to settle: no rate has changed, and no key has gone.
        let _settlement = allocation.commit();
        snapshot
    }
}

/// A seeded generator (splitmix64). Every run has the same numbers, so runs can be compared.
pub struct Seeded(u64);

impl Seeded {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}
