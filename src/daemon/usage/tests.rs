//! Usage from logs to records and lines, without a daemon.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use keyward_protocol::Verdict;
use serde_json::Value;

use super::log::FlushedLog;
use super::table::Table;
use super::*;
use keyward_admin::message::{KeyUsage, MAX_LISTED, UsageCounts};
use keyward_engine::limiter::{Limiter, ShadowRefusals, SlotAllocator};
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::{Builder, Snapshot, SnapshotMeta};
use keyward_engine::verify::RequestUsage;

mod limits;

/// Rows, as key, key id and owner.
pub(super) fn snapshot(generation: u64, rows: &[(&str, &str, &str)]) -> Arc<Snapshot> {
    let mut builder = Builder::new(0x5eed, 0);
    for ((key, key_id, owner), line) in rows.iter().zip(2..) {
        let record =
            KeyRecord { owner, ..KeyRecord::new(keyward_engine::key_format::hash(key.as_bytes()), key_id) };
        builder.add(line, &record).expect("no duplicates");
    }
    let (mut allocator, limiter) = (SlotAllocator::new(), Limiter::new());
    let mut allocation = allocator.begin(&limiter);
    let stamp = SnapshotMeta { generation, ..SnapshotMeta::default() };
    let snapshot = builder.finish().into_snapshot(&mut allocation, None, stamp).expect("room");
    // There is no earlier snapshot whose slots could be reclaimed.
    let _ = allocation.commit();
    Arc::new(snapshot)
}

pub(super) fn request_usage(snapshot: &Snapshot, key: &str, cost: u32) -> RequestUsage<'static> {
    let key = snapshot.find(&keyward_engine::key_format::hash(key.as_bytes()));
    RequestUsage { entry: key.map(|key| key.entry_number()), cost, ..RequestUsage::default() }
}

/// With a shadow limit that had no room.
fn shadow_limited(request: RequestUsage<'_>) -> RequestUsage<'_> {
    RequestUsage { shadow: ShadowRefusals::default().with(0), ..request }
}

/// A log, and the queue that it flushes to.
pub(super) fn log() -> (UsageLog, Receiver<Message>) {
    let (queue, messages) = sync_channel(1024);
    let (log, _spares) = UsageLog::new(0, queue, watch::channel(0).1);
    (log, messages)
}

fn merge(table: &mut Table, messages: &Receiver<Message>) {
    for message in messages.try_iter() {
        let Message::Log(mut log) = message else { panic!("not a log") };
        table.merge(&mut log);
    }
}

fn query(key: &str) -> UsageQuery {
    UsageQuery::Key(key.to_owned())
}

fn usage(table: &Table, key: &str) -> KeyUsage {
    table.query(&query(key)).2.remove(0)
}

/// Everything since the last write, by key id.
fn take_deltas(table: &mut Table, step: usize) -> Vec<(String, UsageCounts)> {
    let mut walk = table.walk();
    let mut written = Vec::new();
    while !table.step(&mut walk, step, |delta| {
        written.push((delta.key_id.to_owned(), delta.counts.clone()));
        true
    }) {}
    written
}

#[test]
fn requests_are_counted_by_kind() {
    let one = snapshot(1, &[("k", "a", "acme"), ("k2", "a", "acme"), ("other", "b", "")]);
    let (mut log, messages) = log();
    log.begin(Some(&one), 100);
    log.verified(Verdict::Allowed, request_usage(&one, "k", 3));
    log.verified(Verdict::RateLimited, request_usage(&one, "k", 0));
    log.verified(Verdict::RateLimited, shadow_limited(request_usage(&one, "k2", 0)));
    log.verified(Verdict::UnknownKey, request_usage(&one, "nobody's", 0));
    log.verified(Verdict::MalformedKey, RequestUsage::default());
    log.verified(Verdict::NotReady, RequestUsage::default());
    log.begin(Some(&one), 90);
    log.verified(Verdict::Allowed, shadow_limited(request_usage(&one, "k2", 1)));
    log.refunded(Verdict::Allowed, request_usage(&one, "k", 2));
    log.refunded(Verdict::UnknownKey, RequestUsage::default());
    log.begin(Some(&one), 110);
    log.verified(Verdict::Allowed, request_usage(&one, "k", 0));
    log.refunded(Verdict::Allowed, request_usage(&one, "other", 5));
    log.flush();
    let mut table = Table::default();
    merge(&mut table, &messages);
    let a = usage(&table, "a");
    let denied = [("RATE_LIMITED".to_owned(), 2)].into();
    let counts = UsageCounts {
        allowed: 2,
        cost: 4,
        denied,
        refunded: 2,
        debited: 0,
        shadow_limited: 2,
        peeked: 1,
        limits: Some([].into()),
    };
    assert_eq!((a.counts.clone(), &*a.owner), (counts, "acme"), "rows with one key id share a record");
    assert_eq!((a.first_used, a.last_used), (Some(90), Some(100)), "a request for the balance is no use");
    let b = usage(&table, "b");
    assert_eq!((b.counts.refunded, b.first_used, b.last_used), (5, None, None));
    let unknown = table.all_unknown();
    assert_eq!((unknown.unknown_key, unknown.malformed_key), (2, 1));

    assert_eq!(take_deltas(&mut table, 1).len(), 2);
    assert_eq!(take_deltas(&mut table, 1), [], "written once");
    assert_eq!(usage(&table, "a"), a, "totals remain");
    log.begin(Some(&one), 120);
    log.verified(Verdict::Allowed, request_usage(&one, "k", 1));
    log.flush();
    merge(&mut table, &messages);
    // The key has no limits, and its refunds have begun its counts for each limit.
    let counts = UsageCounts { allowed: 1, cost: 1, limits: Some([].into()), ..UsageCounts::default() };
    assert_eq!(take_deltas(&mut table, 1), [("a".to_owned(), counts)], "no count is written again");
}

#[test]
fn record_outlives_snapshots_until_its_key_is_removed() {
    let one = snapshot(1, &[("k", "a", "acme"), ("gone", "b", "")]);
    let two = snapshot(2, &[("new", "c", ""), ("k", "a", "inc")]);
    let (mut log, messages) = log();
    let mut table = Table::default();
    let mut use_key = |table: &mut Table, snapshot: &Arc<Snapshot>, key: &str| {
        log.begin(Some(snapshot), 100);
        log.verified(Verdict::Allowed, request_usage(snapshot, key, 1));
        log.flush();
        merge(table, &messages);
    };
    use_key(&mut table, &one, "k");
    use_key(&mut table, &one, "gone");
    use_key(&mut table, &two, "k");
    use_key(&mut table, &one, "k");
    assert_eq!(usage(&table, "a").counts.allowed, 3, "over all snapshots");
    assert_eq!(usage(&table, "a").owner, "inc");
    assert_eq!(take_deltas(&mut table, 100).len(), 2);
    assert_eq!(table.len(), 2, "a worker may still use the old snapshot");

    table.release_views_before(2);
    assert_eq!(Arc::strong_count(&one), 1, "the old snapshot can be freed");
    use_key(&mut table, &two, "new");
    assert_eq!(
        take_deltas(&mut table, 1),
        [("c".to_owned(), UsageCounts { allowed: 1, cost: 1, ..UsageCounts::default() })]
    );
    assert_eq!(table.len(), 2, "the record of a removed key is freed");
    assert!(table.query(&query("b")).2.is_empty());
    let three = snapshot(3, &[("gone", "b", ""), ("k", "a", ""), ("d", "d", "")]);
    use_key(&mut table, &three, "d");
    use_key(&mut table, &three, "gone");
    assert_eq!(usage(&table, "b").counts.allowed, 1, "a key that returns starts from zero");
    assert_eq!(usage(&table, "a").counts.allowed, 3);
}

#[test]
fn reports_list_keys_by_cost() {
    let names: Vec<String> = (0..3000).map(|key| format!("key_{key:04}")).collect();
    let rows: Vec<_> = names
        .iter()
        .zip(0..)
        .map(|(name, number)| (&**name, &**name, if number % 2 == 0 { "even" } else { "" }))
        .collect();
    let one = snapshot(1, &rows);
    let (mut log, messages) = log();
    log.begin(Some(&one), 100);
    for (name, cost) in names.iter().zip(1..) {
        log.verified(Verdict::Allowed, request_usage(&one, name, cost));
    }
    log.flush();
    let mut table = Table::default();
    merge(&mut table, &messages);
    let (matched, total, keys) = table.query(&UsageQuery::Top(2));
    assert_eq!((matched, total.allowed, total.cost), (3000, 3000, 3000 * 3001 / 2));
    let ids: Vec<_> = keys.iter().map(|key| &*key.key_id).collect();
    assert_eq!(ids, ["key_2999", "key_2998"]);
    let (matched, total, keys) = table.query(&UsageQuery::Owner("even".to_owned()));
    assert_eq!((matched, total.cost, keys.len()), (1500, 1500 * 1500, MAX_LISTED));
    assert_eq!(keys[0].key_id, "key_2998");
    assert_eq!(table.query(&UsageQuery::Owner("nobody".to_owned())).0, 0);
}

#[test]
fn full_log_is_flushed() {
    let one = snapshot(1, &[("k", "a", "")]);
    let (mut log, messages) = log();
    log.begin(Some(&one), 100);
    for _ in 0..20_000 {
        log.verified(Verdict::Allowed, request_usage(&one, "k", 1));
    }
    log.flush();
    let logs: Vec<_> = messages.try_iter().collect();
    let sizes = logs.iter().map(|message| match message {
        Message::Log(FlushedLog { events, .. }) => (events.len(), events.capacity()),
        _ => (0, 0),
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [(8_192, 8_192), (8_192, 8_192), (3_616, 8_192)]);
    assert_eq!(Arc::strong_count(&one), 1 + logs.len(), "an empty log holds no snapshot");
}

fn lines(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join(writer::FILE)).expect("usage");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn lines_are_numbered_across_restarts_and_have_only_new_usage() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let policy = UsagePolicy {
        interval: Duration::from_secs(3600),
        files: Rotation { max_file_size: 1 << 20, keep: 1 },
    };
    for round in 1..=2 {
        let state = StateDir::open(directory.path(), true).expect("opens").expect("there");
        let (usage, mut logs) = Usage::start(Some(&state), policy, 1).expect("starts");
        let mut log = logs.remove(0);
        let mut rounds = log.rounds();
        let one = snapshot(1, &[("k", "a", "acme")]);
        log.begin(Some(&one), 100);
        log.verified(Verdict::Allowed, request_usage(&one, "k", round));
        log.verified(Verdict::UnknownKey, RequestUsage::default());
        let totals = runtime.block_on(async {
            let worker = async {
                rounds.changed().await.expect("a round");
                let round = *rounds.borrow();
                log.flush_round(round, 1);
            };
            let (totals, ()) = tokio::join!(usage.query(query("a")), worker);
            let worker = async {
                rounds.changed().await.expect("a round");
                let round = *rounds.borrow();
                log.flush_round(round, 1);
            };
            tokio::join!(usage.stop(), worker);
            totals.expect("an answer")
        });
        assert_eq!((totals.keys[0].counts.cost, totals.unknown["UNKNOWN_KEY"]), (round.into(), 1));
    }
    let lines = lines(directory.path());
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    assert_eq!(
        (&lines[0]["key_id"], &lines[0]["owner"], &lines[0]["cost"]),
        (&"a".into(), &"acme".into(), &1.into())
    );
    assert_eq!((&lines[0]["allowed"], &lines[0]["first_used"]), (&1.into(), &100.into()));
    assert_eq!(lines[1]["unknown"]["UNKNOWN_KEY"], 1);
    assert_eq!(lines[2]["cost"], 2, "only the usage since the start");
    let times = [&lines[0]["from"], &lines[0]["to"]].map(|time| time.as_str().expect("a time"));
    assert!(times[0] <= times[1] && times[1].ends_with('Z'), "{times:?}");
}
