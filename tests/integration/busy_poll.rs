//! A daemon that busy-polls keeps every promise of one that sleeps, and sleeps when no requests
//! come.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    Daemon, Export, RawClient, Received, SetOnDrop, Setup, TIMEOUT, encode_verify, key_target, wait_for,
    wait_until,
};
use keyward_client::{Client, Options, Request, blocking};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

/// Sequential requests: enough for a connection to back off from spinning several times.
const MANY: u32 = 3_000;

/// Starts a daemon that busy-polls for the maximum time, which makes races most likely.
fn start_spinning(server: &str) -> Daemon {
    let config = format!("[server]\nworkers = 1\nbusy_poll = \"1ms\"\n{server}");
    Setup::new(Export::of(["a", "b"])).config(&config).start()
}

fn options(daemon: &Daemon) -> Options {
    Options::new(daemon.socket()).deadline(TIMEOUT).busy_poll(Duration::from_millis(1))
}

fn answer(request_id: u32, verdict: &'static str) -> Received {
    Received::Answer { request_id, verdict, generation: 1 }
}

fn verify_many(peer: &mut RawClient) {
    for id in 0..MANY {
        peer.send(&encode_verify(id, "a"));
        assert_eq!(peer.receive(), answer(id, "ALLOWED"));
    }
}

#[test]
fn more_connections_than_may_spin_are_answered_in_order() {
    let daemon = start_spinning("");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| verify_many(&mut daemon.connect()));
        }
        scope.spawn(|| {
            let mut client = blocking::Client::with_options(options(&daemon));
            let requests: Vec<_> = (0..500).map(|_| Request::new("a")).collect();
            for _ in 0..10 {
                assert!(client.verify_many(&requests).iter().all(Result::is_ok));
            }
        });
    });
}

#[test]
fn busy_polling_clients_are_answered_and_keep_their_deadlines() {
    let daemon = start_spinning("");
    let mut client = blocking::Client::with_options(options(&daemon));
    for _ in 0..MANY {
        assert!(client.verify(&Request::new("a")).expect("an answer").is_allowed());
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

/// Processor time of a client's thread while it waits 50 ms for an answer that does not come. An
/// earlier request has succeeded.
fn processor_time_of_a_late_answer(daemon: &Daemon, options: Options, is_blocking: bool) -> Duration {
    let key = Request::new("a");
    let thread_time = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("not negative");
    let measure = |verify_within: &mut dyn FnMut(Duration) -> bool| {
        assert!(verify_within(TIMEOUT));
        daemon.pause();
        let before = thread_time();
        assert!(!verify_within(Duration::from_millis(50)));
        let used = thread_time() - before;
        daemon.resume();
        used
    };
    if is_blocking {
        let mut client = blocking::Client::with_options(options);
        return measure(&mut |deadline| {
            client.set_deadline(deadline);
            client.verify(&key).is_ok()
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = Client::with_options(options);
    measure(&mut |deadline| runtime.block_on(client.with_deadline(deadline).verify(&key)).is_ok())
}

#[test]
fn clients_spin_for_the_configured_time() {
    const BUSY_POLL: Duration = Duration::from_millis(1);
    /// Processor time above which a client must have been spinning.
    const SPINNING: Duration = Duration::from_micros(750);
    let daemon = start_spinning("");
    for is_blocking in [true, false] {
        let processor_time = |busy_poll| {
            let options = Options::new(daemon.socket()).busy_poll(busy_poll);
            processor_time_of_a_late_answer(&daemon, options, is_blocking)
        };
        // A busy machine may interrupt a client, and after a late answer a client backs off.
        let spinning = || {
            wait_for("a client that spins", || {
                Some(processor_time(BUSY_POLL)).filter(|used| *used > SPINNING)
            })
        };
        let sleeping = || processor_time(Duration::ZERO);
        let min = |measure: &dyn Fn() -> Duration| (0..5).map(|_| measure()).min().expect("five");
        assert!(min(&spinning) < 10 * BUSY_POLL, "the client spins until its deadline");
        assert!(min(&sleeping) < SPINNING, "the client spins with busy_poll = 0");
    }
}

/// Acknowledged means in force, on connections that never sleep as well.
#[test]
fn acknowledged_revocation_is_in_force_on_spinning_connections() {
    let daemon = start_spinning("");
    let (stop, rounds, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let _end = SetOnDrop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                let mut peer = daemon.connect();
                while !stop.load(Ordering::Acquire) {
                    let is_revoked = acknowledged.load(Ordering::Acquire);
                    peer.send(&encode_verify(1, "b"));
                    let received = peer.receive();
                    let is_denied = matches!(received, Received::Answer { verdict: "REVOKED", .. });
                    assert!(!is_revoked || is_denied, "{received:?}");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let wait_for_rounds = |count| {
            let before = rounds.load(Ordering::Relaxed);
            wait_until("rounds", || rounds.load(Ordering::Relaxed) > before + count);
        };
        wait_for_rounds(1_000);
        daemon.revoke(key_target("b"));
        acknowledged.store(true, Ordering::Release);
        wait_for_rounds(1_000);
    });
}

#[test]
fn sigterm_ends_spinning_connections() {
    let mut daemon = start_spinning("drain_timeout = \"20s\"");
    let mut peer = daemon.connect();
    verify_many(&mut peer);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            for id in 0.. {
                if peer.stream.write_all(&encode_verify(id, "a")).is_err() {
                    return Received::Closed;
                }
                let received = peer.receive();
                if received != answer(id, "ALLOWED") {
                    return received;
                }
            }
            Received::Closed
        });
        daemon.signal(Signal::TERM);
        let start = Instant::now();
        assert!(daemon.wait_for_exit().success());
        assert!(start.elapsed() < Duration::from_secs(10), "it waited for drain_timeout");
        let shutting_down = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };
        assert!([shutting_down, Received::Closed].contains(&client.join().expect("no panic")));
    });
}

#[test]
fn idle_spinning_connection_is_timed_out() {
    let daemon = start_spinning("idle_timeout = \"1s\"");
    let mut peer = daemon.connect();
    // After its first answer, every connection spins.
    peer.send(&encode_verify(1, "a"));
    assert_eq!(peer.receive(), answer(1, "ALLOWED"));
    let start = Instant::now();
    assert!(matches!(peer.receive(), Received::Error { closing: true, detail: 1_000, .. }));
    assert!((900..10_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[test]
fn idle_and_slow_connections_use_little_processor_time() {
    let daemon = start_spinning("");
    let mut busy = daemon.connect();
    verify_many(&mut busy);
    // After its first answer, every connection spins.
    let mut idle: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    for peer in &mut idle {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), answer(1, "ALLOWED"));
    }
    let before = daemon.processor_ticks();
    let start = Instant::now();
    let mut id = 0;
    // An unsuccessful spin takes a millisecond. With the back-off, a peer has about 8 of them, not
    // 100.
    while start.elapsed() < Duration::from_secs(1) {
        id += 1;
        busy.send(&encode_verify(id, "a"));
        assert_eq!(busy.receive(), answer(id, "ALLOWED"));
        thread::sleep(Duration::from_millis(5));
    }
    let ticks = daemon.processor_ticks() - before;
    assert!(ticks <= 10, "{ticks} clock ticks in a second");
}

/// Opens connections that fall silent after one answer, until they have used `max_ticks` of
/// processor time or there are `max_connections`. Returns their number and the processor time.
fn open_silent_connections(daemon: &Daemon, max_ticks: u64, max_connections: usize) -> (usize, u64) {
    let before = daemon.processor_ticks();
    let ticks = || daemon.processor_ticks() - before;
    let mut silent = Vec::new();
    while ticks() < max_ticks && silent.len() < max_connections {
        let mut peer = daemon.connect();
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), answer(1, "ALLOWED"));
        silent.push(peer);
        // Longer than a connection spins.
        thread::sleep(Duration::from_millis(2));
    }
    (silent.len(), ticks())
}

#[test]
fn daemon_spins_only_if_configured() {
    // A spin takes a millisecond, or less if the machine is busy.
    let (connections, spinning) = open_silent_connections(&start_spinning(""), 10, 300);
    assert!(spinning >= 10, "{connections} connections used {spinning} clock ticks");
    let config = "[server]\nworkers = 1\nbusy_poll = \"0s\"";
    let daemon = Setup::new(Export::of(["a"])).config(config).start();
    let (_, sleeping) = open_silent_connections(&daemon, spinning, connections);
    assert!(sleeping <= spinning / 2, "{connections} connections used {sleeping} of {spinning} clock ticks");
}
