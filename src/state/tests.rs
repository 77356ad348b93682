//! Files of the state directory after kills, with full disks, and with a second daemon.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use super::*;

mod durability;

const NO_ROTATION: Rotation = Rotation { max_file_size: 1 << 30, keep: 3 };

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn opened(path: &Path) -> OpenedJournal {
    Journal::open(path.to_owned(), NO_ROTATION).expect("opens")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a file")
}

#[test]
fn directory_is_created_and_locked_until_it_is_dropped() {
    let parent = directory();
    let path = parent.path().join("state");
    let open = || StateDir::open_within(&path, true, WriteHealth::default(), Duration::ZERO);
    let first = open().expect("opens").expect("there");
    assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o700);
    assert_eq!(first.path("file"), path.join("file"));
    let error = open().expect_err("in use").to_string();
    assert!(error.contains(&format!("another daemon, pid {};", std::process::id())), "{error}");
    let implicit = StateDir::open_within(&path, false, WriteHealth::default(), Duration::ZERO);
    assert!(
        matches!(implicit, Err(StateDirError::Locked { .. })),
        "a default directory in use is refused as well"
    );
    drop(first);
    assert!(open().expect("opens").is_some());
}

#[test]
fn open_waits_for_the_lock() {
    let directory = directory();
    let first = StateDir::open(directory.path(), true).expect("opens").expect("there");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
    });
    assert!(StateDir::open(directory.path(), true).expect("waits").is_some());
    ending.join().expect("ends");
}

#[test]
fn unusable_directory_is_an_error_only_if_it_is_explicit() {
    let parent = directory();
    let file = parent.path().join("file");
    fs::write(&file, "").expect("writes");
    for impossible in [file.as_path(), &file.join("state"), Path::new("/proc/state")] {
        let error = StateDir::open(impossible, true).expect_err("cannot").to_string();
        assert!(
            error.contains(&impossible.display().to_string()) && error.contains("--state-dir"),
            "{error}"
        );
        let health = WriteHealth::default();
        let none = StateDir::open_reporting(impossible, false, health.clone()).expect("goes without");
        assert!(none.is_none());
        let [absent] = &health.unwritten()[..] else { panic!("{health:?}") };
        assert_eq!(*absent.file, *impossible.display().to_string());
        assert!(absent.error.starts_with("no state directory: revocations"), "{}", absent.error);
    }
}

/// Otherwise its revocations would be ignored.
#[test]
fn unusable_default_directory_is_refused_if_a_daemon_has_used_it() {
    for name in ["lock", "revocations.jsonl"] {
        let directory = directory();
        fs::create_dir(directory.path().join("lock")).expect("in the way");
        fs::write(directory.path().join("revocations.jsonl"), "").expect("writes");
        if name == "lock" {
            fs::remove_file(directory.path().join("revocations.jsonl")).expect("removes");
        }
        assert!(matches!(StateDir::open(directory.path(), false), Err(StateDirError::Unusable(_))), "{name}");
    }
}

/// The target may be on a disk that is not mounted.
#[test]
fn default_directory_that_is_a_dangling_link_is_refused() {
    let directory = directory();
    let [missing, circle] = ["missing", "circle"].map(|name| directory.path().join(name));
    symlink(directory.path().join("not mounted"), &missing).expect("a link");
    symlink(&circle, &circle).expect("a link");
    for link in [missing, circle] {
        let opened = StateDir::open(&link, false);
        assert!(matches!(opened, Err(StateDirError::Unusable(_))), "{}", link.display());
    }
}

#[test]
fn symbolic_links_are_not_followed() {
    let directory = directory();
    let precious = directory.path().join("precious");
    fs::write(&precious, "precious").expect("writes");
    for name in ["usage.jsonl", "lock", "state.new"] {
        symlink(&precious, directory.path().join(name)).expect("a link");
    }
    assert!(Journal::open(directory.path().join("usage.jsonl"), NO_ROTATION).is_err());
    assert!(read(&directory.path().join("usage.jsonl"), 100).is_err());
    assert!(StateDir::open(directory.path(), true).is_err());
    let error = replace(&directory.path().join("state"), |file| file.write_all(b"x"));
    assert!(error.is_err());
    assert_eq!(text(&precious), "precious");
}

/// Of any length: a sparse file takes no space.
#[test]
fn file_is_not_read_beyond_the_length_of_a_valid_one() {
    let directory = directory();
    let path = directory.path().join("state");
    fs::write(&path, "0123456789").expect("writes");
    assert_eq!(read(&path, 10).expect("reads").as_deref(), Some(&b"0123456789"[..]));
    let error = read(&path, 9).expect_err("too long").to_string();
    assert!(error.contains("it is larger than 9 bytes"), "{error}");
    fs::File::options().write(true).open(&path).expect("opens").set_len(1 << 40).expect("grows");
    let error = read(&path, 1 << 20).expect_err("too long").to_string();
    assert!(error.contains("it is larger than 1048576 bytes"), "{error}");
}

#[test]
fn failed_replacement_keeps_the_old_file() {
    let directory = directory();
    let path = directory.path().join("state");
    replace(&path, |file| file.write_all(b"one")).expect("writes");
    assert_eq!(text(&path), "one");
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    let error = replace(&path, |file| {
        file.write_all(b"half")?;
        Err(io::Error::other("no more"))
    });
    assert!(error.expect_err("fails").to_string().ends_with("state.new: cannot write it: no more"));
    assert_eq!(text(&path), "one");
    assert!(!directory.path().join("state.new").exists());
    replace(&path, |file| file.write_all(b"2")).expect("writes");
    assert_eq!(text(&path), "2");
}

#[test]
fn torn_line_is_truncated_and_the_last_complete_line_is_returned() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let long = format!("{{\"n\":\"{}\"}}\n", "x".repeat(200_000));
    let hole = "{\"n\":1}\n\0\0\0\0\n\0\0";
    for (found, whole, last) in [
        ("", "", None),
        ("{\"n\":1}\n", "{\"n\":1}\n", Some("{\"n\":1}")),
        ("{\"n\":1}\n{\"n\":2}\n{\"n\"", "{\"n\":1}\n{\"n\":2}\n", Some("{\"n\":2}")),
        ("{\"n\":1}\n{\"n\":2}", "{\"n\":1}\n", Some("{\"n\":1}")),
        ("{\"n\"", "", None),
        ("\n", "", None),
        (hole, "{\"n\":1}\n", Some("{\"n\":1}")),
        (&long, &long, Some(long.trim_end())),
        (&long[..150_000], "", None),
        (&format!("{long}{}", &long[..150_000]), &long, Some(long.trim_end())),
    ] {
        fs::write(&path, found).expect("writes");
        let OpenedJournal { mut journal, last_line } = opened(&path);
        assert_eq!(text(&path), whole);
        assert_eq!(last_line.as_deref(), last.map(str::as_bytes));
        journal.append(b"{\"n\":3}\n").expect("writes");
        journal.sync().expect("durable");
        assert_eq!(text(&path), format!("{whole}{{\"n\":3}}\n"));
    }
}

#[test]
fn files_are_rotated_by_size_and_the_oldest_is_deleted() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let rotation = Rotation { max_file_size: 16, keep: 2 };
    let mut journal = Journal::open(path.clone(), rotation).expect("opens").journal;
    for n in 1..=7 {
        journal.append(format!("{{\"n\":{n}}}\n").as_bytes()).expect("writes");
    }
    let numbered = |number: u32| directory.path().join(format!("a.jsonl.{number}"));
    assert_eq!(text(&path), "{\"n\":7}\n");
    assert_eq!(text(&numbered(1)), "{\"n\":5}\n{\"n\":6}\n");
    assert_eq!(text(&numbered(2)), "{\"n\":3}\n{\"n\":4}\n");
    assert!(!numbered(3).exists());
    // Lines of one write are never split.
    journal.append(b"{\"n\":8}\n{\"n\":9}\n{\"n\":10}\n").expect("writes");
    assert_eq!(text(&path), "{\"n\":8}\n{\"n\":9}\n{\"n\":10}\n");

    // After a kill between the rename and the first line, the last line is in the previous file.
    fs::write(&path, "").expect("empties");
    assert_eq!(opened(&path).last_line.as_deref(), Some(&b"{\"n\":7}"[..]));
    fs::remove_file(&path).expect("removes");
    assert_eq!(opened(&path).last_line.as_deref(), Some(&b"{\"n\":7}"[..]));
}

#[test]
fn rotation_that_keeps_no_files_deletes_the_full_one() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let mut journal =
        Journal::open(path.clone(), Rotation { max_file_size: 8, keep: 0 }).expect("opens").journal;
    journal.append(b"{\"n\":1}\n").expect("writes");
    journal.append(b"{\"n\":2}\n").expect("writes");
    assert_eq!(text(&path), "{\"n\":2}\n");
    assert!(!directory.path().join("a.jsonl.1").exists());
}

#[test]
fn interrupted_rotation_loses_no_further_file() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let numbered = |number: u32| directory.path().join(format!("a.jsonl.{number}"));
    fs::write(&path, "{\"n\":3}\n").expect("writes");
    fs::write(numbered(2), "{\"n\":2}\n").expect("writes");
    fs::write(numbered(3), "{\"n\":1}\n").expect("writes");
    let mut journal =
        Journal::open(path.clone(), Rotation { max_file_size: 1, keep: 3 }).expect("opens").journal;
    journal.append(b"{\"n\":4}\n").expect("writes");
    let files = [path, numbered(1), numbered(2), numbered(3)].map(|path| text(&path));
    assert_eq!(files, [4, 3, 2, 1].map(|n| format!("{{\"n\":{n}}}\n")));
}

#[test]
fn file_rotated_by_another_program_is_reopened() {
    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let mut journal = opened(&path).journal;
    journal.append(b"{\"n\":1}\n").expect("writes");
    fs::rename(&path, directory.path().join("moved")).expect("moves");
    journal.append(b"{\"n\":2}\n").expect("writes");
    assert_eq!(text(&path), "{\"n\":2}\n");
    fs::write(&path, "").expect("empties");
    journal.append(b"{\"n\":3}\n").expect("writes");
    assert_eq!(text(&path), "{\"n\":3}\n");
    let moved = directory.path().join("moved");
    fs::rename(&path, &moved).expect("moves");
    fs::write(&path, "").expect("creates another file");
    journal.append(b"{\"n\":4}\n").expect("writes");
    assert_eq!([text(&path), text(&moved)], ["{\"n\":4}\n", "{\"n\":3}\n"]);
}

/// A limit of the file size simulates a full disk, because a test without root cannot fill one.
#[test]
fn partial_write_is_truncated_and_can_be_repeated() {
    /// Larger than any file that another test in this process writes.
    const LIMIT: u64 = 256 << 20;
    /// The limit's signal, which would end the process. With a handler, the write fails instead.
    const SIGXFSZ: i32 = 25;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let kind = tokio::signal::unix::SignalKind::from_raw(SIGXFSZ);
    let _handled = tokio::signal::unix::signal(kind).expect("a handler");

    let directory = directory();
    let path = directory.path().join("a.jsonl");
    let mut journal = opened(&path).journal;
    fs::OpenOptions::new().write(true).open(&path).expect("opens").set_len(LIMIT - 10).expect("a hole");
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(LIMIT), maximum: before.maximum }).expect("a limit");
    let failed = journal.append(b"{\"n\":1}\n{\"n\":2}\n");
    let again = journal.append(b"{\"n\":1}\n{\"n\":2}\n");
    setrlimit(Resource::Fsize, before).expect("no limit");
    let error = failed.expect_err("the disk is full").to_string();
    assert!(error.contains("a.jsonl: cannot write to it"), "{error}");
    assert!(again.is_err());
    assert_eq!(fs::metadata(&path).expect("a file").len(), LIMIT - 10, "no partial line");
    journal.append(b"{\"n\":1}\n{\"n\":2}\n").expect("there is room again");
    assert_eq!(fs::metadata(&path).expect("a file").len(), LIMIT + 6);
}
