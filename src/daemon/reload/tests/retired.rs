//! Replaced snapshots are freed, regardless of the outcomes of the reloads in between.

use std::sync::Weak;

use super::*;

/// Accepted reloads; each retires a snapshot.
const RELOADS: u64 = 8;

impl Fixture {
    /// The worker loads the current snapshot and passes the epoch.
    fn follow(&mut self, epoch: u64) -> Weak<Snapshot> {
        self.wait_for_epoch(epoch);
        let current = Arc::downgrade(self.worker.load_published().expect("a snapshot").snapshot());
        self.worker.passed.send_replace(epoch);
        current
    }

    /// Waits until the reload thread has finished all earlier requests.
    fn finish(&self) {
        let (reply, checked) = oneshot::channel();
        self.trigger.send(Trigger::Check(CheckRequest { source: None, reply })).expect("sent");
        let _ = self.wait(checked).expect("an answer");
    }
}

#[test]
fn replaced_snapshots_are_freed_once_every_worker_has_passed() {
    let mut fixture = Fixture::new();
    let mut current = fixture.follow(1);
    let mut replaced: Vec<Weak<Snapshot>> = Vec::new();
    for epoch in 2..2 + RELOADS {
        // In turn: accepted, forced, and after one that the guard has refused.
        if epoch % 3 == 0 {
            replace(&fixture.source(), 0);
            let refused = fixture.request(false, 1);
            assert!(fixture.wait(refused).expect("an answer").result.is_err());
        }
        replace(&fixture.source(), epoch as u32);
        let answer = fixture.request(epoch % 3 == 1, 1);
        fixture.wait_for_epoch(epoch);
        assert!(current.upgrade().is_some(), "the worker still uses it");
        replaced.push(std::mem::replace(&mut current, fixture.follow(epoch)));
        assert_eq!(fixture.answer(answer).1, epoch);
        // The reload thread has dropped its own reference as well.
        fixture.finish();
        let alive = replaced.iter().filter(|snapshot| snapshot.strong_count() > 0).count();
        assert_eq!(alive, 0, "of {} replaced snapshots", replaced.len());
        assert!(current.upgrade().is_some());
    }
    assert_eq!(replaced.len() as u64, RELOADS);
}
