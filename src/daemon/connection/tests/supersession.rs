//! A newer snapshot takes over buckets while a buffer is being answered. Every request before the
//! first one that needs such a bucket is answered from the old snapshot, all others from the new
//! one, each once and in order.

use std::collections::BTreeMap;

use keyward_protocol::{Hello, Refund};

use super::*;
use crate::usage::{Usage, UsagePolicy, UsageQuery};
use keyward_admin::message::UsageCounts;
use keyward_engine::key_format;
use keyward_engine::limiter::{Rate, Rule, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::record::{KeyRecord, Limit};
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta, View};
use keyward_engine::verify::{BATCH_SIZE, Verifier};
use keyward_state::Rotation;

/// How long the usage thread may take to receive what was counted.
const USAGE_TIMEOUT: Duration = Duration::from_secs(20);

const NOW: Now = Now { nanoseconds: 1 << 40, unix: 1_000_000, millisecond: 0 };

/// A limit: its name, its burst in the old snapshot and in the new one, and whether it is in shadow
/// mode.
type LimitSpec = (&'static str, u64, u64, bool);

/// Limits by key. Limits whose burst changes are taken over.
const KEYS: [(&str, &[LimitSpec]); 5] = [
    ("free", &[]),
    ("same", &[("only", 5_000, 5_000, false)]),
    ("one", &[("only", 5_000, 4_000, false)]),
    ("two", &[("first", 5_000, 5_000, false), ("second", 5_000, 4_000, false)]),
    ("soft", &[("hard", 5_000, 5_000, false), ("soft", 5_000, 4_000, true)]),
];

/// Keys whose limits differ in the new snapshot.
const TAKEN_OVER: [&str; 3] = ["one", "two", "soft"];

/// A request. Refunds and charges of a key whose limits change end the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Verify(&'static str, u32),
    Refund(&'static str, u32),
    Hello,
    Malformed,
}

/// The expected answer to an [`Item`].
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Answer { id: u32, verdict: Verdict, generation: u64, remaining: u32 },
    Welcome { id: u32, generation: u64 },
    Error { id: u32 },
}

const UNAFFECTED: [Item; 8] = [
    Item::Verify("same", 3),
    Item::Verify("free", 1),
    Item::Verify("same", 0),
    Item::Verify("unknown", 1),
    Item::Refund("same", 1),
    Item::Verify("same", 1),
    Item::Hello,
    Item::Malformed,
];

const AFFECTED: [Item; 8] = [
    Item::Verify("one", 1),
    Item::Verify("one", 0),
    Item::Verify("two", 1),
    Item::Verify("two", 0),
    Item::Verify("soft", 1),
    Item::Refund("one", 1),
    Item::Refund("two", 1),
    Item::Refund("soft", 1),
];

impl Item {
    fn encode(self, id: u32, input: &mut Vec<u8>) {
        let credential = |key: &str| Credential::Digest(key_format::hash(key.as_bytes()));
        let encoded = match self {
            Self::Verify(key, cost) => Verify { cost, ..Verify::new(id, credential(key)) }.encode(input),
            Self::Refund(key, cost) => Refund::new(id, cost, credential(key)).encode(input),
            Self::Hello => {
                Hello { request_id: id, min_version: 1, max_version: 1 }.encode(input);
                Ok(())
            }
            Self::Malformed => {
                let start = input.len();
                let encoded = Verify::new(id, credential("free")).encode(input);
                // An undefined flag.
                input[start + 7] = 0x80;
                encoded
            }
        };
        encoded.expect("within all limits");
    }
}

/// The expected answers to `items`, the first `by_old` of them from the old snapshot.
fn replies(items: &[Item], by_old: usize) -> Vec<Reply> {
    let burst = |key: &str| {
        let limits = KEYS.iter().find(|(name, _)| *name == key).map_or(&[][..], |(_, limits)| *limits);
        limits.iter().filter(|limit| !limit.3).map(|limit| limit.2 as u32).min()
    };
    // Another worker has charged these keys once.
    let mut spent: BTreeMap<&str, u32> = TAKEN_OVER.map(|key| (key, 1)).into();
    let mut answer = |id: u32, key: &'static str, cost: i64, generation: u64| {
        let spent = spent.entry(key).or_default();
        *spent = u32::try_from((i64::from(*spent) + cost).max(0)).expect("small");
        let verdict = if key == "unknown" { Verdict::UnknownKey } else { Verdict::Allowed };
        // "two" reports the limit with the least left, which is the smaller one.
        Reply::Answer { id, verdict, generation, remaining: burst(key).map_or(0, |burst| burst - *spent) }
    };
    let numbered = items.iter().zip(0_u32..).map(|(item, id)| {
        let generation = if (id as usize) < by_old { 1 } else { 2 };
        match item {
            Item::Verify(key, cost) => answer(id, key, i64::from(*cost), generation),
            Item::Refund(key, cost) => answer(id, key, -i64::from(*cost), generation),
            Item::Hello => Reply::Welcome { id, generation },
            Item::Malformed => Reply::Error { id },
        }
    });
    numbered.collect()
}

fn decode(output: &[u8]) -> Vec<Reply> {
    let (mut replies, mut at) = (Vec::new(), 0);
    while let ParsedFrame::Complete { header, body, size } = parse_frame(&output[at..], MAX_ANSWER_LENGTH) {
        at += size;
        replies.push(match Response::decode(&header, body).expect("a frame of SPEC.md") {
            Response::Answer(answer) => Reply::Answer {
                id: answer.request_id,
                verdict: answer.verdict,
                generation: answer.generation,
                remaining: answer.limit.remaining,
            },
            Response::Welcome(welcome) => {
                Reply::Welcome { id: welcome.request_id, generation: welcome.generation }
            }
            Response::Error(error) => Reply::Error { id: error.request_id },
        });
    }
    assert_eq!(at, output.len(), "whole frames");
    replies
}

/// Two snapshots. The new one has taken over the buckets whose limits have changed.
struct Snapshots {
    limiter: Arc<Limiter>,
    old: Arc<Snapshot>,
    new: Arc<Snapshot>,
}

impl Snapshots {
    fn new() -> Self {
        let limiter = Arc::new(Limiter::new());
        let mut allocator = SlotAllocator::new();
        let mut build = |generation: u64, previous: Option<&Snapshot>| {
            let mut builder = Builder::new(generation, 0);
            for ((key, limits), line) in KEYS.iter().zip(2..) {
                let limit = |(name, before, after, shadow): &LimitSpec| {
                    let burst = if generation == 1 { *before } else { *after };
                    let rate = Rate::new(1, 1_000_000_000_000, burst).expect("in range");
                    let rule = Rule::bucket(rate, 0).expect("in range");
                    Limit { shadow: *shadow, ..Limit::new(*name, rule) }
                };
                let limits = limits.iter().map(limit).collect();
                let hash = key_format::hash(key.as_bytes());
                builder.add(line, &KeyRecord { limits, ..KeyRecord::new(hash, key) }).expect("new");
            }
            let mut allocation = allocator.begin(&limiter);
            let stamp = SnapshotMeta { generation, ..SnapshotMeta::default() };
            let snapshot = builder.finish().into_snapshot(&mut allocation, previous, stamp).expect("room");
            // Not completed, as long as workers still use the old snapshot.
            let _ = allocation.commit();
            Arc::new(snapshot)
        };
        let old = build(1, None);
        let new = build(2, Some(&old));
        // The first worker that charges a bucket with the new snapshot takes it over.
        let digest = |key: &str| Credential::Digest(key_format::hash(key.as_bytes()));
        let charges = TAKEN_OVER.map(|key| Verify::new(1, digest(key)));
        let global_policy = GlobalPolicy::default();
        let verifier = Verifier {
            view: Some(View::of(&new)),
            limiter: &limiter,
            global_policy: &global_policy,
            now: NOW,
        };
        assert_eq!(
            verifier.verify(&charges, |decision| assert!(decision.verdict().is_allowed())),
            charges.len()
        );
        Self { limiter, old, new }
    }
}

/// The usage of `key` that `items` should have caused.
fn counts(items: &[Item], key: &str) -> UsageCounts {
    let mut counts = UsageCounts::default();
    for item in items {
        match item {
            Item::Verify(name, 0) if *name == key => counts.peeked += 1,
            Item::Verify(name, cost) if *name == key => {
                counts.allowed += 1;
                counts.cost += u64::from(*cost);
            }
            Item::Refund(name, cost) if *name == key => counts.refunded += u64::from(*cost),
            _ => {}
        }
    }
    counts
}

fn count(items: &[Item], predicate: impl Fn(&Item) -> bool) -> u64 {
    items.iter().filter(|item| predicate(item)).count() as u64
}

fn assert_counted(counters: &Counters, items: &[Item]) {
    let unknown = count(items, |item| matches!(item, Item::Verify("unknown", _)));
    let verified = count(items, |item| matches!(item, Item::Verify(..)));
    assert_eq!(counters.verdicts(Verdict::Allowed), verified - unknown);
    assert_eq!(counters.verdicts(Verdict::UnknownKey), unknown);
    assert_eq!(counters.refunds(), count(items, |item| matches!(item, Item::Refund(..))));
    assert_eq!(counters.errors(), count(items, |item| *item == Item::Malformed));
}

/// `first` unaffected requests, then one affected request, and then both kinds.
fn items(first: usize, affected: Item, length: usize, only_verify: bool) -> Vec<Item> {
    let included = |item: &&Item| !only_verify || matches!(item, Item::Verify(..));
    let unaffected = UNAFFECTED.iter().filter(included).cycle();
    let both = AFFECTED.iter().chain(&UNAFFECTED).filter(included).cycle();
    unaffected.take(first).chain([&affected]).chain(both.take(length - first - 1)).copied().collect()
}

fn usage() -> (Usage, UsageLog) {
    let files = Rotation { max_file_size: 1 << 20, keep: 1 };
    let policy = UsagePolicy { interval: Duration::from_secs(3_600), files };
    let (usage, mut logs) = Usage::start(None, policy, 1).expect("a thread");
    (usage, logs.remove(0))
}

/// Polls the usage thread until it has received what was counted.
async fn assert_used(usage: &Usage, items: &[Item]) {
    for (key, _) in KEYS {
        let (expected, deadline) = (counts(items, key), Instant::now() + USAGE_TIMEOUT);
        loop {
            let totals = usage.query(UsageQuery::Key(key.to_owned())).await.expect("an answer");
            // Keys of which something was refunded have counts for each limit, too.
            if (UsageCounts { limits: None, ..totals.total.clone() }) == expected {
                break;
            }
            assert!(Instant::now() < deadline, "{key}: {:?} instead of {expected:?}", totals.total);
        }
    }
}

/// Answers `input` as a connection does: from the old snapshot until it is superseded, and then
/// from the new one.
fn drive(
    snapshots: &Snapshots,
    input: &[u8],
    counters: &Counters,
    log: &mut UsageLog,
) -> (Vec<Reply>, usize) {
    let Snapshots { limiter, old, new } = snapshots;
    let global_policy = GlobalPolicy::default();
    let (mut replies, mut output, mut at) = (Vec::new(), Vec::new(), 0);
    let (mut snapshot, mut by_old) = (old, None);
    loop {
        log.begin(Some(snapshot), NOW.unix);
        let verifier =
            Verifier { view: Some(View::of(snapshot)), limiter, global_policy: &global_policy, now: NOW };
        let progress = respond(&verifier, Terms::UNRESTRICTED, &input[at..], &mut output, counters, log);
        at += progress.consumed;
        replies.extend(decode(&output));
        output.clear();
        match progress.stop {
            StopReason::Superseded => {
                assert!(by_old.replace(replies.len()).is_none(), "the new snapshot is not superseded");
                snapshot = new;
            }
            StopReason::OutputFull => {}
            StopReason::NeedInput => break,
            StopReason::FramingLost => panic!("the frame boundaries are lost"),
            StopReason::ShutDown => panic!("`respond` does not shut down"),
        }
    }
    assert_eq!(at, input.len());
    (replies, by_old.expect("superseded"))
}

#[tokio::test(flavor = "local")]
async fn superseded_batch_is_answered_and_counted_once() {
    let edges = [
        0,
        1,
        2,
        3,
        4,
        5,
        BATCH_SIZE - 1,
        BATCH_SIZE,
        BATCH_SIZE + 1,
        2 * BATCH_SIZE - 1,
        2 * BATCH_SIZE,
        2 * BATCH_SIZE + 2,
    ];
    let mut cases: Vec<(usize, Item, usize, bool)> = Vec::new();
    for first in edges {
        for affected in AFFECTED {
            cases.extend([true, false].map(|only_verify| (first, affected, 3 * BATCH_SIZE, only_verify)));
        }
    }
    // More answers than fit one output buffer.
    cases.extend([700, 1_000, 1_300].map(|first| (first, AFFECTED[0], 2_000, false)));
    for (first, affected, length, only_verify) in cases {
        let (snapshots, counters) = (Snapshots::new(), Counters::default());
        let (usage, mut log) = usage();
        let items = items(first, affected, length, only_verify);
        let mut input = Vec::new();
        items.iter().zip(0..).for_each(|(item, id)| item.encode(id, &mut input));
        let (got, by_old) = drive(&snapshots, &input, &counters, &mut log);
        let case = format!("{first} before {affected:?}");
        assert_eq!(by_old, first, "{case}");
        let expected = replies(&items, first);
        assert_eq!(got.len(), expected.len(), "{case}");
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got, expected, "{case}");
        }
        assert_counted(&counters, &items);
        log.flush_round(u64::MAX, 2);
        assert_used(&usage, &items).await;
    }
}

/// The same through a socket: the connection waits until its worker has the new snapshot.
#[tokio::test(flavor = "local")]
async fn superseded_connection_continues_with_the_new_snapshot() {
    for (first, affected) in
        [(0, AFFECTED[0]), (BATCH_SIZE + 7, AFFECTED[2]), (BATCH_SIZE, AFFECTED[5]), (150, AFFECTED[3])]
    {
        let Snapshots { limiter, old, new } = Snapshots::new();
        let (publisher, mut subscriptions) = Publisher::new(1);
        publisher.swap(old);
        let (usage, log) = usage();
        let (shutdown, view) = ShutdownControl::new();
        let context = WorkerContext::new(
            VerifyInputs {
                subscription: subscriptions.remove(0),
                limiter,
                global_policy: GlobalPolicy::default().into(),
                clock: Clock::new(),
            },
            Metrics { counters: Arc::default(), usage: log },
            Timeouts { idle: None, unsent_answers: FOREVER, busy_poll: Duration::ZERO },
            view,
            IdleCount::default(),
        );
        spawn_local(Rc::clone(&context).run_timers());
        spawn_local(Rc::clone(&context).run_turns());
        spawn_local(Rc::clone(&context).flush_usage());
        let worker = Worker { context, shutdown };
        let mut peer = worker.connect();

        let items = items(first, affected, 3 * BATCH_SIZE, false);
        let mut input = Vec::new();
        items.iter().zip(0..).for_each(|(item, id)| item.encode(id, &mut input));
        peer.stream.write_all(&input).expect("the socket has room");
        let mut output = Vec::new();
        let mut read = |peer: &mut Peer| {
            let mut bytes = vec![0; 1 << 20];
            let count = peer.stream.read(&mut bytes).unwrap_or(0);
            output.extend_from_slice(&bytes[..count]);
            let replies = decode(&output);
            replies.len()
        };
        yield_until("the answers of the old snapshot", || read(&mut peer) == first).await;
        // Nothing more is answered before the new snapshot is published.
        for _ in 0..10 {
            yield_now().await;
            assert_eq!(read(&mut peer), first);
        }
        publisher.swap(new);
        yield_until("the answers of the new snapshot", || read(&mut peer) >= items.len()).await;
        assert_eq!(decode(&output), replies(&items, first), "{first} before {affected:?}");
        assert_counted(&worker.context.counters, &items);
        assert_used(&usage, &items).await;
        worker.shutdown.drain();
        yield_until("the connection to close", || peer.served.is_finished()).await;
    }
}
