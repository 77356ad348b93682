//! Promise 7: a raw key is gone from the daemon's memory once it is answered, and never was in its
//! log.
//!
//! Keys have every length at which SHA-256 and HMAC work on another number of blocks. A daemon has
//! one worker here, so that what a request leaves on a stack is overwritten by nothing that comes
//! after it.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::memory_scan::{Fragments, MemoryDump};
use crate::support::{Daemon, RawClient, Received, Setup, encode_verify, wait_for};
use data_encoding::BASE64;
use keyward_engine::pepper::Pepper;
use keyward_protocol::{Credential, MAX_KEY, Refund, Verify};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

/// A block of SHA-256 has 64 bytes, of which padding takes at least 9; HMAC hashes one block before
/// the key.
const LENGTHS: [usize; 23] = [
    1,
    8,
    16,
    53,
    54,
    55,
    56,
    57,
    63,
    64,
    65,
    66,
    118,
    119,
    120,
    121,
    127,
    128,
    129,
    130,
    500,
    MAX_KEY - 1,
    MAX_KEY,
];

/// The same for tests in which the length of a key changes little.
const SOME_LENGTHS: [usize; 5] = [16, 56, 64, 130, MAX_KEY];

const PEPPER: &[u8] = b"the pepper that is in force now";
const PREVIOUS_PEPPER: &[u8] = b"the pepper that was in force before";

/// What keys are hashed with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peppers {
    None,
    One,
    /// Keys are found by the second.
    Two,
}

/// A key of this length; no two of `number` have a part in common.
fn key(length: usize, number: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        text += &BASE64.encode(&Sha256::digest(format!("{length} {number} {}", text.len())));
    }
    text.truncate(length);
    text
}

fn hash(peppers: Peppers, key: &str) -> String {
    let pepper = |secret| Pepper::new(secret).expect("a pepper").hash(key.as_bytes());
    const_hex::encode(match peppers {
        Peppers::None => Sha256::digest(key).into(),
        Peppers::One => pepper(PEPPER),
        Peppers::Two => pepper(PREVIOUS_PEPPER),
    })
}

/// The binary of the tests, and where there is one the optimised binary: other things stay on its
/// stack.
fn binaries() -> Vec<Option<OsString>> {
    let release = std::env::var_os("KEYWARD_BIN_RELEASE");
    [None].into_iter().chain(release.map(Some)).collect()
}

/// A daemon that knows keys and has not been asked about any, and its memory as it was then.
struct Served {
    daemon: Daemon,
    before: MemoryDump,
}

/// `None` where the daemon's memory may not be read.
fn start(binary: Option<&OsString>, peppers: Peppers, keys: &[String]) -> Option<Served> {
    let rows: String = keys
        .iter()
        .enumerate()
        .map(|(number, key)| format!("{},id-of-key-{number}\n", hash(peppers, key)))
        .collect();
    let mut setup = Setup::new(&format!("key_hash,key_id\n{rows}"));
    let mut config = "server.workers = 1\nserver.drain_timeout = \"60s\"\nlog.level = \"trace\"\n".to_owned();
    for (setting, secret) in [("pepper_file", PEPPER), ("previous_pepper_file", PREVIOUS_PEPPER)] {
        let path = setup.path(setting);
        fs::write(&path, secret).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets permissions");
        if peppers == Peppers::Two || (peppers == Peppers::One && secret == PEPPER) {
            config += &format!("keys.{setting} = '{}'\n", path.display());
        }
    }
    setup = setup.config(&config);
    let command = setup.command_of(binary.map(OsString::as_os_str));
    let daemon = setup.start_with(command);
    let before = MemoryDump::of(&daemon);
    if before.is_none() {
        eprintln!("skipped: needs root, to look into the daemon's memory");
    }
    Some(Served { before: before?, daemon })
}

fn verify(key: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    // Of a key of a few bytes, these numbers are what its frame is found by.
    let request =
        Verify { cost: 0x5eed_c057, ..Verify::new(0x1d0f_a5c1, Credential::RawKey(key.as_bytes())) };
    request.encode(&mut frame).expect("within limits");
    frame
}

fn refund(key: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    let credential = Credential::RawKey(key.as_bytes());
    Refund { request_id: 0x1d0f_a5c1, cost: 0x5eed_c057, credential, limit: None }
        .encode(&mut frame)
        .expect("within limits");
    frame
}

fn hear_verdict(peer: &mut RawClient, expected: &str) {
    match peer.receive() {
        Received::Answer { verdict, .. } => assert_eq!(verdict, expected),
        other => panic!("{other:?} instead of {expected}"),
    }
}

impl Served {
    fn memory(&self) -> MemoryDump {
        MemoryDump::of(&self.daemon).expect("readable")
    }

    /// How many bytes of the key are in memory, at least.
    fn traces(&self, key: &str) -> usize {
        let pieces = Fragments::of_key(key.as_bytes(), &verify(key));
        pieces.find(&self.memory(), &self.before).keys().map(Vec::len).sum()
    }

    fn assert_gone(&self, key: &str, when: &str) {
        let traces = self.traces(key);
        assert_eq!(traces, 0, "{traces} bytes of a key of {} are in memory {when}", key.len());
    }

    /// The same where nothing says that the daemon has got that far.
    fn wait_until_gone(&self, key: &str, when: &str) {
        wait_for(&format!("a key of {} bytes to be wiped {when}", key.len()), || {
            (self.traces(key) == 0).then_some(())
        });
    }
}

/// The log is kept by another process, but what is in it was in this one's memory.
fn assert_not_logged<'k>(daemon: &Daemon, keys: impl IntoIterator<Item = &'k String>) {
    let log = daemon.log();
    assert!(log.contains("listening"), "{log}");
    for key in keys.into_iter().filter(|key| key.len() >= 16) {
        assert!(!log.contains(&key[..key.len() / 2]), "in the log: {log}");
    }
}

#[test]
fn raw_key_is_gone_once_it_is_answered() {
    for binary in binaries() {
        for peppers in [Peppers::None, Peppers::One, Peppers::Two] {
            let keys = LENGTHS.map(|length| key(length, 0));
            let Some(served) = start(binary.as_ref(), peppers, &keys) else { return };
            let Served { daemon, .. } = &served;
            let mut peer = daemon.connect();
            for (number, listed) in keys.iter().enumerate() {
                peer.send(&verify(listed));
                hear_verdict(&mut peer, "ALLOWED");
                served.assert_gone(listed, "after its answer");
                // What else there is about keys takes turns.
                match number % 4 {
                    0 => {
                        peer.send(&refund(listed));
                        hear_verdict(&mut peer, "ALLOWED");
                        served.assert_gone(listed, "after its refund");
                    }
                    1 => {
                        let unknown = key(listed.len(), 1);
                        peer.send(&verify(&unknown));
                        hear_verdict(&mut peer, "UNKNOWN_KEY");
                        served.assert_gone(&unknown, "after it was not known");
                    }
                    2 => {
                        peer.send(&verify(listed).repeat(70));
                        (0..70).for_each(|_| hear_verdict(&mut peer, "ALLOWED"));
                        served.assert_gone(listed, "after a batch of it");
                    }
                    _ => {}
                }
            }
            drop(peer);
            assert_not_logged(daemon, &keys);
        }
    }
}

/// The daemon has to keep the first half until the second comes, but once only.
#[test]
fn half_a_frame_is_kept_once_and_gone_when_it_is_answered_or_its_connection_ends() {
    for binary in binaries() {
        let keys = SOME_LENGTHS.map(|length| key(length, 0));
        let Some(served) = start(binary.as_ref(), Peppers::None, &keys) else { return };
        let Served { daemon, before } = &served;
        // What the worker's buffer is wiped by has to be read again: no answer may come between the
        // half and the search.
        let whole = encode_verify(7, &keys[0]);
        let send_half = |peer: &mut RawClient, key: &str| {
            let frame = verify(key);
            let (head, tail) = frame.split_at(frame.len() - key.len() / 4);
            peer.send(&[&whole, head].concat());
            hear_verdict(peer, "ALLOWED");
            let half = &key[..key.len() - key.len() / 4];
            let pieces = Fragments::of_text(half.as_bytes());
            let found = wait_for("the half to arrive", || {
                let found = pieces.find(&served.memory(), before);
                (found.len() == pieces.len()).then_some(found)
            });
            let most = found.values().max();
            assert_eq!(most, Some(&1), "copies of half a key of {} are in memory", key.len());
            tail.to_vec()
        };
        for key in &keys {
            let mut peer = daemon.connect();
            let tail = send_half(&mut peer, key);
            peer.send(&tail);
            hear_verdict(&mut peer, "ALLOWED");
            served.assert_gone(key, "after its second half");

            send_half(&mut peer, key);
            drop(peer);
            wait_for("its end", || (daemon.status().connections == 0).then_some(()));
            served.wait_until_gone(key, "after its connection was closed");

            let mut peer = daemon.connect();
            send_half(&mut peer, key);
            peer.stream.shutdown(Shutdown::Write).expect("half closed");
            assert!(matches!(peer.receive(), Received::Error { code: 9, closing: true, .. }));
            assert_eq!(peer.receive(), Received::Closed);
            served.wait_until_gone(key, "after its stream ended inside its frame");

            // In many parts, each of which is put behind those before it.
            let mut peer = daemon.connect();
            for part in verify(key).chunks(key.len() / 5) {
                peer.send(part);
                let _ = daemon.status();
            }
            hear_verdict(&mut peer, "ALLOWED");
            served.assert_gone(key, "after the last of its parts");
        }
        assert_not_logged(daemon, &keys);
    }
}

/// Frames that are wrong in every way that there is, with the code of the ERROR, and whether
/// framing is lost.
fn faulty(key: &str) -> Vec<(u8, bool, Vec<u8>)> {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = verify(key);
        change(&mut frame);
        let length = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        frame
    };
    let lost = |length: u32| [&length.to_le_bytes()[..], &verify(key)[4..]].concat();
    let empty =
        { Refund { cost: 1, request_id: 1, credential: Credential::RawKey(key.as_bytes()), limit: None } };
    let mut refund = Vec::new();
    empty.encode(&mut refund).expect("within limits");
    refund[12] = 0;
    vec![
        (1, true, lost(7)),
        (2, true, lost(1 << 20)),
        (3, false, with(&|frame| frame[4] = 9)),
        (4, false, with(&|frame| frame[5] = 0x44)),
        (5, false, with(&|frame| frame[7] = 0x80)),
        // The key is said to be longer than it is.
        (6, false, with(&|frame| frame[16] += 1)),
        (7, false, with(&|frame| frame.push(0))),
        // One of several scopes, of which there are none.
        (8, false, with(&|frame| frame[6] |= 0x04)),
        (8, false, refund),
        // Not said to be a raw key, but there all the same: before it are the bytes of a digest.
        (
            7,
            false,
            with(&|frame| {
                frame[6] = 0;
                frame.splice(16..18, [0; 32]);
            }),
        ),
    ]
}

#[test]
fn raw_key_in_a_faulty_frame_is_gone_once_the_fault_is_told() {
    for binary in binaries() {
        let keys = SOME_LENGTHS.map(|length| key(length, 0));
        let Some(served) = start(binary.as_ref(), Peppers::None, &keys) else { return };
        let Served { daemon, .. } = &served;
        for key in keys.iter().filter(|key| key.len() < MAX_KEY) {
            for (code, is_lost, frame) in faulty(key) {
                let mut peer = daemon.connect();
                peer.send(&frame);
                let heard = peer.receive();
                assert!(
                    matches!(heard, Received::Error { code: heard, closing, .. } if (heard, closing) == (code, is_lost)),
                    "{heard:?} instead of {code}"
                );
                served.assert_gone(key, &format!("after ERROR {code}"));
                if is_lost {
                    assert_eq!(peer.receive(), Received::Closed);
                    served.wait_until_gone(key, &format!("after the end that follows ERROR {code}"));
                }
            }
        }
        // What follows a frame whose end is not known is read only to be thrown away.
        let key = &keys[1];
        let mut peer = daemon.connect();
        let beyond_the_buffer = vec![0; keyward_daemon::connection::INPUT_BYTES + 1024];
        daemon.pause();
        peer.send(&[&7_u32.to_le_bytes()[..], &beyond_the_buffer, &verify(key)].concat());
        daemon.resume();
        assert!(matches!(peer.receive(), Received::Error { code: 1, closing: true, .. }));
        assert_eq!(peer.receive(), Received::Closed);
        served.wait_until_gone(key, "after it was thrown away");
        assert_not_logged(daemon, &keys);
    }
}

/// Writes requests until the daemon takes no more, because its answers are not read.
fn flood(peer: &mut RawClient, frame: &[u8]) {
    let chunk = frame.repeat(500);
    peer.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    loop {
        match peer.stream.write(&chunk) {
            // A part of a chunk has been written where there was no more room.
            Ok(written) if written < chunk.len() => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn half_a_raw_key_is_gone_once_its_connection_is_drained() {
    for binary in binaries() {
        let keys = SOME_LENGTHS.map(|length| key(length, 0));
        let Some(mut served) = start(binary.as_ref(), Peppers::None, &keys) else { return };
        let Served { daemon, .. } = &served;
        let mut peers: Vec<RawClient> = keys
            .iter()
            .map(|key| {
                let mut peer = daemon.connect();
                peer.send(&verify(key)[..verify(key).len() - 1]);
                peer
            })
            .collect();
        // Answers that are not read keep the daemon from ending.
        let mut unread = daemon.connect();
        flood(&mut unread, &encode_verify(1, &keys[0]));
        daemon.signal(Signal::TERM);
        for peer in &mut peers {
            assert!(matches!(peer.receive(), Received::Error { code: 14, closing: true, .. }));
            assert_eq!(peer.receive(), Received::Closed);
        }
        for key in &keys {
            served.wait_until_gone(key, "after the drain");
        }
        assert_not_logged(daemon, &keys);
        drop(unread);
        assert!(served.daemon.wait_for_exit().success());
    }
}
