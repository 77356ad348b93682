//! A daemon that spins keeps every promise of one that sleeps, and sleeps when nobody asks.

#![allow(clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward::admin::message::{Command, Target};
use keyward_client::{Client, Options, Request};
use rustix::process::Signal;
use support::{Daemon, PATIENCE, Raw, Said, Setup, ask, hex, wait_for};

/// Requests one after another: more than a connection's first rests.
const MANY: u32 = 3_000;

/// Both limits are the longest that there are: what could go wrong goes wrong more often.
fn spinning(server: &str) -> Daemon {
    let export = format!("key_hash,key_id\n{},a\n{},b\n", hex("a"), hex("b"));
    let config = format!("[server]\nworkers = 1\nbusy_poll = \"1ms\"\n{server}");
    Setup::new(&export).config(&config).start()
}

fn options(daemon: &Daemon) -> Options {
    Options::new(daemon.socket()).deadline(PATIENCE).busy_poll(Duration::from_millis(1))
}

fn answer(request_id: u32, verdict: &'static str) -> Said {
    Said::Answer { request_id, verdict, generation: 1 }
}

fn ask_many(peer: &mut Raw) {
    for id in 0..MANY {
        peer.send(&ask(id, "a"));
        assert_eq!(peer.hear(), answer(id, "ALLOWED"));
    }
}

#[test]
fn more_peers_than_may_spin_are_all_answered_in_order() {
    let daemon = spinning("");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| ask_many(&mut daemon.connect()));
        }
        scope.spawn(|| {
            let mut client = keyward_client::blocking::Client::with_options(options(&daemon));
            let requests: Vec<_> = (0..500).map(|_| Request::new("a")).collect();
            for _ in 0..10 {
                assert!(client.verify_many(&requests).iter().all(Result::is_ok));
            }
        });
    });
}

#[test]
fn clients_that_spin_are_answered_and_keep_their_deadlines() {
    let daemon = spinning("");
    let mut blocking = keyward_client::blocking::Client::with_options(options(&daemon));
    for _ in 0..MANY {
        assert!(blocking.verify(&Request::new("a")).expect("an answer").is_allowed());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::with_options(options(&daemon));
        for _ in 0..MANY {
            assert!(client.verify(&Request::new("a")).await.expect("an answer").is_allowed());
        }
        daemon.signal(Signal::STOP);
        // A worker that spins goes on until the signal has reached its processor.
        wait_for("all threads to stop", || is_stopped(daemon.pid()).then_some(()));
        let start = Instant::now();
        let late = client.with_deadline(Duration::from_millis(30)).verify(&Request::new("a")).await;
        assert!(late.is_err() && start.elapsed() < PATIENCE / 2, "{late:?}");
        daemon.signal(Signal::CONT);
        assert!(client.verify(&Request::new("a")).await.expect("an answer").is_allowed());
    });
}

fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state comes after the name, which is in brackets.
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
    })
}

/// Acknowledged means in force, on connections that never sleep too.
#[test]
fn a_revocation_is_in_force_on_connections_that_spin() {
    let daemon = spinning("");
    let (stop, rounds, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut peer = daemon.connect();
                while !stop.load(Ordering::Acquire) {
                    let must_refuse = acknowledged.load(Ordering::Acquire);
                    peer.send(&ask(1, "b"));
                    let said = peer.hear();
                    assert!(!must_refuse || said == answer(1, "REVOKED"), "{said:?}");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more = |count| {
            let before = rounds.load(Ordering::Relaxed);
            wait_for("rounds", || (rounds.load(Ordering::Relaxed) > before + count).then_some(()));
        };
        more(1_000);
        let target = Target { key_id: Some("b".into()), owner: None };
        let revoked = keyward::admin::ask(&daemon.admin(), &Command::Revoke(target));
        acknowledged.store(true, Ordering::Release);
        more(1_000);
        stop.store(true, Ordering::Release);
        assert!(revoked.is_ok_and(|reply| reply.revocation.is_some()));
    });
}

#[test]
fn sigterm_ends_connections_that_spin() {
    let mut daemon = spinning("drain_timeout = \"20s\"");
    let mut peer = daemon.connect();
    ask_many(&mut peer);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for id in 0.. {
                // The answer to this one may be that there will be none.
                if std::io::Write::write_all(&mut peer.stream, &ask(id, "a")).is_err() {
                    return Said::End;
                }
                match peer.hear() {
                    said if said == answer(id, "ALLOWED") => {}
                    other => return other,
                }
            }
            Said::End
        });
        daemon.signal(Signal::TERM);
        let start = Instant::now();
        assert!(daemon.ended().success());
        assert!(start.elapsed() < Duration::from_secs(10), "it did not wait for drain_timeout");
        let goodbye = Said::Error { request_id: 0, code: 14, detail: 0, closing: true };
        assert!([goodbye, Said::End].contains(&asking.join().expect("no panic")));
    });
}

#[test]
fn who_falls_silent_is_timed_out() {
    let daemon = spinning("idle_timeout = \"1s\"");
    let mut peer = daemon.connect();
    ask_many(&mut peer);
    let start = Instant::now();
    assert!(matches!(peer.hear(), Said::Error { closing: true, detail: 1_000, .. }));
    assert!((900..10_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

/// Hundredths of a second that the daemon has used.
fn used(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("a process");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn idle_and_slow_connections_cost_next_to_nothing() {
    let daemon = spinning("");
    let mut peers: Vec<Raw> = (0..4).map(|_| daemon.connect()).collect();
    peers.iter_mut().for_each(ask_many);
    let before = used(&daemon);
    let start = Instant::now();
    let mut id = 0;
    // Each spin in vain is a millisecond: some 8 of a peer, and not 100.
    while start.elapsed() < Duration::from_secs(1) {
        id += 1;
        peers[0].send(&ask(id, "a"));
        assert_eq!(peers[0].hear(), answer(id, "ALLOWED"));
        thread::sleep(Duration::from_millis(5));
    }
    let ticks = used(&daemon) - before;
    assert!(ticks <= 10, "{ticks} hundredths of a second of processor time in a second");
}
