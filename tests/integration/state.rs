//! Balances over a restart, through a real daemon: they go on from where they were, aged by the time that has passed, and
//! a file that is damaged costs nothing but them.

use std::fs;
use std::path::PathBuf;

use crate::support::{Daemon, Setup, replace_export, sha256_hex, wait_for};
use keyward_client::Request;
use keyward_engine::limiter::ClockReading;
use keyward_engine::limiter::persist::{SavedBucket, decode, encode};
use rustix::process::Signal;

/// Nothing refills in the time that a test takes: one unit in 100 seconds.
const SLOW: &str = "864/d burst 10";
const UNIT_SECONDS: u64 = 100;

/// Only the end of the daemon saves.
const NEVER: &str = "state.save_interval = '1h'";
const OFTEN: &str = "state.save_interval = '100ms'";

const NANOSECONDS: u64 = 1_000_000_000;

fn export(rows: &[(&str, &str)]) -> String {
    let header = "key_hash,key_id,owner,plan,limits\n".to_owned();
    rows.iter().fold(header, |text, (key, limits)| text + &format!("{},{key},,,{limits}\n", sha256_hex(key)))
}

fn serve(config: &str) -> Daemon {
    let daemon = Setup::new(&export(&[("one", SLOW), ("two", SLOW)])).config(config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

fn spend(daemon: &Daemon, key: &str, cost: u32) -> String {
    let decision = daemon.client().verify(&Request::new(key).cost(cost)).expect("an answer");
    decision.verdict().name().to_owned()
}

fn left(daemon: &Daemon, key: &str) -> u32 {
    let decision = daemon.client().verify(&Request::new(key).peek()).expect("an answer");
    decision.limit().expect("a limit").remaining
}

fn file(daemon: &Daemon) -> PathBuf {
    daemon.setup.path("balances")
}

fn saved(daemon: &Daemon) -> Option<(ClockReading, Vec<SavedBucket>)> {
    let bytes = fs::read(file(daemon)).ok()?;
    Some(decode(&mut &*bytes).expect("whole, at every moment"))
}

fn end(daemon: &mut Daemon) {
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
}

/// SIGTERM, and a new start in the same place.
fn again(mut daemon: Daemon) -> Daemon {
    end(&mut daemon);
    daemon.restart()
}

#[test]
fn a_balance_goes_on_over_a_restart() {
    let daemon = serve(NEVER);
    assert_eq!(spend(&daemon, "one", 7), "ALLOWED");
    let daemon = again(daemon);
    assert_eq!((left(&daemon, "one"), left(&daemon, "two")), (3, 10));
    assert_eq!(spend(&daemon, "one", 4), "RATE_LIMITED");
    assert_eq!(spend(&daemon, "one", 3), "ALLOWED");
    let daemon = again(daemon);
    assert_eq!(spend(&daemon, "one", 1), "RATE_LIMITED");
    daemon.assert_logged("balances restored");
    assert_eq!(saved(&daemon).expect("a file").1.len(), 1, "a full bucket needs no record");
}

#[test]
fn a_balance_is_aged_by_the_clock_of_its_boot_or_else_by_the_calendar() {
    let mut daemon = serve(NEVER);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    end(&mut daemon);
    let (stamp, buckets) = saved(&daemon).expect("a file");
    assert!(stamp.boot_id.is_some(), "/proc is there");
    // As if it had been saved so many seconds before.
    let before = |stamp: ClockReading, boottime: u64, realtime: u64| ClockReading {
        boottime: stamp.boottime - boottime * NANOSECONDS,
        realtime: stamp.realtime - realtime * NANOSECONDS,
        ..stamp
    };
    let other = ClockReading { boot_id: Some([1; 16]), ..stamp };
    let unknown = ClockReading { boottime_offset: None, ..stamp };
    let future = ClockReading { realtime: stamp.realtime + 1_000_000 * NANOSECONDS, ..other };
    // The test machine may have booted a moment ago: what is subtracted from its own clock has to be there.
    let boottime = stamp.boottime / NANOSECONDS >= UNIT_SECONDS;
    let cases = [
        ("the same boot", before(stamp, if boottime { UNIT_SECONDS } else { 0 }, 500), u32::from(boottime)),
        ("an unknown time namespace", before(unknown, if boottime { UNIT_SECONDS } else { 0 }, 0), 0),
        ("another boot", before(other, 0, 3 * UNIT_SECONDS), 3),
        ("no boot that is known", before(ClockReading { boot_id: None, ..stamp }, 0, 2 * UNIT_SECONDS), 2),
        ("long ago", before(other, 0, 86_400), 10),
        ("a calendar that was set back", future, 0),
    ];
    for (what, stamp, expected) in cases {
        let mut bytes = Vec::new();
        encode(&stamp, buckets.iter().copied(), &mut bytes).expect("memory");
        fs::write(file(&daemon), bytes).expect("a file");
        daemon = daemon.restart();
        assert_eq!(left(&daemon, "one"), expected, "{what}: {}", daemon.log());
        daemon.kill();
    }
}

#[test]
fn a_daemon_that_is_killed_goes_on_from_its_last_save() {
    let daemon = serve(NEVER);
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    let daemon = again(daemon);
    assert_eq!(spend(&daemon, "one", 3), "ALLOWED");
    let daemon = daemon.restart();
    assert_eq!(left(&daemon, "one"), 6, "what was spent since the save is forgotten, and no more");
}

#[test]
fn balances_are_saved_in_between() {
    let daemon = serve(OFTEN);
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    wait_for("a save", || saved(&daemon).filter(|(_, buckets)| buckets.len() == 1));
    assert_eq!(spend(&daemon, "two", 3), "ALLOWED");
    wait_for("another save", || saved(&daemon).filter(|(_, buckets)| buckets.len() == 2));
    let daemon = daemon.restart();
    assert_eq!((left(&daemon, "one"), left(&daemon, "two")), (6, 7));
}

#[test]
fn restarts_without_a_request_between_them_forget_nothing() {
    let mut daemon = serve(NEVER);
    assert_eq!(spend(&daemon, "one", 4), "ALLOWED");
    for _ in 0..3 {
        daemon = again(daemon);
        assert!(saved(&daemon).is_some());
    }
    assert_eq!(left(&daemon, "one"), 6);
}

#[test]
fn a_damaged_file_costs_the_balances_and_nothing_else() {
    let mut daemon = serve(NEVER);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    end(&mut daemon);
    let whole = fs::read(file(&daemon)).expect("a file");
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
        (changed(12, 9), "it is of version 9; this keyward reads version 2"),
        (b"key_hash,key_id\n".to_vec(), "it is not a file of saved balances"),
        ([&*whole, b"\n"].concat(), "there is something after its end"),
    ];
    let aside = daemon.setup.path("balances.damaged");
    for (bytes, reason) in cases {
        fs::write(file(&daemon), &bytes).expect("a file");
        daemon = daemon.restart();
        assert_eq!(left(&daemon, "one"), 10, "{reason}");
        assert_eq!(spend(&daemon, "one", 10), "ALLOWED", "{reason}");
        for part in [reason, "cannot be used", "ERROR", &*aside.display().to_string()] {
            daemon.assert_logged(part);
        }
        assert_eq!(fs::read(&aside).expect("the damaged one"), bytes, "{reason}: kept for who wants to look");
        daemon = again(daemon);
        assert_eq!(left(&daemon, "one"), 0, "{reason}: saved anew");
        end(&mut daemon);
    }
}

/// Something that is in the way, and is no file at all.
#[test]
fn a_directory_in_its_place_is_moved_aside() {
    let mut daemon = serve(NEVER);
    daemon.kill();
    fs::create_dir(file(&daemon)).expect("a directory");
    let daemon = daemon.restart();
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    daemon.assert_logged("cannot be used");
    let daemon = again(daemon);
    assert_eq!(left(&daemon, "one"), 0);
}

#[test]
fn a_key_that_is_away_over_a_restart_is_not_refilled() {
    let mut daemon = serve(NEVER);
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    end(&mut daemon);
    replace_export(&daemon.setup.source(), &export(&[("two", SLOW)]));
    let daemon = again(daemon.restart());
    assert_eq!(daemon.verdict("one"), "UNKNOWN_KEY");
    daemon.publish(&export(&[("two", SLOW), ("one", "864/d burst 20")]));
    assert_eq!(left(&daemon, "one"), 0, "nor by another rate");
    assert_eq!(left(&daemon, "two"), 10);
}

/// A source that cannot be read at the start is no reason to forget.
#[test]
fn balances_wait_for_a_source_that_is_broken() {
    let mut daemon = serve("state.save_interval = '1h'\nstate.keep_snapshot = false");
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    end(&mut daemon);
    replace_export(&daemon.setup.source(), "key_hash,key_id\nnonsense,1\n");
    let daemon = again(daemon.restart());
    assert_eq!(daemon.verdict("one"), "NOT_READY");
    daemon.publish(&export(&[("one", SLOW)]));
    assert_eq!(left(&daemon, "one"), 0);
}

#[test]
fn an_owners_balance_goes_on_too() {
    let plan = "[plans.team]\nshared = { rate = '864/d burst 10', per = 'owner' }\n";
    let rows = |keys: &[&str]| {
        let header = "key_hash,key_id,owner,plan\n".to_owned();
        keys.iter().fold(header, |text, key| text + &format!("{},{key},acme,team\n", sha256_hex(key)))
    };
    let mut daemon = Setup::new(&rows(&["one", "two"])).config(NEVER).config(plan).start();
    assert_eq!(spend(&daemon, "one", 6), "ALLOWED");
    end(&mut daemon);
    // Who leaves takes nothing along, and who comes gets nothing new.
    replace_export(&daemon.setup.source(), &rows(&["two", "three"]));
    let daemon = daemon.restart();
    assert_eq!((left(&daemon, "two"), left(&daemon, "three")), (4, 4));
}
