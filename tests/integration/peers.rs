//! Peers that misbehave: each harms itself, and nobody else notices (promises 5 and 6).

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::support::{
    Daemon, RawClient, Received, Setup, encode_verify, replace_export, sha256_hex, wait_for,
};
use keyward_protocol::{Credential, Verify};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

fn export() -> String {
    format!(
        "key_hash,key_id,metadata\n{},a,\n{},big,\"{{\"\"x\"\":\"\"{}\"\"}}\"\n",
        sha256_hex("a"),
        sha256_hex("big"),
        "y".repeat(4_000)
    )
}

fn allowed(request_id: u32) -> Received {
    Received::Answer { request_id, verdict: "ALLOWED", generation: 1 }
}

fn error(request_id: u32, code: u8, detail: u32, closing: bool) -> Received {
    Received::Error { request_id, code, detail, closing }
}

fn header(length: u32, version: u8, kind: u8, flags: u16, request_id: u32) -> Vec<u8> {
    [&length.to_le_bytes()[..], &[version, kind], &flags.to_le_bytes(), &request_id.to_le_bytes()].concat()
}

/// Each malformed frame gets the ERROR that names it, in its place; where framing survives, so does the connection.
#[test]
fn a_malformed_frame_is_told_apart_and_costs_only_its_own_connection() {
    let daemon = Daemon::serving(&export());
    let mut witness = daemon.connect();
    let goes_on: Vec<(Vec<u8>, Received)> = vec![
        (header(8, 9, 2, 0, 5), error(5, 3, 9, false)),
        (header(8, 1, 0x77, 0, 6), error(6, 4, 0x77, false)),
        (header(8, 1, 2, 0x8000, 7), error(7, 5, 0x8000, false)),
        (header(8, 1, 2, 0, 8), error(8, 6, 0, false)),
        ([header(8 + 37, 1, 2, 0, 9), vec![0; 37]].concat(), error(9, 7, 1, false)),
        ([header(8 + 36, 1, 2, 4, 10), vec![0; 36]].concat(), error(10, 8, 4, false)),
    ];
    let mut peer = daemon.connect();
    for (frame, expected) in goes_on {
        peer.send(&[encode_verify(1, "a"), frame, encode_verify(2, "a")].concat());
        assert_eq!([peer.receive(), peer.receive(), peer.receive()], [allowed(1), expected, allowed(2)]);
    }
    let closes: Vec<(Vec<u8>, Received)> = vec![
        (header(0, 0, 0, 0, 0), error(0, 1, 0, true)),
        (header(7, 1, 2, 0, 5), error(0, 1, 7, true)),
        (header(4097, 1, 2, 0, 6), error(0, 2, 4097, true)),
        (header(u32::MAX, 1, 2, 0, 7), error(0, 2, u32::MAX, true)),
    ];
    for (frame, expected) in closes {
        let mut peer = daemon.connect();
        peer.send(&[encode_verify(1, "a"), frame, encode_verify(2, "a")].concat());
        assert_eq!(
            [peer.receive(), peer.receive(), peer.receive()],
            [allowed(1), expected, Received::Closed]
        );
    }
    witness.send(&encode_verify(3, "a"));
    assert_eq!(witness.receive(), allowed(3));
}

#[test]
fn a_stream_that_ends_in_a_frame_is_told_so_and_one_that_ends_between_frames_is_answered() {
    let daemon = Daemon::serving(&export());
    let frame = encode_verify(1, "a");
    for end in 0..=frame.len() {
        let mut peer = daemon.connect();
        peer.send(&[&frame[..], &frame[..end]].concat());
        peer.stream.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(peer.receive(), allowed(1));
        match end {
            0 => {}
            end if end == frame.len() => assert_eq!(peer.receive(), allowed(1)),
            end => {
                let id = if end >= 12 { 1 } else { 0 };
                assert_eq!(peer.receive(), error(id, 9, end as u32, true), "cut at {end}");
            }
        }
        assert_eq!(peer.receive(), Received::Closed);
    }
}

#[test]
fn requests_that_trickle_in_are_answered() {
    let daemon = Daemon::serving(&export());
    let mut peer = daemon.connect();
    for id in 0..20 {
        for byte in encode_verify(id, "a") {
            peer.send(&[byte]);
        }
        assert_eq!(peer.receive(), allowed(id));
    }
}

/// Promise 6: peers that ask for the largest answers and read none cost a bounded amount each, and nobody else waits.
#[test]
fn peers_that_do_not_read_are_not_read_from() {
    const PEERS: usize = 32;
    /// One filled buffer, and the answers made before the output counts as full, with room for the allocator.
    const EACH: usize = 1 << 20;
    let daemon = Daemon::serving(&export());
    let mut frame = Vec::new();
    let digest = <sha2::Sha256 as sha2::Digest>::digest("big").into();
    let verify = Verify { want_metadata: true, ..Verify::new(1, Credential::Digest(digest)) };
    verify.encode(&mut frame).expect("within limits");
    let before = daemon.resident_bytes();
    let mut peers: Vec<RawClient> = (0..PEERS).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        assert!(peer.send_until_blocked(&frame) > 0);
    }
    let grown = daemon.resident_bytes().saturating_sub(before);
    assert!(grown < PEERS * EACH, "{PEERS} peers cost {grown} bytes");
    let start = Instant::now();
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    assert!(start.elapsed() < Duration::from_secs(1), "others wait for them");
}

/// Promise 2: a peer that does not read cannot hold an acknowledgement up for ever, nor be given an old answer after it.
#[test]
fn a_reload_is_acknowledged_although_a_peer_does_not_read() {
    let daemon = Daemon::serving(&export());
    let mut peer = daemon.connect();
    peer.send_until_blocked(&encode_verify(1, "a"));
    replace_export(&daemon.setup.source(), &export().replace(",a,", ",b,"));
    let start = Instant::now();
    assert!(daemon.reload().accepted);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    // What the kernel already had is the peer's; after it comes the end, not an answer of the old snapshot.
    let said = peer.receive_until_close();
    assert!(!said.is_empty() && said.iter().all(|said| *said == allowed(1)), "{:?}", said.last());
}

/// Without a reload that waits for them, too: a peer that never reads must not keep its connection for ever.
#[test]
fn connection_whose_peer_does_not_read_its_answers_is_ended_after_the_idle_timeout() {
    let daemon = Setup::new(&export()).config("[server]\nidle_timeout = \"1s\"").start();
    let flooding = || {
        let mut peer = daemon.connect();
        assert!(peer.send_until_blocked(&encode_verify(1, "a")) > 0);
        peer
    };
    let mut peers = [flooding(), flooding(), flooding()];
    wait_for("the end of their connections", || (daemon.status().connections == 0).then_some(()));
    for peer in &mut peers {
        // What the kernel already had is the peer's.
        let said = peer.receive_until_close();
        assert!(!said.is_empty() && said.iter().all(|said| *said == allowed(1)), "{:?}", said.last());
    }
    assert_eq!(daemon.verdict("a"), "ALLOWED");
}

#[test]
fn a_silent_connection_is_told_and_ended() {
    let daemon = Setup::new(&export()).config("[server]\nidle_timeout = \"1s\"").start();
    let mut peer = daemon.connect();
    peer.send(&encode_verify(1, "a"));
    assert_eq!(peer.receive(), allowed(1));
    assert_eq!(peer.receive(), error(0, 13, 1000, true));
    assert_eq!(peer.receive(), Received::Closed);
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("a process").count()
}

/// A read stops at a passed descriptor, and nothing announces the bytes behind it.
#[test]
fn requests_behind_a_passed_descriptor_are_answered() {
    let daemon = Daemon::serving(&export());
    let mut peer = daemon.connect();
    peer.send(&encode_verify(1, "a"));
    assert_eq!(peer.receive(), allowed(1));
    let before = descriptors(&daemon);
    for round in 0..3u32 {
        let (first, second, third) =
            (encode_verify(round, "a"), encode_verify(round + 100, "a"), encode_verify(round + 200, "a"));
        let passed = [std::io::stdin()];
        let descriptors = [passed[0].as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        peer.send(&first);
        sendmsg(&peer.stream, &[IoSlice::new(&second)], &mut control, SendFlags::empty()).expect("sent");
        peer.send(&third);
        assert_eq!(
            [peer.receive(), peer.receive(), peer.receive()],
            [allowed(round), allowed(round + 100), allowed(round + 200)]
        );
    }
    wait_for("the passed descriptors' end", || (descriptors(&daemon) <= before).then_some(()));
}

#[test]
fn connections_are_limited_and_the_one_too_many_is_told_so() {
    let daemon = Setup::new(&export()).config("[server]\nmax_connections = 3").start();
    let mut peers: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), allowed(1));
    }
    let mut surplus = daemon.connect();
    assert_eq!([surplus.receive(), surplus.receive()], [error(0, 12, 3, true), Received::Closed]);
    assert_eq!(daemon.status().refused_connections["limit"], 1);
    drop(peers.pop());
    crate::support::wait_for("a free place", || {
        let mut peer = daemon.connect();
        let _closed_at_once = peer.stream.write_all(&encode_verify(2, "a"));
        (peer.receive() == allowed(2)).then_some(())
    });
}

#[test]
fn a_user_who_is_not_listed_is_told_so() {
    let own = rustix::process::geteuid().as_raw();
    let daemon = Setup::new(&export()).config(&format!("[server]\nallow_uids = [{}]", own + 1)).start();
    let mut peer = daemon.connect();
    assert_eq!([peer.receive(), peer.receive()], [error(0, 11, own, true), Received::Closed]);
    assert_eq!(daemon.status().refused_connections["peer"], 1);
}
