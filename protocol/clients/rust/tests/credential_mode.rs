//! Tests of both clients with a daemon that refuses a key in the form in which it was sent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::sync::mpsc::channel;

use keyward_client::{Error, ErrorCode, Options, Refund, Request};
use keyward_protocol as wire;
use support::*;

const DIGEST: u32 = wire::CREDENTIAL_DIGEST as u32;
const RAW: u32 = wire::CREDENTIAL_RAW as u32;

/// The daemon was given a pepper after its WELCOME.
#[test]
fn refused_digest_switches_the_connection_to_raw_keys() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            assert_eq!(Peer::accept(listener).serve_raw_keys_only(), 1);
        });
        let mut client = kind.connect_to(&daemon.socket);
        client.expect_allowed("a");
        client.expect_allowed("b");
        assert!(client.refund(&Refund::new("c", 1)).unwrap().is_allowed());
        drop(client);
        daemon.finish();
    });
}

#[test]
fn refund_with_refused_digest_is_sent_raw() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let [digest, raw] = peer.refuse_then_allow(RAW);
            assert_eq!(
                (raw.raw.as_deref(), raw.cost, raw.kind, &raw.costs),
                (Some(&b"a"[..]), 3, digest.kind, &digest.costs)
            );
        });
        let refund = Refund::new("a", 3).cost_of("requests", 1);
        assert!(kind.connect_to(&daemon.socket).refund(&refund).unwrap().is_allowed());
        daemon.finish();
    });
}

/// The daemon answers some digests of a pipeline and refuses the others. Each request gets exactly
/// its own answer, and the answered ones are not sent again.
#[test]
fn pipeline_switches_to_raw_keys_in_the_middle() {
    const COUNT: usize = 300;
    const ANSWERED: usize = 100;
    for_each_client(|kind| {
        for in_flight in [7, COUNT] {
            let daemon = ScriptedDaemon::start(|listener| {
                let mut peer = Peer::accept(listener);
                for _ in 0..ANSWERED {
                    let request = peer.read_request().unwrap();
                    assert!(request.digest.is_some());
                    peer.allow(&request);
                }
                let mut raw = Vec::new();
                let mut refused = 0;
                while raw.len() < COUNT - ANSWERED {
                    let request = peer.read_request().unwrap();
                    if request.digest.is_some() {
                        refused += 1;
                        peer.send_error(ErrorCode::CredentialRefused, RAW, request.id);
                    } else {
                        peer.allow(&request);
                        raw.extend(request.raw);
                    }
                }
                raw.sort();
                raw.dedup();
                assert_eq!(raw.len(), COUNT - ANSWERED);
                assert!((1..=COUNT - ANSWERED).contains(&refused), "{refused}");
                assert_eq!(peer.read_request(), None);
            });
            let mut client =
                kind.client(Options::new(&daemon.socket).deadline(LONG).max_in_flight(in_flight));
            let keys: Vec<String> = (0..COUNT).map(|key| key.to_string()).collect();
            let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
            for (key, answer) in keys.iter().zip(client.verify_many(&requests)) {
                assert_eq!(answer.unwrap().key_id(), Some(expected_key_id(key).as_str()));
            }
            drop(client);
            daemon.finish();
        }
    });
}

#[test]
fn refused_raw_key_is_sent_as_digest() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let [raw, digest] = peer.refuse_then_allow(DIGEST);
            assert!(raw.raw.is_some() && digest.digest.is_some());
        });
        let decision = kind.connect_to(&daemon.socket).verify(&Request::new("a").raw()).unwrap();
        assert_eq!(decision.key_id(), Some(expected_key_id("a").as_str()));
        daemon.finish();
    });
}

/// The raw key is sent only if the refusal names exactly this form.
#[test]
fn refusal_without_an_alternative_is_final() {
    for_each_client(|kind| {
        for detail in [0, DIGEST, DIGEST | RAW] {
            let daemon = ScriptedDaemon::start(move |listener| {
                let mut peer = Peer::accept(listener);
                let request = peer.read_request().unwrap();
                peer.send_error(ErrorCode::CredentialRefused, detail, request.id);
                assert_eq!(peer.read_request(), None);
            });
            let mut client = kind.connect_to(&daemon.socket);
            let error = client.verify(&Request::new("a")).unwrap_err();
            assert!(!error.may_have_been_charged());
            let Error::Daemon(refusal) = error else { panic!("{error}") };
            assert_eq!(refusal.code(), Some(ErrorCode::CredentialRefused));
            drop(client);
            daemon.finish();
        }
    });
}

/// The daemon refuses both forms alternately.
#[test]
fn alternating_refusals_end_after_four_attempts() {
    for_each_client(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            let mut attempts = 0;
            while let Some(request) = peer.read_request() {
                attempts += 1;
                let other = if request.digest.is_some() { RAW } else { DIGEST };
                peer.send_error(ErrorCode::CredentialRefused, other, request.id);
            }
            assert_eq!(attempts, 4);
        });
        let mut client = kind.connect_to(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(error.to_string().contains("CREDENTIAL_REFUSED"), "{error}");
        drop(client);
        daemon.finish();
    });
}

/// If the pepper is removed again, keys stop leaving the process.
#[test]
fn new_connection_uses_the_credentials_of_its_welcome() {
    for_each_client(|kind| {
        let (sender, closed) = channel();
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.refuse_then_allow(RAW);
            drop(peer);
            sender.send(()).unwrap();
            let mut peer = Peer::accept(listener);
            let request = peer.read_request().unwrap();
            assert!(request.digest.is_some());
            peer.allow(&request);
        });
        let mut client = kind.connect_to(&daemon.socket);
        client.expect_allowed("a");
        // A request that was written to the old connection would not be retried, because it may
        // have been charged.
        closed.recv().unwrap();
        client.expect_allowed("b");
        daemon.finish();
    });
}
