//! Clients that misbehave affect only their own connections.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::support::{
    Daemon, Export, RawClient, Received, Setup, encode_verify, replace_export, row, wait_until,
};
use keyward_protocol::{Credential, Debit, MAX_ANSWER_LENGTH, ParsedFrame, Refund, Verify, parse_frame};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A plain key, and one with large metadata.
fn export() -> Export {
    let metadata = format!(r#"{{"x":"{}"}}"#, "y".repeat(4_000));
    Export::new([row("a"), row("big").metadata(metadata)])
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

/// Each invalid frame is answered by its own ERROR, in order. The connection survives if its
/// framing does.
#[test]
fn invalid_frame_gets_its_error_and_affects_only_its_connection() {
    let daemon = Daemon::serving(export());
    let mut witness = daemon.connect();
    let recoverable: Vec<(Vec<u8>, Received)> = vec![
        (header(8, 9, 2, 0, 5), error(5, 3, 9, false)),
        (header(8, 1, 0x77, 0, 6), error(6, 4, 0x77, false)),
        (header(8, 1, 2, 0x8000, 7), error(7, 5, 0x8000, false)),
        (header(8, 1, 2, 0, 8), error(8, 6, 0, false)),
        ([header(8 + 37, 1, 2, 0, 9), vec![0; 37]].concat(), error(9, 7, 1, false)),
        ([header(8 + 36, 1, 2, 4, 10), vec![0; 36]].concat(), error(10, 8, 4, false)),
    ];
    let mut peer = daemon.connect();
    for (frame, expected) in recoverable {
        peer.send(&[encode_verify(1, "a"), frame, encode_verify(2, "a")].concat());
        assert_eq!([peer.receive(), peer.receive(), peer.receive()], [allowed(1), expected, allowed(2)]);
    }
    let fatal: Vec<(Vec<u8>, Received)> = vec![
        (header(0, 0, 0, 0, 0), error(0, 1, 0, true)),
        (header(7, 1, 2, 0, 5), error(0, 1, 7, true)),
        (header(4097, 1, 2, 0, 6), error(0, 2, 4097, true)),
        (header(u32::MAX, 1, 2, 0, 7), error(0, 2, u32::MAX, true)),
    ];
    for (frame, expected) in fatal {
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
fn stream_that_ends_inside_a_frame_gets_an_error() {
    let daemon = Daemon::serving(export());
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
fn requests_sent_byte_by_byte_are_answered() {
    let daemon = Daemon::serving(export());
    let mut peer = daemon.connect();
    for id in 0..20 {
        for byte in encode_verify(id, "a") {
            peer.send(&[byte]);
        }
        assert_eq!(peer.receive(), allowed(id));
    }
}

/// Clients that request the largest answers and read none cost a bounded amount of
/// memory each, and delay no other client.
#[test]
fn peers_that_do_not_read_cost_bounded_memory() {
    const PEERS: usize = 32;
    /// A full input buffer, the answers encoded before the output counts as full, and room for the
    /// allocator.
    const BYTES_PER_PEER: usize = 1 << 20;
    let daemon = Daemon::serving(export());
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
    assert!(grown < PEERS * BYTES_PER_PEER, "{PEERS} peers cost {grown} bytes");
    let start = Instant::now();
    assert_eq!(daemon.verdict("a"), "ALLOWED", "other clients are served");
    assert!(start.elapsed() < Duration::from_secs(1), "other clients wait for them");
}

/// A client that never reads does not delay the acknowledgement of a reload, and gets no
/// answer of the old snapshot after it.
#[test]
fn peer_that_does_not_read_does_not_delay_a_reload() {
    let daemon = Daemon::serving(export());
    let mut peer = daemon.connect();
    peer.send_until_blocked(&encode_verify(1, "a"));
    replace_export(&daemon.setup.source(), export().to_csv().replace(",a,", ",b,"));
    let start = Instant::now();
    assert!(daemon.reload().accepted);
    assert!(start.elapsed() < Duration::from_secs(5), "the reload took {:?}", start.elapsed());
    // Answers that were made before are followed by the reason for the end of the stream: a change has
    // waited for a second.
    let mut received = peer.receive_until_close();
    assert_eq!(received.pop(), Some(error(0, 13, 1_000, true)));
    assert!(!received.is_empty(), "nothing was received");
    assert!(received.iter().all(|received| *received == allowed(1)), "{:?}", received.last());
}

#[test]
fn peer_that_does_not_read_is_disconnected_after_the_idle_timeout() {
    let daemon = Setup::new(export()).config("[server]\nidle_timeout = \"1s\"").start();
    let blocked_peer = || {
        let mut peer = daemon.connect();
        assert!(peer.send_until_blocked(&encode_verify(1, "a")) > 0);
        peer
    };
    let mut peers = [blocked_peer(), blocked_peer(), blocked_peer()];
    wait_until("their connections to close", || daemon.status().connections == 0);
    let made = daemon.status().verdicts["ALLOWED"] as usize;
    let mut answers = 0;
    for peer in &mut peers {
        let mut received = peer.receive_until_close();
        assert_eq!(received.pop(), Some(error(0, 13, 1_000, true)));
        assert!(received.iter().all(|received| *received == allowed(1)), "{:?}", received.last());
        answers += received.len();
    }
    // What was not answered was not charged either.
    assert_eq!(answers, made);
    assert_eq!(daemon.verdict("a"), "ALLOWED");
}

/// The client reads all the time, but takes longer than the idle timeout to empty most of the socket,
/// which is when epoll reports it as writable. In each period it reads more than the kernel sends at
/// once.
#[test]
fn client_that_has_half_closed_and_reads_slowly_gets_all_answers() {
    const REQUESTS: u32 = 9_000;
    const BYTES_PER_SECOND: f64 = 60_000.0;
    let daemon = Setup::new(export()).config("[server]\nidle_timeout = \"2s\"").start();
    let mut peer = daemon.connect();
    let requests: Vec<u8> = (0..REQUESTS).flat_map(|id| encode_verify(id, "a")).collect();
    let mut reader = peer.stream.try_clone().expect("a descriptor");
    let received = std::thread::scope(|scope| {
        let received = scope.spawn(move || {
            let (mut received, mut chunk, start) = (Vec::new(), [0; 500], Instant::now());
            loop {
                match reader.read(&mut chunk).expect("the connection is not reset") {
                    0 => return received,
                    count => received.extend_from_slice(&chunk[..count]),
                }
                let due = Duration::from_secs_f64(received.len() as f64 / BYTES_PER_SECOND);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        });
        peer.send(&requests);
        peer.stream.shutdown(Shutdown::Write).expect("half closed");
        received.join().expect("no panic")
    });
    let mut frames = &received[..];
    for id in 0..REQUESTS {
        let ParsedFrame::Complete { header, size, .. } = parse_frame(frames, MAX_ANSWER_LENGTH) else {
            panic!("no answer to request {id}");
        };
        assert_eq!(header.request_id, id);
        frames = &frames[size..];
    }
    assert!(frames.is_empty(), "more than the answers");
}

/// Half a header, half a frame, and a frame whose bytes arrive one by one.
#[test]
fn incomplete_frame_is_timed_out() {
    let daemon = Setup::new(export()).config("[server]\nidle_timeout = \"1s\"").start();
    let frame = encode_verify(2, "a");
    for (at_first, later) in [(1, 0), (6, 0), (12, 0), (47, 0), (1, 30)] {
        let mut peer = daemon.connect();
        peer.send(&[&encode_verify(1, "a"), &frame[..at_first]].concat());
        let start = Instant::now();
        let is_closed = frame[at_first..at_first + later].iter().any(|byte| {
            std::thread::sleep(Duration::from_millis(100));
            peer.stream.write(&[*byte]).is_err()
        });
        assert_eq!(is_closed, later > 0, "bytes keep the connection open");
        assert_eq!(
            [peer.receive(), peer.receive(), peer.receive()],
            [allowed(1), error(0, 13, 1_000, true), Received::Closed],
            "{at_first} bytes"
        );
        assert!(start.elapsed() >= Duration::from_secs(1), "after {:?}", start.elapsed());
    }
}

#[test]
fn frame_divided_by_pauses_is_answered() {
    let daemon = Setup::new(export()).config("[server]\nidle_timeout = \"4s\"").start();
    let mut peer = daemon.connect();
    let start = Instant::now();
    for (id, part) in [(1, 1), (2, 6), (3, 12), (4, 47)] {
        let frame = encode_verify(id, "a");
        peer.send(&frame[..part]);
        std::thread::sleep(Duration::from_millis(1_100));
        peer.send(&frame[part..]);
        assert_eq!(peer.receive(), allowed(id));
    }
    assert!(start.elapsed() > Duration::from_secs(4));
}

/// They take all places, and write a byte each half a second.
#[test]
fn slow_writers_free_their_connections() {
    const PLACES: usize = 100;
    let config = "[server]\nmax_connections = 100\nidle_timeout = \"1s\"\n[uid_quotas]\nconnections = 100";
    let daemon = Setup::new(export()).config(config).start();
    let frame = encode_verify(1, "a");
    let mut slow: Vec<RawClient> = (0..PLACES).map(|_| daemon.connect()).collect();
    slow.iter_mut().for_each(|peer| peer.send(&frame[..1]));
    wait_until("all places to be taken", || daemon.status().accepted_connections == PLACES as u64);
    let start = Instant::now();
    for byte in &frame[1..] {
        for peer in &mut slow {
            // Fails once the daemon has closed the connection.
            let _ = peer.stream.write(&[*byte]);
        }
        if daemon.status().connections == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(start.elapsed() < Duration::from_secs(15), "after {:?}", start.elapsed());
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    for peer in &mut slow {
        assert_eq!([peer.receive(), peer.receive()], [error(0, 13, 1_000, true), Received::Closed]);
    }
}

#[test]
fn idle_connection_gets_an_error_and_is_closed() {
    let daemon = Setup::new(export()).config("[server]\nidle_timeout = \"1s\"").start();
    let mut peer = daemon.connect();
    peer.send(&encode_verify(1, "a"));
    assert_eq!(peer.receive(), allowed(1));
    assert_eq!(peer.receive(), error(0, 13, 1000, true));
    assert_eq!(peer.receive(), Received::Closed);
}

fn count_descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("a process").count()
}

/// A read stops at a passed descriptor (SCM_RIGHTS), and epoll does not announce the bytes after
/// it.
#[test]
fn requests_after_a_passed_descriptor_are_answered() {
    let daemon = Daemon::serving(export());
    let mut peer = daemon.connect();
    peer.send(&encode_verify(1, "a"));
    assert_eq!(peer.receive(), allowed(1));
    let before = count_descriptors(&daemon);
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
    wait_until("the passed descriptors to be closed", || count_descriptors(&daemon) <= before);
}

#[test]
fn connection_above_the_limit_is_refused() {
    let daemon = Setup::new(export()).config("[server]\nmax_connections = 3").start();
    let mut peers: Vec<RawClient> = (0..3).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), allowed(1));
    }
    let mut surplus = daemon.connect();
    assert_eq!([surplus.receive(), surplus.receive()], [error(0, 12, 3, true), Received::Closed]);
    assert_eq!(daemon.status().refused_connections["limit"], 1);
    drop(peers.pop());
    wait_until("a free connection", || {
        let mut peer = daemon.connect();
        // Fails if the daemon has closed the connection already.
        let _ = peer.stream.write_all(&encode_verify(2, "a"));
        peer.receive() == allowed(2)
    });
}

#[test]
fn connection_above_the_limit_of_its_uid_is_refused() {
    let setup = Setup::new(export());
    let daemon = setup.config("[server]\nmax_connections = 8\n[uid_quotas]\nconnections = 2").start();
    let mut peers: Vec<RawClient> = (0..2).map(|_| daemon.connect()).collect();
    for peer in &mut peers {
        peer.send(&encode_verify(1, "a"));
        assert_eq!(peer.receive(), allowed(1));
    }
    let mut surplus = daemon.connect();
    assert_eq!([surplus.receive(), surplus.receive()], [error(0, 12, 2, true), Received::Closed]);
    let refused = daemon.status().refused_connections;
    assert_eq!((refused["uid_limit"], refused["limit"]), (1, 0));
    drop(peers.pop());
    wait_until("a free connection", || {
        let mut peer = daemon.connect();
        // Fails if the daemon has closed the connection already.
        let _ = peer.stream.write_all(&encode_verify(2, "a"));
        peer.receive() == allowed(2)
    });
}

#[test]
fn unlisted_user_is_refused() {
    let own = rustix::process::geteuid().as_raw();
    let daemon = Setup::new(export()).config(&format!("[server]\nallow_uids = [{}]", own + 1)).start();
    let mut peer = daemon.connect();
    assert_eq!([peer.receive(), peer.receive()], [error(0, 11, own, true), Received::Closed]);
    assert_eq!(daemon.status().refused_connections["peer"], 1);
}

/// With the lists, a client cannot refund itself. Nothing is processed, and the connection continues.
#[test]
fn unlisted_user_can_neither_refund_nor_debit() {
    let own = rustix::process::geteuid().as_raw();
    let other = own + 1;
    for (lists, may_refund, may_debit) in [
        (String::new(), true, true),
        (format!("refund_uids = [{other}]\ndebit_uids = [{other}, {own}]"), false, true),
        (format!("refund_uids = [{own}]\ndebit_uids = []"), true, false),
        (format!("refund_uids = []\ndebit_uids = [{other}]"), false, false),
    ] {
        let export = Export::new([row("a").limits("credits=100")]);
        let daemon = Setup::new(export).config(&format!("[server]\n{lists}")).start();
        let mut frames = Vec::new();
        let key = || Credential::RawKey(b"a");
        Verify { cost: 50, ..Verify::new(1, key()) }.encode(&mut frames).expect("within all limits");
        Refund::new(2, 30, key()).encode(&mut frames).expect("within all limits");
        Debit::new(3, 7, key()).encode(&mut frames).expect("within all limits");
        Verify::new(4, key()).encode(&mut frames).expect("within all limits");
        let mut peer = daemon.connect();
        peer.send(&frames);
        let response = |request_id, may, kind| {
            if may { allowed(request_id) } else { error(request_id, 16, kind, false) }
        };
        for expected in [allowed(1), response(2, may_refund, 3), response(3, may_debit, 4), allowed(4)] {
            assert_eq!(peer.receive(), expected, "{lists}");
        }
        let peek = keyward_client::Request::new("a").cost(0).balances();
        let decision = daemon.client().verify(&peek).expect("an answer");
        let expected = 49 + i64::from(may_refund) * 30 - i64::from(may_debit) * 7;
        assert_eq!(decision.balances().next().expect("a limit").balance, expected, "{lists}");
        let status = daemon.status();
        let counts = [status.refunds, status.debits, status.errors];
        let refused = u64::from(!may_refund) + u64::from(!may_debit);
        assert_eq!(counts, [may_refund.into(), may_debit.into(), refused], "{lists}");
    }
}
