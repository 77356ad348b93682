//! Promise 7: a raw key is gone from the daemon's memory once it is answered, and never was in its log.

#![allow(clippy::expect_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use keyward_protocol::{Credential, Verify};
use support::{Daemon, Raw, Said, Setup, hex};

/// Long and unlike anything else, so that finding it means something.
const KEYS: [&str; 3] = [
    "first-raw-key-that-must-not-stay-in-memory-0123456789",
    "second-raw-key-that-comes-in-two-halves-0123456789-ab",
    "third-raw-key-in-a-frame-that-is-malformed-0123456789",
];

fn raw(key: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    Verify::new(1, Credential::RawKey(key.as_bytes())).encode(&mut frame).expect("within limits");
    frame
}

/// Everything that the daemon can write to; `None` where this user may not look.
fn memory(daemon: &Daemon) -> Option<Vec<u8>> {
    let pid = daemon.pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mem = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let mut chunk = vec![0; usize::try_from(end - start).ok()?];
        // A guard page or a reservation cannot be read, and holds nothing.
        if mem.read_exact_at(&mut chunk, start).is_ok() {
            all.extend_from_slice(&chunk);
        }
    }
    Some(all)
}

fn holds(memory: &[u8], text: &str) -> bool {
    // Half of a key is as bad as the whole.
    let half = &text.as_bytes()[..text.len() / 2];
    memory.windows(half.len()).any(|window| window == half)
}

fn hear_answer(peer: &mut Raw) {
    assert!(matches!(peer.hear(), Said::Answer { verdict: "ALLOWED", .. }));
}

/// In the optimised binary other things stay on the stack than in the one of the tests: where there is one, both are tried.
#[test]
fn a_raw_key_is_gone_once_it_is_answered() {
    look_for_keys(None);
    if let Some(release) = std::env::var_os("KEYWARD_BIN_RELEASE") {
        look_for_keys(Some(&release));
    }
}

fn look_for_keys(binary: Option<&OsStr>) {
    let rows = KEYS.map(|key| format!("{},id-{}\n", hex(key), &key[..5])).concat();
    let setup = Setup::new(&format!("key_hash,key_id\n{rows}")).config("[log]\nlevel = \"trace\"");
    let command = setup.command_of(binary);
    let daemon = setup.start_as(command);
    let mut peer = daemon.connect();

    let frame = raw(KEYS[0]);
    peer.send(&[&frame[..], &frame[..]].concat());
    hear_answer(&mut peer);
    hear_answer(&mut peer);

    // The first half waits in the daemon for the second: then, and only then, it may be found.
    let frame = raw(KEYS[1]);
    let (head, tail) = frame.split_at(50);
    peer.send(head);
    let _in_order = daemon.verdict("nobody");
    peer.send(tail);
    hear_answer(&mut peer);

    let mut malformed = raw(KEYS[2]);
    malformed.push(0);
    let length = malformed.len() as u32 - 4;
    malformed[..4].copy_from_slice(&length.to_le_bytes());
    peer.send(&malformed);
    assert_eq!(peer.hear(), Said::Error { request_id: 1, code: 7, detail: 1, closing: false });

    let mut leaves = daemon.connect();
    leaves.send(&raw(KEYS[2])[..40]);
    drop(leaves);
    support::wait_for("its end", || (daemon.status().connections <= 1).then_some(()));

    // What is asked last has nothing after it to overwrite what it leaves.
    peer.send(&raw(KEYS[0]));
    hear_answer(&mut peer);
    for key in KEYS {
        assert!(!daemon.log().contains(&key[..key.len() / 2]), "in the log: {}", daemon.log());
    }
    let Some(memory) = memory(&daemon) else {
        eprintln!("skipped: needs root, to look into the daemon's memory");
        return;
    };
    assert!(holds(&memory, "id-first"), "the search finds what is there");
    for key in KEYS {
        assert!(!holds(&memory, key), "{key} is still in memory");
    }
}
