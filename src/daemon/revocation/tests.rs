//! The list across snapshots, failing disks, and files that other programs change.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::audit::Audit;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::record::{KeyRecord, Status};
use keyward_engine::snapshot::{Builder, SnapshotMeta};

mod changes;
mod confirmation;
mod durability;
mod lifted;
mod loss;

/// A snapshot of keys `k0` to `k<keys - 1>`, all of one owner, with the status that `status`
/// returns.
fn snapshot(keys: u32, generation: u64, status: impl Fn(u32) -> Status) -> Arc<Snapshot> {
    let mut builder = Builder::new(7, keys as usize);
    for number in 0..keys {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        let key_id = format!("k{number}");
        let record = KeyRecord { owner: "acme", status: status(number), ..KeyRecord::new(hash, &key_id) };
        builder.add(number.into(), &record).expect("a good row");
    }
    let limiter = Limiter::new();
    let mut allocator = SlotAllocator::new();
    let stamp = SnapshotMeta { generation, ..SnapshotMeta::default() };
    Arc::new(
        builder
            .finish()
            .into_snapshot(&mut allocator.begin(&limiter), None, stamp)
            .expect("no limits at all"),
    )
}

fn active(keys: u32, generation: u64) -> Arc<Snapshot> {
    snapshot(keys, generation, |_| Status::Active)
}

fn open(directory: &TempDir) -> (Revocations, Publisher) {
    let state = StateDir::open(directory.path(), true).expect("opens").map(Arc::new);
    let publisher = Publisher::new(1).0;
    (Revocations::open(state, &publisher).expect("reads"), publisher)
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn key(number: u32) -> Target {
    Target::Key(format!("k{number}").into())
}

/// The number of lines after the header.
fn lines(directory: &TempDir) -> usize {
    fs::read_to_string(directory.path().join(list_file::NAME)).expect("a file").lines().count() - 1
}

/// Reconciles the list with `snapshot`, without an audit trail.
fn reconcile(revocations: &Revocations, snapshot: &Snapshot, retention: Retention) -> (usize, usize) {
    let Reconciliation { dropped, conflicts } =
        revocations.reconcile(snapshot, retention, &Audit::disabled());
    (dropped, conflicts)
}

/// Waits until everything on the list is durable.
fn wait_until_durable(revocations: &Revocations) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while revocations.entries().iter().any(|(_, record)| !record.durable) {
        assert!(std::time::Instant::now() < deadline, "not durable: {:?}", revocations.entries());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn reason(change: &CommandOutcome) -> &str {
    match &change.durability {
        Durability::NotDurable(reason) => reason,
        Durability::Durable => panic!("durable"),
    }
}

/// Replaces the list by a directory, so that no file can be written there.
fn block(directory: &TempDir) -> std::path::PathBuf {
    let path = directory.path().join(list_file::NAME);
    fs::rename(&path, directory.path().join("moved")).expect("moves");
    fs::create_dir(&path).expect("an obstacle");
    path
}

fn is_revoked(publisher: &Publisher, number: u32) -> bool {
    let published = publisher.reader().published().expect("published");
    let view = published.view();
    view.is_revoked(view.snapshot.find_by_id(&format!("k{number}")).expect("there"))
}

#[test]
fn revocation_without_a_state_directory_is_in_force_and_not_durable() {
    let publisher = Publisher::new(1).0;
    let revocations = Revocations::open(None, &publisher).expect("opens");
    revocations.mark_and_swap(active(2, 1));
    for unchanged in [false, true] {
        let change = revocations.revoke(key(0), 0).expect("in force");
        assert_eq!((change.unchanged, change.revoked), (unchanged, 1));
        assert!(reason(&change).contains("--state-dir"), "{change:?}");
    }
    assert!(is_revoked(&publisher, 0) && !is_revoked(&publisher, 1));
    assert!(!revocations.entries()[0].1.durable);
    revocations.mark_and_swap(active(2, 2));
    assert!(is_revoked(&publisher, 0), "in the next snapshot too");
    let change = revocations.unrevoke(key(0), 0).expect("unrevoked");
    assert!(reason(&change).contains("no state directory") && !is_revoked(&publisher, 0));
    assert!(matches!(revocations.unrevoke(key(0), 0), Err(RevokeError::NotRevoked { .. })));
    // The source confirms it, and there is no disk that could fail.
    revocations.revoke(key(0), 0).expect("in force");
    let next = snapshot(2, 3, |_| Status::Revoked);
    assert_eq!(reconcile(&revocations, &next, Retention::For(Duration::ZERO)), (1, 0));
    assert_eq!(revocations.entries(), []);
}

/// A worker that has read the epoch of a command sees its change.
#[test]
fn every_command_advances_the_epoch() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.generations().reserve();
    let published = revocations.mark_and_swap(active(2, 1));
    let first = revocations.revoke(key(0), 7).expect("revoked");
    assert_eq!((first.keys, first.revoked, first.generation, first.unchanged), (1, 1, 2, false));
    let again = revocations.revoke(key(0), 8).expect("unchanged");
    assert!(again.unchanged && published < first.epoch && first.epoch < again.epoch);
    let back = revocations.unrevoke(key(0), 7).expect("unrevoked");
    assert!(again.epoch < back.epoch && !is_revoked(&publisher, 0));
    assert_eq!(revocations.entries(), []);
}

/// No raw key at rest: one that was given as an id is not written to disk.
#[test]
fn possible_raw_key_is_not_written_to_disk() {
    let raw = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";
    let directory = directory();
    let (revocations, _publisher) = open(&directory);
    let refuse = || revocations.revoke(Target::Key(raw.into()), 0).expect_err("refused").to_string();
    assert!(!refuse().contains(&raw[10..]));
    revocations.mark_and_swap(active(1, 1));
    assert!(!refuse().contains(&raw[10..]));
    assert_eq!(lines(&directory), 0);
}

#[test]
fn entries_survive_a_restart() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.revoke(key(0), 7).expect("revoked");
    revocations.revoke(Target::Owner("acme \"x\"\n".into()), 8).expect("revoked");
    revocations.revoke(key(1), 9).expect("revoked");
    revocations.unrevoke(key(1), 9).expect("unrevoked");
    let entries = revocations.entries();
    assert_eq!(entries.len(), 2);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

/// A failing disk neither delays nor loses a revocation.
#[test]
fn unwritable_revocation_is_in_force_at_once_and_durable_once_the_disk_recovers() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.mark_and_swap(active(4, 1));
    assert_eq!(revocations.revoke(key(0), 0).expect("revoked").durability, Durability::Durable);
    let path = block(&directory);
    let change = revocations.revoke(key(1), 0).expect("in force");
    assert!(
        reason(&change).contains("revocations.jsonl") && reason(&change).contains("cannot"),
        "{change:?}"
    );
    assert_eq!((change.keys, change.revoked), (1, 1));
    assert!(!reason(&revocations.unrevoke(key(0), 0).expect("unrevoked")).is_empty());
    assert!(!is_revoked(&publisher, 0) && is_revoked(&publisher, 1));
    let entries = revocations.entries();
    assert_eq!((entries.len(), entries[0].1.durable), (1, false));
    let writer = revocations.writer.as_ref().expect("a writer");
    assert_eq!(&*writer.health().unwritten()[0].file, list_file::NAME);
    let again = revocations.revoke(key(1), 0).expect("in force");
    assert!(again.unchanged && !reason(&again).is_empty(), "it is not durable yet");

    fs::remove_dir(&path).expect("removes the obstacle");
    let begun = std::time::Instant::now();
    wait_until_durable(&revocations);
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    assert_eq!(writer.health().unwritten(), []);
    assert_eq!(revocations.revoke(key(1), 0).expect("revoked").durability, Durability::Durable);
    assert_eq!(revocations.revoke(key(2), 0).expect("revoked").durability, Durability::Durable);
    let entries = revocations.entries();
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

#[test]
fn unwritable_unrevocation_is_revoked_again_after_a_restart() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.mark_and_swap(active(1, 1));
    revocations.revoke(key(0), 0).expect("revoked");
    let path = block(&directory);
    assert!(!reason(&revocations.unrevoke(key(0), 0).expect("unrevoked")).is_empty());
    assert!(!is_revoked(&publisher, 0));
    drop((revocations, publisher));
    fs::remove_dir(&path).expect("removes the obstacle");
    fs::rename(directory.path().join("moved"), &path).expect("as it was");
    assert_eq!(open(&directory).0.entries().len(), 1);
}

/// Failed writes use no more memory than the list.
#[test]
fn many_unwritable_commands_are_written_as_a_whole_list() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.mark_and_swap(active(2, 1));
    let path = block(&directory);
    for _ in 0..1_200 {
        revocations.revoke(key(0), 0).expect("in force");
        revocations.unrevoke(key(0), 0).expect("unrevoked");
    }
    revocations.revoke(key(1), 0).expect("in force");
    fs::remove_dir(&path).expect("removes the obstacle");
    wait_until_durable(&revocations);
    assert!(lines(&directory) < 2_000, "{} lines", lines(&directory));
    let entries = revocations.entries();
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

/// This holds even if the command checks only after a later attempt has succeeded.
#[test]
fn abandoned_optional_line_is_never_durable() {
    let directory = directory();
    let (revocations, _publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    let path = block(&directory);
    let writer = revocations.writer.as_ref().expect("a state directory");
    let abandoned = writer.enqueue_optional([Line::dropped(&key(0), current_second())]);
    assert!(matches!(writer.wait_optional(abandoned), Durability::NotDurable(_)));
    fs::remove_dir(&path).expect("removes the obstacle");
    let written = writer.enqueue([Line::revoke(&key(1), &revocations.entries()[0].1)]);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while writer.wait(written) != Durability::Durable {
        assert!(std::time::Instant::now() < deadline, "never written");
    }
    assert!(matches!(writer.wait_optional(abandoned), Durability::NotDurable(_)));
}

#[test]
fn removed_list_is_restored_without_a_command() {
    let directory = directory();
    let (revocations, _publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    let (list, mark) = (directory.path().join(list_file::NAME), directory.path().join(watermark::NAME));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    for path in [&list, &mark] {
        fs::remove_file(path).expect("removes");
        while !path.exists() {
            assert!(std::time::Instant::now() < deadline, "{} is not restored", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(lines(&directory), 1);
}

/// The daemon has no lock on a directory that replaces its own.
#[test]
fn list_of_another_daemon_at_the_same_path_is_not_replaced() {
    let place = directory();
    let [own, moved, other] = ["own", "moved", "other"].map(|name| place.path().join(name));
    let state = StateDir::open(&own, true).expect("opens").map(Arc::new);
    let publisher = Publisher::new(1).0;
    let revocations = Revocations::open(state, &publisher).expect("reads");
    let other_daemon = StateDir::open(&other, true).expect("opens").expect("there");
    fs::write(other.join(list_file::NAME), "the other daemon's").expect("writes");
    fs::rename(&own, &moved).expect("moves");
    fs::rename(&other, &own).expect("moves");
    let change = revocations.revoke(key(0), 0).expect("in force");
    assert!(reason(&change).contains("another daemon has taken it"), "{change:?}");
    assert_eq!(fs::read_to_string(own.join(list_file::NAME)).expect("a file"), "the other daemon's");
    // The other daemon ends, and this one takes the directory.
    drop(other_daemon);
    wait_until_durable(&revocations);
    let refused = StateDir::open(&own, true).expect_err("in use").to_string();
    assert!(refused.contains("another daemon"), "{refused}");
}

#[test]
fn file_that_was_removed_or_changed_is_rewritten() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    let path = directory.path().join(list_file::NAME);
    let spoils: [fn(&std::path::Path); 3] = [
        |path| fs::write(path, "").expect("empties"),
        |path| fs::remove_file(path).expect("removes"),
        |path| fs::write(path, "nonsense\n").expect("writes"),
    ];
    for (spoil, number) in spoils.iter().zip(0..) {
        revocations.revoke(key(2 * number), 0).expect("revoked");
        spoil(&path);
        revocations.revoke(key(2 * number + 1), 0).expect("revoked");
    }
    let entries = revocations.entries();
    assert_eq!(entries.len(), 6);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

#[test]
fn torn_last_line_is_dropped() {
    let directory = directory();
    let path = directory.path().join(list_file::NAME);
    let (revocations, publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    drop((revocations, publisher));
    let whole = fs::read_to_string(&path).expect("a file");
    let mark = fs::read(directory.path().join(watermark::NAME)).expect("a file");
    for torn in ["\0\0\0\0", "\0\0\0\"}\n", "{\"action\":\"rev"] {
        fs::write(&path, whole.clone() + torn).expect("writes");
        assert_eq!(open(&directory).0.entries().len(), 1, "{torn:?}");
        assert_eq!(lines(&directory), 1, "{torn:?}");
        fs::write(directory.path().join(watermark::NAME), &mark).expect("as it was");
    }
    fs::write(&path, format!("\0\0\"}}\n{whole}")).expect("writes");
    let state = StateDir::open(directory.path(), true).expect("opens").map(Arc::new);
    let error = Revocations::open(state, &Publisher::new(1).0).err().expect("not the last line").to_string();
    assert!(error.contains("revocations.jsonl:1: not a revocation: "), "{error}");
}

#[test]
fn file_is_compacted() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    for _ in 0..700 {
        revocations.revoke(key(1), 0).expect("revoked");
        revocations.unrevoke(key(1), 0).expect("unrevoked");
    }
    assert!(lines(&directory) < 1_100, "{} lines", lines(&directory));
    assert_eq!(revocations.entries().len(), 1);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries().len(), 1);
}

#[test]
fn command_while_a_snapshot_is_marked_applies_to_it() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.mark_and_swap(active(3, 1));
    revocations.revoke(key(0), 0).expect("revoked");
    let next = active(3, 2);
    revocations.mark_before_swap(&next);
    revocations.unrevoke(key(0), 0).expect("unrevoked");
    revocations.revoke(key(1), 0).expect("revoked");
    revocations.mark_changed(&next).finish(next);
    assert_eq!([0, 1, 2].map(|number| is_revoked(&publisher, number)), [false, true, false]);
}

/// Snapshots are swapped continuously while keys are revoked and unrevoked. After each command, and
/// in each later snapshot, the marks match the list.
#[test]
fn no_command_is_lost_between_two_snapshots() {
    const KEYS: u32 = 300;
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.mark_and_swap(active(KEYS, 1));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut generation = 1;
            while !done.load(Ordering::Acquire) {
                generation += 1;
                let next = active(KEYS, generation);
                revocations.mark_and_swap(Arc::clone(&next));
                assert_eq!(reconcile(&revocations, &next, Retention::For(Duration::ZERO)), (0, 0));
            }
        });
        scope.spawn(|| {
            let set_done = SetOnDrop(&done);
            for number in 0..KEYS {
                revocations.revoke(key(number), 0).expect("revoked");
                assert!(is_revoked(&publisher, number), "k{number}");
                if number % 3 == 0 {
                    revocations.unrevoke(key(number), 0).expect("unrevoked");
                    assert!(!is_revoked(&publisher, number), "k{number}");
                }
                for before in 0..number {
                    assert_eq!(is_revoked(&publisher, before), before % 3 != 0, "k{before}");
                }
            }
            drop(set_done);
        });
    });
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
