//! No raw key at rest: a key is wiped from the daemon's memory before its answer is sent, and is
//! neither logged nor written to a file or a core dump.
//!
//! The lengths of the keys cover every change in the number of blocks that SHA-256 and HMAC
//! process. The daemons have one worker, so no other thread overwrites what a request leaves on a
//! stack.

use std::ffi::OsString;
use std::fs;
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::support::http_client::send;
use crate::support::memory_scan::{Fragments, MemoryDump};
use crate::support::serve_process::handles_signals;
use crate::support::{
    Daemon, Export, RawClient, Received, Row, Setup, encode_verify, free_port, row, start_companion,
    wait_for, wait_until,
};
use data_encoding::BASE64;
use keyward_engine::pepper::Pepper;
use keyward_protocol::{Credential, MAX_KEY, Refund, ScopeMode, Scopes, Verify};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

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

/// A group without privileges: that of `nobody` on Debian.
const UNPRIVILEGED_GROUP: u32 = 65_534;

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
    Observed { before: MemoryDump::of(daemon.pid()), daemon }
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
    Refund::new(0x1d0f_a5c1, 0x5eed_c057, credential).encode(&mut frame).expect("within limits");
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
        MemoryDump::of(self.daemon.pid())
    }

    /// A lower bound of the number of bytes of the key in memory.
    fn traces(&self, key: &str) -> usize {
        self.traces_in(key, &verify(key))
    }

    /// As [`traces`](Self::traces), for a key, or a part of one, that was sent in `frame`.
    fn traces_in(&self, key: &str, frame: &[u8]) -> usize {
        let fragments = Fragments::of_key(key.as_bytes(), frame);
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
    Refund::new(1, 1, Credential::RawKey(key.as_bytes()))
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

/// A verdict, what differs from an allowed row, and the request for a credential.
type Case = (&'static str, fn(Row) -> Row, MakeRequest);
type MakeRequest = for<'a> fn(Credential<'a>) -> Verify<'a>;

/// Every verdict on a listed key.
fn verdicts() -> Vec<Case> {
    const PLAIN: MakeRequest = |credential| Verify::new(0x1d0f_a5c1, credential);
    vec![
        ("ALLOWED", |row| row, PLAIN),
        ("REVOKED", |row| row.status("revoked"), PLAIN),
        ("DISABLED", |row| row.status("disabled"), PLAIN),
        ("NOT_YET_VALID", |row| row.set("not_before", "2099-01-01T00:00:00Z"), PLAIN),
        ("EXPIRED", |row| row.expires_at("2001-01-01T00:00:00Z"), PLAIN),
        (
            "WRONG_ENVIRONMENT",
            |row| row.environment("live"),
            |credential| Verify { environment: Some("test"), ..PLAIN(credential) },
        ),
        ("IP_NOT_ALLOWED", |row| row.allowed_ips("10.0.0.0/8"), PLAIN),
        ("ORIGIN_NOT_ALLOWED", |row| row.set("allowed_origins", "https://app.example.com"), PLAIN),
        (
            "MISSING_SCOPE",
            |row| row,
            |credential| {
                let scopes = Scopes { names: "orders:write", mode: ScopeMode::All };
                Verify { scopes: Some(scopes), ..PLAIN(credential) }
            },
        ),
        (
            "COST_EXCEEDS_BURST",
            |row| row.limits("1/h burst 2"),
            |credential| Verify { cost: 3, ..PLAIN(credential) },
        ),
        (
            "RATE_LIMITED",
            |row| row.limits("1/h burst 2"),
            |credential| Verify { cost: 2, ..PLAIN(credential) },
        ),
    ]
}

fn encode(request: &Verify<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    request.encode(&mut frame).expect("within limits");
    frame
}

/// No file in the daemon's directory contains a fragment of a key: the log, the state, the audit
/// trail, the usage and the last good keys.
fn assert_in_no_file<'k>(daemon: &Daemon, keys: impl IntoIterator<Item = &'k String>) {
    let files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(daemon.setup.dir.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect();
    assert!(files.len() >= 5, "{:?}", files.iter().map(|(path, _)| path).collect::<Vec<_>>());
    for key in keys {
        for (path, content) in &files {
            let is_found =
                content.windows(8).any(|part| key.as_bytes().windows(8).any(|of_key| of_key == part));
            assert!(!is_found, "a part of a key of {} bytes is in {}", key.len(), path.display());
        }
    }
}

#[test]
#[ignore = "needs root, to read the daemon's memory: tests/run runs it"]
fn raw_key_is_wiped_with_every_verdict_and_in_no_file() {
    const CANARY_LENGTHS: [usize; 6] = [8, 24, 56, 130, 600, MAX_KEY];
    const MINTED: &str = "acme_live_";
    let config = format!(
        "server.workers = 1\nlog.level = \"trace\"\nkeys.minted_prefixes = ['{MINTED}']\n\
         usage.interval = '1s'\nstate.save_interval = '100ms'\n"
    );
    let listed: Vec<(&str, MakeRequest, String, Row)> = (0..)
        .zip(verdicts())
        .flat_map(|(number, (verdict, change, request))| {
            CANARY_LENGTHS.map(|length| {
                let key = key(length, 10 + number);
                let id = format!("{verdict}-{length}");
                (verdict, request, key.clone(), change(row(&*key).hash(hash(Peppers::None, &key)).id(id)))
            })
        })
        .collect();
    let setup = Setup::new(Export::new(listed.iter().map(|(.., row)| row.clone()))).config(&config);
    let daemon = setup.start();
    daemon.wait_until_saved();
    let observed = Observed { before: MemoryDump::of(daemon.pid()), daemon };
    let mut peer = observed.daemon.connect();
    let mut keys = Vec::new();
    for (verdict, request, key, _) in listed {
        let frame = encode(&request(Credential::RawKey(key.as_bytes())));
        peer.send(&frame);
        if verdict == "RATE_LIMITED" {
            receive_verdict(&mut peer, "ALLOWED");
            peer.send(&frame);
        }
        receive_verdict(&mut peer, verdict);
        observed.assert_wiped(&key, &format!("after {verdict}"));
        keys.push(key);
    }
    for length in CANARY_LENGTHS {
        let unknown = key(length, 1);
        peer.send(&verify(&unknown));
        receive_verdict(&mut peer, "UNKNOWN_KEY");
        observed.assert_wiped(&unknown, "after UNKNOWN_KEY");
        keys.push(unknown);
        if length > 2 * MINTED.len() {
            // The configuration contains the prefix.
            let secret = &key(length, 2)[MINTED.len()..];
            let frame = verify(&format!("{MINTED}{secret}"));
            peer.send(&frame);
            receive_verdict(&mut peer, "MALFORMED_KEY");
            assert_eq!(observed.traces_in(secret, &frame), 0, "after MALFORMED_KEY");
            keys.push(secret.to_owned());
        }
    }
    wait_until("the usage to be written", || observed.daemon.setup.path("usage.jsonl").exists());
    wait_until("the balances to be saved", || observed.daemon.setup.path("balances").exists());
    assert_in_no_file(&observed.daemon, &keys);
}

/// NOT_READY and STALE_SNAPSHOT are verdicts of a daemon without usable keys.
#[test]
#[ignore = "needs root, to read the daemon's memory: tests/run runs it"]
fn raw_key_is_wiped_while_there_are_no_usable_keys() {
    let keys = SOME_LENGTHS.map(|length| key(length, 0));
    for (verdict, source) in [("NOT_READY", "nonsense\n"), ("STALE_SNAPSHOT", "")] {
        let mut setup = Setup::text(Export::of(["other"]).to_csv());
        setup = setup.config("server.workers = 1\nsource.max_staleness = '1h'\nlog.level = \"trace\"\n");
        if source.is_empty() {
            let file = fs::File::options().write(true).open(setup.source()).expect("the export");
            file.set_modified(SystemTime::now() - Duration::from_secs(7_200)).expect("set");
        } else {
            setup.write_export(source);
        }
        let daemon = setup.start();
        let observed = Observed { before: MemoryDump::of(daemon.pid()), daemon };
        let mut peer = observed.daemon.connect();
        for key in &keys {
            peer.send(&verify(key));
            receive_verdict(&mut peer, verdict);
            observed.assert_wiped(key, &format!("after {verdict}"));
        }
        assert_not_logged(&observed.daemon, &keys);
    }
}

/// The kernel gives the files of a process that is not dumpable to root. Unlike a core dump, this
/// does not depend on settings of the system.
#[test]
fn daemon_is_not_dumpable() {
    let is_root = rustix::process::geteuid().is_root();
    let setup = Setup::new(Export::of(["a"]));
    // Root's own processes are told apart by their group.
    let with_group = |mut command: Command| {
        if is_root {
            command.gid(UNPRIVILEGED_GROUP);
        }
        command
    };
    let is_dumpable = |pid: u32| {
        let memory = fs::metadata(format!("/proc/{pid}/mem")).expect("it runs");
        (memory.uid(), memory.gid()) != (0, 0)
    };
    let mut other = with_group(Command::new("sleep"));
    let mut other = other.arg("60").stdin(Stdio::null()).spawn().expect("starts");
    let is_other_dumpable = is_dumpable(other.id());
    other.kill().expect("it runs");
    other.wait().expect("ended");
    assert!(is_other_dumpable, "the test does not know a dumpable process");
    let command = with_group(setup.command());
    let daemon = setup.start_with(command);
    assert!(!is_dumpable(daemon.pid()));
}

/// SIGABRT, as from a failed assertion or the watchdog, writes no core file although the limits of
/// the process allow one. Another process shows whether the kernel writes any.
#[test]
fn abort_dumps_no_core() {
    let start = |command: &mut Command| {
        let child = command.stdin(Stdio::null()).spawn().expect("starts");
        let unlimited = Rlimit { current: None, maximum: None };
        prlimit(Some(Pid::from_child(&child)), Resource::Core, unlimited).expect("limits");
        child
    };
    let abort = |mut child: Child| {
        kill_process(Pid::from_child(&child), Signal::ABORT).expect("it runs");
        child.wait().expect("ended").core_dumped()
    };
    let setup = Setup::new(Export::of(["a"]));
    let other = start(Command::new("sleep").arg("60").current_dir(setup.dir.path()));
    if !abort(other) {
        return eprintln!("no core files are written here: nothing to test");
    }
    let daemon = start(setup.command().current_dir(setup.dir.path()));
    wait_until("the signal handlers", || handles_signals(daemon.id()));
    wait_until("the socket", || setup.path("keyward.sock").exists());
    assert!(!abort(daemon), "the daemon's core was dumped");
}

/// hyper and tonic free their buffers without wiping them; the allocator does it.
#[test]
#[ignore = "needs root, to read the memory of `keyward http`: tests/run runs it"]
fn keyward_http_keeps_no_key_after_its_connection() {
    const CONNECTIONS: usize = 20;
    let directory = TempDir::new().expect("a directory");
    let daemon = Daemon::serving(Export::of(["other"]));
    let port = free_port();
    let config = format!(
        "server = {{ keyward = {:?}, deadline = \"5s\" }}\ncredentials = {{ basic = \"user\", query = \"key\" }}\n\
         [[gateways]]\nname = \"g\"\nkind = \"traefik\"\nlisten = \"127.0.0.1:{port}\"\n",
        daemon.socket()
    );
    fs::write(directory.path().join("http.toml"), config).expect("writes");
    let companion = start_companion(directory.path());
    let before = MemoryDump::of(companion.pid());
    let keys = (0..3 * CONNECTIONS).map(|number| const_hex::encode(Sha256::digest(number.to_string())));
    let keys: Vec<String> = keys.collect();
    let (keys, before) = (&keys, &before);
    let check = move |number: usize| {
        let key = &keys[number];
        let (header, target) = match number % 3 {
            0 => (format!("X-API-Key: {key}"), "/".to_owned()),
            1 => (
                format!("Authorization: Basic {}", BASE64.encode(format!("{key}:").as_bytes())),
                "/".to_owned(),
            ),
            _ => ("X-Other: 1".to_owned(), format!("/?key={key}")),
        };
        let target = format!("X-Forwarded-Uri: {target}");
        let headers = ["X-Forwarded-Method: GET", &target, &header];
        assert_eq!(send(port, "GET", "/", &headers).status, 401, "{number}");
    };
    (0..CONNECTIONS).for_each(check);
    thread::scope(|scope| {
        for number in CONNECTIONS..keys.len() {
            scope.spawn(move || check(number));
        }
    });
    for key in keys {
        let fragments = Fragments::of_text(key.as_bytes());
        wait_until("a key to be wiped", || {
            fragments.find(&MemoryDump::of(companion.pid()), before).is_empty()
        });
    }
}
