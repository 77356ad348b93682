//! The lines of `usage.jsonl`, and the thread that writes them.
//!
//! A line has the usage of one key in one interval; one more line is for unknown keys. `seq`
//! increases by one from line to line, across rotations and restarts. A line with a number never
//! changes: if a write fails, the same bytes are written again. So a reader that has processed a
//! number continues with the next one, and counts nothing twice.

#[cfg(test)]
use std::sync::mpsc::Receiver;
use std::sync::mpsc::{SyncSender, sync_channel};

use serde::{Deserialize, Serialize};

use super::Message;
use super::log::UnknownKeys;
use super::table::{Delta, used};
use keyward_admin::message::UsageCounts;
use keyward_state::{FileError, LazyJournal, Rotation, StateDir, Timestamp, WriteHealth};

/// The name of the file.
pub(super) const FILE: &str = "usage.jsonl";

/// Maximum number of bytes in one write: some 4,000 lines, which take a few milliseconds to encode.
const CHUNK_BYTES: usize = 1 << 20;

/// The largest number of a line that is continued. No daemon comes near it, and sums with it do not
/// overflow.
const MAX_SEQ: u64 = u64::MAX / 2;

/// Room for the line that completes a chunk: a key with 16 limits has about 3 KiB.
const LINE_BYTES: usize = 4 << 10;

/// Lines on their way to the writer.
pub(super) struct Chunk {
    pub(super) lines: Vec<u8>,
    /// Whether they are the last of their interval, which is synced then.
    is_last: bool,
}

/// The usage thread's side of the writer.
pub(super) struct Writer {
    chunks: SyncSender<Chunk>,
    /// The number of the last line.
    seq: u64,
    chunk_bytes: usize,
}

/// The interval of the usage in a line.
#[derive(Serialize)]
pub(super) struct Interval {
    from: String,
    to: String,
}

#[derive(Serialize)]
struct KeyLine<'a> {
    seq: u64,
    #[serde(flatten)]
    interval: &'a Interval,
    key_id: &'a str,
    owner: &'a str,
    #[serde(flatten)]
    counts: &'a UsageCounts,
    first_used: Option<u32>,
    last_used: Option<u32>,
}

#[derive(Serialize)]
struct UnknownLine<'a> {
    seq: u64,
    #[serde(flatten)]
    interval: &'a Interval,
    unknown: UnknownCounts,
}

#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct UnknownCounts {
    unknown_key: u64,
    malformed_key: u64,
}

#[derive(Deserialize)]
struct Seq {
    seq: u64,
}

impl Interval {
    pub(super) fn new(from: Timestamp, to: Timestamp) -> Self {
        Self { from: from.to_string(), to: to.to_string() }
    }
}

impl Writer {
    /// Continues the file in `directory`. The result of each chunk is sent to `queue`.
    ///
    /// # Errors
    /// When the file cannot be opened or the system has no thread left.
    pub(super) fn start(
        directory: &StateDir,
        files: Rotation,
        queue: SyncSender<Message>,
    ) -> Result<Self, FileError> {
        let path = directory.path(FILE);
        let (mut journal, seq) = open_file(directory, files)?;
        let health = directory.health().clone();
        let (chunks, to_write) = sync_channel::<Chunk>(1);
        let write = move || {
            for Chunk { lines, is_last } in to_write {
                let result = write(&mut journal, &health, &lines, is_last);
                if queue.send(Message::Written { lines, result }).is_err() {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("usage-writer".into()).spawn(write);
        started.map_err(|error| FileError { path, action: "start the thread that writes to it", error })?;
        let max_bytes = usize::try_from(files.max_file_size).unwrap_or(CHUNK_BYTES);
        let chunk_bytes = CHUNK_BYTES.min(max_bytes).saturating_sub(LINE_BYTES);
        Ok(Self { chunks, seq, chunk_bytes })
    }

    /// A writer without a thread: the test receives the chunks. Each line completes one.
    #[cfg(test)]
    pub(super) fn detached() -> (Self, Receiver<Chunk>) {
        let (chunks, to_write) = sync_channel(1);
        (Self { chunks, seq: 0, chunk_bytes: 1 }, to_write)
    }

    /// The size from which on a chunk is complete. It fits into a file.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// Sends a chunk to the writer. It accepts the next one after it has reported the result.
    pub(super) fn write(&self, lines: Vec<u8>, is_last: bool) {
        // Cannot fail: the thread lives as long as this handle.
        let _ = self.chunks.send(Chunk { lines, is_last });
    }

    /// Adds the line of a key.
    pub(super) fn add(&mut self, lines: &mut Vec<u8>, interval: &Interval, delta: &Delta<'_>) {
        let line = KeyLine {
            seq: self.seq + 1,
            interval,
            key_id: delta.key_id,
            owner: delta.owner,
            counts: &delta.counts,
            first_used: used(delta.first),
            last_used: used(delta.last),
        };
        self.add_line(lines, &line);
    }

    /// Adds the line of unknown keys.
    pub(super) fn add_unknown(&mut self, lines: &mut Vec<u8>, interval: &Interval, unknown: UnknownKeys) {
        let UnknownKeys { unknown_key, malformed_key } = unknown;
        let unknown = UnknownCounts { unknown_key, malformed_key };
        let line = UnknownLine { seq: self.seq + 1, interval, unknown };
        self.add_line(lines, &line);
    }

    fn add_line(&mut self, lines: &mut Vec<u8>, line: &impl Serialize) {
        let before = lines.len();
        match serde_json::to_writer(&mut *lines, line) {
            Ok(()) => {
                lines.push(b'\n');
                self.seq += 1;
            }
            // Numbers and text always encode. If not, no half line must remain.
            Err(_) => lines.truncate(before),
        }
    }
}

/// Opens the file, and returns the number of its last line; 0 if it has none, or one that no daemon
/// has written.
fn open_file(directory: &StateDir, files: Rotation) -> Result<(LazyJournal, u64), FileError> {
    let (journal, last_line) = LazyJournal::open(directory, FILE, files)?;
    let last = last_line.and_then(|line| serde_json::from_slice(&line).ok());
    let seq = last.map_or(0, |Seq { seq }| seq);
    Ok((journal, if seq <= MAX_SEQ { seq } else { 0 }))
}

/// For the fuzz targets: returns the number of the last line, and appends `lines` lines with unknown
/// keys, each in a write of its own.
#[cfg(feature = "fuzzing")]
pub(crate) fn continue_file(directory: &StateDir, files: Rotation, lines: usize) -> Result<u64, FileError> {
    let (mut journal, seq) = open_file(directory, files)?;
    let mut writer = Writer { chunks: sync_channel(0).0, seq, chunk_bytes: 0 };
    let interval = Interval { from: String::new(), to: String::new() };
    for _ in 0..lines {
        let mut line = Vec::new();
        writer.add_unknown(&mut line, &interval, UnknownKeys { unknown_key: 1, malformed_key: 0 });
        write(&mut journal, directory.health(), &line, true)?;
    }
    Ok(seq)
}

fn write(
    journal: &mut LazyJournal,
    health: &WriteHealth,
    lines: &[u8],
    is_last: bool,
) -> Result<(), FileError> {
    journal.append(lines).inspect_err(|error| health.failed(FILE, error))?;
    // Lines that cannot be synced are in the file, and a program that follows it may have read
    // them. Writing them again would count them twice. The next sync includes them.
    match if is_last { journal.sync() } else { Ok(()) } {
        Ok(()) => health.written(FILE),
        Err(error) => health.failed(FILE, &error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyward_state::disk::trace::Trace;

    #[test]
    fn number_that_no_daemon_has_written_is_not_continued() {
        for (number, expected) in [(7, 7), (MAX_SEQ, MAX_SEQ), (MAX_SEQ + 1, 0), (u64::MAX, 0)] {
            let directory = tempfile::tempdir().expect("a directory");
            let state = StateDir::open(directory.path(), true).expect("opens").expect("there");
            std::fs::write(state.path(FILE), format!("{{\"seq\":{number}}}\n")).expect("writes");
            let rotation = Rotation { max_file_size: u64::MAX, keep: 0 };
            assert_eq!(open_file(&state, rotation).expect("opens").1, expected);
        }
    }

    #[test]
    fn usage_is_durable_after_the_last_lines_of_an_interval() {
        let directory = tempfile::tempdir().expect("a directory");
        let trace = Trace::of(directory.path());
        let rotation = Rotation { max_file_size: 20, keep: 2 };
        let state = StateDir::open(directory.path(), true).expect("opens").expect("there");
        let mut journal = LazyJournal::open(&state, FILE, rotation).expect("opens").0;
        for is_last in [false, false, true, true] {
            write(&mut journal, state.health(), b"{\"n\":1}\n", is_last).expect("written");
            assert_eq!(trace.volatile().is_empty(), is_last);
        }
    }
}
