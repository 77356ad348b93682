//! What the connections of one worker share: its buffers, its view of the snapshot, its clock and its counters.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::connection::bell::Bell;
use crate::connection::busy::Places;
use crate::connection::counters::Counters;
use crate::connection::in_flight::{Epochs, InFlight};
use crate::connection::respond::{Greeting, Progress, Stop, respond};
use crate::connection::timer::Timer;
use crate::limiter::Limiter;
use crate::publish::Subscription;
use crate::rules::GlobalPolicy;
use crate::snapshot::Snapshot;
use crate::usage::UsageLog;
use crate::verify::Verifier;

/// Bytes read at once, at most: some 680 ordinary requests. More would save no system calls that matter, and would
/// leave the second-level cache.
pub const INPUT: usize = 32 * 1024;

/// How long a log that is not full is kept.
const USAGE_TICK: Duration = Duration::from_secs(1);

/// How long peers may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Silence after which a connection ends, and after which answers that are not read are given up; `None`: never.
    pub idle: Option<Duration>,
    /// How long a reload or a revocation waits for peers to read answers that were made before it, before their
    /// connections are ended.
    pub overdue: Duration,
    /// How long a connection that has been answered looks for the next request before it sleeps; zero: not at all.
    pub busy_poll: Duration,
}

/// Where a worker counts what it does.
pub struct Counted {
    /// How often, by verdict.
    pub counters: Arc<Counters>,
    /// For whom.
    pub usage: UsageLog,
}

/// How the daemon ends.
#[derive(Clone)]
pub struct Stopping {
    /// Turns true when connections are to answer what has arrived, and end.
    pub draining: watch::Receiver<bool>,
    /// Nothing is answered any more, whatever arrives: what was charged is being saved. To be set before an epoch ends.
    pub closed: Arc<AtomicBool>,
}

/// One worker's.
pub struct Shared {
    pub(super) buffers: RefCell<Buffers>,
    pub(super) counters: Arc<Counters>,
    pub(super) in_flight: Rc<InFlight>,
    pub(super) timeouts: Timeouts,
    pub(super) places: Places,
    pub(super) bell: Rc<Bell>,
    subscription: RefCell<Subscription>,
    usage: RefCell<UsageLog>,
    limiter: Arc<Limiter>,
    /// Until there is a snapshot, which has its own.
    global_policy: Arc<GlobalPolicy>,
    clock: Clock,
    stopping: Stopping,
}

/// The buffers that a connection has between a read and the write of its answers.
pub(super) struct Buffers {
    input: Box<[u8]>,
    output: Vec<u8>,
}

impl Buffers {
    /// Where to read to, behind the `kept` bytes that a connection has left over.
    pub(super) fn space_after(&mut self, kept: usize) -> &mut [u8] {
        self.input.get_mut(kept..).unwrap_or_default()
    }

    /// The input that a connection has: what it kept, which is moved here, and `new_bytes` after it; and an empty output.
    pub(super) fn filled(
        &mut self,
        kept: &mut Zeroizing<Vec<u8>>,
        new_bytes: usize,
    ) -> (&mut [u8], &mut Vec<u8>) {
        let filled = (kept.len() + new_bytes).min(self.input.len());
        if let Some(front) = self.input.get_mut(..kept.len()) {
            front.copy_from_slice(kept);
        }
        // Dropping what was kept wipes it.
        *kept = Zeroizing::default();
        self.output.clear();
        (self.input.get_mut(..filled).unwrap_or_default(), &mut self.output)
    }
}

impl Shared {
    /// A worker's own, made on its thread.
    pub fn new(
        subscription: Subscription,
        limiter: Arc<Limiter>,
        global_policy: Arc<GlobalPolicy>,
        clock: Clock,
        Counted { counters, usage }: Counted,
        timeouts: Timeouts,
        stopping: Stopping,
    ) -> Rc<Self> {
        Rc::new(Self {
            buffers: RefCell::new(Buffers {
                input: vec![0; INPUT].into(),
                output: Vec::with_capacity(2 * INPUT),
            }),
            counters,
            in_flight: Rc::default(),
            timeouts,
            places: Places::default(),
            bell: Bell::new(),
            subscription: RefCell::new(subscription),
            usage: RefCell::new(usage),
            limiter,
            global_policy,
            clock,
            stopping,
        })
    }

    /// Answers the requests at the front of `input`: the snapshot is loaded and the clock read once for all of them. Also
    /// returns the epoch that they belong to.
    #[inline(never)]
    pub(super) fn respond(&self, input: &[u8], output: &mut Vec<u8>) -> (Progress, u64) {
        let mut subscription = self.subscription.borrow_mut();
        // Before anything is looked at that a change may be made to.
        let epoch = subscription.epoch();
        if self.stopping.closed.load(Ordering::Relaxed) {
            let progress = Progress { consumed: input.len(), stop: Stop::Close, had_raw_key: true };
            return (progress, epoch);
        }
        let shared = subscription.load_arc();
        let snapshot = shared.map(|snapshot| &**snapshot);
        let global_policy = snapshot.map_or(&*self.global_policy, crate::snapshot::Snapshot::global_policy);
        let now = self.clock.now();
        let mut usage = self.usage.borrow_mut();
        usage.begin(shared, now.unix);
        let verifier = Verifier { snapshot, limiter: &self.limiter, global_policy, now };
        let idle = self.timeouts.idle.unwrap_or_default().as_millis();
        let greeting = Greeting { idle_timeout_ms: u32::try_from(idle).unwrap_or(u32::MAX) };
        let progress = respond(&verifier, greeting, input, output, &self.counters, &mut usage);
        usage.notify();
        if progress.had_raw_key {
            overwrite_stack();
        }
        (progress, epoch)
    }

    /// Wakes connections at their alarms, and when the daemon shuts down, for as long as it runs.
    pub async fn ring(self: Rc<Self>) {
        Rc::clone(&self.bell).ring(self.stopping.draining.clone()).await;
    }

    /// Follows the epochs for as long as there are any: takes a new snapshot at once, so that an idle worker does not
    /// keep an old one alive, and passes the epoch once no answer of an older one is waiting for its peer.
    pub async fn follow(self: Rc<Self>) {
        let (mut announced, passed) = {
            let subscription = self.subscription.borrow();
            (subscription.announced.clone(), subscription.passed.clone())
        };
        let mut epochs = Epochs::new(Rc::clone(&self.in_flight), self.timeouts.overdue);
        loop {
            tokio::select! {
                changed = announced.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let epoch = *announced.borrow_and_update();
                    let generation = self.load();
                    let round = *self.usage.borrow().rounds().borrow();
                    self.usage.borrow_mut().flush_round(round, generation);
                    epochs.begin(epoch);
                }
                () = epochs.advance() => {}
            }
            passed.send_if_modified(|passed| {
                let before = std::mem::replace(passed, epochs.passed().max(*passed));
                before != *passed
            });
        }
    }
}

impl Shared {
    /// Takes the current snapshot, and returns its generation.
    fn load(&self) -> u64 {
        self.subscription.borrow_mut().load().map_or(0, Snapshot::generation)
    }

    /// Hands usage over for as long as the daemon runs: a while after the first event of a log, so that few events do not
    /// lie there for long, and in rounds.
    pub async fn account(self: Rc<Self>) {
        let (wakeup, mut rounds) = {
            let usage = self.usage.borrow();
            (usage.wakeup(), usage.rounds())
        };
        let timer = Timer::new();
        let mut due = None;
        loop {
            let tick = async {
                match due {
                    Some(due) => timer.sleep_until(due).await,
                    None => wakeup.notified().await,
                }
            };
            tokio::select! {
                () = tick => {
                    if due.take().is_some() {
                        self.usage.borrow_mut().flush();
                    } else {
                        due = Some(Instant::now() + USAGE_TICK);
                    }
                }
                changed = rounds.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let round = *rounds.borrow_and_update();
                    let generation = self.load();
                    self.usage.borrow_mut().flush_round(round, generation);
                }
            }
        }
    }
}

/// Bytes of stack below `respond`'s frame that verifying a batch can have used: its tables of requests and of what is known of
/// them (15 KiB), the requests' frames above them and the hasher's below, with room to spare.
const STACK: usize = 48 * 1024;

/// Overwrites the stack that the functions called before have left: SHA-256 works on copies of the key there, and what it
/// wipes is only the last of them.
#[inline(never)]
fn overwrite_stack() {
    let mut zeros = [0u8; STACK];
    std::hint::black_box(&mut zeros);
}
