//! The admin socket with many connections and many revocations: no command waits for them.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, Export, RawClient, Setup, TIMEOUT, encode_verify, key_target, wait_until};
use keyward_admin::message::{Command, LATEST_REVOCATIONS, REVOCATIONS_PER_PAGE, Reply, Revoked};
use keyward_admin::send_command_within;

/// Much less than the ten seconds after which an idle connection is closed.
const PROMPT: Duration = Duration::from_secs(3);

fn send_promptly(daemon: &Daemon, command: &Command) -> Reply {
    send_command_within(&daemon.admin_socket(), command, PROMPT).expect("a prompt reply")
}

fn connect_admin(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.admin_socket()).expect("connects");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream
}

/// A connection that sends nothing, half a command, a single byte, or many commands without reading
/// their replies.
fn connect_idle(daemon: &Daemon, number: usize) -> UnixStream {
    let mut stream = connect_admin(daemon);
    // Fails if the daemon has closed the connection already, to make room for another one.
    let _ = match number % 4 {
        0 => Ok(()),
        1 => stream.write_all(b"{\"command\":\"sta"),
        2 => stream.write_all(b"{"),
        _ => stream.write_all(&b"{\"command\":\"status\"}\n".repeat(100)),
    };
    stream
}

#[test]
fn idle_connections_do_not_delay_commands() {
    let daemon = Daemon::serving(Export::of(["a", "b"]));
    let mut idle: Vec<UnixStream> = Vec::new();
    for number in 0..600 {
        idle.push(connect_idle(&daemon, number));
        if number % 50 == 0 {
            let start = Instant::now();
            send_promptly(&daemon, &Command::Status);
            send_promptly(&daemon, &Command::Revoke(key_target("a")));
            send_promptly(&daemon, &Command::Unrevoke(key_target("a")));
            assert!(start.elapsed() < PROMPT, "{number} connections: {:?}", start.elapsed());
        }
    }
    // The first connection was closed, with a reason.
    let mut reply = String::new();
    // Fails if the connection was reset after the reply.
    let _ = BufReader::new(&idle[0]).read_line(&mut reply);
    assert!(reply.contains("this one was idle"), "{reply}");
    // The last one is still open.
    let last = idle.pop().expect("the last");
    drop(idle);
    let mut reply = String::new();
    BufReader::new(last).read_line(&mut reply).expect("a reply");
    assert!(reply.starts_with("{\"ok\":true"), "{reply}");
}

/// Connections that wait for a reload are not idle.
#[test]
fn connections_that_wait_for_a_reload_are_not_closed() {
    let export = Export::of(["a", "b"]);
    let daemon = Setup::text(&export).config("source.settle = '1s'").start();
    // A reload waits until a source that was written in place has settled.
    daemon.setup.write_export(&export);
    let mut reload = serde_json::to_vec(&Command::Reload { force: false }).expect("JSON");
    reload.push(b'\n');
    let mut waiting: Vec<UnixStream> = (0..16).map(|_| connect_admin(&daemon)).collect();
    waiting.iter_mut().for_each(|stream| stream.write_all(&reload).expect("the daemon reads"));
    // The daemon reads commands in the order of their arrival.
    send_promptly(&daemon, &Command::Status);
    let idle: Vec<UnixStream> = (0..200).map(|number| connect_idle(&daemon, number)).collect();
    for stream in waiting {
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).expect("a reply");
        let reply: Reply = serde_json::from_str(&reply).expect("JSON");
        assert!(reply.reload.as_ref().is_some_and(|reload| reload.accepted), "{reply:?}");
    }
    drop(idle);
}

/// The accepting thread neither copies nor sorts the whole list of revocations.
#[test]
fn status_is_bounded_and_pages_list_every_revocation() {
    const REVOKED: usize = 100_000;
    let setup = Setup::new(Export::of(["a", "b"]));
    let list = "0".repeat(32);
    let mut lines = format!("{{\"revocations\":1,\"list\":\"{list}\",\"seq\":0}}\n");
    for number in 0..REVOKED {
        let seq = number + 1;
        let (day, hour) = (1 + number / 86_400, number / 3_600 % 24);
        let (minute, second) = (number / 60 % 60, number % 60);
        let target = if number % 10 == 0 { "owner" } else { "key_id" };
        writeln!(
            lines,
            r#"{{"seq":{seq},"action":"revoke","{target}":"r{number:06}","when":"2026-11-{day:02}T{hour:02}:{minute:02}:{second:02}Z","by_uid":0}}"#
        )
        .expect("a String");
    }
    fs::write(setup.path("revocations.jsonl"), lines).expect("writes");
    let mark = format!(r#"{{"list":"{list}","seq":{REVOKED},"clock_ms":0,"boottime_ms":0,"realtime_ms":0}}"#);
    fs::write(setup.path("revocations.seq"), mark).expect("writes");
    let daemon = setup.start();
    let status = daemon.status();
    assert_eq!((status.revocations_total, status.revocations.len()), (REVOKED, LATEST_REVOCATIONS));
    let name = |revoked: &Revoked| revoked.target.key_id.clone().or(revoked.target.owner.clone());
    for (revoked, number) in status.revocations.iter().zip((0..REVOKED).rev()) {
        assert_eq!(name(revoked), Some(format!("r{number:06}")));
    }

    let (mut after, mut all) = (None, Vec::new());
    loop {
        let reply = send_promptly(&daemon, &Command::Revocations { after });
        let page = reply.revocations.expect("a page");
        assert!(page.entries.len() <= REVOCATIONS_PER_PAGE && page.total == REVOKED);
        all.extend(page.entries.iter().filter_map(name));
        after = page.entries.last().map(|revoked| revoked.target.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(all.len(), REVOKED);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), REVOKED, "each once");

    let output = daemon.run_keyward(&["status", "--revocations", "--json"]);
    assert_eq!(output.code, Some(0));
    assert_eq!(output.stdout.lines().count(), REVOKED);
    assert!(output.stdout.starts_with("{\"owner\":\"r000000\","));

    // Processor time of the accepting thread for each status.
    let schedstat = format!("/proc/{0}/task/{0}/schedstat", daemon.pid());
    let processor_time = || {
        let text = fs::read_to_string(&schedstat).expect("the main thread");
        Duration::from_nanos(text.split(' ').next().expect("a field").parse().expect("nanoseconds"))
    };
    let before = processor_time();
    (0..20).for_each(|_| drop(daemon.status()));
    let per_status = (processor_time() - before) / 20;
    assert!(per_status < Duration::from_millis(5), "a status costs the accepting thread {per_status:?}");
}

/// A connection that has sent many requests and reads no answers.
fn connect_stalled(daemon: &Daemon) -> RawClient {
    let mut peer = daemon.connect();
    peer.stream.set_write_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let requests: Vec<u8> = (0..500).flat_map(|id| encode_verify(id, "stalled")).collect();
    while peer.stream.write(&requests).is_ok() {}
    peer
}

/// A peer that does not read has one second until it is not waited for. A revocation waits for its
/// own second, not for that of the previous revocation as well.
#[test]
fn overlapping_revocations_wait_one_second_each() {
    /// A busy machine may delay some of them. A daemon that waits for both seconds is late in all.
    const ATTEMPTS: usize = 10;
    let keys = (0..2 * ATTEMPTS).map(|number| format!("k{number}"));
    let export = Export::of(keys.chain(["stalled".to_owned()]));
    let daemon = Setup::new(export).config("[server]\nworkers = 1").start();
    let overlapping = |attempt: usize| {
        let first = connect_stalled(&daemon);
        let took = thread::scope(|scope| {
            scope.spawn(|| daemon.revoke(key_target(&format!("k{}", 2 * attempt))));
            wait_until("the first revocation", || daemon.status().revocations_total == 2 * attempt + 1);
            let second = connect_stalled(&daemon);
            let start = Instant::now();
            daemon.revoke(key_target(&format!("k{}", 2 * attempt + 1)));
            let took = start.elapsed();
            drop(second);
            took
        });
        drop(first);
        assert!(took >= Duration::from_millis(900), "attempt {attempt} took {took:?}");
        took
    };
    // Two seconds in a row take at least 1.9 s.
    let is_overlapping = |took: Duration| took < Duration::from_millis(1_600);
    assert!((0..ATTEMPTS).map(overlapping).any(is_overlapping), "each revocation waited for two seconds");
}
