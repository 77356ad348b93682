//! Reloads under load: connections send requests without pause while the export is replaced in each
//! of the three ways in which files are replaced, and reloaded by each kind of trigger. In between,
//! sources are refused.
//!
//! In export n, every second one of the keys `rotating-…` is revoked, other ones than in export
//! n-1, and every row has the plan `v<n>`. Every answer therefore names its export. A key that is
//! allowed although its export revokes it does not come from one complete snapshot. An answer from
//! an export older than the last one acknowledged before the request breaks "acknowledged means in
//! force".

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::mode::encode_export;
use crate::support::{
    Daemon, Export, Random, RawClient, SetOnDrop, Setup, dose, encode_verify, replace_export, row, wait_until,
};
use keyward_admin::message::Reload;
use keyward_client::Request;
use keyward_client::blocking::Client;
use keyward_protocol::{MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};
use rustix::process::Signal;

/// Keys that are revoked in every second export.
const ROTATING: usize = 200;

/// Keys that are never revoked.
const STABLE: usize = 300;

/// Every export reactivates all keys that were revoked.
const GUARD: &str = "source.max_reactivated = 1.0";

/// Requests that a connection sends at once.
const BATCH: usize = 24;

fn is_revoked(number: usize, version: usize) -> bool {
    (number + version) % 2 == 1
}

fn export(version: usize) -> Export {
    let rotating = (0..ROTATING).map(|number| {
        let status = if is_revoked(number, version) { "revoked" } else { "active" };
        row(format!("rotating-{number}")).status(status)
    });
    let stable =
        (0..STABLE).map(|number| row(format!("stable-{number}")).status("active").limits("1000000/s"));
    Export::new(rotating.chain(stable).map(|row| row.plan(format!("v{version}"))))
}

/// Replaces the export as Kubernetes updates a volume: keys.csv -> ..data/keys.csv, ..data -> a
/// directory.
fn swap_directory(source: &Path, version: usize) {
    let (name, parent) = (source.file_name().expect("a file"), source.parent().expect("a directory"));
    let directory = parent.join(format!("..v{version}"));
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join(name), encode_export(source, &export(version).to_csv())).expect("an export");
    let link = parent.join("..data_tmp");
    symlink(&directory, &link).expect("a link");
    let current = parent.join("..data");
    let previous = fs::read_link(&current);
    fs::rename(&link, &current).expect("swapped");
    if let Ok(previous) = previous {
        fs::remove_dir_all(previous).expect("the previous directory");
    }
    if version == 0 {
        symlink(Path::new("..data").join(name), source).expect("a link");
    }
}

fn write_in_place(source: &Path, version: usize) {
    fs::write(source, encode_export(source, &export(version).to_csv())).expect("written");
}

/// Replaces an export by a rename, in place, or by swapping its directory.
fn replace(source: &Path, version: usize) {
    match version % 3 {
        0 => replace_export(&source.canonicalize().expect("a file"), export(version)),
        1 => write_in_place(source, version),
        _ => swap_directory(source, version),
    }
}

/// Replaces the export by one that is refused.
fn spoil(source: &Path) {
    let path = source.canonicalize().expect("a file");
    let new = path.with_extension("new");
    fs::write(&new, "nonsense\n").expect("written");
    fs::rename(new, path).expect("renamed");
}

struct Load<'a> {
    daemon: &'a Daemon,
    acknowledged: AtomicUsize,
    stop: AtomicBool,
    answers: AtomicUsize,
}

impl Load<'_> {
    fn run(&self, seed: u64) {
        let rotating: Vec<String> = (0..ROTATING).map(|number| format!("rotating-{number}")).collect();
        let stable: Vec<String> = (0..STABLE).map(|number| format!("stable-{number}")).collect();
        let mut client = self.daemon.client();
        let mut random = Random::new(seed);
        while !self.stop.load(Ordering::Acquire) {
            let acknowledged = self.acknowledged.load(Ordering::Acquire);
            let keys: Vec<(Option<usize>, &str)> = (0..BATCH)
                .map(|_| {
                    if random.below(3) == 0 {
                        return (None, &*stable[random.below(STABLE)]);
                    }
                    let number = random.below(ROTATING);
                    (Some(number), &*rotating[number])
                })
                .collect();
            let requests: Vec<Request<'_>> = keys.iter().map(|(_, key)| Request::new(key)).collect();
            let answers = client.verify_many(&requests);
            for ((number, key), answer) in keys.iter().zip(answers) {
                let answer = answer.expect("no connection is dropped and no request is lost");
                let version: usize =
                    answer.plan().and_then(|plan| plan.strip_prefix('v')?.parse().ok()).expect("a known key");
                let is_revoked = number.is_some_and(|number| is_revoked(number, version));
                let expected = if is_revoked { "REVOKED" } else { "ALLOWED" };
                assert_eq!(answer.verdict().name(), expected, "{key} in export {version}");
                assert_eq!(answer.key_id(), Some(*key), "the answer belongs to its request");
                assert!(
                    version >= acknowledged,
                    "{key}: export {version} after {acknowledged} was acknowledged"
                );
            }
            self.answers.fetch_add(keys.len(), Ordering::Relaxed);
        }
    }
}

/// Reloads export `version` in one of four ways.
fn reload(load: &Load<'_>, client: &mut Client, version: usize) {
    let daemon = load.daemon;
    let acknowledge = |outcome: Reload| {
        assert!(outcome.accepted, "export {version}: {:?}", outcome.error);
        load.acknowledged.store(version, Ordering::Release);
    };
    match version % 4 {
        0 => acknowledge(daemon.reload()),
        1 => acknowledge(daemon.force_reload()),
        2 => {
            daemon.signal(Signal::HUP);
            wait_for_version(client, version);
        }
        _ => wait_for_version(client, version),
    }
}

#[test]
fn reloads_under_load_lose_no_request_and_serve_no_old_snapshot() {
    let (connections, reloads) = (dose(16, 64), dose(60, 10_000));
    let (min_answers, time_limit) = (dose(10_000, 100_000_000), Duration::from_secs(dose(120, 7_200) as u64));
    let setup = Setup::without_export().config("source.settle = '5ms'\nsource.poll = '100ms'").config(GUARD);
    let source = setup.source();
    swap_directory(&source, 0);
    let daemon = setup.start();
    let load = Load {
        daemon: &daemon,
        acknowledged: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        answers: AtomicUsize::new(0),
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let _end = SetOnDrop(&load.stop);
        for seed in 0..connections {
            let load = &load;
            scope.spawn(move || load.run(seed as u64));
        }
        let (mut client, mut version) = (daemon.client(), 0);
        while version < reloads || load.answers.load(Ordering::Relaxed) < min_answers {
            assert!(start.elapsed() < time_limit, "{version} reloads in {time_limit:?}");
            if version % 7 == 3 {
                spoil(&source);
                assert!(!daemon.reload().accepted);
            }
            version += 1;
            replace(&source, version);
            reload(&load, &mut client, version);
        }
        eprintln!("{version} reloads beside {:?} answers in {:?}", load.answers, start.elapsed());
    });
    let status = daemon.status();
    assert!(status.generation as usize > reloads);
    assert_eq!(
        (status.errors, status.accepted_connections),
        (0, connections as u64 + 1),
        "no client had to reconnect"
    );
}

/// Acknowledged means in force, deterministically: the daemon buffers answers of the old snapshot
/// because their peer does not read. Those that are still buffered when the reload is acknowledged
/// must not be sent.
#[test]
fn no_answer_of_an_old_snapshot_is_sent_after_the_acknowledgement() {
    let setup = Setup::new(export(0)).config("source.settle = '0s'\nsource.poll = '1h'").config(GUARD);
    let daemon = setup.start();
    for (version, forced) in [(1, false), (2, true)] {
        let mut peers: Vec<RawClient> = (0..4).map(|_| daemon.connect()).collect();
        peers.iter_mut().for_each(|peer| assert!(peer.send_until_blocked(&encode_verify(1, "stable-0")) > 0));
        let before = daemon.status().generation;
        replace_export(&daemon.setup.source(), export(version));
        let outcome = if forced { daemon.force_reload() } else { daemon.reload() };
        let sent: Vec<u64> =
            peers.iter().map(|peer| rustix::io::ioctl_fionread(&peer.stream).expect("a socket")).collect();
        assert!(outcome.accepted && outcome.generation > before, "{:?}", outcome.error);
        for (peer, sent) in peers.into_iter().zip(sent) {
            let (mut position, mut answers) = (0, 0);
            for (size, generation) in receive_answers(peer.stream) {
                position += size;
                answers += 1;
                assert!(
                    generation >= outcome.generation || position <= sent,
                    "an answer of generation {generation} at byte {position}; {sent} bytes had been sent"
                );
            }
            assert!(answers > 0);
        }
    }
}

/// Size and generation of each answer until the connection closes, or until no data arrives for
/// half a second.
fn receive_answers(mut stream: UnixStream) -> Vec<(u64, u64)> {
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..count]);
    }
    let (mut answers, mut at) = (Vec::new(), 0);
    while let ParsedFrame::Complete { header, body, size } = parse_frame(&bytes[at..], MAX_ANSWER_LENGTH) {
        if let Response::Answer(answer) = Response::decode(&header, body).expect("a frame of SPEC.md") {
            answers.push((size as u64, answer.generation));
        }
        at += size;
    }
    answers
}

fn wait_for_version(client: &mut Client, version: usize) {
    wait_until("the new export", || {
        let answer = client.verify(&Request::new("stable-0")).expect("an answer");
        answer.plan() == Some(&format!("v{version}"))
    });
}

/// A daemon whose export is in a separate directory. In the state directory, the daemon's own files
/// would wake the watch.
fn start_with_own_directory(poll: &str, prepare: impl FnOnce(&Path)) -> (Daemon, PathBuf) {
    let setup = Setup::without_export();
    let directory = setup.path("exports");
    fs::create_dir(&directory).expect("a directory");
    let source = directory.join(setup.source().file_name().expect("a file"));
    prepare(&source);
    let config = format!(
        "source.path = '{}'\nsource.poll = '{poll}'\nsource.settle = '5ms'\n{GUARD}",
        source.display()
    );
    (setup.config(&config).start(), source)
}

/// The poll interval of an hour detects nothing.
#[test]
fn every_kind_of_replacement_is_detected_by_the_watch() {
    let (daemon, source) = start_with_own_directory("1h", |source| swap_directory(source, 0));
    let mut client = daemon.client();
    for version in 1..=12 {
        replace(&source, version);
        wait_for_version(&mut client, version);
        // Acknowledged after the reload, when the watch has moved to the new path.
        assert!(daemon.reload().accepted);
    }
    // A file without links is removed and recreated, then overwritten.
    for (version, by_rename) in [(13, true), (15, false), (17, true), (19, false)] {
        fs::remove_file(&source).expect("removed");
        if by_rename {
            replace_export(&source, export(version));
        } else {
            write_in_place(&source, version);
        }
        wait_for_version(&mut client, version);
        write_in_place(&source, version + 1);
        wait_for_version(&mut client, version + 1);
    }
}

/// A watch on one directory does not detect a write through a hard link in another.
#[test]
fn write_through_a_hard_link_is_detected_by_the_poll() {
    let (daemon, source) = start_with_own_directory("100ms", |source| write_in_place(source, 0));
    let mut client = daemon.client();
    let elsewhere = daemon.setup.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    let link = elsewhere.join(source.file_name().expect("a file"));
    fs::hard_link(&source, &link).expect("a link");
    for version in 1..=3 {
        write_in_place(&link, version);
        wait_for_version(&mut client, version);
    }
}
