//! Each alert fires in a real Prometheus when its condition is caused in a real daemon or `keyward http`.
//!
//! [`super::stack`] shortens `for`, and the ranges and thresholds that take minutes to reach.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use super::server::read;
use super::stack::Stack;
use super::traffic;
use crate::support::http_client::send;
use crate::support::{
    Daemon, Export, Setup, encode_verify, key_target, remove_dir_in_use, row, wait_for, wait_until,
};

const OF_AN_END: &[&str] = &["KeywardDown", "KeywardFailedOpen", "KeywardUnavailable", "KeywardHttpDown"];
const OF_RESTARTS: &[&str] = &["KeywardRestarting", "KeywardHttpRestarting"];
const OF_NO_KEYS: &[&str] = &["KeywardNotReady"];
const OF_STALE_KEYS: &[&str] = &["KeywardStale"];
const OF_A_REFUSED_SOURCE: &[&str] = &["KeywardSourceOld", "KeywardReloadRefused", "KeywardLastGoodInUse"];
const OF_BAD_ROWS: &[&str] = &["KeywardRowsSetAside"];
const OF_THE_STATE_DIRECTORY: &[&str] =
    &["KeywardStateNotWritten", "KeywardRevocationsNotDurable", "KeywardUsageLag"];
const OF_CONNECTIONS: &[&str] =
    &["KeywardConnectionsNearLimit", "KeywardConnectionsRefused", "KeywardDescriptorsNearLimit"];
const OF_CONNECTIONS_OF_GATEWAYS: &[&str] = &["KeywardHttpConnectionsNearLimit"];
const OF_A_SOCKET: &[&str] = &["KeywardSocketUnreachable"];
const OF_THE_LOG: &[&str] = &["KeywardLogLinesDropped"];
const OF_TRAFFIC: &[&str] = &["KeywardUnknownKeys", "KeywardMisconfigured", "KeywardSlow"];
const OF_A_SLOW_DAEMON: &[&str] = &["KeywardChecksSlow"];

/// Alerts that only `promtool test rules` tests. The first needs a clock that is set back. The second can
/// only fire for a daemon that is ending, between its last writes and its exit.
const ONLY_UNIT_TESTED: &[&str] = &["KeywardCalendarAhead"];

#[test]
fn every_alert_is_caused_by_a_test() {
    let tested = [
        OF_AN_END,
        OF_RESTARTS,
        OF_NO_KEYS,
        OF_STALE_KEYS,
        OF_A_REFUSED_SOURCE,
        OF_BAD_ROWS,
        OF_THE_STATE_DIRECTORY,
        OF_CONNECTIONS,
        OF_CONNECTIONS_OF_GATEWAYS,
        OF_A_SOCKET,
        OF_THE_LOG,
        OF_TRAFFIC,
        OF_A_SLOW_DAEMON,
        ONLY_UNIT_TESTED,
    ];
    let tested: BTreeSet<String> = tested.concat().into_iter().map(str::to_owned).collect();
    let rules = read("alerts.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(names.map(str::to_owned).collect::<BTreeSet<_>>(), tested);
}

#[test]
#[ignore = "needs Prometheus"]
fn no_alert_fires_while_all_is_well() {
    let stack = Stack::start(traffic::daemon());
    // Before the first scrape there is no target, which KeywardHttpDown reports.
    wait_until("the first evaluation", || stack.prometheus.firing().is_empty());
    wait_until("ten scrapes", || {
        assert_eq!(stack.check("/", "free").status, 200);
        let mut firing = stack.prometheus.firing();
        // These depend on how busy the machine is.
        firing.retain(|alert| {
            alert["labels"]["alertname"] != "KeywardSlow"
                && alert["labels"]["alertname"] != "KeywardChecksSlow"
        });
        assert!(firing.is_empty(), "{firing:#?}");
        stack.prometheus.value("count_over_time(keyward_up[1m])") >= Some(10.0)
    });
}

#[test]
#[ignore = "needs Prometheus"]
fn end_of_the_daemon_and_of_keyward_http_is_noticed() {
    let mut stack = Stack::start(Daemon::serving(Export::of(["a"])));
    stack.daemon.signal(Signal::TERM);
    stack.daemon.wait_for_exit();
    let (of_the_daemon, of_the_companion) = OF_AN_END.split_at(3);
    stack.assert_fire(of_the_daemon, || {
        assert_eq!(stack.check("/status", "a").status, 200, "the route fails open");
        assert_eq!(stack.check("/", "a").header("x-keyward-verdict"), Some("UNAVAILABLE"));
    });
    stack.companion.end(Signal::TERM);
    stack.assert_fire(of_the_companion, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn repeated_restarts_are_noticed() {
    let mut stack = Stack::start(Daemon::serving(Export::of(["a"])));
    let start_times = |stack: &Stack| {
        wait_for("start times of both processes", || {
            let daemon = stack.prometheus.value("keyward_process_start_time_seconds")?;
            Some((daemon, stack.prometheus.value("process_start_time_seconds{job=\"keyward\"}")?))
        })
    };
    for _ in 0..3 {
        let before = start_times(&stack);
        stack.daemon = stack.daemon.kill_and_restart();
        stack.restart_companion();
        wait_until("a scrape of the new processes", || {
            let now = start_times(&stack);
            now.0 > before.0 && now.1 > before.1
        });
    }
    stack.assert_fire(OF_RESTARTS, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn daemon_without_keys_is_noticed() {
    let stack = Stack::start(Setup::text("nonsense\n").start());
    stack.assert_fire(OF_NO_KEYS, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn stale_keys_are_noticed() {
    let setup = Setup::new(Export::of(["a"]));
    let stack = Stack::start(setup.config("[source]\npoll = \"100ms\"\nmax_staleness = \"1s\"").start());
    stack.assert_fire(OF_STALE_KEYS, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn old_and_refused_sources_and_last_good_keys_are_noticed() {
    let [old, refused, last_good] = OF_A_REFUSED_SOURCE else { panic!("three alerts") };
    let setup = Setup::text(Export::of(["a"]));
    let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 86_400);
    File::options()
        .write(true)
        .open(setup.source())
        .expect("opens")
        .set_modified(two_days_ago)
        .expect("sets");
    let mut stack = Stack::start(setup.start());
    stack.assert_fire(&[old], || ());

    stack.daemon.wait_until_saved();
    stack.daemon.spoil_source();
    assert!(!stack.daemon.reload().accepted);
    stack.assert_fire(&[refused], || ());

    stack.daemon = stack.daemon.stop_and_restart();
    stack.assert_fire(&[last_good], || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn rows_that_are_set_aside_are_noticed() {
    let export = Export::new([row("a"), row("b").status("nonsense")]);
    let stack = Stack::start(Setup::text(export).config("[source]\non_bad_row = \"set-aside\"").start());
    stack.assert_fire(OF_BAD_ROWS, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn state_directory_that_cannot_be_written_is_noticed() {
    let place = tempfile::tempdir().expect("a directory");
    let state = place.path().join("state");
    let setup = Setup::new(Export::of(["a", "b"])).config("[usage]\ninterval = \"100ms\"");
    let stack = Stack::start(setup.state_dir(&state).start());
    remove_dir_in_use(&state);
    stack.daemon.revoke(key_target("a"));
    stack.assert_fire(OF_THE_STATE_DIRECTORY, || drop(stack.daemon.verdict("b")));
}

#[test]
#[ignore = "needs Prometheus"]
fn limits_of_connections_and_descriptors_are_noticed() {
    let setup = Setup::new(Export::of(["a"]));
    let limits = "[server]\nmax_connections = 10\n[uid_quotas]\nconnections = 9";
    let stack = Stack::start(setup.config(limits).start());
    let _open: Vec<_> = (0..9).map(|_| stack.daemon.connect()).collect();
    let open = wait_for("the number of descriptors", || {
        stack.prometheus.value("keyward_process_open_fds and keyward_connections == 9")
    });
    let limit = Rlimit { current: Some(open as u64 + 5), maximum: Some(open as u64 + 5) };
    prlimit(Pid::from_raw(stack.daemon.pid() as i32), Resource::Nofile, limit).expect("limits");
    stack.assert_fire(OF_CONNECTIONS, || drop(UnixStream::connect(stack.daemon.socket()).expect("connects")));
}

#[test]
#[ignore = "needs Prometheus"]
fn limit_of_connections_of_a_gateway_is_noticed() {
    let stack = Stack::start(Daemon::serving(Export::of(["a"])));
    let connect = || TcpStream::connect(("127.0.0.1", stack.gateway)).expect("connects");
    let _open: Vec<_> = (0..9).map(|_| connect()).collect();
    stack.assert_fire(OF_CONNECTIONS_OF_GATEWAYS, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn replaced_socket_is_noticed() {
    let stack = Stack::start(Daemon::serving(Export::of(["a"])));
    fs::remove_file(stack.daemon.socket()).expect("removed");
    fs::write(stack.daemon.socket(), "not a socket").expect("writes");
    stack.assert_fire(OF_A_SOCKET, || ());
}

#[test]
#[ignore = "needs Prometheus"]
fn lost_log_lines_are_noticed() {
    let setup = Setup::new(Export::of(["a"])).config("[log]\nlevel = \"debug\"");
    let mut command = setup.command();
    command.stderr(File::options().write(true).open("/dev/full").expect("a device"));
    let stack = Stack::start(setup.start_with(command));
    stack.assert_fire(OF_THE_LOG, || drop(UnixStream::connect(stack.daemon.socket()).expect("connects")));
}

#[test]
#[ignore = "needs Prometheus"]
fn unknown_keys_and_wrong_checks_are_noticed() {
    let stack = Stack::start(Daemon::serving(Export::of(["a"])));
    let mut client = stack.daemon.connect();
    let batch = encode_verify(0, "unknown").repeat(100);
    stack.assert_fire(OF_TRAFFIC, || {
        client.send(&batch);
        for _ in 0..100 {
            client.receive();
        }
        send(stack.gateway, "GET", "/", &[]);
    });
}

#[test]
#[ignore = "needs Prometheus"]
fn slow_daemon_is_noticed() {
    let stack = Stack::start(Daemon::serving(Export::of(["a"])));
    stack.assert_fire(OF_A_SLOW_DAEMON, || {
        stack.daemon.pause();
        assert_eq!(stack.check("/", "a").header("x-keyward-verdict"), Some("UNAVAILABLE"));
        stack.daemon.resume();
    });
}
