//! Words of full buckets are renewed although nothing saves them: there is no state directory for
//! balances.

use super::*;
use keyward_engine::limiter::{Charge, Outcome as Charged};
use keyward_engine::now::Now;

/// Nanoseconds until a word at the fastest rates wraps around.
const WRAP: u64 = (1 << 61) >> 14;

#[test]
fn full_bucket_does_not_wrap_around_without_a_state_directory() {
    let hour = Duration::from_secs(3_600);
    let mut fixture = Fixture::start(hour, Duration::ZERO, |_| Generations::open(None, 0));
    // The worker is never behind.
    fixture.worker.passed.send_replace(u64::MAX);
    let hash = "a".repeat(64);
    replace_by(&fixture.source(), &format!("key_hash,key_id,limits\n{hash},k,requests=9999991/s burst 3\n"));
    let answer = fixture.request(true, 1);
    fixture.answer(answer);
    let snapshot = Arc::clone(fixture.worker.load_published().expect("a snapshot").snapshot());
    let (bucket, _) = snapshot.buckets().next().expect("a limit");
    let [bucket] = *bucket.as_ref() else { panic!("one bucket") };
    let charge = |nanoseconds: u64, cost: u32| {
        let charge = Charge { slot: bucket.slot, rule: bucket.rule, cost, shadow: false };
        match fixture.limiter.charge(&[charge], Now { nanoseconds, ..Now::default() }, None) {
            Charged::Admitted(report) => report.limit.expect("a limit").balance.available,
            other => panic!("the bucket is full: {other:?}"),
        }
    };
    let start = fixture.limiter.latest_time() + 1_000;
    assert_eq!(charge(start, 3), 0);
    assert_eq!(charge(start + WRAP * 3 / 4, 0), 3);
    // The word is old now, and it is renewed before the next request is handled.
    let (reply, checked) = oneshot::channel();
    fixture.trigger.send(Trigger::Check(CheckRequest { source: None, reply })).expect("sent");
    let _ = fixture.wait(checked).expect("an answer");
    assert_eq!(charge(start + WRAP + 100, 0), 3, "as if it had just been charged");
}
