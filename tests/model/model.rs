//! The daemon as a state machine, against a reference: random steps from a seed that reproduces.
//!
//! A seed starts a whole daemon in this process, by the code of the real start-up, and takes 10
//! to 40 steps: requests, new exports, reloads, revocations, changes of the clocks, lost connections,
//! crashes before any call on the disk, power cuts, orderly restarts. After each, the [`reference`]
//! decides what the daemon must answer, and after each start, what must still be in force.
//!
//! The clock ([`keyward_state::simulation`]), the disk ([`disk`]) and the division of streams into
//! reads are simulated. Threads, sockets and files are real, the files in memory. A thread that works
//! in the background is held until the test lets it go on, so a seed determines the order of all
//! calls on the disk.
//!
//! What a bucket admits over time is also checked without the reference's balances, by the
//! [`ledger`].
//!
//! A failure prints the seed, and the fewest of its steps that still fail.
//!
//! * `KEYWARD_MODEL_SEED=N cargo test -p keyward-model -- --nocapture` runs one seed, and prints its
//!   steps.
//! * `KEYWARD_MODEL_SEEDS=100000 cargo test --release -p keyward-model -- --nocapture` runs many;
//!   `KEYWARD_MODEL_FIRST=N` is the first of them.

//!
//! Not part of the model, and left to other tests:
//!
//! * several workers, busy polling, quotas, connections of several uids, systemd's sockets;
//! * restrictions of keys other than status, times and limits; peppers, plans and metadata;
//! * compiled exports and JSON Lines, the watch of the source, changes of the configuration;
//! * takeaways of refused sources, `max_reactivated` and `max_loosened`, which are 1 here;
//! * calls that only read, files of other programs in the state directory, damage other than that of
//!   a crash;
//! * usage, the content of the audit trail and of the log, the texts of errors and warnings.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "a test may panic, and has no users"
)]

mod client;
mod counts;
mod disk;
mod keys;
mod ledger;
mod random;
mod reference;
mod run;
mod wait;

use std::env;
use std::path::Path;
use std::time::{Duration, Instant};

use counts::Counts;
use random::Random;
use run::{Failure, Fixture};

/// The seeds of an ordinary test run.
const SEEDS: u64 = 300;

/// The steps of a seed.
const MIN_STEPS: u64 = 10;
const MAX_STEPS: u64 = 40;

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The seeds of the steps of a seed.
fn steps(seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed ^ 0x5eed);
    (0..MIN_STEPS + random.below(MAX_STEPS - MIN_STEPS + 1)).map(|_| random.number()).collect()
}

/// The processor time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn daemon_agrees_with_the_reference() {
    let shared_memory = Path::new("/dev/shm");
    let parent = if shared_memory.is_dir() { shared_memory.to_owned() } else { env::temp_dir() };
    let root = tempfile::Builder::new().prefix("keyward-model-").tempdir_in(parent).expect("a directory");
    let fixture = Fixture::new(root.path());
    if let Some(seed) = variable("KEYWARD_MODEL_SEED") {
        let mut counts = Counts::default();
        let log = report(&fixture, seed, fixture.run(seed, &steps(seed), &mut counts));
        println!("steps:\n  {}\nseed {seed} passes: {counts}", log.join("\n  "));
        return;
    }
    let (first, count) =
        (variable("KEYWARD_MODEL_FIRST").unwrap_or(1), variable("KEYWARD_MODEL_SEEDS").unwrap_or(SEEDS));
    let (started, mut shown) = (Instant::now(), Instant::now());
    let mut counts = Counts::default();
    for seed in first..first + count {
        let result = fixture.run(seed, &steps(seed), &mut counts);
        report(&fixture, seed, result);
        if shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            println!("{} of {count} seeds, {:.0?}", counts.seeds, started.elapsed());
        }
    }
    let cpu = cpu_time() / u32::try_from(count.max(1)).expect("few");
    println!("{counts}. {:.1?}, {cpu:.2?} of processor time for each seed", started.elapsed());
    let never = counts.zeros();
    assert!(count < SEEDS || never.is_empty(), "the dose is vacuous, without {never:?}: {counts}");
}

/// Panics if a seed has failed, with the fewest steps that fail. Returns the steps of one that passes.
fn report(fixture: &Fixture, seed: u64, result: Result<Vec<String>, Failure>) -> Vec<String> {
    let Failure { mut problem, steps: mut log, is_hang } = match result {
        Ok(log) => return log,
        Err(failure) => failure,
    };
    let mut fewest = steps(seed);
    // Each run of steps that hang would take half a minute.
    if !is_hang {
        // Leaves out parts of the steps, first large ones.
        let mut part = fewest.len().div_ceil(2);
        loop {
            let mut at = 0;
            while at < fewest.len() {
                let mut fewer = fewest.clone();
                fewer.drain(at..(at + part).min(fewest.len()));
                match fixture.run(seed, &fewer, &mut Counts::default()) {
                    Err(failure) => (fewest, log, problem) = (fewer, failure.steps, failure.problem),
                    Ok(_) => at += part,
                }
            }
            if part == 1 {
                break;
            }
            part = part.div_ceil(2);
        }
    }
    panic!(
        "seed {seed}: {problem}\nsteps:\n  {}\nKEYWARD_MODEL_SEED={seed} cargo test -p keyward-model -- --nocapture runs it again",
        log.join("\n  ")
    );
}
