//! Commands whose acknowledgement waits for the workers. The test acts as the only worker.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use super::*;
use crate::balances::PendingLoss;
use crate::publish::Publisher;
use crate::reload::trigger_channel;
use crate::usage::UsagePolicy;
use keyward_service::listener::Listener;
use keyward_state::Rotation;

/// How long a test waits for an acknowledgement that must not come.
const EARLY_TIMEOUT: Duration = Duration::from_millis(250);

const PEER: Peer = Peer { uid: 7, pid: None };

fn listening_socket(directory: &Path, name: &'static str) -> Rc<ListeningSocket> {
    let socket = UnixListener::bind(directory.join(name)).expect("binds");
    ListeningSocket::new(name, Listener::adopt(socket)).expect("registers")
}

/// The handler of a daemon without a state directory, keys or worker threads.
fn handler(publisher: &Publisher, directory: &Path) -> AdminHandler {
    let files = Rotation { max_file_size: 1 << 20, keep: 1 };
    let policy = UsagePolicy { interval: Duration::from_secs(3600), files };
    AdminHandler {
        workers: Arc::from([]),
        refusals: Arc::default(),
        max_connections: 0,
        key_counts: KeyCounts::default(),
        snapshots: publisher.reader(),
        epochs: publisher.epochs(),
        revocations: Arc::new(Revocations::open(None, publisher).expect("none")),
        history: History::new(Path::new("keys.csv")),
        last_good: None,
        trigger: trigger_channel().0,
        audit: Audit::disabled(),
        balances: BalanceSource {
            limiter: Arc::default(),
            allocator: Arc::default(),
            snapshots: publisher.reader(),
            clock: Clock::new(),
            pending_loss: PendingLoss::default(),
        },
        usage: Usage::start(None, policy, 0).expect("a thread").0,
        health: WriteHealth::default(),
        clock: Clock::new(),
        sockets: ["verify", "admin"].map(|name| listening_socket(directory, name)),
        log: Log::start(File::create(directory.join("log")).expect("a file")).expect("a thread"),
        started: Instant::now(),
    }
}

/// Acknowledged means in force: while a worker may still write an answer that contradicts a
/// revocation, the revocation is not acknowledged.
#[tokio::test]
async fn revocation_is_not_acknowledged_before_every_worker_has_passed_the_epoch() {
    let directory = tempfile::tempdir().expect("a directory");
    let (publisher, mut workers) = Publisher::new(1);
    let mut worker = workers.remove(0);
    let handler = handler(&publisher, directory.path());
    let target = message::Target { owner: Some("acme".into()), ..message::Target::default() };
    for (command, entries) in [(Command::Revoke(target.clone()), 1), (Command::Unrevoke(target), 0)] {
        let mut reply = pin!(handler.handle(command, PEER));
        let early = async {
            worker.announced.changed().await.expect("announced");
            tokio::time::sleep(EARLY_TIMEOUT).await;
        };
        tokio::select! {
            _ = &mut reply => panic!("acknowledged"),
            () = early => {}
        }
        assert_eq!(handler.revocations.entries().len(), entries);
        let epoch = *worker.announced.borrow();
        worker.passed.send_replace(epoch);
        reply.await;
    }
}

/// A worker may still use a reading of the clock from before it was set back, and would move the
/// calendar forward again.
#[tokio::test]
async fn calendar_is_not_set_back_before_every_worker_has_passed_the_epoch() {
    let directory = tempfile::tempdir().expect("a directory");
    let (publisher, mut workers) = Publisher::new(1);
    let mut worker = workers.remove(0);
    let handler = handler(&publisher, directory.path());
    let limiter = Arc::clone(&handler.balances.limiter);
    let ahead = handler.clock.now().unix + 1_000;
    limiter.advance_calendar(ahead);
    let mut reply = pin!(handler.handle(Command::ResetCalendar, PEER));
    let early = async {
        worker.announced.changed().await.expect("announced");
        tokio::time::sleep(EARLY_TIMEOUT).await;
    };
    tokio::select! {
        _ = &mut reply => panic!("acknowledged"),
        () = early => {}
    }
    assert_eq!(limiter.latest_unix(), ahead);
    let epoch = *worker.announced.borrow();
    worker.passed.send_replace(epoch);
    let reset = reply.await.calendar.expect("the calendar");
    assert!((990..=1_000).contains(&reset.ahead_s) && limiter.latest_unix() < ahead - 900, "{reset:?}");
}
