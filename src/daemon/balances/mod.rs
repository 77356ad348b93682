//! Saving the balances of rate limits, so that a restart does not refill them.
//!
//! Balances are restored before the first keys are loaded, and saved at intervals and when the
//! daemon stops. The file `balances` in the state directory lists the buckets that are not full
//! ([format](keyward_engine::limiter::persist)). A restored bucket is
//! [retained](SlotAllocator::restore) as if its key had been removed: the first load finds it
//! there, even if its rate has changed since.
//!
//! * A scan of the buckets holds the lock of the slot allocator. A reload holds the same lock from
//!   the assignment of slots until they are reclaimed, so a scan never sees a reload in progress.
//!   Requests take no part in this. The file is written after the scan, without the lock.
//! * Only what was admitted since the last save can be lost, and only if the daemon has no time to
//!   save: kill -9, a crash, a power cut. See the guarantees of
//!   [`limiter`](keyward_engine::limiter).
//! * A damaged file costs the balances and nothing else. It is renamed, and an error is logged. A
//!   file that cannot be read prevents the start: full buckets would admit again what was admitted.

mod boot_clock;

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{debug, error, info};

use crate::clock::Clock;
use crate::publish::SnapshotReader;
use keyward_engine::limiter::persist::{SavedBucket, decode, encode};
use keyward_engine::limiter::{ClockReading, Limiter, SlotAllocator, TICKS_PER_MILLISECOND};
use keyward_state::{self as state, FileError, StateDir, disk, time};

use boot_clock::{boot_id, boottime_offset};

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

/// Whether balances are saved in `directory`.
pub fn are_saved(directory: &StateDir) -> bool {
    directory.path(FILE).exists()
}

/// The thread that saves balances.
pub struct BalanceSaver {
    /// `None` if there is no state directory.
    stop: Option<SyncSender<oneshot::Sender<()>>>,
}

/// Where the balances come from.
pub struct BalanceSource {
    /// The buckets.
    pub limiter: Arc<Limiter>,
    /// The slots of the buckets.
    pub allocator: Arc<Mutex<SlotAllocator>>,
    /// The snapshot whose keys own the buckets.
    pub snapshots: SnapshotReader,
    /// The clock that the buckets are charged by.
    pub clock: Clock,
}

impl BalanceSaver {
    /// Restores the balances in `directory`, and starts a thread that saves them there every
    /// `interval` if anything was charged.
    ///
    /// # Errors
    /// When the file exists and cannot be read, or the thread cannot be started.
    pub fn start(
        directory: Option<Arc<StateDir>>,
        interval: Duration,
        source: BalanceSource,
    ) -> Result<Self, FileError> {
        let Some(directory) = directory else {
            return Ok(Self { stop: None });
        };
        let path = directory.path(FILE);
        let mut saver = SaverThread {
            directory,
            source,
            boot_id: boot_id(),
            boottime_offset: boottime_offset(),
            last_saves: [Version::default(); 2],
            has_failed: false,
        };
        saver.restore()?;
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
}

/// Changes whenever balances change, apart from the exception in [`SaverThread::save_if_due`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Version {
    latest_tick: u64,
    generation: u64,
}

impl SaverThread {
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
                    self.save();
                    // The caller may have given up waiting.
                    let _ = reply.send(());
                    return;
                }
            }
        }
    }

    /// Saves unless the version is that of the last two saves. One is not enough: a whole batch is
    /// charged at one tick, so charges of that batch after the scan do not change the version. The
    /// generation is part of the version because a reload changes balances without charging any.
    fn save_if_due(&mut self) {
        if self.last_saves != [self.version(); 2] {
            self.save();
        }
    }

    fn version(&self) -> Version {
        Version {
            latest_tick: self.source.limiter.latest_tick(),
            generation: self.source.snapshots.current().map_or(0, |snapshot| snapshot.generation()),
        }
    }

    fn save(&mut self) {
        // Read before the scan: charges during the scan are saved the next time.
        let version = self.version();
        let result = self.try_save();
        self.has_failed = result.is_err();
        match result {
            Ok(buckets) => {
                debug!(buckets, "balances saved");
                self.last_saves = [version, self.last_saves[0]];
                self.directory.health().written(FILE);
            }
            // A restart continues from the previous save.
            Err(error) => self.directory.health().failed(FILE, &error),
        }
    }

    fn try_save(&self) -> Result<usize, FileError> {
        let BalanceSource { limiter, allocator, snapshots, clock } = &self.source;
        let scan = {
            let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let snapshot = snapshots.current();
            let live = snapshot.iter().flat_map(|snapshot| snapshot.buckets());
            allocator.scan_balances(limiter, live, clock.now().ticks)
        };
        let ticks = clock.now().ticks.max(limiter.latest_tick());
        // Read after the ticks here, and before them when balances are restored. The time in
        // between is not counted, so nothing is refilled twice.
        let saved_at = self.read_clock();
        let buckets = scan.at(ticks);
        let count = buckets.len();
        state::replace(&self.directory.path(FILE), |file| encode(&saved_at, buckets, file))?;
        Ok(count)
    }

    /// Restores the saved balances, if there are any.
    fn restore(&mut self) -> Result<(), FileError> {
        let path = self.directory.path(FILE);
        match state::read(&path) {
            Ok(None) => {}
            Ok(Some(content)) => match decode(&mut &*content) {
                Ok((saved_at, buckets)) => self.restore_buckets(&path, &saved_at, buckets),
                Err(error) => self.set_aside(&path, &error),
            },
            // It is not a regular file, so it holds no balances.
            Err(error) if error.error.kind() == io::ErrorKind::Other => self.set_aside(&path, &error),
            Err(error) => return Err(error),
        }
        self.last_saves = [self.version(); 2];
        Ok(())
    }

    fn restore_buckets(&self, path: &Path, saved_at: &ClockReading, buckets: Vec<SavedBucket>) {
        let elapsed = self.read_clock().ticks_since(saved_at);
        let count = buckets.len();
        let BalanceSource { limiter, allocator, clock, .. } = &self.source;
        let mut allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let restored = allocator.restore(limiter, buckets, elapsed, clock.now().ticks);
        let away_ms = elapsed / TICKS_PER_MILLISECOND;
        info!(file = %path.display(), saved = count, restored, away_ms, "balances restored");
    }

    /// Renames a file that cannot be used.
    fn set_aside(&self, path: &Path, error: &dyn std::error::Error) {
        let aside = self.directory.path(DAMAGED);
        let renamed = match disk::rename(path, &aside) {
            Ok(()) => format!("it is now {}", aside.display()),
            Err(error) => format!("it cannot be renamed to {}: {error}", aside.display()),
        };
        error!(
            file = %path.display(),
            error = error.to_string(),
            "the saved balances cannot be used, and buckets begin full; {renamed}"
        );
    }

    fn read_clock(&self) -> ClockReading {
        Clock::reading(self.boot_id, self.boottime_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Publisher;
    use keyward_state::disk::trace::{Call, Trace};

    #[tokio::test]
    async fn last_save_is_durable_once_stop_returns() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("the directory opens").map(Arc::new);
        for _ in 0..2 {
            let trace = Trace::of(directory.path());
            let source = BalanceSource {
                limiter: Arc::new(Limiter::new()),
                allocator: Arc::default(),
                snapshots: Publisher::new(1).0.reader(),
                clock: Clock::new(),
            };
            let saver = BalanceSaver::start(state.clone(), Duration::from_secs(3600), source)
                .expect("the thread starts");
            saver.stop().await;
            let (file, new) = (directory.path().join(FILE), directory.path().join("balances.new"));
            assert_eq!(trace.calls().iter().filter(|call| **call == Call::Sync(new.clone())).count(), 1);
            assert!(trace.calls().contains(&Call::Rename(new, file)));
            assert_eq!(trace.volatile(), [""; 0]);
        }
    }
}
