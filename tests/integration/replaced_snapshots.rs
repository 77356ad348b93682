//! Promise 6: a daemon holds the snapshot that it serves and the one that it reads, however often
//! it reloads.

use crate::support::{Daemon, Setup, replace_export, sha256_hex, wait_for};
use keyward_daemon::admin::message::Command;

/// Bytes of metadata in an export: what makes a snapshot large for its number of rows.
const METADATA: usize = 4_000;
const ROWS: usize = 2_000;

/// A snapshot has at least its metadata.
const SNAPSHOT: usize = ROWS * METADATA;

/// Before anything is compared, for buffers to get their size.
const FIRST_ROUNDS: usize = 2;
const ROUNDS: usize = 6;

/// What may have been added by then: a third of what one leaked snapshot in each round would be.
const MAX_GROWTH: usize = ROUNDS * SNAPSHOT / 3;

fn export(round: usize, rows: usize) -> String {
    let filler = "x".repeat(METADATA);
    let row = |number: usize| {
        let hash = sha256_hex(&format!("key {number}"));
        format!("{hash},id-{number},\"{{\"\"round\"\":{round},\"\"filler\"\":\"\"{filler}\"\"}}\"\n")
    };
    (0..rows).map(row).fold("key_hash,key_id,metadata\n".to_owned(), |text, row| text + &row)
}

/// A reload that is accepted, one that is refused by the guard, one that is refused for a row, and
/// a check.
fn round(daemon: &Daemon, round: usize) {
    let reload = daemon.publish(&export(round, ROWS));
    assert!(reload.accepted, "{:?}", reload.error);
    // Usage is counted by rows of the snapshot.
    assert_eq!(daemon.verdict("key 7"), "ALLOWED");
    let source = daemon.setup.source();
    for refused in [export(round, ROWS / 3), export(round, ROWS) + "no hash,id,\n"] {
        replace_export(&source, &refused);
        assert!(!daemon.reload().accepted);
        let check = Command::Check { source: None };
        let reply = keyward_daemon::admin::send_command(&daemon.admin_socket(), &check).expect("an answer");
        assert!(reply.check.is_some(), "{reply:?}");
    }
}

#[test]
fn memory_does_not_grow_with_the_number_of_reloads() {
    let daemon = Setup::new(&export(0, ROWS)).config("source.poll = \"1h\"").start();
    assert!(daemon.status().ready, "{}", daemon.log());
    for number in 1..=FIRST_ROUNDS {
        round(&daemon, number);
    }
    let before = daemon.resident_bytes();
    assert!(before > SNAPSHOT, "the snapshot is in memory");
    for number in 1..=ROUNDS {
        round(&daemon, FIRST_ROUNDS + number);
    }
    let grown = || daemon.resident_bytes().saturating_sub(before);
    // The last snapshot is freed after the reload has been acknowledged.
    wait_for(
        &format!("memory to have grown by less than {MAX_GROWTH} bytes, instead of {}", grown()),
        || (grown() < MAX_GROWTH).then_some(()),
    );
}
