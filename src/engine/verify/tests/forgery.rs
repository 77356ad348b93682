//! Digests that collide with a listed digest in the index, but are not listed, are unknown.

use keyward_protocol::{Credential, Refund};

use super::*;
use crate::key_format;
use crate::pepper::{Pepper, Peppers};
use crate::record::Digest;
use crate::snapshot::tests::forgeries;

const KEYS: usize = 100;

fn names() -> Vec<String> {
    (0..KEYS).map(|number| format!("key {number}")).collect()
}

fn refund_verdict(verifier: &Verifier<'_>, credential: Credential<'_>) -> Verdict {
    let refund = Refund::new(1, 1, credential);
    refunded(verifier, &refund, |decision| decision.verdict())
}

#[test]
fn digest_colliding_with_a_listed_key_is_unknown() {
    let (limiter, global_policy, names) = (Limiter::new(), GlobalPolicy::default(), names());
    let records: Vec<KeyRecord<'_>> = names.iter().map(|name| record(name)).collect();
    let snapshot = snapshot(&limiter, &records);
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let mut asked: Vec<(Digest, Verdict)> = Vec::new();
    for record in &records {
        asked.push((record.hash, Verdict::Allowed));
        asked.extend(forgeries(&record.hash, SEED).map(|forged| (forged, Verdict::UnknownKey)));
    }
    let requests: Vec<Verify<'_>> =
        asked.iter().zip(0..).map(|((digest, _), id)| Verify::new(id, Credential::Digest(*digest))).collect();
    let expected: Vec<Verdict> = asked.iter().map(|(_, verdict)| *verdict).collect();
    for together in [1, 2, 3, SUB_BATCH_SIZE, BATCH_SIZE, requests.len()] {
        let got: Vec<Verdict> =
            requests.chunks(together).flat_map(|requests| verdicts(&verifier, requests)).collect();
        assert_eq!(got, expected, "{together} requests at a time");
    }
    for (digest, expected) in asked {
        assert_eq!(refund_verdict(&verifier, Credential::Digest(digest)), expected);
    }
}

#[test]
fn raw_key_colliding_with_a_listed_digest_is_unknown() {
    let pepper = |letter: &[u8]| Pepper::new(&letter.repeat(32)).expect("long enough");
    let peppers = |previous| Peppers { current: pepper(b"c"), previous };
    let sha256: fn(&GlobalPolicy, &[u8]) -> Digest = |_, key| key_format::hash(key);
    let current: fn(&GlobalPolicy, &[u8]) -> Digest =
        |global_policy, key| global_policy.peppers.as_ref().expect("peppers").current.hash(key);
    let previous: fn(&GlobalPolicy, &[u8]) -> Digest =
        |global_policy, key| global_policy.previous_pepper().expect("a pepper").hash(key);
    for (peppers, hash) in [
        (None, sha256),
        (Some(peppers(None)), current),
        (Some(peppers(Some(pepper(b"p")))), current),
        (Some(peppers(Some(pepper(b"p")))), previous),
    ] {
        let (limiter, names) = (Limiter::new(), names());
        let global_policy = GlobalPolicy { peppers, ..GlobalPolicy::default() };
        let hash = |name: &str| hash(&global_policy, name.as_bytes());
        // Every second key is listed. For the others, digests that collide with theirs are listed.
        let mut records = Vec::new();
        for (number, name) in names.iter().enumerate() {
            match number % 2 {
                0 => records.push(KeyRecord::new(hash(name), name)),
                _ => records.extend(forgeries(&hash(name), SEED).map(|forged| KeyRecord::new(forged, name))),
            }
        }
        let snapshot = snapshot(&limiter, &records);
        let verifier = Verifier {
            view: Some(View::of(&snapshot)),
            limiter: &limiter,
            global_policy: &global_policy,
            now: NOW,
        };
        let requests: Vec<Verify<'_>> = names
            .iter()
            .zip(0..)
            .map(|(name, id)| Verify::new(id, Credential::RawKey(name.as_bytes())))
            .collect();
        let expected = [Verdict::Allowed, Verdict::UnknownKey].repeat(KEYS / 2);
        for together in [1, SUB_BATCH_SIZE, BATCH_SIZE, KEYS] {
            let got: Vec<Verdict> =
                requests.chunks(together).flat_map(|requests| verdicts(&verifier, requests)).collect();
            assert_eq!(got, expected, "{together} requests at a time");
        }
        for (request, expected) in requests.iter().zip(expected) {
            assert_eq!(refund_verdict(&verifier, request.credential), expected);
        }
    }
}
