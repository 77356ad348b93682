//! Snapshots that have been replaced are freed: all of them, whatever the reloads in between come
//! to.

use std::sync::Weak;

use super::*;

/// Reloads; each leaves a snapshot behind.
const RELOADS: u64 = 8;

impl Fixture {
    /// The worker takes what is current, and passes the epoch.
    fn follow(&mut self, epoch: u64) -> Weak<Snapshot> {
        self.swapped(epoch);
        let current = Arc::downgrade(self.worker.load_arc().expect("a snapshot"));
        self.worker.passed.send_replace(epoch);
        current
    }

    /// Returns when the reload thread has finished whatever was asked before.
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
        // In turn: accepted as it is, forced, and after one that the guard has refused.
        if epoch % 3 == 0 {
            replace(&fixture.source(), 0);
            let refused = fixture.ask(false, 1);
            assert!(fixture.wait(refused).expect("an answer").result.is_err());
        }
        replace(&fixture.source(), epoch as u32);
        let answer = fixture.ask(epoch % 3 == 1, 1);
        fixture.swapped(epoch);
        assert!(current.upgrade().is_some(), "the worker has not taken the new snapshot yet");
        replaced.push(std::mem::replace(&mut current, fixture.follow(epoch)));
        assert_eq!(fixture.answer(answer).1, epoch);
        // What the reload keeps until it has been acknowledged is gone as well.
        fixture.finish();
        let alive = replaced.iter().filter(|snapshot| snapshot.strong_count() > 0).count();
        assert_eq!(alive, 0, "of {} replaced snapshots", replaced.len());
        assert!(current.upgrade().is_some());
    }
    assert_eq!(replaced.len() as u64, RELOADS);
}
