//! The time zone of calendar windows comes into force with the keys that were read by it.

use jiff::tz::{Offset, TimeZone};

use super::*;
use crate::revocation::Target;
use keyward_engine::limiter::{Charge, Rule};
use keyward_engine::now::Now;

/// Later than any clock that the reload thread reads: 03:33:20 in UTC.
const LATER: Now = Now { nanoseconds: 1, unix: 2_000_000_000, millisecond: 0 };

/// Seconds until the next midnight in UTC.
const TO_MIDNIGHT: u64 = 73_600;

impl Fixture {
    /// Replaces the export by one with two keys that have a quota a day.
    fn export_quotas(&self, owner: &str) {
        let rows: String = (0..2).map(|number| format!("{number:064x},k{number},{owner},9/day\n")).collect();
        replace_by(&self.source(), &format!("key_hash,key_id,owner,limits\n{rows}"));
    }

    fn configure_time_zone(&self, hours_east: i8) {
        let time_zone = TimeZone::fixed(Offset::constant(hours_east));
        let policy = GlobalPolicy { time_zone, ..GlobalPolicy::default() };
        self.configured.lock().expect("not poisoned").global_policy = Arc::new(policy);
    }

    /// Seconds from [`LATER`] until a quota of the snapshot in force begins anew.
    fn seconds_to_midnight(&mut self) -> u64 {
        let snapshot = Arc::clone(self.worker.load_published().expect("keys").snapshot());
        let (limit, _) = snapshot.buckets().next().expect("a quota");
        let [bucket] = *limit.as_ref() else { panic!("one bucket") };
        assert!(matches!(bucket.rule, Rule::Window { .. }));
        let charge = Charge { slot: bucket.slot, rule: bucket.rule, cost: 1, shadow: false };
        let report = self.limiter.charge(&[charge], LATER, None).report();
        report.and_then(|report| report.limit).expect("a balance").balance.reset / 1_000_000_000
    }
}

#[test]
fn accepted_reload_changes_the_time_zone() {
    for hours_east in [0, 5, -3] {
        // A quota that was used in another zone would begin anew later.
        let mut fixture = Fixture::new();
        fixture.export_quotas("acme");
        fixture.configure_time_zone(hours_east);
        let answer = fixture.request(false, 1);
        fixture.pass(2);
        assert_eq!(fixture.answer(answer).1, 2);
        let expected = TO_MIDNIGHT.checked_add_signed(-i64::from(hours_east) * 3_600).expect("in range");
        assert_eq!(fixture.seconds_to_midnight(), expected % 86_400, "{hours_east}");
    }
}

/// The last thing that can refuse keys is a revocation that they would lift, and that is
/// acknowledged after the guard has compared them.
#[test]
fn refused_reload_does_not_change_the_time_zone() {
    let mut fixture = Fixture::new();
    fixture.export_quotas("acme");
    let answer = fixture.request(false, 1);
    fixture.pass(2);
    assert_eq!(fixture.answer(answer).1, 2);
    assert_eq!(fixture.seconds_to_midnight(), TO_MIDNIGHT);

    fixture.configure_time_zone(5);
    fixture.export_quotas("bolt");
    let allocator = Arc::clone(&fixture.allocator);
    let allocation = allocator.lock().expect("not poisoned");
    let answer = fixture.request(false, 1);
    let start = Instant::now();
    while !fixture.revocations.is_watching_changes() {
        assert!(start.elapsed() < TIMEOUT, "no reload");
        thread::yield_now();
    }
    fixture.revocations.revoke(Target::Owner("acme".into()), 0).expect("revokes");
    drop(allocation);
    let outcome = fixture.wait(answer).expect("an answer");
    assert!(matches!(outcome.result, Err(ReloadError::Guarded { .. })), "{:?}", outcome.result);
    assert_eq!(fixture.seconds_to_midnight(), TO_MIDNIGHT);
}
