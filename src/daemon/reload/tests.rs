//! Requests that arrive during a reload. The test acts as the worker that the reload waits for:
//! until it passes the epoch, everything has been read and nothing acknowledged.

use std::fs;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Instant;

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::audit::Peer;
use crate::balances::{BalanceRenewal, PendingLoss, RENEWAL_INTERVAL};
use crate::publish::{Publisher, Subscription};
use keyward_engine::snapshot::Snapshot;
use keyward_source::{ColumnMapping, Format};
use keyward_state::disk::trace::Trace;
use keyward_state::{Generations, Rotation, StateDir};

mod renewal;
mod retired;
mod time_zone;

/// How long a test waits for a condition.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long a test waits for an acknowledgement that must not come.
const EARLY_TIMEOUT: Duration = Duration::from_millis(250);

/// A reload thread and its only worker.
struct Fixture {
    directory: TempDir,
    trigger: SyncSender<Trigger>,
    worker: Subscription,
    limiter: Arc<Limiter>,
    runtime: tokio::runtime::Runtime,
    /// The settings of the configuration.
    configured: Arc<Mutex<Settings>>,
    allocator: Arc<Mutex<SlotAllocator>>,
    revocations: Arc<Revocations>,
    thread: thread::JoinHandle<()>,
}

type Answer<T = Arc<Outcome>> = oneshot::Receiver<T>;

impl Fixture {
    /// An idle reload thread that has loaded one key.
    fn new() -> Self {
        Self::with_poll(Duration::from_secs(3600))
    }

    fn with_poll(poll: Duration) -> Self {
        Self::with_generations(poll, |_| Generations::open(None, 0))
    }

    fn with_generations(poll: Duration, open: impl FnOnce(StateDir) -> Generations) -> Self {
        Self::start(poll, RENEWAL_INTERVAL, open)
    }

    fn start(poll: Duration, renewal: Duration, open: impl FnOnce(StateDir) -> Generations) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys.csv");
        replace(&path, 1);
        let settings = Settings {
            source: SourceFile {
                path: path.into(),
                format: Format::Csv,
                mapping: ColumnMapping::default(),
                plans: Arc::default(),
                on_bad_row: BadRowPolicy::Refuse,
            },
            policy: ReloadPolicy {
                poll,
                settle: Duration::ZERO,
                tolerance: Tolerance { max_shrink: 0.5, max_reactivated: 0.75, max_loosened: 0.75 },
                apply_takeaways: false,
            },
            global_policy: Arc::default(),
            revocation_retention: Retention::DEFAULT,
        };
        let configured = Arc::new(Mutex::new(settings.clone()));
        let (publisher, mut workers) = Publisher::new(1);
        let state = StateDir::open(directory.path(), true).expect("opens").expect("is there");
        let rotation = Rotation { max_file_size: 1 << 20, keep: 1 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let audit = Audit::open(&state, rotation).expect("opens");
        let revocations = crate::revocation::load(None).expect("none");
        let revocations = Revocations::start(revocations, &publisher, open(state)).expect("no thread");
        let (revocations, limiter) = (Arc::new(revocations), Arc::new(Limiter::new()));
        let allocator = Arc::<Mutex<SlotAllocator>>::default();
        let reloader = Reloader {
            load_config: config_loader(Arc::clone(&configured)),
            revocations: Arc::clone(&revocations),
            publisher,
            limiter: Arc::clone(&limiter),
            allocator: Arc::clone(&allocator),
            clock: Clock::new(),
            history: History::new(&settings.source.path),
            audit,
            last_good: None,
            pending_loss: PendingLoss::default(),
            renewal: BalanceRenewal::every(renewal),
            runtime: runtime.handle().clone(),
            settings,
        };
        let (trigger, received) = trigger_channel();
        // The watch's queue is not read: only the test sends triggers.
        let (watch, _) = trigger_channel();
        let (notify_loaded, loaded) = oneshot::channel();
        let thread = thread::spawn(move || reloader.run(watch, &received, || _ = notify_loaded.send(())));
        let worker = workers.remove(0);
        let fixture =
            Self { directory, trigger, worker, runtime, configured, limiter, allocator, revocations, thread };
        fixture.pass(1);
        fixture.wait(loaded).expect("loaded");
        fixture
    }

    fn source(&self) -> std::path::PathBuf {
        self.directory.path().join("keys.csv")
    }

    fn request(&self, force: bool, pid: i32) -> Answer {
        let (reply, answer) = oneshot::channel();
        let peer = Peer { uid: 7, pid: Some(pid) };
        self.trigger.send(Trigger::Command { force, peer, reply }).expect("sent");
        answer
    }

    /// Waits for `future`.
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let with_timeout = async { tokio::time::timeout(TIMEOUT, future).await };
        self.runtime.block_on(with_timeout).expect("in time")
    }

    /// Waits until a reload has advanced the epoch to `epoch`.
    fn wait_for_epoch(&self, epoch: u64) {
        let mut announced = self.worker.announced.clone();
        self.wait(announced.wait_for(|now| *now == epoch)).expect("announced");
    }

    fn pass(&self, epoch: u64) {
        self.wait_for_epoch(epoch);
        self.worker.passed.send_replace(epoch);
    }

    /// The outcome of an accepted reload, and its generation.
    fn answer(&self, answer: Answer) -> (Arc<Outcome>, u64) {
        let outcome = self.wait(answer).expect("an answer");
        let generation = outcome.result.as_ref().expect("accepted").generation;
        (outcome, generation)
    }

    /// Ends the thread. Returns the trigger and the processes of each reload in the audit trail.
    fn trail(self) -> Vec<(String, Vec<i64>)> {
        drop(self.trigger);
        self.thread.join().expect("ends");
        let trail = fs::read_to_string(self.directory.path().join("audit.jsonl")).expect("a trail");
        let lines = trail.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let reloads = lines.filter(|line| line["event"] == "reload");
        let described = reloads.map(|line| {
            let peers = line["peers"].as_array().cloned().unwrap_or_default();
            let pids = peers.iter().filter_map(|peer| peer["pid"].as_i64()).collect();
            (line["trigger"].as_str().expect("one").to_owned(), pids)
        });
        described.collect()
    }
}

fn config_loader(configured: Arc<Mutex<Settings>>) -> ConfigLoader {
    Box::new(move |_| Ok(configured.lock().expect("not poisoned").clone()))
}

/// Replaces the export at `path` by one with `keys` keys.
fn replace(path: &Path, keys: u32) {
    let rows: String = (0..keys).map(|number| format!("{number:064x},k{number}\n")).collect();
    replace_by(path, &format!("key_hash,key_id\n{rows}"));
}

fn replace_by(path: &Path, export: &str) {
    let new = path.with_extension("new");
    fs::write(&new, export).expect("writes");
    fs::rename(&new, path).expect("renames");
}

fn trail(of: &[(&str, &[i64])]) -> Vec<(String, Vec<i64>)> {
    let start = [("start", &[][..])];
    start.iter().chain(of).map(|(trigger, pids)| ((*trigger).to_owned(), pids.to_vec())).collect()
}

#[test]
fn request_during_a_reload_shares_its_result() {
    let fixture = Fixture::new();
    let first = fixture.request(false, 1);
    fixture.wait_for_epoch(2);
    let second = fixture.request(false, 2);
    fixture.pass(2);
    let (first, second) = (fixture.answer(first).0, fixture.answer(second).0);
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(fixture.trail(), trail(&[("command", &[1, 2])]));
}

#[test]
fn request_shares_the_result_of_a_reload_by_the_watch() {
    let fixture = Fixture::new();
    replace(&fixture.source(), 2);
    fixture.trigger.send(Trigger::Changed).expect("sent");
    fixture.wait_for_epoch(2);
    let asked = fixture.request(false, 1);
    fixture.pass(2);
    assert_eq!(fixture.answer(asked).1, 2);
    assert_eq!(fixture.trail(), trail(&[("command", &[1])]));
}

#[test]
fn request_after_a_change_of_the_file_causes_another_reload() {
    let fixture = Fixture::new();
    let first = fixture.request(false, 1);
    fixture.wait_for_epoch(2);
    replace(&fixture.source(), 3);
    let second = fixture.request(false, 2);
    fixture.pass(2);
    fixture.pass(3);
    assert_eq!((fixture.answer(first).1, fixture.answer(second).1), (2, 3));
    assert_eq!(fixture.trail(), trail(&[("command", &[1]), ("command", &[2])]));
}

#[test]
fn request_after_a_change_of_the_configuration_causes_another_reload() {
    for by_watch in [false, true] {
        let fixture = Fixture::new();
        let first = if by_watch {
            replace(&fixture.source(), 2);
            fixture.trigger.send(Trigger::Changed).expect("sent");
            None
        } else {
            Some(fixture.request(false, 1))
        };
        fixture.wait_for_epoch(2);
        fixture.configured.lock().expect("not poisoned").policy.tolerance.max_shrink = 0.25;
        let second = fixture.request(false, 2);
        fixture.pass(2);
        fixture.pass(3);
        assert_eq!(fixture.answer(second).1, 3);
        let expected = first.map_or(("change", &[][..]), |first| {
            assert_eq!(fixture.answer(first).1, 2);
            ("command", &[1])
        });
        assert_eq!(fixture.trail(), trail(&[expected, ("command", &[2])]));
    }
}

#[test]
fn triggers_that_share_no_result_are_handled_in_turn() {
    let fixture = Fixture::new();
    let first = fixture.request(false, 1);
    fixture.wait_for_epoch(2);
    let (reply, checked) = oneshot::channel();
    fixture.trigger.send(Trigger::Check(CheckRequest { source: None, reply })).expect("sent");
    let forced = fixture.request(true, 2);
    fixture.trigger.send(Trigger::Signal).expect("sent");
    let joined = fixture.request(false, 3);
    for epoch in 2..5 {
        fixture.pass(epoch);
    }
    assert_eq!((fixture.answer(first).1, fixture.answer(joined).1, fixture.answer(forced).1), (2, 2, 4));
    let preview = fixture.wait(checked).expect("an answer");
    assert_eq!(preview.generation, 4, "after all reloads");
    assert_eq!(fixture.trail(), trail(&[("command", &[1, 3]), ("signal", &[]), ("command", &[2])]));
}

#[test]
fn unforced_request_does_not_share_a_forced_reload() {
    let fixture = Fixture::new();
    let forced = fixture.request(true, 1);
    fixture.wait_for_epoch(2);
    let asked = fixture.request(false, 2);
    fixture.pass(2);
    fixture.pass(3);
    assert_eq!((fixture.answer(forced).1, fixture.answer(asked).1), (2, 3));
    assert_eq!(fixture.trail(), trail(&[("command", &[1]), ("command", &[2])]));
}

#[test]
fn force_does_not_apply_to_an_unforced_request_in_the_same_queue() {
    let fixture = Fixture::new();
    replace(&fixture.source(), 10);
    let first = fixture.request(false, 1);
    fixture.wait_for_epoch(2);
    // Both are queued at the same time, for a source that the guard refuses.
    replace(&fixture.source(), 2);
    let (plain, forced) = (fixture.request(false, 2), fixture.request(true, 3));
    fixture.pass(2);
    assert_eq!(fixture.answer(first).1, 2);
    let refused = fixture.wait(plain).expect("an answer");
    assert!(matches!(refused.result, Err(ReloadError::Guarded { .. })), "{:?}", refused.result);
    fixture.pass(3);
    assert_eq!(fixture.answer(forced).1, 3);
    assert_eq!(fixture.trail(), trail(&[("command", &[1]), ("command", &[2]), ("command", &[3])]));
}

/// Acknowledged means in force: while a worker may still write an answer of the previous snapshot,
/// the new one is not acknowledged.
#[test]
fn reload_is_not_acknowledged_before_every_worker_has_passed_the_epoch() {
    for force in [false, true] {
        let fixture = Fixture::new();
        let mut answer = fixture.request(force, 1);
        fixture.wait_for_epoch(2);
        let early = async { tokio::time::timeout(EARLY_TIMEOUT, &mut answer).await };
        assert!(fixture.runtime.block_on(early).is_err(), "acknowledged, force: {force}");
        fixture.pass(2);
        assert_eq!(fixture.answer(answer).1, 2);
    }
}

/// The same for the takeaways of a refused source.
#[test]
fn takeaways_are_not_acknowledged_before_every_worker_has_passed_the_epoch() {
    let fixture = Fixture::new();
    fixture.configured.lock().expect("not poisoned").policy.apply_takeaways = true;
    let (revoked, bad) = (format!("{:064x},k0,revoked", 0), "bad,k1,active");
    replace_by(&fixture.source(), &format!("key_hash,key_id,status\n{revoked}\n{bad}\n"));
    let mut answer = fixture.request(false, 1);
    fixture.wait_for_epoch(2);
    let early = async { tokio::time::timeout(EARLY_TIMEOUT, &mut answer).await };
    assert!(fixture.runtime.block_on(early).is_err(), "acknowledged");
    fixture.pass(2);
    let outcome = fixture.wait(answer).expect("an answer");
    assert!(outcome.result.is_err());
    assert_eq!(outcome.takeaways.as_ref().map(|takeaways| takeaways.total), Some(1));
}

#[test]
fn acknowledged_outcome_is_durable_in_the_audit_trail() {
    let fixture = Fixture::new();
    let trace = Trace::of(fixture.directory.path());
    for keys in [2, 0] {
        replace(&fixture.source(), keys);
        let answer = fixture.request(false, 1);
        if keys > 0 {
            fixture.pass(2);
        }
        let outcome = fixture.wait(answer).expect("an answer");
        assert_eq!(outcome.result.is_ok(), keys > 0);
        assert!(!trace.calls().is_empty());
        assert_eq!(trace.volatile(), [""; 0]);
    }
}

/// tests/integration/refused_configuration.rs tests the other settings. It cannot distinguish a
/// poll from the watch.
#[test]
fn refused_configuration_does_not_change_the_poll_interval() {
    let fixture = Fixture::with_poll(Duration::from_millis(50));
    // Refused: there are no keys in it.
    replace(&fixture.source(), 0);
    fixture.configured.lock().expect("not poisoned").policy.poll = Duration::from_secs(3600);
    assert!(fixture.wait(fixture.request(false, 1)).expect("an answer").result.is_err());
    replace(&fixture.source(), 2);
    fixture.pass(2);
}

/// Like a monitor that checks the daemon more often than `source.poll`.
#[test]
fn frequent_checks_do_not_postpone_the_retry_of_a_failed_write() {
    let mut file = None;
    let fixture = Fixture::with_generations(Duration::from_millis(500), |state| {
        // A directory of that name cannot be replaced by a file.
        let path = file.insert(state.path("generation"));
        let generations = Generations::open(Some(Arc::new(state)), 0);
        fs::create_dir(path).expect("a directory");
        generations
    });
    let file = file.expect("a path");
    fs::remove_dir(&file).expect("removes");
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < TIMEOUT, "not retried");
        let (reply, checked) = oneshot::channel();
        fixture.trigger.send(Trigger::Check(CheckRequest { source: None, reply })).expect("sent");
        let _ = fixture.wait(checked).expect("an answer");
    }
}

/// The configuration's own guard refuses the source.
#[test]
fn refused_configuration_does_not_change_the_guard() {
    let fixture = Fixture::new();
    replace(&fixture.source(), 10);
    let answer = fixture.request(false, 1);
    fixture.pass(2);
    assert_eq!(fixture.answer(answer).1, 2);
    fixture.configured.lock().expect("not poisoned").policy.tolerance.max_shrink = 0.0;
    replace(&fixture.source(), 9);
    assert!(fixture.wait(fixture.request(false, 1)).expect("an answer").result.is_err());
    replace(&fixture.source(), 8);
    fixture.trigger.send(Trigger::Changed).expect("sent");
    fixture.pass(3);
}
