//! Round trips through the socket: a real daemon, against a blocking echo that moves as many bytes
//! and decides nothing.
//!
//! * The daemon is `keyward serve` from the same build. It has one million keys, each with one limit
//!   that the bench does not reach.
//! * The echo is a child process. For every 48 bytes (a request) that it has read, it writes as many
//!   bytes as one of the daemon's answers has.
//! * The client is this process. It uses one blocking connection and frames that were encoded before,
//!   so the bench measures the server and the socket. `1 deep` writes a request and reads its answer;
//!   `16 deep` and `128 deep` write as many requests at once and read all their answers. Keys are in
//!   random order, each once in a million requests.
//!
//! Pinning is part of the ids. `same core`: client and server share the first processor. `two
//! cores`: the client runs on the first, the server on the second. Both sides sleep while they
//! wait, so one request at a time on two cores mostly measures the time to wake an idle processor,
//! which on a virtual machine is several times that of everything else.
//!
//! criterion prints the time of a whole round trip and the requests per second. The table at the
//! end has medians per request, and their ratios to the echo with the same pinning and depth: 1.00
//! would be the limit of the socket.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward_protocol::{
    Answer, Credential, LENGTH_BYTES, MAX_ANSWER_LENGTH, ParsedFrame, Response, Verdict, Verify, parse_frame,
};

use keyward_bench_keys::{self as keys, Seeded};
use support::pin::{Pinned, processors};
use support::server::{self, Server};
use support::summary::{BenchId, Summary};

mod support;

const DEPTHS: [usize; 3] = [1, 16, 128];

/// Number of the daemon's keys.
const KEYS: u64 = 1_000_000;

/// The same in a trial run.
const TRIAL_KEYS: u64 = 1_000;

fn main() {
    server::run_echo_if_requested();
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();

    let keys = if support::is_trial_run() { TRIAL_KEYS } else { KEYS };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path();
    server::write_export(&directory.join("keys.csv"), keys, keys::HIGH_LIMIT).expect("the export is written");
    let requests = Requests::new(keys);

    let (first, second) = processors();
    let answer_size = measure(&mut criterion, &mut summary, &requests, directory, ("same core", first));
    if let Some(second) = second {
        measure(&mut criterion, &mut summary, &requests, directory, ("two cores", second));
    }
    criterion.final_summary();
    let sizes = format!("{} B in, {answer_size} B out", requests.size);
    summary.print(&format!("one request ({sizes}), against the echo"));
}

/// Measures both servers on `processor`, with the client on the first. Returns the size of an
/// answer.
fn measure(
    criterion: &mut Criterion,
    summary: &mut Summary,
    requests: &Requests,
    directory: &Path,
    (name, processor): (&str, usize),
) -> usize {
    let mut daemon = Server::daemon(directory, &directory.join("keys.csv"), processor);
    let mut answer_size = 0;
    let stream = daemon.connect(|stream| {
        answer_size = verify_first(stream, requests)?.unwrap_or(0);
        Ok(answer_size > 0)
    });
    let mut daemon_client = Client::new(stream, requests, answer_size);
    let mut echo = Server::echo(directory, requests.size, answer_size, processor);
    let mut echo_client = Client::new(echo.connect(|_| Ok(true)), requests, answer_size);

    let group_name = format!("socket, {name}");
    let mut group = criterion.benchmark_group(&group_name);
    for depth in DEPTHS {
        let id = |function: &str| BenchId {
            group: group_name.clone(),
            function: function.into(),
            parameter: format!("{depth} deep"),
            requests: depth as u64,
        };
        group.throughput(Throughput::Elements(depth as u64));
        for (server, client) in [("echo", &mut echo_client), ("keyward", &mut daemon_client)] {
            let id = id(server);
            group.bench_function(BenchmarkId::new(&id.function, &id.parameter), |bencher| {
                let _pinned = Pinned::to(processors().0);
                bencher.iter_custom(|trips| client.round_trips(trips, depth).expect("the server answers"));
            });
            summary.add(id.clone(), BenchId { function: "echo".into(), ..id });
        }
        daemon_client.assert_allowed(depth);
    }
    group.finish();
    answer_size
}

/// A request for every key of the export, in random order.
struct Requests {
    frames: Vec<u8>,
    /// Bytes of one request.
    size: usize,
}

impl Requests {
    fn new(keys: u64) -> Self {
        let mut numbers: Vec<u64> = (0..keys).collect();
        let mut random = Seeded::new(1);
        for index in (1..numbers.len()).rev() {
            numbers.swap(index, random.below(index as u64 + 1) as usize);
        }
        let mut frames = Vec::new();
        for number in &numbers {
            let request = Verify::new(*number as u32, Credential::Digest(keys::digest(*number)));
            request.encode(&mut frames).expect("all fields fit");
        }
        Self { size: frames.len() / numbers.len(), frames }
    }
}

/// Sends the first request. Returns the size of its answer if it is ALLOWED.
fn verify_first(stream: &mut UnixStream, requests: &Requests) -> io::Result<Option<usize>> {
    stream.write_all(&requests.frames[..requests.size])?;
    let mut answer = vec![0; LENGTH_BYTES + MAX_ANSWER_LENGTH as usize];
    stream.read_exact(&mut answer[..LENGTH_BYTES])?;
    let length = answer.first_chunk().map_or(0, |length| u32::from_le_bytes(*length)).min(MAX_ANSWER_LENGTH);
    let size = LENGTH_BYTES + length as usize;
    stream.read_exact(&mut answer[LENGTH_BYTES..size])?;
    Ok(is_allowed(&answer[..size]).then_some(size))
}

fn is_allowed(frame: &[u8]) -> bool {
    let ParsedFrame::Complete { header, body, .. } = parse_frame(frame, MAX_ANSWER_LENGTH) else {
        return false;
    };
    matches!(Response::decode(&header, body), Ok(Response::Answer(Answer { verdict: Verdict::Allowed, .. })))
}

/// One blocking connection.
struct Client<'a> {
    stream: UnixStream,
    requests: &'a Requests,
    /// Offset of the next request.
    next: usize,
    answer_size: usize,
    answers: Vec<u8>,
}

impl<'a> Client<'a> {
    fn new(stream: UnixStream, requests: &'a Requests, answer_size: usize) -> Self {
        Self { stream, requests, next: 0, answer_size, answers: Vec::new() }
    }

    /// The time that `trips` round trips of `depth` requests each take.
    fn round_trips(&mut self, trips: u64, depth: usize) -> io::Result<Duration> {
        self.answers.resize(depth * self.answer_size, 0);
        let bytes = depth * self.requests.size;
        let start = Instant::now();
        for _ in 0..trips {
            if self.next + bytes > self.requests.frames.len() {
                self.next = 0;
            }
            self.stream.write_all(&self.requests.frames[self.next..self.next + bytes])?;
            self.stream.read_exact(&mut self.answers)?;
            self.next += bytes;
        }
        Ok(start.elapsed())
    }

    /// Asserts that the last answers were ALLOWED. If a filter excluded this depth, nothing was
    /// read.
    fn assert_allowed(&self, depth: usize) {
        if self.answers.len() == depth * self.answer_size {
            assert!(self.answers.chunks(self.answer_size).all(is_allowed), "a request was denied");
        }
    }
}
