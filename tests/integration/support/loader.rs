//! A connection that asks without pause about keys that are being revoked, and knows of each ALLOWED whether it may have
//! left the daemon before the revocation was acknowledged.
//!
//! Answers are told apart by where they are in the stream. When a revocation is acknowledged, everything that has left the
//! daemon has been read or lies in the socket: an ALLOWED beyond that left after the acknowledgement.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use keyward_protocol::{MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Requests that are written at once, at most.
const CHUNK: usize = 256;

/// Requests to each revocation, at most: so many that some are always on their way, and so few that whoever revokes gets
/// its share of the processors.
const REQUESTS_PER_REVOCATION: usize = 256;

/// How long a connection rests that has asked more than its share.
const REST: Duration = Duration::from_micros(100);

/// One connection, whichever socket it has at the moment.
pub(crate) struct Loader {
    path: PathBuf,
    window: usize,
    frames: Vec<Vec<u8>>,
    stream: Mutex<Stream>,
    tally: Mutex<Tally>,
}

struct Stream {
    socket: Option<UnixStream>,
    /// Bytes that were read, of all sockets together.
    received: u64,
}

struct Tally {
    answers: u64,
    /// For each key, where its last ALLOWED began.
    allowed: Vec<Option<u64>>,
    /// For each key, how much had left the daemon when its revocation was acknowledged.
    left: Vec<Option<u64>>,
}

/// How far a connection has come.
struct Course {
    random: u64,
    sent: u64,
}

/// What is on its way: keys, and how many were revoked when they were asked about.
struct Asked {
    key: usize,
    acknowledged: u64,
}

impl Loader {
    pub(crate) fn new(path: &Path, keys: &[String], window: usize) -> Self {
        let frames = keys.iter().map(|key| super::ask(0, key)).collect();
        let tally = Tally { answers: 0, allowed: vec![None; keys.len()], left: vec![None; keys.len()] };
        let stream = Stream { socket: None, received: 0 };
        Self { path: path.to_owned(), window, frames, stream: Mutex::new(stream), tally: Mutex::new(tally) }
    }

    /// The key has been revoked: the command has returned.
    pub(crate) fn acknowledge(&self, key: usize) {
        let left = {
            let stream = self.stream();
            let queued = stream.socket.as_ref().map_or(0, |socket| {
                rustix::io::ioctl_fionread(socket).expect("a socket says how much there is")
            });
            stream.received + queued
        };
        self.tally().left[key] = Some(left);
    }

    /// Panics if an ALLOWED left too late. Returns how many answers there were.
    pub(crate) fn check(&self) -> u64 {
        let tally = self.tally();
        for (key, (allowed, left)) in tally.allowed.iter().zip(&tally.left).enumerate() {
            let left = left.expect("revoked");
            assert!(
                allowed.is_none_or(|allowed| allowed < left),
                "key {key}, window {}: ALLOWED at byte {allowed:?}, after the {left} that had left",
                self.window
            );
        }
        tally.answers
    }

    /// Asks until it is told to stop; `acknowledged` keys are revoked, in the order of their numbers. Where the daemon goes
    /// away it connects again.
    pub(crate) fn run(&self, seed: u64, acknowledged: &AtomicU64, stop: &AtomicBool) {
        let mut course = Course { random: seed, sent: 0 };
        while !stop.load(Ordering::Acquire) {
            match UnixStream::connect(&self.path) {
                Ok(socket) => self.converse(socket, &mut course, acknowledged, stop),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn converse(&self, socket: UnixStream, course: &mut Course, acknowledged: &AtomicU64, stop: &AtomicBool) {
        socket.set_nonblocking(true).expect("set");
        let mut own = socket.try_clone().expect("a second handle");
        // Where the first unread answer begins.
        let mut at = {
            let mut stream = self.stream();
            stream.socket = Some(socket);
            stream.received
        };
        let mut asked = std::collections::VecDeque::new();
        let (mut output, mut input) = (Vec::new(), Vec::new());
        // Requests that are to be written before the next rest.
        let mut to_ask = 0;
        while !stop.load(Ordering::Acquire) {
            let acknowledged = acknowledged.load(Ordering::Acquire);
            if asked.is_empty() && to_ask == 0 {
                if course.sent > acknowledged * self.share() {
                    std::thread::sleep(REST);
                    continue;
                }
                to_ask = self.window;
            }
            if output.is_empty() {
                for _ in 0..to_ask.min(CHUNK) {
                    let key = self.pick(&mut course.random, acknowledged);
                    output.extend_from_slice(&self.frames[key]);
                    asked.push_back(Asked { key, acknowledged });
                    course.sent += 1;
                    to_ask -= 1;
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
                // Nothing more goes out: the answers are read only now, so that they pile up.
                if !self.receive(&mut input) {
                    return;
                }
                self.weigh(&mut input, &mut at, &mut asked);
            }
        }
    }

    /// Reads what is there; false at the end.
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

    fn weigh(&self, input: &mut Vec<u8>, at: &mut u64, asked: &mut std::collections::VecDeque<Asked>) {
        let mut done = 0;
        let mut tally = self.tally();
        while let ParsedFrame::Complete { header, body, size } =
            parse_frame(&input[done..], MAX_ANSWER_LENGTH)
        {
            let Response::Answer(answer) = Response::decode(&header, body).expect("a frame of SPEC.md")
            else {
                panic!("an answer was asked for");
            };
            let Asked { key, acknowledged } = asked.pop_front().expect("as many answers as requests");
            match answer.verdict.name() {
                "ALLOWED" => {
                    assert!(key as u64 >= acknowledged, "key {key} is allowed, asked after it was revoked");
                    tally.allowed[key] = Some(*at);
                }
                "REVOKED" | "NOT_READY" => {}
                verdict => panic!("{verdict}"),
            }
            tally.answers += 1;
            done += size;
            *at += size as u64;
        }
        input.drain(..done);
    }

    /// Requests to each revocation.
    fn share(&self) -> u64 {
        (8 * self.window).min(REQUESTS_PER_REVOCATION) as u64
    }

    /// Mostly the keys that are about to be revoked or just have been; sometimes any.
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

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no panic while it was held")
    }
}
