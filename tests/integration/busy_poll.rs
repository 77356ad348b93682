//! A daemon that spins keeps every promise of one that sleeps, and sleeps when nobody asks.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, RawClient, Received, Setup, TIMEOUT, encode_verify, sha256_hex, wait_for};
use keyward_client::{Client, Options, Request};
use keyward_daemon::admin::message::{Command, Target};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

/// Requests one after another: more than a connection's first rests.
const MANY: u32 = 3_000;

/// Both limits are the longest that there are: what could go wrong goes wrong more often.
fn spinning(server: &str) -> Daemon {
    let export = format!("key_hash,key_id\n{},a\n{},b\n", sha256_hex("a"), sha256_hex("b"));
    let config = format!("[server]\nworkers = 1\nbusy_poll = \"1ms\"\n{server}");
    Setup::new(&export).config(&config).start()
}

fn options(daemon: &Daemon) -> Options {
    Options::new(daemon.socket()).deadline(TIMEOUT).busy_poll(Duration::from_millis(1))
}

fn answer(request_id: u32, verdict: &'static str) -> Received {
    Received::Answer { request_id, verdict, generation: 1 }
}

fn ask_many(peer: &mut RawClient) {
    for id in 0..MANY {
        peer.send(&encode_verify(id, "a"));
        assert_eq!(peer.receive(), answer(id, "ALLOWED"));
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
        daemon.pause();
        let start = Instant::now();
        let late = client.with_deadline(Duration::from_millis(30)).verify(&Request::new("a")).await;
        assert!(late.is_err() && start.elapsed() < TIMEOUT / 2, "{late:?}");
        daemon.resume();
        assert!(client.verify(&Request::new("a")).await.expect("an answer").is_allowed());
    });
}

/// Processor time that a new client's thread needs to wait for an answer that does not come in time, after one that has.
fn work_of_waiting(daemon: &Daemon, options: Options, is_blocking: bool) -> Duration {
    let key = Request::new("a");
    let own_time =
        || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("time that has passed");
    let in_vain = |ask: &mut dyn FnMut(Duration) -> bool| {
        assert!(ask(TIMEOUT));
        daemon.pause();
        let before = own_time();
        assert!(!ask(Duration::from_millis(50)));
        let work = own_time() - before;
        daemon.resume();
        work
    };
    if is_blocking {
        let mut client = keyward_client::blocking::Client::with_options(options);
        return in_vain(&mut |deadline| {
            client.set_deadline(deadline);
            client.verify(&key).is_ok()
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = Client::with_options(options);
    in_vain(&mut |deadline| runtime.block_on(client.with_deadline(deadline).verify(&key)).is_ok())
}

#[test]
fn clients_look_for_as_long_as_they_are_told_to() {
    const LOOKS: Duration = Duration::from_micros(750);
    let daemon = spinning("");
    for is_blocking in [true, false] {
        let work = |busy_poll| {
            let options = Options::new(daemon.socket()).busy_poll(busy_poll);
            work_of_waiting(&daemon, options, is_blocking)
        };
        let told = Duration::from_millis(1);
        // A machine that has other things to do may keep a client from it; and after an answer that was late, it rests.
        let looks = || wait_for("a client that looks", || Some(work(told)).filter(|work| *work > LOOKS));
        let least = |work: &dyn Fn() -> Duration| (0..5).map(|_| work()).min().expect("some");
        assert!(least(&looks) < 10 * told, "it looks until the deadline");
        assert!(least(&|| work(Duration::ZERO)) < LOOKS, "it looks though nobody has told it to");
    }
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
                    peer.send(&encode_verify(1, "b"));
                    let said = peer.receive();
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
        let revoked = keyward_daemon::admin::send_command(&daemon.admin_socket(), &Command::Revoke(target));
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
                if std::io::Write::write_all(&mut peer.stream, &encode_verify(id, "a")).is_err() {
                    return Received::Closed;
                }
                match peer.receive() {
                    said if said == answer(id, "ALLOWED") => {}
                    other => return other,
                }
            }
            Received::Closed
        });
        daemon.signal(Signal::TERM);
        let start = Instant::now();
        assert!(daemon.wait_for_exit().success());
        assert!(start.elapsed() < Duration::from_secs(10), "it did not wait for drain_timeout");
        let goodbye = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };
        assert!([goodbye, Received::Closed].contains(&asking.join().expect("no panic")));
    });
}

#[test]
fn who_falls_silent_is_timed_out() {
    let daemon = spinning("idle_timeout = \"1s\"");
    let mut peer = daemon.connect();
    // After its first answer, a connection spins in any case.
    peer.send(&encode_verify(1, "a"));
    assert_eq!(peer.receive(), answer(1, "ALLOWED"));
    let start = Instant::now();
    assert!(matches!(peer.receive(), Received::Error { closing: true, detail: 1_000, .. }));
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
    let mut busy = daemon.connect();
    ask_many(&mut busy);
    // After its first answer, a connection spins in any case.
    let mut idle: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    for peer in &mut idle {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), answer(1, "ALLOWED"));
    }
    let before = used(&daemon);
    let start = Instant::now();
    let mut id = 0;
    // Each spin in vain is a millisecond: some 8 of a peer, and not 100.
    while start.elapsed() < Duration::from_secs(1) {
        id += 1;
        busy.send(&encode_verify(id, "a"));
        assert_eq!(busy.receive(), answer(id, "ALLOWED"));
        thread::sleep(Duration::from_millis(5));
    }
    let ticks = used(&daemon) - before;
    assert!(ticks <= 10, "{ticks} hundredths of a second of processor time in a second");
}

/// Connections that are answered and fall silent until they have cost `most` hundredths of a second, but not more than so many
/// `connections`; how many they were, and what they have cost.
fn fall_silent(daemon: &Daemon, most: u64, connections: u32) -> (u32, u64) {
    let before = used(daemon);
    let cost = || used(daemon) - before;
    let mut silent = Vec::new();
    while cost() < most && silent.len() < connections as usize {
        let mut peer = daemon.connect();
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), answer(1, "ALLOWED"));
        silent.push(peer);
        // Longer than anybody spins.
        thread::sleep(Duration::from_millis(2));
    }
    (silent.len() as u32, cost())
}

#[test]
fn a_daemon_spins_where_it_is_told_to_and_nowhere_else() {
    // Each spin is a millisecond; a machine that has other things to do may cut it short.
    let (connections, cost) = fall_silent(&spinning(""), 10, 300);
    assert!(cost >= 10, "{connections} connections have cost {cost} hundredths of a second");
    let export = format!("key_hash,key_id\n{},a\n", sha256_hex("a"));
    let sleeping = Setup::new(&export).config("[server]\nworkers = 1\nbusy_poll = \"0s\"").start();
    let (_all, less) = fall_silent(&sleeping, cost, connections);
    assert!(less <= cost / 2, "{connections} connections have cost {less} and not only {cost}");
}
