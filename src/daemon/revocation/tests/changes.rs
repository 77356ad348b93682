//! Changes of a snapshot in force: what was published in a generation never changes, and the marks
//! in the entries follow.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::publish::Subscription;
use keyward_engine::record::Digest;
use keyward_engine::snapshot::{Key, Takeaway};

const KEYS: u8 = 24;

/// The seeds and the steps of each.
const SEEDS: u64 = 400;
const STEPS: usize = 120;

/// A generator of numbers that reproduces.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// Three rows of each of eight key ids, of three owners and of none.
fn key_id(row: u8) -> String {
    format!("k{}", row / 3)
}

fn owner(row: u8) -> &'static str {
    ["", "acme", "bolt", "corp"][usize::from(row / 6)]
}

fn row_status(row: u8) -> Status {
    [Status::Active, Status::Disabled, Status::Active, Status::Revoked, Status::Active][usize::from(row % 5)]
}

fn digest(row: u8) -> Digest {
    [row; 32]
}

fn rows() -> Arc<Snapshot> {
    let mut builder = Builder::new(7, KEYS.into());
    for row in 0..KEYS {
        let key_id = key_id(row);
        let record =
            KeyRecord { owner: owner(row), status: row_status(row), ..KeyRecord::new(digest(row), &key_id) };
        builder.add(row.into(), &record).expect("a good row");
    }
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let meta = SnapshotMeta::default();
    Arc::new(builder.finish().into_snapshot(&mut allocator.begin(&limiter), None, meta).expect("no limits"))
}

/// Which rows are revoked, in the order of their numbers.
type Table = Vec<bool>;

fn table(published: &Published) -> Table {
    let view = published.view();
    let is_revoked = |row| view.is_revoked(view.snapshot.find(&digest(row)).expect("a row"));
    (0..KEYS).map(is_revoked).collect()
}

/// A worker with what it answers from.
struct TestWorker {
    subscription: Subscription,
    held: Option<Arc<Published>>,
}

/// What should be in force, by plain sets.
#[derive(Default)]
struct Reference {
    keys: BTreeSet<String>,
    owners: BTreeSet<&'static str>,
    taken: BTreeSet<u8>,
}

impl Reference {
    fn table(&self) -> Table {
        let is_revoked = |row: u8| {
            row_status(row) == Status::Revoked
                || self.taken.contains(&row)
                || self.keys.contains(&key_id(row))
                || self.owners.contains(owner(row))
        };
        (0..KEYS).map(is_revoked).collect()
    }
}

/// Random changes, swaps, loads by workers, and marks, in any order that the daemon allows. Whatever
/// a worker still holds answers as when it was published.
#[test]
fn view_never_changes_while_a_worker_may_use_it() {
    for seed in 0..SEEDS {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let (publisher, subscriptions) = Publisher::new(2);
    let revocations = Revocations::open(None, &publisher).expect("opens");
    let mut workers: Vec<_> =
        subscriptions.into_iter().map(|subscription| TestWorker { subscription, held: None }).collect();
    let mut reference = Reference::default();
    let mut tables: BTreeMap<u64, Table> = BTreeMap::new();
    // Takeaways that are published and not marked, with their epoch.
    let mut taking: Option<(Vec<(Digest, Takeaway)>, u64)> = None;
    revocations.mark_and_swap(rows());
    let reader = publisher.reader();
    for step in 0..STEPS {
        let before = reader.published().expect("published").generation();
        let context = || format!("seed {seed}, step {step}");
        match random.below(12) {
            0..5 => {
                let target = match random.below(3) {
                    0 => Target::Owner(owner(6 + random.below(18) as u8).into()),
                    _ => Target::Key(key_id(random.below(KEYS.into()) as u8).into()),
                };
                let outcome = if random.below(2) == 0 {
                    revocations.revoke(target.clone(), 0).ok()
                } else {
                    revocations.unrevoke(target.clone(), 0).ok()
                };
                let is_listed = revocations.list().get(&target).is_some();
                match &target {
                    Target::Key(key_id) if is_listed => _ = reference.keys.insert(key_id.to_string()),
                    Target::Key(key_id) => _ = reference.keys.remove(&**key_id),
                    Target::Owner(name) => {
                        let name = (0..KEYS).map(owner).find(|owner| *owner == &**name).expect("an owner");
                        if is_listed {
                            reference.owners.insert(name)
                        } else {
                            reference.owners.remove(name)
                        };
                    }
                }
                if let Some(CommandOutcome { unchanged, keys, revoked, generation, .. }) = outcome {
                    assert_eq!(generation, before + u64::from(!unchanged), "{}", context());
                    let is_of = |row: u8| match &target {
                        Target::Key(id) => **id == *key_id(row),
                        Target::Owner(name) => **name == *owner(row),
                    };
                    let table = reference.table();
                    let of_target = (0..KEYS).filter(|row| is_of(*row));
                    let expected =
                        (of_target.clone().count(), of_target.filter(|row| table[usize::from(*row)]).count());
                    assert_eq!((keys, revoked), expected, "{}", context());
                }
            }
            5..7 => revocations.mark_passed(),
            7 if taking.is_none() => {
                revocations.mark_and_swap(rows());
                reference.taken.clear();
            }
            8 => match taking.take() {
                Some((keys, epoch)) if publisher.epochs().passed() >= epoch => {
                    revocations.mark_takeaways(&keys);
                }
                Some(pending) => taking = Some(pending),
                None => {
                    let row = random.below(KEYS.into()) as u8;
                    let keys = vec![(digest(row), Takeaway::Revoked)];
                    let epoch = revocations.publish_takeaways(&keys);
                    reference.taken.insert(row);
                    taking = Some((keys, epoch));
                }
            },
            9 => {
                let worker = random.below(2) as usize;
                workers[worker].held = reader.published();
            }
            _ => {
                // As `follow_epochs` does.
                let worker = &mut workers[random.below(2) as usize];
                let epoch = *worker.subscription.announced.borrow();
                worker.held = reader.published();
                worker.subscription.passed.send_replace(epoch);
            }
        }
        let current = reader.published().expect("published");
        let generation = current.generation();
        assert!(generation >= before, "{}", context());
        let expected = tables.entry(generation).or_insert_with(|| reference.table());
        assert_eq!(table(&current), *expected, "{}", context());
        assert_eq!(reference.table(), *expected, "generation {generation} has changed, {}", context());
        for held in workers.iter().filter_map(|worker| worker.held.as_ref()) {
            assert_eq!(table(held), tables[&held.generation()], "held, {}", context());
        }
    }
    // In the end, the entries have everything.
    let epoch = publisher.epochs().advance();
    workers.iter().for_each(|worker| _ = worker.subscription.passed.send_replace(epoch));
    if let Some((keys, _)) = taking {
        revocations.mark_takeaways(&keys);
    }
    revocations.mark_passed();
    let current = reader.published().expect("published");
    assert!(current.view().overlay.is_none(), "seed {seed}");
    let in_entries = |row| current.snapshot().find(&digest(row)).is_some_and(|key| is_marked(key));
    assert_eq!((0..KEYS).map(in_entries).collect::<Table>(), reference.table(), "seed {seed}");
}

fn is_marked(key: Key<'_>) -> bool {
    key.status() == Status::Revoked
}

/// A change does not wait for workers, and its marks do.
#[test]
fn marks_wait_for_every_worker_and_the_change_does_not() {
    let (publisher, workers) = Publisher::new(2);
    let revocations = Revocations::open(None, &publisher).expect("opens");
    revocations.mark_and_swap(active(2, 1));
    let first = revocations.revoke(key(0), 0).expect("revoked");
    assert_eq!((first.generation, is_revoked(&publisher, 0)), (2, true));
    let snapshot = publisher.reader().current().expect("published");
    let has_mark = || snapshot.find_by_id("k0").is_some_and(is_marked);
    workers[0].passed.send_replace(first.epoch);
    revocations.mark_passed();
    assert!(!has_mark(), "a worker may still answer in generation 1");
    workers[1].passed.send_replace(first.epoch);
    revocations.mark_passed();
    assert!(has_mark());
    let published = publisher.reader().published().expect("published");
    assert_eq!((published.generation(), published.view().overlay), (2, None));
}

/// What nothing has changed leaves the generation as it is.
#[test]
fn generation_moves_with_answers_only() {
    let (publisher, _workers) = Publisher::new(1);
    let revocations = Revocations::open(None, &publisher).expect("opens");
    assert_eq!(revocations.revoke(key(0), 0).expect("revoked").generation, 0, "no keys are loaded");
    revocations.mark_and_swap(active(2, 1));
    let published = publisher.reader().published().expect("published");
    assert_eq!((published.generation(), published.view().overlay), (1, None));
    let generation = |outcome: Result<CommandOutcome, RevokeError>| outcome.expect("done").generation;
    assert_eq!(generation(revocations.revoke(key(0), 0)), 1, "already revoked");
    assert_eq!(generation(revocations.unrevoke(key(0), 0)), 2);
    assert_eq!(generation(revocations.revoke(Target::Owner("acme".into()), 0)), 3);
    assert_eq!(generation(revocations.revoke(key(1), 0)), 4);
}

/// An owner whose rows take a while to mark is revoked and unrevoked meanwhile.
#[test]
fn change_during_the_marking_is_not_lost() {
    const ROWS: u32 = 20_000;
    let (publisher, workers) = Publisher::new(1);
    // Every epoch is passed at once.
    drop(workers);
    let revocations = Revocations::open(None, &publisher).expect("opens");
    revocations.mark_and_swap(active(ROWS, 1));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                revocations.mark_passed();
            }
        });
        let set_done = SetOnDrop(&done);
        for round in 0..400 {
            let owner = || Target::Owner("acme".into());
            revocations.revoke(owner(), 0).expect("revoked");
            assert!(is_revoked(&publisher, ROWS - 1), "round {round}");
            if round % 3 == 0 {
                revocations.revoke(key(ROWS - 1), 0).expect("revoked");
            }
            revocations.unrevoke(owner(), 0).expect("unrevoked");
            assert_eq!(
                [0, ROWS - 1].map(|row| is_revoked(&publisher, row)),
                [false, round % 3 == 0],
                "{round}"
            );
            if round % 3 == 0 {
                revocations.unrevoke(key(ROWS - 1), 0).expect("unrevoked");
            }
        }
        drop(set_done);
    });
    revocations.mark_passed();
    let published = publisher.reader().published().expect("published");
    assert_eq!(published.view().overlay, None);
    assert!(published.snapshot().keys().all(|key| key.status() == Status::Active));
}

/// Commands take generations without waiting for the disk, so that more have to be reserved before
/// none is left.
#[test]
fn generations_are_reserved_ahead_of_commands() {
    let directory = directory();
    let state = StateDir::open(directory.path(), true).expect("opens").map(Arc::new);
    let publisher = Publisher::new(1).0;
    let revocations = Revocations::open(state, &publisher).expect("reads");
    let generations = revocations.generations();
    generations.reserve();
    revocations.mark_and_swap(active(1, 1));
    while !generations.is_low() {
        generations.next_number();
    }
    revocations.revoke(key(0), 0).expect("revoked");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while generations.is_low() {
        assert!(std::time::Instant::now() < deadline, "never reserved");
        std::thread::sleep(Duration::from_millis(1));
    }
}
