//! Keys by number: number, key, digest and record can each be computed again from the number, so that a request is
//! prepared without touching the table that it will be looked up in.

use std::io::Write;
use std::sync::Arc;

use keyward::key_format;
use keyward::limiter::{Limiter, SlotAllocator};
use keyward::now::Now;
use keyward::record::{Digest, KeyRecord, Plans, parse_limits};
use keyward::snapshot::{Builder, Snapshot, Stamp};

use super::Seeded;

/// Bytes of a key: a prefix and 30 characters.
pub(crate) const KEY_BYTES: usize = 40;

/// A limit that no bench can reach.
pub(crate) const ENDLESS: &str = "10000000/s burst 1000000000";

/// Two such limits.
pub(crate) const ENDLESS_TWICE: &str =
    "requests=10000000/s burst 1000000000; daily=10000000/s burst 2000000000";

/// A limit that is used up by the first request, for a day.
pub(crate) const ONCE: &str = "1/d burst 1";

/// Keys that share an owner.
const KEYS_OF_OWNER: u64 = 10;

/// The moment at which a bench begins: some minutes after the clock's origin, in 2027.
pub(crate) const START: Now = Now { ticks: 1 << 42, unix: 1_800_000_000 };

/// The key with this number.
pub(crate) fn raw_key(number: u64) -> [u8; KEY_BYTES] {
    let mut random = Seeded::new(number);
    let (high, low) = (random.next(), random.next() >> 8);
    let mut key = *b"acme_live_..............................";
    write!(&mut key[10..], "{high:016x}{low:014x}").expect("30 digits fit");
    key
}

/// Its SHA-256.
pub(crate) fn digest(number: u64) -> Digest {
    key_format::hash(&raw_key(number))
}

/// What the export calls it; of one length, so that all answers are.
pub(crate) fn key_id(number: u64) -> String {
    format!("key_{number:08}")
}

/// Whose it is.
pub(crate) fn owner(number: u64) -> String {
    format!("owner_{:07}", number / KEYS_OF_OWNER)
}

/// The buckets, and the snapshots that charge them.
pub(crate) struct Tables {
    pub(crate) limiter: Limiter,
    allocator: SlotAllocator,
}

impl Tables {
    pub(crate) fn new() -> Self {
        Self { limiter: Limiter::new(), allocator: SlotAllocator::new() }
    }

    /// A snapshot of the keys `0..keys`, each with `limits` (none where that is empty). One with the same limits as the
    /// `previous` charges the same buckets.
    pub(crate) fn snapshot(&mut self, keys: u64, limits: &str, previous: Option<&Snapshot>) -> Snapshot {
        self.snapshot_of(keys, limits, Stamp::default(), previous, Arc::default(), |_| ())
    }

    /// The same by the rules of `stamp`, with plans, and rows that `shape` has given what they carry besides.
    pub(crate) fn snapshot_of(
        &mut self,
        keys: u64,
        limits: &str,
        stamp: Stamp,
        previous: Option<&Snapshot>,
        plans: Arc<Plans>,
        shape: impl Fn(&mut KeyRecord<'_>),
    ) -> Snapshot {
        let limits = if limits.is_empty() { Vec::new() } else { parse_limits(limits).expect("limits") };
        let mut common = KeyRecord {
            environment: "live",
            plan: "pro",
            limits: limits.into(),
            ..KeyRecord::new([0; 32], "")
        };
        shape(&mut common);
        // The seed is random in life; here a fixed one lays the table out alike in every run.
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
            builder.add(number + 1, &record).expect("no two keys are alike");
        }
        let generation = previous.map_or(1, |previous| previous.generation() + 1);
        let mut allocation = self.allocator.begin(&self.limiter);
        let snapshot = builder
            .finish()
            .publishable(&mut allocation, previous, Stamp { generation, source_time: START.unix, ..stamp })
            .expect("fewer limits than slots");
        // Nothing to settle: no rate has changed, and no key has gone.
        let _settlement = allocation.commit();
        snapshot
    }
}
