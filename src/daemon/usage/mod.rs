//! What each key has used: allowed, denied by verdict, cost, first and last use.
//!
//! ```text
//! worker ──▶ log of its own ──┐  16 bytes a request, no shared write, no allocation, no hash   ([`log`])
//! worker ──▶ log of its own ──┤
//!                             ▼  when full, every second, and when asked
//!                          usage ── merges into a record for each key                          ([`table`])
//!                             │  every interval: a line for each key that was used             ([`collect`])
//!                             ▼
//!                       usage-writer ── usage.jsonl: append, fsync, rotate                     ([`write`])
//! ```
//!
//! * A log's entries are positions in one snapshot, so it is handed over together with the snapshot. A key's record is found
//!   by its id the first time that an entry is seen: rows of a key in rotation share it, and it outlives snapshots.
//! * Nothing is lost and memory is bounded. The queue between workers and the usage thread holds [`QUEUE`] logs a worker; one
//!   that finds it full waits. It does not merge by itself: that would take a lock around the records, or atomic
//!   additions, on every merge, for the sake of a case that only arises where the machine has no processor left for the usage
//!   thread, and there, waiting is what gives it one. Merging is several times as fast as verifying,
//!   but for keys that are seen for the first time in a snapshot, which take as long; and the usage thread never waits for a disk:
//!   that is the writer's.
//! * Keys that are not known are counted together: whoever sends a billion of them costs two numbers.
//! * A record is kept for as long as its key is in the source, and until what it used is written.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use keyward_state::{FileError, Rotation, StateDir};

mod answer;
mod collect;
mod find;
mod log;
mod pieces;
mod table;
mod write;

#[cfg(test)]
mod tests;

pub use answer::{KeyUsage, MAX_LISTED, UsageCounts, UsageQuery, UsageReport};
pub use log::{Event, UsageLog};

/// Logs that may wait for each worker, beside the one that it fills and those that come back empty: some 30 ms of a busy worker, and
/// two mebibytes.
const QUEUE: usize = 16;

/// Messages beside them: questions of operators, and what workers and the writer say of themselves.
const OTHER_MESSAGES: usize = 16;

/// How long the last lines may take to be written when the daemon stops.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Asks the usage thread; clones ask the same.
#[derive(Clone)]
pub struct Usage {
    queue: SyncSender<Message>,
}

/// When usage is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsagePolicy {
    /// How often.
    pub interval: Duration,
    /// How large files become.
    pub files: Rotation,
}

/// What the usage thread is told.
enum Message {
    /// A worker's log.
    Batch(log::Batch),
    /// A worker has handed over all that it counted before it heard of `round`, and uses no snapshot before `generation`.
    Flushed { worker: usize, round: u64, generation: u64 },
    /// An operator asks.
    Ask { question: UsageQuery, reply: oneshot::Sender<UsageReport> },
    /// The writer has written, or not.
    Written { lines: Vec<u8>, result: Result<(), FileError> },
    /// Write all, and say so.
    Stop { reply: oneshot::Sender<()> },
}

impl Usage {
    /// Starts the threads. Usage is written to `directory`, if there is one. Also returns the workers' logs.
    ///
    /// # Errors
    /// When the file cannot be opened or the system has no thread left.
    pub fn start(
        directory: Option<&StateDir>,
        policy: UsagePolicy,
        workers: usize,
    ) -> Result<(Self, Vec<UsageLog>), FileError> {
        let (queue, messages) = sync_channel(workers * QUEUE + OTHER_MESSAGES);
        let (rounds, round) = watch::channel(0);
        let (logs, spares) =
            (0..workers).map(|worker| UsageLog::new(worker, queue.clone(), round.clone())).unzip();
        let writer = directory
            .map(|directory| write::Writer::start(directory, policy.files, queue.clone()))
            .transpose()?;
        let collector = collect::Collector::new(policy.interval, writer, rounds, spares);
        let started =
            std::thread::Builder::new().name("usage".into()).spawn(move || collector.run(&messages));
        started.map_err(|error| FileError {
            path: directory.map(|directory| directory.path(write::FILE)).unwrap_or_default(),
            what: "start the thread that counts usage",
            error,
        })?;
        Ok((Self { queue }, logs))
    }

    /// What was used since the start, up to this moment. `None`: the daemon is ending.
    pub async fn query(&self, question: UsageQuery) -> Option<UsageReport> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask { question, reply }).await;
        answer.await.ok()
    }

    /// Writes what is not written yet: to be called when the workers have nothing left to do.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        self.send(Message::Stop { reply }).await;
        if tokio::time::timeout(LAST_LINES, done).await.is_err() {
            tracing::error!("the last usage could not be written in time and is lost");
        }
    }

    /// The queue may be full, and who calls has other things to do than to wait.
    async fn send(&self, message: Message) {
        let queue = self.queue.clone();
        let _ending = tokio::task::spawn_blocking(move || queue.send(message)).await;
    }
}

type Shared = Arc<keyward_engine::snapshot::Snapshot>;
