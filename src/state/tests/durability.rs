//! The order of writes, syncs and renames, which decides what a power cut leaves.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::trace::{Call, Trace};

fn line(number: u32) -> Vec<u8> {
    format!("{{\"n\":{number}}}\n").into_bytes()
}

#[test]
fn replaced_file_is_synced_before_the_rename_and_its_name_after_it() {
    let directory = directory();
    let path = directory.path().join("state");
    let new = directory.path().join("state.new");
    let trace = Trace::of(directory.path());
    // More than the buffer holds, so there are several writes.
    replace(&path, |file| (0..10_000).try_for_each(|number| file.write_all(&line(number))))
        .expect("replaced");
    let expected = [
        Call::Create(new.clone()),
        Call::Write(new.clone()),
        Call::Sync(new.clone()),
        Call::Rename(new, path),
        Call::SyncDirectory(directory.path().to_owned()),
    ];
    assert_eq!(trace.calls(), expected);
    assert_eq!(trace.volatile(), [""; 0]);
}

#[test]
fn replacement_that_fails_before_the_rename_keeps_the_old_file() {
    let directory = directory();
    let path = directory.path().join("state");
    replace(&path, |file| file.write_all(b"old")).expect("replaced");
    let failures: [fn(&Call) -> bool; 4] = [
        |call| matches!(call, Call::Create(_)),
        |call| matches!(call, Call::Write(_)),
        |call| matches!(call, Call::Sync(_)),
        |call| matches!(call, Call::Rename(..)),
    ];
    for fails in failures {
        let trace = Trace::of(directory.path());
        trace.fail(fails);
        let error = replace(&path, |file| file.write_all(b"new")).expect_err("a call fails").to_string();
        assert!(error.contains("a test has this call fail"), "{error}");
        assert_eq!(text(&path), "old");
        assert!(!directory.path().join("state.new").exists());
    }
}

#[test]
fn replacement_whose_name_cannot_be_synced_is_an_error() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    trace.fail(|call| matches!(call, Call::SyncDirectory(_)));
    let error = replace(&directory.path().join("state"), |file| file.write_all(b"new"));
    assert!(error.expect_err("not durable").to_string().contains("make its new name durable"));
}

#[test]
fn appended_lines_are_durable_once_synced() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let trace = Trace::of(directory.path());
    let mut journal = opened(&path).journal;
    assert_eq!(trace.volatile(), [""; 0], "the name of a new journal is durable");
    for number in 0..2 {
        journal.append(&line(number)).expect("appended");
        assert_eq!(trace.volatile(), [format!("the content of {}", path.display())]);
        journal.sync().expect("synced");
        assert_eq!(trace.volatile(), [""; 0]);
    }
    trace.fail(|call| matches!(call, Call::Sync(_)));
    let error = journal.sync().expect_err("a call fails").to_string();
    assert!(error.contains("a.jsonl: cannot make it durable"), "{error}");
}

#[test]
fn short_writes_are_continued() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    trace.shorten_writes(5);
    let (state, path) = (directory.path().join("state"), directory.path().join("a.jsonl"));
    replace(&state, |file| file.write_all(b"0123456789abcdef")).expect("replaced");
    assert_eq!(text(&state), "0123456789abcdef");
    let mut journal = opened(&path).journal;
    journal.append(b"{\"n\":1}\n{\"n\":2}\n").expect("appended");
    assert_eq!(text(&path), "{\"n\":1}\n{\"n\":2}\n");
    journal.sync().expect("synced");
    assert_eq!(trace.volatile(), [""; 0]);
}

/// The disk takes the first part of a line, and fails at the next.
#[test]
fn failure_after_a_short_write_leaves_no_partial_line() {
    static WRITES: AtomicUsize = AtomicUsize::new(0);
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let mut journal = opened(&path).journal;
    journal.append(&line(1)).expect("appended");
    let trace = Trace::of(directory.path());
    trace.shorten_writes(5);
    trace.fail(|call| matches!(call, Call::Write(_)) && WRITES.fetch_add(1, Ordering::Relaxed) == 1);
    let error = journal.append(&line(2)).expect_err("the second write fails").to_string();
    assert!(error.contains("a.jsonl: cannot write to it"), "{error}");
    assert_eq!(text(&path), "{\"n\":1}\n");
    journal.append(&line(2)).expect("appended");
    assert_eq!(text(&path), "{\"n\":1}\n{\"n\":2}\n");
    assert_eq!(WRITES.load(Ordering::Relaxed), 5, "a part, the failure, the truncation, and two parts");
}

#[test]
fn rotation_loses_no_line_that_was_synced() {
    for keep in [0, 1, 3] {
        let directory = directory();
        let path = directory.path().join("a.jsonl");
        let trace = Trace::of(directory.path());
        let rotation = Rotation { max_file_size: 20, keep };
        let mut journal = Journal::open(path, rotation).expect("opens").journal;
        for number in 0..12 {
            journal.append(&line(number)).expect("appended");
            journal.sync().expect("synced");
            assert_eq!(trace.volatile(), [""; 0], "keep {keep}, line {number}");
        }
        let rotations = trace.calls().iter().filter(|call| matches!(call, Call::Create(_))).count() - 1;
        assert_eq!(rotations, 5, "keep {keep}");
    }
}

/// Usage and refusals are appended many times before they are synced, and a rotation may happen in
/// between.
#[test]
fn rotation_syncs_lines_that_were_not_synced_yet() {
    let directory = directory();
    let trace = Trace::of(directory.path());
    let rotation = Rotation { max_file_size: 20, keep: 3 };
    let mut journal = Journal::open(directory.path().join("a.jsonl"), rotation).expect("opens").journal;
    for number in 0..5 {
        journal.append(&line(number)).expect("appended");
    }
    journal.sync().expect("synced");
    assert_eq!(trace.volatile(), [""; 0]);
}

#[test]
fn recreated_journal_is_durable_under_its_name() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let trace = Trace::of(directory.path());
    let mut journal = opened(&path).journal;
    for number in 0..3 {
        fs::rename(&path, directory.path().join(format!("moved-{number}"))).expect("moves");
        journal.append(&line(number)).expect("appended");
        journal.sync().expect("synced");
        assert_eq!(trace.volatile(), [""; 0]);
    }
}

#[test]
fn new_state_directory_is_durable() {
    let parent = directory();
    let trace = Trace::of(parent.path());
    let path = parent.path().join("state");
    let _locked = StateDir::open(&path, true).expect("opens").expect("there");
    let made = trace.calls();
    assert_eq!(made, [Call::CreateDirectory(path), Call::SyncDirectory(parent.path().to_owned())]);
}
