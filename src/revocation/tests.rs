//! The list through snapshots that come and go, disks that fail, and files that others touch.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;
use crate::limiter::{Ledger, Limiter};
use crate::record::{KeyRecord, Status};
use crate::snapshot::{Builder, Stamp};

/// A snapshot of keys `k0` to `k<keys - 1>`, all of one owner; `status` says the status of each.
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
    let mut ledger = Ledger::new();
    let stamp = Stamp { generation, ..Stamp::default() };
    Arc::new(
        builder.finish().publishable(&mut ledger.claim(&limiter), None, stamp).expect("no limits at all"),
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

fn lines(directory: &TempDir) -> usize {
    fs::read_to_string(directory.path().join(file::NAME)).expect("a file").lines().count()
}

fn is_revoked(publisher: &Publisher, number: u32) -> bool {
    let snapshot = publisher.served().snapshot().expect("published");
    snapshot.find_by_id(&format!("k{number}")).expect("there").status() == Status::Revoked
}

#[test]
fn without_a_state_directory_nothing_is_revoked() {
    let publisher = Publisher::new(1).0;
    let revocations = Revocations::open(None, &publisher).expect("opens");
    drop(revocations.publish(&publisher, active(1, 1)));
    let refused = revocations.revoke(key(0), 0).expect_err("not kept");
    assert!(matches!(refused, Refused::NotKept));
    assert!(refused.to_string().contains("--state-dir"), "{refused}");
    assert!(matches!(revocations.unrevoke(key(0), 0), Err(Refused::NotRevoked { .. })));
    assert!(!is_revoked(&publisher, 0) && revocations.entries().is_empty());
}

/// The epoch that a command ends begins after the marks are set: who has read it sees them.
#[test]
fn every_command_ends_an_epoch() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    let published = revocations.publish(&publisher, active(2, 1)).epoch;
    let first = revocations.revoke(key(0), 7).expect("revoked");
    assert_eq!((first.keys, first.revoked, first.generation, first.already), (1, 1, 1, false));
    let again = revocations.revoke(key(0), 8).expect("already");
    assert!(again.already && published < first.epoch && first.epoch < again.epoch);
    let back = revocations.unrevoke(key(0), 7).expect("taken back");
    assert!(again.epoch < back.epoch && !is_revoked(&publisher, 0));
    assert_eq!(revocations.entries(), []);
}

/// Promise 7: a key that was taken for an id is not written down.
#[test]
fn what_may_be_a_key_is_not_written_to_the_disk() {
    let raw = "acme_live_4fQ7mZ0cT2aVw9RkXyB1nLsEoJpHdG3vbKzT";
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    let refuse = || revocations.revoke(Target::Key(raw.into()), 0).expect_err("refused").to_string();
    assert!(!refuse().contains(&raw[10..]));
    drop(revocations.publish(&publisher, active(1, 1)));
    assert!(!refuse().contains(&raw[10..]));
    assert_eq!(lines(&directory), 0);
}

#[test]
fn a_list_is_found_again_with_who_and_when() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.revoke(key(0), 7).expect("revoked");
    revocations.revoke(Target::Owner("acme \"x\"\n".into()), 8).expect("revoked");
    revocations.revoke(key(1), 9).expect("revoked");
    revocations.unrevoke(key(1), 9).expect("taken back");
    let entries = revocations.entries();
    assert_eq!(entries.len(), 2);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

/// What cannot be written is not in force, and what is in force is written.
#[test]
fn a_disk_that_fails_fails_the_command() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    drop(revocations.publish(&publisher, active(3, 1)));
    revocations.revoke(key(0), 0).expect("revoked");
    // Neither the file nor another can be written: there is a directory in the way.
    let path = directory.path().join(file::NAME);
    let moved = directory.path().join("moved");
    fs::rename(&path, &moved).expect("moves");
    fs::create_dir(&path).expect("in the way");
    let refused = revocations.revoke(key(1), 0).expect_err("cannot be written").to_string();
    assert!(refused.contains("revocations.jsonl: cannot") && refused.contains("try again"), "{refused}");
    let refused = revocations.unrevoke(key(0), 0).expect_err("cannot be written");
    assert!(matches!(refused, Refused::File(_)));
    assert!(is_revoked(&publisher, 0) && !is_revoked(&publisher, 1));
    assert_eq!(revocations.entries().len(), 1);

    // Mended, and without what was in it: it is written anew.
    fs::remove_dir(&path).expect("out of the way");
    revocations.revoke(key(2), 0).expect("revoked");
    let entries = revocations.entries();
    assert_eq!(entries.len(), 2);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries(), entries);
}

#[test]
fn a_file_that_somebody_has_moved_or_cut_is_written_anew() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    let path = directory.path().join(file::NAME);
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
fn what_power_loss_leaves_of_the_last_line_is_dropped() {
    let directory = directory();
    let path = directory.path().join(file::NAME);
    let (revocations, publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    drop((revocations, publisher));
    let whole = fs::read_to_string(&path).expect("a file");
    for torn in ["\0\0\0\0", "\0\0\0\"}\n", "{\"action\":\"rev"] {
        fs::write(&path, whole.clone() + torn).expect("writes");
        assert_eq!(open(&directory).0.entries().len(), 1, "{torn:?}");
        assert_eq!(fs::read_to_string(&path).expect("a file"), whole, "{torn:?}");
    }
    fs::write(&path, format!("\0\0\"}}\n{whole}")).expect("writes");
    let state = StateDir::open(directory.path(), true).expect("opens").map(Arc::new);
    let error = Revocations::open(state, &Publisher::new(1).0).err().expect("not the last line").to_string();
    assert!(error.contains("revocations.jsonl:1: not a revocation: "), "{error}");
}

#[test]
fn the_file_does_not_grow_with_every_command() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    revocations.revoke(key(0), 0).expect("revoked");
    for _ in 0..700 {
        revocations.revoke(key(1), 0).expect("revoked");
        revocations.unrevoke(key(1), 0).expect("taken back");
    }
    assert!(lines(&directory) < 1_100, "{} lines", lines(&directory));
    assert_eq!(revocations.entries().len(), 1);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries().len(), 1);
}

#[test]
fn what_the_source_agrees_with_is_dropped_on_disk_too() {
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    drop(revocations.publish(&publisher, active(4, 1)));
    for number in 0..3 {
        revocations.revoke(key(number), 0).expect("revoked");
    }
    revocations.revoke(Target::Owner("acme".into()), 0).expect("revoked");
    let next = snapshot(4, 2, |number| match number {
        0 => Status::Revoked,
        1 => Status::Disabled,
        _ => Status::Active,
    });
    drop(revocations.publish(&publisher, Arc::clone(&next)));
    assert_eq!(revocations.drop_agreed(&next), [(key(0), 1)], "disabled may come back");
    assert_eq!(revocations.drop_agreed(&next), []);
    assert_eq!(revocations.entries().len(), 3);
    assert!((0..4).all(|number| is_revoked(&publisher, number)), "by the owner, who is not agreed on");
    assert_eq!(revocations.unrevoke(Target::Owner("acme".into()), 0).expect("taken back").revoked, 3);
    let status = |number| next.find_by_id(&format!("k{number}")).expect("there").status();
    assert_eq!([0, 1, 2, 3].map(status), [Status::Revoked, Status::Revoked, Status::Revoked, Status::Active]);
    drop((revocations, publisher));
    assert_eq!(open(&directory).0.entries().len(), 2);
}

/// Snapshots are swapped without pause while keys are revoked, taken back and revoked again: after each command, and in each
/// snapshot that comes later, what the list says is what holds.
#[test]
fn no_command_falls_between_two_snapshots() {
    const KEYS: u32 = 300;
    let directory = directory();
    let (revocations, publisher) = open(&directory);
    drop(revocations.publish(&publisher, active(KEYS, 1)));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut generation = 1;
            while !done.load(Ordering::Acquire) {
                generation += 1;
                let next = active(KEYS, generation);
                drop(revocations.publish(&publisher, Arc::clone(&next)));
                assert_eq!(revocations.drop_agreed(&next), []);
            }
        });
        let _end = scope.spawn(|| {
            let finally = Finally(&done);
            for number in 0..KEYS {
                revocations.revoke(key(number), 0).expect("revoked");
                assert!(is_revoked(&publisher, number), "k{number}");
                if number % 3 == 0 {
                    revocations.unrevoke(key(number), 0).expect("taken back");
                    assert!(!is_revoked(&publisher, number), "k{number}");
                }
                for before in 0..number {
                    assert_eq!(is_revoked(&publisher, before), before % 3 != 0, "k{before}");
                }
            }
            drop(finally);
        });
    });
}

struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
