//! Tests of the async client: many tasks on one connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use keyward_client::{Client, Error, ErrorCode, Options, Refund, Request};
use support::*;
use tokio::task::JoinSet;

const TASKS: usize = 64;

fn for_each_runtime(test: impl Fn(ClientKind) + Send + 'static) {
    with_time_limit(move || [ClientKind::CurrentThread, ClientKind::MultiThread].into_iter().for_each(test));
}

fn client(daemon: &ScriptedDaemon) -> Client {
    Client::with_options(Options::new(&daemon.socket).deadline(LONG))
}

async fn expect_allowed(client: &Client, key: &str) {
    let decision = client.verify(&Request::new(key)).await.unwrap();
    assert_eq!(decision.key_id(), Some(expected_key_id(key).as_str()));
}

/// Polls `future` once, and checks that it is pending.
async fn poll_once(future: &mut (impl Future + Unpin)) {
    std::future::poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut *future).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Sends three requests and drops the second while all are in flight; then calls `after_drop`.
async fn drop_second_of_three(client: &Client, after_drop: impl FnOnce()) {
    let requests = ["a", "b", "c"].map(|key| Request::new(key).into_owned());
    let [mut a, mut b, mut c] = requests.each_ref().map(|request| Box::pin(client.verify(request)));
    poll_once(&mut a).await;
    poll_once(&mut b).await;
    poll_once(&mut c).await;
    drop(b);
    after_drop();
    assert_eq!(c.await.unwrap().key_id(), Some(expected_key_id("c").as_str()));
    assert_eq!(a.await.unwrap().key_id(), Some(expected_key_id("a").as_str()));
}

#[test]
fn client_and_its_futures_are_send() {
    fn assert_shareable<T: Send + Sync + Clone>(_: &T) {}
    fn assert_send<T: Send>(_: T) {}
    let client = Client::new("unused");
    assert_shareable(&client);
    assert_send(client.verify(&Request::new("a")));
    assert_send(client.verify_many(&[Request::new("a")]));
    assert_send(client.refund(&Refund::new("a", 1)));
}

#[test]
fn tasks_share_a_connection_and_get_their_own_answers() {
    const ROUNDS: usize = 200;
    for_each_runtime(|kind| {
        let (reads_sender, reads) = mpsc::channel();
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.serve();
            reads_sender.send(peer.reads).unwrap();
        });
        kind.runtime().block_on(async {
            let client = client(&daemon);
            let mut tasks = JoinSet::new();
            for task in 0..TASKS {
                let client = client.clone();
                tasks.spawn(async move {
                    for round in 0..ROUNDS {
                        expect_allowed(&client, &format!("{task}/{round}")).await;
                    }
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
        daemon.finish();
        let reads = reads.recv().unwrap();
        println!("{kind:?}: {} requests in {reads} reads", TASKS * ROUNDS);
        assert!(reads < TASKS * ROUNDS, "{reads} reads");
    });
}

#[test]
fn simultaneous_tasks_share_one_write_on_one_connection() {
    with_time_limit(|| {
        let daemon = ScriptedDaemon::start(|listener| {
            let mut peer = Peer::accept(listener);
            for _ in 0..TASKS {
                let request = peer.read_request().unwrap();
                // The first request may be written alone.
                assert!(peer.reads <= 2, "{} reads", peer.reads);
                peer.allow(&request);
            }
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "there must be one connection only");
        });
        ClientKind::CurrentThread.runtime().block_on(async {
            let client = client(&daemon);
            let mut tasks = JoinSet::new();
            for task in 0..TASKS {
                let client = client.clone();
                tasks.spawn(async move { expect_allowed(&client, &task.to_string()).await });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
        daemon.finish();
    });
}

#[test]
fn connect_error_reaches_all_waiting_tasks() {
    with_time_limit(|| {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::with_options(Options::new(directory.path().join("none")).deadline(LONG));
        ClientKind::CurrentThread.runtime().block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..TASKS {
                let client = client.clone();
                tasks.spawn(async move { client.verify(&Request::new("a")).await });
            }
            while let Some(answer) = tasks.join_next().await {
                assert!(matches!(answer.unwrap(), Err(Error::Connect { .. })));
            }
        });
    });
}

#[test]
fn dropped_request_does_not_affect_the_others() {
    for_each_runtime(|kind| {
        let (release, released) = mpsc::channel::<()>();
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.allow_next();
            let received: Vec<ReceivedRequest> = (0..3).map(|_| peer.read_request().unwrap()).collect();
            released.recv().unwrap();
            received.iter().for_each(|request| peer.allow(request));
            peer.serve();
        });
        kind.runtime().block_on(async {
            let client = client(&daemon);
            expect_allowed(&client, "warm").await;
            drop_second_of_three(&client, || release.send(()).unwrap()).await;
            expect_allowed(&client, "d").await;
        });
        daemon.finish();
    });
}

#[test]
fn refund_dropped_before_it_is_written_gives_nothing_back() {
    with_time_limit(|| {
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            for _ in 0..2 {
                peer.allow_next();
            }
            let error = peer.reject_malformed();
            assert_eq!((error.code, error.detail), (ErrorCode::InvalidField, 1), "a REFUND of cost 0");
            peer.serve();
        });
        ClientKind::CurrentThread.runtime().block_on(async {
            let client = client(&daemon);
            expect_allowed(&client, "warm").await;
            let (request, refund) = (Request::new("a"), Refund::new("b", 5));
            // The first is written immediately; the other waits for the driver, which does not run
            // before the next await.
            let mut a = Box::pin(client.verify(&request));
            let mut b = Box::pin(client.refund(&refund));
            poll_once(&mut a).await;
            poll_once(&mut b).await;
            drop(b);
            assert!(a.await.unwrap().is_allowed());
            expect_allowed(&client, "c").await;
        });
        daemon.finish();
    });
}

#[test]
fn request_dropped_before_it_is_written_charges_nothing() {
    with_time_limit(|| {
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            for cost in [1, 1, 0, 1] {
                let request = peer.read_request().unwrap();
                assert_eq!(request.cost, cost, "{request:?}");
                peer.allow(&request);
            }
        });
        ClientKind::CurrentThread.runtime().block_on(async {
            let client = client(&daemon);
            expect_allowed(&client, "warm").await;
            // The first is written immediately; the others wait for the driver, which does not run
            // before the next await.
            drop_second_of_three(&client, || ()).await;
        });
        daemon.finish();
    });
}

#[test]
fn expired_deadline_ends_only_its_own_request() {
    for_each_runtime(|kind| {
        let (release, released) = mpsc::channel::<()>();
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.allow_next();
            let received: Vec<ReceivedRequest> = (0..2).map(|_| peer.read_request().unwrap()).collect();
            released.recv().unwrap();
            // In one write, because the client may disconnect as soon as it has the first answer.
            peer.send(&received.iter().flat_map(allowed_frame).collect::<Vec<u8>>());
        });
        kind.runtime().block_on(async {
            let patient = client(&daemon);
            expect_allowed(&patient, "connected").await;
            let hasty = patient.with_deadline(SHORT);
            let (a, b) = (Request::new("a"), Request::new("b"));
            let both = async {
                tokio::join!(patient.verify(&a), async {
                    let answer = hasty.verify(&b).await;
                    release.send(()).unwrap();
                    answer
                })
            };
            let (answered, expired) = both.await;
            assert!(answered.unwrap().is_allowed());
            assert!(matches!(expired, Err(Error::Deadline { written: true, .. })), "{expired:?}");
        });
        daemon.finish();
    });
}

#[test]
fn in_flight_limit_counts_requests_whose_callers_have_stopped_waiting() {
    for_each_runtime(|kind| {
        let (release, released) = mpsc::channel::<()>();
        let daemon = ScriptedDaemon::start(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.allow_next();
            let request = peer.read_request().unwrap();
            released.recv().unwrap();
            peer.allow(&request);
            peer.serve();
        });
        kind.runtime().block_on(async {
            let options = Options::new(&daemon.socket).deadline(LONG).max_in_flight(1);
            let patient = Client::with_options(options);
            expect_allowed(&patient, "connected").await;
            let hasty = patient.with_deadline(SHORT);
            let first = hasty.verify(&Request::new("a")).await;
            assert!(matches!(first, Err(Error::Deadline { written: true, .. })), "{first:?}");
            let second = hasty.verify(&Request::new("b")).await;
            assert!(matches!(second, Err(Error::Deadline { written: false, .. })), "{second:?}");
            release.send(()).unwrap();
            expect_allowed(&patient, "c").await;
            let keys: Vec<String> = (0..10).map(|key| key.to_string()).collect();
            let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
            assert!(patient.verify_many(&requests).await.iter().all(Result::is_ok));
        });
        daemon.finish();
    });
}

/// The digests of many tasks are refused at once. Each task sends its own raw key, and gets its own
/// answer.
#[test]
fn tasks_with_refused_digests_continue_with_raw_keys() {
    for_each_runtime(|kind| {
        let daemon = ScriptedDaemon::start(|listener| {
            let refused = Peer::accept(listener).serve_raw_keys_only();
            assert!((1..=TASKS).contains(&refused), "{refused}");
        });
        kind.runtime().block_on(async {
            let client = client(&daemon);
            let mut tasks = JoinSet::new();
            for task in 0..TASKS {
                let client = client.clone();
                tasks.spawn(async move {
                    for round in 0..20 {
                        expect_allowed(&client, &format!("{task}/{round}")).await;
                    }
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
        daemon.finish();
    });
}

#[test]
fn client_reconnects_after_its_runtime_has_ended() {
    with_time_limit(|| {
        let daemon = ScriptedDaemon::start(|listener| {
            Peer::accept(listener).serve();
            Peer::accept(listener).serve();
        });
        let client = client(&daemon);
        ClientKind::CurrentThread.runtime().block_on(expect_allowed(&client, "a"));
        ClientKind::CurrentThread.runtime().block_on(expect_allowed(&client, "b"));
        drop(client);
        daemon.finish();
    });
}

/// The runtime of the driver is not running; a caller in another runtime must not hang.
#[test]
fn deadline_is_enforced_while_the_driver_is_not_running() {
    with_time_limit(|| {
        let daemon = ScriptedDaemon::start(|listener| Peer::accept(listener).serve());
        let client = client(&daemon);
        let driver_runtime = ClientKind::CurrentThread.runtime();
        driver_runtime.block_on(expect_allowed(&client, "a"));
        let hasty = client.with_deadline(SHORT);
        let start = Instant::now();
        let other_runtime = ClientKind::CurrentThread.runtime();
        let answer = other_runtime.block_on(hasty.verify(&Request::new("b")));
        assert!(matches!(answer, Err(Error::Deadline { .. })), "{answer:?}");
        let answers = other_runtime.block_on(hasty.verify_many(&[Request::new("c")]));
        assert!(matches!(answers[0], Err(Error::Deadline { .. })), "{answers:?}");
        // Nothing but the deadline can end the calls before the script times out.
        assert!(start.elapsed() < LONG);
        driver_runtime.block_on(expect_allowed(&client, "d"));
        drop((driver_runtime, client));
        daemon.finish();
    });
}

#[test]
fn missing_runtime_is_an_error() {
    let client = Client::with_options(Options::new("/nonexistent").deadline(Duration::MAX));
    let request = Request::new("a");
    let mut verify = pin!(client.verify(&request));
    match verify.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(Error::NoRuntime)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn connection_ends_with_the_last_client() {
    for_each_runtime(|kind| {
        let daemon = ScriptedDaemon::start(|listener| Peer::accept(listener).serve());
        let runtime = kind.runtime();
        runtime.block_on(async {
            let client = client(&daemon);
            let clone = client.clone();
            expect_allowed(&client, "a").await;
            drop(client);
            expect_allowed(&clone, "b").await;
        });
        // The script ends with the connection. The runtime must run until then, so that the driver
        // can close it.
        runtime.block_on(async { tokio::task::spawn_blocking(|| daemon.finish()).await.unwrap() });
    });
}
