//! The engine's instructions, counted by callgrind. Unlike times, counts do not depend on the
//! machine's load. `benches/ratchet` runs this program and compares the counts with
//! `benches/instructions.txt`.
//!
//! Each case answers 100 batches from request bytes to answer bytes, by `connection::respond`.
//! callgrind counts only what [`measured`] executes. The key set is small, because cache misses
//! execute no instructions.
//!
//! Run by itself, it does the same work and counts nothing.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::hint::black_box;

use keyward_bench_keys::{self as keys, Fixture, Seeded};
use keyward_daemon::connection::{Counters, Terms, respond};
use keyward_daemon::usage::UsageLog;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::snapshot::View;
use keyward_engine::verify::Verifier;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verify};

const KEYS: u64 = 1_000;
const BATCHES: usize = 100;

/// Name, requests in a batch, limits of the keys, and the kind of request.
const CASES: [(&str, usize, &str, RequestKind); 7] = [
    ("no_limit_64", 64, "", RequestKind::KnownKey),
    ("one_limit_1", 1, keys::HIGH_LIMIT, RequestKind::KnownKey),
    ("one_limit_64", 64, keys::HIGH_LIMIT, RequestKind::KnownKey),
    ("two_limits_64", 64, keys::TWO_HIGH_LIMITS, RequestKind::KnownKey),
    ("miss_64", 64, keys::HIGH_LIMIT, RequestKind::UnknownKey),
    ("rate_limited_64", 64, keys::ONE_PER_DAY, RequestKind::KnownKey),
    ("missing_scope_64", 64, keys::HIGH_LIMIT, RequestKind::MissingScope),
];

#[derive(Clone, Copy, PartialEq)]
enum RequestKind {
    KnownKey,
    UnknownKey,
    /// A known key, with a scope that it does not have.
    MissingScope,
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, batch, limits, kind) in CASES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run(batch, limits, kind);
            println!("{name}: {} requests", batch * BATCHES);
        }
    }
}

fn run(batch: usize, limits: &str, kind: RequestKind) {
    let mut fixture = Fixture::new();
    let snapshot = fixture.snapshot(KEYS, limits, None);
    let (global_policy, counters) = (GlobalPolicy::default(), Counters::default());
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &fixture.limiter,
        global_policy: &global_policy,
        now: keys::START,
    };
    let mut random = Seeded::new(1);
    let first_key = if kind == RequestKind::UnknownKey { KEYS } else { 0 };
    let inputs: Vec<Vec<u8>> = (0..BATCHES)
        .map(|_| {
            let mut input = Vec::new();
            for id in 0..batch {
                let digest = keys::digest(first_key + random.below(KEYS));
                let mut verify = Verify::new(id as u32, Credential::Digest(digest));
                if kind == RequestKind::MissingScope {
                    verify.scopes = Some(Scopes { names: "orders:read", mode: ScopeMode::All });
                }
                verify.encode(&mut input).expect("all fields fit");
            }
            input
        })
        .collect();
    let (mut output, mut log) = (Vec::with_capacity(64 * 1024), UsageLog::detached());
    for input in &inputs {
        output.clear();
        measured(&verifier, input, &mut output, &counters, &mut log);
        black_box(&output);
    }
}

/// The function whose instructions callgrind counts; benches/ratchet has its name.
#[inline(never)]
fn measured(
    verifier: &Verifier<'_>,
    input: &[u8],
    output: &mut Vec<u8>,
    counters: &Counters,
    log: &mut UsageLog,
) {
    black_box(respond(verifier, Terms::UNRESTRICTED, input, output, counters, log));
}
