//! What the engine executes, counted instead of timed: a program for callgrind, which counts instructions the same on a busy
//! machine as on an idle one. `benches/ratchet` runs it and compares with what is written down in `benches/instructions.txt`.
//!
//! Each case answers 100 batches from bytes to bytes: frames in, `connection::respond`, frames out. Only what happens inside of
//! [`measured`] is counted. The table is small, because cache misses cost no instructions.
//!
//! Run by itself (`cargo bench --bench instructions`) it does the same work and counts nothing.

#![allow(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;

use keyward::connection::{Counters, Greeting, respond};
use keyward::rules::GlobalPolicy;
use keyward::usage::UsageLog;
use keyward::verify::Verifier;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verify};

use support::Seeded;
use support::keys::{self, Tables};

mod support;

const KEYS: u64 = 1_000;
const BATCHES: usize = 100;

/// Name, requests in a batch, limits of the keys, and what a request asks besides.
const CASES: [(&str, usize, &str, Ask); 7] = [
    ("no_limit_64", 64, "", Ask::Hit),
    ("one_limit_1", 1, keys::ENDLESS, Ask::Hit),
    ("one_limit_64", 64, keys::ENDLESS, Ask::Hit),
    ("two_limits_64", 64, keys::ENDLESS_TWICE, Ask::Hit),
    ("miss_64", 64, keys::ENDLESS, Ask::Miss),
    ("rate_limited_64", 64, keys::ONCE, Ask::Hit),
    ("missing_scope_64", 64, keys::ENDLESS, Ask::Scope),
];

#[derive(Clone, Copy, PartialEq)]
enum Ask {
    Hit,
    Miss,
    Scope,
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, batch, limits, ask) in CASES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run(batch, limits, ask);
            println!("{name}: {} requests", batch * BATCHES);
        }
    }
}

fn run(batch: usize, limits: &str, ask: Ask) {
    let mut tables = Tables::new();
    let snapshot = tables.snapshot(KEYS, limits, None);
    let (global_policy, counters) = (GlobalPolicy::default(), Counters::default());
    let verifier = Verifier {
        snapshot: Some(&snapshot),
        limiter: &tables.limiter,
        global_policy: &global_policy,
        now: keys::START,
    };
    let mut random = Seeded::new(1);
    let unknown = if ask == Ask::Miss { KEYS } else { 0 };
    let inputs: Vec<Vec<u8>> = (0..BATCHES)
        .map(|_| {
            let mut input = Vec::new();
            for id in 0..batch {
                let digest = keys::digest(unknown + random.below(KEYS));
                let mut verify = Verify::new(id as u32, Credential::Digest(digest));
                if ask == Ask::Scope {
                    verify.scopes = Some(Scopes { names: "orders:read", mode: ScopeMode::All });
                }
                verify.encode(&mut input).expect("within all limits");
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

/// What is counted, by its name.
#[inline(never)]
fn measured(
    verifier: &Verifier<'_>,
    input: &[u8],
    output: &mut Vec<u8>,
    counters: &Counters,
    log: &mut UsageLog,
) {
    black_box(respond(verifier, Greeting::default(), input, output, counters, log));
}
