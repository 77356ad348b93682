//! The simulated clock of the model test (`tests/model`).
//!
//! The clock stands still, until the test [advances](advance) it. A thread that waits with a timeout
//! registers its deadline. To advance the clock wakes the threads whose deadlines have passed, one
//! after the other, and waits until each of them waits again. So what threads do at certain times
//! happens in an order that depends on nothing but the test.
//!
//! A process has one clock. Without an installed simulation, nothing of this is in use.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread waits before it looks whether what it waits for has happened, if nothing
/// [wakes](wake) it: no one reports that the last sender of a channel is gone.
const SLICE: Duration = Duration::from_millis(2);

/// How long the test waits for the threads of a daemon. It is longer than any wait of a daemon.
const HANG: Duration = Duration::from_secs(30);

/// The readings of the simulated clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
    /// CLOCK_REALTIME.
    pub realtime: i64,
    /// The kernel's id for this boot.
    pub boot_id: [u8; 16],
}

/// A daemon's threads did not come to rest in time.
#[derive(Debug, thiserror::Error)]
#[error("the threads {threads:?} do not come to rest")]
pub struct HangError {
    /// Their names.
    pub threads: Vec<String>,
}

struct Simulation {
    time: Time,
    /// The threads that have waited with a timeout, in the order of their names.
    threads: BTreeMap<(String, u64), Waiter>,
    started: u64,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    Running,
    /// It waits, until `boottime` at most.
    Waiting {
        deadline: i64,
        is_due: bool,
    },
    /// It waits for the test.
    Held,
}

static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
static SIMULATION: Mutex<Option<Simulation>> = Mutex::new(None);
/// Signals the test that a thread has come to rest.
static CHANGED: Condvar = Condvar::new();
/// Signals threads that wait with timeouts, and how often that has happened.
static WOKEN: Condvar = Condvar::new();
static WAKES: AtomicU64 = AtomicU64::new(0);

fn lock() -> MutexGuard<'static, Option<Simulation>> {
    SIMULATION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the system's clocks for all threads of this process.
pub fn install(time: Time) {
    *lock() = Some(Simulation { time, threads: BTreeMap::new(), started: 0 });
    IS_INSTALLED.store(true, Ordering::SeqCst);
}

pub(super) fn is_installed() -> bool {
    IS_INSTALLED.load(Ordering::Relaxed)
}

/// The simulated time. `None`: the system's clocks are in use.
pub fn time() -> Option<Time> {
    if !is_installed() {
        return None;
    }
    lock().as_ref().map(|simulation| simulation.time)
}

/// Sets the clocks. No thread is woken.
pub fn set(time: Time) {
    if let Some(simulation) = &mut *lock() {
        simulation.time = time;
    }
}

/// Advances the clocks by `nanoseconds`.
///
/// # Errors
/// When a thread does not come to rest.
pub fn advance(nanoseconds: i64) -> Result<(), HangError> {
    quiesce()?;
    let now = {
        let mut simulation = lock();
        let Some(simulation) = &mut *simulation else { return Ok(()) };
        simulation.time.boottime += nanoseconds;
        simulation.time.realtime += nanoseconds;
        simulation.time.boottime
    };
    let is_over = |waiter: &Waiter| matches!(waiter, Waiter::Waiting { deadline, .. } if *deadline <= now);
    let due: Vec<_> = lock()
        .iter()
        .flat_map(|simulation| &simulation.threads)
        .filter(|(_, waiter)| is_over(waiter))
        .map(|(thread, _)| thread.clone())
        .collect();
    for thread in due {
        // It may have been woken by another one meanwhile, or have ended.
        if let Some(Waiter::Waiting { deadline, is_due }) =
            lock().as_mut().and_then(|simulation| simulation.threads.get_mut(&thread))
            && *deadline <= now
        {
            *is_due = true;
        }
        wake();
        quiesce()?;
    }
    Ok(())
}

/// Waits until all threads that wait with timeouts do so again, or are [held](hold).
///
/// # Errors
/// When that takes too long.
pub fn quiesce() -> Result<(), HangError> {
    let is_busy = |simulation: &Simulation| {
        let is_busy =
            |waiter: &Waiter| matches!(waiter, Waiter::Running | Waiter::Waiting { is_due: true, .. });
        simulation
            .threads
            .iter()
            .filter(|(_, waiter)| is_busy(waiter))
            .map(|((name, _), _)| name.clone())
            .collect::<Vec<_>>()
    };
    let wait = |simulation: &mut Option<Simulation>| {
        simulation.as_ref().is_some_and(|simulation| !is_busy(simulation).is_empty())
    };
    let (simulation, _) =
        CHANGED.wait_timeout_while(lock(), HANG, wait).unwrap_or_else(PoisonError::into_inner);
    let threads = simulation.as_ref().map(is_busy).unwrap_or_default();
    if threads.is_empty() { Ok(()) } else { Err(HangError { threads }) }
}

/// Waits until threads with these names have waited for the first time: a thread that has only just
/// been started is unknown to [`quiesce`].
///
/// # Errors
/// When that takes too long.
pub fn wait_started(names: &[&str]) -> Result<(), HangError> {
    let missing = |simulation: &Simulation| {
        let is_missing = |name: &&str| !simulation.threads.keys().any(|(known, _)| known == *name);
        names.iter().copied().filter(is_missing).map(str::to_owned).collect::<Vec<_>>()
    };
    let wait = |simulation: &mut Option<Simulation>| {
        simulation.as_ref().is_some_and(|simulation| !missing(simulation).is_empty())
    };
    let waited = CHANGED.wait_timeout_while(lock(), HANG, wait);
    let (simulation, _) = waited.unwrap_or_else(PoisonError::into_inner);
    let threads = simulation.as_ref().map(missing).unwrap_or_default();
    if threads.is_empty() { Ok(()) } else { Err(HangError { threads }) }
}

/// Marks the current thread as waiting for the test while `wait` runs.
pub fn hold<T>(wait: impl FnOnce() -> T) -> T {
    mark(Waiter::Held);
    let result = wait();
    mark(Waiter::Running);
    result
}

/// The entry of a thread, which is removed when the thread ends.
#[derive(Default)]
struct Registration {
    key: Option<(String, u64)>,
}

thread_local! {
    static REGISTRATION: std::cell::RefCell<Registration> = std::cell::RefCell::default();
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let (Some(key), Some(simulation)) = (&self.key, &mut *lock()) {
            simulation.threads.remove(key);
        }
        CHANGED.notify_all();
    }
}

/// Records what the current thread does.
fn mark(waiter: Waiter) {
    REGISTRATION.with_borrow_mut(|registration| {
        let mut simulation = lock();
        let Some(simulation) = &mut *simulation else { return };
        let key = registration.key.get_or_insert_with(|| {
            simulation.started += 1;
            (thread::current().name().unwrap_or_default().to_owned(), simulation.started)
        });
        simulation.threads.insert(key.clone(), waiter);
    });
    CHANGED.notify_all();
}

/// Whether the test has decided that the current thread has waited long enough.
fn is_due() -> bool {
    REGISTRATION.with_borrow(|registration| {
        let simulation = lock();
        let waiter = registration.key.as_ref().zip(simulation.as_ref());
        let waiter = waiter.and_then(|(key, simulation)| simulation.threads.get(key).copied());
        matches!(waiter, Some(Waiter::Waiting { is_due: true, .. }))
    })
}

fn begin_wait(timeout: Duration) {
    let timeout = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
    let now = time().map_or(0, |time| time.boottime);
    mark(Waiter::Waiting { deadline: now.saturating_add(timeout), is_due: false });
}

/// Wakes all threads that wait with a timeout.
pub(super) fn wake() {
    if is_installed() {
        WAKES.fetch_add(1, Ordering::SeqCst);
        // Under the lock, so that no thread misses it between its check and its wait.
        let _simulation = lock();
        WOKEN.notify_all();
    }
}

/// Waits until `ready` returns a value, or the test decides that it has lasted long enough.
fn wait_for<T>(timeout: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let mut wakes = WAKES.load(Ordering::SeqCst);
    let first = ready();
    if first.is_some() || timeout.is_zero() {
        return first;
    }
    begin_wait(timeout);
    let result = loop {
        let waits = |_: &mut Option<Simulation>| WAKES.load(Ordering::SeqCst) == wakes;
        drop(WOKEN.wait_timeout_while(lock(), SLICE, waits));
        wakes = WAKES.load(Ordering::SeqCst);
        let result = ready();
        if result.is_some() || is_due() {
            break result;
        }
    };
    mark(Waiter::Running);
    result
}

pub(super) fn recv_timeout<T>(receiver: &Receiver<T>, timeout: Duration) -> Result<T, RecvTimeoutError> {
    let received = wait_for(timeout, || match receiver.try_recv() {
        Ok(value) => Some(Ok(value)),
        Err(TryRecvError::Disconnected) => Some(Err(RecvTimeoutError::Disconnected)),
        Err(TryRecvError::Empty) => None,
    });
    received.unwrap_or(Err(RecvTimeoutError::Timeout))
}

pub(super) fn wait_timeout_while<'m, T>(
    mutex: &'m Mutex<T>,
    timeout: Duration,
    mut condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    let lock = || mutex.lock().unwrap_or_else(PoisonError::into_inner);
    let ready = wait_for(timeout, || {
        let mut guard = lock();
        (!condition(&mut guard)).then_some(guard)
    });
    ready.unwrap_or_else(lock)
}

/// A reading of CLOCK_BOOTTIME in a simulation, and otherwise of the clock of
/// [`std::time::Instant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

impl Instant {
    /// The current time.
    #[must_use]
    pub fn now() -> Self {
        let simulated = time().map(|time| Duration::from_nanos(u64::try_from(time.boottime).unwrap_or(0)));
        Self(simulated.unwrap_or_else(|| START.elapsed()))
    }

    /// The time since then.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// The time from `earlier` to this; zero if that is later.
    #[must_use]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}
