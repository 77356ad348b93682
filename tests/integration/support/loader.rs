//! A connection that continuously verifies keys while they are revoked, and detects each ALLOWED
//! that left the daemon after the acknowledgement of the revocation.
//!
//! Answers are identified by their position in the stream. When a revocation is acknowledged,
//! everything that has left the daemon has been read or is queued in the socket. An ALLOWED beyond
//! that position left after the acknowledgement.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use keyward_protocol::{MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most requests in one write.
const CHUNK: usize = 256;

/// Most requests per revocation: enough that some are always in flight, and few enough to leave
/// processor time for the revocations.
const REQUESTS_PER_REVOCATION: usize = 256;

/// How long a connection pauses after it has sent its share.
const PAUSE: Duration = Duration::from_micros(100);

/// A connection that reconnects when the daemon restarts.
pub(crate) struct Loader {
    path: PathBuf,
    window: usize,
    frames: Vec<Vec<u8>>,
    stream: Mutex<Stream>,
    answers: Mutex<Answers>,
}

struct Stream {
    socket: Option<UnixStream>,
    /// Bytes read from all sockets so far.
    received: u64,
}

struct Answers {
    count: u64,
    /// The position of each key's last ALLOWED.
    allowed: Vec<Option<u64>>,
    /// The bytes that had left the daemon when each key's revocation was acknowledged.
    acknowledged: Vec<Option<u64>>,
}

/// The progress of a connection.
struct Progress {
    random: u64,
    sent: u64,
}

/// A request in flight, and the number of acknowledged revocations when it was sent.
struct InFlight {
    key: usize,
    acknowledged: u64,
}

impl Loader {
    pub(crate) fn new(path: &Path, keys: &[String], window: usize) -> Self {
        let frames = keys.iter().map(|key| super::ask(0, key)).collect();
        let answers =
            Answers { count: 0, allowed: vec![None; keys.len()], acknowledged: vec![None; keys.len()] };
        let stream = Stream { socket: None, received: 0 };
        Self {
            path: path.to_owned(),
            window,
            frames,
            stream: Mutex::new(stream),
            answers: Mutex::new(answers),
        }
    }

    /// Records that the revocation of `key` has been acknowledged.
    pub(crate) fn acknowledge(&self, key: usize) {
        let left = {
            let stream = self.stream();
            let queued = stream.socket.as_ref().map_or(0, |socket| {
                rustix::io::ioctl_fionread(socket).expect("a socket says how much there is")
            });
            stream.received + queued
        };
        self.answers().acknowledged[key] = Some(left);
    }

    /// Panics if an ALLOWED left too late. Returns the number of answers.
    pub(crate) fn check(&self) -> u64 {
        let answers = self.answers();
        for (key, (allowed, left)) in answers.allowed.iter().zip(&answers.acknowledged).enumerate() {
            let left = left.expect("revoked");
            assert!(
                allowed.is_none_or(|allowed| allowed < left),
                "key {key}, window {}: ALLOWED at byte {allowed:?}, after the {left} that had left",
                self.window
            );
        }
        answers.count
    }

    /// Sends requests until `stop` is set. The first `acknowledged` keys are revoked. Reconnects
    /// when the daemon restarts.
    pub(crate) fn run(&self, seed: u64, acknowledged: &AtomicU64, stop: &AtomicBool) {
        let mut progress = Progress { random: seed, sent: 0 };
        while !stop.load(Ordering::Acquire) {
            match UnixStream::connect(&self.path) {
                Ok(socket) => self.run_connection(socket, &mut progress, acknowledged, stop),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn run_connection(
        &self,
        socket: UnixStream,
        progress: &mut Progress,
        acknowledged: &AtomicU64,
        stop: &AtomicBool,
    ) {
        socket.set_nonblocking(true).expect("set");
        let mut own = socket.try_clone().expect("a second handle");
        // The position of the first unread answer.
        let mut at = {
            let mut stream = self.stream();
            stream.socket = Some(socket);
            stream.received
        };
        let mut in_flight = std::collections::VecDeque::new();
        let (mut output, mut input) = (Vec::new(), Vec::new());
        // Requests to be written before the next pause.
        let mut to_send = 0;
        while !stop.load(Ordering::Acquire) {
            let acknowledged = acknowledged.load(Ordering::Acquire);
            if in_flight.is_empty() && to_send == 0 {
                if progress.sent > acknowledged * self.share() {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                to_send = self.window;
            }
            if output.is_empty() {
                for _ in 0..to_send.min(CHUNK) {
                    let key = self.pick(&mut progress.random, acknowledged);
                    output.extend_from_slice(&self.frames[key]);
                    in_flight.push_back(InFlight { key, acknowledged });
                    progress.sent += 1;
                    to_send -= 1;
                }
            }
            let write = if output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            let mut ready = [PollFd::new(&own, PollFlags::IN | write)];
            let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            poll(&mut ready, Some(&timeout)).expect("polls");
            let ready = ready[0].revents();
            if ready.contains(PollFlags::OUT) {
                match own.write(&output) {
                    Ok(written) => drop(output.drain(..written)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => output.clear(),
                }
            } else if !ready.is_empty() {
                // Answers are read only when nothing can be written, so that they accumulate.
                if !self.receive(&mut input) {
                    return;
                }
                self.check_answers(&mut input, &mut at, &mut in_flight);
            }
        }
    }

    /// Reads what is available. Returns false at the end of the stream.
    fn receive(&self, input: &mut Vec<u8>) -> bool {
        let mut chunk = [0; 64 * 1024];
        let mut stream = self.stream();
        let Some(socket) = &mut stream.socket else { return false };
        match socket.read(&mut chunk) {
            Ok(0) => {
                stream.socket = None;
                false
            }
            Ok(read) => {
                stream.received += read as u64;
                input.extend_from_slice(&chunk[..read]);
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(_) => {
                stream.socket = None;
                false
            }
        }
    }

    fn check_answers(
        &self,
        input: &mut Vec<u8>,
        at: &mut u64,
        in_flight: &mut std::collections::VecDeque<InFlight>,
    ) {
        let mut done = 0;
        let mut answers = self.answers();
        while let ParsedFrame::Complete { header, body, size } =
            parse_frame(&input[done..], MAX_ANSWER_LENGTH)
        {
            let Response::Answer(answer) = Response::decode(&header, body).expect("a frame of SPEC.md")
            else {
                panic!("not an answer");
            };
            let InFlight { key, acknowledged } = in_flight.pop_front().expect("as many answers as requests");
            match answer.verdict.name() {
                "ALLOWED" => {
                    assert!(
                        key as u64 >= acknowledged,
                        "key {key} is allowed, but was sent after its revocation"
                    );
                    answers.allowed[key] = Some(*at);
                }
                "REVOKED" | "NOT_READY" => {}
                verdict => panic!("{verdict}"),
            }
            answers.count += 1;
            done += size;
            *at += size as u64;
        }
        input.drain(..done);
    }

    /// The number of requests per revocation.
    fn share(&self) -> u64 {
        (8 * self.window).min(REQUESTS_PER_REVOCATION) as u64
    }

    /// Picks mostly keys that are about to be revoked or just have been, and sometimes any key.
    fn pick(&self, random: &mut u64, acknowledged: u64) -> usize {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = *random >> 33;
        let keys = self.frames.len() as u64;
        let key = match number % 4 {
            0 => number / 4 % keys,
            _ => (acknowledged + number / 4 % 16).saturating_sub(4).min(keys - 1),
        };
        key as usize
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().expect("no panic while it was held")
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().expect("no panic while it was held")
    }
}
