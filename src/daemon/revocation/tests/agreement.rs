//! What a source says of revocations, over loads, restarts and disks that fail.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const WEEK: Retention = Retention::For(Duration::from_secs(7 * 86_400));

/// A source of two keys that says `status` of k0; k1 is active.
fn source(generation: u64, status: Status) -> Arc<Snapshot> {
    snapshot(2, generation, move |number| if number == 0 { status } else { Status::Active })
}

/// The list in `directory`, with k0 revoked.
fn revoked(directory: &TempDir) -> (Revocations, Publisher) {
    let (revocations, publisher) = open(directory);
    drop(revocations.publish(&publisher, source(1, Status::Active)));
    revocations.revoke(key(0), 0).expect("revoked");
    (revocations, publisher)
}

/// Loads a source as a reload does: published, and then settled.
fn load(revocations: &Revocations, publisher: &Publisher, next: Arc<Snapshot>) -> (usize, usize) {
    drop(revocations.publish(publisher, Arc::clone(&next)));
    let settled = reconcile(revocations, &next, WEEK);
    let is_listed = !revocations.entries().is_empty();
    assert_eq!(is_revoked(publisher, 0), is_listed || settled.0 > 0, "it stays revoked");
    settled
}

fn pass(revocations: &mut Revocations, time: Duration) {
    revocations.clock = revocations.clock.after(time);
}

fn says(revocations: &Revocations) -> Option<SourceStatus> {
    revocations.entries()[0].1.source.map(|source| source.says)
}

#[test]
fn entry_is_dropped_once_the_source_has_agreed_for_the_whole_time() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    assert_eq!(load(&revocations, &publisher, source(2, Status::Revoked)), (0, 0));
    let since = revocations.entries()[0].1.agreed_since().expect("it agrees");
    pass(&mut revocations, 6 * DAY);
    assert_eq!(load(&revocations, &publisher, source(3, Status::Revoked)), (0, 0));
    assert_eq!(revocations.entries()[0].1.agreed_since(), Some(since));
    pass(&mut revocations, DAY);
    assert_eq!(load(&revocations, &publisher, source(4, Status::Revoked)), (1, 0));
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), [], "durably");
}

#[test]
fn active_source_after_an_agreement_is_a_conflict_and_loses() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    assert_eq!(load(&revocations, &publisher, source(2, Status::Active)), (0, 0), "it has never agreed");
    assert_eq!(says(&revocations), None);
    load(&revocations, &publisher, source(3, Status::Revoked));
    pass(&mut revocations, 8 * DAY);
    // The week is over, and a load that disagrees is the first since.
    for generation in 4..6 {
        assert_eq!(load(&revocations, &publisher, source(generation, Status::Active)), (0, 1));
        let record = revocations.entries()[0].1;
        assert!(record.conflict_since().is_some() && record.agreed_since().is_none());
    }
    // It begins anew with the next agreement.
    assert_eq!(load(&revocations, &publisher, source(6, Status::Revoked)), (0, 0));
    pass(&mut revocations, 6 * DAY);
    assert_eq!(load(&revocations, &publisher, source(7, Status::Revoked)), (0, 0));
    pass(&mut revocations, DAY);
    assert_eq!(load(&revocations, &publisher, source(8, Status::Revoked)), (1, 0));
}

#[test]
fn missing_and_disabled_rows_begin_the_time_anew_without_a_conflict() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    revocations.revoke(Target::Owner("acme".into()), 0).expect("revoked");
    let all = |status| snapshot(2, 2, move |_| status);
    for interruption in [all(Status::Disabled), snapshot(0, 3, |_| Status::Active)] {
        assert_eq!(reconcile(&revocations, &all(Status::Revoked), WEEK), (0, 0));
        pass(&mut revocations, 8 * DAY);
        assert_eq!(reconcile(&revocations, &interruption, WEEK), (0, 0));
        assert!(revocations.entries().iter().all(|(_, record)| record.agreed_since().is_none()));
        assert_eq!(reconcile(&revocations, &all(Status::Revoked), WEEK), (0, 0));
        pass(&mut revocations, DAY);
        assert_eq!(reconcile(&revocations, &all(Status::Revoked), WEEK), (0, 0));
    }
    // An owner with a new key that is active.
    assert_eq!(reconcile(&revocations, &source(4, Status::Revoked), WEEK), (0, 1));
    assert_eq!(revocations.entries()[0].0, Target::Owner("acme".into()), "what is contradicted comes first");
    assert_eq!(publisher.reader().current().expect("published").generation(), 1);
}

#[test]
fn agreement_and_conflict_outlive_restarts() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    load(&revocations, &publisher, source(2, Status::Revoked));
    pass(&mut revocations, 6 * DAY);
    let entries = revocations.entries();
    drop((revocations, publisher));

    // As if six days had passed: the mark has the clock, and the test's was another.
    let (mut revocations, publisher) = open(&directory);
    assert_eq!(revocations.entries(), entries);
    pass(&mut revocations, 6 * DAY);
    assert_eq!(load(&revocations, &publisher, source(1, Status::Revoked)), (0, 0));
    assert_eq!(load(&revocations, &publisher, source(2, Status::Active)), (0, 1));
    drop((revocations, publisher));

    let (revocations, publisher) = open(&directory);
    assert_eq!(says(&revocations), Some(SourceStatus::Active));
    assert_eq!(load(&revocations, &publisher, source(1, Status::Active)), (0, 1), "no other news");
    drop((revocations, publisher));
}

#[test]
fn keep_of_zero_drops_with_the_first_load_and_forever_never() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    let agreed = source(2, Status::Revoked);
    drop(revocations.publish(&publisher, Arc::clone(&agreed)));
    assert_eq!(reconcile(&revocations, &agreed, Retention::Forever), (0, 0));
    pass(&mut revocations, 10_000 * DAY);
    assert_eq!(reconcile(&revocations, &agreed, Retention::Forever), (0, 0));
    assert_eq!(reconcile(&revocations, &agreed, Retention::For(Duration::ZERO)), (1, 0));
    revocations.revoke(key(0), 0).expect("revoked");
    assert_eq!(
        reconcile(&revocations, &agreed, Retention::For(Duration::ZERO)),
        (1, 0),
        "without a line before"
    );
    assert_eq!(revocations.entries(), []);
}

#[test]
fn settlement_that_cannot_be_written_keeps_the_entries() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let path = block(&directory);
    let agreed = source(2, Status::Revoked);
    drop(revocations.publish(&publisher, Arc::clone(&agreed)));
    assert_eq!(reconcile(&revocations, &agreed, Retention::For(Duration::ZERO)), (0, 0));
    assert_eq!(revocations.entries().len(), 1);
    fs::remove_dir(&path).expect("out of the way");
    wait_until_durable(&revocations);
    let entries = revocations.entries();
    drop((revocations, publisher));
    let (revocations, _publisher) = open(&directory);
    assert_eq!(revocations.entries(), entries, "on the disk too");
    assert_eq!(
        reconcile(&revocations, &agreed, Retention::For(Duration::ZERO)),
        (1, 0),
        "with the next load"
    );
}

/// A revocation while the entry is being dropped is a new one, in memory and on the disk.
#[test]
fn entry_that_is_revoked_while_it_is_dropped_stays() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let agreed = source(2, Status::Revoked);
    drop(revocations.publish(&publisher, Arc::clone(&agreed)));
    let (_, due) = revocations.compare(&agreed, Retention::For(Duration::ZERO));
    assert_eq!(due, [(key(0), 1)]);
    let change = revocations.revoke(key(0), 5).expect("revoked");
    assert!(!change.already && change.durability == Durability::Durable);
    assert_eq!(revocations.drop_durably(&agreed, due), []);
    drop(revocations.publish(&publisher, source(3, Status::Active)));
    assert!(is_revoked(&publisher, 0));
    let entries = revocations.entries();
    assert_eq!((entries.len(), entries[0].1.by_uid), (1, 5));
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries, "the line that drops the old entry does not follow it");
}

#[test]
fn entry_that_is_taken_back_and_revoked_while_it_is_dropped_stays() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let agreed = source(2, Status::Revoked);
    drop(revocations.publish(&publisher, Arc::clone(&agreed)));
    let (_, due) = revocations.compare(&agreed, Retention::For(Duration::ZERO));
    revocations.unrevoke(key(0), 5).expect("taken back");
    revocations.revoke(key(0), 5).expect("revoked");
    assert_eq!(revocations.drop_durably(&agreed, due), []);
    let entries = revocations.entries();
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}
