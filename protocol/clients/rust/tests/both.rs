//! What the async and the blocking client have in common: the same scripts for both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod script;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use keyward_client::{Error, ErrorCode, Options, Request, Verdict};
use keyward_protocol as wire;
use script::*;
use sha2::{Digest, Sha256};

/// How much later than its deadline a call ends at most, on a machine that has a processor for it.
const LATENESS: Duration = Duration::from_millis(900);

/// How often a call is tried that ended too late. A client that waits for something else than its deadline is late each time; one that
/// had no processor is not.
const ATTEMPTS: usize = 10;

/// How long a call took, and what it returned.
fn timed<T>(call: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = call();
    (start.elapsed(), result)
}

/// Runs `attempt`, which returns how long its call took, for a call that has to end at `deadline`: never before that, nor as late as
/// when the script gives up ([`LONG`]), and soon after it in at least one of a few attempts.
fn ends_in_time(deadline: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut least = Duration::MAX;
    for _ in 0..ATTEMPTS {
        let took = attempt();
        assert!(took >= deadline, "gave up after {took:?}");
        assert!(took < LONG, "took {took:?}: something else than the deadline has ended it");
        least = least.min(took);
        if least < deadline + LATENESS {
            return;
        }
    }
    panic!("took {least:?} at least, in {ATTEMPTS} attempts");
}

#[test]
fn everything_asked_and_answered_arrives() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            assert_eq!(asked.digest, Some(Sha256::digest(b"secret").into()));
            assert_eq!(asked.cost, 7);
            assert_eq!(asked.scopes, Some(("a:read b:write".to_owned(), wire::ScopeMode::Any)));
            assert_eq!(asked.ip, Some("::ffff:203.0.113.7".parse().unwrap()));
            assert_eq!(asked.origin.as_deref(), Some("https://app.example.com"));
            assert_eq!(asked.environment.as_deref(), Some("live"));
            assert!(asked.want_metadata);
            let mut out = Vec::new();
            let limit = wire::LimitState {
                name: "requests",
                limit: 200,
                remaining: 150,
                retry_after_ms: 1500,
                reset_ms: 2500,
            };
            wire::Answer {
                request_id: asked.id,
                verdict: Verdict::RateLimited,
                generation: 9,
                limit,
                key_id: "key-1",
                owner: "ann@example.com",
                environment: "live",
                plan: "pro",
                metadata: Some("{\"seat\":4}"),
                shadow_limit: Some("daily"),
            }
            .encode(&mut out);
            peer.send(&out);
        });
        let mut client = form.at(&daemon.socket);
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
fn an_unknown_key_is_an_answer_without_texts_and_an_unknown_verdict_a_denial() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            for verdict in [Verdict::UnknownKey, Verdict::Other(77)] {
                let asked = peer.asked().unwrap();
                let mut out = Vec::new();
                wire::Answer::without_key(asked.id, verdict, 3).encode(&mut out);
                peer.send(&out);
            }
        });
        let mut client = form.at(&daemon.socket);
        let unknown = client.verify(&Request::new("k").peek()).unwrap();
        assert_eq!(unknown.verdict(), Verdict::UnknownKey);
        assert_eq!((unknown.key_id(), unknown.owner(), unknown.metadata()), (None, None, None));
        assert_eq!((unknown.limit(), unknown.shadow_limit()), (None, None));
        let other = client.verify(&Request::owned("k")).unwrap();
        assert_eq!(other.verdict(), Verdict::Other(77));
        assert!(!other.is_allowed());
        daemon.finish();
    });
}

#[test]
fn an_error_takes_the_place_of_one_answer() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            peer.fault(ErrorCode::InvalidField, 4, asked.id);
            peer.serve();
        });
        let mut client = form.at(&daemon.socket);
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
fn what_a_closing_error_leaves_unanswered_is_asked_again() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let first = peer.asked().unwrap();
            for _ in 1..5 {
                peer.asked().unwrap();
            }
            peer.allow(&first);
            peer.fault(ErrorCode::ShuttingDown, 0, 0);
            drop(peer);
            let mut next = Peer::greet(listener);
            for _ in 1..5 {
                let asked = next.asked().unwrap();
                next.allow(&asked);
            }
            assert_eq!(next.asked(), None, "the answered request must not be repeated");
        });
        let mut client = form.at(&daemon.socket);
        let keys = ["a", "b", "c", "d", "e"];
        let answers = client.verify_many(&keys.map(Request::new));
        for (key, answer) in keys.iter().zip(answers) {
            assert_eq!(answer.unwrap().key_id(), Some(key_id_of(key).as_str()));
        }
        drop(client);
        daemon.finish();
    });
}

#[test]
fn a_request_at_fault_is_not_asked_again() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            peer.fault(ErrorCode::FrameTooLong, 5000, asked.id);
            drop(peer);
            Peer::greet(listener).serve();
        });
        let mut client = form.at(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(matches!(error, Error::Daemon(ref frame) if frame.closing), "{error}");
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn a_written_request_whose_connection_ends_is_lost_and_not_repeated() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            peer.asked().unwrap();
            drop(peer);
            let mut next = Peer::greet(listener);
            let asked = next.asked().unwrap();
            assert_eq!(asked.digest, Some(Sha256::digest(b"second").into()));
            next.allow(&asked);
        });
        let mut client = form.at(&daemon.socket);
        let error = client.verify(&Request::new("first")).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { written: true }), "{error}");
        assert!(error.may_have_been_charged());
        client.expect_allowed("second");
        daemon.finish();
    });
}

#[test]
fn a_connection_that_ended_while_idle_is_replaced_unnoticed() {
    each(|form| {
        let (closed, wait) = mpsc::channel();
        let daemon = Daemon::play(move |listener| {
            for _ in 0..3 {
                let mut peer = Peer::greet(listener);
                peer.allow_next();
                drop(peer);
                closed.send(()).unwrap();
            }
        });
        let mut client = form.at(&daemon.socket);
        for key in ["a", "b", "c"] {
            client.expect_allowed(key);
            wait.recv().unwrap();
        }
        daemon.finish();
    });
}

#[test]
fn a_half_closed_idle_connection_is_noticed_before_writing() {
    each(|form| {
        let (closed, wait) = mpsc::channel();
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            peer.allow_next();
            peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
            closed.send(Instant::now()).unwrap();
            Peer::greet(listener).serve();
        });
        let mut client = form.at(&daemon.socket);
        client.expect_allowed("a");
        let since = wait.recv().unwrap();
        // The clients look only where a moment has passed.
        until("a moment", || since.elapsed() > Duration::from_millis(5));
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn without_a_daemon_there_is_no_connection() {
    each(|form| {
        let directory = tempfile::tempdir().unwrap();
        let mut client = form.at(&directory.path().join("none.sock"));
        // Not by the deadline, which is far away.
        ends_in_time(Duration::ZERO, || {
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
fn a_daemon_that_never_answers_costs_the_deadline_and_disturbs_nothing() {
    each(|form| {
        ends_in_time(SHORT, || {
            let (late, go) = mpsc::channel::<()>();
            let daemon = Daemon::play(move |listener| {
                let mut peer = Peer::greet(listener);
                peer.allow_next();
                let late = peer.asked().unwrap();
                go.recv().unwrap();
                peer.allow(&late);
                peer.serve();
            });
            // Connected before, so that nothing but the request has to be done within the short deadline.
            let mut client = form.at(&daemon.socket);
            client.expect_allowed("0");
            client.set_deadline(SHORT);
            let (took, result) = timed(|| client.verify(&Request::new("a")));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Deadline { deadline: SHORT, written: true }), "{error}");
            late.send(()).unwrap();
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
fn the_deadline_includes_connecting_again() {
    each(|form| {
        ends_in_time(SHORT, || {
            let (closed, wait) = mpsc::channel();
            let (end, ended) = mpsc::channel::<()>();
            let daemon = Daemon::play(move |listener| {
                let mut peer = Peer::greet(listener);
                peer.allow_next();
                drop(peer);
                closed.send(()).unwrap();
                // Accepts, and never says WELCOME.
                let _silent = Peer::accept(listener);
                ended.recv().unwrap();
            });
            let mut client = form.at(&daemon.socket);
            client.expect_allowed("a");
            wait.recv().unwrap();
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
fn a_wrong_answer_ends_the_connection() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            peer.allow(&Asked { id: asked.id + 1, ..asked });
            assert_eq!(peer.asked(), None, "the client must hang up");
            let mut peer = Peer::greet(listener);
            peer.asked().unwrap();
            peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            assert_eq!(peer.asked(), None, "the client must hang up");
            Peer::greet(listener).serve();
        });
        let mut client = form.at(&daemon.socket);
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
fn answers_may_come_in_pieces() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let frames: Vec<u8> = (0..3).flat_map(|_| allowed(&peer.asked().unwrap())).collect();
            for byte in frames {
                peer.send(&[byte]);
            }
        });
        let mut client = form.at(&daemon.socket);
        let keys = ["a", "b", "c"];
        for (key, answer) in keys.iter().zip(client.verify_many(&keys.map(Request::new))) {
            assert_eq!(answer.unwrap().key_id(), Some(key_id_of(key).as_str()));
        }
        daemon.finish();
    });
}

#[test]
fn many_requests_leave_in_one_write() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            for _ in 0..200 {
                let asked = peer.asked().unwrap();
                assert_eq!(peer.reads, 1);
                peer.allow(&asked);
            }
        });
        let mut client = form.at(&daemon.socket);
        let keys: Vec<String> = (0..200).map(|number| format!("key {number}")).collect();
        let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
        for (key, answer) in keys.iter().zip(client.verify_many(&requests)) {
            assert_eq!(answer.unwrap().key_id(), Some(key_id_of(key).as_str()));
        }
        assert!(client.verify_many(&[]).is_empty());
        daemon.finish();
    });
}

#[test]
fn one_bad_request_among_many_fails_alone() {
    each(|form| {
        let daemon = Daemon::play(|listener| Peer::greet(listener).serve());
        let mut client = form.at(&daemon.socket);
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
        assert!(matches!(answers[2], Err(Error::FieldTooLong { field: "origin", length: 513, max: 512 })));
        assert!(matches!(answers[3], Err(Error::InvalidScope { .. })));
        assert!(answers[4].is_ok());
        drop(client);
        daemon.finish();
    });
}

/// The daemon reads nothing while an answer is not taken, so that a client which wrote everything first would wait for
/// the daemon, and the daemon for the client.
#[test]
fn backpressure_does_not_lock_up() {
    const REQUESTS: usize = 100_000;
    each(|form| {
        let daemon = Daemon::play(|listener| Peer::greet(listener).serve());
        let mut client = form.client(Options::new(&daemon.socket).deadline(LONG).max_in_flight(50_000));
        let keys: Vec<String> = (0..REQUESTS).map(|number| format!("key {number}")).collect();
        let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
        let answers = client.verify_many(&requests);
        assert_eq!(answers.len(), REQUESTS);
        for (key, answer) in keys.iter().zip(answers) {
            assert_eq!(answer.unwrap().key_id(), Some(key_id_of(key).as_str()));
        }
        drop(client);
        daemon.finish();
    });
}

#[test]
fn raw_keys_are_sent_only_to_a_daemon_that_takes_nothing_else() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let raw_only = wire::Welcome { credentials: wire::CREDENTIAL_RAW, ..welcome() };
            let mut peer = Peer::greet_with(listener, raw_only);
            let asked = peer.asked().unwrap();
            assert_eq!((asked.raw.as_deref(), asked.digest), (Some(&b"secret"[..]), None));
            peer.allow(&asked);
            drop(peer);
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            assert_eq!(asked.raw, None);
            peer.allow(&asked);
        });
        let mut client = form.at(&daemon.socket);
        let long = vec![b'k'; wire::MAX_KEY + 1];
        let error = client.verify(&Request::new(&long)).unwrap_err();
        assert!(matches!(error, Error::FieldTooLong { field: "key", length: 1025, max: 1024 }), "{error}");
        assert!(client.verify(&Request::new("secret")).unwrap().is_allowed());
        drop(client);
        // A digest is a digest, however long the key.
        assert!(form.at(&daemon.socket).verify(&Request::new(&long)).unwrap().is_allowed());
        daemon.finish();
    });
}

#[test]
fn a_raw_request_is_sent_raw_to_a_daemon_that_takes_both() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            assert_eq!((asked.raw.as_deref(), asked.digest), (Some(&b"secret"[..]), None));
            peer.allow(&asked);
            drop(peer);
            let digest_only = wire::Welcome { credentials: wire::CREDENTIAL_DIGEST, ..welcome() };
            let mut peer = Peer::greet_with(listener, digest_only);
            let asked = peer.asked().unwrap();
            assert_eq!(asked.raw, None);
            peer.allow(&asked);
        });
        for _ in 0..2 {
            assert!(form.at(&daemon.socket).verify(&Request::new("secret").raw()).unwrap().is_allowed());
        }
        daemon.finish();
    });
}

#[test]
fn a_connection_that_was_silent_for_too_long_is_not_written_to() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let impatient = wire::Welcome { idle_timeout_ms: 20, ..welcome() };
            let mut peer = Peer::greet_with(listener, impatient);
            peer.allow_next();
            let mut next = Peer::greet_with(listener, impatient);
            let asked = next.asked().unwrap();
            next.allow(&asked);
            assert_eq!(peer.asked(), None);
        });
        let mut client = form.at(&daemon.socket);
        client.expect_allowed("a");
        let since = Instant::now();
        until("silence", || since.elapsed() > Duration::from_millis(17));
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn a_daemon_that_turns_clients_away_says_why() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::accept(listener);
            peer.fault(ErrorCode::PeerRefused, 1000, 0);
            drop(peer);
            let mut peer = Peer::accept(listener);
            peer.fault(ErrorCode::TooManyConnections, 10, 0);
            drop(peer);
            Peer::greet(listener).serve();
        });
        let mut client = form.at(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(error.to_string().contains("PEER_REFUSED"), "{error}");
        client.expect_allowed("b");
        drop(client);
        daemon.finish();
    });
}

#[test]
fn a_request_never_shows_its_key() {
    let request = Request::owned("acme_live_secret").environment("live").into_owned();
    let shown = format!("{request:?} {:?}", request.clone());
    assert!(!shown.contains("secret") && shown.contains("16 bytes"), "{shown}");
}

#[test]
fn a_connection_that_answers_nothing_any_longer_is_given_up() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let stuck = Peer::greet(listener);
            Peer::greet(listener).serve();
            drop(stuck);
        });
        let mut client = form.client(Options::new(&daemon.socket).deadline(Duration::from_millis(50)));
        let start = Instant::now();
        while client.verify(&Request::new("a")).is_err() {
            assert!(start.elapsed() < LONG, "still on the stuck connection");
        }
        assert!(start.elapsed() > Duration::from_secs(1), "given up after {:?}", start.elapsed());
        drop(client);
        daemon.finish();
    });
}

/// A daemon that does not accept, with as many connections waiting as its queue holds. std would wait forever.
#[test]
fn a_full_queue_of_connections_costs_the_deadline() {
    each(|form| {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("keyward.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _queued = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let mut client = form.client(Options::new(&socket).deadline(SHORT));
        ends_in_time(SHORT, || {
            let (took, result) = timed(|| client.verify(&Request::new("a")));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Deadline { written: false, .. }), "{error}");
            took
        });
    });
}
