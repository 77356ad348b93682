//! Loading files that change meanwhile, and files that do not.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::reload::BadRowPolicy;
use crate::reload::file_state::TIME_GRANULARITY;
use keyward_source::{ColumnMapping, Format};

/// A source whose inode changed `ago` after its last write, as after a rename.
fn renamed_source(ago: Duration) -> (tempfile::TempDir, SourceFile) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys.csv");
    std::fs::write(&path, format!("key_hash,key_id\n{:064x},k\n", 1)).expect("writes");
    let file = File::options().write(true).open(&path).expect("opens");
    file.set_modified(SystemTime::now() - ago).expect("sets the time");
    let (format, mapping, plans) = (Format::Csv, ColumnMapping::default(), Arc::default());
    (directory, SourceFile { path: path.into(), format, mapping, plans, on_bad_row: BadRowPolicy::Refuse })
}

#[test]
fn renamed_file_is_read_before_it_settles_and_accepted_afterwards() {
    let settle = Duration::from_millis(400);
    let (_directory, source) = renamed_source(Duration::from_millis(100));
    let state = FileState::of(&source.path).expect("a file");
    assert!(state.was_renamed() && state.until_settled(settle) <= TIME_GRANULARITY);
    let loaded = source.load_settled(7, SettleWindow::new(settle)).expect("loads");
    let loaded = loaded.accepted().expect("no diagnostics");
    assert_eq!((loaded.keys.len(), loaded.state), (1, state));
    assert_eq!(state.until_unwritten_for(settle), Duration::ZERO, "it has settled");
}

/// Loads `source`, and calls `meanwhile` after each part of it.
fn load_with(source: &SourceFile, mut meanwhile: impl FnMut() + Send) -> Result<LoadedSource, ReloadError> {
    let window = SettleWindow::new(Duration::from_millis(200));
    source
        .parse_settled(7, window, None, &mut |_| meanwhile())
        .and_then(|parsed| LoadOutcome::new(parsed).accepted())
}

#[test]
fn file_replaced_during_a_load_is_loaded_as_it_was() {
    let (directory, source) = renamed_source(Duration::from_millis(100));
    let state = FileState::of(&source.path).expect("a file");
    let loaded = load_with(&source, || {
        let new = directory.path().join("new.csv");
        std::fs::write(&new, "something else").expect("writes");
        std::fs::rename(&new, &source.path).expect("renames");
    });
    let loaded = loaded.expect("it was whole");
    assert_eq!((loaded.keys.len(), loaded.state.inode()), (1, state.inode()));
    assert!(FileState::of(&source.path).is_some_and(|now| now != loaded.state), "the replacement differs");
}

#[test]
fn file_written_during_a_load_is_refused_even_if_its_mtime_is_reset() {
    let rows = |number: u32| format!("key_hash,key_id\n{number:064x},k\n");
    for restored in [true, false] {
        let (_directory, source) = renamed_source(Duration::from_millis(100));
        let file = File::options().write(true).open(&source.path).expect("opens");
        let modified = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
        let mut number = 1;
        let loaded = load_with(&source, || {
            number += 1;
            file.write_all_at(rows(number).as_bytes(), 0).expect("writes");
            if restored {
                file.set_modified(modified).expect("sets the time");
            }
        });
        assert!(matches!(loaded, Err(ReloadError::Changing { .. })), "restored: {restored}");
    }
}

/// A source at `path`.
fn source(path: std::path::PathBuf) -> SourceFile {
    let (format, mapping, plans) = (Format::Csv, ColumnMapping::default(), Arc::default());
    SourceFile { path: path.into(), format, mapping, plans, on_bad_row: BadRowPolicy::Refuse }
}

/// Calls `interfere` at intervals until `work` is done, and returns how long that took.
fn during<T>(
    interval: Duration,
    mut interfere: impl FnMut(u32) + Send,
    work: impl FnOnce() -> T,
) -> (T, Duration) {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 2.. {
                interfere(number);
                if is_done.recv_timeout(interval) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
            }
        });
        let start = Instant::now();
        let result = work();
        drop(done);
        (result, start.elapsed())
    })
}

#[test]
fn source_that_is_replaced_continuously_is_loaded_without_delay() {
    let settle = Duration::from_millis(50);
    for interval in [0, 1, 10, 30] {
        let (directory, source) = renamed_source(Duration::from_millis(100));
        let interfere = |number: u32| {
            let new = directory.path().join("new.csv");
            std::fs::write(&new, format!("key_hash,key_id\n{number:064x},k\n")).expect("writes");
            std::fs::rename(&new, &source.path).expect("renames");
        };
        let load = || source.load_settled(7, SettleWindow::new(settle));
        let (loaded, took) = during(Duration::from_millis(interval), interfere, || [load(), load(), load()]);
        assert!(loaded.iter().all(Result::is_ok), "{interval} ms: {:?}", loaded[0].as_ref().err());
        assert!(
            took < Duration::from_secs(4),
            "{interval} ms: {took:?}, and each load takes about {settle:?}"
        );
    }
}

#[test]
fn wait_for_a_writer_that_never_pauses_is_bounded() {
    let (_directory, source) = renamed_source(Duration::from_millis(100));
    let file = File::options().write(true).open(&source.path).expect("opens");
    let interfere = |number: u32| file.write_all_at(format!("{number}").as_bytes(), 0).expect("writes");
    let window = SettleWindow {
        settle: Duration::from_millis(200),
        deadline: Instant::now() + Duration::from_millis(600),
    };
    let (loaded, took) = during(Duration::from_millis(5), interfere, || source.load_settled(7, window));
    let error = loaded.err().expect("it never settles");
    assert!(matches!(error, ReloadError::Changing { .. }), "{error}");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn reload_of_unlinked_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys.csv");
    for has_other_link in [false, true] {
        std::fs::write(&path, format!("key_hash,key_id\n{:064x},k\n", 1)).expect("writes");
        let open = File::open(&path).expect("opens");
        // A path that still leads to the file, as one through a mount does.
        let behind = source(format!("/proc/self/fd/{}", open.as_raw_fd()).into());
        assert!(behind.load(7).is_ok());
        if has_other_link {
            std::fs::hard_link(&path, directory.path().join("other")).expect("links");
        }
        std::fs::remove_file(&path).expect("removes");
        let error = behind.load(7).err().expect("it is refused").to_string();
        assert!(
            error.contains("deleted, or replaced by another") && error.contains("Mount the directory"),
            "{error}"
        );
    }
    let odd = source(directory.path().join("keys.csv (deleted)"));
    std::fs::write(&odd.path, format!("key_hash,key_id\n{:064x},k\n", 1)).expect("writes");
    assert!(odd.load(7).is_ok(), "the name alone decides nothing");
}

#[test]
fn file_written_in_place_must_settle_before_it_is_read() {
    let settle = Duration::from_secs(3600);
    let (_directory, source) = renamed_source(Duration::from_millis(100));
    let state = FileState::of(&source.path).expect("a file");
    let written = state.without_rename();
    assert!(!written.was_renamed() && written.until_settled(settle) > settle / 2);
    let (_directory, old) = renamed_source(Duration::from_secs(7200));
    assert!(FileState::of(&old.path).expect("a file").until_settled(settle) <= TIME_GRANULARITY);
}
