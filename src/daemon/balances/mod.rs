//! Saving the balances of rate limits, so that a restart does not refill them.
//!
//! Balances are restored before the first keys are loaded, and saved at intervals and when the
//! daemon stops. The file `balances` in the state directory lists the buckets of the limits of which
//! something is spent ([format](keyward_engine::limiter::persist)). A restored bucket is
//! [retained](SlotAllocator::restore) as if its key had been removed: the first load finds it
//! there, even if its rate has changed since.
//!
//! * A scan of the buckets holds the lock of the slot allocator. A reload holds the same lock from
//!   the assignment of slots until they are reclaimed, so a scan never sees a reload in progress.
//!   Requests take no part in this. The file is written after the scan, without the lock.
//! * Only what was admitted since the last save can be lost, and only if the daemon has no time to
//!   save: kill -9, a crash, a power cut. See the guarantees of
//!   [`limiter`](keyward_engine::limiter).
//! * A damaged or missing file costs the balances of token buckets. Keys with calendar quotas or
//!   credits are not served then, until an operator accepts the loss ([`mod@load`]). A file that
//!   cannot be read prevents the start: full buckets would admit again what was admitted.

mod boot_clock;
mod edit;
mod eviction;
mod load;
mod renewal;

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{debug, error, info};

use crate::clock::Clock;
use crate::publish::SnapshotReader;
use keyward_engine::limiter::persist::{SavedBalances, encode};
use keyward_engine::limiter::{Balance, ClockReading, Limiter, SlotAllocator};
use keyward_state::{self as state, FileError, StateDir, time};

use boot_clock::{boot_id, boottime_offset};
pub use edit::BalanceError;
pub use eviction::report_evicted;
use load::LOSS_FILE;
pub use load::{BalanceLoss, LoadedBalances, PendingLoss, load, preview};
pub use renewal::{BalanceRenewal, RENEWAL_INTERVAL};

/// Name of the file.
const FILE: &str = "balances";

/// Name that a damaged file is given.
const DAMAGED: &str = "balances.damaged";

/// Nice value of the thread. Against one busy thread of nice 0, it gets about a quarter of a
/// processor (weights 335 and 1024). Saving is never urgent, but it holds the allocator's lock,
/// which a reload may wait for.
const NICENESS: i32 = 5;

/// Longest duration of the last save when the daemon stops.
const LAST_SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest delay before a failed save is retried. A shorter save interval takes precedence.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);

/// The thread that saves balances.
pub struct BalanceSaver {
    /// `None` if there is no state directory.
    stop: Option<SyncSender<oneshot::Sender<()>>>,
}

/// Where the balances come from.
#[derive(Clone)]
pub struct BalanceSource {
    /// The buckets.
    pub limiter: Arc<Limiter>,
    /// The slots of the buckets.
    pub allocator: Arc<Mutex<SlotAllocator>>,
    /// The snapshot whose keys own the buckets.
    pub snapshots: SnapshotReader,
    /// The clock that the buckets are charged by.
    pub clock: Clock,
    /// A loss that is recorded before anything is saved over it, unless it has been accepted.
    pub pending_loss: PendingLoss,
}

impl BalanceSaver {
    /// Restores the balances that were [loaded](load()) from `directory`, and starts a thread that
    /// saves them there every `interval` if anything was charged.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        directory: Option<Arc<StateDir>>,
        loaded: LoadedBalances,
        interval: Duration,
        source: BalanceSource,
    ) -> Result<Self, FileError> {
        let Some(directory) = directory else {
            return Ok(Self { stop: None });
        };
        let path = directory.path(FILE);
        let mut saver = SaverThread::new(directory, loaded, source);
        let (stop, stops) = sync_channel(1);
        let thread = thread::Builder::new().name("balances".into());
        match thread.spawn(move || saver.run(interval, &stops)) {
            Ok(_) => Ok(Self { stop: Some(stop) }),
            Err(error) => Err(FileError { path, action: "start the thread that saves to it", error }),
        }
    }

    /// Saves what was charged since the last save, and stops the thread. Call this once the workers
    /// have stopped.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        let Some(stop) = &self.stop else { return };
        // The channel has room for one request, and this is the only one.
        let _ = stop.try_send(reply);
        time::wake();
        if tokio::time::timeout(LAST_SAVE_TIMEOUT, done).await.is_err() {
            error!(
                "the balances could not be saved in time; the next start continues from the previous save"
            );
        }
    }
}

/// The state of the thread.
struct SaverThread {
    directory: Arc<StateDir>,
    source: BalanceSource,
    boot_id: Option<[u8; 16]>,
    boottime_offset: Option<i64>,
    /// The version at the last save, and at the one before.
    last_saves: [Version; 2],
    /// Whether the last save failed.
    has_failed: bool,
    /// Whether there may be a [`LOSS_FILE`].
    may_have_loss_file: bool,
}

/// Changes whenever balances change, apart from the exception in [`SaverThread::save_if_due`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Version {
    latest_time: u64,
    table_generation: u64,
    resets: u64,
}

impl SaverThread {
    /// Restores the balances.
    fn new(directory: Arc<StateDir>, loaded: LoadedBalances, source: BalanceSource) -> Self {
        let mut saver = Self {
            directory,
            source,
            boot_id: boot_id(),
            boottime_offset: boottime_offset(),
            last_saves: [Version::default(); 2],
            has_failed: false,
            may_have_loss_file: loaded.has_loss_file(),
        };
        saver.restore(loaded.saved);
        saver
    }

    fn run(&mut self, interval: Duration, stops: &Receiver<oneshot::Sender<()>>) {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            debug!(%error, "balances are saved at the priority of the workers");
        }
        loop {
            let delay = if self.has_failed { interval.min(MAX_RETRY_DELAY) } else { interval };
            match time::recv_timeout(stops, delay) {
                Err(RecvTimeoutError::Timeout) => self.save_if_due(),
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(reply) => {
                    self.save_last();
                    // The caller may have given up waiting.
                    let _ = reply.send(());
                    return;
                }
            }
        }
    }

    /// Saves unless the version is that of the last two saves. One is not enough: a whole batch is
    /// charged at one time, so charges of that batch after the scan do not change the version. The
    /// generation is part of the version because a reload changes balances without charging any.
    fn save_if_due(&mut self) {
        if self.last_saves != [self.version(); 2] {
            self.save();
        }
    }

    /// Saves when the daemon stops. Over a loss it saves only what has changed: the lost file may be
    /// back at the next start.
    fn save_last(&mut self) {
        if self.source.pending_loss.is_pending() {
            self.save_if_due();
        } else {
            self.save();
        }
    }

    fn version(&self) -> Version {
        Version {
            latest_time: self.source.limiter.latest_time(),
            resets: self.source.limiter.resets(),
            table_generation: self
                .source
                .snapshots
                .current()
                .map_or(0, |snapshot| snapshot.table_generation()),
        }
    }

    fn save(&mut self) {
        if !self.record_pending_loss() {
            return;
        }
        // Read before the scan: charges during the scan are saved the next time.
        let version = self.version();
        let result = self.try_save();
        self.has_failed = result.is_err();
        match result {
            Ok(limits) => {
                debug!(limits, "balances saved");
                self.last_saves = [version, self.last_saves[0]];
                self.directory.health().written(FILE);
                self.forget_accepted_loss();
            }
            // A restart continues from the previous save.
            Err(error) => self.directory.health().failed(FILE, &error),
        }
    }

    /// Records a pending loss before the first save over it. Returns whether balances may be saved.
    fn record_pending_loss(&mut self) -> bool {
        if self.may_have_loss_file {
            return true;
        }
        let Some(loss) = self.source.pending_loss.get() else { return true };
        let recorded = load::record_loss(&self.directory, &loss);
        match &recorded {
            Ok(()) => {
                self.may_have_loss_file = true;
                self.directory.health().written(LOSS_FILE);
            }
            Err(error) => {
                // The next save tries again.
                self.has_failed = true;
                self.directory.health().failed(LOSS_FILE, error);
            }
        }
        recorded.is_ok()
    }

    /// Removes the record of a loss that has been accepted, once.
    fn forget_accepted_loss(&mut self) {
        if !self.may_have_loss_file || self.source.pending_loss.is_pending() {
            return;
        }
        match load::forget_loss(&self.directory) {
            Ok(()) => {
                self.may_have_loss_file = false;
                self.directory.health().written(LOSS_FILE);
            }
            Err(error) => {
                // The next save tries again.
                self.has_failed = true;
                self.directory.health().failed(LOSS_FILE, &error);
            }
        }
    }

    fn try_save(&self) -> Result<usize, FileError> {
        let BalanceSource { limiter, allocator, snapshots, clock, pending_loss: _ } = &self.source;
        let (scan, calendar) = {
            let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let snapshot = snapshots.current();
            let live = snapshot.iter().flat_map(|snapshot| snapshot.buckets());
            let scan = allocator.scan_balances(limiter, live, clock.now());
            // Not after the lock: the calendar may be set back then, which moves balances.
            (scan, limiter.latest_unix())
        };
        let now = clock.now();
        let now = now.with_nanoseconds(now.nanoseconds.max(limiter.latest_time()));
        // Read after this clock here, and before them when balances are restored. The time in
        // between is not counted, so nothing is refilled twice.
        let saved_at = self.read_clock();
        let limits = scan.at(now);
        let count = limits.len();
        state::replace(&self.directory.path(FILE), |file| encode(&saved_at, calendar, limits, file))?;
        Ok(count)
    }

    /// Restores the saved balances.
    fn restore(&mut self, saved: Option<SavedBalances>) {
        if let Some(SavedBalances { saved_at, calendar, limits }) = saved {
            let elapsed = self.read_clock().nanoseconds_since(&saved_at);
            let saved = limits.len();
            let BalanceSource { limiter, allocator, clock, .. } = &self.source;
            let mut allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.advance_calendar(calendar);
            let restored = allocator.restore(limiter, limits, elapsed, clock.now());
            let away_ms = Balance::milliseconds(elapsed);
            let file = self.directory.path(FILE);
            info!(file = %file.display(), saved, restored, away_ms, "balances restored");
        }
        self.last_saves = [self.version(); 2];
    }

    fn read_clock(&self) -> ClockReading {
        Clock::reading(self.boot_id, self.boottime_offset)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::publish::Publisher;
    use keyward_state::disk::trace::{Call, Trace};

    fn source(pending_loss: PendingLoss) -> BalanceSource {
        BalanceSource {
            limiter: Arc::new(Limiter::new()),
            allocator: Arc::default(),
            snapshots: Publisher::new(1).0.reader(),
            clock: Clock::new(),
            pending_loss,
        }
    }

    /// Starts in a directory that has been used and has lost its balances, up to the first save.
    fn start_after_loss(directory: &Path) -> SaverThread {
        fs::write(directory.join("usage.jsonl"), "x").expect("writes");
        let state = StateDir::open(directory, true).expect("opens").expect("there is one");
        let loaded = load(&state, false).expect("reads");
        let pending = loaded.pending_loss();
        assert!(pending.is_pending());
        SaverThread::new(Arc::new(state), loaded, source(pending))
    }

    #[test]
    fn loss_is_recorded_before_balances_are_saved_over_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let [file, record] = [FILE, LOSS_FILE].map(|name| directory.path().join(name));
        let mut saver = start_after_loss(directory.path());
        assert!(!record.exists(), "a start records nothing");
        let obstacle = directory.path().join(format!("{LOSS_FILE}.new"));
        fs::create_dir(&obstacle).expect("creates");
        saver.save();
        assert!(saver.has_failed && !file.exists(), "nothing is saved over a loss that is not recorded");

        fs::remove_dir(&obstacle).expect("removes");
        let trace = Trace::of(directory.path());
        saver.save();
        let is_rename = |call: &Call, to: &Path| matches!(call, Call::Rename(_, path) if path == to);
        let calls = trace.calls();
        let position = |to: &Path| calls.iter().position(|call| is_rename(call, to)).expect("renamed");
        assert!(position(&record) < position(&file), "{calls:?}");
        assert_eq!(trace.volatile(), [""; 0]);
        drop(trace);

        saver.source.pending_loss.accept();
        saver.save();
        assert!(!record.exists() && file.exists());
    }

    #[test]
    fn nothing_is_recorded_of_a_loss_that_has_been_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut saver = start_after_loss(directory.path());
        saver.source.pending_loss.accept();
        saver.save();
        assert!(directory.path().join(FILE).exists() && !directory.path().join(LOSS_FILE).exists());
    }

    #[tokio::test]
    async fn last_save_is_durable_once_stop_returns() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("the directory opens").map(Arc::new);
        for _ in 0..2 {
            let trace = Trace::of(directory.path());
            let (loaded, interval) = (LoadedBalances::default(), Duration::from_secs(3600));
            let saver = BalanceSaver::start(state.clone(), loaded, interval, source(PendingLoss::default()));
            let saver = saver.expect("the thread starts");
            saver.stop().await;
            let (file, new) = (directory.path().join(FILE), directory.path().join("balances.new"));
            assert_eq!(trace.calls().iter().filter(|call| **call == Call::Sync(new.clone())).count(), 1);
            assert!(trace.calls().contains(&Call::Rename(new, file)));
            assert_eq!(trace.volatile(), [""; 0]);
        }
    }

    /// The clock may be set back while no daemon runs.
    #[tokio::test]
    async fn calendar_does_not_go_back_over_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("the directory opens").map(Arc::new);
        let calendar = u32::MAX - 1;
        let mut loaded = LoadedBalances::default();
        loaded.saved = Some(SavedBalances {
            saved_at: ClockReading { boot_id: None, boottime: 0, boottime_offset: None, realtime: 0 },
            calendar,
            limits: Vec::new(),
        });
        let source = source(PendingLoss::default());
        let limiter = Arc::clone(&source.limiter);
        let saver =
            BalanceSaver::start(state, loaded, Duration::from_secs(3600), source).expect("the thread starts");
        assert_eq!(limiter.latest_unix(), calendar);
        saver.stop().await;
        let state =
            StateDir::open(directory.path(), true).expect("the directory opens").expect("there is one");
        let saved = load(&state, false).expect("reads").saved.expect("balances");
        assert_eq!(saved.calendar, calendar, "it is saved again");
    }
}
