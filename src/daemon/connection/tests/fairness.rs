//! Busy connections do not keep others waiting.

use super::*;
use crate::connection::turns::MIN_READ;

const BUSY_CONNECTIONS: usize = 64;

/// Requests that fit the input buffer: the most that a connection is answered in one turn.
const REQUESTS_PER_TURN: u64 = (INPUT_BYTES / 48 + 1) as u64;

/// The most requests that are answered between two polls of epoll. The answers are so short here
/// that a full turn costs less than a poll, and the smallest turn follows it.
const REQUESTS_PER_POLL: u64 = REQUESTS_PER_TURN + (MIN_READ / 48 + 1) as u64;

/// The number of requests that a worker answers between a polite peer's request and its answer, at
/// most, while peers of uid 1 keep [`BUSY_CONNECTIONS`] connections filled.
async fn longest_wait(polite_uid: u32) -> u64 {
    let worker = Worker::start(Duration::ZERO);
    let mut busy: Vec<Peer> = (0..BUSY_CONNECTIONS).map(|_| worker.connect_as(1)).collect();
    let mut polite = worker.connect_as(polite_uid);
    let mut refill = || {
        for peer in &mut busy {
            peer.receive();
            peer.send(2 * REQUESTS_PER_TURN as usize);
        }
    };
    for _ in 0..10 {
        refill();
        yield_now().await;
    }
    let mut longest = 0;
    for _ in 0..20 {
        polite.send(1);
        let before = worker.answers();
        let mut yields = 0;
        while polite.receive() == 0 {
            refill();
            yield_now().await;
            yields += 1;
            assert!(yields < MAX_YIELDS, "the polite peer got no answer");
        }
        longest = longest.max(worker.answers() - before);
        for _ in 0..3 {
            refill();
            yield_now().await;
        }
    }
    longest
}

#[tokio::test(flavor = "local")]
async fn peer_waits_for_one_turn_of_another_busy_uid() {
    let longest = longest_wait(2).await;
    // The test sees the answer only after one more turn.
    assert!(longest <= 2 * REQUESTS_PER_POLL, "{longest} requests were answered first");
}

#[tokio::test(flavor = "local")]
async fn peer_waits_for_one_turn_of_each_busy_connection_of_its_uid() {
    let longest = longest_wait(1).await;
    // The turns before epoll reports the request, and before the test sees the answer, come on top.
    let bound = (BUSY_CONNECTIONS as u64 + 4) * REQUESTS_PER_POLL;
    assert!(longest > 3 * REQUESTS_PER_TURN, "the connections are not busy: {longest} requests");
    assert!(longest <= bound, "{longest} requests were answered first");
}
