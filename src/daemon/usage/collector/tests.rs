//! What the usage thread waits for while a disk hangs. A test takes the place of the writer thread
//! and of the clock.

use std::io;
use std::path::PathBuf;

use keyward_engine::snapshot::Snapshot;
use keyward_protocol::Verdict;

use super::super::tests::{log, request_usage, snapshot};
use super::super::writer::Chunk;
use super::*;

/// A collector, and the chunks that it sends to the writer.
struct Fixture {
    collector: Collector,
    chunks: Receiver<Chunk>,
    snapshot: std::sync::Arc<Snapshot>,
}

impl Fixture {
    /// A collector that has begun to write the usage of two keys, and has sent the first line.
    fn writing() -> Self {
        let (writer, chunks) = Writer::detached();
        let interval = Duration::from_secs(3600);
        let collector = Collector::new(interval, Some(writer), watch::channel(0).0, Vec::new());
        let snapshot = snapshot(1, &[("k", "a", ""), ("k2", "b", "")]);
        let mut fixture = Self { collector, chunks, snapshot };
        fixture.use_key("k");
        fixture.use_key("k2");
        fixture.collector.advance(fixture.collector.next_write);
        fixture
    }

    fn use_key(&mut self, key: &str) {
        let (mut log, messages) = log();
        log.begin(Some(&self.snapshot), 100);
        log.verified(Verdict::Allowed, request_usage(&self.snapshot, key, 1));
        log.flush();
        messages.try_iter().for_each(|message| self.collector.handle(message));
    }

    /// The line that the writer has received.
    fn line(&self) -> Vec<u8> {
        self.chunks.try_recv().expect("a chunk").lines
    }

    /// Handles the writer's result, and everything that is due after it.
    fn written(&mut self, lines: Vec<u8>, result: Result<(), FileError>) {
        self.collector.handle(Message::Written { lines, result });
        self.collector.advance(Instant::now());
    }

    /// Fails if the thread would not wait for a message now, nor at any later time.
    fn assert_waits(&mut self) {
        for now in [Instant::now(), Instant::now() + 2 * IDLE] {
            self.collector.advance(now);
            assert!(!self.collector.idle_for(now).is_zero(), "nothing is due until the writer has written");
        }
    }
}

/// The number of the line in a chunk.
fn seq(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(line).ok()?["seq"].as_u64()
}

fn disk_full() -> FileError {
    FileError {
        path: PathBuf::from("usage.jsonl"),
        action: "write to it",
        error: io::ErrorKind::StorageFull.into(),
    }
}

#[test]
fn thread_waits_while_a_retry_hangs() {
    let mut fixture = Fixture::writing();
    let line = fixture.line();
    fixture.assert_waits();
    fixture.written(line.clone(), Err(disk_full()));
    assert!(fixture.chunks.try_recv().is_err(), "the retry is not due yet");
    let retry = Instant::now() + RETRY;
    assert!(fixture.collector.idle_for(retry).is_zero());
    fixture.collector.advance(retry);
    assert_eq!(fixture.line(), line, "the same line");
    fixture.assert_waits();

    fixture.written(line, Ok(()));
    assert_eq!(seq(&fixture.line()), Some(2), "the interval's next line");
}

#[test]
fn thread_waits_for_the_write_in_progress_at_shutdown() {
    let mut fixture = Fixture::writing();
    let (reply, mut stopped) = oneshot::channel();
    fixture.collector.handle(Message::Stop { reply });
    fixture.assert_waits();
    fixture.use_key("k");
    // The empty chunk makes the lines durable.
    for expected in [Some(1), Some(2), Some(3), None] {
        let line = fixture.line();
        assert_eq!(seq(&line), expected);
        assert!(stopped.try_recv().is_err(), "usage remains to be written");
        fixture.assert_waits();
        fixture.written(line, Ok(()));
    }
    assert_eq!(stopped.try_recv(), Ok(()), "as soon as all lines are durable");
}
