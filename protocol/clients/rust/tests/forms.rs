//! What becomes of a key that the daemon does not take in the form in which it was sent, by both clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod script;

use std::sync::mpsc::channel;

use keyward_client::{Error, ErrorCode, Options, Refund, Request};
use keyward_protocol as wire;
use script::*;

const DIGEST: u32 = wire::CREDENTIAL_DIGEST as u32;
const RAW: u32 = wire::CREDENTIAL_RAW as u32;

/// A daemon that was given a pepper after its WELCOME.
#[test]
fn a_digest_that_is_refused_is_followed_by_the_raw_key_and_so_are_all_later_ones() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            assert_eq!(Peer::greet(listener).serve_raw(), 1);
        });
        let mut client = form.at(&daemon.socket);
        client.expect_allowed("a");
        client.expect_allowed("b");
        assert!(client.refund(&Refund::new("c", 1)).unwrap().is_allowed());
        drop(client);
        daemon.finish();
    });
}

#[test]
fn a_refund_falls_back_too() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let [digest, raw] = peer.allow_only_as(RAW);
            assert_eq!((raw.raw.as_deref(), raw.cost, &raw.refund), (Some(&b"a"[..]), 3, &digest.refund));
        });
        let refund = Refund::new("a", 3).limit("requests");
        assert!(form.at(&daemon.socket).refund(&refund).unwrap().is_allowed());
        daemon.finish();
    });
}

/// Some digests of a pipeline are answered before the rest is refused: each request ends with one answer, its own, and
/// none of those that were answered is asked again.
#[test]
fn a_pipeline_goes_on_in_the_middle() {
    const COUNT: usize = 300;
    const ANSWERED: usize = 100;
    each(|form| {
        for in_flight in [7, COUNT] {
            let daemon = Daemon::play(|listener| {
                let mut peer = Peer::greet(listener);
                for _ in 0..ANSWERED {
                    let asked = peer.asked().unwrap();
                    assert!(asked.digest.is_some());
                    peer.allow(&asked);
                }
                let mut raw = Vec::new();
                let mut refused = 0;
                while raw.len() < COUNT - ANSWERED {
                    let asked = peer.asked().unwrap();
                    if asked.digest.is_some() {
                        refused += 1;
                        peer.fault(ErrorCode::CredentialRefused, RAW, asked.id);
                    } else {
                        peer.allow(&asked);
                        raw.extend(asked.raw);
                    }
                }
                raw.sort();
                raw.dedup();
                assert_eq!(raw.len(), COUNT - ANSWERED);
                assert!((1..=COUNT - ANSWERED).contains(&refused), "{refused}");
                assert_eq!(peer.asked(), None);
            });
            let mut client =
                form.client(Options::new(&daemon.socket).deadline(LONG).max_in_flight(in_flight));
            let keys: Vec<String> = (0..COUNT).map(|key| key.to_string()).collect();
            let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
            for (key, answer) in keys.iter().zip(client.verify_many(&requests)) {
                assert_eq!(answer.unwrap().key_id(), Some(key_id_of(key).as_str()));
            }
            drop(client);
            daemon.finish();
        }
    });
}

#[test]
fn a_raw_key_that_is_refused_is_followed_by_its_digest() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let [raw, digest] = peer.allow_only_as(DIGEST);
            assert!(raw.raw.is_some() && digest.digest.is_some());
        });
        let decision = form.at(&daemon.socket).verify(&Request::new("a").raw()).unwrap();
        assert_eq!(decision.key_id(), Some(key_id_of("a").as_str()));
        daemon.finish();
    });
}

/// Where the daemon does not say that it wants the raw key, it does not get it.
#[test]
fn a_refusal_that_offers_nothing_else_is_final() {
    each(|form| {
        for detail in [0, DIGEST, DIGEST | RAW] {
            let daemon = Daemon::play(move |listener| {
                let mut peer = Peer::greet(listener);
                let asked = peer.asked().unwrap();
                peer.fault(ErrorCode::CredentialRefused, detail, asked.id);
                assert_eq!(peer.asked(), None);
            });
            let mut client = form.at(&daemon.socket);
            let error = client.verify(&Request::new("a")).unwrap_err();
            assert!(!error.may_have_been_charged());
            let Error::Daemon(refusal) = error else { panic!("{error}") };
            assert_eq!(refusal.code(), Some(ErrorCode::CredentialRefused));
            drop(client);
            daemon.finish();
        }
    });
}

/// A daemon that takes neither form, whatever it says, does not keep the client busy.
#[test]
fn a_daemon_that_refuses_both_forms_is_asked_a_few_times_only() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            let mut asks = 0;
            while let Some(asked) = peer.asked() {
                asks += 1;
                let other = if asked.digest.is_some() { RAW } else { DIGEST };
                peer.fault(ErrorCode::CredentialRefused, other, asked.id);
            }
            assert_eq!(asks, 4);
        });
        let mut client = form.at(&daemon.socket);
        let error = client.verify(&Request::new("a")).unwrap_err();
        assert!(error.to_string().contains("CREDENTIAL_REFUSED"), "{error}");
        drop(client);
        daemon.finish();
    });
}

/// A pepper can be taken away again: keys then stop leaving the process.
#[test]
fn the_next_connection_begins_with_what_its_welcome_says() {
    each(|form| {
        let (gone, is_gone) = channel();
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            peer.allow_only_as(RAW);
            drop(peer);
            gone.send(()).unwrap();
            let mut peer = Peer::greet(listener);
            let asked = peer.asked().unwrap();
            assert!(asked.digest.is_some());
            peer.allow(&asked);
        });
        let mut client = form.at(&daemon.socket);
        client.expect_allowed("a");
        // What is asked on a connection that ends meanwhile is not asked again: it may have been charged.
        is_gone.recv().unwrap();
        client.expect_allowed("b");
        daemon.finish();
    });
}
