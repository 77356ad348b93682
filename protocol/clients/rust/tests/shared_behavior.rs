//! Tests of the behavior that the async and the blocking client share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use keyward_client::{Error, ErrorCode, FieldTooLongError, Options, Request, Verdict};
use keyward_protocol as wire;
use sha2::{Digest, Sha256};
use support::*;

/// How long after its deadline a call may end, if it is not delayed by other processes.
const LATENESS: Duration = Duration::from_millis(900);

/// How often a call that ended too late is repeated. A client that does not respect its deadline is
/// late each time; a client that was delayed by other processes is not.
const ATTEMPTS: usize = 10;

/// Runs `call`, and returns its duration and its result.
fn timed<T>(call: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = call();
    (start.elapsed(), result)
}

/// Checks that a call ends at its deadline. `attempt` makes the call and returns its duration,
/// which must never be less than `deadline` or reach [`LONG`], and must be less than `deadline` +
/// [`LATENESS`] in one of [`ATTEMPTS`] attempts.
fn assert_ends_at_deadline(deadline: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut least = Duration::MAX;
    for _ in 0..ATTEMPTS {
        let took = attempt();
        assert!(took >= deadline, "ended early, after {took:?}");
        assert!(took < LONG, "took {took:?}: not ended by its deadline");
        least = least.min(took);
        if least < deadline + LATENESS {
            return;
        }
    }
    panic!("took at least {least:?} in {ATTEMPTS} attempts");
}

#[test]
fn all_fields_of_request_and_answer_are_transmitted() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            assert_eq!(request.digest, Some(Sha256::digest(b"secret").into()));
            assert_eq!(request.cost, 7);
            assert_eq!(request.scopes, Some(("a:read b:write".to_owned(), wire::ScopeMode::Any)));
            assert_eq!(request.ip, Some("::ffff:203.0.113.7".parse().unwrap()));
            assert_eq!(request.origin.as_deref(), Some("https://app.example.com"));
            assert_eq!(request.environment.as_deref(), Some("live"));
            assert!(request.want_metadata);
            let mut out = Vec::new();
            let limit = wire::LimitState {
                name: "requests",
                limit: 200,
                remaining: 150,
                retry_after_ms: 1500,
                reset_ms: 2500,
            };
            wire::Answer {
                request_id: request.id,
                verdict: Verdict::RateLimited,
                generation: 9,
                limit,
                key_id: "key-1",
                owner: "ann@example.com",
                environment: "live",
                plan: "pro",
                metadata: Some("{\"seat\":4}"),
                shadow_limit: Some("daily"),
                balances: None,
            }
            .encode(&mut out);
            peer.send(&out);
        });
        let mut client = kind.connect_to(&daemon.socket);
        let request = Request::new("secret")
            .cost(7)
            .any_scope(["a:read", "b:write"])
            .ip("203.0.113.7".parse().unwrap())
            .origin("https://app.example.com")
            .environment("live")
            .metadata();
        let decision = client.verify(&request).unwrap();
        assert!(!decision.is_allowed());
        assert_eq!(decision.verdict(), Verdict::RateLimited);
        assert_eq!(decision.generation(), 9);
        assert_eq!(decision.key_id(), Some("key-1"));
        assert_eq!(decision.owner(), Some("ann@example.com"));
        assert_eq!(decision.environment(), Some("live"));
        assert_eq!(decision.plan(), Some("pro"));
        assert_eq!(decision.metadata(), Some("{\"seat\":4}"));
        assert_eq!(decision.shadow_limit(), Some("daily"));
        let limit = decision.limit().unwrap();
        assert_eq!((limit.name, limit.limit, limit.remaining), ("requests", 200, 150));
        assert_eq!(limit.retry_after, Duration::from_millis(1500));
        assert_eq!(limit.reset, Duration::from_millis(2500));
        daemon.finish();
    });
}

#[test]
fn unknown_key_has_no_texts_and_unknown_verdict_is_a_denial() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            for verdict in [Verdict::UnknownKey, Verdict::from_value(77)] {
                let request = peer.read_request().unwrap();
                let mut out = Vec::new();
                wire::Answer::without_key(request.id, verdict, 3).encode(&mut out);
                peer.send(&out);
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        let unknown = client.verify(&Request::new("k").peek()).unwrap();
        assert_eq!(unknown.verdict(), Verdict::UnknownKey);
        assert_eq!((unknown.key_id(), unknown.owner(), unknown.metadata()), (None, None, None));
        assert_eq!((unknown.limit(), unknown.shadow_limit()), (None, None));
        let other = client.verify(&Request::owned("k")).unwrap();
        assert_eq!(other.verdict(), Verdict::from_value(77));
        assert!(matches!(other.verdict(), Verdict::Other(_)) && !other.is_allowed());
        daemon.finish();
    });
}

#[test]
fn error_frame_fails_only_its_own_request() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            peer.send_error(ErrorCode::InvalidField, 4, request.id);
            peer.serve();
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(!error.may_have_been_charged());
        let Error::Daemon(frame) = error else { panic!("{error}") };
        assert_eq!((frame.code(), frame.detail), (Some(ErrorCode::InvalidField), 4));
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn unanswered_requests_are_retried_after_a_closing_error() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let first = peer.read_request().unwrap();
            for _ in 1..5 {
                peer.read_request().unwrap();
            }
            peer.allow(&first);
            peer.send_error(ErrorCode::ShuttingDown, 0, 0);
            drop(peer);
            let mut next = Peer::accept(listener);
            for _ in 1..5 {
                let request = next.read_request().unwrap();
                next.allow(&request);
            }
            assert_eq!(next.read_request(), None, "the answered request must not be retried");
        });
        let mut client = kind.connect_to(&daemon.socket);
        let keys = ["a", "b", "c", "d", "e"];
        let answers = client.verify_many(&keys.map(Request::new));
        for (key, answer) in keys.iter().zip(answers) {
            assert_eq!(answer.unwrap().key_id(), Some(expected_key_id(key).as_str()));
        }
        drop(client);
        daemon.finish();
    });
}

#[test]
fn request_that_caused_a_closing_error_is_not_retried() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            peer.send_error(ErrorCode::FrameTooLong, 5000, request.id);
            drop(peer);
            Peer::accept(listener).serve();
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(matches!(error, Error::Daemon(ref frame) if frame.closing), "{error}");
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn written_request_is_not_retried_after_connection_loss() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            peer.read_request().unwrap();
            drop(peer);
            let mut next = Peer::accept(listener);
            let request = next.read_request().unwrap();
            assert_eq!(request.digest, Some(Sha256::digest(b"second").into()));
            next.allow(&request);
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.verify(&Request::new("first")).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { written: true }), "{error}");
        assert!(error.may_have_been_charged());
        client.expect_allowed("second");
        daemon.finish();
    });
}

#[test]
fn connection_closed_while_idle_is_replaced() {
    for_each_client(|kind| {
        let (closed_sender, closed) = mpsc::channel();
        let daemon = ScriptedDaemon::start(move |listener| {
            for _ in 0..3 {
                let mut peer = Peer::accept(listener);
                peer.allow_next();
                drop(peer);
                closed_sender.send(()).unwrap();
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        for key in ["a", "b", "c"] {
            client.expect_allowed(key);
            closed.recv().unwrap();
        }
        daemon.finish();
    });
}

#[test]
fn half_closed_idle_connection_is_detected_before_writing() {
    for_each_client(|kind| {
        let (closed_sender, closed) = mpsc::channel();
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.allow_next();
            peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
            closed_sender.send(Instant::now()).unwrap();
            Peer::accept(listener).serve();
        });
        let mut client = kind.connect_to(&daemon.socket);
        client.expect_allowed("a");
        let since = closed.recv().unwrap();
        // The clients check only connections that have been idle for a while.
        wait_until("idle time", || since.elapsed() > Duration::from_millis(5));
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn absent_daemon_is_a_connect_error() {
    for_each_client(|kind| {
        let directory = tempfile::tempdir().unwrap();
        let mut client = kind.connect_to(&directory.path().join("none.sock"));
        // Must fail long before the deadline.
        assert_ends_at_deadline(Duration::ZERO, || {
            let (took, result) = timed(|| client.verify(&Request::new("a")));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Connect { .. }), "{error}");
            assert!(error.to_string().contains("none.sock"), "{error}");
            took
        });
        let many = client.verify_many(&[Request::new("a"), Request::new("b")]);
        assert!(many.iter().all(|answer| matches!(answer, Err(Error::Connect { .. }))), "{many:?}");
    });
}

#[test]
fn missing_answer_ends_the_call_at_its_deadline_and_keeps_the_connection() {
    for_each_client(|kind| {
        assert_ends_at_deadline(SHORT, || {
            let (release, released) = mpsc::channel::<()>();
            let daemon = ScriptedDaemon::start(move |listener| {
                let mut peer = Peer::accept(listener);
                peer.allow_next();
                let late = peer.read_request().unwrap();
                released.recv().unwrap();
                peer.allow(&late);
                peer.serve();
            });
            // Connect first, so that the short deadline covers only the request.
            let mut client = kind.connect_to(&daemon.socket);
            client.expect_allowed("0");
            client.set_deadline(SHORT);
            let (took, result) = timed(|| client.verify(&Request::new("a")));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Deadline { deadline: SHORT, written: true }), "{error}");
            release.send(()).unwrap();
            client.set_deadline(LONG);
            client.expect_allowed("b");
            client.expect_allowed("c");
            drop(client);
            daemon.finish();
            took
        });
    });
}

#[test]
fn deadline_includes_reconnecting() {
    for_each_client(|kind| {
        assert_ends_at_deadline(SHORT, || {
            let (closed_sender, closed) = mpsc::channel();
            let (end, ended) = mpsc::channel::<()>();
            let daemon = ScriptedDaemon::start(move |listener| {
                let mut peer = Peer::accept(listener);
                peer.allow_next();
                drop(peer);
                closed_sender.send(()).unwrap();
                // Never sends WELCOME.
                let _silent = Peer::accept_without_hello(listener);
                ended.recv().unwrap();
            });
            let mut client = kind.connect_to(&daemon.socket);
            client.expect_allowed("a");
            closed.recv().unwrap();
            client.set_deadline(SHORT);
            let (took, result) = timed(|| client.verify(&Request::new("b")));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Deadline { written: false, .. }), "{error}");
            assert!(!error.may_have_been_charged());
            end.send(()).unwrap();
            drop(client);
            daemon.finish();
            took
        });
    });
}

#[test]
fn protocol_violation_closes_the_connection() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            peer.allow(&ReceivedRequest { id: request.id + 1, ..request });
            assert_eq!(peer.read_request(), None, "the client must close the connection");
            let mut peer = Peer::accept(listener);
            peer.read_request().unwrap();
            peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            assert_eq!(peer.read_request(), None, "the client must close the connection");
            Peer::accept(listener).serve();
        });
        let mut client = kind.connect_to(&daemon.socket);
        for key in ["a", "b"] {
            let error = client.verify(&Request::new(key)).unwrap_err();
            assert!(matches!(error, Error::Protocol(_)), "{error}");
        }
        client.expect_allowed("c");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn answers_are_reassembled_from_single_bytes() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let frames: Vec<u8> = (0..3).flat_map(|_| allowed_frame(&peer.read_request().unwrap())).collect();
            for byte in frames {
                peer.send(&[byte]);
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        let keys = ["a", "b", "c"];
        for (key, answer) in keys.iter().zip(client.verify_many(&keys.map(Request::new))) {
            assert_eq!(answer.unwrap().key_id(), Some(expected_key_id(key).as_str()));
        }
        daemon.finish();
    });
}

#[test]
fn many_requests_are_sent_in_one_write() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            for _ in 0..200 {
                let request = peer.read_request().unwrap();
                assert_eq!(peer.reads, 1);
                peer.allow(&request);
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        let keys: Vec<String> = (0..200).map(|number| format!("key {number}")).collect();
        let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
        for (key, answer) in keys.iter().zip(client.verify_many(&requests)) {
            assert_eq!(answer.unwrap().key_id(), Some(expected_key_id(key).as_str()));
        }
        assert!(client.verify_many(&[]).is_empty());
        daemon.finish();
    });
}

#[test]
fn invalid_request_does_not_affect_the_others() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| Peer::accept(listener).serve());
        let mut client = kind.connect_to(&daemon.socket);
        let long = "o".repeat(513);
        let requests = [
            Request::new("a"),
            Request::new("b").scopes(["two words"]),
            Request::new("c").origin(&long),
            Request::new("d").any_scope([""; 0]),
            Request::new("e").scopes([""; 0]),
        ];
        let answers = client.verify_many(&requests);
        assert!(answers[0].is_ok());
        assert!(matches!(&answers[1], Err(Error::InvalidScope { name }) if name == "two words"));
        assert!(matches!(
            answers[2],
            Err(Error::FieldTooLong(FieldTooLongError { field: "origin", length: 513, max: 512 }))
        ));
        assert!(matches!(answers[3], Err(Error::InvalidScope { .. })));
        assert!(answers[4].is_ok());
        drop(client);
        daemon.finish();
    });
}

/// The daemon does not read while its answers are not read. A client that wrote all requests before
/// reading would deadlock with it.
#[test]
fn backpressure_does_not_deadlock() {
    const REQUESTS: usize = 100_000;
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| Peer::accept(listener).serve());
        let mut client = kind.client(Options::new(&daemon.socket).deadline(LONG).max_in_flight(50_000));
        let keys: Vec<String> = (0..REQUESTS).map(|number| format!("key {number}")).collect();
        let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
        let answers = client.verify_many(&requests);
        assert_eq!(answers.len(), REQUESTS);
        for (key, answer) in keys.iter().zip(answers) {
            assert_eq!(answer.unwrap().key_id(), Some(expected_key_id(key).as_str()));
        }
        drop(client);
        daemon.finish();
    });
}

#[test]
fn raw_key_is_sent_only_if_digests_are_not_accepted() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let raw_only = wire::Welcome { credentials: wire::CREDENTIAL_RAW, ..default_welcome() };
            let mut peer = Peer::accept_with(listener, raw_only);
            let request = peer.read_request().unwrap();
            assert_eq!((request.raw.as_deref(), request.digest), (Some(&b"secret"[..]), None));
            peer.allow(&request);
            drop(peer);
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            assert_eq!(request.raw, None);
            peer.allow(&request);
        });
        let mut client = kind.connect_to(&daemon.socket);
        let long = vec![b'k'; wire::MAX_KEY + 1];
        let error = client.verify(&Request::new(&long)).unwrap_err();
        assert!(
            matches!(error, Error::FieldTooLong(FieldTooLongError { field: "key", length: 1025, max: 1024 })),
            "{error}"
        );
        assert!(client.verify(&Request::new("secret")).unwrap().is_allowed());
        drop(client);
        // The length of the key does not matter for a digest.
        assert!(kind.connect_to(&daemon.socket).verify(&Request::new(&long)).unwrap().is_allowed());
        daemon.finish();
    });
}

#[test]
fn raw_request_is_sent_raw_if_both_forms_are_accepted() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            assert_eq!((request.raw.as_deref(), request.digest), (Some(&b"secret"[..]), None));
            peer.allow(&request);
            drop(peer);
            let digest_only = wire::Welcome { credentials: wire::CREDENTIAL_DIGEST, ..default_welcome() };
            let mut peer = Peer::accept_with(listener, digest_only);
            let request = peer.read_request().unwrap();
            assert_eq!(request.raw, None);
            peer.allow(&request);
        });
        for _ in 0..2 {
            assert!(
                kind.connect_to(&daemon.socket).verify(&Request::new("secret").raw()).unwrap().is_allowed()
            );
        }
        daemon.finish();
    });
}

#[test]
fn connection_near_its_idle_timeout_is_replaced() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let short_timeout = wire::Welcome { idle_timeout_ms: 20, ..default_welcome() };
            let mut peer = Peer::accept_with(listener, short_timeout);
            peer.allow_next();
            let mut next = Peer::accept_with(listener, short_timeout);
            let request = next.read_request().unwrap();
            next.allow(&request);
            assert_eq!(peer.read_request(), None);
        });
        let mut client = kind.connect_to(&daemon.socket);
        client.expect_allowed("a");
        let since = Instant::now();
        wait_until("silence", || since.elapsed() > Duration::from_millis(17));
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn refused_connection_reports_the_reason() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept_without_hello(listener);
            peer.send_error(ErrorCode::PeerRefused, 1000, 0);
            drop(peer);
            let mut peer = Peer::accept_without_hello(listener);
            peer.send_error(ErrorCode::TooManyConnections, 10, 0);
            drop(peer);
            Peer::accept(listener).serve();
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(error.to_string().contains("PEER_REFUSED"), "{error}");
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn debug_output_of_a_request_hides_the_key() {
    let request = Request::owned("acme_live_secret").environment("live").into_owned();
    let shown = format!("{request:?} {:?}", request.clone());
    assert!(!shown.contains("secret") && shown.contains("16 bytes"), "{shown}");
}

#[test]
fn stalled_connection_is_abandoned() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let stalled = Peer::accept(listener);
            Peer::accept(listener).serve();
            drop(stalled);
        });
        let mut client = kind.client(Options::new(&daemon.socket).deadline(Duration::from_millis(50)));
        let start = Instant::now();
        while client.verify(&Request::new("a")).is_err() {
            assert!(start.elapsed() < LONG, "still uses the stalled connection");
        }
        assert!(start.elapsed() > Duration::from_secs(1), "abandoned after {:?}", start.elapsed());
        drop(client);
        daemon.finish();
    });
}

/// The daemon does not accept connections, and its queue of connections is full. std would block
/// forever.
#[test]
fn full_connection_queue_ends_the_call_at_its_deadline() {
    for_each_client(|kind| {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("keyward.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _queued = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let mut client = kind.client(Options::new(&socket).deadline(SHORT));
        assert_ends_at_deadline(SHORT, || {
            let (took, result) = timed(|| client.verify(&Request::new("a")));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Deadline { written: false, .. }), "{error}");
            took
        });
    });
}
