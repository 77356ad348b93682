//! SIGKILL at random moments, while keys are reloaded and revoked and a limit is charged. Each start
//! succeeds, and what was acknowledged before is in force after it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use keyward_admin::message::{Command, Reply};
use keyward_admin::send_command_within;
use keyward_client::{Decision, Request, Verdict};
use rustix::process::Signal;

use crate::support::{
    Daemon, Export, Random, SetOnDrop, Setup, TIMEOUT, dose, key_target, replace_export, row,
};

/// Keys that are revoked one after another, by commands.
const KEYS: usize = 3_000;

/// The burst of the limited key, which refills by one request an hour.
const BURST: usize = 200;

/// Balances are saved at this interval (see [`CONFIG`]), and a save may take as long as the tolerance.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);
const SAVE_TOLERANCE: Duration = Duration::from_millis(400);

const CONFIG: &str = "source.settle = '0s'\nsource.poll = '1h'\nstate.save_interval = '100ms'";

/// Milliseconds that a daemon lives: most are killed early, every sixth after some saves.
const SHORT_LIFE: Range<usize> = 0..120;
const LONG_LIFE: Range<usize> = 700..1_000;

/// What is known across kills.
#[derive(Default)]
struct Known {
    /// The last export at the source's path, and whether a bad source has replaced it.
    published: usize,
    is_source_bad: bool,
    /// The last export whose reload was acknowledged. After a start with a bad source, the one that
    /// was in force then.
    acknowledged: usize,
    /// The last export that was reported as saved for a start with a bad source.
    saved: usize,
    /// Whether a start has served no keys, because the stored ones are older than the accepted ones,
    /// and no reload has been acknowledged since.
    is_without_keys: bool,
    /// The number of such starts.
    starts_without_keys: usize,
    /// The number of keys whose revocation was requested, and those for which it was acknowledged.
    requested: usize,
    revoked: BTreeSet<usize>,
    /// The export of each generation.
    generations: BTreeMap<u64, usize>,
    /// When each ALLOWED of the limited key arrived.
    admitted: Vec<Instant>,
    /// Whether the limited key had no balance left after a start: a save has recorded it.
    was_limited_after_a_start: bool,
}

/// A daemon that is going to be killed.
struct Life<'a> {
    daemon: &'a Daemon,
    known: &'a Mutex<Known>,
    stop: AtomicBool,
}

fn export(version: usize) -> Export {
    let keys = (0..KEYS).map(|number| row(format!("k{number}")));
    let limited = row("limited").limits(format!("1/h burst {BURST}"));
    Export::new(keys.chain([limited]).map(|row| row.plan(format!("v{version}"))))
}

fn version(answer: &Decision) -> Option<usize> {
    answer.plan()?.strip_prefix('v')?.parse().ok()
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Life<'_> {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// `None`: the daemon has been killed.
    fn send(&self, command: &Command) -> Option<Reply> {
        send_command_within(&self.daemon.admin_socket(), command, TIMEOUT).ok()
    }

    /// Replaces and reloads exports, and revokes keys.
    fn change(&self) {
        while !self.is_over() {
            let version = {
                let mut known = lock(self.known);
                known.published += 1;
                known.published
            };
            replace_export(&self.daemon.setup.source(), export(version));
            lock(self.known).is_source_bad = false;
            let reply = self.send(&Command::Reload { force: false });
            if let Some(outcome) = reply.and_then(|reply| reply.reload) {
                assert!(outcome.accepted, "{:?}", outcome.error);
                let mut known = lock(self.known);
                (known.acknowledged, known.is_without_keys) = (version, false);
            }
            for _ in 0..3 {
                self.revoke_next();
            }
            let status = self.send(&Command::Status).and_then(|reply| reply.status);
            if status.is_some_and(|status| {
                status.last_good.is_some_and(|kept| kept.generation == status.table_generation)
            }) {
                lock(self.known).saved = version;
            }
        }
    }

    fn revoke_next(&self) {
        let key = {
            let mut known = lock(self.known);
            known.requested += 1;
            known.requested - 1
        };
        if key >= KEYS {
            return;
        }
        let reply = self.send(&Command::Revoke(key_target(&format!("k{key}"))));
        if let Some(revocation) = reply.and_then(|reply| reply.revocation) {
            assert!(revocation.durable, "{:?}", revocation.not_durable);
            lock(self.known).revoked.insert(key);
        }
    }

    /// Verifies keys that are being revoked, and the limited key.
    fn verify(&self, mut random: Random) {
        let mut client = self.daemon.client();
        while !self.is_over() {
            let (acknowledged, key, is_revoked, may_be_not_ready) = {
                let known = lock(self.known);
                let key = random.below((known.requested + 10).min(KEYS));
                (known.acknowledged, key, known.revoked.contains(&key), known.is_without_keys)
            };
            let Ok(answer) = client.verify(&Request::new(&format!("k{key}"))) else { continue };
            if may_be_not_ready && answer.verdict().name() == "NOT_READY" {
                continue;
            }
            self.check_export(&answer, acknowledged);
            let verdict = answer.verdict().name();
            assert!(!is_revoked || verdict == "REVOKED", "k{key}: {verdict}");
            if let Ok(answer) = client.verify(&Request::new("limited")) {
                self.check_export(&answer, acknowledged);
                if answer.verdict().name() == "ALLOWED" {
                    lock(self.known).admitted.push(Instant::now());
                }
            }
        }
    }

    /// A generation has one export. An export older than the one that was acknowledged before the
    /// request is in force no more.
    fn check_export(&self, answer: &Decision, acknowledged: usize) {
        let version = version(answer).expect("a known key");
        assert!(version >= acknowledged, "export {version} after {acknowledged} was acknowledged");
        let mut known = lock(self.known);
        let of_generation = *known.generations.entry(answer.generation()).or_insert(version);
        assert_eq!(of_generation, version, "generation {} has two exports", answer.generation());
    }
}

/// The daemon was started again, perhaps with a bad source.
fn check_restart(daemon: &Daemon, known: &mut Known) {
    let status = daemon.status();
    assert!(status.unwritten.is_empty(), "{:?}", status.unwritten);
    if known.is_source_bad && known.saved < known.published && !status.ready {
        let unusable = status.last_good.and_then(|last_good| last_good.unusable);
        let is_superseded = unusable.as_ref().is_some_and(|why| why.contains("took access away"));
        // Before the first save there are no keys to serve.
        assert!(is_superseded || known.saved == 0, "{unusable:?}: {}", daemon.log());
        known.is_without_keys = true;
        known.starts_without_keys += 1;
        return;
    }
    assert!(status.ready, "{}", daemon.log());
    let mut client = daemon.client();
    let served = client.verify(&Request::new("limited")).expect("an answer");
    let served_version = version(&served).expect("a known key");
    known.was_limited_after_a_start |= served.verdict() == Verdict::RateLimited;
    // With a bad source, at least what was acknowledged: every export takes something away.
    let expected = if known.is_source_bad {
        known.acknowledged.max(known.saved)..=known.published
    } else {
        known.published..=known.published
    };
    assert!(expected.contains(&served_version), "export {served_version}, not {expected:?}");
    let of_generation = *known.generations.entry(served.generation()).or_insert(served_version);
    assert_eq!(of_generation, served_version, "generation {} has two exports", served.generation());
    known.acknowledged = served_version;

    let keys: Vec<String> = known.revoked.iter().map(|key| format!("k{key}")).collect();
    for keys in keys.chunks(500) {
        let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
        for (key, answer) in keys.iter().zip(client.verify_many(&requests)) {
            assert_eq!(answer.expect("an answer").verdict().name(), "REVOKED", "{key}");
        }
    }
}

#[test]
fn everything_acknowledged_is_in_force_after_kills_at_random_moments() {
    let kills = dose(12, 500);
    let mut daemon = Setup::text(export(0)).config(CONFIG).start();
    let known = Mutex::new(Known::default());
    let start = Instant::now();
    let mut random = Random::new(1);
    // ALLOWEDs of the limited key that were looked at, and those of them that came too late to be in a
    // save before their daemon was killed.
    let (mut counted, mut unsaved) = (0, 0);
    // On a busy machine less happens between two kills, so there may be more of them.
    for kill in 0..4 * kills {
        let life = Life { daemon: &daemon, known: &known, stop: AtomicBool::new(false) };
        let lifetime = if kill % 6 == 3 { LONG_LIFE } else { SHORT_LIFE };
        let lifetime = Duration::from_millis((lifetime.start + random.below(lifetime.len())) as u64);
        let seeds = [random.number(), random.number()];
        let killed = thread::scope(|scope| {
            let _end = SetOnDrop(&life.stop);
            scope.spawn(|| life.change());
            for seed in seeds {
                let life = &life;
                scope.spawn(move || life.verify(Random::new(seed)));
            }
            thread::sleep(lifetime);
            let killed = Instant::now();
            daemon.signal(Signal::KILL);
            killed
        });
        if random.below(4) == 0 {
            daemon.spoil_source();
            lock(&known).is_source_bad = true;
        }
        unsaved += {
            let admitted = &lock(&known).admitted[counted..];
            let may_be_unsaved = |at: &&Instant| **at + SAVE_INTERVAL + SAVE_TOLERANCE >= killed;
            counted += admitted.len();
            admitted.iter().filter(may_be_unsaved).count()
        };
        daemon = daemon.kill_and_restart();
        let mut known = lock(&known);
        check_restart(&daemon, &mut known);
        let has_saved = counted > unsaved || known.was_limited_after_a_start;
        let has_happened = known.revoked.len() > kills / 4 && has_saved;
        if kill + 1 >= kills && has_happened {
            break;
        }
    }
    let known = lock(&known);
    let saved = known.admitted.len() - unsaved;
    let refilled = start.elapsed().as_secs() as usize / 3_600 + 1;
    assert!(saved <= BURST + refilled, "{saved} requests were admitted that a save must have recorded");
    eprintln!(
        "{kills} kills: {} exports, {} starts without keys, {} revocations, {} requests of a limit admitted, \
         {unsaved} of them unsaved",
        known.published,
        known.starts_without_keys,
        known.revoked.len(),
        known.admitted.len()
    );
    let has_saved = saved > 0 || known.was_limited_after_a_start;
    assert!(known.revoked.len() > kills / 4 && has_saved, "too little happened between the kills");
}
