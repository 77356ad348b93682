//! Calendar windows: what is spent in one, and what a change of the clock, of the rule or of the
//! process leaves of it.

use jiff::tz::{TimeZone, offset};

use super::*;

const HOUR: u32 = 3_600;
const DAY: u32 = 24 * HOUR;

/// 2026-11-30T00:00:00Z, a Monday.
const MIDNIGHT: u32 = 1_795_996_800;

fn window(count: u64, period: Period, overdraft: u32) -> Rule {
    Rule::window(count, period, overdraft).expect("in range")
}

fn day(count: u64) -> Rule {
    window(count, Period::Day, 0)
}

/// The moment at a Unix second. The other clock stands still.
fn unix(unix: u32) -> Now {
    Now { nanoseconds: 1, unix, millisecond: 0 }
}

fn charge_at(limiter: &Limiter, bucket: BucketRef, second: u32, cost: u32) -> Outcome {
    limiter.charge(&costing(&[enforced(bucket)], cost), unix(second), None)
}

fn is_admitted(limiter: &Limiter, bucket: BucketRef, second: u32, cost: u32) -> bool {
    matches!(charge_at(limiter, bucket, second, cost), Outcome::Admitted(_))
}

fn balance_at(limiter: &Limiter, bucket: BucketRef, second: u32) -> Balance {
    charge_at(limiter, bucket, second, 0).report().and_then(|report| report.limit).expect("a limit").balance
}

fn left(limiter: &Limiter, bucket: BucketRef, second: u32) -> i64 {
    balance_at(limiter, bucket, second).available
}

/// Reloads to the limit `a` with this rule, or to nothing, at a Unix second.
fn reload_at(
    limiter: &Limiter,
    allocator: &mut SlotAllocator,
    previous: Option<BucketRef>,
    wanted: Option<Rule>,
    second: u32,
) -> Option<BucketRef> {
    let mut allocation = allocator.begin(limiter);
    let bucket = wanted.map(|rule| BucketRef {
        slot: allocation.assign(|| id("a"), previous, rule).expect("a free slot"),
        rule,
    });
    let pending = allocation.commit();
    let old = previous.into_iter().map(|bucket| (bucket, || id("a")));
    allocator.reclaim(limiter, pending, old, unix(second));
    bucket
}

fn new_window(rule: Rule, second: u32) -> (Limiter, SlotAllocator, BucketRef) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let bucket = reload_at(&limiter, &mut allocator, None, Some(rule), second).expect("it is wanted");
    (limiter, allocator, bucket)
}

#[test]
fn each_window_admits_its_count() {
    let (limiter, _, bucket) = new_window(day(3), MIDNIGHT);
    for today in [MIDNIGHT, MIDNIGHT + DAY, MIDNIGHT + 9 * DAY] {
        assert_eq!(left(&limiter, bucket, today), 3);
        assert!(is_admitted(&limiter, bucket, today, 1) && is_admitted(&limiter, bucket, today + 9, 2));
        let Outcome::Refused(report) = charge_at(&limiter, bucket, today + DAY - 1, 1) else {
            panic!("the window is spent")
        };
        let balance = report.limit.expect("a limit").balance;
        assert_eq!((balance.available, balance.retry_after, balance.reset), (0, SECOND, SECOND));
        assert!(matches!(charge_at(&limiter, bucket, today, 4), Outcome::ExceedsBurst(_)));
    }
}

#[test]
fn clock_that_is_set_back_starts_no_window() {
    let (limiter, _, bucket) = new_window(day(3), MIDNIGHT);
    assert!(is_admitted(&limiter, bucket, MIDNIGHT + 5, 2));
    for back in [1, DAY, 400 * DAY] {
        assert_eq!(left(&limiter, bucket, MIDNIGHT - back), 1);
    }
    assert!(is_admitted(&limiter, bucket, MIDNIGHT + DAY, 3));
    assert!(!is_admitted(&limiter, bucket, MIDNIGHT + DAY - 1, 1), "back before the midnight it has seen");
    assert_eq!(balance_at(&limiter, bucket, MIDNIGHT + DAY - 1).reset, u64::from(DAY + 1) * SECOND);
    assert!(is_admitted(&limiter, bucket, MIDNIGHT + 2 * DAY, 3));
}

#[test]
fn change_of_the_period_keeps_what_was_spent() {
    let month = window(10, Period::Month(1), 0);
    // Not on the first day of the month, on which both windows start.
    let noon = MIDNIGHT + 3 * DAY + 12 * HOUR;
    let (limiter, mut allocator, first) = new_window(month, noon);
    assert!(is_admitted(&limiter, first, noon, 6));
    let second = reload_at(&limiter, &mut allocator, Some(first), Some(day(8)), noon).expect("it is wanted");
    assert_eq!(left(&limiter, second, noon), 2, "it counts in the day");
    assert_eq!(allocator.retained(), 1, "the month is not over");
    assert!(is_admitted(&limiter, second, noon, 1));
    assert_eq!(left(&limiter, second, noon + DAY), 8);
    assert!(is_admitted(&limiter, second, noon + DAY, 1));
    let third = reload_at(&limiter, &mut allocator, Some(second), Some(month), noon + DAY).expect("wanted");
    assert_eq!(left(&limiter, third, noon + DAY), 4, "as before the changes");
    assert_eq!((allocator.in_use(), allocator.retained()), (1, 0));
    assert_eq!(left(&limiter, third, noon + 31 * DAY), 10);
}

#[test]
fn change_of_the_count_keeps_the_slot_and_what_was_spent() {
    let (limiter, mut allocator, bucket) = new_window(day(5), MIDNIGHT);
    assert!(is_admitted(&limiter, bucket, MIDNIGHT, 4));
    let reload = |allocator: &mut SlotAllocator, old, count| {
        reload_at(&limiter, allocator, Some(old), Some(day(count)), MIDNIGHT).expect("it is wanted")
    };
    let smaller = reload(&mut allocator, bucket, 2);
    assert_eq!((smaller.slot, left(&limiter, smaller, MIDNIGHT)), (bucket.slot, -2));
    assert!(!is_admitted(&limiter, smaller, MIDNIGHT, 1));
    let debit = costing(&[enforced(smaller)], 1);
    let mut balances = LimitBalances::new();
    limiter.debit(&debit, unix(MIDNIGHT), Some(&mut balances));
    assert_eq!((balances[0].changed, balances[0].balance.available), (0, -2), "it is below the floor");
    let larger = reload(&mut allocator, smaller, 9);
    assert_eq!((larger.slot, left(&limiter, larger, MIDNIGHT)), (bucket.slot, 5));
}

#[test]
fn refund_returns_only_what_was_spent_in_the_window() {
    let (limiter, _, bucket) = new_window(day(5), MIDNIGHT);
    let refund = |second| {
        let mut balances = LimitBalances::new();
        limiter.refund(&costing(&[enforced(bucket)], 4), unix(second), Some(&mut balances));
        (balances[0].changed, balances[0].balance.available)
    };
    assert!(is_admitted(&limiter, bucket, MIDNIGHT, 5));
    assert_eq!(refund(MIDNIGHT), (4, 4));
    assert_eq!(refund(MIDNIGHT), (1, 5));
    assert!(is_admitted(&limiter, bucket, MIDNIGHT, 5));
    assert_eq!(refund(MIDNIGHT + DAY), (0, 5), "of the day before");
    assert!(is_admitted(&limiter, bucket, MIDNIGHT + DAY, 5));
    assert!(!is_admitted(&limiter, bucket, MIDNIGHT + DAY, 1));
}

#[test]
fn window_is_retained_until_it_ends() {
    let (limiter, mut allocator, bucket) = new_window(day(5), MIDNIGHT);
    assert!(is_admitted(&limiter, bucket, MIDNIGHT, 5));
    assert_eq!(reload_at(&limiter, &mut allocator, Some(bucket), None, MIDNIGHT), None);
    assert_eq!((allocator.in_use(), allocator.retained()), (1, 1));
    let added = reload_at(&limiter, &mut allocator, None, Some(day(6)), MIDNIGHT + 1).expect("it is wanted");
    assert_eq!(left(&limiter, added, MIDNIGHT + 1), 1);
    assert_eq!(reload_at(&limiter, &mut allocator, Some(added), None, MIDNIGHT + 2), None);
    assert_eq!(reload_at(&limiter, &mut allocator, None, None, MIDNIGHT + DAY), None);
    assert_eq!((allocator.in_use(), allocator.retained()), (0, 0));
}

#[test]
fn restart_keeps_what_was_spent_in_the_window() {
    let (limiter, allocator, bucket) = new_window(day(5), MIDNIGHT);
    assert!(is_admitted(&limiter, bucket, MIDNIGHT + HOUR, 4));
    let live = || [(bucket, || id("a"))].into_iter();
    let scan = allocator.scan_balances(&limiter, live(), unix(MIDNIGHT + HOUR));
    let saved: Vec<SavedLimit> = scan.at(unix(MIDNIGHT + HOUR)).collect();
    let balance = SavedBalance::Window { start: MIDNIGHT / 900, spent: 4 };
    assert_eq!(saved, [SavedLimit { id: id("a"), rule: day(5), is_former: false, balance }]);
    let calendar = limiter.latest_unix();
    assert_eq!(calendar, MIDNIGHT + HOUR);

    for (second, elapsed, expected) in
        [(MIDNIGHT + 2 * HOUR, 1 << 57, 1), (MIDNIGHT - 9 * DAY, 0, 1), (MIDNIGHT + DAY, 0, 5)]
    {
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        limiter.advance_calendar(calendar);
        let restored = allocator.restore(&limiter, saved.clone(), elapsed, unix(second));
        assert_eq!(restored, usize::from(expected < 5));
        let added = reload_at(&limiter, &mut allocator, None, Some(day(5)), second).expect("it is wanted");
        assert_eq!(left(&limiter, added, second), expected, "{second}");
    }
}

/// Charges a window in one time zone, and changes to another one. Returns what a refusal then states
/// in seconds; `None` if nothing is refused.
fn wait_after_a_change(period: Period, [old, new]: [i8; 2], charged: u32, asked: u32) -> Option<u32> {
    let (limiter, _, bucket) = new_window(window(5, period, 0), charged);
    limiter.set_time_zone(TimeZone::fixed(offset(old)));
    assert!(is_admitted(&limiter, bucket, charged, 5));
    limiter.set_time_zone(TimeZone::fixed(offset(new)));
    let refused = match charge_at(&limiter, bucket, asked, 5) {
        Outcome::Refused(report) => report.limit.expect("a limit").balance,
        Outcome::Admitted(_) => return None,
        other => panic!("neither admitted nor refused: {other:?}"),
    };
    assert_eq!(refused.reset, refused.retry_after);
    let wait = (refused.retry_after / SECOND) as u32;
    // It is neither too early nor too late.
    assert!(!is_admitted(&limiter, bucket, asked + wait - 1, 1), "{period:?} {old} {new} {charged} {asked}");
    assert!(is_admitted(&limiter, bucket, asked + wait, 5), "{period:?} {old} {new} {charged} {asked}");
    Some(wait)
}

#[test]
fn quota_says_when_it_starts_anew_after_a_change_of_the_time_zone() {
    const MONTH: Period = Period::Month(1);
    let december = MIDNIGHT + DAY;
    // In the zone 14 hours ahead, the month ends before it does in UTC.
    let noon = MIDNIGHT + 12 * HOUR;
    assert_eq!(wait_after_a_change(MONTH, [0, 14], MIDNIGHT, MIDNIGHT + 9 * HOUR), Some(HOUR));
    assert_eq!(wait_after_a_change(MONTH, [0, 14], MIDNIGHT, noon), None, "its December has begun");
    // What is spent in that December counts until the December of UTC ends.
    assert_eq!(wait_after_a_change(MONTH, [14, 0], noon, noon), Some(december + 31 * DAY - noon));
    assert_eq!(wait_after_a_change(MONTH, [14, 0], noon, december), Some(31 * DAY));
    // A day that began at 10:00 in UTC does not end at midnight, 14 hours later.
    assert_eq!(wait_after_a_change(Period::Day, [14, 0], noon, noon), Some(36 * HOUR));
    assert_eq!(wait_after_a_change(Period::Day, [0, -5], MIDNIGHT, MIDNIGHT + HOUR), Some(28 * HOUR));
    assert_eq!(wait_after_a_change(Period::Day, [0, 2], MIDNIGHT, noon), Some(10 * HOUR));
}

/// A window in use ends at most as much early as the zones differ, and less than a window late.
#[test]
fn change_of_the_time_zone_prolongs_a_window_by_less_than_another_one() {
    let periods = [
        (Period::Hour, HOUR),
        (Period::Day, DAY),
        (Period::Week(1), 7 * DAY),
        (Period::Week(4), 7 * DAY),
        (Period::Month(1), 31 * DAY),
        (Period::Month(31), 31 * DAY),
    ];
    let mut refusals = 0;
    for (charged, after) in [(0, 0), (3, 1), (9, 20), (100, 30), (200, 0), (700, 5)] {
        for old in [-12, -5, 0, 9, 14] {
            for new in [-12, -1, 0, 5, 14] {
                for (period, longest) in periods {
                    let charged = MIDNIGHT + charged * HOUR + 60;
                    let asked = charged + after * HOUR;
                    let unchanged = wait_after_a_change(period, [old; 2], charged, charged).expect("refused");
                    let wait = wait_after_a_change(period, [old, new], charged, asked);
                    refusals += u32::from(wait.is_some());
                    let end = asked + wait.unwrap_or(0);
                    let difference = u32::from(old.abs_diff(new)) * HOUR;
                    assert!(end >= charged + unchanged.saturating_sub(difference), "{period:?} {old} {new}");
                    let latest = asked.max(charged + unchanged + longest);
                    assert!(end <= latest, "{period:?} {old} {new} {charged}");
                }
            }
        }
    }
    assert!(refusals > 100, "{refusals}");
}
