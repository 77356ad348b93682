//! Tests of refunds, with both clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use keyward_client::{Error, FieldTooLongError, Refund, Request, Verdict};
use keyward_protocol as wire;
use sha2::{Digest, Sha256};
use support::*;

#[test]
fn refund_is_transmitted_and_its_answer_has_the_balance() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            assert_eq!(request.refund, Some(Some("requests".to_owned())));
            assert_eq!((request.cost, request.digest), (5, Some(Sha256::digest(b"secret").into())));
            let limit =
                wire::LimitState { name: "requests", limit: 200, remaining: 155, ..Default::default() };
            let answer = wire::Answer {
                key_id: "key-1",
                limit,
                ..wire::Answer::without_key(request.id, Verdict::Allowed, 9)
            };
            let mut out = Vec::new();
            answer.encode(&mut out);
            peer.send(&out);
            let request = peer.read_request().unwrap();
            assert_eq!(request.refund, Some(None));
            out.clear();
            wire::Answer::without_key(request.id, Verdict::UnknownKey, 9).encode(&mut out);
            peer.send(&out);
        });
        let mut client = kind.connect_to(&daemon.socket);
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
fn refund_of_a_request_has_its_key_cost_and_form() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            for raw in [false, true] {
                let charged = peer.allow_next();
                let back = peer.allow_next();
                assert_eq!((charged.refund, back.refund), (None, Some(None)));
                assert_eq!((charged.cost, back.cost), (7, 7));
                assert_eq!((charged.digest, &charged.raw), (back.digest, &back.raw));
                assert_eq!(back.raw.is_some(), raw);
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        let request = Request::new("secret").cost(7).scopes(["a:read"]).environment("live");
        for request in [request.clone(), request.raw()] {
            assert!(client.verify(&request).unwrap().is_allowed());
            assert!(client.refund(&request.refund()).unwrap().is_allowed());
        }
        daemon.finish();
    });
}

#[test]
fn refund_of_zero_or_with_a_long_limit_name_is_not_sent() {
    for_each_client(|kind| {
        let daemon =
            ScriptedDaemon::start(|listener| assert_eq!(Peer::accept(listener).read_request(), None));
        let mut client = kind.connect_to(&daemon.socket);
        let peek = Request::new("a").peek();
        assert!(matches!(client.refund(&peek.refund()), Err(Error::EmptyRefund)));
        let long = "l".repeat(wire::MAX_NAME + 1);
        let error = client.refund(&Refund::new("a", 1).limit(long)).unwrap_err();
        assert!(
            matches!(error, Error::FieldTooLong(FieldTooLongError { field: "limit", length: 65, max: 64 })),
            "{error}"
        );
        drop(client);
        daemon.finish();
    });
}

#[test]
fn written_refund_is_not_retried() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            assert_eq!(peer.read_request().unwrap().refund, Some(None));
            drop(peer);
            let mut peer = Peer::accept(listener);
            let next = peer.read_request().unwrap();
            assert_eq!(next.refund, None);
            peer.allow(&next);
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.refund(&Refund::new("a", 1)).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { written: true }), "{error}");
        assert!(error.may_have_been_charged());
        client.expect_allowed("b");
        daemon.finish();
    });
}

#[test]
fn debug_output_of_a_refund_hides_the_key() {
    let refund = Refund::owned("acme_live_secret", 3).limit("requests").into_owned();
    let shown = format!("{refund:?}");
    assert_eq!(shown, "Refund { key: 16 bytes, cost: 3, limit: Some(\"requests\") }");
}
