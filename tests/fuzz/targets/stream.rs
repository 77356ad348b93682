//! A connection's stream of requests, divided into reads in different ways.
//!
//! * However the stream is divided, the answers are the same, byte by byte, and so is the input
//!   that is left.
//! * Every answer is a valid frame. Up to the point where the frame boundaries are lost, each frame
//!   has one answer, with its request id and in its order.
//! * Answers do not depend on what follows: those to a part of the stream are the beginning of those
//!   to the whole.
//!
//! The first byte decides whether the rest of the input is the stream itself, or chooses requests
//! of the fixture's keys.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward_daemon::connection::{INPUT_BYTES, StopReason};
use keyward_daemon::fuzzing::Exchange;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::key_format;
use keyward_engine::limiter::{Limiter, Rate, Rule, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::record::{KeyRecord, Limit, Per, Plans};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta, View};
use keyward_engine::verify::Verifier;
use keyward_protocol::{
    CostsBuf, Credential, Debit, HEADER_BYTES, Hello, LENGTH_BYTES, MAX_ANSWER_LENGTH, MAX_REQUEST_LENGTH,
    ParsedFrame, Refund, Response, ScopeMode, Scopes, VERSION, Verify, parse_frame,
};
use keyward_source::{ColumnMapping, Diagnostics, Format, read};

use super::Outcome;
use crate::input::Input;
use crate::mutation::Mutator;

/// Keys in the fixture, one for each way to be decided.
const KEYS: &str = include_str!("../fixture.jsonl");

/// Between two runs all buckets become full again, because the limiter outlives a run. The limits
/// of the fixture are full after a second.
const NANOSECONDS_BETWEEN_RUNS: u64 = 2_000_000_000;

/// 2027, within the times of the fixture's keys.
const UNIX: u32 = 1_800_000_000;

/// Most requests that are chosen from an input: more than a batch, and more than fill the output.
const MAX_REQUESTS: usize = 200;

/// Longest stream that is also sent byte by byte: longer than most frames, and short enough for
/// hundreds of runs a second.
const MAX_BYTE_BY_BYTE: usize = 2 << 10;

struct Fixture {
    limiter: Limiter,
    snapshot: Snapshot,
    nanoseconds: AtomicU64,
}

/// The keys of the fixture are called `key 0`, `key 1`, …, and the file has their digests.
fn raw_key(number: u8) -> String {
    format!("key {number}")
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let mut builder = Builder::new(1, 16).with_plans(plans().into());
        let mut diagnostics = Diagnostics::new("fixture.jsonl");
        let mut sink = |line: u64, record: &KeyRecord<'_>| Ok(builder.add(line, record)?);
        let mapping = ColumnMapping::default();
        read(KEYS.as_bytes(), Format::JsonLines, &mapping, &mut sink, &mut diagnostics).expect("a slice");
        assert!(diagnostics.is_empty(), "{diagnostics}");
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let mut allocation = allocator.begin(&limiter);
        let meta = SnapshotMeta { generation: 7, source_time: UNIX, ..SnapshotMeta::default() };
        let snapshot = builder.finish().into_snapshot(&mut allocation, None, meta).expect("few limits");
        let _pending = allocation.commit();
        Fixture { limiter, snapshot, nanoseconds: AtomicU64::new(1) }
    })
}

/// The plans that the fixture's keys name: a limit per owner, and one in shadow mode.
fn plans() -> Plans {
    let limit = |name: &str, per, shadow| {
        let rate = Rate::new(4, 1_000_000_000, 4).expect("in range");
        let rule = Rule::bucket(rate, 0).expect("in range");
        Limit { per, shadow, ..Limit::new(name, rule) }
    };
    let pro = ("pro".into(), vec![limit("team", Per::Owner, false), limit("burst", Per::Key, true)]);
    let shadow = ("shadow".into(), vec![limit("next-year", Per::Key, true)]);
    Plans::new([pro, shadow], None).expect("the plans are valid")
}

pub(crate) fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let is_raw = input.one_in(2);
    let seed = u64::from(input.u32());
    let stream = if is_raw { input.rest().to_vec() } else { requests(&mut input) };

    let mut random = Mutator::new(seed);
    let whole = answer(&stream, || INPUT_BYTES);
    let divided = answer(&stream, || 1 + random.below(100) as usize);
    assert_eq!(whole, divided, "in reads of up to 100 bytes");
    if stream.len() <= MAX_BYTE_BY_BYTE {
        assert_eq!(whole, answer(&stream, || 1), "byte by byte");
    }
    let part = answer(&stream[..random.position(&stream)], || INPUT_BYTES);
    assert!(whole.answers.starts_with(&part.answers), "an answer depends on what follows its request");
    check_answers(&stream, &whole)
}

/// What a connection has sent, and how it was left.
#[derive(PartialEq, Eq)]
struct Answered {
    answers: Vec<u8>,
    unanswered: Vec<u8>,
    stop: StopReason,
}

impl std::fmt::Debug for Answered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { answers, unanswered, stop } = self;
        write!(f, "{stop:?}, {} unanswered, answers {}", unanswered.len(), const_hex::encode(answers))
    }
}

/// Answers `stream` on a new connection, in reads of the sizes that `read_size` returns.
fn answer(mut stream: &[u8], mut read_size: impl FnMut() -> usize) -> Answered {
    let Fixture { limiter, snapshot, nanoseconds } = fixture();
    let nanoseconds = nanoseconds.fetch_add(NANOSECONDS_BETWEEN_RUNS, Ordering::Relaxed);
    let verifier = Verifier {
        view: Some(View::of(snapshot)),
        limiter,
        global_policy: &GlobalPolicy::default(),
        now: Now { nanoseconds, unix: UNIX, millisecond: 0 },
    };
    let mut exchange = Exchange::default();
    let (mut answers, mut stop) = (Vec::new(), StopReason::NeedInput);
    while stop == StopReason::NeedInput && !stream.is_empty() {
        let read = &stream[..read_size().min(stream.len())];
        let received;
        (received, stop) = exchange.receive(&verifier, read, &mut answers);
        assert!(received > 0, "the unanswered input fills the buffer");
        assert!(exchange.unanswered().len() < LENGTH_BYTES + MAX_REQUEST_LENGTH as usize);
        stream = &stream[received..];
    }
    Answered { answers, unanswered: exchange.unanswered().to_vec(), stop }
}

fn check_answers(stream: &[u8], answered: &Answered) -> Outcome {
    let (mut requests, mut responses) = (stream, &*answered.answers);
    let mut is_any_decoded = false;
    loop {
        let request = parse_frame(requests, MAX_REQUEST_LENGTH);
        if request == ParsedFrame::Incomplete {
            assert_eq!((responses.len(), answered.stop), (0, StopReason::NeedInput));
            assert_eq!(answered.unanswered, requests);
            return Outcome::accepted_if(is_any_decoded);
        }
        let ParsedFrame::Complete { header, body, size } = parse_frame(responses, MAX_ANSWER_LENGTH) else {
            panic!("a request has no answer");
        };
        let response = Response::decode(&header, body).expect("a daemon may send it");
        is_any_decoded |= !matches!(response, Response::Error(_));
        responses = &responses[size..];
        match request {
            ParsedFrame::Complete { header: request, size, .. } => {
                assert_eq!(header.request_id, request.request_id);
                requests = &requests[size..];
            }
            _ => {
                assert!(matches!(response, Response::Error(error) if error.closing));
                assert_eq!((responses.len(), answered.stop), (0, StopReason::FramingLost));
                assert!(answered.unanswered.is_empty());
                return Outcome::accepted_if(is_any_decoded);
            }
        }
    }
}

/// Chooses requests, most of which are valid.
fn requests(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    for request_id in 0..MAX_REQUESTS as u32 {
        if input.is_empty() {
            break;
        }
        let key = raw_key(input.byte() % 12);
        let digest = Credential::Digest(key_format::hash(key.as_bytes()));
        let credential = if input.one_in(3) { Credential::RawKey(key.as_bytes()) } else { digest };
        let cost = input.choose(&[1, 1, 1, 0, 2, 5, u32::MAX]);
        let plain = Verify { cost, ..Verify::new(request_id, credential) };
        let encoded = match input.below(12) {
            0..=5 => plain.encode(&mut stream),
            6 => {
                let names = input.choose(&["orders:read", "orders:read users:write", "x"]);
                let mode = input.choose(&[ScopeMode::All, ScopeMode::Any]);
                Verify { scopes: Some(Scopes { names, mode }), ..plain }.encode(&mut stream)
            }
            7 => {
                let ip = input.choose(&[[10, 1, 2, 3], [192, 0, 2, 1]]);
                let origin = Some(input.choose(&["https://a.example.com", "https://evil.example"]));
                let environment = Some(input.choose(&["live", "test"]));
                let request = Verify { origin, environment, want_metadata: true, ..plain };
                request.with_ip(ip.into()).encode(&mut stream)
            }
            8 | 9 => {
                let mut costs = CostsBuf::new();
                for name in input.choose(&[&[][..], &["burst"], &["none", "team"]]) {
                    costs.push(name, input.choose(&[0, 1, 5])).expect("a valid cost");
                }
                let (costs, want_balances) = (costs.as_costs(), input.one_in(4));
                match input.below(3) {
                    0 => {
                        let debit =
                            Debit { costs, want_balances, ..Debit::new(request_id, cost, credential) };
                        debit.encode(&mut stream)
                    }
                    1 => Verify { costs, want_balances, ..plain }.encode(&mut stream),
                    _ => {
                        let plain = Refund::new(request_id, cost, credential);
                        Refund { costs, want_balances, ..plain }.encode(&mut stream)
                    }
                }
            }
            10 => {
                let max_version = input.choose(&[VERSION, u8::MAX, 0]);
                Hello { request_id, min_version: VERSION, max_version }.encode(&mut stream);
                Ok(())
            }
            _ => {
                let body = input.take(40);
                let length = (HEADER_BYTES - LENGTH_BYTES + body.len()) as u32;
                stream.extend(length.to_le_bytes());
                stream.extend([input.choose(&[VERSION, 0]), input.byte(), input.byte(), 0]);
                stream.extend(request_id.to_le_bytes());
                stream.extend(body);
                Ok(())
            }
        };
        encoded.expect("the fields are short");
    }
    // The stream may end inside a frame.
    let cut = input.below(256).min(stream.len());
    stream.truncate(stream.len() - cut);
    stream
}
