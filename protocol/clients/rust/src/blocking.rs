//! The blocking client: one connection, one thread, no runtime.
//!
//! Writes never block: what the socket does not take waits until it is writable *or readable*, so that a daemon which
//! stops reading until its answers are read (SPEC.md section 1) always gets them read.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use keyward_protocol::Credential;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::busy::Busy;
use crate::error::{DaemonError, ENDED, Error, Failure, Outcome};
use crate::forms::Forms;
use crate::retry::{PASSES, STALLED, knock_again, pause};
use crate::socket::{FRESH, Idle, SHORTEST_TIMEOUT, connect_within, look};
use crate::wire::{self, Event, HELLO_SEQUENCE, Inbox, Outbox, Session, due};
use crate::{Decision, Options, Refund, Request};

/// Encode this much ahead of the socket: about what it holds, so that a write is rarely short.
const AHEAD_BYTES: usize = 64 * 1024;

/// How much later than asked a read may give up, so that its timeout need not be set anew for each request. The
/// kernel's own clock ticks no finer.
const TIMEOUT_SLACK: Duration = Duration::from_millis(4);

/// The blocking client. It connects on first use, and again whenever that is needed.
///
/// It is `Send`, and its methods take `&mut self`: give each thread its own, or share one behind a mutex.
pub struct Client {
    options: Options,
    connection: Option<Connection>,
}

struct Connection {
    stream: UnixStream,
    session: Session,
    forms: Forms,
    outbox: Outbox,
    inbox: Inbox,
    /// Number of the next request.
    next: u64,
    /// Number of the request whose answer is due next.
    first: u64,
    /// Since when answers have been due that nobody waits for any longer.
    owed_since: Option<Instant>,
    /// When the daemon last heard from us.
    last_sent: Instant,
    /// What the socket's timeout for reading is set to.
    read_timeout: Duration,
    busy: Busy,
}

/// A request that has been handed to the connection.
struct Sent {
    /// Which of the caller's requests it is.
    index: usize,
    number: u64,
    position: u64,
    /// Whether its key was sent as it is.
    raw: bool,
}

/// Why an exchange stopped before all was answered.
enum End {
    /// The deadline has passed; the connection goes on.
    Late,
    /// It ended without a word.
    Lost,
    /// The daemon closes it; what has no answer has not been processed.
    Closing(DaemonError),
    /// What came does not follow the protocol.
    Fault(Error),
}

impl Client {
    /// A client of the daemon at `socket`, with the default [`Options`]. Does not connect yet.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self::with_options(Options::new(socket))
    }

    /// A client with these options. Does not connect yet.
    pub fn with_options(options: Options) -> Self {
        Self { options, connection: None }
    }

    /// Another deadline for each call from here on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.options = self.options.clone().deadline(deadline);
    }

    /// Asks, and waits for the answer. A denial is an `Ok`.
    ///
    /// # Errors
    /// Where there is no answer; [`Error::may_have_been_charged`] tells whether it is safe to ask again.
    pub fn verify(&mut self, request: &Request<'_>) -> Result<Decision, Error> {
        let mut outcome = [None];
        self.run(std::slice::from_ref(request), &mut outcome);
        let [outcome] = outcome;
        self.settle(outcome)
    }

    /// Gives back what a request was charged, and waits for the answer: ALLOWED, or that the key is not known.
    ///
    /// # Errors
    /// Where there is no answer. Where [`Error::may_have_been_charged`] then says so, the key may have got it back
    /// already, and another refund would be one too many.
    pub fn refund(&mut self, refund: &Refund<'_>) -> Result<Decision, Error> {
        self.verify(refund.request())
    }

    /// Asks all of them, pipelined, with at most [`Options::max_in_flight`] under way. The answers are in the order of the
    /// requests. The deadline is for the whole call.
    ///
    /// Each answer stands for itself: one request may fail, and the next be answered.
    pub fn verify_many(&mut self, requests: &[Request<'_>]) -> Vec<Result<Decision, Error>> {
        let mut outcomes: Vec<_> = requests.iter().map(|_| None).collect();
        self.run(requests, &mut outcomes);
        outcomes.into_iter().map(|outcome| self.settle(outcome)).collect()
    }

    fn settle(&self, outcome: Option<Outcome>) -> Result<Decision, Error> {
        let outcome = outcome.unwrap_or(Err(Failure::Late { written: false }));
        outcome.map_err(|failure| failure.into_error(self.options.time()))
    }

    fn run(&mut self, requests: &[Request<'_>], outcomes: &mut [Option<Outcome>]) {
        let deadline = Instant::now() + self.options.time();
        let mut open: Vec<usize> = (0..requests.len()).collect();
        for pass in 0..PASSES {
            if open.is_empty() || !rest(pause(pass), deadline) {
                return;
            }
            match self.connect(deadline) {
                Ok(mut connection) => {
                    let limit = self.options.in_flight();
                    if connection.exchange(requests, &open, outcomes, limit, deadline) {
                        self.connection = Some(connection);
                    }
                }
                Err(failure) => {
                    for &index in &open {
                        outcomes[index] = Some(Err(failure.clone()));
                    }
                }
            }
            open.retain(|&index| matches!(outcomes[index], None | Some(Err(Failure::Retry(_)))));
        }
    }

    /// The connection, if it can still be used, or a new one.
    fn connect(&mut self, deadline: Instant) -> Result<Connection, Failure> {
        match self.connection.take().filter(Connection::is_usable) {
            Some(connection) => Ok(connection),
            None => Connection::open(&self.options, deadline),
        }
    }
}

/// Waits; `false` where the deadline comes first.
fn rest(pause: Duration, deadline: Instant) -> bool {
    if pause.is_zero() {
        return true;
    }
    let in_time = Instant::now() + pause < deadline;
    if in_time {
        thread::sleep(pause);
    }
    in_time
}

/// What is left until `deadline`; `None` where nothing is.
fn remaining(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

impl Connection {
    /// Connects and says HELLO.
    fn open(options: &Options, deadline: Instant) -> Result<Self, Failure> {
        let stream = knock(options.socket(), deadline)?;
        let mut inbox = Inbox::new();
        // A daemon that turns us away has said why, and closed: the reason is there to be read although the write fails.
        let _ = send(&stream, &wire::hello(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        let session = loop {
            if let Some(response) = inbox.response().map_err(Failure::Final)? {
                break wire::greeted(&response)?;
            }
            let left = remaining(deadline).ok_or(Failure::Late { written: false })?;
            set_read_timeout(&stream, left);
            match (&stream).read(inbox.space()) {
                Ok(0) => return Err(ENDED),
                Ok(count) => inbox.filled(count),
                Err(error) if is_for_later(&error) => {}
                Err(_) => return Err(ENDED),
            }
        };
        Ok(Self {
            stream,
            session,
            forms: Forms::new(session.credentials),
            outbox: Outbox::new(session),
            inbox,
            next: HELLO_SEQUENCE + 1,
            first: HELLO_SEQUENCE + 1,
            owed_since: None,
            last_sent: Instant::now(),
            read_timeout: Duration::ZERO,
            busy: options.busy(),
        })
    }

    /// Whether requests can be written: the daemon has neither ended the connection, nor is it about to (SPEC.md section
    /// 9), nor does it owe answers for too long.
    fn is_usable(&self) -> bool {
        let silent = self.last_sent.elapsed();
        if self.session.usable_silence.is_some_and(|limit| silent > limit)
            || self.owed_since.is_some_and(|since| since.elapsed() > STALLED)
        {
            return false;
        }
        // Where nothing is owed, the daemon has nothing to say but that it closes.
        silent < FRESH
            || match look(&self.stream) {
                Idle::Quiet => true,
                Idle::Speaks => self.owed_since.is_some(),
                Idle::Ended => false,
            }
    }

    /// Asks those of `requests` that `open` lists, and settles each as far as that is possible here. Tells whether the
    /// connection can be used again.
    fn exchange(
        &mut self,
        requests: &[Request<'_>],
        open: &[usize],
        outcomes: &mut [Option<Outcome>],
        limit: usize,
        deadline: Instant,
    ) -> bool {
        let mut under_way = VecDeque::with_capacity(open.len().min(limit));
        let mut rest = open.iter().copied();
        let result = self.pump(requests, &mut rest, &mut under_way, outcomes, limit, deadline);
        let Err(end) = result else { return true };
        let written = self.outbox.written();
        let mut whole = true;
        for sent in &under_way {
            let failure = end.failure(sent.position < written);
            outcomes[sent.index] = Some(Err(failure));
        }
        if let End::Late = end {
            for index in rest {
                outcomes[index] = Some(Err(Failure::Late { written: false }));
            }
            whole = self.take_back(&under_way);
        }
        whole && matches!(end, End::Late)
    }

    /// After a deadline: takes back what has not been written, and remembers whose answers will come late. `false` where
    /// a frame has been written in part.
    fn take_back(&mut self, under_way: &VecDeque<Sent>) -> bool {
        let written = self.outbox.written();
        let unwritten = under_way.iter().find(|sent| sent.position >= written);
        let (end, next) = match unwritten {
            Some(sent) => (sent.position, sent.number),
            None => (written + self.outbox.unsent().len() as u64, self.next),
        };
        if end != written {
            return false;
        }
        self.outbox.truncate(end);
        self.next = next;
        if self.first < self.next {
            self.owed_since.get_or_insert_with(Instant::now);
        }
        true
    }

    fn pump(
        &mut self,
        requests: &[Request<'_>],
        rest: &mut impl ExactSizeIterator<Item = usize>,
        under_way: &mut VecDeque<Sent>,
        outcomes: &mut [Option<Outcome>],
        limit: usize,
        deadline: Instant,
    ) -> Result<(), End> {
        loop {
            // Refilled when half is answered, and not for each answer: few large writes instead of many small ones.
            if under_way.len() <= limit / 2 {
                self.fill(requests, rest, under_way, outcomes, limit);
            }
            if under_way.is_empty() && rest.len() == 0 {
                return Ok(());
            }
            let full = self.write(under_way)?;
            let more = under_way.len() < limit && rest.len() > 0;
            if full {
                self.wait(deadline)?;
            } else if more && self.outbox.unsent().is_empty() && under_way.len() <= limit / 2 {
                continue;
            }
            self.read(full, deadline)?;
            self.settle(under_way, outcomes)?;
        }
    }

    /// Encodes more requests, as many as may be under way.
    fn fill(
        &mut self,
        requests: &[Request<'_>],
        rest: &mut impl ExactSizeIterator<Item = usize>,
        under_way: &mut VecDeque<Sent>,
        outcomes: &mut [Option<Outcome>],
        limit: usize,
    ) {
        while under_way.len() < limit && self.outbox.unsent().len() < AHEAD_BYTES {
            let Some(index) = rest.next() else { return };
            let request = &requests[index];
            let credential = self.forms.credential(request);
            let raw = matches!(credential, Credential::RawKey(_));
            match self.outbox.push(self.next, request, credential) {
                Ok(position) => {
                    under_way.push_back(Sent { index, number: self.next, position, raw });
                    self.next += 1;
                }
                Err(error) => outcomes[index] = Some(Err(Failure::Final(error))),
            }
        }
    }

    /// Writes as much as the socket takes; `true` where it is full.
    fn write(&mut self, under_way: &VecDeque<Sent>) -> Result<bool, End> {
        while !self.outbox.unsent().is_empty() {
            match send(&self.stream, self.outbox.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.outbox.advance(count);
                    self.last_sent = Instant::now();
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                // Answers to what was written before may still be there to be read.
                Err(_) => {
                    let asked = under_way.front().is_some_and(|sent| sent.position < self.outbox.written());
                    return if asked { Ok(false) } else { Err(End::Lost) };
                }
            }
        }
        Ok(false)
    }

    /// Waits until something can be written or read.
    fn wait(&self, deadline: Instant) -> Result<(), End> {
        let left = remaining(deadline).ok_or(End::Late)?;
        let left = Timespec::try_from(left).map_err(|_| End::Late)?;
        let mut socket = [PollFd::new(&self.stream, PollFlags::IN | PollFlags::OUT)];
        match poll(&mut socket, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(_) => Err(End::Lost),
        }
    }

    /// Reads what has come; waits for it unless there is something to be written.
    fn read(&mut self, to_write: bool, deadline: Instant) -> Result<(), End> {
        let read = if to_write {
            recv(&self.stream, self.inbox.space(), RecvFlags::DONTWAIT)
                .map(|(count, _)| count)
                .map_err(io::Error::from)
        } else if let Some(read) = self.busy.look(&self.stream, self.inbox.space()) {
            read
        } else {
            self.limit_read(deadline)?;
            (&self.stream).read(self.inbox.space())
        };
        match read {
            Ok(0) => Err(End::Lost),
            Ok(count) => {
                self.busy.answered();
                self.inbox.filled(count);
                Ok(())
            }
            Err(error) if is_for_later(&error) => {
                if remaining(deadline).is_none() {
                    Err(End::Late)
                } else {
                    Ok(())
                }
            }
            Err(_) => Err(End::Lost),
        }
    }

    /// Sets the socket's timeout for reading, unless the one that is set will do.
    fn limit_read(&mut self, deadline: Instant) -> Result<(), End> {
        let left = remaining(deadline).ok_or(End::Late)?;
        if self.read_timeout < left || self.read_timeout > left + TIMEOUT_SLACK {
            // A little longer than is left now, so that it will still do for the next request.
            self.read_timeout = left + TIMEOUT_SLACK / 2;
            set_read_timeout(&self.stream, self.read_timeout);
        }
        Ok(())
    }

    /// Takes the answers that have been read. Those that come too late for anyone go first.
    fn settle(
        &mut self,
        under_way: &mut VecDeque<Sent>,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), End> {
        while let Some(event) = self.inbox.event().map_err(End::Fault)? {
            let (id, reply, closing) = match event {
                Event::Reply(id, reply) => (id, reply, None),
                Event::Closing(Some(id), error) => (id, Err(Error::Daemon(error.clone())), Some(error)),
                Event::Closing(None, error) => return Err(End::Closing(error)),
            };
            if self.first == self.next {
                let text = format!("an answer to request {id}, and none was due");
                return Err(End::Fault(Error::Protocol(text)));
            }
            due(self.first, id).map_err(End::Fault)?;
            let awaited = under_way.pop_front_if(|sent| sent.number == self.first);
            self.first += 1;
            if awaited.is_some() || self.first == self.next {
                self.owed_since = None;
            }
            if let Some(sent) = awaited {
                outcomes[sent.index] = Some(reply.map_err(|error| self.forms.failure(error, sent.raw)));
            }
            if let Some(error) = closing {
                return Err(End::Closing(error));
            }
        }
        Ok(())
    }
}

impl End {
    /// What it means for a request without an answer.
    fn failure(&self, written: bool) -> Failure {
        match self {
            Self::Late => Failure::Late { written },
            Self::Closing(error) => Failure::Retry(Error::Daemon(error.clone())),
            _ if !written => Failure::Retry(Error::ConnectionLost { written }),
            Self::Fault(error) => Failure::Final(error.clone()),
            Self::Lost => Failure::Final(Error::ConnectionLost { written }),
        }
    }
}

/// Connects, and again after a moment where that may help.
fn knock(socket: &Path, deadline: Instant) -> Result<UnixStream, Failure> {
    let mut knocks = 0;
    loop {
        let left = remaining(deadline).ok_or(Failure::Late { written: false })?;
        let error = match connect_within(socket, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        knocks += 1;
        match knock_again(knocks, &error) {
            Some(pause) if rest(pause, deadline) => {}
            Some(_) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Failure::Late { written: false });
            }
            _ => {
                let connect = Error::Connect { path: socket.to_owned(), source: Arc::new(error) };
                return Err(Failure::Final(connect));
            }
        }
    }
}

/// Cannot fail: the socket is ours, and the timeout is not zero.
fn set_read_timeout(stream: &UnixStream, timeout: Duration) {
    let _ = stream.set_read_timeout(Some(timeout.max(SHORTEST_TIMEOUT)));
}

/// Whether a read is to be tried again, if there is time.
fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.options)
            .field("connected", &self.connection.is_some())
            .finish()
    }
}
