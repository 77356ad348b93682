//! Giving back what was charged, by both clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod script;

use keyward_client::{Error, Refund, Request, Verdict};
use keyward_protocol as wire;
use script::*;
use sha2::{Digest, Sha256};

#[test]
fn a_refund_arrives_and_its_answer_tells_the_balance() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            assert_eq!(asked.refund, Some(Some("requests".to_owned())));
            assert_eq!((asked.cost, asked.digest), (5, Some(Sha256::digest(b"secret").into())));
            let limit =
                wire::LimitState { name: "requests", limit: 200, remaining: 155, ..Default::default() };
            let answer = wire::Answer {
                key_id: "key-1",
                limit,
                ..wire::Answer::without_key(asked.id, Verdict::Allowed, 9)
            };
            let mut out = Vec::new();
            answer.encode(&mut out);
            peer.send(&out);
            let asked = peer.asked().unwrap();
            assert_eq!(asked.refund, Some(None));
            out.clear();
            wire::Answer::without_key(asked.id, Verdict::UnknownKey, 9).encode(&mut out);
            peer.send(&out);
        });
        let mut client = form.at(&daemon.socket);
        let decision = client.refund(&Refund::new("secret", 5).limit("requests")).unwrap();
        assert_eq!((decision.verdict(), decision.key_id()), (Verdict::Allowed, Some("key-1")));
        let limit = decision.limit().unwrap();
        assert_eq!((limit.name, limit.remaining), ("requests", 155));
        let unknown = client.refund(&Refund::owned("other", 1)).unwrap();
        assert_eq!(unknown.verdict(), Verdict::UnknownKey);
        daemon.finish();
    });
}

#[test]
fn a_request_is_refunded_as_it_was_asked() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            for raw in [false, true] {
                let charged = peer.allow_next();
                let back = peer.allow_next();
                assert_eq!((charged.refund, back.refund), (None, Some(None)));
                assert_eq!((charged.cost, back.cost), (7, 7));
                assert_eq!((charged.digest, &charged.raw), (back.digest, &back.raw));
                assert_eq!(back.raw.is_some(), raw);
            }
        });
        let mut client = form.at(&daemon.socket);
        let request = Request::new("secret").cost(7).scopes(["a:read"]).environment("live");
        for request in [request.clone(), request.raw()] {
            assert!(client.verify(&request).unwrap().is_allowed());
            assert!(client.refund(&request.refund()).unwrap().is_allowed());
        }
        daemon.finish();
    });
}

#[test]
fn nothing_is_not_refunded_nor_is_a_limit_whose_name_is_too_long() {
    each(|form| {
        let daemon = Daemon::play(|listener| assert_eq!(Peer::greet(listener).asked(), None));
        let mut client = form.at(&daemon.socket);
        let peek = Request::new("a").peek();
        assert!(matches!(client.refund(&peek.refund()), Err(Error::EmptyRefund)));
        let long = "l".repeat(wire::MAX_NAME + 1);
        let error = client.refund(&Refund::new("a", 1).limit(long)).unwrap_err();
        assert!(matches!(error, Error::FieldTooLong { field: "limit", length: 65, max: 64 }), "{error}");
        drop(client);
        daemon.finish();
    });
}

/// Twice would be once too often.
#[test]
fn a_refund_that_was_written_is_not_sent_again() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            assert_eq!(peer.asked().unwrap().refund, Some(None));
            drop(peer);
            let mut peer = Peer::greet(listener);
            let next = peer.asked().unwrap();
            assert_eq!(next.refund, None);
            peer.allow(&next);
        });
        let mut client = form.at(&daemon.socket);
        let error = client.refund(&Refund::new("a", 1)).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { written: true }), "{error}");
        assert!(error.may_have_been_charged());
        client.expect_allowed("b");
        daemon.finish();
    });
}

#[test]
fn a_refund_never_shows_its_key() {
    let refund = Refund::owned("acme_live_secret", 3).limit("requests").into_owned();
    let shown = format!("{refund:?}");
    assert_eq!(shown, "Refund { key: 16 bytes, cost: 3, limit: Some(\"requests\") }");
}
