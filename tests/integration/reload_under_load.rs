//! Promises 1, 2 and 5 together: sixteen connections ask without pause while the export is replaced two hundred times, in
//! each of the three ways that files are replaced.
//!
//! In export n, the keys `rotating-0` to `rotating-(n-1)` are revoked, and every row's plan is `v<n>`. So each answer
//! says which export it was taken from, and can be held against it: a key that is allowed in an export which revokes it,
//! or an export older than the last one that was acknowledged before the question, is a broken promise.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::mode::encode_export;
use crate::support::{Daemon, RawClient, Setup, replace_export, sha256_hex};
use keyward_client::Request;
use keyward_protocol::{MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};

const CONNECTIONS: usize = 16;
const RELOADS: usize = 200;
const STABLE: usize = 300;

fn export(version: usize) -> String {
    let mut text = String::from("key_hash,key_id,plan,status,limits\n");
    for number in 0..RELOADS {
        let status = if number < version { "revoked" } else { "active" };
        let key = format!("rotating-{number}");
        writeln!(text, "{},{key},v{version},{status},", sha256_hex(&key)).expect("a String");
    }
    for number in 0..STABLE {
        let key = format!("stable-{number}");
        writeln!(text, "{},{key},v{version},active,1000000/s", sha256_hex(&key)).expect("a String");
    }
    text
}

/// The layout of a Kubernetes volume: keys.csv -> ..data/keys.csv, ..data -> a directory.
fn mount(source: &Path, version: usize) {
    let (name, parent) = (source.file_name().expect("a file"), source.parent().expect("a directory"));
    let directory = parent.join(format!("..v{version}"));
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join(name), encode_export(source, &export(version))).expect("an export");
    let link = parent.join("..data_tmp");
    symlink(&directory, &link).expect("a link");
    fs::rename(&link, parent.join("..data")).expect("swapped");
    if version == 0 {
        symlink(Path::new("..data").join(name), source).expect("a link");
    }
}

fn write_in_place(source: &Path, version: usize) {
    fs::write(source, encode_export(source, &export(version))).expect("written");
}

/// Replaces an export that is mounted in one of three ways: renamed, written in place, mounted.
fn change(source: &Path, version: usize) {
    match version % 3 {
        0 => replace_export(&source.canonicalize().expect("a file"), &export(version)),
        1 => write_in_place(source, version),
        _ => mount(source, version),
    }
}

struct Load<'a> {
    daemon: &'a Daemon,
    acknowledged: AtomicUsize,
    stop: AtomicBool,
    answers: AtomicU64,
}

impl Load<'_> {
    fn run(&self, seed: usize) {
        let mut client = self.daemon.client();
        let mut turn = seed;
        while !self.stop.load(Ordering::Acquire) {
            let acknowledged = self.acknowledged.load(Ordering::Acquire);
            let keys: Vec<(usize, String)> = (0..24)
                .map(|_| {
                    turn =
                        turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let pick = turn >> 33;
                    match pick % 3 {
                        0 => (usize::MAX, format!("stable-{}", pick / 3 % STABLE)),
                        _ => (pick / 3 % RELOADS, format!("rotating-{}", pick / 3 % RELOADS)),
                    }
                })
                .collect();
            let requests: Vec<Request<'_>> = keys.iter().map(|(_, key)| Request::new(key)).collect();
            let answers = client.verify_many(&requests);
            for ((number, key), answer) in keys.iter().zip(answers) {
                let answer = answer.expect("no connection is dropped, no request is lost");
                let version: usize =
                    answer.plan().and_then(|plan| plan.strip_prefix('v')?.parse().ok()).expect("a known key");
                let expected = if *number < version { "REVOKED" } else { "ALLOWED" };
                assert_eq!(answer.verdict().name(), expected, "{key} in export {version}");
                assert_eq!(answer.key_id(), Some(key.as_str()), "the answer is to the question");
                assert!(
                    version >= acknowledged,
                    "{key}: export {version} after {acknowledged} was acknowledged"
                );
            }
            self.answers.fetch_add(keys.len() as u64, Ordering::Relaxed);
        }
    }
}

#[test]
fn two_hundred_reloads_under_load() {
    let setup = Setup::without_export().config("[source]\nsettle = \"5ms\"\npoll = \"100ms\"");
    let source = setup.source();
    mount(&source, 0);
    let daemon = setup.start();
    let load = Load {
        daemon: &daemon,
        acknowledged: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        answers: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for seed in 0..CONNECTIONS {
            let load = &load;
            scope.spawn(move || load.run(seed));
        }
        for version in 1..=RELOADS {
            change(&source, version);
            let outcome = daemon.reload();
            assert!(outcome.accepted, "export {version}: {:?}", outcome.error);
            load.acknowledged.store(version, Ordering::Release);
        }
        load.stop.store(true, Ordering::Release);
    });
    let status = daemon.status();
    assert!(status.generation as usize > RELOADS);
    assert_eq!(
        (status.errors, status.accepted_connections),
        (0, CONNECTIONS as u64),
        "nobody had to reconnect"
    );
    let answers = load.answers.into_inner();
    assert!(answers > 10_000, "only {answers} answers: that is no load");
}

/// Promise 2 without chance: the daemon keeps answers of the old snapshot, because their peer does not read. Whatever of them
/// is still to leave when the reload is acknowledged must not leave any more.
#[test]
fn no_answer_of_an_old_snapshot_leaves_after_the_acknowledgement() {
    let setup = Setup::new(&export(0)).config("[source]\nsettle = \"0s\"\npoll = \"1h\"");
    let daemon = setup.start();
    for (version, forced) in [(1, false), (2, true)] {
        let mut peers: Vec<RawClient> = (0..4).map(|_| daemon.connect()).collect();
        peers.iter_mut().for_each(|peer| {
            assert!(peer.send_until_blocked(&crate::support::encode_verify(1, "stable-0")) > 0)
        });
        let before = daemon.status().generation;
        replace_export(&daemon.setup.source(), &export(version));
        let outcome = if forced { daemon.force_reload() } else { daemon.reload() };
        let left = peers.iter().map(|peer| rustix::io::ioctl_fionread(&peer.stream).expect("a socket"));
        let left: Vec<u64> = left.collect();
        assert!(outcome.accepted && outcome.generation > before, "{:?}", outcome.error);
        for (peer, left) in peers.into_iter().zip(left) {
            let (mut position, mut answers) = (0, 0);
            for (size, generation) in answers_until_the_end(peer.stream) {
                position += size;
                answers += 1;
                assert!(
                    generation >= outcome.generation || position <= left,
                    "an answer of generation {generation} at byte {position}; {left} had left"
                );
            }
            assert!(answers > 0);
        }
    }
}

/// Size and generation of each answer, up to the end of the connection, or until nothing comes any more.
fn answers_until_the_end(mut stream: UnixStream) -> Vec<(u64, u64)> {
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

fn wait_for_version(daemon: &Daemon, version: usize) {
    crate::support::wait_for("the new export", || {
        let answer = daemon.client().verify(&Request::new("stable-0")).expect("an answer");
        (answer.plan() == Some(&format!("v{version}"))).then_some(())
    });
}

/// A daemon whose export is in a separate directory. Changes of the daemon's own files in the state directory would wake the
/// watch too.
fn unattended(poll: &str, prepare: impl FnOnce(&Path)) -> (Daemon, PathBuf) {
    let setup = Setup::without_export();
    let directory = setup.path("exports");
    fs::create_dir(&directory).expect("a directory");
    let source = directory.join(setup.source().file_name().expect("a file"));
    prepare(&source);
    let config =
        format!("source.path = '{}'\nsource.poll = '{poll}'\nsource.settle = '5ms'", source.display());
    (setup.config(&config).start(), source)
}

/// The poll comes too late for these.
#[test]
fn changes_are_noticed_by_the_watch() {
    let (daemon, source) = unattended("1h", |source| mount(source, 0));
    for version in 1..=12 {
        change(&source, version);
        wait_for_version(&daemon, version);
        // Its answer comes when the reload has ended: what is changed from here on is watched for at its new place.
        assert!(daemon.reload().accepted);
    }
    // A file without any links: removed and made anew, then written over.
    for (version, by_rename) in [(13, true), (15, false), (17, true), (19, false)] {
        fs::remove_file(&source).expect("removed");
        match by_rename {
            true => replace_export(&source, &export(version)),
            false => write_in_place(&source, version),
        }
        wait_for_version(&daemon, version);
        write_in_place(&source, version + 1);
        wait_for_version(&daemon, version + 1);
    }
}

/// A change that is made through a hard link in another directory is not seen by a watch on this one.
#[test]
fn changes_that_the_watch_does_not_see_are_noticed_by_the_poll() {
    let (daemon, source) = unattended("100ms", |source| write_in_place(source, 0));
    let elsewhere = daemon.setup.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    let link = elsewhere.join(source.file_name().expect("a file"));
    fs::hard_link(&source, &link).expect("a link");
    for version in 1..=3 {
        write_in_place(&link, version);
        wait_for_version(&daemon, version);
    }
}
