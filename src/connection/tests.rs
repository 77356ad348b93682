//! Connections of a worker that runs on the test's own thread, as its peers do: who has a turn when is up to the test, and not
//! to the machine.

#![allow(clippy::expect_used)]

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keyward_protocol::{Credential, Verdict, Verify};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local, yield_now};

use super::busy::PLACES;
use super::*;
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::publish::Publisher;
use crate::rules::GlobalPolicy;
use crate::usage::UsageLog;

mod supersession;

/// Longer than a test: who spins does so until something else ends it.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Turns of everybody within which what is to happen at all has happened.
const TURNS: usize = 1_000;

struct Worker {
    shared: Rc<Shared>,
    drain: watch::Sender<bool>,
}

impl Worker {
    fn start(busy_poll: Duration) -> Self {
        let (_publisher, mut subscriptions) = Publisher::new(1);
        let (drain, draining) = watch::channel(false);
        let shared = Shared::new(
            subscriptions.remove(0),
            Limiter::new().into(),
            GlobalPolicy::default().into(),
            Clock::new(),
            Counted { counters: Arc::default(), usage: UsageLog::detached() },
            Timeouts { idle: None, overdue: FOR_EVER, busy_poll },
            Stopping { draining, closed: Arc::new(AtomicBool::new(false)) },
        );
        spawn_local(Rc::clone(&shared).ring());
        Self { shared, drain }
    }

    fn connect(&self) -> Peer {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket that does not wait");
        let served = spawn_local(Connection::new(theirs, Rc::clone(&self.shared)).serve());
        Peer { stream: ours, sent: 0, served }
    }

    fn answers(&self) -> u64 {
        self.shared.counters.answered(Verdict::NotReady)
    }

    fn spinning(&self) -> usize {
        self.shared.places.taken()
    }
}

struct Peer {
    stream: UnixStream,
    /// Bytes, in all.
    sent: usize,
    served: JoinHandle<io::Result<End>>,
}

impl Peer {
    /// Sends so many requests, as far as there is room.
    fn ask(&mut self, requests: usize) {
        let request = request();
        // The last one may have been sent in part.
        let to_send = &request.repeat(requests + 1)[self.sent % request.len()..][..requests * request.len()];
        match self.stream.write(to_send) {
            Ok(count) => self.sent += count,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe), "{error}")
            }
        }
    }

    /// Reads what there is; how many bytes that were.
    fn hear(&mut self) -> usize {
        let mut answers = vec![0; 1 << 20];
        self.stream.read(&mut answers).unwrap_or(0)
    }
}

fn request() -> Vec<u8> {
    let mut frame = Vec::new();
    Verify::new(1, Credential::Digest([7; 32])).encode(&mut frame).expect("within all limits");
    frame
}

/// Gives everybody turns until `is_so`, up to [`TURNS`] times; `meanwhile` is done in each.
async fn turns_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..TURNS {
        if is_so() {
            return;
        }
        yield_now().await;
    }
    panic!("waited in vain for {what}");
}

async fn assert_drained(peers: Vec<Peer>) {
    for peer in peers {
        assert_eq!(peer.served.await.expect("no panic").expect("no error"), End::Drained);
    }
}

/// Whenever a connection looks there is a request, whether it spins or waits.
#[tokio::test(flavor = "local")]
async fn who_never_stops_sending_is_told_of_the_end_all_the_same() {
    let worker = Worker::start(FOR_EVER);
    let fill = INPUT / request().len();
    // Two that spin give way after each look: there is time to send more before the next.
    let mut peers = [worker.connect(), worker.connect()];
    let turn = |peers: &mut [Peer]| {
        for peer in peers {
            peer.hear();
            peer.ask(2 * fill);
        }
    };
    turns_until("both to spin", || {
        turn(&mut peers);
        worker.spinning() == 2
    })
    .await;
    for _ in 0..100 {
        let before = worker.answers();
        turn(&mut peers);
        yield_now().await;
        let answers = worker.answers() - before;
        assert!(answers >= 2 * fill as u64, "{answers} answers: not two full buffers");
    }
    worker.drain.send_replace(true);
    turns_until("their end", || {
        turn(&mut peers);
        peers.iter().all(|peer| peer.served.is_finished())
    })
    .await;
    assert_drained(peers.into()).await;
}

#[tokio::test(flavor = "local")]
async fn more_than_may_spin_are_answered_and_end_while_the_others_do() {
    let worker = Worker::start(FOR_EVER);
    let mut peers: Vec<Peer> = (0..3 * PLACES).map(|_| worker.connect()).collect();
    for _ in 0..10 {
        peers.iter_mut().for_each(|peer| peer.ask(1));
        for peer in &mut peers {
            turns_until("an answer", || peer.hear() > 0).await;
        }
    }
    assert_eq!(worker.spinning(), PLACES);
    worker.drain.send_replace(true);
    turns_until("their end", || peers.iter().all(|peer| peer.served.is_finished())).await;
    assert_drained(peers).await;
}

#[tokio::test(flavor = "local")]
async fn who_has_been_answered_is_looked_for_until_it_has_been_silent_for_too_long() {
    let worker = Worker::start(Duration::from_millis(1));
    let mut peer = worker.connect();
    for _ in 0..10 {
        yield_now().await;
        assert_eq!(worker.spinning(), 0, "it has asked nothing");
    }
    peer.ask(1);
    // It gives way before it gives up.
    turns_until("it to spin", || worker.spinning() == 1).await;
    assert!(peer.hear() > 0, "not before it has answered");
    let deadline = Instant::now() + Duration::from_secs(20);
    while worker.spinning() == 1 {
        assert!(Instant::now() < deadline, "it still spins");
        yield_now().await;
    }
    peer.ask(1);
    turns_until("an answer", || peer.hear() > 0).await;
    assert_eq!(worker.spinning(), 0, "it was late");
}

#[tokio::test(flavor = "local")]
async fn nobody_spins_unless_told_to() {
    let worker = Worker::start(Duration::ZERO);
    let mut peer = worker.connect();
    for _ in 0..100 {
        peer.ask(1);
        turns_until("an answer", || {
            assert_eq!(worker.spinning(), 0);
            peer.hear() > 0
        })
        .await;
    }
}
