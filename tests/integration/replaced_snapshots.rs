//! Bounded memory: a daemon holds at most the snapshot in force and the one that it builds, however
//! often it reloads.

use crate::support::{Daemon, Export, Setup, line, replace_export, row, wait_until};
use keyward_admin::message::Command;

/// Bytes of metadata in each row, so that few rows make a large snapshot.
const METADATA: usize = 4_000;
const ROWS: usize = 2_000;

/// The minimum size of a snapshot: its metadata.
const SNAPSHOT_BYTES: usize = ROWS * METADATA;

/// Rounds before the first measurement, in which buffers grow to their size.
const WARMUP_ROUNDS: usize = 2;
const ROUNDS: usize = 6;

/// Allowed growth: a third of what one leaked snapshot per round would add.
const MAX_GROWTH: usize = ROUNDS * SNAPSHOT_BYTES / 3;

fn export(round: usize, rows: usize) -> Export {
    let metadata = format!(r#"{{"round":{round},"filler":"{}"}}"#, "x".repeat(METADATA));
    let row = |number| row(format!("key {number}")).id(format!("id-{number}")).metadata(&*metadata);
    Export::new((0..rows).map(row))
}

/// An accepted reload, one refused by the guard, one refused for a bad row, and a check.
fn run_round(daemon: &Daemon, round: usize) {
    let export_of_round = export(round, ROWS);
    let reload = daemon.publish(&export_of_round);
    assert!(reload.accepted, "{:?}", reload.error);
    // Usage counters refer to the rows of the snapshot.
    assert_eq!(daemon.verdict("key 7"), "ALLOWED");
    let source = daemon.setup.source();
    for refused in [export(round, ROWS / 3), export_of_round.rows([line("no hash,id,")])] {
        replace_export(&source, refused);
        assert!(!daemon.reload().accepted);
        let check = Command::Check { source: None };
        let reply = keyward_admin::send_command(&daemon.admin_socket(), &check).expect("an answer");
        assert!(reply.check.is_some(), "{reply:?}");
    }
}

#[test]
fn memory_does_not_grow_with_the_number_of_reloads() {
    let daemon = Setup::new(export(0, ROWS)).config("source.poll = \"1h\"").start();
    assert!(daemon.status().ready, "{}", daemon.log());
    for number in 1..=WARMUP_ROUNDS {
        run_round(&daemon, number);
    }
    let before = daemon.resident_bytes();
    assert!(before > SNAPSHOT_BYTES, "the snapshot is in memory");
    for number in 1..=ROUNDS {
        run_round(&daemon, WARMUP_ROUNDS + number);
    }
    let grown = || daemon.resident_bytes().saturating_sub(before);
    // The last snapshot is freed after the reload has been acknowledged.
    wait_until(
        &format!("memory to have grown by less than {MAX_GROWTH} bytes, instead of {}", grown()),
        || grown() < MAX_GROWTH,
    );
}
