//! Connections of a worker that runs on the test's own thread, as its peers do. The test decides
//! when each of them runs, so that the results do not depend on the machine.

#![allow(clippy::expect_used, reason = "a test may panic")]

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

use keyward_protocol::{Credential, MAX_ANSWER_LENGTH, ParsedFrame, Response, Verdict, Verify, parse_frame};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::task::{JoinHandle, spawn_local, yield_now};

use super::busy_poll::MAX_SPINNING;
use super::timer_fd::TimerFd;
use super::*;
use crate::clock::Clock;
use crate::publish::Publisher;
use crate::usage::UsageLog;
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::Limiter;

mod endings;
mod fairness;
mod quotas;
mod supersession;

/// Longer than any test: a connection spins until something else ends it.
const FOREVER: Duration = Duration::from_secs(60);

/// Yields after which an expected event must have happened.
const MAX_YIELDS: usize = 1_000;

struct Worker {
    context: Rc<WorkerContext>,
    shutdown: ShutdownControl,
}

impl Worker {
    fn start(busy_poll: Duration) -> Self {
        Self::with_timeouts(Timeouts { idle: None, unsent_answers: FOREVER, busy_poll })
    }

    fn with_timeouts(timeouts: Timeouts) -> Self {
        Self::with_timer(TimerFd::new(), timeouts)
    }

    fn with_timer(timer: TimerFd, timeouts: Timeouts) -> Self {
        let (_publisher, mut subscriptions) = Publisher::new(1);
        let (shutdown, view) = ShutdownControl::new();
        let context = WorkerContext::new(
            VerifyInputs {
                subscription: subscriptions.remove(0),
                limiter: Limiter::new().into(),
                global_policy: GlobalPolicy::default().into(),
                clock: Clock::new(),
            },
            Metrics { counters: Arc::default(), usage: UsageLog::detached() },
            timeouts,
            view.clone(),
            IdleCount::default(),
        );
        spawn_local(Rc::clone(&context.timers).run(timer, view.phase));
        spawn_local(Rc::clone(&context).run_turns());
        Self { context, shutdown }
    }

    fn connect(&self) -> Peer {
        self.connect_as(0)
    }

    /// Connects as a peer with this uid.
    fn connect_as(&self, uid: u32) -> Peer {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        self.serve(ours, theirs, UidAccount::new(uid, UidQuotas::UNLIMITED))
    }

    fn serve(&self, ours: UnixStream, theirs: UnixStream, account: Arc<UidAccount>) -> Peer {
        ours.set_nonblocking(true).expect("a non-blocking socket");
        let served =
            spawn_local(Connection::new(theirs, account, Permissions::ALL, Rc::clone(&self.context)).serve());
        Peer { stream: ours, sent: 0, served }
    }

    fn answers(&self) -> u64 {
        self.context.counters.verdicts(Verdict::NotReady)
    }

    fn spinning(&self) -> usize {
        self.context.spin_permits.in_use()
    }
}

struct Peer {
    stream: UnixStream,
    /// The total number of bytes.
    sent: usize,
    served: JoinHandle<io::Result<CloseReason>>,
}

impl Peer {
    /// Sends as many of `requests` requests as the socket takes.
    fn send(&mut self, requests: usize) {
        let request = request();
        // The last request may have been sent in part.
        let to_send = &request.repeat(requests + 1)[self.sent % request.len()..][..requests * request.len()];
        match self.stream.write(to_send) {
            Ok(count) => self.sent += count,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe), "{error}")
            }
        }
    }

    /// Reads the answers that have arrived; returns the number of bytes.
    fn receive(&mut self) -> usize {
        let mut answers = vec![0; 1 << 20];
        self.stream.read(&mut answers).unwrap_or(0)
    }
}

fn request() -> Vec<u8> {
    let mut frame = Vec::new();
    Verify::new(1, Credential::Digest([7; 32])).encode(&mut frame).expect("within all limits");
    frame
}

/// Yields to the other tasks until `condition` holds, up to [`MAX_YIELDS`] times.
async fn yield_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..MAX_YIELDS {
        if condition() {
            return;
        }
        yield_now().await;
    }
    panic!("timed out waiting for {what}");
}

/// The number of answers that were received, and the code and detail of the ERROR after them. There
/// are whole frames only.
fn parse(mut bytes: &[u8]) -> (usize, Option<(ErrorCode, u32)>) {
    let (mut answers, mut error) = (0, None);
    while !bytes.is_empty() {
        assert_eq!(error, None, "a frame after an ERROR");
        let ParsedFrame::Complete { header, body, size } = parse_frame(bytes, MAX_ANSWER_LENGTH) else {
            panic!("{} bytes of an incomplete frame", bytes.len());
        };
        match Response::decode(&header, body).expect("a frame of SPEC.md") {
            Response::Error(received) => {
                error = Some((ErrorCode::from_value(received.code).expect("a known code"), received.detail));
            }
            _ => answers += 1,
        }
        bytes = &bytes[size..];
    }
    (answers, error)
}

async fn assert_drained(peers: Vec<Peer>) {
    for peer in peers {
        assert_eq!(peer.served.await.expect("no panic").expect("no error"), CloseReason::Drained);
    }
}

#[tokio::test(flavor = "local")]
async fn request_after_the_drain_timeout_is_not_answered() {
    let worker = Worker::start(Duration::ZERO);
    let mut peer = worker.connect();
    worker.shutdown.close();
    peer.send(1);
    let mut received = Vec::new();
    let ended = peer.served.await.expect("no panic").expect("no error");
    peer.stream.read_to_end(&mut received).expect("the end");
    let mut error = Vec::new();
    shutting_down().encode(&mut error);
    assert_eq!((ended, received), (CloseReason::ShutDown, error));
}

/// The answers alone fill the socket's send buffer for many numbers of requests.
#[tokio::test(flavor = "local")]
async fn slow_reader_receives_all_answers_and_the_shutdown_error() {
    let worker = Worker::start(Duration::ZERO);
    let mut shutdown_error = Vec::new();
    ProtocolError::new(ErrorCode::ShuttingDown, 0, 0).encode(&mut shutdown_error);
    let mut peers: Vec<(Peer, usize)> = (1..200)
        .map(|requests| {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            // The kernel rounds it up to its minimum.
            set_socket_send_buffer_size(&theirs, 1).expect("a send buffer");
            let mut peer = worker.serve(ours, theirs, UidAccount::new(0, UidQuotas::UNLIMITED));
            peer.send(requests);
            (peer, requests)
        })
        .collect();
    worker.shutdown.drain();
    // Every connection has ended or waits for its peer.
    for _ in 0..MAX_YIELDS {
        yield_now().await;
    }
    for (peer, requests) in &mut peers {
        let mut received = Vec::new();
        yield_until("the end of the connection", || {
            let _ = peer.stream.read_to_end(&mut received);
            peer.served.is_finished()
        })
        .await;
        peer.stream.read_to_end(&mut received).expect("the end");
        assert!(received.ends_with(&shutdown_error), "{requests} requests: no ERROR at the end");
        let answers = received.len() - shutdown_error.len();
        assert_eq!(answers % *requests, 0, "{requests} requests: an answer is missing");
    }
}

/// Every read finds a request, whether the connection spins or waits.
#[tokio::test(flavor = "local")]
async fn peer_that_never_stops_sending_is_drained() {
    let worker = Worker::start(FOREVER);
    // Two spinning connections yield after each read, which leaves time to send more before the
    // next. Together, their reads are smaller than a turn: larger ones end the spinning.
    let requests = INPUT_BYTES / request().len() / 8;
    let mut peers = [worker.connect(), worker.connect()];
    let exchange = |peers: &mut [Peer]| {
        for peer in peers {
            peer.receive();
            peer.send(requests);
        }
    };
    yield_until("both to spin", || {
        exchange(&mut peers);
        worker.spinning() == 2
    })
    .await;
    for _ in 0..100 {
        let before = worker.answers();
        exchange(&mut peers);
        yield_now().await;
        let answers = worker.answers() - before;
        assert!(answers >= 2 * requests as u64, "{answers} answers: a connection found no input");
    }
    worker.shutdown.drain();
    yield_until("the connections to close", || {
        exchange(&mut peers);
        peers.iter().all(|peer| peer.served.is_finished())
    })
    .await;
    assert_drained(peers.into()).await;
}

/// The connection never spins, and its socket is never empty.
#[tokio::test(flavor = "local")]
async fn peer_whose_input_always_waits_is_drained() {
    let worker = Worker::start(Duration::ZERO);
    let mut peers = [worker.connect()];
    let refill = |peers: &mut [Peer]| {
        for peer in peers {
            peer.receive();
            // More than a connection reads before the test runs again.
            peer.send(8 * INPUT_BYTES / request().len());
        }
    };
    for _ in 0..100 {
        refill(&mut peers);
        yield_now().await;
    }
    assert!(worker.answers() > 0);
    worker.shutdown.drain();
    yield_until("the connection to close", || {
        refill(&mut peers);
        peers.iter().all(|peer| peer.served.is_finished())
    })
    .await;
    assert_drained(peers.into()).await;
}

#[tokio::test(flavor = "local")]
async fn connections_beyond_the_spin_limit_are_answered_and_drained() {
    let worker = Worker::start(FOREVER);
    let mut peers: Vec<Peer> = (0..3 * MAX_SPINNING).map(|_| worker.connect()).collect();
    for _ in 0..10 {
        peers.iter_mut().for_each(|peer| peer.send(1));
        for peer in &mut peers {
            yield_until("an answer", || peer.receive() > 0).await;
        }
    }
    assert_eq!(worker.spinning(), MAX_SPINNING);
    worker.shutdown.drain();
    yield_until("the connections to close", || peers.iter().all(|peer| peer.served.is_finished())).await;
    assert_drained(peers).await;
}

#[tokio::test(flavor = "local")]
async fn connection_spins_after_an_answer_for_at_most_busy_poll() {
    let worker = Worker::start(Duration::from_millis(1));
    let mut peer = worker.connect();
    for _ in 0..10 {
        yield_now().await;
        assert_eq!(worker.spinning(), 0, "it has sent no request");
    }
    peer.send(1);
    // It yields before it stops spinning.
    yield_until("the connection to spin", || worker.spinning() == 1).await;
    assert!(peer.receive() > 0, "it answers before it spins");
    let deadline = Instant::now() + Duration::from_secs(20);
    while worker.spinning() == 1 {
        assert!(Instant::now() < deadline, "it is still spinning");
        yield_now().await;
    }
    peer.send(1);
    yield_until("an answer", || peer.receive() > 0).await;
    assert_eq!(worker.spinning(), 0, "the request was late");
}

#[tokio::test(flavor = "local")]
async fn connections_do_not_spin_without_busy_poll() {
    let worker = Worker::start(Duration::ZERO);
    let mut peer = worker.connect();
    for _ in 0..100 {
        peer.send(1);
        yield_until("an answer", || {
            assert_eq!(worker.spinning(), 0);
            peer.receive() > 0
        })
        .await;
    }
}
