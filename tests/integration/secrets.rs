//! No raw key at rest: a key is wiped from the daemon's memory before its answer is sent, and is
//! never logged.
//!
//! The lengths of the keys cover every change in the number of blocks that SHA-256 and HMAC
//! process. The daemons have one worker, so no other thread overwrites what a request leaves on a
//! stack.

use std::ffi::OsString;
use std::net::Shutdown;

use crate::support::memory_scan::{Fragments, MemoryDump};
use crate::support::{Daemon, Export, RawClient, Received, Setup, encode_verify, row, wait_for, wait_until};
use data_encoding::BASE64;
use keyward_engine::pepper::Pepper;
use keyward_protocol::{Credential, MAX_KEY, Refund, Verify};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

/// A block of SHA-256 has 64 bytes, of which padding takes at least 9. HMAC hashes one block before
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

/// Fewer lengths, for tests that hardly depend on the length.
const SOME_LENGTHS: [usize; 5] = [16, 56, 64, 130, MAX_KEY];

const PEPPER: &[u8] = b"the pepper that is in force now";
const PREVIOUS_PEPPER: &[u8] = b"the pepper that was in force before";

/// The peppers in the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peppers {
    None,
    One,
    /// Keys are hashed with the previous pepper.
    Two,
}

/// A key of this length. Keys with different numbers have no part in common.
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

/// The binary under test, and the optimised binary if there is one, because its stack frames
/// differ.
fn binaries() -> Vec<Option<OsString>> {
    let release = std::env::var_os("KEYWARD_BIN_RELEASE");
    [None].into_iter().chain(release.map(Some)).collect()
}

/// A daemon, and a dump of its memory before the first request.
struct Observed {
    daemon: Daemon,
    before: MemoryDump,
}

/// A daemon that lists `keys`, and its memory before any request.
fn start(binary: Option<&OsString>, peppers: Peppers, keys: &[String]) -> Observed {
    let rows = keys.iter().enumerate();
    let rows =
        rows.map(|(number, key)| row(&**key).hash(hash(peppers, key)).id(format!("id-of-key-{number}")));
    let mut setup = Setup::new(Export::new(rows));
    let mut config = "server.workers = 1\nserver.drain_timeout = \"60s\"\nlog.level = \"trace\"\n".to_owned();
    for (setting, secret) in [("pepper_file", PEPPER), ("previous_pepper_file", PREVIOUS_PEPPER)] {
        let path = setup.write_secret(setting, secret);
        if peppers == Peppers::Two || (peppers == Peppers::One && secret == PEPPER) {
            config += &format!("keys.{setting} = '{path}'\n");
        }
    }
    setup = setup.config(&config);
    let command = setup.command_of(binary.map(OsString::as_os_str));
    let daemon = setup.start_with(command);
    Observed { before: MemoryDump::of(&daemon), daemon }
}

fn verify(key: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    // These numbers identify the frame of a key of few bytes.
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

fn receive_verdict(peer: &mut RawClient, expected: &str) {
    match peer.receive() {
        Received::Answer { verdict, .. } => assert_eq!(verdict, expected),
        other => panic!("{other:?} instead of {expected}"),
    }
}

impl Observed {
    fn memory(&self) -> MemoryDump {
        MemoryDump::of(&self.daemon)
    }

    /// A lower bound of the number of bytes of the key in memory.
    fn traces(&self, key: &str) -> usize {
        let fragments = Fragments::of_key(key.as_bytes(), &verify(key));
        fragments.find(&self.memory(), &self.before).keys().map(Vec::len).sum()
    }

    fn assert_wiped(&self, key: &str, when: &str) {
        let traces = self.traces(key);
        assert_eq!(traces, 0, "{traces} bytes of a key of {} are in memory {when}", key.len());
    }

    /// As [`Observed::assert_wiped`], after events whose completion the test cannot observe.
    fn wait_until_wiped(&self, key: &str, when: &str) {
        wait_until(&format!("a key of {} bytes to be wiped {when}", key.len()), || self.traces(key) == 0);
    }
}

/// The log is outside the daemon's memory, so it is searched separately.
fn assert_not_logged<'k>(daemon: &Daemon, keys: impl IntoIterator<Item = &'k String>) {
    let log = daemon.log();
    assert!(log.contains("listening"), "{log}");
    for key in keys.into_iter().filter(|key| key.len() >= 16) {
        assert!(!log.contains(&key[..key.len() / 2]), "in the log: {log}");
    }
}

#[test]
#[ignore = "needs root, to read the daemon's memory: tests/run runs it"]
fn raw_key_is_wiped_before_its_answer() {
    for binary in binaries() {
        for peppers in [Peppers::None, Peppers::One, Peppers::Two] {
            let keys = LENGTHS.map(|length| key(length, 0));
            let observed = start(binary.as_ref(), peppers, &keys);
            let Observed { daemon, .. } = &observed;
            let mut peer = daemon.connect();
            for (number, listed) in keys.iter().enumerate() {
                peer.send(&verify(listed));
                receive_verdict(&mut peer, "ALLOWED");
                observed.assert_wiped(listed, "after its answer");
                // Alternate between the other kinds of requests.
                match number % 4 {
                    0 => {
                        peer.send(&refund(listed));
                        receive_verdict(&mut peer, "ALLOWED");
                        observed.assert_wiped(listed, "after its refund");
                    }
                    1 => {
                        let unknown = key(listed.len(), 1);
                        peer.send(&verify(&unknown));
                        receive_verdict(&mut peer, "UNKNOWN_KEY");
                        observed.assert_wiped(&unknown, "after UNKNOWN_KEY");
                    }
                    2 => {
                        peer.send(&verify(listed).repeat(70));
                        (0..70).for_each(|_| receive_verdict(&mut peer, "ALLOWED"));
                        observed.assert_wiped(listed, "after a batch of it");
                    }
                    _ => {}
                }
            }
            drop(peer);
            assert_not_logged(daemon, &keys);
        }
    }
}

/// The daemon has to buffer a partial frame, but only in one copy.
#[test]
#[ignore = "needs root, to read the daemon's memory: tests/run runs it"]
fn partial_frame_is_stored_once_and_wiped_with_its_answer_or_connection() {
    for binary in binaries() {
        let keys = SOME_LENGTHS.map(|length| key(length, 0));
        let observed = start(binary.as_ref(), Peppers::None, &keys);
        let Observed { daemon, before } = &observed;
        // The first part follows a whole frame in one write, so no later answer wipes the worker's
        // buffer between its arrival and the scan.
        let whole = encode_verify(7, &keys[0]);
        let send_part = |peer: &mut RawClient, key: &str| {
            let frame = verify(key);
            let (head, tail) = frame.split_at(frame.len() - key.len() / 4);
            peer.send(&[&whole, head].concat());
            receive_verdict(peer, "ALLOWED");
            let sent = &key[..key.len() - key.len() / 4];
            let fragments = Fragments::of_text(sent.as_bytes());
            let found = wait_for("the partial frame to arrive", || {
                let found = fragments.find(&observed.memory(), before);
                (found.len() == fragments.len()).then_some(found)
            });
            let copies = found.values().max();
            assert_eq!(copies, Some(&1), "copies of a partial key of {} bytes in memory", key.len());
            tail.to_vec()
        };
        for key in &keys {
            let mut peer = daemon.connect();
            let tail = send_part(&mut peer, key);
            peer.send(&tail);
            receive_verdict(&mut peer, "ALLOWED");
            observed.assert_wiped(key, "after the rest of its frame");

            send_part(&mut peer, key);
            drop(peer);
            wait_until("the connection to close", || daemon.status().connections == 0);
            observed.wait_until_wiped(key, "after its connection was closed");

            let mut peer = daemon.connect();
            send_part(&mut peer, key);
            peer.stream.shutdown(Shutdown::Write).expect("half closed");
            assert!(matches!(peer.receive(), Received::Error { code: 9, closing: true, .. }));
            assert_eq!(peer.receive(), Received::Closed);
            observed.wait_until_wiped(key, "after its stream ended inside its frame");

            // In many parts, each of which is appended to those before it.
            let mut peer = daemon.connect();
            for part in verify(key).chunks(key.len() / 5) {
                peer.send(part);
                let _ = daemon.status();
            }
            receive_verdict(&mut peer, "ALLOWED");
            observed.assert_wiped(key, "after the last of its parts");
        }
        assert_not_logged(daemon, &keys);
    }
}

/// Frames with every possible error: its code, whether framing is lost, and the frame.
fn invalid_frames(key: &str) -> Vec<(u8, bool, Vec<u8>)> {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = verify(key);
        change(&mut frame);
        let length = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        frame
    };
    let with_length = |length: u32| [&length.to_le_bytes()[..], &verify(key)[4..]].concat();
    let mut refund_of_nothing = Vec::new();
    Refund { cost: 1, request_id: 1, credential: Credential::RawKey(key.as_bytes()), limit: None }
        .encode(&mut refund_of_nothing)
        .expect("within limits");
    refund_of_nothing[12] = 0;
    vec![
        (1, true, with_length(7)),
        (2, true, with_length(1 << 20)),
        (3, false, with(&|frame| frame[4] = 9)),
        (4, false, with(&|frame| frame[5] = 0x44)),
        (5, false, with(&|frame| frame[7] = 0x80)),
        // The length field of the key is too large.
        (6, false, with(&|frame| frame[16] += 1)),
        (7, false, with(&|frame| frame.push(0))),
        // The flag for any of several scopes, without scopes.
        (8, false, with(&|frame| frame[6] |= 0x04)),
        (8, false, refund_of_nothing),
        // A raw key after a digest, without the flag for raw keys.
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
#[ignore = "needs root, to read the daemon's memory: tests/run runs it"]
fn raw_key_in_an_invalid_frame_is_wiped_before_the_error() {
    for binary in binaries() {
        let keys = SOME_LENGTHS.map(|length| key(length, 0));
        let observed = start(binary.as_ref(), Peppers::None, &keys);
        let Observed { daemon, .. } = &observed;
        for key in keys.iter().filter(|key| key.len() < MAX_KEY) {
            for (code, is_lost, frame) in invalid_frames(key) {
                let mut peer = daemon.connect();
                peer.send(&frame);
                match peer.receive() {
                    Received::Error { code: received, closing, .. } => {
                        assert_eq!((received, closing), (code, is_lost));
                    }
                    other => panic!("{other:?} instead of ERROR {code}"),
                }
                observed.assert_wiped(key, &format!("after ERROR {code}"));
                if is_lost {
                    assert_eq!(peer.receive(), Received::Closed);
                    observed.wait_until_wiped(key, &format!("after the close that follows ERROR {code}"));
                }
            }
        }
        // The daemon discards whatever follows a frame of unknown length.
        let key = &keys[1];
        let mut peer = daemon.connect();
        let beyond_the_buffer = vec![0; keyward_daemon::connection::INPUT_BYTES + 1024];
        daemon.pause();
        peer.send(&[&7_u32.to_le_bytes()[..], &beyond_the_buffer, &verify(key)].concat());
        daemon.resume();
        assert!(matches!(peer.receive(), Received::Error { code: 1, closing: true, .. }));
        assert_eq!(peer.receive(), Received::Closed);
        observed.wait_until_wiped(key, "after it was discarded");
        assert_not_logged(daemon, &keys);
    }
}

#[test]
#[ignore = "needs root, to read the daemon's memory: tests/run runs it"]
fn partial_raw_key_is_wiped_when_its_connection_is_drained() {
    for binary in binaries() {
        let keys = SOME_LENGTHS.map(|length| key(length, 0));
        let mut observed = start(binary.as_ref(), Peppers::None, &keys);
        let Observed { daemon, .. } = &observed;
        let mut peers: Vec<RawClient> = keys
            .iter()
            .map(|key| {
                let mut peer = daemon.connect();
                peer.send(&verify(key)[..verify(key).len() - 1]);
                peer
            })
            .collect();
        // Unread answers keep the daemon from exiting.
        let mut unread = daemon.connect();
        assert!(unread.send_until_blocked(&encode_verify(1, &keys[0])) > 0);
        daemon.signal(Signal::TERM);
        for peer in &mut peers {
            assert!(matches!(peer.receive(), Received::Error { code: 14, closing: true, .. }));
            assert_eq!(peer.receive(), Received::Closed);
        }
        for key in &keys {
            observed.wait_until_wiped(key, "after the drain");
        }
        assert_not_logged(daemon, &keys);
        drop(unread);
        assert!(observed.daemon.wait_for_exit().success());
    }
}
