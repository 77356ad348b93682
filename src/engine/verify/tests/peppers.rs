//! While two peppers are in force, REFUND and VERIFY find the keys of both.

use keyward_protocol::{Credential, Refund};

use super::*;
use crate::pepper::{Pepper, Peppers};
use crate::snapshot::HashedWith;

fn remaining(verifier: &Verifier<'_>, request: Verify<'_>) -> (Verdict, u32) {
    let mut got = None;
    let mut read =
        |decision: &Decision<'_>| got = Some((decision.verdict(), decision.answer().limit.remaining));
    assert_eq!(verifier.verify(&[request], &mut read), 1);
    got.expect("an answer")
}

#[test]
fn refund_finds_keys_of_the_current_and_the_previous_pepper() {
    let pepper = |letter: &[u8]| Pepper::new(&letter.repeat(32)).expect("long enough");
    let (current, previous) = (pepper(b"c"), pepper(b"p"));
    let keys: Vec<String> = (0..20).map(|number| format!("key {number}")).collect();
    let records: Vec<KeyRecord<'_>> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| {
            let pepper = if number % 2 == 0 { &previous } else { &current };
            let limits = limits(&[("small", 5), ("large", 9)]);
            KeyRecord { limits, ..KeyRecord::new(pepper.hash(key.as_bytes()), key) }
        })
        .collect();
    let peppers = Some(Peppers { current: current.clone(), previous: Some(previous.clone()) });
    let global_policy = GlobalPolicy { peppers, ..GlobalPolicy::default() };
    // The refund is either the first request for the key, or follows a VERIFY.
    for refund_first in [true, false] {
        let limiter = Limiter::new();
        let snapshot = snapshot(&limiter, &records);
        let verifier = Verifier {
            view: Some(View::of(&snapshot)),
            limiter: &limiter,
            global_policy: &global_policy,
            now: NOW,
        };
        for (number, key) in keys.iter().enumerate() {
            let credential = Credential::RawKey(key.as_bytes());
            let refund = |cost: u32, limit: Option<&str>| {
                let costs = only(limit, cost);
                let cost = if limit.is_none() { cost } else { 0 };
                let refund = Refund { costs: costs.as_costs(), ..Refund::new(1, cost, credential) };
                refunded(&verifier, &refund, |decision| {
                    let answer = decision.answer();
                    let limit = answer.limit;
                    (answer.verdict, answer.key_id.to_owned(), limit.name.to_owned(), limit.remaining)
                })
            };
            let key = key.as_str();
            let answer =
                |limit: &str, remaining| (Verdict::Allowed, key.to_owned(), limit.to_owned(), remaining);
            if refund_first {
                assert_eq!(refund(2, None), answer("small", 5), "it is full");
            }
            let charge = Verify { cost: 4, ..Verify::new(1, credential) };
            assert_eq!(remaining(&verifier, charge), (Verdict::Allowed, 1));
            assert_eq!(refund(3, None), answer("small", 4));
            assert_eq!(refund(1, Some("large")), answer("small", 4), "the least remaining");
            assert_eq!(remaining(&verifier, Verify { cost: 0, ..charge }), (Verdict::Allowed, 4));
            let with = if number % 2 == 0 { HashedWith::PreviousPepper } else { HashedWith::CurrentPepper };
            assert_eq!(snapshot.find_by_id(key).and_then(Key::hashed_with), Some(with));
        }
        let unknown = Refund::new(1, 1, Credential::RawKey(b"no key"));
        assert_eq!(refunded(&verifier, &unknown, |decision| decision.verdict()), Verdict::UnknownKey);
    }
    // Without the previous pepper, its keys are unknown to both requests.
    let peppers = Some(Peppers { current, previous: None });
    let global_policy = GlobalPolicy { peppers, ..GlobalPolicy::default() };
    let limiter = Limiter::new();
    let snapshot = snapshot(&limiter, &records);
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    for (number, key) in keys.iter().enumerate() {
        let expected = if number % 2 == 0 { Verdict::UnknownKey } else { Verdict::Allowed };
        let credential = Credential::RawKey(key.as_bytes());
        assert_eq!(verdicts(&verifier, &[Verify::new(1, credential)]), [expected]);
        let refund = Refund::new(1, 1, credential);
        assert_eq!(refunded(&verifier, &refund, |decision| decision.verdict()), expected);
    }
}
