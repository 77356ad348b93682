//! The file of saved balances.
//!
//! * What decodes encodes to the same bytes.
//! * A file with one changed bit, and a file that ends early, are refused.
//! * A restored limit has the balance that was saved, of a bucket refilled for the time away, and of a
//!   window only until the window ends. All balances of a limit are restored, or none. Several of one
//!   limit never make one above the limit.
//!
//! The first byte of the input decides whether the checksum is corrected, so that inputs get behind
//! it.

use std::collections::HashMap;

use super::Outcome;
use crate::civil::{LAST, ZONES, is_new};
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

/// The Unix second at which a window starts anew that was used in the one that started at `used`.
fn end_of_use(period: u8, used: i64, current: i64) -> i64 {
    let zone = &ZONES[0];
    let (start, mut end) = zone.window(period, current);
    if start < used {
        // It is used in a window that has not begun yet, as if the clock had been set back.
        end = zone.window(period, used.min(LAST - 1)).1;
    }
    while end < LAST && !is_new(period, used, end) {
        end = zone.window(period, end).1;
    }
    end
}

/// What is available of a restored balance, and the time until nothing is spent.
fn expected(limit: &SavedLimit, unix: u32, elapsed: u64) -> (i128, u64) {
    match (limit.rule, limit.balance) {
        (Rule::Bucket { rate, .. }, SavedBalance::Bucket { debt }) => {
            let scale = i128::from(rate.scale().get());
            let debt = (i128::from(debt) - i128::from(elapsed) * scale).max(0);
            let level = i128::from(rate.period().get()) * i128::from(rate.burst()) - debt;
            let available = level.div_euclid(rate.period().get().into());
            (available, ((debt + scale - 1) / scale) as u64)
        }
        (Rule::Window { count, period, .. }, SavedBalance::Window { start, spent }) => {
            let (current, _) = ZONES[0].window(period.number(), unix.into());
            let used = i64::from(start) * SECONDS_PER_QUARTER;
            if spent == 0 || is_new(period.number(), used, current) {
                return (count.into(), 0);
            }
            let end = end_of_use(period.number(), used, unix.into());
            let reset = (end - i64::from(NOW.unix)).max(0) as u64 * 1_000_000_000;
            (i128::from(count) - i128::from(spent), reset)
        }
        (Rule::Credits { granted, .. }, SavedBalance::Credits { spent }) => {
            (i128::from(granted) - i128::from(spent), NEVER)
        }
        other => panic!("a balance of another kind: {other:?}"),
    }
}

/// Whether something is spent.
fn is_spent(limit: &SavedLimit, unix: u32, elapsed: u64) -> bool {
    match limit.balance {
        SavedBalance::Credits { spent } => spent > 0,
        SavedBalance::Bucket { .. } | SavedBalance::Window { .. } => expected(limit, unix, elapsed).1 > 0,
    }
}

fn restores(saved: &SavedBalances, elapsed: u64) {
    let limits = &saved.limits[..saved.limits.len().min(MAX_RESTORED)];
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    limiter.advance_calendar(saved.calendar);
    let unix = saved.calendar.max(NOW.unix);
    let restored = allocator.restore(&limiter, limits.iter().copied(), elapsed, NOW);
    let mut by_id: HashMap<_, Vec<&SavedLimit>> = HashMap::new();
    for limit in limits {
        by_id.entry(limit.id.0).or_default().push(limit);
    }
    by_id.retain(|_, same_id| same_id.iter().any(|limit| is_spent(limit, unix, elapsed)));
    assert_eq!(restored, by_id.values().map(Vec::len).sum::<usize>());
    let mut allocation = allocator.begin(&limiter);
    let mut slots = Vec::new();
    // The first snapshot finds the balance of each limit.
    for same_id in by_id.values() {
        // The rule that is in use, if there is one.
        let Some(first) = same_id.iter().min_by_key(|limit| limit.is_former) else { continue };
        let slot = allocation.assign(|| first.id, None, first.rule).expect("a free slot");
        let continues = same_id.iter().filter(|limit| !limit.is_former).count() == 1;
        slots.push((slot, *first, continues));
    }
    let _pending = allocation.commit();
    for (slot, limit, continues) in slots {
        let charge = [Charge { slot, rule: limit.rule, cost: 0, shadow: false }];
        let Charged::Admitted(report) = limiter.charge(&charge, NOW, None) else {
            panic!("a balance cannot be read");
        };
        let Balance { available, reset, .. } = report.limit.expect("a limit").balance;
        let expected = expected(limit, unix, elapsed);
        assert!(!continues || (i128::from(available), reset) == expected, "{limit:?} {available} {reset}");
        assert!(i128::from(available) <= limit.rule.limit().into());
    }
}
