//! No descriptor left: the daemon's limit is lowered while it runs, so that accept(2) fails with
//! EMFILE. The daemon waits instead of spinning, refuses clients instead of leaving them in the
//! backlog, and accepts again as soon as it can.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::support::{
    Daemon, Export, RawClient, Received, Setup, TIMEOUT, encode_verify, key_target, wait_for,
};
use keyward_admin::message::Reply;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

/// How long the daemon's processor time is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// Maximum processor time of an idle daemon in the window, in clock ticks: a fifth of the window. A
/// spinning daemon uses all that it gets, even on a busy machine.
const MAX_TICKS: u64 = 20;

/// Maximum number of failed accepts per second. The back-off is 100 ms.
const MAX_FAILURES: f64 = 20.0;

/// Maximum number of clients served with four descriptors and those that the daemon has closed or
/// closes during the test.
const MAX_SERVED: usize = 16;

const TOO_MANY_CONNECTIONS: u8 = 12;

/// An idle daemon and its original limit of descriptors.
struct Fixture {
    daemon: Daemon,
    limit: Rlimit,
}

impl Fixture {
    fn new() -> Self {
        let setup = Setup::new(Export::of(["a"]));
        let daemon = setup.config("[server]\nworkers = 1\n[source]\npoll = \"1h\"").start();
        assert!(daemon.status().ready, "{}", daemon.log());
        let limit = descriptor_limit(&daemon);
        Self { daemon, limit }
    }

    /// Lowers the limit so that the daemon can open `count` descriptors more, besides those that it
    /// has closed. Those that it has opened are below the limit: others could not be replaced after
    /// they are closed. Only root can list the descriptors of a process that is not dumpable.
    fn leave_descriptors(&self, count: u64) {
        /// The daemon has closed fewer between two that it uses. Inherited ones have higher numbers.
        const GAP: u64 = 10;
        let entries = fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).expect("root may list them");
        let number = |entry: io::Result<fs::DirEntry>| -> u64 {
            entry.expect("an entry").file_name().to_string_lossy().parse().expect("a number")
        };
        let open: BTreeSet<u64> = entries.map(number).collect();
        let end = (0..).find(|start| open.range(start..&(start + GAP)).next().is_none());
        self.set_limit(end.map(|end| end + count));
    }

    /// Lowers the limit so that the daemon can open no descriptor, even after it has closed one.
    fn leave_no_descriptor(&self) {
        self.set_limit(Some(1));
    }

    fn restore_limit(&self) {
        self.set_limit(self.limit.current);
    }

    fn set_limit(&self, current: Option<u64>) {
        let limit = Rlimit { current, maximum: self.limit.maximum };
        let pid = Pid::from_raw(self.daemon.pid() as i32);
        prlimit(pid, Resource::Nofile, limit).expect("the limit of a process of this user");
    }

    /// Panics if the daemon spins during the window. Calls `meanwhile` every 50 ms.
    fn assert_idle(&self, mut meanwhile: impl FnMut()) {
        let (start, before) = (Instant::now(), self.daemon.processor_ticks());
        while start.elapsed() < WINDOW {
            meanwhile();
            std::thread::sleep(Duration::from_millis(50));
        }
        let ticks = self.daemon.processor_ticks() - before;
        assert!(ticks <= MAX_TICKS, "{ticks} clock ticks in {:?}", start.elapsed());
    }

    /// Panics if accept has failed more often than with a back-off after each failure.
    fn assert_few_failures(&self, since: Instant) {
        let failures = self.daemon.status().refused_connections["system"];
        let max = MAX_FAILURES * (1.0 + since.elapsed().as_secs_f64());
        assert!((failures as f64) < max, "{failures} failures in {:?}", since.elapsed());
    }
}

/// The daemon's limit of descriptors. The daemon raises it at its start.
fn descriptor_limit(daemon: &Daemon) -> Rlimit {
    let text = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line");
    let mut values = line.split_whitespace().map(|value| value.parse().ok());
    let mut value = || values.next().expect("two values");
    Rlimit { current: value(), maximum: value() }
}

fn is_served(peer: &mut RawClient) -> bool {
    peer.send(&encode_verify(7, "a"));
    peer.receive() == Received::Answer { request_id: 7, verdict: "ALLOWED", generation: 1 }
}

/// Sends a VERIFY and receives whether the daemon serves the connection or refuses it. A client
/// may be served although the limit was reached: a file that the daemon has closed in the
/// meantime makes room for one more.
fn is_served_or_refused(peer: &mut RawClient) -> bool {
    // Fails if the daemon has refused the connection already.
    let _ = peer.stream.write_all(&encode_verify(7, "a"));
    match peer.receive() {
        Received::Answer { request_id: 7, verdict: "ALLOWED", .. } => true,
        Received::Error { code: TOO_MANY_CONNECTIONS, closing: true, .. } => {
            assert_eq!(peer.receive(), Received::Closed);
            false
        }
        received => panic!("neither answered nor refused: {received:?}"),
    }
}

/// Receives the reason for the refusal, and the end of the connection.
fn assert_refused(mut peer: RawClient) {
    let received = peer.receive();
    assert!(
        matches!(received, Received::Error { code: TOO_MANY_CONNECTIONS, closing: true, .. }),
        "{received:?}"
    );
    assert_eq!(peer.receive(), Received::Closed);
}

/// Opens connections until the daemon refuses one, and adds the others to `served`.
fn open_until_refused(daemon: &Daemon, served: &mut Vec<RawClient>) {
    loop {
        let mut peer = daemon.connect();
        if !is_served_or_refused(&mut peer) {
            return;
        }
        served.push(peer);
        assert!(served.len() <= MAX_SERVED, "the limit is not reached");
    }
}

#[test]
#[ignore = "needs root, to list the daemon's descriptors: tests/run runs it"]
fn clients_without_a_descriptor_are_refused_at_once() {
    /// With a back-off of 100 ms for each, their refusals would take 10 s.
    const SURPLUS: usize = 100;
    let fixture = Fixture::new();
    let daemon = &fixture.daemon;
    let mut first = daemon.connect();
    assert!(is_served(&mut first));
    fixture.leave_descriptors(4);
    let mut served = Vec::new();
    open_until_refused(daemon, &mut served);
    assert!(!served.is_empty());

    let arrived = Instant::now();
    let surplus: Vec<RawClient> = (0..SURPLUS).map(|_| daemon.connect()).collect();
    served.extend(surplus.into_iter().filter_map(|mut peer| is_served_or_refused(&mut peer).then_some(peer)));
    let took = arrived.elapsed();
    assert!(took < Duration::from_secs(5), "{SURPLUS} clients were refused in {took:?}");
    assert!(served.len() <= MAX_SERVED, "{} clients are served", served.len());

    // A client that has sent nothing is refused as well.
    let silent = wait_for("a refusal", || {
        let mut peer = daemon.connect();
        peer.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
        let is_refused = rustix::net::recv(&peer.stream, &mut [0], RecvFlags::PEEK).is_ok();
        peer.stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        if is_refused {
            return Some(peer);
        }
        // There was room for it. It stays open, so that there is none for the next one.
        assert!(is_served_or_refused(&mut peer));
        served.push(peer);
        None
    });
    assert_refused(silent);
    assert!(served.len() <= MAX_SERVED, "{} clients are served", served.len());

    // Open connections are not affected.
    assert!(is_served(&mut first) && served.iter_mut().all(is_served));
    fixture.assert_idle(|| open_until_refused(daemon, &mut served));

    // A closed connection makes room for another.
    drop(served.pop());
    let mut next = wait_for("a free descriptor", || {
        let mut peer = daemon.connect();
        is_served_or_refused(&mut peer).then_some(peer)
    });
    assert!(is_served(&mut next) && is_served(&mut first));
    fixture.restore_limit();
    // The daemon may be refusing the next client already.
    let _ = is_served_or_refused(&mut daemon.connect());
    let mut peers: Vec<RawClient> = (0..20).map(|_| daemon.connect()).collect();
    assert!(peers.iter_mut().all(is_served));
}

#[test]
fn daemon_without_descriptors_accepts_waiting_clients_when_it_has_some() {
    let fixture = Fixture::new();
    let daemon = &fixture.daemon;
    let mut first = daemon.connect();
    assert!(is_served(&mut first));
    let start = Instant::now();
    fixture.leave_no_descriptor();
    let mut waiting: Vec<RawClient> = (0..5).map(|_| daemon.connect()).collect();
    waiting.iter_mut().for_each(|peer| peer.send(&encode_verify(7, "a")));
    let mut operators: Vec<UnixStream> = (0..5).map(|_| send_version(daemon)).collect();
    fixture.assert_idle(|| assert!(is_served(&mut first)));
    fixture.restore_limit();
    for peer in &mut waiting {
        // The first one is refused if the daemon has only one descriptor at that time.
        match peer.receive() {
            Received::Answer { request_id: 7, verdict: "ALLOWED", .. } => assert!(is_served(peer)),
            Received::Error { code: TOO_MANY_CONNECTIONS, closing: true, .. } => {}
            received => panic!("neither answered nor refused: {received:?}"),
        }
    }
    operators.iter_mut().for_each(|stream| assert!(receive_reply(stream).ok));
    assert!(is_served(&mut daemon.connect()));
    fixture.assert_few_failures(start);
}

/// The daemon reserves a descriptor for commands.
#[test]
#[ignore = "needs root, to list the daemon's descriptors: tests/run runs it"]
fn commands_are_answered_without_a_descriptor_for_clients() {
    let fixture = Fixture::new();
    let daemon = &fixture.daemon;
    let mut first = daemon.connect();
    assert!(is_served(&mut first));
    fixture.leave_descriptors(0);
    let mut served = Vec::new();
    open_until_refused(daemon, &mut served);
    for _ in 0..5 {
        assert!(receive_reply(&mut send_version(daemon)).ok);
    }
    fixture.assert_idle(|| ());
    assert!(daemon.revoke(key_target("a")).durable);
    first.send(&encode_verify(8, "a"));
    // The revocation has a generation of its own.
    assert_eq!(first.receive(), Received::Answer { request_id: 8, verdict: "REVOKED", generation: 2 });
    fixture.restore_limit();
    assert!(daemon.status().ready);
}

/// The reserve descriptor is enough for all clients that wait when the daemon stops.
#[test]
#[ignore = "needs root, to list the daemon's descriptors: tests/run runs it"]
fn clients_without_a_descriptor_are_answered_at_shutdown() {
    const WAITING: usize = 50;
    const SHUTTING_DOWN: u8 = 14;
    let mut fixture = Fixture::new();
    fixture.leave_descriptors(0);
    let daemon = &mut fixture.daemon;
    daemon.pause();
    let mut waiting: Vec<RawClient> = (0..WAITING).map(|_| daemon.connect()).collect();
    waiting.iter_mut().step_by(2).for_each(|peer| peer.send(&encode_verify(7, "a")));
    daemon.signal(Signal::TERM);
    daemon.resume();
    for peer in &mut waiting {
        let mut received = peer.receive_until_close();
        // The daemon may have refused some before it noticed the signal.
        let last = received.pop();
        assert!(
            matches!(last, Some(Received::Error { code: TOO_MANY_CONNECTIONS | SHUTTING_DOWN, .. })),
            "{received:?}, {last:?}"
        );
    }
    assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
}

/// Connects to the admin socket and sends the command `version`.
fn send_version(daemon: &Daemon) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.admin_socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("set");
    stream.write_all(b"{\"command\":\"version\"}\n").expect("sent");
    stream
}

fn receive_reply(stream: &mut UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a reply");
    serde_json::from_str(&line).expect("JSON")
}
