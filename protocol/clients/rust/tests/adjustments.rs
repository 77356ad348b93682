//! Tests of refunds and debits, and of the costs and balances that all requests share, with both
//! clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::time::Duration;

use keyward_client::{
    Balance, Debit, Error, FieldTooLongError, InvalidCostError, LimitKind, Refund, Request, Verdict,
};
use keyward_protocol as wire;
use sha2::{Digest, Sha256};
use support::*;
use wire::FrameKind;

const TOKENS: wire::LimitBalance<'_> = wire::LimitBalance {
    name: "tokens",
    kind: LimitKind::Bucket,
    limit: 90_000,
    charged: 1500,
    balance: -200,
    reset_ms: 60_134,
};

/// Responds to the next request, which must have these properties, with the balance of `TOKENS`.
fn answer_next(peer: &mut Peer, kind: FrameKind, cost: u32, costs: &[(&str, u32)]) -> ReceivedRequest {
    let request = peer.read_request().unwrap();
    assert_eq!((request.kind, request.cost), (kind, cost));
    let received: Vec<_> = request.costs.iter().map(|(name, cost)| (name.as_str(), *cost)).collect();
    assert_eq!(received, costs);
    let mut balances = wire::BalancesBuf::new();
    balances.push(&TOKENS);
    let blank = wire::Answer::without_key(request.id, Verdict::Allowed, 9);
    let limit = wire::LimitState { name: "tokens", limit: 90_000, ..Default::default() };
    let balances = request.want_balances.then(|| balances.as_balances());
    let answer = wire::Answer { key_id: "key-1", limit, balances, ..blank };
    let mut out = Vec::new();
    answer.encode(&mut out);
    peer.send(&out);
    request
}

#[test]
fn adjustments_are_transmitted_and_their_answers_have_the_balances() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            for kind in [FrameKind::Refund, FrameKind::Debit] {
                let request = answer_next(&mut peer, kind, 5, &[("requests", 0), ("tokens", 1500)]);
                assert_eq!((request.digest, request.raw), (Some(Sha256::digest(b"secret").into()), None));
                assert!(request.want_balances);
                let request = answer_next(&mut peer, kind, 3, &[]);
                assert!(!request.want_balances);
                let request = peer.read_request().unwrap();
                let mut out = Vec::new();
                wire::Answer::without_key(request.id, Verdict::UnknownKey, 9).encode(&mut out);
                peer.send(&out);
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        let refund = Refund::new("secret", 5).cost_of("requests", 0).cost_of("tokens", 1500).balances();
        let debit = Debit::new("secret", 5).cost_of("requests", 0).cost_of("tokens", 1500).balances();
        let decisions = [
            [
                client.refund(&refund),
                client.refund(&Refund::owned("other", 3)),
                client.refund(&Refund::new("x", 1)),
            ],
            [
                client.debit(&debit),
                client.debit(&Debit::owned("other", 3)),
                client.debit(&Debit::new("x", 1)),
            ],
        ];
        for [settled, plain, unknown] in decisions.map(|decisions| decisions.map(Result::unwrap)) {
            assert_eq!((settled.verdict(), settled.key_id()), (Verdict::Allowed, Some("key-1")));
            let tokens = Balance {
                name: "tokens",
                kind: LimitKind::Bucket,
                limit: 90_000,
                charged: 1500,
                balance: -200,
                reset: Duration::from_millis(60_134),
            };
            assert_eq!(settled.balances().collect::<Vec<_>>(), [tokens]);
            assert_eq!(settled.balance("tokens"), Some(tokens));
            assert_eq!(settled.balance("requests"), None);
            assert_eq!((plain.is_allowed(), plain.balances().count()), (true, 0));
            assert_eq!((unknown.verdict(), unknown.balances().count()), (Verdict::UnknownKey, 0));
        }
        daemon.finish();
    });
}

#[test]
fn costs_of_a_request_are_transmitted() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request =
                answer_next(&mut peer, FrameKind::Verify, 1, &[("tokens", 1500), ("größe", u32::MAX)]);
            assert!(request.want_balances);
            answer_next(&mut peer, FrameKind::Verify, 0, &[]);
        });
        let mut client = kind.connect_to(&daemon.socket);
        let request = Request::new("secret").cost_of("tokens", 1500).cost_of("größe", u32::MAX).balances();
        assert_eq!(client.verify(&request.clone().into_owned()).unwrap().balances().count(), 1);
        let peek = Request::new("secret").cost_of("tokens", 1500).peek();
        assert_eq!(client.verify(&peek).unwrap().balances().count(), 0);
        daemon.finish();
    });
}

#[test]
fn adjustments_of_a_request_have_its_key_costs_and_form() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            for raw in [false, true] {
                let costs = [("tokens", 1500)];
                let charged = answer_next(&mut peer, FrameKind::Verify, 7, &costs);
                for (kind, cost, costs) in [
                    (FrameKind::Refund, 7, costs),
                    (FrameKind::Refund, 0, [("tokens", 300)]),
                    (FrameKind::Debit, 0, [("tokens", 200)]),
                ] {
                    let adjustment = answer_next(&mut peer, kind, cost, &costs);
                    assert_eq!((charged.digest, &charged.raw), (adjustment.digest, &adjustment.raw));
                    assert_eq!((adjustment.raw.is_some(), adjustment.environment), (raw, None));
                }
            }
        });
        let mut client = kind.connect_to(&daemon.socket);
        let request =
            Request::new("secret").cost(7).cost_of("tokens", 1500).scopes(["a:read"]).environment("live");
        for request in [request.clone(), request.raw()] {
            assert!(client.verify(&request).unwrap().is_allowed());
            assert!(client.refund(&request.refund()).unwrap().is_allowed());
            assert!(client.refund(&request.refund_of("tokens", 300)).unwrap().is_allowed());
            assert!(client.debit(&request.debit_of("tokens", 200)).unwrap().is_allowed());
        }
        daemon.finish();
    });
}

#[test]
fn adjustment_of_zero_or_with_an_invalid_cost_is_not_sent() {
    for_each_client(|kind| {
        let daemon =
            ScriptedDaemon::start(|listener| assert_eq!(Peer::accept(listener).read_request(), None));
        let mut client = kind.connect_to(&daemon.socket);
        let peek = Request::new("a").peek();
        assert!(matches!(client.refund(&peek.refund()), Err(Error::ZeroAdjustment)));
        assert!(matches!(client.debit(&Debit::new("a", 0)), Err(Error::ZeroAdjustment)));

        let long = "l".repeat(wire::MAX_NAME + 1);
        let error = client.refund(&Refund::new("a", 1).cost_of(&long, 1)).unwrap_err();
        let too_long = FieldTooLongError { field: "costs", length: 65, max: 64 };
        assert!(
            matches!(&error, Error::InvalidCost { limit, source: InvalidCostError::NameTooLong(cause) }
                if *limit == long && *cause == too_long),
            "{error}"
        );
        let many =
            (0..=wire::MAX_COSTS).fold(Request::new("a"), |request, at| request.cost_of(format!("{at}"), 1));
        let twice = Request::new("a").cost_of("tokens", 1).cost_of("tokens", 1).cost_of("other", 1);
        for (request, limit, expected) in [
            (Request::new("a").cost_of("", 1), "", InvalidCostError::EmptyName),
            (twice, "tokens", InvalidCostError::Duplicate),
            (many, "16", InvalidCostError::TooMany),
        ] {
            let error = client.verify(&request).unwrap_err();
            let Error::InvalidCost { limit: named, source } = &error else { panic!("{error}") };
            assert_eq!((named.as_str(), *source, error.may_have_been_charged()), (limit, expected, false));
        }
        drop(client);
        daemon.finish();
    });
}

#[test]
fn written_adjustment_is_not_retried() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            for kind in [FrameKind::Refund, FrameKind::Debit] {
                let mut peer = Peer::accept(listener);
                assert_eq!(peer.read_request().unwrap().kind, kind);
                drop(peer);
            }
            let mut peer = Peer::accept(listener);
            let next = peer.read_request().unwrap();
            assert_eq!(next.kind, FrameKind::Verify);
            peer.allow(&next);
        });
        let mut client = kind.connect_to(&daemon.socket);
        for error in [client.refund(&Refund::new("a", 1)), client.debit(&Debit::new("a", 1))] {
            let error = error.unwrap_err();
            assert!(matches!(error, Error::ConnectionLost { written: true }), "{error}");
            assert!(error.may_have_been_charged());
        }
        client.expect_allowed("b");
        daemon.finish();
    });
}

#[test]
fn refused_kind_is_an_error_and_the_connection_continues() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            peer.send_error(wire::ErrorCode::RequestRefused, 4, request.id);
            peer.allow_next();
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.debit(&Debit::new("a", 1)).unwrap_err();
        assert!(
            matches!(&error, Error::Daemon(refusal) if refusal.code() == Some(wire::ErrorCode::RequestRefused)),
            "{error}"
        );
        assert!(!error.may_have_been_charged());
        client.expect_allowed("b");
        daemon.finish();
    });
}

#[test]
fn debug_output_of_an_adjustment_hides_the_key() {
    let refund = Refund::owned("acme_live_secret", 3).cost_of("requests", 1).into_owned();
    let shown = format!("{refund:?}");
    assert_eq!(shown, "Refund { key: 16 bytes, cost: 3, costs: {\"requests\": 1} }");
    let shown = format!("{:?}", Debit::new("acme_live_secret", 3));
    assert_eq!(shown, "Debit { key: 16 bytes, cost: 3, costs: {} }");
}
