//! Quotas of a uid, which all its connections share.

use super::*;
use keyward_engine::limiter::Rate;

/// A peer of an account with quotas.
fn connect_with(worker: &Worker, account: &Arc<UidAccount>) -> Peer {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    worker.serve(ours, theirs, Arc::clone(account))
}

async fn closed(mut peer: Peer) -> (CloseReason, Vec<u8>) {
    let mut received = Vec::new();
    yield_until("the end of the connection", || {
        let _ = peer.stream.read_to_end(&mut received);
        peer.served.is_finished()
    })
    .await;
    let _ = peer.stream.read_to_end(&mut received);
    (peer.served.await.expect("no panic").expect("no error"), received)
}

#[tokio::test(flavor = "local")]
async fn incomplete_requests_above_the_quota_end_the_connection_with_an_error() {
    let worker = Worker::start(Duration::ZERO);
    let account = UidAccount::new(1, UidQuotas { buffered_bytes: Some(100), ..UidQuotas::UNLIMITED });
    let mut first = connect_with(&worker, &account);
    let mut second = connect_with(&worker, &account);
    let incomplete = &request()[..40];
    first.stream.write_all(incomplete).expect("sent");
    second.stream.write_all(incomplete).expect("sent");
    for _ in 0..10 {
        yield_now().await;
    }
    let mut third = connect_with(&worker, &account);
    third.stream.write_all(incomplete).expect("sent");
    let mut error = Vec::new();
    ProtocolError::new(ErrorCode::QuotaExceeded, 100, 0).encode(&mut error);
    assert_eq!(closed(third).await, (CloseReason::QuotaExceeded, error));
    // The others go on, and their completed requests make room.
    for peer in [&mut first, &mut second] {
        peer.stream.write_all(&request()[40..]).expect("sent");
        yield_until("an answer", || peer.receive() > 0).await;
    }
    let mut fourth = connect_with(&worker, &account);
    fourth.stream.write_all(incomplete).expect("sent");
    for _ in 0..10 {
        yield_now().await;
    }
    fourth.stream.write_all(&request()[40..]).expect("sent");
    yield_until("an answer", || fourth.receive() > 0).await;
}

#[tokio::test(flavor = "local")]
async fn unread_answers_above_the_quota_end_the_connection() {
    for quotas in [
        UidQuotas { in_flight: Some(1_000), ..UidQuotas::UNLIMITED },
        UidQuotas { buffered_bytes: Some(10_000), ..UidQuotas::UNLIMITED },
    ] {
        let worker = Worker::start(Duration::ZERO);
        let account = UidAccount::new(1, quotas);
        let mut peers: Vec<Peer> = (0..4).map(|_| connect_with(&worker, &account)).collect();
        // Nothing is read, so that the answers stay in the daemon.
        for _ in 0..100 {
            for peer in &mut peers {
                peer.send(1_000);
            }
            yield_now().await;
        }
        let finished = peers.iter().filter(|peer| peer.served.is_finished()).count();
        assert!((1..4).contains(&finished), "{finished} of 4 connections have ended: {quotas:?}");
        for peer in peers.into_iter().filter(|peer| peer.served.is_finished()) {
            let (reason, received) = closed(peer).await;
            assert_eq!(reason, CloseReason::QuotaExceeded);
            let quota = quotas.in_flight.or(quotas.buffered_bytes).expect("a quota");
            let (answers, error) = parse(&received);
            assert!(answers > 0);
            assert_eq!(error, Some((ErrorCode::QuotaExceeded, quota as u32)));
        }
    }
}

#[tokio::test(flavor = "local")]
async fn rate_delays_requests_of_all_connections_of_the_uid() {
    let worker = Worker::start(Duration::ZERO);
    // Ten at once, and one more each hour.
    let rate = Rate::new(1, 3_600_000_000_000, 10).ok();
    let account = UidAccount::new(1, UidQuotas { rate, ..UidQuotas::UNLIMITED });
    let mut peers: Vec<Peer> = (0..4).map(|_| connect_with(&worker, &account)).collect();
    let mut other = worker.connect_as(2);
    for _ in 0..20 {
        peers.iter_mut().for_each(|peer| peer.send(1));
        for _ in 0..10 {
            yield_now().await;
        }
    }
    assert_eq!(worker.answers(), 10);
    let before = worker.answers();
    other.send(1);
    yield_until("an answer", || other.receive() > 0).await;
    assert_eq!(worker.answers(), before + 1);
    worker.shutdown.drain();
    peers.push(other);
    assert_drained(peers).await;
}

#[tokio::test(flavor = "local")]
async fn idle_timeout_applies_again_after_a_delay() {
    let idle = Some(Duration::from_millis(20));
    let worker = Worker::with_timeouts(Timeouts { idle, unsent_answers: FOREVER, busy_poll: Duration::ZERO });
    let rate = Rate::new(1, 50_000_000, 1).ok();
    let account = UidAccount::new(1, UidQuotas { rate, ..UidQuotas::UNLIMITED });
    let mut peer = connect_with(&worker, &account);
    peer.send(1);
    yield_until("an answer", || peer.receive() > 0).await;
    assert!(account.delay().is_some());
    let served = tokio::time::timeout(FOREVER, peer.served).await.expect("it ends");
    assert_eq!(served.expect("no panic").expect("no error"), CloseReason::IdleTimeout);
}

#[tokio::test(flavor = "local")]
async fn peer_that_closes_during_a_delay_holds_no_connection() {
    let worker = Worker::start(Duration::ZERO);
    let rate = Rate::new(1, 3_600_000_000_000, 1).ok();
    let account = UidAccount::new(1, UidQuotas { rate, ..UidQuotas::UNLIMITED });
    let mut peer = connect_with(&worker, &account);
    peer.send(1);
    yield_until("an answer", || peer.receive() > 0).await;
    peer.send(1);
    for _ in 0..10 {
        yield_now().await;
    }
    // A peer that only ends its requests still waits for the answers.
    peer.stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
    for _ in 0..10 {
        yield_now().await;
    }
    assert!(!peer.served.is_finished());
    drop(peer.stream);
    let served = tokio::time::timeout(FOREVER / 6, peer.served).await.expect("it ends");
    assert_eq!(served.expect("no panic").expect("no error"), CloseReason::PeerClosed);
    assert_eq!(worker.answers(), 1);
}

/// A connection with an incomplete request holds its bytes once, however they arrive.
#[tokio::test(flavor = "local")]
async fn bytes_of_an_incomplete_request_count_once() {
    let worker = Worker::start(Duration::ZERO);
    let account = UidAccount::new(1, UidQuotas { buffered_bytes: Some(100), ..UidQuotas::UNLIMITED });
    let mut peers = [connect_with(&worker, &account), connect_with(&worker, &account)];
    for byte in request() {
        for peer in &mut peers {
            peer.stream.write_all(&[byte]).expect("sent");
            for _ in 0..5 {
                yield_now().await;
            }
        }
    }
    for peer in &mut peers {
        yield_until("an answer", || peer.receive() > 0).await;
    }
}
