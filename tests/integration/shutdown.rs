//! Order of the shutdown: requests that have arrived are answered, then no request is answered any
//! more, then balances are saved.

use std::time::{Duration, Instant};

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
    let mut peer = daemon.connect();
    let sent = peer.send_until_blocked(&encode_verify(1, "a"));
    daemon.signal(Signal::TERM);
    // Long enough to observe a premature save.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        assert!(!daemon.setup.path("balances").exists(), "saved before everything was answered");
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
        assert!(answers > 0 && answers < sent && !has_notice, "{answers} answers to {sent} requests");
        received += answers;
    }
    let charged = BURST - remaining_after_restart(daemon);
    assert!(charged >= received, "{received} were admitted, but only {charged} are in the last save");
}

/// The daemon is paused while the peers connect, so it finds them and the signal at the same time.
/// It may handle either first, hence several rounds.
#[test]
fn connections_in_the_backlog_are_answered_at_shutdown() {
    const ROUNDS: usize = 6;
    const PEERS: usize = 16;
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
