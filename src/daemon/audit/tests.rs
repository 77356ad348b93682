//! The audit trail on disk.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::*;
use keyward_state::disk::trace::Trace;

const ROTATION: Rotation = Rotation { max_file_size: 1 << 20, keep: 2 };

fn opened(directory: &Path) -> (StateDir, Audit) {
    let directory = StateDir::open(directory, true).expect("opens").expect("there");
    let audit = Audit::open(&directory, ROTATION).expect("opens");
    (directory, audit)
}

fn lines(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join(FILE)).expect("a trail");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn events_are_numbered_across_restarts() {
    let directory = tempfile::tempdir().expect("a directory");
    for generation in [1, 2] {
        let (_locked, audit) = opened(directory.path());
        audit.record(&Event::Start { version: "0", pid: 1, uid: 2 });
        audit.set_generation(generation);
        audit.clone().refuse_peer(Socket::Verify, Peer { uid: 7, pid: Some(8) });
        audit.stop();
    }
    let lines = lines(directory.path());
    let numbered: Vec<_> = lines.iter().map(|line| (line["seq"].as_u64(), line["event"].as_str())).collect();
    let expected = ["start", "peer_refused", "stop", "start", "peer_refused", "stop"];
    let expected: Vec<_> = (1..).map(Some).zip(expected.map(Some)).collect();
    assert_eq!(numbered, expected);
    assert_eq!((lines[0]["generation"].as_u64(), lines[5]["generation"].as_u64()), (Some(0), Some(2)));
    let time = lines[0]["time"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
}

#[test]
fn event_is_encoded_as_one_flat_object() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_locked, audit) = opened(directory.path());
    let peer = Peer { uid: 7, pid: Some(8) };
    audit.record(&Event::Revoke(Revocation { key_id: Some("a"), owner: None, keys: 2, revoked: 2, peer }));
    audit.record(&Event::Reload(Reload {
        withheld: Box::default(),
        trigger: TriggerKind::Command,
        peers: &[peer],
        force: false,
        accepted: false,
        keys: 3,
        changes: None,
        examples: AccessExamples::default(),
        reason: Some("findings"),
        location: Some(FileLocation { file: "keys.csv".to_owned(), line: Some(4), column: None }),
        diagnostics: Some(5),
        took_ms: 6,
    }));
    audit.record(&Event::Configuration { file: None, valid: true, line: None, column: None });
    let text = fs::read_to_string(directory.path().join(FILE)).expect("a trail");
    let events: Vec<_> = text.lines().filter_map(|line| line.split_once("\"event\":")).collect();
    let events: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
    assert_eq!(
        events,
        [
            r#""revoke","key_id":"a","keys":2,"revoked":2,"uid":7,"pid":8}"#,
            r#""reload","trigger":"command","peers":[{"uid":7,"pid":8}],"force":false,"accepted":false,"keys":3,"reason":"findings","file":"keys.csv","line":4,"findings":5,"took_ms":6}"#,
            r#""configuration","file":null,"valid":true}"#,
        ]
    );
}

#[test]
fn refusal_is_written_by_the_thread() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_locked, audit) = opened(directory.path());
    for _ in 0..1000 {
        audit.refuse_peer(Socket::Admin, Peer { uid: 7, pid: None });
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while lines(directory.path()).is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let line = &lines(directory.path())[0];
    assert_eq!((line["uid"].as_u64(), line["count"].as_u64()), (Some(7), Some(1000)));
}

#[test]
fn lines_beyond_the_limit_are_lost_and_counted_while_the_disk_fails() {
    let directory = tempfile::tempdir().expect("a directory");
    let (locked, audit) = opened(directory.path());
    // A directory replaces the file.
    let path = directory.path().join(FILE);
    fs::remove_file(&path).expect("removes");
    fs::create_dir(&path).expect("in the way");
    let (long, total) = ("i".repeat(100), 5_000);
    for _ in 0..total {
        audit.record(&Event::RevocationDropped(RevocationStatus {
            key_id: Some(&long),
            owner: None,
            keys: 1,
        }));
    }
    let unwritten = locked.health().unwritten();
    assert!(unwritten.len() == 1 && *unwritten[0].file == *FILE, "{unwritten:?}");
    assert!(unwritten[0].dropped > 0 && unwritten[0].error.contains("audit.jsonl: cannot"), "{unwritten:?}");
    fs::remove_dir(&path).expect("out of the way");
    audit.stop();
    assert_eq!(locked.health().unwritten(), []);
    let lines = lines(directory.path());
    let dropped = lines.last().expect("a line");
    assert_eq!(dropped["event"], "lost");
    // All events that were not written. The stop event was lost as well.
    assert_eq!(dropped["events"].as_u64(), Some(total + 1 - (lines.len() as u64 - 1)));
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=lines.len() as u64).collect::<Vec<_>>());
}

#[test]
fn pending_lines_are_written_once_the_disk_recovers() {
    let directory = tempfile::tempdir().expect("a directory");
    let (locked, audit) = opened(directory.path());
    let path = directory.path().join(FILE);
    fs::remove_file(&path).expect("removes");
    fs::create_dir(&path).expect("in the way");
    audit.record(&Event::Start { version: "0", pid: 1, uid: 2 });
    assert_eq!(locked.health().unwritten().len(), 1);
    fs::remove_dir(&path).expect("out of the way");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !locked.health().unwritten().is_empty() {
        assert!(Instant::now() < deadline, "never retried");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(lines(directory.path()).len(), 1);
}

/// Refusals are the exception.
#[test]
fn event_is_durable_when_it_is_recorded() {
    let directory = tempfile::tempdir().expect("a directory");
    let trace = Trace::of(directory.path());
    let state = StateDir::open(directory.path(), true).expect("opens").expect("there");
    // Each event starts a new file.
    let audit = Audit::open(&state, Rotation { max_file_size: 1, keep: 2 }).expect("opens");
    let event = |pid| Event::Start { version: "0", pid, uid: 2 };
    for pid in 1..5 {
        audit.record(&event(pid));
        assert_eq!(trace.volatile(), [""; 0]);
    }
    audit.record_all(&(0..2 * EVENTS_PER_WRITE as u32).map(event).collect::<Vec<_>>());
    assert_eq!(trace.volatile(), [""; 0]);
    audit.refuse_peer(Socket::Verify, Peer { uid: 7, pid: Some(8) });
    audit.stop();
    assert_eq!(trace.volatile(), [""; 0], "refusals are durable after a stop");
}
