//! Load on keys that are being revoked. It detects an ALLOWED that left the daemon after the
//! revocation was acknowledged.
//!
//! Answers are identified by their offset in the stream. At an acknowledgement, every byte that has
//! left the daemon has been read or is in the socket's buffer: an ALLOWED at a higher offset left
//! later.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use keyward_protocol::{MAX_ANSWER_LENGTH, ParsedFrame, Response, parse_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Random, encode_verify};

/// Maximum number of requests per write.
const CHUNK: usize = 256;

/// Maximum number of requests per revocation: enough that some are always in flight, and few enough
/// that the revoking thread gets its share of the processors.
const REQUESTS_PER_REVOCATION: usize = 256;

/// Pause of a connection that has sent more than its share.
const PAUSE: Duration = Duration::from_micros(100);

/// Pause before another attempt to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(5);

/// One connection, which reconnects when the daemon restarts.
pub(crate) struct RevocationLoad {
    path: PathBuf,
    /// Maximum number of requests in flight.
    window: usize,
    frames: Vec<Vec<u8>>,
    stream: Mutex<Stream>,
    tally: Mutex<Tally>,
}

struct Stream {
    socket: Option<UnixStream>,
    /// Bytes read so far, over all sockets.
    received: u64,
}

struct Tally {
    answers: u64,
    /// Per key: the offset of its last ALLOWED.
    last_allowed: Vec<Option<u64>>,
    /// Per key: the bytes that had left the daemon when its revocation was acknowledged.
    acknowledged_at: Vec<Option<u64>>,
}

struct Progress {
    random: Random,
    sent: u64,
}

/// A request in flight.
struct Pending {
    key: usize,
    /// Keys revoked when it was sent.
    acknowledged: u64,
}

impl RevocationLoad {
    pub(crate) fn new(path: &Path, keys: &[String], window: usize) -> Self {
        let frames = keys.iter().map(|key| encode_verify(0, key)).collect();
        let tally = Tally {
            answers: 0,
            last_allowed: vec![None; keys.len()],
            acknowledged_at: vec![None; keys.len()],
        };
        let stream = Stream { socket: None, received: 0 };
        Self { path: path.to_owned(), window, frames, stream: Mutex::new(stream), tally: Mutex::new(tally) }
    }

    /// Records that the revocation of `key` was acknowledged: its command has returned.
    pub(crate) fn acknowledge(&self, key: usize) {
        let offset = {
            let stream = self.stream();
            let queued = stream
                .socket
                .as_ref()
                .map_or(0, |socket| rustix::io::ioctl_fionread(socket).expect("a socket"));
            stream.received + queued
        };
        self.tally().acknowledged_at[key] = Some(offset);
    }

    /// Panics if an ALLOWED left after its key's acknowledgement. Returns the number of answers.
    pub(crate) fn check(&self) -> u64 {
        let tally = self.tally();
        for (key, (allowed, acknowledged)) in
            tally.last_allowed.iter().zip(&tally.acknowledged_at).enumerate()
        {
            let acknowledged = acknowledged.expect("revoked");
            assert!(
                allowed.is_none_or(|allowed| allowed < acknowledged),
                "key {key}, window {}: ALLOWED at byte {allowed:?}, acknowledged at byte {acknowledged}",
                self.window
            );
        }
        tally.answers
    }

    /// Sends requests until `stop` is set. Keys are revoked in the order of their numbers:
    /// `acknowledged` of them so far.
    pub(crate) fn run(&self, seed: u64, acknowledged: &AtomicU64, stop: &AtomicBool) {
        let mut progress = Progress { random: Random::new(seed), sent: 0 };
        while !stop.load(Ordering::Acquire) {
            match UnixStream::connect(&self.path) {
                Ok(socket) => self.run_connection(socket, &mut progress, acknowledged, stop),
                Err(_) => thread::sleep(RECONNECT_INTERVAL),
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
        // The offset of the first answer that has not been parsed.
        let mut offset = {
            let mut stream = self.stream();
            stream.socket = Some(socket);
            stream.received
        };
        let mut pending = VecDeque::new();
        let (mut output, mut input) = (Vec::new(), Vec::new());
        // Requests to send before the next pause.
        let mut remaining = 0;
        while !stop.load(Ordering::Acquire) {
            let acknowledged = acknowledged.load(Ordering::Acquire);
            if pending.is_empty() && remaining == 0 {
                if progress.sent > acknowledged * self.requests_per_revocation() {
                    thread::sleep(PAUSE);
                    continue;
                }
                remaining = self.window;
            }
            if output.is_empty() {
                for _ in 0..remaining.min(CHUNK) {
                    let key = self.pick_key(&mut progress.random, acknowledged);
                    output.extend_from_slice(&self.frames[key]);
                    pending.push_back(Pending { key, acknowledged });
                    progress.sent += 1;
                    remaining -= 1;
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
                // Answers are read only when nothing more can be written, so that they queue up.
                if !self.receive(&mut input) {
                    return;
                }
                self.count_answers(&mut input, &mut offset, &mut pending);
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

    fn count_answers(&self, input: &mut Vec<u8>, offset: &mut u64, pending: &mut VecDeque<Pending>) {
        let mut parsed = 0;
        let mut tally = self.tally();
        while let ParsedFrame::Complete { header, body, size } =
            parse_frame(&input[parsed..], MAX_ANSWER_LENGTH)
        {
            let Response::Answer(answer) = Response::decode(&header, body).expect("a frame of SPEC.md")
            else {
                panic!("not an ANSWER");
            };
            let Pending { key, acknowledged } = pending.pop_front().expect("one answer per request");
            match answer.verdict.name() {
                "ALLOWED" => {
                    let was_revoked = (key as u64) < acknowledged;
                    assert!(!was_revoked, "key {key} is allowed, but was revoked before the request");
                    tally.last_allowed[key] = Some(*offset);
                }
                "REVOKED" | "NOT_READY" => {}
                verdict => panic!("{verdict}"),
            }
            tally.answers += 1;
            parsed += size;
            *offset += size as u64;
        }
        input.drain(..parsed);
    }

    fn requests_per_revocation(&self) -> u64 {
        (8 * self.window).min(REQUESTS_PER_REVOCATION) as u64
    }

    /// Mostly a key around the current revocation, sometimes any key.
    fn pick_key(&self, random: &mut Random, acknowledged: u64) -> usize {
        let keys = self.frames.len();
        if random.below(4) == 0 {
            return random.below(keys);
        }
        (acknowledged as usize + random.below(16)).saturating_sub(4).min(keys - 1)
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().expect("not poisoned")
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("not poisoned")
    }
}
