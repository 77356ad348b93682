//! The usage of each key: requests allowed, requests denied by verdict, cost, first and last use, and
//! what each limit was charged, debited and refunded.
//!
//! ```text
//! worker ──▶ its own log ──┐  16 bytes a request; no shared write, allocation or hash  ([`log`])
//! worker ──▶ its own log ──┤
//!                          ▼  when full, every second, and for each query
//!                       usage ── merges the logs into a record for each key           ([`table`])
//!                          │  every interval: a line for each key that was used   ([`collector`])
//!                          ▼
//!                    usage-writer ── usage.jsonl: append, fsync, rotate               ([`writer`])
//! ```
//!
//! * The entries of a log are positions in one snapshot, so a log is flushed together with that
//!   snapshot. The record of a key is looked up by key id when an entry is first seen ([`lookup`]).
//!   Rows of a key in rotation share a record, and a record outlives snapshots.
//! * While the daemon runs, no event is dropped, and memory is bounded. The queue to the usage
//!   thread holds [`QUEUED_LOGS`] logs per worker; a worker that finds it full waits. Workers do
//!   not merge themselves: that would need a lock or atomic additions on every merge. The queue
//!   fills only if no processor is left for the usage thread, and then waiting yields one to it.
//!   Merging is several times as fast as verifying, except for keys that are new in a snapshot,
//!   which take as long. The usage thread never waits for a disk; the writer does.
//! * A request in detail (several costs, DEBIT, REFUND) has an event for each limit that it changed, by
//!   the limit's position. The usage thread reads the limit's name from the snapshot of the log. Plain
//!   requests have no such event.
//! * Unknown keys are counted together: a billion of them cost two numbers.
//! * A record is retained while its key is in the source, and until its usage is written.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use keyward_admin::message::UsageReport;
use keyward_state::{FileError, Rotation, StateDir};

mod backlog;
mod chunked_vec;
mod collector;
mod log;
mod lookup;
mod query;
mod table;
mod texts;
mod writer;

#[cfg(test)]
mod tests;

pub use log::{Event, UsageLog};
pub use query::UsageQuery;
#[cfg(feature = "fuzzing")]
pub(crate) use writer::continue_file;

/// Logs that may be queued per worker: some 30 ms of a busy worker, and 2 MiB.
const QUEUED_LOGS: usize = 16;

/// Other messages that may be queued: queries, and reports of workers and of the writer.
const OTHER_MESSAGES: usize = 16;

/// How long the last lines may take to be written at shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle to the usage thread. Clones share it.
#[derive(Clone)]
pub struct Usage {
    queue: SyncSender<Message>,
    backlog: backlog::Backlog,
}

/// When usage is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsagePolicy {
    /// The interval between two writes.
    pub interval: Duration,
    /// The size and number of files.
    pub files: Rotation,
}

/// A message to the usage thread.
enum Message {
    /// A worker has flushed its log.
    Log(log::FlushedLog),
    /// A worker has flushed everything from before `round`, and uses no snapshot before
    /// `table_generation`.
    Flushed { worker: usize, round: u64, table_generation: u64 },
    /// An operator requests a report.
    Query { query: UsageQuery, reply: oneshot::Sender<UsageReport> },
    /// The writer has written `lines`, or has failed to.
    Written { lines: Vec<u8>, result: Result<(), FileError> },
    /// The daemon shuts down: write everything, then reply.
    Stop { reply: oneshot::Sender<()> },
}

impl Usage {
    /// Starts the threads, and returns the workers' logs. Usage is written to `directory`, if there
    /// is one.
    ///
    /// # Errors
    /// When the file cannot be opened or the system has no thread left.
    pub fn start(
        directory: Option<&StateDir>,
        policy: UsagePolicy,
        workers: usize,
    ) -> Result<(Self, Vec<UsageLog>), FileError> {
        let (queue, messages) = sync_channel(workers * QUEUED_LOGS + OTHER_MESSAGES);
        let (rounds, round) = watch::channel(0);
        let (logs, spares) =
            (0..workers).map(|worker| UsageLog::new(worker, queue.clone(), round.clone())).unzip();
        let writer = directory
            .map(|directory| writer::Writer::start(directory, policy.files, queue.clone()))
            .transpose()?;
        let collector = collector::Collector::new(policy.interval, writer, rounds, spares);
        let backlog = collector.backlog();
        let started =
            std::thread::Builder::new().name("usage".into()).spawn(move || collector.run(&messages));
        started.map_err(|error| FileError {
            path: directory.map(|directory| directory.path(writer::FILE)).unwrap_or_default(),
            action: "start the thread that counts usage",
            error,
        })?;
        Ok((Self { queue, backlog }, logs))
    }

    /// The usage since the start, up to this moment. `None`: the daemon is shutting down.
    pub async fn query(&self, query: UsageQuery) -> Option<UsageReport> {
        let (reply, report) = oneshot::channel();
        self.send(Message::Query { query, reply }).await;
        report.await.ok()
    }

    /// The age of the oldest usage that is not in a written line, and the number of lines that were
    /// lost. A worker may hold events for another second. Zero if usage is not written.
    pub fn unwritten(&self) -> (Duration, u64) {
        (self.backlog.age(Instant::now()), self.backlog.lost())
    }

    /// Writes all remaining usage. Call it when the workers have ended their work.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        self.send(Message::Stop { reply }).await;
        if tokio::time::timeout(STOP_TIMEOUT, done).await.is_err() {
            tracing::error!("the last usage could not be written in time and is lost");
        }
    }

    /// Sends on a blocking thread, because the queue may be full.
    async fn send(&self, message: Message) {
        let queue = self.queue.clone();
        // Fails only at shutdown.
        let _ = tokio::task::spawn_blocking(move || queue.send(message)).await;
    }
}
