//! The log of a service: a bounded queue in memory, and one thread that writes it to standard error.
//!
//! Standard error belongs to the environment. It can be full, closed, or a pipe that is never read,
//! and a write to it can block forever. Only the thread `log` writes to it, so nothing else in the
//! process waits for it or fails with it. A line is dropped if the queue is full or if it cannot be
//! written. Dropped lines are counted, in [`Log::health`] and in a line of the log once lines can
//! be written again.
//!
//! O_NONBLOCK would be no alternative: it is a property of the open file description, which the
//! process may share.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing::error;
use tracing_subscriber::fmt::MakeWriter;

use keyward_state::Timestamp;

/// Maximum number of bytes in the queue: the diagnostics of some hundred refused reloads.
const MAX_BYTES: usize = 1 << 20;

/// Maximum number of lines in the queue. It bounds the memory that the queue needs beyond its
/// bytes.
const MAX_LINES: usize = 8_192;

/// Minimum interval between two reports of dropped lines while the queue stays full, so that
/// reports do not displace other lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a service waits for the queue to be written before it ends. On a busy machine the
/// thread may not run for a while, and the last line says why a start was refused.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

thread_local! {
    /// On the thread `log`: receives the lines that this thread logs itself.
    static CAPTURED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The log; clones write to the same queue.
#[derive(Clone)]
pub struct Log {
    shared: Arc<SharedQueue>,
}

struct SharedQueue {
    queue: Mutex<Queue>,
    /// Signals a new line.
    filled: Condvar,
    /// Signals that all lines have been written or dropped.
    emptied: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Whether a line has been taken from the queue and is being written.
    is_writing: bool,
    /// Lines dropped since the start.
    dropped: u64,
    /// Lines dropped since the last report.
    unreported: Option<Gap>,
    /// The error of the last write.
    error: Option<Errno>,
}

/// Lines that are missing from the log.
#[derive(Clone, Copy)]
struct Gap {
    lines: u64,
    since: Timestamp,
}

/// The state of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Lines dropped since the start.
    pub dropped: u64,
    /// Since when lines have been dropped. `None` while writing works.
    pub failing_since: Option<Timestamp>,
    /// Why lines cannot be written.
    pub error: Option<String>,
}

impl Log {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(output: impl AsFd + Send + 'static) -> io::Result<Self> {
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(SharedQueue { queue, filled: Condvar::new(), emptied: Condvar::new() });
        let writer = Writer { shared: Arc::clone(&shared), output, is_torn: false, reported: None };
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run())?;
        Ok(Self { shared })
    }

    /// Adds a line, with its newline, or drops it if the queue is full. Never waits for the output.
    pub fn write(&self, line: &[u8]) {
        let mut queue = self.shared.lock();
        if queue.lines.len() >= MAX_LINES || queue.bytes + line.len() > MAX_BYTES {
            return queue.drop_lines(1);
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.into());
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// Waits until every line has been written or dropped, at most for `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let queue = self.shared.lock();
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        // The result says only whether the timeout has expired.
        let _ = self.shared.emptied.wait_timeout_while(queue, timeout, is_busy);
    }

    /// The state of the log.
    pub fn health(&self) -> Health {
        let queue = self.shared.lock();
        let failing_since = queue.unreported.map(|gap| gap.since);
        let error = failing_since.map(|_| match queue.error {
            Some(error) => format!("cannot write to standard error: {}", io::Error::from(error)),
            None => "standard error is not being read".to_owned(),
        });
        Health { dropped: queue.dropped, failing_since, error }
    }

    /// Writes the messages of panics to the log. The standard hook writes to standard error, and
    /// could block there instead of letting the process end.
    pub fn catch_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let mut text = format!("thread {:?}: {panic}\n", thread.name().unwrap_or("unnamed"));
            let backtrace = Backtrace::capture();
            if backtrace.status() == BacktraceStatus::Captured {
                text += &format!("{backtrace}\n");
            }
            log.write(text.as_bytes());
            log.flush(FLUSH_TIMEOUT);
        }));
    }
}

impl SharedQueue {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn drop_lines(&mut self, lines: u64) {
        self.dropped += lines;
        self.unreported.get_or_insert_with(|| Gap { lines: 0, since: Timestamp::now() }).lines += lines;
    }
}

/// The state of the thread `log`.
struct Writer<W> {
    shared: Arc<SharedQueue>,
    output: W,
    /// Whether the last write ended within a line.
    is_torn: bool,
    /// When dropped lines were last reported.
    reported: Option<Instant>,
}

impl<W: AsFd> Writer<W> {
    fn run(mut self) {
        loop {
            let (line, gap) = self.take();
            // After failed writes, the report about the missing lines comes before the next line.
            let written = match gap {
                Some(gap) => self.report(gap).and_then(|()| self.write(&line)),
                None => self.write(&line),
            };
            self.finish(written);
        }
    }

    /// Waits for a line and takes it. After a failed write, also returns the gap before this line.
    fn take(&self) -> (Box<[u8]>, Option<Gap>) {
        let mut queue = self.shared.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.is_writing = true;
                return (line, queue.unreported.filter(|_| queue.error.is_some()));
            }
            queue = self.shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts a line that could not be written. After a successful write, reports lines that were
    /// dropped because the queue was full.
    fn finish(&mut self, written: Result<(), Errno>) {
        let mut queue = self.shared.lock();
        queue.error = written.err();
        if written.is_err() {
            queue.drop_lines(1);
        } else if let Some(gap) = queue.unreported
            && (queue.lines.is_empty() || self.reported.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL))
        {
            drop(queue);
            let reported = self.report(gap);
            queue = self.shared.lock();
            queue.error = reported.err();
        }
        queue.is_writing = false;
        if queue.lines.is_empty() {
            self.shared.emptied.notify_all();
        }
    }

    /// Logs how many lines are missing.
    fn report(&mut self, Gap { lines, since }: Gap) -> Result<(), Errno> {
        CAPTURED.set(Some(Vec::new()));
        error!(dropped = lines, since = %since, "{lines} log lines were dropped since {since}");
        let line = CAPTURED.take().unwrap_or_default();
        self.write(&line)?;
        self.reported = Some(Instant::now());
        let mut queue = self.shared.lock();
        queue.error = None;
        // More may have been dropped while this was being written.
        let more = queue.unreported.map_or(0, |gap| gap.lines - lines);
        queue.unreported = (more > 0).then(|| Gap { lines: more, since: Timestamp::now() });
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> Result<(), Errno> {
        if self.is_torn {
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.output, bytes) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => {
                    self.is_torn = true;
                    bytes = &bytes[count..];
                }
                Err(Errno::INTR) => {}
                // Another process has made the pipe or terminal nonblocking.
                Err(Errno::AGAIN) => {
                    // An interrupted poll is repeated by the loop.
                    let _ = poll(&mut [PollFd::new(&self.output, PollFlags::OUT)], None);
                }
                Err(error) => return Err(error),
            }
        }
        self.is_torn = false;
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Receives one formatted line. Writing it never fails, because tracing-subscriber would report the
/// error on standard error.
pub struct Line<'a>(&'a Log);

impl io::Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_captured = CAPTURED.with_borrow_mut(|captured| {
            captured.as_mut().map(|captured| captured.extend_from_slice(line)).is_some()
        });
        if !is_captured {
            self.0.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, Read, pipe};

    use super::*;

    /// How long an operation may take before the test fails.
    const TIMEOUT: Duration = Duration::from_secs(20);

    /// A log that writes to a full pipe.
    fn blocked() -> (Log, PipeReader) {
        let (reader, writer) = pipe().expect("a pipe");
        let log = Log::start(writer).expect("a thread");
        // A pipe holds 64 KiB: the thread `log` is blocked before all of this is written.
        for _ in 0..100 {
            log.write(&[b'x'; 1024]);
        }
        (log, reader)
    }

    #[test]
    fn queue_is_bounded_in_bytes_and_lines() {
        let (log, _reader) = blocked();
        for _ in 0..2 * MAX_LINES {
            log.write(b"y\n");
        }
        assert!(log.shared.lock().lines.len() <= MAX_LINES);
        let (log, _reader) = blocked();
        for _ in 0..2 * MAX_BYTES / 1024 {
            log.write(&[b'y'; 1024]);
        }
        assert!(log.shared.lock().bytes <= MAX_BYTES);
        let health = log.health();
        assert!(health.dropped > 0 && health.failing_since.is_some(), "{health:?}");
        assert_eq!(health.error.as_deref(), Some("standard error is not being read"));
        log.write(&vec![b'z'; MAX_BYTES + 1]);
        assert_eq!(log.health().dropped, health.dropped + 1, "longer than the whole queue");
    }

    #[test]
    fn flush_of_a_blocked_output_is_bounded() {
        let (log, _reader) = blocked();
        let start = Instant::now();
        log.flush(Duration::from_millis(10));
        assert!((Duration::from_millis(10)..TIMEOUT).contains(&start.elapsed()));
    }

    #[test]
    fn failing_since_is_cleared_once_output_is_read_again() {
        let (log, mut reader) = blocked();
        // More than the queue holds.
        for _ in 0..=MAX_LINES {
            log.write(&[b'y'; 1024]);
        }
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        log.flush(TIMEOUT);
        let health = log.health();
        assert!(health.dropped > 0 && health.failing_since.is_none(), "{health:?}");
    }

    #[test]
    fn lines_are_written_in_order_before_flush_returns() {
        let (mut reader, writer) = pipe().expect("a pipe");
        let log = Log::start(writer).expect("a thread");
        for line in ["1\n", "2\n", "3\n"] {
            log.write(line.as_bytes());
        }
        log.flush(TIMEOUT);
        let mut written = [0; 6];
        reader.read_exact(&mut written).expect("three lines");
        assert_eq!(&written, b"1\n2\n3\n");
        assert_eq!(log.health(), Health::default());
    }

    #[test]
    fn each_line_that_cannot_be_written_is_counted() {
        let full = File::options().write(true).open("/dev/full").expect("a device");
        let (reader, closed) = pipe().expect("a pipe");
        drop(reader);
        let read_only = File::open("/dev/null").expect("a device");
        for (log, problem) in [
            (Log::start(full), "No space left on device"),
            (Log::start(closed), "Broken pipe"),
            (Log::start(read_only), "Bad file descriptor"),
        ] {
            let log = log.expect("a thread");
            for _ in 0..10 {
                log.write(b"line\n");
            }
            log.flush(TIMEOUT);
            let health = log.health();
            assert_eq!(health.dropped, 10);
            assert!(health.error.as_ref().is_some_and(|error| error.contains(problem)), "{health:?}");
        }
    }
}
