//! A generation identifies one state of all keys forever: its answers agree, and after a crash, no
//! number returns with other keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward_admin::message::Command;

use crate::support::bad_rows::{APPLY_TAKEAWAYS, export, invalid, valid};
use crate::support::{
    Daemon, Export, Received, Row, SetOnDrop, Setup, dose, encode_verify, key_target, owner_target,
    replace_export,
};

#[test]
fn generations_do_not_repeat_over_50_kills() {
    const KILLS: usize = 50;
    let export = |number: usize| Export::of([format!("k{number}")]);
    let mut daemon = Daemon::serving_text(export(0));
    let mut exports = HashMap::from([(daemon.status().generation, 0)]);
    let mut last = 0;
    for number in 1..=KILLS {
        let outcome = daemon.publish(export(number));
        assert!(outcome.accepted && outcome.generation > last, "{outcome:?}");
        last = outcome.generation;
        assert_eq!(exports.insert(outcome.generation, number), None, "a generation of another export");
        daemon = daemon.kill_and_restart();
        let generation = daemon.status().generation;
        assert!(generation > last, "{generation} after {last}");
        last = generation;
        assert_eq!(exports.insert(generation, number), None);
    }
}

/// The keys of the following test, without limits: apart from time, nothing but their generation
/// decides their verdicts.
const KEYS: usize = 24;

fn key_number(number: usize) -> String {
    format!("k{number}")
}

/// Four exports: every key is active; some are missing; some are disabled; and one that is refused
/// for a bad row, and revokes some.
fn exports() -> [Export; 4] {
    let of = |other: fn(Row) -> Option<Row>| {
        let row = |number: usize| {
            let row = valid(key_number(number)).owner(["acme", "bolt", "corp"][number % 3]);
            if number % 5 == 4 { other(row) } else { Some(row) }
        };
        (0..KEYS).filter_map(row).collect::<Vec<_>>()
    };
    let refused = of(|row| Some(row.status("revoked"))).into_iter().chain([invalid("bad")]);
    [export(of(Some)), export(of(|_| None)), export(of(|row| Some(row.status("disabled")))), export(refused)]
}

/// Asks for all keys over one connection until `stop`, and returns the verdict of each key in each
/// generation. Generations never descend on a connection.
fn collect(daemon: &Daemon, batches: usize, stop: &AtomicBool) -> BTreeMap<(u64, usize), String> {
    let mut client = daemon.connect();
    let frames: Vec<_> = (0..KEYS).map(|number| encode_verify(number as u32, &key_number(number))).collect();
    let batch = frames.concat().repeat(batches);
    let (mut verdicts, mut last) = (BTreeMap::new(), 0);
    while !stop.load(Ordering::Acquire) {
        client.send(&batch);
        for _ in 0..batches * KEYS {
            let Received::Answer { request_id, verdict, generation } = client.receive() else {
                panic!("not an answer")
            };
            assert!(generation >= last, "{generation} after {last}");
            last = generation;
            let before = verdicts.entry((generation, request_id as usize)).or_insert(verdict.to_owned());
            assert_eq!(before, verdict, "key {request_id} in generation {generation}");
        }
    }
    verdicts
}

#[test]
fn answers_of_a_generation_agree_while_keys_are_revoked_and_reloaded() {
    let seconds = dose(4, 120) as u64;
    let exports = exports();
    let daemon = Setup::text(&exports[0]).config(&format!("{APPLY_TAKEAWAYS}poll = '1h'\n")).start();
    let stop = AtomicBool::new(false);
    // The verdicts that acknowledgements promise, from their generation on until the next change.
    let promised = Mutex::new(Vec::new());
    let collected = thread::scope(|scope| {
        let (daemon, stop) = (&daemon, &stop);
        let connections = [1, 1, 3, 20].map(|batches| scope.spawn(move || collect(daemon, batches, stop)));
        let of_keys = || {
            for number in (0..KEYS).cycle().step_by(7) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let target = || key_target(&key_number(number));
                let revoked = daemon.send_command(&Command::Revoke(target()));
                if let Some(revoked) = revoked.ok().and_then(|reply| reply.revocation) {
                    promised.lock().expect("not poisoned").push((revoked.generation, number));
                    daemon.unrevoke(target());
                }
            }
        };
        let of_owners = || {
            for owner in ["acme", "bolt"].into_iter().cycle() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                daemon.revoke(owner_target(owner));
                daemon.unrevoke(owner_target(owner));
            }
        };
        let reloads = || {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            for export in exports.iter().cycle() {
                if Instant::now() > deadline {
                    stop.store(true, Ordering::Release);
                    return;
                }
                replace_export(&daemon.setup.source(), export);
                let outcome = daemon.force_reload();
                // Answers from now on are of this generation, or of a later one.
                let Received::Answer { generation, .. } = ({
                    let mut client = daemon.connect();
                    client.send(&encode_verify(0, "k0"));
                    client.receive()
                }) else {
                    panic!("not an answer")
                };
                assert!(generation >= outcome.generation, "{generation} after {outcome:?}");
            }
        };
        let _stop = SetOnDrop(stop);
        let threads = [scope.spawn(of_keys), scope.spawn(of_owners), scope.spawn(reloads)];
        for thread in threads {
            thread.join().expect("no failure");
        }
        connections.map(|connection| connection.join().expect("agrees"))
    });
    let mut verdicts: BTreeMap<(u64, usize), String> = BTreeMap::new();
    for (at, verdict) in collected.into_iter().flatten() {
        let before = verdicts.entry(at).or_insert_with(|| verdict.clone());
        assert_eq!(*before, verdict, "generation and key {at:?}");
    }
    let promised = promised.into_inner().expect("not poisoned");
    let seen: Vec<_> = promised.iter().filter_map(|at| verdicts.get(at)).collect();
    assert!(seen.iter().all(|verdict| *verdict == "REVOKED"), "{seen:?}");
    let generations = verdicts.keys().map(|(generation, _)| generation).collect::<BTreeSet<_>>().len();
    let kinds: BTreeSet<_> = verdicts.values().map(String::as_str).collect();
    println!("{generations} generations, {} revocations, of which {} were seen", promised.len(), seen.len());
    assert!(generations > 50 && seen.len() > 10, "{generations} {}", seen.len());
    assert_eq!(kinds, ["ALLOWED", "DISABLED", "REVOKED", "UNKNOWN_KEY"].into());
}
