//! The file of saved balances.
//!
//! * What decodes encodes to the same bytes. Version 1 encodes to a file of version 2 with the same
//!   content.
//! * A file with one changed bit, and a file that ends early, are refused.
//! * A restored bucket has the balance that was saved, refilled for the time away, and never more
//!   than its burst.
//!
//! The first byte of the input decides whether the checksum is corrected, so that inputs get behind
//! it.

use std::collections::HashMap;

use super::Outcome;
use crate::input::Input;
use crate::limiter::persist::{SavedBucket, decode, encode};
use crate::limiter::{Charge, ClockReading, Limiter, Outcome as Charged, SlotAllocator};
use crate::mutation::damaged;

/// The tick at which balances are restored: the daemon has just started.
const NOW: u64 = 1;

/// Most records that the decoder reserves memory for, whatever a file says.
const MAX_RESERVED_RECORDS: usize = 1 << 12;

/// The size of a record.
const RECORD_BYTES: usize = 36;

/// The length of the checksum at the end.
const CHECKSUM_BYTES: usize = 4;

/// Most buckets that are restored: as many as the limiter of the targets has slots.
const MAX_RESTORED: usize = 512;

pub(crate) fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let corrects = !input.one_in(2);
    let position = input.u16();
    let mut file = input.rest().to_vec();
    if corrects && let Some(end) = file.len().checked_sub(CHECKSUM_BYTES) {
        let checksum = crc32fast::hash(&file[..end]);
        file[end..].copy_from_slice(&checksum.to_le_bytes());
    }
    let Ok((saved_at, buckets)) = decode(&mut &*file) else { return Outcome::Refused };
    // Reserved, or grown by doubling.
    assert!(buckets.capacity() <= MAX_RESERVED_RECORDS.max(2 * file.len() / RECORD_BYTES));
    encodes_to_the_same(&file, &saved_at, &buckets);
    refuses_damage(&file, usize::from(position));
    restores(&buckets, u64::from(position) << 20);
    Outcome::accepted_if(!buckets.is_empty())
}

fn encodes_to_the_same(file: &[u8], saved_at: &ClockReading, buckets: &[SavedBucket]) {
    let mut encoded = Vec::new();
    encode(saved_at, buckets.iter().copied(), &mut encoded).expect("a vector can be written");
    if saved_at.boottime_offset.is_some() {
        assert_eq!(encoded, file);
    }
    let (again_at, again) = decode(&mut &*encoded).expect("it was just written");
    assert_eq!((&again_at, &*again), (saved_at, buckets));
}

fn refuses_damage(file: &[u8], position: usize) {
    for damaged in damaged(file, position) {
        assert!(decode(&mut &*damaged).is_err(), "damage is accepted: {}", const_hex::encode(damaged));
    }
}

fn restores(buckets: &[SavedBucket], elapsed: u64) {
    let buckets = &buckets[..buckets.len().min(MAX_RESTORED)];
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let restored = allocator.restore(&limiter, buckets.iter().copied(), elapsed, NOW);
    let left = |bucket: &&SavedBucket| bucket.debt > elapsed;
    assert_eq!(restored, buckets.iter().filter(left).count());
    let mut by_id: HashMap<_, Vec<&SavedBucket>> = HashMap::new();
    for bucket in buckets.iter().filter(left) {
        by_id.entry(bucket.id.0).or_default().push(bucket);
    }
    let mut allocation = allocator.begin(&limiter);
    let mut slots = Vec::new();
    // The first snapshot finds the bucket of each key.
    for same_id in by_id.values() {
        if let [SavedBucket { id, rate, debt }] = same_id[..] {
            let slot = allocation.assign(|| *id, None, *rate).expect("a free slot");
            slots.push((slot, *rate, debt - elapsed));
        }
    }
    let _pending = allocation.commit();
    for (slot, rate, debt) in slots {
        let charge = [Charge { slot, rate, shadow: false }];
        let Charged::Admitted(report) = limiter.charge(&charge, NOW, 0) else {
            panic!("a balance cannot be read");
        };
        let balance = report.limit.expect("a limit").balance;
        assert_eq!(balance.reset, debt);
        assert_eq!(u64::from(balance.remaining), (rate.capacity() - debt) / rate.period());
        assert!(balance.remaining <= rate.burst());
    }
}
