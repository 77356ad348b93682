//! The order in which the daemon ends: what has arrived is answered, then nothing is any more, then balances are saved.

use std::time::{Duration, Instant};

use crate::support::{Daemon, RawClient, Received, Setup, encode_verify, sha256_hex, wait_for};
use keyward_client::Request;
use rustix::process::Signal;

/// More than any peer of these tests asks for, and so slow that nothing of it comes back while a test runs.
const BURST: usize = 100_000;

const GOODBYE: Received = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };

fn allowed(request_id: u32) -> Received {
    Received::Answer { request_id, verdict: "ALLOWED", generation: 1 }
}

fn serve(drain_timeout: &str) -> Daemon {
    let export = format!("key_hash,key_id,limits\n{},a,100/d burst {BURST}\n", sha256_hex("a"));
    let config = format!("[server]\ndrain_timeout = \"{drain_timeout}\"\n[state]\nsave_interval = \"1h\"");
    let daemon = Setup::new(&export).config(&config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

/// Reads to the end of the connection: how many were ALLOWED, and whether there was a goodbye.
fn read_to_the_end(peer: &mut RawClient) -> (usize, bool) {
    let mut said = peer.receive_until_close();
    let goodbye = said.pop_if(|last| *last == GOODBYE).is_some();
    assert!(said.iter().all(|said| *said == allowed(1)));
    (said.len(), goodbye)
}

/// What is left of the limit after a restart.
fn left_after_restart(mut daemon: Daemon) -> usize {
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    let daemon = daemon.restart();
    let answer = daemon.client().verify(&Request::new("a").peek()).expect("an answer");
    answer.limit().expect("a limit").remaining as usize
}

#[test]
fn requests_that_are_answered_while_draining_are_in_the_last_save() {
    let daemon = serve("20s");
    let mut peer = daemon.connect();
    let sent = peer.send_until_blocked(&encode_verify(1, "a"));
    daemon.signal(Signal::TERM);
    // Long enough for a save that comes too early.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        assert!(!daemon.setup.path("balances").exists(), "saved before everything was answered");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(read_to_the_end(&mut peer), (sent, true));
    assert_eq!(left_after_restart(daemon), BURST - sent);
}

#[test]
fn nothing_is_answered_after_drain_timeout_and_what_was_is_in_the_last_save() {
    let daemon = serve("300ms");
    let mut peers: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    let sent: Vec<usize> =
        peers.iter_mut().map(|peer| peer.send_until_blocked(&encode_verify(1, "a"))).collect();
    daemon.signal(Signal::TERM);
    wait_for("the end of the drain", || daemon.log().contains("drain_timeout has passed").then_some(()));
    let mut received = 0;
    for (peer, sent) in peers.iter_mut().zip(sent) {
        let (answers, goodbye) = read_to_the_end(peer);
        assert!(answers > 0 && answers < sent && !goodbye, "{answers} answers to {sent} requests");
        received += answers;
    }
    let charged = BURST - left_after_restart(daemon);
    assert!(charged >= received, "{received} were admitted, and {charged} are in the last save");
}

/// The daemon is stopped where it is while these connect, so that it finds them and the signal at the same time. Which it
/// looks at first is not certain: so there are several rounds.
#[test]
fn peers_in_the_backlog_are_answered_when_the_daemon_is_told_to_stop() {
    const ROUNDS: usize = 6;
    const PEERS: usize = 16;
    for _ in 0..ROUNDS {
        let mut daemon = serve("20s");
        daemon.pause();
        let mut silent: Vec<RawClient> = (0..PEERS).map(|_| daemon.connect()).collect();
        let mut asking: Vec<RawClient> = (0..PEERS).map(|_| daemon.connect()).collect();
        for peer in &mut asking {
            peer.send(&[encode_verify(1, "a"), encode_verify(2, "a")].concat());
        }
        daemon.signal(Signal::TERM);
        daemon.signal(Signal::INT);
        daemon.resume();
        for peer in &mut asking {
            assert_eq!([peer.receive(), peer.receive(), peer.receive()], [allowed(1), allowed(2), GOODBYE]);
        }
        asking.iter_mut().for_each(|peer| assert_eq!(peer.receive(), Received::Closed));
        for peer in &mut silent {
            assert_eq!([peer.receive(), peer.receive()], [GOODBYE, Received::Closed]);
        }
        assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
    }
}

/// Requests that a connection has sent before the signal, in all the places where they can wait.
#[test]
fn requests_that_wait_in_a_connection_are_answered_when_the_daemon_is_told_to_stop() {
    let mut daemon = serve("20s");
    let mut peers: Vec<RawClient> = (0..8).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), allowed(1));
    }
    daemon.pause();
    for (peer, number) in peers.iter_mut().zip(0_u32..) {
        // From none to several filled buffers.
        let requests: Vec<u8> = (0..number * 200).flat_map(|id| encode_verify(id, "a")).collect();
        peer.send(&requests);
    }
    daemon.signal(Signal::TERM);
    daemon.resume();
    for (peer, number) in peers.iter_mut().zip(0_u32..) {
        for id in 0..number * 200 {
            assert_eq!(peer.receive(), allowed(id));
        }
        assert_eq!([peer.receive(), peer.receive()], [GOODBYE, Received::Closed]);
    }
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
}
