//! What each limit was charged, debited and refunded: over reloads that rename limits, with logs of
//! several generations in the queue, and with lines in between.

use std::collections::{BTreeMap, BTreeSet};

use keyward_admin::message::LimitUsage;
use keyward_engine::limiter::{Balance, LimitBalance};
use keyward_engine::record::parse_limits;
use proptest::prelude::*;

use super::*;

/// A snapshot of keys with limits. The key id is the key.
fn with_limits(generation: u64, rows: &[(&str, &str)]) -> Arc<Snapshot> {
    let mut builder = Builder::new(0x5eed, 0);
    for ((key, limits), line) in rows.iter().zip(2..) {
        let limits = if limits.is_empty() { Vec::new() } else { parse_limits(limits).expect("limits") };
        let record = KeyRecord::new(keyward_engine::key_format::hash(key.as_bytes()), key);
        builder.add(line, &KeyRecord { limits: limits.into(), ..record }).expect("no duplicates");
    }
    let (mut allocator, limiter) = (SlotAllocator::new(), Limiter::new());
    let mut allocation = allocator.begin(&limiter);
    let stamp = SnapshotMeta { generation, ..SnapshotMeta::default() };
    let snapshot = builder.finish().into_snapshot(&mut allocation, None, stamp).expect("room");
    let _ = allocation.commit();
    Arc::new(snapshot)
}

fn changes(amounts: &[u32]) -> Vec<LimitBalance> {
    let change = |(position, changed): (usize, &u32)| LimitBalance {
        position,
        changed: *changed,
        shadow: false,
        balance: Balance::default(),
    };
    amounts.iter().enumerate().map(change).collect()
}

fn of(charged: u64, debited: u64, refunded: u64) -> LimitUsage {
    LimitUsage { charged, debited, refunded }
}

/// Named limits, as a report has them.
fn named(limits: &[(&str, LimitUsage)]) -> Option<BTreeMap<String, LimitUsage>> {
    Some(limits.iter().map(|(name, usage)| ((*name).to_owned(), *usage)).collect())
}

fn in_detail<'c>(snapshot: &Snapshot, key: &str, cost: u32, changes: &'c [LimitBalance]) -> RequestUsage<'c> {
    RequestUsage { changes: Some(changes), ..request_usage(snapshot, key, cost) }
}

#[test]
fn limits_are_counted_from_the_first_request_on_once_they_differ() {
    let one = with_limits(1, &[("a", "requests=1/s;tokens=9/s"), ("b", "tokens=9/s"), ("c", "")]);
    let (mut log, messages) = log();
    let mut table = Table::default();
    let mut count = |table: &mut Table, count: &dyn Fn(&mut UsageLog)| {
        log.begin(Some(&one), 100);
        count(&mut log);
        log.flush();
        merge(table, &messages);
    };
    count(&mut table, &|log| {
        log.verified(Verdict::Allowed, request_usage(&one, "a", 2));
        log.verified(Verdict::Allowed, request_usage(&one, "b", 3));
        log.verified(Verdict::Allowed, request_usage(&one, "c", 4));
    });
    assert_eq!(take_deltas(&mut table, 9).iter().find(|(_, counts)| counts.limits.is_some()), None);
    assert_eq!(table.query(&UsageQuery::Top(9)).1.limits, None, "every limit was charged the cost");
    assert_eq!(table.texts(), 3, "the names of each key's limits");

    count(&mut table, &|log| {
        log.verified(Verdict::Allowed, request_usage(&one, "a", 5));
        log.verified(Verdict::Allowed, in_detail(&one, "a", 0, &changes(&[0, 1_500])));
        log.verified(Verdict::Allowed, request_usage(&one, "a", 7));
        log.debited(Verdict::Allowed, in_detail(&one, "a", 0, &changes(&[0, 40])));
        log.refunded(Verdict::Allowed, in_detail(&one, "a", 3, &changes(&[3, 1])));
    });
    let a = usage(&table, "a").counts;
    assert_eq!((a.allowed, a.cost, a.debited, a.refunded, a.peeked), (4, 14, 0, 3, 0));
    assert_eq!(a.limits, named(&[("requests", of(14, 0, 3)), ("tokens", of(1_514, 40, 1))]));
    let total = table.query(&UsageQuery::Top(9)).1;
    assert_eq!(
        total.limits,
        named(&[("requests", of(14, 0, 3)), ("tokens", of(1_517, 40, 1))]),
        "of all keys"
    );
    let written = take_deltas(&mut table, 1).remove(0).1.limits;
    assert_eq!(
        written,
        named(&[("requests", of(12, 0, 3)), ("tokens", of(1_512, 40, 1))]),
        "since the last line"
    );

    count(&mut table, &|log| log.verified(Verdict::RateLimited, request_usage(&one, "a", 0)));
    assert_eq!(take_deltas(&mut table, 1).remove(0).1.limits, named(&[]), "nothing was charged");
    count(&mut table, &|log| {
        log.verified(Verdict::Allowed, request_usage(&one, "a", 1));
        // The key had no room in one of its shadow limits.
        log.verified(Verdict::Allowed, shadow_limited(request_usage(&one, "b", 2)));
        log.debited(Verdict::Allowed, in_detail(&one, "c", 6, &[]));
    });
    let limits: Vec<_> = take_deltas(&mut table, 1).into_iter().map(|(_, counts)| counts.limits).collect();
    let uniform = named(&[("requests", of(1, 0, 0)), ("tokens", of(1, 0, 0))]);
    assert_eq!(limits, [uniform, named(&[]), named(&[])]);
    assert_eq!(usage(&table, "b").counts.limits, named(&[("tokens", of(3, 0, 0))]));
    assert_eq!(usage(&table, "c").counts.debited, 6);
}

#[test]
fn counts_of_limits_and_their_names_are_freed() {
    let rows = |name: &str| format!("{name}=9/s;other=9/s");
    let mut names = Vec::new();
    let (mut log, messages) = log();
    let mut table = Table::default();
    for generation in 1..=50 {
        names.push(format!("n{generation}"));
        let limits = rows(&names[generation as usize - 1]);
        let snapshot = with_limits(generation, &[("a", &limits), ("b", &limits), ("c", &limits)]);
        log.begin(Some(&snapshot), 100);
        for key in ["a", "b"] {
            log.verified(Verdict::Allowed, request_usage(&snapshot, key, 1));
        }
        log.flush();
        merge(&mut table, &messages);
        table.release_views_before(generation);
        let written = take_deltas(&mut table, 1);
        let name = &*names[generation as usize - 1];
        if generation > 1 {
            let expected = named(&[(name, of(1, 0, 0)), ("other", of(1, 0, 0))]);
            assert!(written.iter().all(|(_, counts)| counts.limits == expected), "{written:?}");
            let expected = named(&[(name, of(1, 0, 0)), ("other", of(generation, 0, 0))]);
            assert_eq!(usage(&table, "a").counts.limits, expected, "a limit that is gone starts again");
        }
        assert!(table.texts() <= 2, "{generation}: {}", table.texts());
    }
    let without = with_limits(99, &[("d", "")]);
    log.begin(Some(&without), 100);
    log.verified(Verdict::Allowed, request_usage(&without, "d", 1));
    log.flush();
    merge(&mut table, &messages);
    table.release_views_before(99);
    take_deltas(&mut table, 1);
    assert_eq!((table.len(), table.texts()), (1, 1), "the records of removed keys are freed");
}

const KEYS: [&str; 3] = ["a", "b", "c"];

/// The names of the limits of each key, by generation. Some reloads change them.
const GENERATIONS: [[&[&str]; 3]; 4] = [
    [&["requests", "tokens"], &["tokens"], &[]],
    [&["requests", "tokens"], &["quota", "tokens"], &[]],
    [&["tokens", "requests"], &["quota"], &["late"]],
    [&["requests", "tokens", "credits"], &["quota"], &[]],
];

/// What happens to a key.
#[derive(Clone, Copy, Debug)]
enum Action {
    Plain,
    /// All shadow limits of this set have no room.
    Shadow(u8),
    Costs([u32; 3]),
    Debit([u32; 3]),
    Refund([u32; 3]),
    Denied,
    /// All that workers have counted is merged, and lines are written.
    Write,
    /// All workers use the newest snapshot.
    Release,
}

fn action() -> impl Strategy<Value = Action> {
    let amounts = || prop::array::uniform3(0_u32..4);
    prop_oneof![
        6 => Just(Action::Plain),
        1 => (0_u8..8).prop_map(Action::Shadow),
        2 => amounts().prop_map(Action::Costs),
        1 => amounts().prop_map(Action::Debit),
        1 => amounts().prop_map(Action::Refund),
        1 => Just(Action::Denied),
        1 => Just(Action::Write),
        1 => Just(Action::Release),
    ]
}

/// Sums by key and limit.
type Sums = BTreeMap<(&'static str, &'static str), LimitUsage>;

proptest! {
    /// The lines have exactly what happened since the lines before, for each limit.
    #[test]
    fn lines_have_the_sums_of_a_reference(
        steps in prop::collection::vec((action(), 0_usize..3, 0_usize..2, 0_u32..5, 0_usize..9), 1..120),
    ) {
        let snapshots: Vec<_> = GENERATIONS.iter().zip(1..).map(|(keys, generation)| {
            let limits = keys.map(|names| names.iter().map(|name| format!("{name}=9/s")).collect::<Vec<_>>().join(";"));
            let rows: Vec<_> = KEYS.into_iter().zip(limits.iter().map(|limits| &**limits)).collect();
            with_limits(generation, &rows)
        }).collect();
        let (queue, messages) = sync_channel(1024);
        // Two workers: the second one may be a generation behind.
        let mut logs = [0, 1].map(|worker| UsageLog::new(worker, queue.clone(), watch::channel(0).1).0);
        let (mut table, mut newest) = (Table::default(), 0);
        let (mut expected, mut general) = (Sums::new(), BTreeMap::<&str, UsageCounts>::new());
        // The limits that each key had since the lines before.
        let mut names = BTreeMap::<&str, BTreeSet<&str>>::new();
        for (action, key, worker, cost, reload) in steps {
            if reload == 0 && newest + 1 < GENERATIONS.len() {
                newest += 1;
            }
            let generation = newest.saturating_sub(worker);
            let (snapshot, limits) = (&snapshots[generation], GENERATIONS[generation][key]);
            let (log, key) = (&mut logs[worker], KEYS[key]);
            log.begin(Some(snapshot), 100);
            let usage = request_usage(snapshot, key, cost);
            let counts = general.entry(key).or_default();
            let mut add = |add: &dyn Fn(&mut LimitUsage, usize)| {
                // What changes no limit does not mention it. The line of a key in the plain form concerns
                // the limits that it has now.
                if let Action::Debit(amounts) | Action::Refund(amounts) = action
                    && amounts[..limits.len()].iter().all(|amount| *amount == 0)
                {
                    return;
                }
                for (position, name) in limits.iter().enumerate() {
                    add(expected.entry((key, name)).or_default(), position);
                    names.entry(key).or_default().insert(name);
                }
            };
            match action {
                Action::Plain | Action::Shadow(_) => {
                    let mut shadow = ShadowRefusals::default();
                    if let Action::Shadow(set) = action {
                        let refused = (0..limits.len()).filter(|position| set >> position & 1 == 1);
                        shadow = refused.fold(shadow, ShadowRefusals::with);
                    }
                    let cost = cost + 1;
                    log.verified(Verdict::Allowed, RequestUsage { cost, shadow, ..usage });
                    add(&|limit, position| {
                        limit.charged += if shadow.contains(position) { 0 } else { u64::from(cost) };
                    });
                    counts.cost += u64::from(cost);
                }
                Action::Costs(amounts) => {
                    let changes = changes(&amounts[..limits.len()]);
                    log.verified(Verdict::Allowed, RequestUsage { changes: Some(&changes), ..usage });
                    add(&|limit, position| limit.charged += u64::from(amounts[position]));
                    counts.cost += u64::from(cost);
                }
                Action::Debit(amounts) => {
                    let changes = changes(&amounts[..limits.len()]);
                    log.debited(Verdict::Allowed, RequestUsage { changes: Some(&changes), ..usage });
                    add(&|limit, position| limit.debited += u64::from(amounts[position]));
                    counts.debited += u64::from(cost);
                }
                Action::Refund(amounts) => {
                    let changes = changes(&amounts[..limits.len()]);
                    log.refunded(Verdict::Allowed, RequestUsage { changes: Some(&changes), ..usage });
                    add(&|limit, position| limit.refunded += u64::from(amounts[position]));
                    counts.refunded += u64::from(cost);
                }
                Action::Denied => log.verified(Verdict::RateLimited, RequestUsage { cost: 0, ..usage }),
                Action::Write | Action::Release => {
                    logs.iter_mut().for_each(UsageLog::flush);
                    merge(&mut table, &messages);
                    if matches!(action, Action::Release) {
                        table.release_views_before(newest as u64 + 1);
                        continue;
                    }
                    let lines: BTreeMap<String, UsageCounts> = take_deltas(&mut table, 2).into_iter().collect();
                    check(&lines, &expected, &general, &names);
                    expected.clear();
                    general.clear();
                    names.clear();
                }
            }
        }
        logs.iter_mut().for_each(UsageLog::flush);
        merge(&mut table, &messages);
        let lines: BTreeMap<String, UsageCounts> = take_deltas(&mut table, 2).into_iter().collect();
        check(&lines, &expected, &general, &names);
    }
}

fn check(
    lines: &BTreeMap<String, UsageCounts>,
    expected: &Sums,
    general: &BTreeMap<&str, UsageCounts>,
    names: &BTreeMap<&str, BTreeSet<&str>>,
) {
    for key in KEYS {
        let line = lines.get(key).cloned().unwrap_or_default();
        let counts = general.get(key).cloned().unwrap_or_default();
        assert_eq!(
            (line.cost, line.debited, line.refunded),
            (counts.cost, counts.debited, counts.refunded),
            "{key}"
        );
        for name in names.get(key).into_iter().flatten() {
            let sum = expected.get(&(key, *name)).copied().unwrap_or_default();
            let counted = match &line.limits {
                Some(limits) => limits.get(*name).copied().unwrap_or_default(),
                None => LimitUsage { charged: line.cost, ..LimitUsage::default() },
            };
            assert_eq!(counted, sum, "{key}, {name}: {line:?}");
        }
        let known = |name: &String| names.get(key).is_some_and(|names| names.contains(&**name));
        assert!(line.limits.iter().flatten().all(|(name, _)| known(name)), "{key}: {line:?}");
    }
}
