//! What it costs to build a table of finished records, without parsing:
//!
//! * `one by one`: [`Builder::add`], in one thread
//! * `in parallel`: two threads prepare batches, a third adds them, and two build the indexes
//!
//! One million keys with an owner for every ten of them. `KEYWARD_BENCH_10M=1` measures ten million
//! instead. `benches/targets compiled` measures what a start from a compiled file takes as a whole.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use criterion::Criterion;
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::{Builder, RowBatch};

use keyward_bench_keys::{Seeded, key_id, owner};

mod support;

const SEED: u64 = 7;

/// Rows of a batch.
const BATCH_ROWS: u64 = 4_096;

/// Threads that prepare batches.
const THREADS: usize = 2;

/// Batches that wait to be added.
const QUEUED: usize = 4;

fn main() {
    let keys = if support::is_trial_run() {
        10_000
    } else if std::env::var_os("KEYWARD_BENCH_10M").is_some() {
        10_000_000
    } else {
        1_000_000
    };
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group(format!("build, {keys} keys"));
    group.bench_function("one by one", |bencher| {
        bencher.iter_with_large_drop(|| {
            let mut builder = Builder::new(SEED, keys as usize);
            for number in 0..keys {
                with_record(number, |record| builder.add(number + 2, record).expect("a new key"));
            }
            builder.finish()
        });
    });
    group.bench_function("in parallel", |bencher| bencher.iter_with_large_drop(|| build_in_parallel(keys)));
    group.finish();
    criterion.final_summary();
}

/// Calls `then` with the record of a key. Its digest is a random number: hashing is not measured.
fn with_record<T>(number: u64, then: impl FnOnce(&KeyRecord<'_>) -> T) -> T {
    let mut random = Seeded::new(number);
    let mut hash = [0; 32];
    hash.as_chunks_mut().0.iter_mut().for_each(|bytes: &mut [u8; 8]| *bytes = random.next().to_le_bytes());
    let (key_id, owner) = (key_id(number), owner(number));
    then(&KeyRecord { owner: &owner, ..KeyRecord::new(hash, &key_id) })
}

fn build_in_parallel(keys: u64) -> Builder {
    let mut builder = Builder::new(SEED, 0).into_parallel(keys as usize);
    let (sender, batches) = sync_channel::<RowBatch>(QUEUED);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (mut batch, sender, next) = (builder.batch_builder(), sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let first = next.fetch_add(BATCH_ROWS, Ordering::Relaxed);
                    if first >= keys {
                        return;
                    }
                    for number in first..keys.min(first + BATCH_ROWS) {
                        with_record(number, |record| batch.add(record));
                    }
                    sender.send(batch.take()).expect("the batches are received");
                }
            });
        }
        drop(sender);
        batches.iter().for_each(|batch| builder.add_batch(batch).expect("no plans"));
    });
    let (by_digest, by_id) = builder.index_builders();
    let (unique, rotated) = thread::scope(|scope| {
        let by_digest = scope.spawn(by_digest);
        let rotated = by_id();
        (by_digest.join().expect("no panic").expect("no duplicates"), rotated)
    });
    builder.finish(unique, rotated).expect("no key is in rotation")
}
