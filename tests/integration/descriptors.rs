//! No descriptor left: the daemon's limit is lowered while it runs, so that accept(2) fails with EMFILE. It waits instead of
//! spinning, turns clients away instead of leaving them in the backlog, and accepts again as soon as it can.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::support::{Daemon, RawClient, Received, Setup, TIMEOUT, encode_verify, sha256_hex, wait_for};
use keyward_daemon::admin::message::Reply;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// How long the daemon is watched for spinning.
const WINDOW: Duration = Duration::from_secs(1);

/// Processor time that it may use meanwhile, in clock ticks: a fifth of the window. What spins uses all that it gets, on a busy
/// machine too.
const MAX_TICKS: u64 = 20;

/// Failed accepts that the daemon may count for each second: one back-off is 100 ms long.
const MAX_FAILURES: f64 = 20.0;

const TOO_MANY_CONNECTIONS: u8 = 12;

/// A daemon without any work of its own, and its limit of descriptors.
struct Fixture {
    daemon: Daemon,
    limit: Rlimit,
}

impl Fixture {
    fn new() -> Self {
        let setup = Setup::new(&format!("key_hash,key_id\n{},a\n", sha256_hex("a")));
        let daemon = setup.config("[server]\nworkers = 1\n[source]\npoll = \"1h\"").start();
        assert!(daemon.status().ready, "{}", daemon.log());
        let limit = limit_of(&daemon);
        Self { daemon, limit }
    }

    /// Leaves the daemon `descriptors` descriptors beside those that it has. Only root can list the
    /// descriptors of a process that cannot be dumped.
    fn leave(&self, descriptors: usize) {
        let taken = fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).expect("root may list them");
        let taken: BTreeSet<u64> = taken
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().parse().expect("a number"))
            .collect();
        let free = (0..).filter(|number| !taken.contains(number));
        self.set(free.take(descriptors + 1).last());
    }

    /// Leaves it none, not even one that it gives back itself.
    fn leave_none(&self) {
        self.set(Some(1));
    }

    fn restore(&self) {
        self.set(self.limit.current);
    }

    fn set(&self, current: Option<u64>) {
        let limit = Rlimit { current, maximum: self.limit.maximum };
        let pid = Pid::from_raw(self.daemon.pid() as i32);
        prlimit(pid, Resource::Nofile, limit).expect("the limit of a process of this user");
    }

    /// User and system time of the daemon, in clock ticks.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.pid())).expect("a process");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        // utime and stime are fields 14 and 15, and the state, which is the first here, is field 3.
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    /// Fails if the daemon spins, for as long as the window is; `meanwhile` is called in it again and again.
    fn assert_idle(&self, mut meanwhile: impl FnMut()) {
        let (start, before) = (Instant::now(), self.ticks());
        while start.elapsed() < WINDOW {
            meanwhile();
            std::thread::sleep(Duration::from_millis(50));
        }
        let ticks = self.ticks() - before;
        assert!(ticks <= MAX_TICKS, "{ticks} clock ticks in {:?}", start.elapsed());
    }

    /// Fails if accepting has failed more often than a daemon fails that waits after each failure, or turns a client away.
    fn assert_few_failures(&self, since: Instant) {
        let failures = self.daemon.status().refused_connections["system"];
        let most = MAX_FAILURES * (1.0 + since.elapsed().as_secs_f64());
        assert!((failures as f64) < most, "{failures} failures in {:?}", since.elapsed());
    }
}

/// The daemon's limit of descriptors, which it has raised when it started.
fn limit_of(daemon: &Daemon) -> Rlimit {
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

/// Hears why the connection is refused, and its end.
fn assert_turned_away(peer: &mut RawClient) {
    match peer.receive() {
        Received::Error { code: TOO_MANY_CONNECTIONS, closing: true, .. } => {
            assert_eq!(peer.receive(), Received::Closed)
        }
        said => panic!("not turned away: {said:?}"),
    }
}

#[test]
#[ignore = "needs root, to list the daemon's descriptors: tests/run runs it"]
fn clients_beyond_the_last_descriptor_are_turned_away_at_once() {
    /// More than the daemon turns away if it waits a back-off for each.
    const SURPLUS: usize = 100;
    let fixture = Fixture::new();
    let daemon = &fixture.daemon;
    let mut first = daemon.connect();
    assert!(is_served(&mut first));
    fixture.leave(4);
    // How many of the four are there for clients is not known for sure: an admin connection may have been open a moment ago.
    let mut served = Vec::new();
    loop {
        let mut peer = daemon.connect();
        let mut byte = [0];
        peer.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
        // A client that is not turned away hears nothing until it asks.
        if rustix::net::recv(&peer.stream, &mut byte, rustix::net::RecvFlags::PEEK).is_ok() {
            assert_turned_away(&mut peer);
            break;
        }
        peer.stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        assert!(is_served(&mut peer));
        served.push(peer);
        assert!(served.len() <= 8, "the limit is not reached");
    }
    assert!(!served.is_empty());

    let arrived = Instant::now();
    let mut surplus: Vec<RawClient> = (0..SURPLUS).map(|_| daemon.connect()).collect();
    surplus.iter_mut().for_each(assert_turned_away);
    let took = arrived.elapsed();
    assert!(took < Duration::from_secs(5), "{SURPLUS} clients were turned away in {took:?}");

    // Those that have a connection notice nothing.
    assert!(is_served(&mut first) && served.iter_mut().all(is_served));
    fixture.assert_idle(|| assert_turned_away(&mut daemon.connect()));

    // One that goes makes room for one.
    drop(served.pop());
    let mut next = wait_for("a free descriptor", || {
        let mut peer = daemon.connect();
        let _closed_at_once = peer.stream.write_all(&encode_verify(7, "a"));
        matches!(peer.receive(), Received::Answer { .. }).then_some(peer)
    });
    assert!(is_served(&mut next) && is_served(&mut first));
    fixture.restore();
    let mut peers: Vec<RawClient> = (0..20).map(|_| daemon.connect()).collect();
    assert!(peers.iter_mut().all(is_served));
}

#[test]
fn daemon_without_any_descriptor_waits_and_accepts_when_there_are_some() {
    let fixture = Fixture::new();
    let daemon = &fixture.daemon;
    let mut first = daemon.connect();
    assert!(is_served(&mut first));
    let start = Instant::now();
    fixture.leave_none();
    let mut waiting: Vec<RawClient> = (0..5).map(|_| daemon.connect()).collect();
    waiting.iter_mut().for_each(|peer| peer.send(&encode_verify(7, "a")));
    let mut operators: Vec<UnixStream> = (0..5).map(|_| command(daemon)).collect();
    fixture.assert_idle(|| assert!(is_served(&mut first)));
    fixture.restore();
    for peer in &mut waiting {
        // The first may find the daemon with a single descriptor, and be turned away.
        match peer.receive() {
            Received::Answer { request_id: 7, verdict: "ALLOWED", .. } => assert!(is_served(peer)),
            Received::Error { code: TOO_MANY_CONNECTIONS, closing: true, .. } => {}
            said => panic!("neither answered nor turned away: {said:?}"),
        }
    }
    operators.iter_mut().for_each(|stream| assert!(reply(stream).ok));
    assert!(is_served(&mut daemon.connect()));
    fixture.assert_few_failures(start);
}

/// Commands are served with the descriptor that is kept in reserve for them.
#[test]
#[ignore = "needs root, to list the daemon's descriptors: tests/run runs it"]
fn operators_are_answered_when_clients_have_taken_all_descriptors() {
    let fixture = Fixture::new();
    let daemon = &fixture.daemon;
    let mut first = daemon.connect();
    assert!(is_served(&mut first));
    fixture.leave(0);
    for _ in 0..5 {
        assert!(reply(&mut command(daemon)).ok);
    }
    fixture.assert_idle(|| ());
    let revoked = std::process::Command::new(crate::support::keyward().get_program())
        .args(["revoke", "a", "--admin-socket"])
        .arg(daemon.admin_socket())
        .output()
        .expect("runs");
    assert!(revoked.status.success(), "{revoked:?}");
    first.send(&encode_verify(8, "a"));
    assert_eq!(first.receive(), Received::Answer { request_id: 8, verdict: "REVOKED", generation: 1 });
    fixture.restore();
    assert!(daemon.status().ready);
}

/// Connects to the admin socket and asks for the version.
fn command(daemon: &Daemon) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.admin_socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("set");
    stream.write_all(b"{\"command\":\"version\"}\n").expect("sent");
    stream
}

fn reply(stream: &mut UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a reply");
    serde_json::from_str(&line).expect("JSON")
}
