//! What is read of files that change, and of those that do not.

use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::*;

/// A file that was last written a moment before something else was done to it.
fn placed(ago: Duration) -> (tempfile::TempDir, SourceFile) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys.csv");
    std::fs::write(&path, format!("key_hash,key_id\n{:064x},k\n", 1)).expect("writes");
    let file = File::options().write(true).open(&path).expect("opens");
    file.set_modified(SystemTime::now() - ago).expect("sets the time");
    let (format, mapping, plans) = (Format::Csv, ColumnMapping::default(), Arc::default());
    (directory, SourceFile { path: path.into(), format, mapping, plans, on_bad_row: BadRowPolicy::Refuse })
}

#[test]
fn what_was_renamed_into_place_is_read_before_it_has_settled_and_taken_after_that() {
    let settle = Duration::from_millis(400);
    let (_directory, source) = placed(Duration::from_millis(100));
    let state = FileState::of(&source.path).expect("a file");
    assert!(state.was_renamed() && state.unsettled(settle) <= TIME_GRANULARITY);
    let loaded = source.load_settled(7, SettleWindow::new(settle)).expect("loads");
    let loaded = loaded.accepted().expect("no findings");
    assert_eq!((loaded.keys.len(), loaded.state), (1, state));
    assert_eq!(state.unwritten(settle), Duration::ZERO, "it has not been written to for so long");
}

/// Loads `source`, and does something whenever some of it has been read.
fn load_and(source: &SourceFile, mut meanwhile: impl FnMut() + Send) -> Result<LoadedSource, ReloadError> {
    let settling = SettleWindow::new(Duration::from_millis(200));
    source
        .build_settled(7, settling, None, &mut |_| meanwhile())
        .and_then(|built| LoadOutcome::new(built).accepted())
}

#[test]
fn what_is_replaced_while_it_is_read_is_taken_as_it_was() {
    let (directory, source) = placed(Duration::from_millis(100));
    let state = FileState::of(&source.path).expect("a file");
    let loaded = load_and(&source, || {
        let new = directory.path().join("new.csv");
        std::fs::write(&new, "something else").expect("writes");
        std::fs::rename(&new, &source.path).expect("renames");
    });
    let loaded = loaded.expect("it was whole");
    assert_eq!((loaded.keys.len(), loaded.state.inode), (1, state.inode));
    assert!(FileState::of(&source.path).is_some_and(|now| now != loaded.state), "the new one is seen as new");
}

#[test]
fn what_is_written_to_while_it_is_read_is_not_taken_whatever_its_times_say() {
    let rows = |number: u32| format!("key_hash,key_id\n{number:064x},k\n");
    for restored in [true, false] {
        let (_directory, source) = placed(Duration::from_millis(100));
        let file = File::options().write(true).open(&source.path).expect("opens");
        let modified = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
        let mut number = 1;
        let loaded = load_and(&source, || {
            number += 1;
            file.write_all_at(rows(number).as_bytes(), 0).expect("writes");
            if restored {
                file.set_modified(modified).expect("sets the time");
            }
        });
        assert!(matches!(loaded, Err(ReloadError::Changing { .. })), "restored: {restored}");
    }
}

/// A source of so many rows at a path.
fn source(path: std::path::PathBuf) -> SourceFile {
    let (format, mapping, plans) = (Format::Csv, ColumnMapping::default(), Arc::default());
    SourceFile { path: path.into(), format, mapping, plans, on_bad_row: BadRowPolicy::Refuse }
}

/// Does something at intervals until `work` is done, and says how long that took.
fn beside<T>(
    interval: Duration,
    mut storm: impl FnMut(u32) + Send,
    work: impl FnOnce() -> T,
) -> (T, Duration) {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 2.. {
                storm(number);
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
fn source_that_is_replaced_all_the_time_is_loaded_without_delay() {
    let settle = Duration::from_millis(50);
    for interval in [0, 1, 10, 30] {
        let (directory, source) = placed(Duration::from_millis(100));
        let storm = |number: u32| {
            let new = directory.path().join("new.csv");
            std::fs::write(&new, format!("key_hash,key_id\n{number:064x},k\n")).expect("writes");
            std::fs::rename(&new, &source.path).expect("renames");
        };
        let load = || source.load_settled(7, SettleWindow::new(settle));
        let (loaded, took) = beside(Duration::from_millis(interval), storm, || [load(), load(), load()]);
        assert!(loaded.iter().all(Result::is_ok), "{interval} ms: {:?}", loaded[0].as_ref().err());
        assert!(took < Duration::from_secs(4), "{interval} ms: {took:?}, and each takes some {settle:?}");
    }
}

#[test]
fn writer_that_never_pauses_is_waited_for_only_so_long() {
    let (_directory, source) = placed(Duration::from_millis(100));
    let file = File::options().write(true).open(&source.path).expect("opens");
    let storm = |number: u32| file.write_all_at(format!("{number}").as_bytes(), 0).expect("writes");
    let settling = SettleWindow {
        settle: Duration::from_millis(200),
        give_up: Instant::now() + Duration::from_millis(600),
    };
    let (loaded, took) = beside(Duration::from_millis(5), storm, || source.load_settled(7, settling));
    let error = loaded.err().expect("it never holds still");
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
        // A path that goes on leading to the file, as one through a mount does.
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
    assert!(odd.load(7).is_ok(), "a name says nothing");
}

#[test]
fn what_is_written_in_place_has_to_settle_before_it_is_read() {
    let settle = Duration::from_secs(3600);
    let (_directory, source) = placed(Duration::from_millis(100));
    let state = FileState::of(&source.path).expect("a file");
    let written = FileState { changed: state.modified, ..state };
    assert!(!written.was_renamed() && written.unsettled(settle) > settle / 2);
    let (_directory, old) = placed(Duration::from_secs(7200));
    assert!(FileState::of(&old.path).expect("a file").unsettled(settle) <= TIME_GRANULARITY);
}
