//! The admin socket with many connections and many revocations: a command waits for none of them.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, RawClient, Setup, TIMEOUT, encode_verify, keyward, sha256_hex, wait_for};
use keyward_daemon::admin::message::{
    Command, LATEST_REVOCATIONS, REVOCATIONS_PER_PAGE, Reply, Revoked, Target,
};
use keyward_daemon::admin::send_command_within;

/// Far less than the ten seconds that an idle connection may take.
const PROMPT: Duration = Duration::from_secs(3);

fn export() -> String {
    format!("key_hash,key_id\n{},a\n{},b\n", sha256_hex("a"), sha256_hex("b"))
}

fn key(key_id: &str) -> Target {
    Target { key_id: Some(key_id.to_owned()), owner: None }
}

fn give(daemon: &Daemon, command: &Command) -> Reply {
    send_command_within(&daemon.admin_socket(), command, PROMPT).expect("answered at once")
}

fn admin(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.admin_socket()).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream
}

/// One that sends nothing, half a command, a command byte by byte, or many whose answers it does not read.
fn connect_idle(daemon: &Daemon, number: usize) -> UnixStream {
    let mut stream = admin(daemon);
    let sent = match number % 4 {
        0 => Ok(()),
        1 => stream.write_all(b"{\"command\":\"sta"),
        2 => stream.write_all(b"{"),
        _ => stream.write_all(&b"{\"command\":\"status\"}\n".repeat(100)),
    };
    // Its place may be another's already.
    let _lost = sent;
    stream
}

#[test]
fn idle_connections_delay_no_command() {
    let daemon = Daemon::serving(&export());
    let mut idle: Vec<UnixStream> = Vec::new();
    for number in 0..600 {
        idle.push(connect_idle(&daemon, number));
        if number % 50 == 0 {
            let start = Instant::now();
            give(&daemon, &Command::Status);
            give(&daemon, &Command::Revoke(key("a")));
            give(&daemon, &Command::Unrevoke(key("a")));
            assert!(start.elapsed() < PROMPT, "{number} connections: {:?}", start.elapsed());
        }
    }
    // The first has lost its place, and was told so.
    let mut answer = String::new();
    let _reset = BufReader::new(&idle[0]).read_line(&mut answer);
    assert!(answer.contains("need the place of one that sends no command"), "{answer}");
    // The last still has its own.
    let mut last = idle.pop().expect("the last");
    drop(idle);
    let mut lines = BufReader::new(last.try_clone().expect("a second handle"));
    let mut answer = String::new();
    lines.read_line(&mut answer).expect("an answer");
    assert!(answer.starts_with("{\"ok\":true"), "{answer}");
    last.write_all(b"").expect("open");
}

/// Connections that wait for a reload are not idle: each is answered.
#[test]
fn connections_that_wait_are_not_closed() {
    let daemon = Daemon::serving(&export());
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..16).map(|_| scope.spawn(|| daemon.reload())).collect();
        let idle: Vec<UnixStream> = (0..200).map(|number| connect_idle(&daemon, number)).collect();
        assert!(waiting.into_iter().all(|waiting| waiting.join().expect("answered").accepted));
        drop(idle);
    });
}

/// A list of the greatest length: neither its size nor its order is the accepting thread's work.
#[test]
fn status_is_bounded_and_pages_list_every_revocation() {
    const REVOKED: usize = 100_000;
    let setup = Setup::new(&export());
    let mut lines = String::new();
    for number in 0..REVOKED {
        let (hour, minute, second) = (number / 3_600, number / 60 % 60, number % 60);
        let what = if number % 10 == 0 { "owner" } else { "key_id" };
        writeln!(
            lines,
            "{{\"action\":\"revoke\",\"{what}\":\"r{number:06}\",\"when\":\"2026-11-{:02}T{:02}:{minute:02}:{second:02}Z\",\"by_uid\":0}}",
            1 + hour / 24,
            hour % 24
        )
        .expect("a String");
    }
    fs::write(setup.path("revocations.jsonl"), lines).expect("writes");
    let daemon = setup.start();
    let status = daemon.status();
    assert_eq!((status.revocations_total, status.revocations.len()), (REVOKED, LATEST_REVOCATIONS));
    let latest = |revoked: &Revoked| revoked.target.key_id.clone().or(revoked.target.owner.clone());
    for (revoked, number) in status.revocations.iter().zip((0..REVOKED).rev()) {
        assert_eq!(latest(revoked), Some(format!("r{number:06}")));
    }

    let (mut after, mut all) = (None, Vec::new());
    loop {
        let reply = give(&daemon, &Command::Revocations { after });
        let page = reply.revocations.expect("a page");
        assert!(page.entries.len() <= REVOCATIONS_PER_PAGE && page.total == REVOKED);
        all.extend(page.entries.iter().filter_map(latest));
        after = page.entries.last().map(|revoked| revoked.target.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(all.len(), REVOKED);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), REVOKED, "each once");

    let output = keyward()
        .args(["status", "--revocations", "--json", "--admin-socket"])
        .arg(daemon.admin_socket())
        .output();
    let output = output.expect("runs");
    assert!(output.status.success());
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), REVOKED);
    assert!(output.stdout.starts_with(b"{\"owner\":\"r000000\","));

    // What the thread that accepts connections has to do for a status, by the processor's count.
    let main = format!("/proc/{0}/task/{0}/schedstat", daemon.pid());
    let used = || -> u64 {
        let text = fs::read_to_string(&main).expect("the main thread");
        text.split(' ').next().and_then(|number| number.parse().ok()).expect("nanoseconds")
    };
    let before = used();
    (0..20).for_each(|_| drop(daemon.status()));
    let each = Duration::from_nanos((used() - before) / 20);
    assert!(each < Duration::from_millis(5), "a status takes {each:?} of the thread that accepts");
}

/// A peer that has sent many requests, and reads no answers.
fn stop_reading(daemon: &Daemon) -> RawClient {
    let mut peer = daemon.connect();
    peer.stream.set_write_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let requests: Vec<u8> = (0..500).flat_map(|id| encode_verify(id, "b")).collect();
    while peer.stream.write(&requests).is_ok() {}
    peer
}

/// Promise 2 gives a peer that does not read one second: the next revocation does not wait for the one before.
#[test]
fn overlapping_revocations_wait_a_second_each() {
    let daemon = Setup::new(&export()).config("[server]\nworkers = 1").start();
    let first = stop_reading(&daemon);
    thread::scope(|scope| {
        scope.spawn(|| daemon_revokes(&daemon, "a"));
        wait_for("the first revocation", || (daemon.status().revocations.len() == 1).then_some(()));
        let second = stop_reading(&daemon);
        let start = Instant::now();
        daemon_revokes(&daemon, "b");
        let took = start.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_millis(1_600)).contains(&took), "{took:?}");
        drop(second);
    });
    drop(first);
}

fn daemon_revokes(daemon: &Daemon, key_id: &str) {
    let reply = send_command_within(&daemon.admin_socket(), &Command::Revoke(key(key_id)), TIMEOUT);
    assert!(reply.expect("revoked").revocation.is_some());
}
