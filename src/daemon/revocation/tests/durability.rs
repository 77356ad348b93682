//! A power cut after a command or a reload that changes the list loses no change.

use super::*;
use keyward_state::Rotation;
use keyward_state::disk::trace::{Call, Trace};

const NOTHING: [&str; 0] = [];

/// What a power cut would lose of the list and the audit trail. The high-water mark may be behind;
/// a restart corrects it.
fn volatile(trace: &Trace) -> Vec<String> {
    let names = trace.volatile().into_iter().map(|name| name.to_string());
    names.filter(|name| !name.contains("revocations.seq")).collect()
}

fn owner() -> Target {
    Target::Owner("acme".into())
}

#[test]
fn list_is_durable_when_a_command_returns() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    let (revocations, _publisher) = open(&directory);
    assert_eq!(volatile(&trace), NOTHING, "an empty list");
    revocations.mark_and_swap(active(3, 1));
    for target in [key(0), owner(), key(1)] {
        assert!(!revocations.revoke(target.clone(), 0).expect("revoked").unchanged);
        assert_eq!(volatile(&trace), NOTHING, "{target:?} is revoked");
    }
    for target in [owner(), key(1)] {
        revocations.unrevoke(target.clone(), 0).expect("unrevoked");
        assert_eq!(volatile(&trace), NOTHING, "{target:?} is unrevoked");
    }
    let path = directory.path().join(list_file::NAME);
    let synced = trace.calls().into_iter().filter(|call| *call == Call::Sync(path.clone())).count();
    assert_eq!(synced, 5, "each command syncs its line");
}

/// Tests the other paths of writing a line.
#[test]
fn list_is_durable_before_keys_are_loaded_and_after_a_restart() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    for number in 0..2 {
        let (revocations, _publisher) = open(&directory);
        assert!(!revocations.revoke(key(number), 0).expect("revoked").unchanged);
        assert_eq!(volatile(&trace), NOTHING);
    }
}

#[test]
fn rewritten_list_is_durable() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    let (revocations, _publisher) = open(&directory);
    revocations.mark_and_swap(active(2, 1));
    let rewritten = |trace: &Trace| trace.calls().iter().any(|call| matches!(call, Call::Rename(..)));
    // Until most lines are superseded.
    for _ in 0..1_000 {
        revocations.revoke(key(0), 0).expect("revoked");
        revocations.unrevoke(key(0), 0).expect("unrevoked");
        if rewritten(&trace) {
            break;
        }
    }
    assert!(rewritten(&trace));
    assert_eq!(volatile(&trace), NOTHING);

    let path = directory.path().join(list_file::NAME);
    let spoils: [fn(&std::path::Path) -> std::io::Result<()>; 2] =
        [|path| fs::remove_file(path), |path| fs::write(path, "")];
    for spoil in spoils {
        spoil(&path).expect("spoilt");
        let trace = Trace::of(directory.path());
        revocations.revoke(key(0), 0).expect("revoked");
        assert!(rewritten(&trace));
        assert_eq!(volatile(&trace), NOTHING);
        revocations.unrevoke(key(0), 0).expect("unrevoked");
    }
}

#[test]
fn list_and_audit_trail_are_durable_after_a_confirmation() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    let state = StateDir::open(directory.path(), true).expect("opens").map(Arc::new).expect("there");
    let publisher = Publisher::new(1).0;
    let revocations = Revocations::open(Some(Arc::clone(&state)), &publisher).expect("reads");
    let audit = Audit::open(&state, Rotation { max_file_size: 1 << 20, keep: 1 }).expect("opens");
    revocations.mark_and_swap(active(2, 1));
    revocations.revoke(key(0), 0).expect("revoked");
    revocations.revoke(owner(), 0).expect("revoked");
    let confirming = snapshot(2, 2, |_| Status::Revoked);
    revocations.mark_and_swap(Arc::clone(&confirming));
    revocations.reconcile(&confirming, Retention::DEFAULT, &audit);
    assert_eq!(volatile(&trace), NOTHING);
}
