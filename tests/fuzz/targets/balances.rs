//! The file of saved balances.
//!
//! * What decodes encodes to the same bytes.
//! * A file with one changed bit, and a file that ends early, are refused.
//! * A restored limit has the balance that was saved, of a bucket refilled for the time away, and of a
//!   window only until the window ends. Several balances of one limit never make one above the limit.
//!
//! The first byte of the input decides whether the checksum is corrected, so that inputs get behind
//! it.

use std::collections::HashMap;

use super::Outcome;
use crate::civil::{ZONES, is_new};
use crate::input::Input;
use crate::limiter::persist::{SavedBalances, SavedLimit, decode, encode};
use crate::limiter::{
    Balance, Charge, Limiter, NEVER, Outcome as Charged, Rule, SavedBalance, SlotAllocator,
};
use crate::mutation::damaged;
use crate::now::Now;

/// When balances are restored: the daemon has just started, in a time zone that is UTC.
const NOW: Now = Now { nanoseconds: 1, unix: 1_800_000_000, millisecond: 0 };

/// Seconds in the unit of the start of a window.
const SECONDS_PER_QUARTER: i64 = 900;

/// Most records that the decoder reserves memory for, whatever a file says.
const MAX_RESERVED_RECORDS: usize = 1 << 12;

/// The size of a record.
const RECORD_BYTES: usize = 49;

/// The length of the checksum at the end.
const CHECKSUM_BYTES: usize = 4;

/// Most balances that are restored: as many as the limiter of the targets has slots.
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
    let Ok(saved) = decode(&mut &*file) else { return Outcome::Refused };
    // Reserved, or grown by doubling.
    assert!(saved.limits.capacity() <= MAX_RESERVED_RECORDS.max(2 * file.len() / RECORD_BYTES));
    encodes_to_the_same(&file, &saved);
    refuses_damage(&file, usize::from(position));
    restores(&saved, u64::from(position) << 20);
    Outcome::accepted_if(!saved.limits.is_empty())
}

fn encodes_to_the_same(file: &[u8], saved: &SavedBalances) {
    let mut encoded = Vec::new();
    encode(&saved.saved_at, saved.calendar, saved.limits.iter().copied(), &mut encoded)
        .expect("a vector can be written");
    assert_eq!(encoded, file);
    assert_eq!(decode(&mut &*encoded).expect("it was just written"), *saved);
}

fn refuses_damage(file: &[u8], position: usize) {
    for damaged in damaged(file, position) {
        assert!(decode(&mut &*damaged).is_err(), "damage is accepted: {}", const_hex::encode(damaged));
    }
}

/// What is available of a restored limit, and the time until nothing is spent; `None` if nothing is.
fn expected(limit: &SavedLimit, unix: u32, elapsed: u64) -> Option<(i128, u64)> {
    match (limit.rule, limit.balance) {
        (Rule::Bucket { rate, .. }, SavedBalance::Bucket { debt }) => {
            let scale = i128::from(rate.scale().get());
            let debt = i128::from(debt) - i128::from(elapsed) * scale;
            let level = i128::from(rate.period().get()) * i128::from(rate.burst()) - debt;
            let available = level.div_euclid(rate.period().get().into());
            (debt > 0).then_some((available, ((debt + scale - 1) / scale) as u64))
        }
        (Rule::Window { count, period, .. }, SavedBalance::Window { start, spent }) => {
            let (current, end) = ZONES[0].window(period.number(), unix.into());
            let is_over = is_new(period.number(), i64::from(start) * SECONDS_PER_QUARTER, current);
            let reset = (end - i64::from(NOW.unix)).max(0) as u64 * 1_000_000_000;
            (!is_over && spent > 0).then_some((i128::from(count) - i128::from(spent), reset))
        }
        (Rule::Credits { granted, .. }, SavedBalance::Credits { spent }) => {
            (spent > 0).then_some((i128::from(granted) - i128::from(spent), NEVER))
        }
        other => panic!("a balance of another kind: {other:?}"),
    }
}

fn restores(saved: &SavedBalances, elapsed: u64) {
    let limits = &saved.limits[..saved.limits.len().min(MAX_RESTORED)];
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    limiter.advance_calendar(saved.calendar);
    let unix = saved.calendar.max(NOW.unix);
    let restored = allocator.restore(&limiter, limits.iter().copied(), elapsed, NOW);
    let left: Vec<&SavedLimit> =
        limits.iter().filter(|limit| expected(limit, unix, elapsed).is_some()).collect();
    assert_eq!(restored, left.len());
    let mut by_id: HashMap<_, Vec<&SavedLimit>> = HashMap::new();
    for limit in left {
        by_id.entry(limit.id.0).or_default().push(limit);
    }
    let mut allocation = allocator.begin(&limiter);
    let mut slots = Vec::new();
    // The first snapshot finds the balance of each limit.
    for same_id in by_id.values() {
        let [first, others @ ..] = &same_id[..] else { continue };
        let slot = allocation.assign(|| first.id, None, first.rule).expect("a free slot");
        slots.push((slot, *first, others.is_empty()));
    }
    let _pending = allocation.commit();
    for (slot, limit, is_only) in slots {
        let charge = [Charge { slot, rule: limit.rule, cost: 0, shadow: false }];
        let Charged::Admitted(report) = limiter.charge(&charge, NOW, None) else {
            panic!("a balance cannot be read");
        };
        let Balance { available, reset, .. } = report.limit.expect("a limit").balance;
        let expected = expected(limit, unix, elapsed).expect("something is spent");
        assert!(!is_only || (i128::from(available), reset) == expected, "{limit:?} {available} {reset}");
        assert!(i128::from(available) <= limit.rule.limit().into());
    }
}
