//! What only the async client does: many tasks on one connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod script;

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use keyward_client::{Client, Error, ErrorCode, Options, Refund, Request};
use script::*;
use tokio::task::JoinSet;

const TASKS: usize = 64;

fn each(test: impl Fn(Form) + Send + 'static) {
    limited(move || [Form::CurrentThread, Form::MultiThread].into_iter().for_each(test));
}

fn client(daemon: &Daemon) -> Client {
    Client::with_options(Options::new(&daemon.socket).deadline(LONG))
}

async fn expect_allowed(client: &Client, key: &str) {
    let decision = client.verify(&Request::new(key)).await.unwrap();
    assert_eq!(decision.key_id(), Some(key_id_of(key).as_str()));
}

/// Polls `future` once, which must not be enough.
async fn poll_once(future: &mut (impl Future + Unpin)) {
    std::future::poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut *future).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Asks for three keys and drops the second request while all are under way.
async fn expect_all_but_one(client: &Client, dropped: impl FnOnce()) {
    let requests = ["a", "b", "c"].map(|key| Request::new(key).into_owned());
    let [mut a, mut b, mut c] = requests.each_ref().map(|request| Box::pin(client.verify(request)));
    poll_once(&mut a).await;
    poll_once(&mut b).await;
    poll_once(&mut c).await;
    drop(b);
    dropped();
    assert_eq!(c.await.unwrap().key_id(), Some(key_id_of("c").as_str()));
    assert_eq!(a.await.unwrap().key_id(), Some(key_id_of("a").as_str()));
}

#[test]
fn a_client_and_its_futures_can_go_to_any_thread() {
    fn anywhere<T: Send + Sync + Clone>(_: &T) {}
    fn movable<T: Send>(_: T) {}
    let client = Client::new("unused");
    anywhere(&client);
    movable(client.verify(&Request::new("a")));
    movable(client.verify_many(&[Request::new("a")]));
    movable(client.refund(&Refund::new("a", 1)));
}

#[test]
fn tasks_share_a_connection_and_each_gets_its_own_answer() {
    const ROUNDS: usize = 200;
    each(|form| {
        let (count, reads) = mpsc::channel();
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            peer.serve();
            count.send(peer.reads).unwrap();
        });
        form.runtime().block_on(async {
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
        println!("{form:?}: {} requests in {reads} reads", TASKS * ROUNDS);
        assert!(reads < TASKS * ROUNDS, "{reads} reads");
    });
}

#[test]
fn tasks_that_start_together_leave_in_one_write_on_one_connection() {
    limited(|| {
        let daemon = Daemon::play(|listener| {
            let mut peer = Peer::greet(listener);
            for _ in 0..TASKS {
                let asked = peer.asked().unwrap();
                // The first may go alone.
                assert!(peer.reads <= 2, "{} reads", peer.reads);
                peer.allow(&asked);
            }
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "one connection is enough");
        });
        Form::CurrentThread.runtime().block_on(async {
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
fn all_who_wait_for_a_connection_hear_that_there_is_none() {
    limited(|| {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::with_options(Options::new(directory.path().join("none")).deadline(LONG));
        Form::CurrentThread.runtime().block_on(async {
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
fn dropping_a_request_leaves_the_others_alone() {
    each(|form| {
        let (dropped, go) = mpsc::channel::<()>();
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            peer.allow_next();
            let asked: Vec<Asked> = (0..3).map(|_| peer.asked().unwrap()).collect();
            go.recv().unwrap();
            asked.iter().for_each(|asked| peer.allow(asked));
            peer.serve();
        });
        form.runtime().block_on(async {
            let client = client(&daemon);
            expect_allowed(&client, "warm").await;
            expect_all_but_one(&client, || dropped.send(()).unwrap()).await;
            expect_allowed(&client, "d").await;
        });
        daemon.finish();
    });
}

/// What is dropped before it is written must not be given back either.
#[test]
fn a_refund_that_is_dropped_in_time_gives_nothing_back() {
    limited(|| {
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            for _ in 0..2 {
                peer.allow_next();
            }
            let fault = peer.refuse_malformed();
            assert_eq!((fault.code, fault.detail), (ErrorCode::InvalidField, 1), "a REFUND of cost 0");
            peer.serve();
        });
        Form::CurrentThread.runtime().block_on(async {
            let client = client(&daemon);
            expect_allowed(&client, "warm").await;
            let (request, refund) = (Request::new("a"), Refund::new("b", 5));
            // The first is written at once, the other waits for the driver, which does not run before the next await.
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

/// What is dropped before it is written must not be charged.
#[test]
fn a_request_that_is_dropped_in_time_charges_nothing() {
    limited(|| {
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            for cost in [1, 1, 0, 1] {
                let asked = peer.asked().unwrap();
                assert_eq!(asked.cost, cost, "{asked:?}");
                peer.allow(&asked);
            }
        });
        Form::CurrentThread.runtime().block_on(async {
            let client = client(&daemon);
            expect_allowed(&client, "warm").await;
            // The first is written at once, the others wait for the driver, which does not run before the next await.
            expect_all_but_one(&client, || ()).await;
        });
        daemon.finish();
    });
}

#[test]
fn a_deadline_among_others_ends_only_its_own_request() {
    each(|form| {
        let (late, go) = mpsc::channel::<()>();
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            peer.allow_next();
            let asked: Vec<Asked> = (0..2).map(|_| peer.asked().unwrap()).collect();
            go.recv().unwrap();
            // In one write: the client may leave as soon as it has the first answer.
            peer.send(&asked.iter().flat_map(allowed).collect::<Vec<u8>>());
        });
        form.runtime().block_on(async {
            let patient = client(&daemon);
            expect_allowed(&patient, "connected").await;
            let hasty = patient.with_deadline(SHORT);
            let (a, b) = (Request::new("a"), Request::new("b"));
            let both = async {
                tokio::join!(patient.verify(&a), async {
                    let answer = hasty.verify(&b).await;
                    late.send(()).unwrap();
                    answer
                })
            };
            let (kept, lost) = both.await;
            assert!(kept.unwrap().is_allowed());
            assert!(matches!(lost, Err(Error::Deadline { written: true, .. })), "{lost:?}");
        });
        daemon.finish();
    });
}

#[test]
fn more_than_may_be_in_flight_wait_and_answers_nobody_waits_for_count() {
    each(|form| {
        let (late, go) = mpsc::channel::<()>();
        let daemon = Daemon::play(move |listener| {
            let mut peer = Peer::greet(listener);
            peer.allow_next();
            let asked = peer.asked().unwrap();
            go.recv().unwrap();
            peer.allow(&asked);
            peer.serve();
        });
        form.runtime().block_on(async {
            let options = Options::new(&daemon.socket).deadline(LONG).max_in_flight(1);
            let patient = Client::with_options(options);
            expect_allowed(&patient, "connected").await;
            let hasty = patient.with_deadline(SHORT);
            let first = hasty.verify(&Request::new("a")).await;
            assert!(matches!(first, Err(Error::Deadline { written: true, .. })), "{first:?}");
            let second = hasty.verify(&Request::new("b")).await;
            assert!(matches!(second, Err(Error::Deadline { written: false, .. })), "{second:?}");
            late.send(()).unwrap();
            expect_allowed(&patient, "c").await;
            let keys: Vec<String> = (0..10).map(|key| key.to_string()).collect();
            let requests: Vec<Request<'_>> = keys.iter().map(Request::new).collect();
            assert!(patient.verify_many(&requests).await.iter().all(Result::is_ok));
        });
        daemon.finish();
    });
}

/// Many tasks learn at once that digests are refused; each sends its own key again, and gets its own answer.
#[test]
fn tasks_whose_digests_are_refused_go_on_with_raw_keys() {
    each(|form| {
        let daemon = Daemon::play(|listener| {
            let refused = Peer::greet(listener).serve_raw();
            assert!((1..=TASKS).contains(&refused), "{refused}");
        });
        form.runtime().block_on(async {
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
fn a_client_outlives_the_runtime_that_it_connected_in() {
    limited(|| {
        let daemon = Daemon::play(|listener| {
            Peer::greet(listener).serve();
            Peer::greet(listener).serve();
        });
        let client = client(&daemon);
        Form::CurrentThread.runtime().block_on(expect_allowed(&client, "a"));
        Form::CurrentThread.runtime().block_on(expect_allowed(&client, "b"));
        drop(client);
        daemon.finish();
    });
}

/// The runtime with the driver stands still; a caller elsewhere must not stand still with it.
#[test]
fn a_deadline_holds_where_nobody_runs_the_driver() {
    limited(|| {
        let daemon = Daemon::play(|listener| Peer::greet(listener).serve());
        let client = client(&daemon);
        let home = Form::CurrentThread.runtime();
        home.block_on(expect_allowed(&client, "a"));
        let hasty = client.with_deadline(SHORT);
        let start = Instant::now();
        let elsewhere = Form::CurrentThread.runtime();
        let answer = elsewhere.block_on(hasty.verify(&Request::new("b")));
        assert!(matches!(answer, Err(Error::Deadline { .. })), "{answer:?}");
        let answers = elsewhere.block_on(hasty.verify_many(&[Request::new("c")]));
        assert!(matches!(answers[0], Err(Error::Deadline { .. })), "{answers:?}");
        // Nothing else ends a call before the script gives up.
        assert!(start.elapsed() < LONG);
        home.block_on(expect_allowed(&client, "d"));
        drop((home, client));
        daemon.finish();
    });
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let client = Client::with_options(Options::new("/nonexistent").deadline(Duration::MAX));
    let request = Request::new("a");
    let mut verify = pin!(client.verify(&request));
    match verify.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(Error::NoRuntime)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_connection_ends_with_the_last_client() {
    each(|form| {
        let daemon = Daemon::play(|listener| Peer::greet(listener).serve());
        let runtime = form.runtime();
        runtime.block_on(async {
            let client = client(&daemon);
            let clone = client.clone();
            expect_allowed(&client, "a").await;
            drop(client);
            expect_allowed(&clone, "b").await;
        });
        // The script ends with the connection, while the runtime is still there to run the driver.
        runtime.block_on(async { tokio::task::spawn_blocking(|| daemon.finish()).await.unwrap() });
    });
}
