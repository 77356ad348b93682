//! Changes of the source that the watch must detect: the poll interval of these daemons is an hour.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Daemon, Export, SetOnDrop, Setup, mode, replace_export, wait_until};
use keyward_admin::message::Reload;

const POLL: &str = "poll = '1h'";

fn export(key: &str) -> Export {
    Export::of([key])
}

/// A daemon whose source has this path in the daemon's directory.
fn start(path: &str, prepare: impl FnOnce(&Path)) -> Daemon {
    let setup = Setup::without_export();
    prepare(setup.dir.path());
    let path = setup.path(path);
    setup.config(&format!("source.path = '{}'\nsource.{POLL}", path.display())).start()
}

fn write(path: &Path, key: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, mode::encode_export(path, &export(key).to_csv())).expect("an export");
}

fn wait_until_served(daemon: &Daemon, key: &str) {
    wait_until(&format!("the keys of {key}"), || daemon.verdict(key) == "ALLOWED");
}

#[test]
fn changed_release_link_is_followed() {
    let daemon = start("current/keys.csv", |root| {
        write(&root.join("releases/one/keys.csv"), "one");
        symlink("releases/one", root.join("current")).expect("a link");
    });
    wait_until_served(&daemon, "one");
    for key in ["two", "three"] {
        write(&daemon.setup.path(&format!("releases/{key}/keys.csv")), key);
        symlink(format!("releases/{key}"), daemon.setup.path("new")).expect("a link");
        fs::rename(daemon.setup.path("new"), daemon.setup.path("current")).expect("renames");
        wait_until_served(&daemon, key);
        let later = format!("{key}-later");
        replace_export(&daemon.setup.path(&format!("releases/{key}/keys.csv")), export(&later));
        wait_until_served(&daemon, &later);
    }
    daemon.assert_logged("leads through another directory");
}

#[test]
fn directory_created_later_or_again_is_watched() {
    let daemon = start("a/b/keys.csv", |_| ());
    assert!(!daemon.status().ready);
    write(&daemon.setup.path("a/b/keys.csv"), "one");
    wait_until_served(&daemon, "one");
    for (key, level) in [("two", "a/b"), ("three", "a")] {
        fs::remove_dir_all(daemon.setup.path(level)).expect("removes");
        wait_until("the absence to be noticed", || {
            daemon.status().last_reload.is_some_and(|last| !last.accepted)
        });
        write(&daemon.setup.path("a/b/keys.csv"), key);
        wait_until_served(&daemon, key);
    }
}

#[test]
fn changed_source_path_is_watched() {
    let daemon = start("one/keys.csv", |root| {
        write(&root.join("one/keys.csv"), "one");
        write(&root.join("two/keys.csv"), "two");
    });
    wait_until_served(&daemon, "one");
    let path = daemon.setup.path("two/keys.csv");
    let config = format!("source.path = '{}'\nsource.{POLL}\n", path.display());
    fs::write(daemon.setup.path("keyward.toml"), config).expect("writes");
    let outcome = daemon.force_reload();
    assert!(outcome.accepted, "{outcome:?}");
    for key in ["three", "four"] {
        replace_export(&path, export(key));
        wait_until_served(&daemon, key);
    }
}

#[test]
fn constant_replacement_does_not_delay_reloads() {
    let daemon = Daemon::serving(export("one"));
    let source = daemon.setup.source();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                replace_export(&source, export("storm"));
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
        wait_until_served(&daemon, "storm");
        // Delayed reloads would take up to ten seconds each, in every attempt. A busy disk delays
        // some.
        let mut attempts = (0..5).map(|_| {
            let start = Instant::now();
            for _ in 0..5 {
                let outcome = daemon.reload();
                assert!(outcome.accepted, "{outcome:?}");
            }
            start.elapsed()
        });
        let is_prompt = attempts.any(|took| took < Duration::from_secs(10));
        assert!(is_prompt, "in each of five attempts, five reloads took ten seconds or more");
    });
    replace_export(&source, export("last"));
    wait_until_served(&daemon, "last");
}

#[test]
fn reload_beside_a_writer_that_never_pauses_is_refused() {
    const SETTLE: Duration = Duration::from_secs(1);
    let daemon = Setup::text(export("one")).config("source.settle = '1s'").start();
    // A busy file system can make the writer pause for longer than that; then the reload proves
    // nothing.
    let is_refused = (0..10).any(|_| {
        let start = Instant::now();
        let (outcome, longest_pause) = reload_beside_a_writer(&daemon);
        let took = start.elapsed();
        if longest_pause >= SETTLE / 2 {
            return false;
        }
        assert!(!outcome.accepted && took < Duration::from_secs(12), "{took:?} {outcome:?}");
        let error = outcome.error.expect("a reason");
        assert!(error.contains("changed while it was read") && error.contains("rename it"), "{error}");
        true
    });
    assert!(is_refused, "the writer paused during each of ten reloads");
    wait_until_served(&daemon, "two");
}

/// Reloads while a thread writes the source again and again. Also returns the longest time between
/// two changes of the file.
fn reload_beside_a_writer(daemon: &Daemon) -> (Reload, Duration) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let content = export("two").to_csv();
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                let mut file = File::create(daemon.setup.source()).expect("truncates");
                longest = longest.max(last.elapsed());
                last = Instant::now();
                file.write_all(content.as_bytes()).expect("writes");
                longest = longest.max(last.elapsed());
                last = Instant::now();
                drop(file);
                std::thread::sleep(Duration::from_millis(5));
            }
            longest.max(last.elapsed())
        });
        let outcome = {
            let _end = SetOnDrop(&stop);
            daemon.reload()
        };
        (outcome, writer.join().expect("the writer"))
    })
}
