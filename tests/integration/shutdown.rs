//! Order of the shutdown: requests that have arrived are answered, then no request is answered any
//! more, then balances are saved.

use std::io::{ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::serve_process::{ServeProcess, with_sockets};
use crate::support::{Daemon, Export, RawClient, Received, Setup, encode_verify, row, wait_until};
use keyward_client::Request;
use rustix::process::Signal;

/// More than the peers of a test send. At 100 per day, nothing is refilled during a test.
const BURST: usize = 100_000;

const SHUTTING_DOWN: Received = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };

fn allowed(request_id: u32) -> Received {
    Received::Answer { request_id, verdict: "ALLOWED", generation: 1 }
}

fn start(drain_timeout: &str) -> Daemon {
    let export = Export::new([row("a").limits(format!("100/d burst {BURST}"))]);
    let config = format!("[server]\ndrain_timeout = \"{drain_timeout}\"\n[state]\nsave_interval = \"1h\"");
    let daemon = Setup::new(export).config(&config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

/// Receives until the connection closes. Returns the number of ALLOWED answers, and whether the
/// last frame was SHUTTING_DOWN.
fn receive_all(peer: &mut RawClient) -> (usize, bool) {
    let mut received = peer.receive_until_close();
    let has_notice = received.pop_if(|last| *last == SHUTTING_DOWN).is_some();
    assert!(received.iter().all(|received| *received == allowed(1)), "{:?}", received.last());
    (received.len(), has_notice)
}

/// The remaining units of the limit after a restart.
fn remaining_after_restart(mut daemon: Daemon) -> usize {
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    let daemon = daemon.kill_and_restart();
    let answer = daemon.client().verify(&Request::new("a").peek()).expect("an answer");
    answer.limit().expect("a limit").remaining as usize
}

#[test]
fn requests_answered_while_draining_are_in_the_last_save() {
    let daemon = start("20s");
    let first = std::fs::read(daemon.setup.path("balances")).expect("written at the start");
    let mut peer = daemon.connect();
    let sent = peer.send_until_blocked(&encode_verify(1, "a"));
    daemon.signal(Signal::TERM);
    // Long enough to observe a premature save.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        let file = std::fs::read(daemon.setup.path("balances")).expect("there since the start");
        assert_eq!(file, first, "saved before everything was answered");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(receive_all(&mut peer), (sent, true));
    assert_eq!(remaining_after_restart(daemon), BURST - sent);
}

#[test]
fn drain_timeout_ends_answers_and_earlier_ones_are_in_the_last_save() {
    let daemon = start("300ms");
    let mut peers: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    let sent: Vec<usize> =
        peers.iter_mut().map(|peer| peer.send_until_blocked(&encode_verify(1, "a"))).collect();
    daemon.signal(Signal::TERM);
    wait_until("the drain to end", || daemon.log().contains("drain_timeout has passed"));
    let mut received = 0;
    for (peer, sent) in peers.iter_mut().zip(sent) {
        let (answers, has_notice) = receive_all(peer);
        assert!(answers > 0 && answers < sent && has_notice, "{answers} answers to {sent} requests");
        received += answers;
    }
    // All answers that were made are delivered, whether the peers read in time or not.
    assert_eq!(BURST - remaining_after_restart(daemon), received);
}

/// A peer does not read its answers, another one sends nothing. Without a timeout, neither is waited
/// for.
#[test]
fn drain_timeout_is_the_time_that_the_end_takes() {
    let stop = || {
        let mut daemon = start("0s");
        let [mut unread, mut silent] = [daemon.connect(), daemon.connect()];
        unread.send_until_blocked(&encode_verify(1, "a"));
        let start = Instant::now();
        daemon.stop();
        let elapsed = start.elapsed();
        assert!(receive_all(&mut unread).1);
        assert_eq!([silent.receive(), silent.receive()], [SHUTTING_DOWN, Received::Closed]);
        elapsed
    };
    // A busy machine may delay some of them.
    let shortest = (0..5).map(|_| stop()).min().expect("five");
    assert!(shortest < Duration::from_millis(700), "{shortest:?}");
}

/// Whether a connection attempt is refused because no daemon listens.
fn is_refused(path: &Path) -> bool {
    let error = UnixStream::connect(path).err().map(|error| error.kind());
    matches!(error, Some(ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

#[test]
fn connection_during_the_drain_is_refused() {
    let mut daemon = start("20s");
    let mut unread = daemon.connect();
    let sent = unread.send_until_blocked(&encode_verify(1, "a"));
    daemon.signal(Signal::TERM);
    wait_until("the socket to be closed", || is_refused(&daemon.socket()));
    // Neither is it bound again, although its file is gone.
    let _ = std::fs::remove_file(daemon.socket());
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_500) {
        assert!(is_refused(&daemon.socket()));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Commands are still answered.
    assert!(daemon.try_status().is_some());
    assert_eq!(receive_all(&mut unread), (sent, true));
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
}

/// Clients connect all the time while the daemon stops, and half of them write a request at once. A
/// connection is refused or gets a reason for its end, with or without an answer before: SHUTTING_DOWN,
/// or TOO_MANY_CONNECTIONS, because they connect faster than the daemon closes.
#[test]
fn no_connection_is_made_and_then_reset_at_shutdown() {
    const ROUNDS: usize = 6;
    for _ in 0..ROUNDS {
        let mut daemon = start("20s");
        let (socket, made) = (daemon.socket(), AtomicUsize::new(0));
        let connect = |writes: bool| {
            let mut peers = Vec::new();
            while !is_refused(&socket) {
                // The socket may have been closed since.
                let Ok(stream) = UnixStream::connect(&socket) else { break };
                let mut peer = RawClient::new(stream);
                if writes {
                    // Fails once the daemon has closed the connection.
                    let _ = peer.stream.write(&encode_verify(1, "a"));
                }
                made.fetch_add(1, Ordering::Relaxed);
                peers.push(peer);
                if peers.len() == 50 {
                    // Only those that the daemon ends have to get a reason.
                    peers.clear();
                }
            }
            for peer in &mut peers {
                let received = peer.receive_until_close();
                let has_reason = matches!(
                    received.last(),
                    Some(Received::Error { code: 12 | 14, request_id: 0, closing: true, .. })
                );
                assert!(has_reason && received.len() <= 1 + usize::from(writes), "{received:?}");
            }
        };
        std::thread::scope(|scope| {
            let clients = [false, true, false, true].map(|writes| scope.spawn(move || connect(writes)));
            wait_until("connections", || made.load(Ordering::Relaxed) > 100);
            daemon.signal(Signal::TERM);
            clients.into_iter().for_each(|client| client.join().expect("no panic"));
        });
        assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    }
}

/// A socket of systemd is not closed. A connection that the daemon has not accepted when it is stopped
/// is answered by the next one, with the request that it has written or writes later.
#[test]
fn connection_to_an_inherited_socket_waits_for_the_next_daemon() {
    let setup = Setup::new(Export::of(["a"])).config("server.drain_timeout = \"20s\"");
    let paths = ["keyward.sock", "admin.sock"].map(|name| setup.path(name));
    let listeners = paths.each_ref().map(|path| UnixListener::bind(path).expect("binds"));
    let run = || {
        let sockets = listeners.each_ref().map(|listener| listener.try_clone().expect("a descriptor").into());
        let process = ServeProcess::start(with_sockets(&setup, sockets, "verify:admin"));
        let mut first = RawClient::connect(&paths[0]);
        first.send(&encode_verify(1, "a"));
        assert!(matches!(first.receive(), Received::Answer { verdict: "ALLOWED", .. }));
        (process, first)
    };
    let (mut process, mut unread) = run();
    unread.send_until_blocked(&encode_verify(1, "a"));
    process.signal(Signal::TERM);
    wait_until("the drain", || {
        std::fs::read_to_string(setup.path("log")).is_ok_and(|log| log.contains("draining"))
    });
    let mut during_the_drain = [RawClient::connect(&paths[0]), RawClient::connect(&paths[0])];
    during_the_drain[0].send(&encode_verify(2, "a"));
    assert!(receive_all(&mut unread).1);
    assert!(process.wait_for_exit().success());
    let mut between = RawClient::connect(&paths[0]);
    between.send(&encode_verify(2, "a"));
    let _next = run();
    during_the_drain[1].send(&encode_verify(2, "a"));
    for peer in during_the_drain.iter_mut().chain([&mut between]) {
        assert!(matches!(peer.receive(), Received::Answer { request_id: 2, verdict: "ALLOWED", .. }));
    }
}

/// The daemon is paused while the peers connect, so it finds them and the signal at the same time.
/// It may handle either first, hence several rounds.
#[test]
fn connections_in_the_backlog_are_answered_at_shutdown() {
    const ROUNDS: usize = 6;
    const PEERS: usize = 50;
    for _ in 0..ROUNDS {
        let mut daemon = start("20s");
        daemon.pause();
        let mut silent: Vec<RawClient> = (0..PEERS).map(|_| daemon.connect()).collect();
        let mut active: Vec<RawClient> = (0..PEERS).map(|_| daemon.connect()).collect();
        for peer in &mut active {
            peer.send(&[encode_verify(1, "a"), encode_verify(2, "a")].concat());
        }
        daemon.signal(Signal::TERM);
        daemon.signal(Signal::INT);
        daemon.resume();
        for peer in &mut active {
            assert_eq!(
                [peer.receive(), peer.receive(), peer.receive()],
                [allowed(1), allowed(2), SHUTTING_DOWN]
            );
        }
        active.iter_mut().for_each(|peer| assert_eq!(peer.receive(), Received::Closed));
        for peer in &mut silent {
            assert_eq!([peer.receive(), peer.receive()], [SHUTTING_DOWN, Received::Closed]);
        }
        assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    }
}

/// Requests sent before the signal are answered, whether they wait in the socket or in a buffer.
#[test]
fn queued_requests_are_answered_at_shutdown() {
    let mut daemon = start("20s");
    let mut peers: Vec<RawClient> = (0..8).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), allowed(1));
    }
    daemon.pause();
    for (peer, number) in peers.iter_mut().zip(0_u32..) {
        // From no request to several full buffers.
        let requests: Vec<u8> = (0..number * 200).flat_map(|id| encode_verify(id, "a")).collect();
        peer.send(&requests);
    }
    daemon.signal(Signal::TERM);
    daemon.resume();
    for (peer, number) in peers.iter_mut().zip(0_u32..) {
        for id in 0..number * 200 {
            assert_eq!(peer.receive(), allowed(id));
        }
        assert_eq!([peer.receive(), peer.receive()], [SHUTTING_DOWN, Received::Closed]);
    }
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
}
