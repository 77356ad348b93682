//! Changes that the entries do not have yet.

use super::*;
use crate::snapshot::{Overlay, Snapshot, Takeaway};

const UNIX: u32 = 1_800_000_000;

/// Four keys: `a` and `b` of acme, `c` of bolt, `d` of no one; `b` is disabled.
fn snapshot() -> Snapshot {
    let mut builder = Builder::new(7, 4);
    let rows = [("a", "acme"), ("b", "acme"), ("c", "bolt"), ("d", "")];
    for (number, (key_id, owner)) in (0..).zip(rows) {
        let status = if key_id == "b" { Status::Disabled } else { Status::Active };
        let record = KeyRecord { owner, status, ..KeyRecord::new([number; 32], key_id) };
        builder.add(1, &record).expect("a good row");
    }
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let meta = SnapshotMeta { generation: 7, ..SnapshotMeta::default() };
    builder.finish().into_snapshot(&mut allocator.begin(&limiter), None, meta).expect("no limits")
}

/// The verdicts of the four keys, and whether the view calls them revoked.
fn verdicts(snapshot: &Snapshot, overlay: &Overlay) -> [Verdict; 4] {
    let (limiter, global_policy) = (Limiter::new(), GlobalPolicy::default());
    let view = View { generation: 9, overlay: Some(overlay), ..View::of(snapshot) };
    let now = Now { unix: UNIX, ..Now::default() };
    let verifier = Verifier { view: Some(view), limiter: &limiter, global_policy: &global_policy, now };
    [0, 1, 2, 3].map(|number: u8| {
        let request = Verify::new(1, Credential::Digest([number; 32]));
        let mut verdict = None;
        verifier.verify(&[request], |decision| {
            assert_eq!(decision.answer().generation, 9);
            verdict = Some(decision.verdict());
        });
        let verdict = verdict.expect("an answer");
        let key = snapshot.find(&[number; 32]).expect("listed");
        assert_eq!(view.is_revoked(key), verdict == Verdict::Revoked);
        verdict
    })
}

use Verdict::{Allowed, Disabled, Expired, Revoked};

#[test]
fn overlay_decides_in_place_of_the_entries() {
    let snapshot = snapshot();
    let key = |key_id| snapshot.find_by_id(key_id).expect("listed");
    let acme = snapshot.table().owner_numbers("acme");
    assert_eq!(acme.len(), 1);
    assert!(snapshot.table().owner_numbers("").is_empty(), "rows without an owner have none in common");
    let mut overlay = Overlay::default();
    assert!(overlay.is_empty());
    assert_eq!(verdicts(&snapshot, &overlay), [Allowed, Disabled, Allowed, Allowed]);
    overlay.set_row(key("d"), true);
    overlay.set_owner(acme[0], true);
    assert!(!overlay.is_empty());
    assert_eq!(verdicts(&snapshot, &overlay), [Revoked, Revoked, Allowed, Revoked]);
    overlay.set_row(key("b"), false);
    assert_eq!(verdicts(&snapshot, &overlay), [Revoked, Disabled, Allowed, Revoked], "rows come first");

    // Once they are marked, the entries agree.
    snapshot.mark_revocations(&overlay);
    let expected = [Revoked, Disabled, Allowed, Revoked];
    assert_eq!(verdicts(&snapshot, &Overlay::default()), expected);
    // The marks of covered rows do not matter.
    let mut overlay = Overlay::default();
    overlay.set_owner(acme[0], false);
    assert_eq!(verdicts(&snapshot, &overlay), [Allowed, Disabled, Allowed, Revoked]);
    overlay.set_row(key("d"), false);
    snapshot.mark_revocations(&overlay);
    assert_eq!(verdicts(&snapshot, &Overlay::default()), [Allowed, Disabled, Allowed, Allowed]);
}

#[test]
fn takeaways_of_an_overlay_are_those_of_the_entries() {
    let snapshot = snapshot();
    let takeaways = [
        ([0; 32], Takeaway::Revoked),
        ([1; 32], Takeaway::ExpiresAt(UNIX)),
        ([2; 32], Takeaway::ExpiresAt(UNIX)),
        ([3; 32], Takeaway::Disabled),
        ([9; 32], Takeaway::Revoked),
    ];
    let mut overlay = Overlay::default();
    overlay.set_takeaways(Arc::new(snapshot.table().locate_takeaways(&takeaways)));
    let expected = [Revoked, Disabled, Expired, Disabled];
    assert_eq!(verdicts(&snapshot, &overlay), expected);
    overlay.set_row(snapshot.find_by_id("d").expect("listed"), true);
    assert_eq!(verdicts(&snapshot, &overlay), [Revoked, Disabled, Expired, Revoked], "both");
    snapshot.apply_takeaways(takeaways);
    assert_eq!(verdicts(&snapshot, &Overlay::default()), expected);
    // Twice is as good as once, and nothing is given back.
    let later = [([2; 32], Takeaway::ExpiresAt(UNIX + 9)), ([0; 32], Takeaway::Disabled)];
    let mut overlay = Overlay::default();
    overlay.set_takeaways(Arc::new(snapshot.table().locate_takeaways(&later)));
    assert_eq!(verdicts(&snapshot, &overlay), expected);
}
