//! Balances over restarts of a daemon: they are restored and aged by the elapsed time. A damaged
//! file loses the balances and nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::support::serve_process::ServeProcess;
use crate::support::{Daemon, Export, Row, Setup, replace_export, row, wait_for};
use keyward_client::Request;
use keyward_engine::limiter::ClockReading;
use keyward_engine::limiter::persist::{SavedBalances, decode, encode};

/// Refills one unit in 100 seconds, so nothing during a test.
const SLOW: &str = "864/d burst 10";
const UNIT_SECONDS: u64 = 100;

/// Balances are saved at shutdown only.
const SAVE_AT_SHUTDOWN: &str = "state.save_interval = '1h'";
const SAVE_OFTEN: &str = "state.save_interval = '100ms'";

const NANOSECONDS: u64 = 1_000_000_000;

fn slow(key: &str) -> Row {
    row(key).limits(SLOW)
}

fn start(config: &str) -> Daemon {
    let daemon = Setup::new(Export::new(["one", "two"].map(slow))).config(config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

fn spend(daemon: &Daemon, key: &str, cost: u32) -> String {
    let decision = daemon.client().verify(&Request::new(key).cost(cost)).expect("an answer");
    decision.verdict().name().to_owned()
}

fn remaining(daemon: &Daemon, key: &str) -> u32 {
    let decision = daemon.client().verify(&Request::new(key).peek()).expect("an answer");
    decision.limit().expect("a limit").remaining
}

fn balances_path(daemon: &Daemon) -> PathBuf {
    daemon.setup.path("balances")
}

fn saved(daemon: &Daemon) -> Option<SavedBalances> {
    let bytes = fs::read(balances_path(daemon)).ok()?;
    Some(decode(&mut &*bytes).expect("a complete file at every moment"))
}

#[test]
fn balance_survives_a_restart() {
    let daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 7), "ALLOWED");
    let daemon = daemon.stop_and_restart();
    assert_eq!((remaining(&daemon, "one"), remaining(&daemon, "two")), (3, 10));
    assert_eq!(spend(&daemon, "one", 4), "RATE_LIMITED");
    assert_eq!(spend(&daemon, "one", 3), "ALLOWED");
    let daemon = daemon.stop_and_restart();
    assert_eq!(spend(&daemon, "one", 1), "RATE_LIMITED");
    daemon.assert_logged("balances restored");
    assert_eq!(saved(&daemon).expect("a file").limits.len(), 1, "a full bucket is not saved");
}

#[test]
fn balance_ages_by_boot_time_or_after_a_reboot_by_wall_clock() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.stop();
    let SavedBalances { saved_at: stamp, calendar, limits } = saved(&daemon).expect("a file");
    assert!(stamp.boot_id.is_some(), "the boot ID is known");
    // As if the balances had been saved this many seconds earlier.
    let before = |stamp: ClockReading, boottime: u64, realtime: u64| ClockReading {
        boottime: stamp.boottime - boottime * NANOSECONDS,
        realtime: stamp.realtime - realtime * NANOSECONDS,
        ..stamp
    };
    let other = ClockReading { boot_id: Some([1; 16]), ..stamp };
    let unknown = ClockReading { boottime_offset: None, ..stamp };
    let future = ClockReading { realtime: stamp.realtime + 1_000_000 * NANOSECONDS, ..other };
    // The test machine may have booted less than a unit ago, which cannot be subtracted then.
    let boottime = stamp.boottime / NANOSECONDS >= UNIT_SECONDS;
    let cases = [
        ("the same boot", before(stamp, if boottime { UNIT_SECONDS } else { 0 }, 500), u32::from(boottime)),
        ("an unknown time namespace", before(unknown, if boottime { UNIT_SECONDS } else { 0 }, 0), 0),
        ("another boot", before(other, 0, 3 * UNIT_SECONDS), 3),
        ("an unknown boot", before(ClockReading { boot_id: None, ..stamp }, 0, 2 * UNIT_SECONDS), 2),
        ("long ago", before(other, 0, 86_400), 10),
        ("a calendar that was set back", future, 0),
    ];
    for (what, stamp, expected) in cases {
        let mut bytes = Vec::new();
        encode(&stamp, calendar, limits.iter().copied(), &mut bytes).expect("memory");
        fs::write(balances_path(&daemon), bytes).expect("a file");
        daemon = daemon.kill_and_restart();
        assert_eq!(remaining(&daemon, "one"), expected, "{what}: {}", daemon.log());
        daemon.kill();
    }
}

#[test]
fn killed_daemon_restores_its_last_save() {
    let daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    let daemon = daemon.stop_and_restart();
    assert_eq!(spend(&daemon, "one", 3), "ALLOWED");
    let daemon = daemon.kill_and_restart();
    assert_eq!(remaining(&daemon, "one"), 6, "only charges since the last save are lost");
}

#[test]
fn balances_are_saved_periodically() {
    let daemon = start(SAVE_OFTEN);
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    wait_for("a save", || saved(&daemon).filter(|saved| saved.limits.len() == 1));
    assert_eq!(spend(&daemon, "two", 3), "ALLOWED");
    wait_for("another save", || saved(&daemon).filter(|saved| saved.limits.len() == 2));
    let daemon = daemon.kill_and_restart();
    assert_eq!((remaining(&daemon, "one"), remaining(&daemon, "two")), (6, 7));
}

#[test]
fn restarts_without_requests_lose_no_balance() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    for _ in 0..3 {
        daemon = daemon.stop_and_restart();
        assert!(saved(&daemon).is_some());
    }
    assert_eq!(remaining(&daemon, "one"), 6);
}

#[test]
fn missing_balances_of_a_used_directory_are_reported() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    let message = "the saved balances are missing";
    assert!(!daemon.log().contains(message), "a new directory has none: {}", daemon.log());
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    daemon.stop();
    fs::remove_file(balances_path(&daemon)).expect("removes");
    let daemon = daemon.kill_and_restart();
    assert_eq!(remaining(&daemon, "one"), 10);
    daemon.assert_logged(message);
}

#[test]
fn damaged_file_loses_only_the_balances() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.stop();
    let whole = fs::read(balances_path(&daemon)).expect("a file");
    let changed = |at: usize, to: u8| {
        let mut bytes = whole.clone();
        bytes[at] = to;
        bytes
    };
    let last = whole.len() - 8;
    let cases = [
        (whole[..whole.len() - 1].to_vec(), "it ends too early"),
        (Vec::new(), "it ends too early"),
        (changed(last, !whole[last]), ""),
        (changed(20, !whole[20]), "its checksum does not match"),
        (
            changed(12, 2),
            "it is of version 2; this keyward reads version 3. It is not damaged: start the keyward that wrote it",
        ),
        (changed(12, 9), "it is of version 9; this keyward reads version 3"),
        (b"key_hash,key_id\n".to_vec(), "it is not a file of saved balances"),
        ([&*whole, b"\n"].concat(), "there is something after its end"),
    ];
    let aside = daemon.setup.path("balances.damaged");
    for (bytes, reason) in cases {
        fs::write(balances_path(&daemon), &bytes).expect("a file");
        daemon = daemon.kill_and_restart();
        assert_eq!(remaining(&daemon, "one"), 10, "{reason}");
        assert_eq!(spend(&daemon, "one", 10), "ALLOWED", "{reason}");
        for part in [reason, "cannot be used", "ERROR", &*aside.display().to_string()] {
            daemon.assert_logged(part);
        }
        assert_eq!(fs::read(&aside).expect("the damaged one"), bytes, "{reason}: kept for diagnosis");
        daemon = daemon.stop_and_restart();
        assert_eq!(remaining(&daemon, "one"), 0, "{reason}: saved again");
        daemon.stop();
    }
}

/// A sparse file takes no space on the disk, and must not take a terabyte of memory.
#[test]
fn file_of_any_length_is_not_read_as_a_whole() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.stop();
    let whole = fs::read(balances_path(&daemon)).expect("a file");
    for begin in [0, whole.len()] {
        fs::write(balances_path(&daemon), &whole[..begin]).expect("writes");
        let file = fs::File::options().write(true).open(balances_path(&daemon)).expect("opens");
        file.set_len(1 << 40).expect("grows");
        daemon = daemon.kill_and_restart();
        assert_eq!(remaining(&daemon, "one"), 10, "{}", daemon.log());
        daemon.assert_logged("the saved balances cannot be used");
        daemon.kill();
    }
}

/// Full buckets would admit again what was admitted.
#[test]
fn file_that_cannot_be_read_prevents_the_start() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.stop();
    let (path, moved) = (balances_path(&daemon), daemon.setup.path("moved"));
    fs::rename(&path, &moved).expect("moved");
    // A loop of links: reading it is an error of the system, also for root.
    symlink(&path, &path).expect("a link");
    let mut refused = ServeProcess::start(daemon.setup.command());
    assert_eq!(refused.wait_for_exit().code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains(&format!("{}: cannot read it", path.display())), "{}", daemon.log());
    fs::rename(&moved, &path).expect("moved back");
    daemon = daemon.kill_and_restart();
    assert_eq!(remaining(&daemon, "one"), 0);
}

#[test]
fn directory_in_place_of_the_file_is_moved_aside() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    daemon.kill();
    fs::remove_file(balances_path(&daemon)).expect("there since the first start");
    fs::create_dir(balances_path(&daemon)).expect("a directory");
    let daemon = daemon.kill_and_restart();
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.assert_logged("cannot be used");
    let daemon = daemon.stop_and_restart();
    assert_eq!(remaining(&daemon, "one"), 0);
}

#[test]
fn key_absent_over_a_restart_is_not_refilled() {
    let mut daemon = start(SAVE_AT_SHUTDOWN);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.stop();
    replace_export(&daemon.setup.source(), Export::new([slow("two")]));
    let daemon = daemon.kill_and_restart().stop_and_restart();
    assert_eq!(daemon.verdict("one"), "UNKNOWN_KEY");
    daemon.publish(Export::new([slow("two"), row("one").limits("864/d burst 20")]));
    assert_eq!(remaining(&daemon, "one"), 0, "another rate does not refill it either");
    assert_eq!(remaining(&daemon, "two"), 10);
}

#[test]
fn balances_survive_a_start_with_a_broken_source() {
    let mut daemon = start("state.save_interval = '1h'\nstate.keep_snapshot = false");
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.stop();
    daemon.spoil_source();
    let daemon = daemon.kill_and_restart().stop_and_restart();
    assert_eq!(daemon.verdict("one"), "NOT_READY");
    daemon.publish(Export::new([slow("one")]));
    assert_eq!(remaining(&daemon, "one"), 0);
}

#[test]
fn owner_balance_survives_a_restart() {
    let plan = "[plans.team]\nshared = { limit = '864/d burst 10', per = 'owner' }\n";
    let export = |keys: [&str; 2]| Export::new(keys.map(|key| row(key).owner("acme").plan("team")));
    let mut daemon = Setup::new(export(["one", "two"])).config(SAVE_AT_SHUTDOWN).config(plan).start();
    assert_eq!(spend(&daemon, "one", 6), "ALLOWED");
    daemon.stop();
    // Neither removing a key nor adding one refills the bucket of the owner.
    replace_export(&daemon.setup.source(), export(["two", "three"]));
    let daemon = daemon.kill_and_restart();
    assert_eq!((remaining(&daemon, "two"), remaining(&daemon, "three")), (4, 4));
}
