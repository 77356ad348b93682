//! How connections end: after silence, with an incomplete frame, with answers that are not read, and
//! at shutdown. The clock is paused, and only the test advances it.

use super::*;

const IDLE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// Timers are scanned this often, so that they can be late by as much.
const LATE: Duration = Duration::from_millis(200);

/// The tasks of a worker have done all that they can after so many yields.
const SETTLED: usize = 50;

const TIMEOUT_ERROR: (ErrorCode, u32) = (ErrorCode::IdleTimeout, 10_000);

fn start() -> Worker {
    start_spinning(Duration::ZERO)
}

fn start_spinning(busy_poll: Duration) -> Worker {
    let timeouts = Timeouts { idle: Some(IDLE), unsent_answers: FOREVER, busy_poll };
    Worker::with_timer(TimerFd::of_runtime(), timeouts)
}

async fn settle() {
    for _ in 0..SETTLED {
        yield_now().await;
    }
}

/// Advances the clock in steps of a tenth of a second, and lets the worker run at each.
async fn advance(duration: Duration) {
    let step = Duration::from_millis(100);
    let mut left = duration;
    settle().await;
    while left > Duration::ZERO {
        tokio::time::advance(step.min(left)).await;
        left = left.saturating_sub(step);
        settle().await;
    }
}

/// A peer whose answers soon fill the daemon's send buffer.
fn connect_with_small_buffer(worker: &Worker) -> Peer {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    // The kernel rounds it up to its minimum.
    set_socket_send_buffer_size(&theirs, 1).expect("a send buffer");
    worker.serve(ours, theirs, UidAccount::new(0, UidQuotas::UNLIMITED))
}

impl Peer {
    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the socket takes it");
    }

    fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
    }

    /// Reads at most `limit` bytes.
    fn read_some(&mut self, limit: usize, received: &mut Vec<u8>) {
        let mut buffer = vec![0; limit];
        let count = self.stream.read(&mut buffer).unwrap_or(0);
        received.extend_from_slice(&buffer[..count]);
    }

    /// How the connection has ended, the number of answers, and the ERROR after them.
    async fn ended(mut self) -> (CloseReason, usize, Option<(ErrorCode, u32)>) {
        let reason = self.served.await.expect("no panic").expect("no error");
        let mut received = Vec::new();
        // The end of the stream, and not a reset.
        self.stream.read_to_end(&mut received).expect("the end");
        let (answers, error) = parse(&received);
        (reason, answers, error)
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn silence_after_pipelined_requests_is_timed_out_from_their_answers() {
    let worker = start();
    let mut peer = worker.connect();
    advance(5 * SECOND).await;
    peer.send(100);
    advance(IDLE - LATE).await;
    assert!(!peer.served.is_finished());
    advance(2 * LATE).await;
    assert_eq!(peer.ended().await, (CloseReason::IdleTimeout, 100, Some(TIMEOUT_ERROR)));
}

/// Whatever part of a frame it is, and whether the connection spins or waits.
#[tokio::test(flavor = "local", start_paused = true)]
async fn byte_now_and_then_does_not_keep_an_incomplete_frame_alive() {
    for (busy_poll, sent) in
        [(Duration::ZERO, 0), (Duration::ZERO, 1), (Duration::from_millis(1), 1), (Duration::ZERO, 12)]
    {
        let worker = start_spinning(busy_poll);
        let mut peer = worker.connect();
        peer.send(1);
        peer.write(&request()[..sent]);
        let mut bytes = request()[sent..].to_vec().into_iter();
        for _ in 0..19 {
            peer.write(&[bytes.next().expect("a byte")]);
            advance(SECOND / 2).await;
            assert!(!peer.served.is_finished());
        }
        peer.write(&[bytes.next().expect("a byte")]);
        advance(SECOND / 2 + LATE).await;
        assert!(bytes.len() > 0 && peer.served.is_finished(), "{busy_poll:?}, {sent} bytes at first");
        assert_eq!(peer.ended().await, (CloseReason::IdleTimeout, 1, Some(TIMEOUT_ERROR)));
    }
}

/// Each read finds a byte, so that the connection never looks at its timer.
#[tokio::test(flavor = "local", start_paused = true)]
async fn incomplete_frame_whose_bytes_keep_arriving_is_timed_out() {
    let worker = start_spinning(FOREVER);
    let mut peer = worker.connect();
    peer.send(1);
    settle().await;
    let mut frame = request();
    // A frame that never ends.
    frame[..4].copy_from_slice(&4_096_u32.to_le_bytes());
    frame.resize(4_100, 0);
    let mut bytes = frame.iter();
    let start = Instant::now();
    while !peer.served.is_finished() {
        let Some(byte) = bytes.next() else { panic!("the frame was received whole") };
        // Fails once the daemon has closed the connection.
        let _ = peer.stream.write(&[*byte]);
        tokio::time::advance(Duration::from_millis(5)).await;
        yield_now().await;
    }
    assert!(start.elapsed() < IDLE + LATE, "{:?}", start.elapsed());
    assert_eq!(peer.served.await.expect("no panic").expect("no error"), CloseReason::IdleTimeout);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn frames_divided_by_long_pauses_are_answered() {
    let worker = start();
    let mut peer = worker.connect();
    for part in [1, 4, 11, 12, 47] {
        // The first part arrives shortly before the end of the silence.
        advance(IDLE - LATE).await;
        peer.write(&request()[..part]);
        advance(IDLE - LATE).await;
        assert!(!peer.served.is_finished(), "after {part} bytes");
        peer.write(&request()[part..]);
        settle().await;
    }
    peer.half_close();
    assert_eq!(peer.ended().await, (CloseReason::PeerClosed, 5, None));
}

/// It takes many times the timeout. Each time, the kernel takes some bytes.
#[tokio::test(flavor = "local", start_paused = true)]
async fn slow_reader_that_has_half_closed_gets_all_answers() {
    const REQUESTS: usize = 1_000;
    let worker = start();
    let mut peer = connect_with_small_buffer(&worker);
    peer.send(REQUESTS);
    peer.half_close();
    let (mut received, start) = (Vec::new(), Instant::now());
    while !peer.served.is_finished() {
        advance(IDLE - LATE).await;
        peer.read_some(3_000, &mut received);
    }
    assert!(start.elapsed() > 5 * IDLE, "{:?}", start.elapsed());
    assert_eq!(peer.served.await.expect("no panic").expect("no error"), CloseReason::PeerClosed);
    peer.stream.read_to_end(&mut received).expect("the end");
    assert_eq!(parse(&received), (REQUESTS, None));
}

/// The requests that were processed, and so were charged, are exactly those that are answered before
/// the ERROR. The rest was not processed.
#[tokio::test(flavor = "local", start_paused = true)]
async fn peer_that_never_reads_gets_the_answers_due_and_the_reason() {
    let worker = start();
    let mut peer = connect_with_small_buffer(&worker);
    peer.send(4_000);
    advance(IDLE - LATE).await;
    assert!(!peer.served.is_finished());
    advance(2 * LATE).await;
    let answers = worker.answers() as usize;
    assert!((100..4_000).contains(&answers), "{answers}");
    assert_eq!(peer.ended().await, (CloseReason::NotReading, answers, Some(TIMEOUT_ERROR)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn reading_a_part_of_the_answers_restarts_the_timeout() {
    let worker = start();
    let mut peer = connect_with_small_buffer(&worker);
    peer.send(4_000);
    advance(IDLE - LATE).await;
    let mut received = Vec::new();
    peer.read_some(3_000, &mut received);
    // The daemon notices at the end of the first period.
    advance(IDLE).await;
    assert!(!peer.served.is_finished());
    advance(2 * LATE).await;
    assert_eq!(peer.served.await.expect("no panic").expect("no error"), CloseReason::NotReading);
    peer.stream.read_to_end(&mut received).expect("the end");
    assert_eq!(parse(&received), (worker.answers() as usize, Some(TIMEOUT_ERROR)));
}

/// The connection was not silent while answers waited, and the rest of the frame was not read.
#[tokio::test(flavor = "local", start_paused = true)]
async fn frame_behind_answers_that_are_read_slowly_is_answered() {
    const REQUESTS: usize = 500;
    let worker = start();
    let mut peer = connect_with_small_buffer(&worker);
    peer.send(REQUESTS);
    peer.write(&request()[..20]);
    settle().await;
    // The daemon does not read meanwhile.
    peer.write(&request()[20..40]);
    let mut received = Vec::new();
    for _ in 0..5 {
        advance(IDLE - LATE).await;
        peer.read_some(3_000, &mut received);
    }
    for _ in 0..10 {
        peer.read_some(100_000, &mut received);
        settle().await;
    }
    assert_eq!(parse(&received), (REQUESTS, None));
    advance(IDLE - LATE).await;
    peer.write(&request()[40..]);
    peer.half_close();
    settle().await;
    assert_eq!(peer.served.await.expect("no panic").expect("no error"), CloseReason::PeerClosed);
    peer.stream.read_to_end(&mut received).expect("the end");
    assert_eq!(parse(&received), (REQUESTS + 1, None));
}

/// The connection ends when the drain timeout passes: with all answers that were made, and the
/// reason.
#[tokio::test(flavor = "local", start_paused = true)]
async fn end_of_the_drain_does_not_wait_for_peers_that_do_not_read() {
    let worker = start();
    let mut peers = [connect_with_small_buffer(&worker), connect_with_small_buffer(&worker)];
    peers[0].send(4_000);
    peers[1].send(200);
    settle().await;
    worker.shutdown.drain();
    advance(SECOND).await;
    assert!(peers.iter().all(|peer| !peer.served.is_finished()));
    worker.shutdown.close();
    settle().await;
    let answers = worker.answers() as usize;
    let mut received = 0;
    for peer in peers {
        let (reason, answers, error) = peer.ended().await;
        assert_eq!((reason, error), (CloseReason::ShutDown, Some((ErrorCode::ShuttingDown, 0))));
        received += answers;
    }
    assert_eq!(received, answers);
}

/// The ERROR at the end of the answers is the only one.
#[tokio::test(flavor = "local", start_paused = true)]
async fn peer_that_violates_the_protocol_and_does_not_read_gets_one_error() {
    let worker = start();
    let mut peer = connect_with_small_buffer(&worker);
    peer.send(500);
    peer.write(&[1, 0, 0, 0]);
    advance(IDLE + LATE).await;
    assert_eq!(peer.ended().await, (CloseReason::NotReading, 500, Some((ErrorCode::FrameTooShort, 1))));
}
