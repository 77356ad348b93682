//! The wire codec: the cost of encoding and decoding frames.
//!
//! * `VERIFY`: a request with a digest, one with a raw key, one with every field
//! * `ANSWER`: a common answer, and one with every string and the longest metadata
//! * `parse_frame`: finding 64 requests in a filled buffer, without decoding their bodies
//!
//! Frames are the same in every iteration and stay in the L1 cache, as in the daemon, which has
//! just copied them there. Compare the throughput with that of memory, and the time of a frame with
//! the 54 ns of one SHA-256 (the bench `verify` measures it on your machine). Pinned to the first
//! processor.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::hint::black_box;
use std::net::Ipv6Addr;

use criterion::{Criterion, Throughput};
use keyward_protocol::{
    Answer, Credential, LimitState, MAX_ANSWER_LENGTH, MAX_METADATA, MAX_REQUEST_LENGTH, ParsedFrame,
    Request, Response, ScopeMode, Scopes, Verdict, Verify, parse_frame,
};

use keyward_bench_keys as keys;
use support::pin::{Pinned, processors};

mod support;

/// Frames in the buffer of `parse_frame`: one batch.
const FRAMES: usize = 64;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    verify(&mut criterion);
    answer(&mut criterion);
    parse(&mut criterion);
    criterion.final_summary();
}

fn requests(key: &[u8]) -> [(&'static str, Verify<'_>); 3] {
    let digest = Verify::new(7, Credential::Digest(keys::digest(7)));
    let everything = Verify {
        cost: 3,
        scopes: Some(Scopes { names: "orders:read orders:write", mode: ScopeMode::All }),
        ip: Some(Ipv6Addr::LOCALHOST),
        origin: Some("https://shop.example.com"),
        environment: Some("live"),
        want_metadata: true,
        ..digest
    };
    [("digest", digest), ("raw key", Verify::new(7, Credential::RawKey(key))), ("everything", everything)]
}

fn verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("VERIFY");
    let key = keys::raw_key(7);
    for (name, request) in requests(&key) {
        let mut frame = Vec::new();
        request.encode(&mut frame).expect("all fields fit");
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("encode, {name}"), |bencher| {
            let _pinned = Pinned::to(processors().0);
            let mut out = Vec::with_capacity(frame.len());
            bencher.iter(|| {
                out.clear();
                // The encoded size was checked above.
                let _ = black_box(&request).encode(&mut out);
                black_box(out.as_slice());
            });
        });
        group.bench_function(format!("decode, {name}"), |bencher| {
            let _pinned = Pinned::to(processors().0);
            bencher.iter(|| match parse_frame(black_box(&frame), MAX_REQUEST_LENGTH) {
                ParsedFrame::Complete { header, body, .. } => {
                    black_box(Request::decode(&header, body)).is_ok()
                }
                ParsedFrame::Incomplete | ParsedFrame::Invalid(_) => false,
            });
        });
    }
    group.finish();
}

fn answer(criterion: &mut Criterion) {
    let metadata = format!("{{\"note\":\"{}\"}}", "x".repeat(MAX_METADATA - "{\"note\":\"\"}".len()));
    let common = Answer {
        limit: LimitState { name: "default", limit: 100, remaining: 99, retry_after_ms: 0, reset_ms: 10 },
        key_id: "key_00000007",
        environment: "live",
        plan: "pro",
        ..Answer::without_key(7, Verdict::Allowed, 1)
    };
    let full =
        Answer { owner: "owner_0000000", metadata: Some(&metadata), shadow_limit: Some("daily"), ..common };

    let mut group = criterion.benchmark_group("ANSWER");
    for (name, answer) in [("common", common), ("full", full)] {
        let mut frame = Vec::new();
        answer.encode(&mut frame);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("encode, {name}"), |bencher| {
            let _pinned = Pinned::to(processors().0);
            let mut out = Vec::with_capacity(frame.len());
            bencher.iter(|| {
                out.clear();
                black_box(&answer).encode(&mut out);
                black_box(out.as_slice());
            });
        });
        group.bench_function(format!("decode, {name}"), |bencher| {
            let _pinned = Pinned::to(processors().0);
            bencher.iter(|| match parse_frame(black_box(&frame), MAX_ANSWER_LENGTH) {
                ParsedFrame::Complete { header, body, .. } => {
                    black_box(Response::decode(&header, body)).is_ok()
                }
                ParsedFrame::Incomplete | ParsedFrame::Invalid(_) => false,
            });
        });
    }
    group.finish();
}

fn parse(criterion: &mut Criterion) {
    let mut buffer = Vec::new();
    for number in 0..FRAMES as u32 {
        let request = Verify::new(number, Credential::Digest(keys::digest(number.into())));
        request.encode(&mut buffer).expect("all fields fit");
    }
    let mut group = criterion.benchmark_group("parse_frame");
    group.throughput(Throughput::Bytes(buffer.len() as u64));
    group.bench_function(format!("{FRAMES} requests"), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| {
            let mut rest = black_box(buffer.as_slice());
            while let ParsedFrame::Complete { header, body, size } = parse_frame(rest, MAX_REQUEST_LENGTH) {
                black_box((header, body));
                rest = &rest[size..];
            }
            rest.len()
        });
    });
    group.finish();
}
