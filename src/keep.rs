//! Balances that outlive the daemon: restored before the first keys are loaded, saved at intervals and at the end.
//!
//! The file, `balances` in the state directory, has the [form](crate::limiter::saved) of a list of buckets that are not full.
//! A bucket that is restored is parked in the [ledger](Ledger) under its name, as if its key had been away: the first
//! load finds it there, whatever has become of its rate meanwhile.
//!
//! * A walk over the buckets needs a ledger that is settled, so it holds the ledger's lock, which a reload holds from its
//!   first claim to its settlement. Requests know nothing of either. The file is written after the walk.
//! * What is lost is what was admitted since the last save, and only where the daemon has no time to save: kill -9, a crash, a
//!   power cut. See promise 4 in [`limiter`](crate::limiter).
//! * A file that cannot be used costs the balances and nothing else. It is moved aside, and the log says so.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use tokio::sync::oneshot;
use tracing::{debug, error, info};

use crate::clock::Clock;
use crate::limiter::saved::{DecodeError, SavedAt, SavedBucket, decode, encode};
use crate::limiter::{Ledger, Limiter, TICKS_PER_MILLISECOND};
use crate::publish::SnapshotReader;
use crate::state::{self, FileError, StateDir};

/// The name of the file.
const FILE: &str = "balances";

/// What a file that cannot be used is called from then on.
const DAMAGED: &str = "balances.damaged";

/// The kernel's name for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Has it where /proc does not show it: keyward.service passes it on, because a service sees nothing there but processes.
const BOOT_ID_VARIABLE: &str = "KEYWARD_BOOT_ID";

/// What this process's time namespace adds to the kernel's clocks, a line for each.
const TIME_OFFSETS: &str = "/proc/self/timens_offsets";

/// A third of a processor where the workers need all of it: a save is never urgent, but it holds the ledger, which a reload
/// may be waiting for.
const NICE: i32 = 5;

/// How long the last save may take when the daemon stops.
const LAST_SAVE: Duration = Duration::from_secs(5);

/// How long a save that failed waits to be tried again, at most. A shorter interval is kept.
const RETRY: Duration = Duration::from_secs(5);

/// Saves until it is stopped.
pub struct Keeper {
    /// `None`: there is no state directory.
    stop: Option<SyncSender<oneshot::Sender<()>>>,
}

/// What is saved.
pub struct Balances {
    /// The buckets.
    pub limiter: Arc<Limiter>,
    /// Which is whose.
    pub ledger: Arc<Mutex<Ledger>>,
    /// The keys that have them.
    pub snapshots: SnapshotReader,
    /// The one that they are charged by.
    pub clock: Clock,
}

impl Keeper {
    /// Restores the balances in `directory`, and from then on saves them there every `interval`, if anything was charged.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(
        directory: Option<Arc<StateDir>>,
        interval: Duration,
        balances: Balances,
    ) -> io::Result<Self> {
        let Some(directory) = directory else {
            return Ok(Self { stop: None });
        };
        let mut saver = Saver {
            directory,
            balances,
            boot_id: boot_id(),
            boottime_offset: boottime_offset(),
            saved: [(0, 0); 2],
            failed: false,
        };
        saver.restore();
        let (stop, stops) = sync_channel(1);
        thread::Builder::new().name("keep".into()).spawn(move || saver.run(interval, &stops))?;
        Ok(Self { stop: Some(stop) })
    }

    /// Saves what was charged since the last time: to be called when the workers have nothing left to do.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        let Some(stop) = &self.stop else { return };
        let _it_has_room = stop.try_send(reply);
        if tokio::time::timeout(LAST_SAVE, done).await.is_err() {
            error!("the balances could not be saved in time; the next start goes on from the save before");
        }
    }
}

/// The thread's own.
struct Saver {
    directory: Arc<StateDir>,
    balances: Balances,
    boot_id: Option<[u8; 16]>,
    boottime_offset: Option<i64>,
    /// The limiter's latest tick, and the snapshot's generation, when it was saved last and the time before that.
    saved: [(u64, u64); 2],
    /// The last save failed.
    failed: bool,
}

impl Saver {
    fn run(&mut self, interval: Duration, stops: &Receiver<oneshot::Sender<()>>) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            debug!(%error, "balances are saved at the priority of the workers");
        }
        loop {
            let patience = if self.failed { interval.min(RETRY) } else { interval };
            match stops.recv_timeout(patience) {
                Err(RecvTimeoutError::Timeout) => self.save_if_due(),
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(reply) => {
                    self.save();
                    let _nobody_waits = reply.send(());
                    return;
                }
            }
        }
    }

    /// Saves unless nothing has moved since the last save but one: a batch charges at one tick, so that what it charges after a
    /// walk does not show in the latest tick; and a reload moves balances without charging any.
    fn save_if_due(&mut self) {
        let state = self.state();
        if self.saved != [state; 2] {
            self.save();
        }
    }

    fn state(&self) -> (u64, u64) {
        let generation = self.balances.snapshots.current().map_or(0, |snapshot| snapshot.generation());
        (self.balances.limiter.latest(), generation)
    }

    fn save(&mut self) {
        // Before the walk: what is charged in the course of it is saved the next time.
        let state = self.state();
        let result = self.try_save();
        self.failed = result.is_err();
        match result {
            Ok(buckets) => {
                debug!(buckets, "balances saved");
                self.saved = [state, self.saved[0]];
                self.directory.health().written(FILE);
            }
            // A restart goes on from the save before.
            Err(error) => self.directory.health().failed(FILE, &error),
        }
    }

    fn try_save(&self) -> Result<usize, FileError> {
        let Balances { limiter, ledger, snapshots, clock } = &self.balances;
        let listing = {
            let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let snapshot = snapshots.current();
            let live = snapshot.iter().flat_map(|snapshot| snapshot.buckets());
            ledger.list(limiter, live, clock.now().ticks)
        };
        let ticks = clock.now().ticks.max(limiter.latest());
        // The calendar after the ticks, here, and before them where balances are restored: the time between is not counted,
        // so that nothing is refilled twice.
        let moment = Clock::moment(self.boot_id, self.boottime_offset);
        let buckets = listing.at(ticks);
        let count = buckets.len();
        state::replace(&self.directory.path(FILE), |file| encode(&moment, buckets, file))?;
        Ok(count)
    }

    fn restore(&mut self) {
        let path = self.directory.path(FILE);
        let shown = path.display();
        match read(&path) {
            Ok(None) => {}
            Ok(Some((saved, buckets))) => {
                let elapsed = Clock::moment(self.boot_id, self.boottime_offset).ticks_since(&saved);
                let count = buckets.len();
                let Balances { limiter, ledger, clock, .. } = &self.balances;
                let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
                let restored = ledger.restore(limiter, buckets, elapsed, clock.now().ticks);
                let away_ms = elapsed / TICKS_PER_MILLISECOND;
                info!(file = %shown, saved = count, restored, away_ms, "balances restored");
            }
            Err(reason) => {
                let aside = self.directory.path(DAMAGED);
                let moved = match std::fs::rename(&path, &aside) {
                    Ok(()) => format!("it is now {}", aside.display()),
                    Err(error) => format!("it cannot be renamed to {}: {error}", aside.display()),
                };
                error!(file = %shown, error = reason, "the saved balances cannot be used, and buckets begin full; {moved}");
            }
        }
        self.saved = [self.state(); 2];
    }
}

fn read(path: &Path) -> Result<Option<(SavedAt, Vec<SavedBucket>)>, String> {
    let content = state::read(path).map_err(|error| error.to_string())?;
    let decoded = content.map(|bytes| decode(&mut &*bytes)).transpose();
    decoded.map_err(|error: DecodeError| error.to_string())
}

/// The boot's name, by which it is known whether CLOCK_BOOTTIME has counted on; without it the calendar has to do.
fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID).ok().or_else(|| std::env::var(BOOT_ID_VARIABLE).ok());
    let id = text.as_deref().and_then(parse_boot_id);
    if id.is_none() {
        info!("the kernel's boot id is not to be seen; saved balances are aged by the calendar");
    }
    id
}

/// By how many nanoseconds CLOCK_BOOTTIME is shifted for this process, which is the same for as long as it runs. `None` where /proc
/// does not show it.
fn boottime_offset() -> Option<i64> {
    let namespace = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}"));
    match std::fs::read_to_string(TIME_OFFSETS) {
        // The offsets are those of processes that this one starts, which can be in another namespace.
        Ok(offsets) if namespace("time").ok()? == namespace("time_for_children").ok()? => {
            parse_boottime_offset(&offsets)
        }
        Ok(_) => None,
        // A kernel without time namespaces; or there is no /proc.
        Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self/ns").exists() => {
            Some(0)
        }
        Err(_) => None,
    }
}

/// The line of CLOCK_BOOTTIME: its name, which was a number once, seconds and nanoseconds.
fn parse_boottime_offset(text: &str) -> Option<i64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let _name = words.next().filter(|name| ["boottime", "7"].contains(name))?;
        let [seconds, rest]: [i64; 2] = [words.next()?.parse().ok()?, words.next()?.parse().ok()?];
        seconds.checked_mul(1_000_000_000)?.checked_add(rest)
    })
}

/// A UUID, with hyphens (/proc) or without (systemd).
fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    const_hex::decode_to_array(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Publisher;
    use crate::state::disk::trace::{Call, Trace};

    #[tokio::test]
    async fn last_save_is_durable_when_the_keeper_has_stopped() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(directory.path(), true).expect("opens").map(Arc::new);
        for _ in 0..2 {
            let trace = Trace::of(directory.path());
            let balances = Balances {
                limiter: Arc::new(Limiter::new()),
                ledger: Arc::default(),
                snapshots: Publisher::new(1).0.reader(),
                clock: Clock::new(),
            };
            let keeper = Keeper::start(state.clone(), Duration::from_secs(3600), balances).expect("a thread");
            keeper.stop().await;
            let (file, new) = (directory.path().join(FILE), directory.path().join("balances.new"));
            assert_eq!(trace.calls().iter().filter(|call| **call == Call::Sync(new.clone())).count(), 1);
            assert!(trace.calls().contains(&Call::Rename(new, file)));
            assert_eq!(trace.volatile(), [""; 0]);
        }
    }

    #[test]
    fn offset_of_boottime_is_read_from_its_line() {
        let text = "monotonic           5         6\nboottime       -100         7\n";
        assert_eq!(parse_boottime_offset(text), Some(-99_999_999_993));
        assert_eq!(parse_boottime_offset("1 5 6\n7 0 0\n"), Some(0));
        for not in
            ["", "monotonic 1 2\n", "boottime 1\n", "boottime x 0\n", "boottime 9223372036854775807 0\n"]
        {
            assert_eq!(parse_boottime_offset(not), None, "{not}");
        }
    }

    #[test]
    fn a_boot_id_has_two_forms() {
        let id =
            Some([0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89]);
        assert_eq!(parse_boot_id("abcdef01-2345-6789-abcd-ef0123456789\n"), id);
        assert_eq!(parse_boot_id("abcdef0123456789abcdef0123456789"), id);
        for not in ["", "abcdef0123456789abcdef012345678", "abcdef0123456789abcdef01234567890", "x"] {
            assert_eq!(parse_boot_id(not), None, "{not}");
        }
    }
}
