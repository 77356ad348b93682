//! What the connections of one worker share: buffers, timers, the current snapshot, the limiter, a
//! clock and metrics.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::connection::buffers::Buffers;
use crate::connection::busy_poll::SpinPermits;
use crate::connection::counters::Counters;
use crate::connection::in_flight::{EpochTracker, InFlight};
use crate::connection::respond::{Permissions, Progress, StopReason, Terms, respond};
use crate::connection::sample::Sampler;
use crate::connection::shutdown::Shutdown;
use crate::connection::timer_fd::TimerFd;
use crate::connection::timers::Timers;
use crate::connection::turns::{IdleCount, Turns};
use crate::publish::{Published, Subscription};
use crate::usage::UsageLog;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::Limiter;
use keyward_engine::verify::Verifier;

/// How long events stay in a usage log that is not full.
const USAGE_FLUSH_DELAY: Duration = Duration::from_secs(1);

/// Bytes of stack below the frame of `respond` that verifying a batch can have used: the tables of
/// a batch (15 KiB), the requests' frames above them and the hasher's below, with a margin.
const STACK_BYTES: usize = 48 * 1024;

/// How long peers may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The time after which a connection is closed because it was silent, its frame is still
    /// incomplete, or the peer has read none of its answers. `None`: unlimited.
    pub idle: Option<Duration>,
    /// How long a reload or a revocation waits for peers to read answers that were made before it.
    /// After that their connections are closed.
    pub unsent_answers: Duration,
    /// How long a connection spins for the next request before it sleeps. Zero disables busy
    /// polling.
    pub busy_poll: Duration,
}

/// Where a worker counts its answers.
pub struct Metrics {
    /// Totals by verdict.
    pub counters: Arc<Counters>,
    /// Events by key.
    pub usage: UsageLog,
}

/// What requests are decided by.
pub struct VerifyInputs {
    /// The snapshots, as they are published.
    pub subscription: Subscription,
    /// The buckets.
    pub limiter: Arc<Limiter>,
    /// The global policy until there is a snapshot.
    pub global_policy: Arc<GlobalPolicy>,
    /// The time of the decisions.
    pub clock: Clock,
}

/// The state that the connections of one worker share.
pub struct WorkerContext {
    pub(super) buffers: RefCell<Buffers>,
    pub(super) counters: Arc<Counters>,
    pub(super) in_flight: Rc<InFlight>,
    pub(super) timeouts: Timeouts,
    pub(super) sampler: Sampler,
    pub(super) spin_permits: SpinPermits,
    pub(super) timers: Rc<Timers>,
    pub(super) turns: Rc<Turns>,
    subscription: RefCell<Subscription>,
    usage: RefCell<UsageLog>,
    limiter: Arc<Limiter>,
    /// The global policy until there is a snapshot. A snapshot carries its own.
    global_policy: Arc<GlobalPolicy>,
    clock: Clock,
    shutdown: Shutdown,
}

impl WorkerContext {
    /// The context of a worker. To be created on the worker's thread.
    pub fn new(
        VerifyInputs { subscription, limiter, global_policy, clock }: VerifyInputs,
        Metrics { counters, usage }: Metrics,
        timeouts: Timeouts,
        shutdown: Shutdown,
        idle_count: IdleCount,
    ) -> Rc<Self> {
        Rc::new(Self {
            buffers: RefCell::new(Buffers::new()),
            counters,
            in_flight: Rc::default(),
            timeouts,
            sampler: Sampler::new(),
            spin_permits: SpinPermits::default(),
            timers: Timers::new(),
            turns: Turns::new(idle_count),
            subscription: RefCell::new(subscription),
            usage: RefCell::new(usage),
            limiter,
            global_policy,
            clock,
            shutdown,
        })
    }

    /// Answers the requests at the front of `input`. Loads the snapshot and reads the clock once
    /// for all of them. Also returns the epoch of the answers.
    pub(super) fn respond(
        &self,
        permissions: Permissions,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> (Progress, u64) {
        let answered = self.respond_in_own_frame(permissions, input, output);
        if answered.0.had_raw_key {
            wipe_stack();
        }
        answered
    }

    // Not inlined: its frame holds copies of raw keys, and the caller wipes what is below its own frame.
    #[inline(never)]
    fn respond_in_own_frame(
        &self,
        permissions: Permissions,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> (Progress, u64) {
        let mut subscription = self.subscription.borrow_mut();
        // Read before any state whose change advances the epoch.
        let epoch = subscription.epoch();
        if self.shutdown.is_closed() {
            let progress = Progress {
                consumed: input.len(),
                requests: 0,
                stop: StopReason::ShutDown,
                had_raw_key: true,
            };
            return (progress, epoch);
        }
        let published = subscription.load_published();
        let view = published.map(Published::view);
        let global_policy = view.map_or(&*self.global_policy, |view| view.snapshot.global_policy());
        let now = self.clock.now();
        let mut usage = self.usage.borrow_mut();
        usage.begin(published.map(Published::snapshot), now.unix);
        let verifier = Verifier { view, limiter: &self.limiter, global_policy, now };
        let idle_ms = self.timeouts.idle.unwrap_or_default().as_millis();
        let terms = Terms { idle_timeout_ms: u32::try_from(idle_ms).unwrap_or(u32::MAX), permissions };
        let progress = respond(&verifier, terms, input, output, &self.counters, &mut usage);
        usage.notify();
        (progress, epoch)
    }

    /// Fires the connections' timers for as long as the worker runs.
    pub async fn run_timers(self: Rc<Self>) {
        Rc::clone(&self.timers).run(TimerFd::new(), self.shutdown.phase.clone()).await;
    }

    /// Lets the connections take turns for as long as the worker runs.
    pub async fn run_turns(self: Rc<Self>) {
        Rc::clone(&self.turns).run().await;
    }

    /// Follows the epochs until the publisher is gone. Takes a new snapshot at once, so that an
    /// idle worker does not keep an old one alive. Passes an epoch once no answer of an older one
    /// is in flight.
    pub async fn follow_epochs(self: Rc<Self>) {
        let (mut announced, passed) = {
            let subscription = self.subscription.borrow();
            (subscription.announced.clone(), subscription.passed.clone())
        };
        let mut epochs = EpochTracker::new(Rc::clone(&self.in_flight), self.timeouts.unsent_answers);
        loop {
            tokio::select! {
                changed = announced.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let epoch = *announced.borrow_and_update();
                    let table_generation = self.refresh_snapshot();
                    let round = *self.usage.borrow().rounds().borrow();
                    self.usage.borrow_mut().flush_round(round, table_generation);
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

    /// Flushes the usage log for as long as the daemon runs: [`USAGE_FLUSH_DELAY`] after its first
    /// event, and in each round that the usage thread starts.
    pub async fn flush_usage(self: Rc<Self>) {
        let (wakeup, mut rounds) = {
            let usage = self.usage.borrow();
            (usage.wakeup(), usage.rounds())
        };
        let timer = TimerFd::new();
        let mut flush_at = None;
        loop {
            let wakeup = async {
                match flush_at {
                    Some(deadline) => timer.sleep_until(deadline).await,
                    None => wakeup.notified().await,
                }
            };
            tokio::select! {
                () = wakeup => {
                    if flush_at.take().is_some() {
                        self.usage.borrow_mut().flush();
                    } else {
                        flush_at = Some(Instant::now() + USAGE_FLUSH_DELAY);
                    }
                }
                changed = rounds.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let round = *rounds.borrow_and_update();
                    let table_generation = self.refresh_snapshot();
                    self.usage.borrow_mut().flush_round(round, table_generation);
                }
            }
        }
    }

    /// Takes the current snapshot, and returns its table generation.
    fn refresh_snapshot(&self) -> u64 {
        self.subscription.borrow_mut().load().map_or(0, |view| view.snapshot.table_generation())
    }
}

/// Overwrites the stack that earlier calls have left behind. SHA-256 works on copies of the key
/// there, and wipes only the last of them itself.
#[inline(never)]
fn wipe_stack() {
    let mut zeros = [0u8; STACK_BYTES];
    std::hint::black_box(&mut zeros);
}
