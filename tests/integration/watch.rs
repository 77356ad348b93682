//! Changes of the source that only a watch can notice in time: the poll of these daemons is an hour.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Daemon, Setup, mode, replace_export, sha256_hex, wait_for};

const NEVER: &str = "poll = '1h'";

fn export(key: &str) -> String {
    format!("key_hash,key_id\n{},{key}\n", sha256_hex(key))
}

/// A daemon whose source is at a path of its directory.
fn serving(path: &str, prepare: impl FnOnce(&Path)) -> Daemon {
    let setup = Setup::without_export();
    prepare(setup.dir.path());
    let path = setup.path(path);
    setup.config(&format!("source.path = '{}'\nsource.{NEVER}", path.display())).start()
}

fn write(path: &Path, key: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, mode::encode_export(path, &export(key))).expect("an export");
}

fn takes(daemon: &Daemon, key: &str) {
    wait_for(&format!("the keys of {key}"), || (daemon.verdict(key) == "ALLOWED").then_some(()));
}

#[test]
fn release_link_that_is_turned_is_taken_again_and_again() {
    let daemon = serving("current/keys.csv", |root| {
        write(&root.join("releases/one/keys.csv"), "one");
        symlink("releases/one", root.join("current")).expect("a link");
    });
    takes(&daemon, "one");
    for key in ["two", "three"] {
        write(&daemon.setup.path(&format!("releases/{key}/keys.csv")), key);
        symlink(format!("releases/{key}"), daemon.setup.path("new")).expect("a link");
        fs::rename(daemon.setup.path("new"), daemon.setup.path("current")).expect("renames");
        takes(&daemon, key);
        let later = format!("{key}-later");
        replace_export(&daemon.setup.path(&format!("releases/{key}/keys.csv")), &export(&later));
        takes(&daemon, &later);
    }
    daemon.assert_logged("leads through another directory");
}

#[test]
fn directory_that_is_created_again_or_later_is_taken() {
    let daemon = serving("a/b/keys.csv", |_| ());
    assert!(!daemon.status().ready);
    write(&daemon.setup.path("a/b/keys.csv"), "one");
    takes(&daemon, "one");
    for (key, level) in [("two", "a/b"), ("three", "a")] {
        fs::remove_dir_all(daemon.setup.path(level)).expect("removes");
        wait_for("the absence to be noticed", || {
            daemon.status().last_reload.is_some_and(|last| !last.accepted).then_some(())
        });
        write(&daemon.setup.path("a/b/keys.csv"), key);
        takes(&daemon, key);
    }
}

#[test]
fn another_source_path_is_watched_from_the_reload_that_takes_it() {
    let daemon = serving("one/keys.csv", |root| {
        write(&root.join("one/keys.csv"), "one");
        write(&root.join("two/keys.csv"), "two");
    });
    takes(&daemon, "one");
    let path = daemon.setup.path("two/keys.csv");
    let config = format!("source.path = '{}'\nsource.{NEVER}\n", path.display());
    fs::write(daemon.setup.path("keyward.toml"), config).expect("writes");
    let outcome = daemon.force_reload();
    assert!(outcome.accepted, "{outcome:?}");
    for key in ["three", "four"] {
        replace_export(&path, &export(key));
        takes(&daemon, key);
    }
}

/// Whatever arrives meanwhile, a reload takes what is there; and a change is taken without one.
#[test]
fn source_that_is_replaced_all_the_time_delays_no_reload() {
    let daemon = Daemon::serving(&export("one"));
    let source = daemon.setup.source();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                replace_export(&source, &export("storm"));
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        scope.spawn(|| {
            for number in 0.. {
                fs::write(daemon.setup.path(&format!("other-{}", number % 50)), "x").expect("writes");
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        takes(&daemon, "storm");
        let start = Instant::now();
        for _ in 0..5 {
            let outcome = daemon.reload();
            assert!(outcome.accepted, "{outcome:?}");
        }
        // Each took up to ten seconds.
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
    replace_export(&source, &export("last"));
    takes(&daemon, "last");
}

#[test]
fn writer_that_never_pauses_is_an_error_and_not_a_delay() {
    // Far longer than the writer pauses on a loaded machine.
    let daemon = Setup::text(&export("one")).config("source.settle = '1s'").start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::write(daemon.setup.source(), export("two")).expect("writes");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let start = Instant::now();
        let outcome = daemon.reload();
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        assert!(!outcome.accepted && took < Duration::from_secs(12), "{took:?} {outcome:?}");
        let error = outcome.error.expect("a reason");
        assert!(error.contains("changed while it was read") && error.contains("rename it"), "{error}");
    });
    takes(&daemon, "two");
}
