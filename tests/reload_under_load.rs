//! Promises 1, 2 and 5 together: sixteen connections ask without pause while the export is replaced two hundred times, in
//! each of the three ways that files are replaced.
//!
//! In export n, the keys `rotating-0` to `rotating-(n-1)` are revoked, and every row's plan is `v<n>`. So each answer
//! says which export it was taken from, and can be held against it: a key that is allowed in an export which revokes it,
//! or an export older than the last one that was acknowledged before the question, is a broken promise.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use keyward_client::Request;
use support::mode::form;
use support::{Daemon, Setup, hex, replace};

const CONNECTIONS: usize = 16;
const RELOADS: usize = 200;
const STABLE: usize = 300;

fn export(version: usize) -> String {
    let mut text = String::from("key_hash,key_id,plan,status,limits\n");
    for number in 0..RELOADS {
        let status = if number < version { "revoked" } else { "active" };
        let key = format!("rotating-{number}");
        writeln!(text, "{},{key},v{version},{status},", hex(&key)).expect("a String");
    }
    for number in 0..STABLE {
        let key = format!("stable-{number}");
        writeln!(text, "{},{key},v{version},active,1000000/s", hex(&key)).expect("a String");
    }
    text
}

fn name(setup: &Setup) -> OsString {
    setup.source().file_name().expect("a file").to_owned()
}

/// The layout of a Kubernetes volume: keys.csv -> ..data/keys.csv, ..data -> a directory.
fn mount(setup: &Setup, version: usize) {
    let directory = setup.path(&format!("..v{version}"));
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join(name(setup)), form(&setup.source(), &export(version))).expect("an export");
    let link = setup.path("..data_tmp");
    symlink(&directory, &link).expect("a link");
    fs::rename(&link, setup.path("..data")).expect("swapped");
}

/// Replaces the export in one of three ways: renamed, written in place, mounted.
fn change(daemon: &Daemon, version: usize) {
    match version % 3 {
        0 => replace(&daemon.setup.path("..data").join(name(&daemon.setup)), &export(version)),
        1 => daemon.setup.export(&export(version)),
        _ => mount(&daemon.setup, version),
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
    mount(&setup, 0);
    symlink(Path::new("..data").join(name(&setup)), setup.source()).expect("a link");
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
            change(&daemon, version);
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

/// Nobody asks for these reloads: the watch and the poll find the changes.
#[test]
fn changes_are_found_without_being_told() {
    let setup = Setup::without_export().config("[source]\nsettle = \"5ms\"\npoll = \"100ms\"");
    mount(&setup, 0);
    symlink(Path::new("..data").join(name(&setup)), setup.source()).expect("a link");
    let daemon = setup.start();
    for version in 1..=12 {
        change(&daemon, version);
        support::wait_for("the new export", || {
            let answer = daemon.client().verify(&Request::new("stable-0")).expect("an answer");
            (answer.plan() == Some(&format!("v{version}"))).then_some(())
        });
    }
}
