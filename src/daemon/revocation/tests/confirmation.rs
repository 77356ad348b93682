//! Confirmation of revocations by the source, across loads, restarts and failing disks.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const WEEK: Retention = Retention::For(Duration::from_secs(7 * 86_400));

/// A source with two keys: k0 has `status`, and k1 is active.
fn source(generation: u64, status: Status) -> Arc<Snapshot> {
    snapshot(2, generation, move |number| if number == 0 { status } else { Status::Active })
}

/// The list in `directory`, with k0 revoked.
fn revoked(directory: &TempDir) -> (Revocations, Publisher) {
    let (revocations, publisher) = open(directory);
    revocations.mark_and_swap(source(1, Status::Active));
    revocations.revoke(key(0), 0).expect("revoked");
    (revocations, publisher)
}

/// Loads a source as a reload does: publishes it, and then reconciles the list.
fn load(revocations: &Revocations, publisher: &Publisher, next: Arc<Snapshot>) -> (usize, usize) {
    revocations.mark_and_swap(Arc::clone(&next));
    let result = reconcile(revocations, &next, WEEK);
    let is_listed = !revocations.entries().is_empty();
    assert_eq!(is_revoked(publisher, 0), is_listed || result.0 > 0, "it stays revoked");
    result
}

fn advance_clock(revocations: &mut Revocations, time: Duration) {
    revocations.clock = revocations.clock.after(time);
}

fn status(revocations: &Revocations) -> Option<SourceStatus> {
    revocations.entries()[0].1.source.map(|source| source.status)
}

#[test]
fn entry_is_dropped_once_the_source_has_confirmed_it_for_the_whole_time() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    assert_eq!(load(&revocations, &publisher, source(2, Status::Revoked)), (0, 0));
    let since = revocations.entries()[0].1.confirmed_since().expect("confirmed");
    advance_clock(&mut revocations, 6 * DAY);
    assert_eq!(load(&revocations, &publisher, source(3, Status::Revoked)), (0, 0));
    assert_eq!(revocations.entries()[0].1.confirmed_since(), Some(since));
    advance_clock(&mut revocations, DAY);
    assert_eq!(load(&revocations, &publisher, source(4, Status::Revoked)), (1, 0));
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), [], "durably");
}

#[test]
fn active_source_after_a_confirmation_is_a_conflict_and_loses() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    assert_eq!(load(&revocations, &publisher, source(2, Status::Active)), (0, 0), "never confirmed");
    assert_eq!(status(&revocations), None);
    load(&revocations, &publisher, source(3, Status::Revoked));
    advance_clock(&mut revocations, 8 * DAY);
    // After the week, the first load contradicts.
    for generation in 4..6 {
        assert_eq!(load(&revocations, &publisher, source(generation, Status::Active)), (0, 1));
        let record = revocations.entries()[0].1;
        assert!(record.conflict_since().is_some() && record.confirmed_since().is_none());
    }
    // The time restarts with the next confirmation.
    assert_eq!(load(&revocations, &publisher, source(6, Status::Revoked)), (0, 0));
    advance_clock(&mut revocations, 6 * DAY);
    assert_eq!(load(&revocations, &publisher, source(7, Status::Revoked)), (0, 0));
    advance_clock(&mut revocations, DAY);
    assert_eq!(load(&revocations, &publisher, source(8, Status::Revoked)), (1, 0));
}

#[test]
fn missing_and_disabled_rows_restart_the_time_without_a_conflict() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    revocations.revoke(Target::Owner("acme".into()), 0).expect("revoked");
    let all = |status| snapshot(2, 2, move |_| status);
    for interruption in [all(Status::Disabled), snapshot(0, 3, |_| Status::Active)] {
        assert_eq!(reconcile(&revocations, &all(Status::Revoked), WEEK), (0, 0));
        advance_clock(&mut revocations, 8 * DAY);
        assert_eq!(reconcile(&revocations, &interruption, WEEK), (0, 0));
        assert!(revocations.entries().iter().all(|(_, record)| record.confirmed_since().is_none()));
        assert_eq!(reconcile(&revocations, &all(Status::Revoked), WEEK), (0, 0));
        advance_clock(&mut revocations, DAY);
        assert_eq!(reconcile(&revocations, &all(Status::Revoked), WEEK), (0, 0));
    }
    // An owner with a new key that is active.
    assert_eq!(reconcile(&revocations, &source(4, Status::Revoked), WEEK), (0, 1));
    assert_eq!(revocations.entries()[0].0, Target::Owner("acme".into()), "contradicted entries come first");
    assert_eq!(publisher.reader().current().expect("published").table_generation(), 1);
}

#[test]
fn confirmation_and_conflict_outlive_restarts() {
    let directory = directory();
    let (mut revocations, publisher) = revoked(&directory);
    load(&revocations, &publisher, source(2, Status::Revoked));
    advance_clock(&mut revocations, 6 * DAY);
    let entries = revocations.entries();
    drop((revocations, publisher));

    // The test's clock was not stored, so advance it again.
    let (mut revocations, publisher) = open(&directory);
    assert_eq!(revocations.entries(), entries);
    advance_clock(&mut revocations, 6 * DAY);
    assert_eq!(load(&revocations, &publisher, source(1, Status::Revoked)), (0, 0));
    assert_eq!(load(&revocations, &publisher, source(2, Status::Active)), (0, 1));
    drop((revocations, publisher));

    let (revocations, publisher) = open(&directory);
    assert_eq!(status(&revocations), Some(SourceStatus::Active));
    assert_eq!(load(&revocations, &publisher, source(1, Status::Active)), (0, 1), "no further change");
    drop((revocations, publisher));
}

#[test]
fn zero_retention_drops_at_the_first_load_and_forever_never() {
    let directory = directory();
    let (mut revocations, _publisher) = revoked(&directory);
    let confirmed = source(2, Status::Revoked);
    revocations.mark_and_swap(Arc::clone(&confirmed));
    assert_eq!(reconcile(&revocations, &confirmed, Retention::Forever), (0, 0));
    advance_clock(&mut revocations, 10_000 * DAY);
    assert_eq!(reconcile(&revocations, &confirmed, Retention::Forever), (0, 0));
    assert_eq!(reconcile(&revocations, &confirmed, Retention::For(Duration::ZERO)), (1, 0));
    revocations.revoke(key(0), 0).expect("revoked");
    assert_eq!(
        reconcile(&revocations, &confirmed, Retention::For(Duration::ZERO)),
        (1, 0),
        "without an earlier line"
    );
    assert_eq!(revocations.entries(), []);
}

#[test]
fn unwritable_reconciliation_keeps_the_entries() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let path = block(&directory);
    let confirmed = source(2, Status::Revoked);
    revocations.mark_and_swap(Arc::clone(&confirmed));
    assert_eq!(reconcile(&revocations, &confirmed, Retention::For(Duration::ZERO)), (0, 0));
    assert_eq!(revocations.entries().len(), 1);
    fs::remove_dir(&path).expect("removes the obstacle");
    wait_until_durable(&revocations);
    let entries = revocations.entries();
    drop((revocations, publisher));
    let (revocations, _publisher) = open(&directory);
    assert_eq!(revocations.entries(), entries, "on disk as well");
    assert_eq!(
        reconcile(&revocations, &confirmed, Retention::For(Duration::ZERO)),
        (1, 0),
        "with the next load"
    );
}

/// A revocation while its entry is being dropped is a new one, in memory and on disk.
#[test]
fn entry_revoked_while_it_is_dropped_stays() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let confirmed = source(2, Status::Revoked);
    revocations.mark_and_swap(Arc::clone(&confirmed));
    let (_, due) = revocations.compare(&confirmed, Retention::For(Duration::ZERO));
    assert_eq!(due, [(key(0), 1)]);
    let change = revocations.revoke(key(0), 5).expect("revoked");
    assert!(!change.unchanged && change.durability == Durability::Durable);
    assert_eq!(revocations.drop_durably(&confirmed, due), []);
    revocations.mark_and_swap(source(3, Status::Active));
    assert!(is_revoked(&publisher, 0));
    let entries = revocations.entries();
    assert_eq!((entries.len(), entries[0].1.by_uid), (1, 5));
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries, "no line that drops the old entry follows");
}

/// As above, but the line that drops the old entry is on disk already.
#[test]
fn entry_revoked_after_its_removal_from_the_disk_stays() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let confirmed = source(2, Status::Revoked);
    revocations.mark_and_swap(Arc::clone(&confirmed));
    let (_, mut due) = revocations.compare(&confirmed, Retention::For(Duration::ZERO));
    assert_eq!(revocations.drop_on_disk(&mut due), Some(Durability::Durable));
    revocations.revoke(key(0), 5).expect("revoked");
    assert_eq!(revocations.drop_in_memory(&confirmed, due, Durability::Durable), []);
    revocations.mark_and_swap(source(3, Status::Active));
    assert!(is_revoked(&publisher, 0));
    let entries = revocations.entries();
    assert_eq!((entries.len(), entries[0].1.by_uid), (1, 5));
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

#[test]
fn entry_unrevoked_and_revoked_while_it_is_dropped_stays() {
    let directory = directory();
    let (revocations, publisher) = revoked(&directory);
    let confirmed = source(2, Status::Revoked);
    revocations.mark_and_swap(Arc::clone(&confirmed));
    let (_, due) = revocations.compare(&confirmed, Retention::For(Duration::ZERO));
    revocations.unrevoke(key(0), 5).expect("unrevoked");
    revocations.revoke(key(0), 5).expect("revoked");
    assert_eq!(revocations.drop_durably(&confirmed, due), []);
    let entries = revocations.entries();
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}
