//! Which revocations a table with other names would lift.

use super::*;
use crate::revocation::LiftedRevocations;
use keyward_engine::snapshot::{CompareOptions, KeyTable};

const NOW: u32 = 1_000;

/// A digest, a key id and an owner.
type Row<'r> = (u8, &'r str, &'r str);

fn table(rows: &[Row<'_>], change: impl Fn(&mut KeyRecord<'_>)) -> KeyTable {
    let mut builder = Builder::new(7, rows.len());
    for ((digest, key_id, owner), line) in rows.iter().zip(1..) {
        let mut record = KeyRecord { owner, ..KeyRecord::new([*digest; 32], key_id) };
        change(&mut record);
        builder.add(line, &record).expect("a good row");
    }
    builder.finish()
}

/// The old rows: two of `a`, which is in rotation.
const ROWS: [Row<'_>; 4] = [(1, "a", "acme"), (2, "a", "acme"), (3, "b", "acme"), (4, "c", "")];

/// The ids of the keys whose revocation is lifted. There are fewer of them than are kept.
fn lifted(targets: &[Target], new: &KeyTable, by_key_id: bool) -> Vec<String> {
    let mut list = List::default();
    for target in targets {
        let record = RevocationRecord { when: current_second(), by_uid: 0, source: None, durable: true };
        list.insert(target.clone(), record, 0);
    }
    let loaded = LoadedList { list, storage: None, accepted: None, has_changed: true };
    let LiftedRevocations { count, first } =
        loaded.lifted_by(new, &table(&ROWS, |_| {}), CompareOptions { now: NOW, by_key_id });
    assert_eq!(count, first.len(), "{first:?}");
    first.into_iter().map(Into::into).collect()
}

#[test]
fn other_name_lifts_a_revocation_unless_it_is_revoked_too() {
    let (key, owner) = (|id: &str| Target::Key(id.into()), |name: &str| Target::Owner(name.into()));
    let none: &[&str] = &[];
    for (targets, new, expected) in [
        (&[key("a")][..], &ROWS[..], none),
        (&[owner("acme"), key("c")], &ROWS, none),
        // The owner is lost, is another one, and is written in another way.
        (&[owner("acme")], &[(1, "a", ""), (2, "a", ""), (3, "b", "acme")], &["a"]),
        (&[owner("acme")], &[(1, "a", "bolt"), (2, "a", "bolt"), (3, "b", "acme")], &["a"]),
        (&[owner("acme")], &[(1, "a", "acme"), (2, "a", "acme"), (3, "b", "Acme")], &["b"]),
        // The other owner, or the key, is revoked as well.
        (&[owner("acme"), owner("bolt")], &[(1, "a", "bolt"), (3, "b", "bolt")], none),
        (&[owner("acme"), key("a")], &[(1, "a", ""), (2, "a", ""), (3, "b", "acme")], none),
        // The key id is another one. Two ids are exchanged.
        (&[key("a")], &[(1, "a2", "acme"), (2, "a", "acme")], &["a"]),
        (&[key("a")], &[(3, "a", "acme"), (1, "b", "acme"), (2, "b", "acme")], &["a"]),
        (&[key("c")], &[(4, "c2", "bolt")], &["c"]),
        (&[key("a"), owner("acme")], &[(1, "a2", "acme"), (2, "a2", "acme"), (3, "b2", "bolt")], &["b"]),
        (&[key("a"), key("b")], &[(1, "b", ""), (2, "b", ""), (3, "a", "")], none),
        // Rows that are gone, or of other keys, lift nothing.
        (&[key("a"), key("c")], &[(3, "b", "bolt"), (9, "d", "acme")], none),
    ] {
        assert_eq!(lifted(targets, &table(new, |_| {}), false), expected, "{targets:?} and {new:?}");
    }
}

#[test]
fn only_rows_that_may_work_lift_a_revocation() {
    let rows = [(1, "a", "bolt")];
    for (change, is_live) in [
        (
            &(|record: &mut KeyRecord<'_>| record.status = Status::Revoked) as &dyn Fn(&mut KeyRecord<'_>),
            false,
        ),
        (&|record| record.expires_at = NOW, false),
        (&|record| record.expires_at = NOW + 1, true),
        // The next export may enable it.
        (&|record| record.status = Status::Disabled, true),
        (&|record| record.not_before = NOW + 1, true),
    ] {
        let found = lifted(&[Target::Owner("acme".into())], &table(&rows, change), false);
        assert_eq!(!found.is_empty(), is_live);
    }
}

/// With another pepper, digests differ and key ids do not.
#[test]
fn rehashed_rows_are_compared_by_their_key_id() {
    let acme = [Target::Owner("acme".into())];
    for (new, expected) in [
        (&[(11, "a", "bolt"), (13, "b", "acme")][..], &["a"][..]),
        (&[(11, "a", ""), (12, "a", ""), (13, "b", "acme")], &["a"]),
        (&[(11, "a", "acme"), (13, "b", "acme"), (14, "c", "bolt")], &[]),
    ] {
        assert_eq!(lifted(&acme, &table(new, |_| {}), true), expected, "{new:?}");
        assert!(lifted(&acme, &table(new, |_| {}), false).is_empty(), "{new:?}");
    }
}

/// A command between the comparison and the swap is answered as if it were in force.
#[test]
fn revocation_after_the_comparison_is_compared_before_the_swap() {
    let (publisher, _readers) = Publisher::new(1);
    let revocations = Revocations::open(None, &publisher).expect("opens");
    revocations.mark_and_swap(active(3, 1));
    let old = active(3, 1);
    let mut renamed = Builder::new(7, 3);
    for key in old.keys() {
        let record = KeyRecord { owner: "bolt", ..KeyRecord::new(*key.digest(), key.key_id()) };
        renamed.add(1, &record).expect("a good row");
    }
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let meta = SnapshotMeta { generation: 2, ..SnapshotMeta::default() };
    let renamed =
        renamed.finish().into_snapshot(&mut allocator.begin(&limiter), None, meta).expect("no limits");
    let options = CompareOptions { now: NOW, by_key_id: false };
    let before = revocations.lifted_by(renamed.table(), old.table(), options);
    assert_eq!(before.count, 0);
    revocations.revoke(Target::Owner("acme".into()), 0).expect("revokes");
    revocations.revoke(key(1), 0).expect("revokes");
    revocations.unrevoke(key(1), 0).expect("a revocation");
    let swap = revocations.mark_for_swap(&renamed);
    assert_eq!(swap.lifted_by(renamed.table(), old.table(), options).count, 3);
    drop(swap);
    revocations.forget_changes();
    let swap = revocations.mark_for_swap(&renamed);
    assert_eq!(swap.lifted_by(renamed.table(), old.table(), options).count, 0, "a new reload compares all");
}

#[test]
fn examples_are_few_and_all_rows_are_counted() {
    let (publisher, _readers) = Publisher::new(1);
    publisher.swap(active(1_000, 1));
    let revocations = Revocations::open(None, &publisher).expect("opens");
    revocations.revoke(Target::Owner("acme".into()), 0).expect("revokes");
    let renamed = {
        let mut builder = Builder::new(7, 1_000);
        for key in active(1_000, 1).keys() {
            let record = KeyRecord { owner: "bolt", ..KeyRecord::new(*key.digest(), key.key_id()) };
            builder.add(1, &record).expect("a good row");
        }
        builder.finish()
    };
    let options = CompareOptions { now: NOW, by_key_id: false };
    let LiftedRevocations { count, first } =
        revocations.lifted_by(&renamed, active(1_000, 1).table(), options);
    assert_eq!((count, first), (1_000, ["k0", "k1", "k10"].map(Into::into).to_vec()));
}
