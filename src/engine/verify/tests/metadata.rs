//! An answer carries metadata exactly if the request asks for it and the key has some, for every
//! verdict and in every encoding.

use keyward_protocol::{MAX_ANSWER_LENGTH, ParsedFrame, Refund, Response, parse_frame};

use super::*;
use crate::key_format;

/// Marks metadata in a frame.
const MARK: &str = "metadata-of-a-key";

/// Limits by name, burst and shadow mode: together they produce every form of answer.
const LIMITS: [&[(&str, u64, bool)]; 8] = [
    &[],
    &[("hard", 2, false)],
    &[("soft", 2, true)],
    &[("hard", 2, false), ("soft", 1, true)],
    &[("soft", 1, true), ("hard", 2, false)],
    &[("hard", 1, false), ("soft", 2, true)],
    &[("soft", 1, true), ("softer", 2, true)],
    &[("hard", 2, false), ("harder", 1, false)],
];

/// Lengths around those at which the encoder changes how it copies texts.
const LENGTHS: [(usize, usize); 9] =
    [(1, 0), (7, 1), (8, 7), (9, 8), (16, 17), (17, 16), (33, 32), (63, 65), (64, 128)];

fn with_shadow(limits: &[(&str, u64, bool)]) -> Arc<[Limit]> {
    let limit = |(name, burst, shadow): &(&str, u64, bool)| {
        let rate = Rate::new(1, 1_000_000_000, *burst).expect("in range");
        Limit { shadow: *shadow, ..Limit::new(*name, Rule::bucket(rate, 0).expect("in range")) }
    };
    limits.iter().map(limit).collect()
}

/// Checks the answer and its frame. Returns the verdict and whether a shadow limit is named.
fn check(decision: &Decision<'_>, expected: Option<&str>, case: &str) -> (Verdict, bool) {
    let answer = decision.answer();
    assert_eq!(answer.metadata, expected, "{case}: {answer:?}");
    assert_eq!(decision.is_shadow_limited(), answer.shadow_limit.is_some(), "{case}: {answer:?}");
    let mut frame = Vec::new();
    decision.encode(&mut frame);
    let ParsedFrame::Complete { header, body, size } = parse_frame(&frame, MAX_ANSWER_LENGTH) else {
        panic!("{case}: not a frame")
    };
    assert_eq!(size, frame.len(), "{case}");
    assert_eq!(Response::decode(&header, body), Ok(Response::Answer(answer)), "{case}");
    let is_there = frame.windows(MARK.len()).any(|window| window == MARK.as_bytes());
    assert_eq!(is_there, expected.is_some_and(|text| text.contains(MARK)), "{case}");
    (answer.verdict, answer.shadow_limit.is_some())
}

#[test]
fn metadata_is_returned_only_if_the_request_asks_for_it() {
    let short = format!("{{\"{MARK}\":1}}");
    let long = format!("{{\"{MARK}\":\"{}\"}}", "x".repeat(keyward_protocol::MAX_METADATA - MARK.len() - 7));
    assert_eq!(long.len(), keyward_protocol::MAX_METADATA);
    let mut seen = std::collections::BTreeSet::new();
    for (key_id_length, owner_length) in LENGTHS {
        let (key_id, owner) = ("k".repeat(key_id_length), "o".repeat(owner_length));
        for (metadata, of_key) in LIMITS
            .iter()
            .flat_map(|limits| ["", "{}", &short, &long].map(|metadata| (metadata, with_shadow(limits))))
        {
            for status in [Status::Active, Status::Revoked] {
                let record = KeyRecord {
                    owner: &owner,
                    status,
                    environment: "live",
                    plan: "pro",
                    limits: Arc::clone(&of_key),
                    metadata,
                    ..KeyRecord::new(key_format::hash(b"k"), &key_id)
                };
                let (limiter, global_policy) = (Limiter::new(), GlobalPolicy::default());
                let snapshot = snapshot(&limiter, &[record]);
                let verifier = Verifier {
                    view: Some(View::of(&snapshot)),
                    limiter: &limiter,
                    global_policy: &global_policy,
                    now: NOW,
                };
                // The buckets go from full to empty; the last cost exceeds every burst.
                for cost in [0, 1, 0, 1, 1, 9] {
                    for (environment, want_metadata) in [
                        (None, false),
                        (None, true),
                        (Some("live"), false),
                        (Some("test"), true),
                        (Some("test"), false),
                    ] {
                        let request =
                            Verify { cost, environment, want_metadata, ..Verify::new(1, digest("k")) };
                        let expected = Some(metadata).filter(|text| want_metadata && !text.is_empty());
                        let case = format!("{of_key:?} {status:?} {request:?}");
                        let answered = verifier.verify(&[request], |decision| {
                            let (verdict, shadow) = check(decision, expected, &case);
                            seen.insert((verdict.name(), shadow, expected.is_some()));
                        });
                        assert_eq!(answered, 1);
                    }
                }
                for limit in [None, Some("hard"), Some("soft")] {
                    let costs = only(limit, 1);
                    let cost = u32::from(limit.is_none());
                    let refund = Refund { costs: costs.as_costs(), ..Refund::new(1, cost, digest("k")) };
                    refunded(&verifier, &refund, |decision| check(decision, None, &format!("{refund:?}")));
                }
                let unknown = Verify { want_metadata: true, ..Verify::new(1, digest("unknown")) };
                verifier.verify(&[unknown], |decision| _ = check(decision, None, "an unknown key"));
            }
        }
    }
    // Every possible combination occurred.
    for (verdict, shadow) in [
        ("ALLOWED", false),
        ("ALLOWED", true),
        ("RATE_LIMITED", false),
        ("RATE_LIMITED", true),
        ("COST_EXCEEDS_BURST", false),
        ("COST_EXCEEDS_BURST", true),
        ("REVOKED", false),
        ("WRONG_ENVIRONMENT", false),
    ] {
        for has_metadata in [false, true] {
            assert!(seen.contains(&(verdict, shadow, has_metadata)), "{verdict} {shadow} {has_metadata}");
        }
    }
}
