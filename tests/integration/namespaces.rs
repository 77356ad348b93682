//! A daemon in namespaces as containers have them: a file behind a bind mount of its own, and a clock that was shifted.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{Daemon, Setup, keyward, mode, sha256_hex, wait_for};
use keyward_client::Request;
use rustix::process::Signal;

fn export(key: &str, limits: &str) -> String {
    format!("key_hash,key_id,limits\n{},{key},{limits}\n", sha256_hex(key))
}

/// The daemon of `setup`, run by a program that is given its command line after its own arguments.
fn command_by(setup: &Setup, program: &[&str]) -> Command {
    let command = setup.command();
    let log = fs::File::create(setup.path("log"));
    let mut wrapped = Command::new(program[0]);
    wrapped.args(&program[1..]).arg(command.get_program()).args(command.get_args());
    wrapped.stdout(Stdio::null()).stderr(log.expect("the log"));
    wrapped
}

/// Where a container would have it: bind-mounted by itself over an empty file.
struct Mounted {
    host: PathBuf,
    setup: Setup,
}

impl Mounted {
    fn new() -> Self {
        let setup = Setup::without_export();
        let (host, container) = (setup.path("host.csv"), setup.path("container.csv"));
        fs::write(&host, mode::encode_export(&host, &export("one", ""))).expect("an export");
        fs::write(&container, "").expect("a file");
        let config = format!("source.path = '{}'\nsource.poll = '100ms'", container.display());
        Self { host, setup: setup.config(&config) }
    }

    /// In a mount namespace of its own, after `then` has been run there.
    fn start(self, then: &str) -> Daemon {
        let (host, container) = (self.host.display().to_string(), self.setup.path("container.csv"));
        let script = format!("mount --bind '{host}' '{}' && {then} && exec \"$@\"", container.display());
        let program = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        let command = command_by(&self.setup, &program);
        self.setup.start_with(command)
    }
}

const TOLD: &str = "deleted, or replaced by another, behind the mount";

#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn file_replaced_behind_its_mount_is_reported_once_and_its_keys_are_served_on() {
    let mounted = Mounted::new();
    let host = mounted.host.clone();
    let daemon = mounted.start("true");
    assert_eq!(daemon.verdict("one"), "ALLOWED", "{}", daemon.log());
    assert!(daemon.reload().accepted, "it is only mounted");

    crate::support::replace_export(&host, &export("two", ""));
    let refused = || daemon.status().last_reload.filter(|last| !last.accepted && last.age_s >= 2);
    let last = wait_for("a poll that finds it, and two seconds without another", refused);
    assert!(last.error.is_some_and(|error| error.contains(TOLD) && error.contains("subPath")));
    assert_eq!(daemon.log().matches(TOLD).count(), 1, "{}", daemon.log());

    let outcome = daemon.reload();
    assert!(outcome.error.is_some_and(|error| error.contains(TOLD)), "nor by a command");
    daemon.signal(Signal::HUP);
    wait_for("the signal's reload", || (daemon.log().matches(TOLD).count() == 3).then_some(()));
    let output = keyward()
        .args(["check", "--daemon", "--admin-socket"])
        .arg(daemon.admin_socket())
        .output()
        .expect("runs");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(TOLD));
    assert_eq!((daemon.verdict("one"), daemon.verdict("two")), ("ALLOWED".into(), "UNKNOWN_KEY".into()));
}

#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn file_replaced_behind_its_mount_before_the_start_is_refused() {
    let mounted = Mounted::new();
    let new = mounted.setup.path("new.csv");
    fs::write(&new, export("two", "")).expect("an export");
    let replace = format!("mv '{}' '{}'", new.display(), mounted.host.display());
    let daemon = mounted.start(&replace);
    assert!(!daemon.status().ready);
    daemon.assert_logged(TOLD);
}

/// Once for as long as it is so, whatever there is none of.
#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn source_that_cannot_be_watched_is_polled_after_one_warning() {
    for (limit, told) in [("instances", "max_user_instances"), ("watches", "max_user_watches")] {
        let setup = Setup::new(&export("one", "")).config("source.poll = '100ms'");
        let script = format!("echo 0 > /proc/sys/user/max_inotify_{limit} && exec \"$@\"");
        let command =
            command_by(&setup, &["unshare", "--user", "--map-root-user", "sh", "-c", &script, "sh"]);
        let daemon = setup.start_with(command);
        for key in ["two", "three"] {
            crate::support::replace_export(&daemon.setup.source(), &export(key, ""));
            wait_for("the poll", || (daemon.verdict(key) == "ALLOWED").then_some(()));
        }
        let log = daemon.log();
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("cannot watch")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(told), "{limit}: {log}");
    }
}

/// One inode has one watch, whatever paths lead to it; the poll is an hour.
#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn directory_that_is_reached_by_another_mount_is_watched_there() {
    let setup = Setup::without_export();
    let (one, two) = (setup.path("one"), setup.path("two"));
    fs::create_dir(&one).and_then(|()| fs::create_dir(&two)).expect("directories");
    let source = one.join("keys.csv");
    fs::write(&source, mode::encode_export(&source, &export("first", ""))).expect("an export");
    let setup = setup.config(&format!("source.path = '{}'\nsource.poll = '1h'", source.display()));
    let script = format!("mount --bind '{}' '{}' && exec \"$@\"", one.display(), two.display());
    let program = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
    let command = command_by(&setup, &program);
    let daemon = setup.start_with(command);
    let config = daemon.setup.path("keyward.toml");
    for (round, (from, to)) in [("one", "two"), ("two", "one"), ("one", "two")].into_iter().enumerate() {
        let text = fs::read_to_string(&config).expect("the configuration");
        let other = text.replace(&format!("{from}/keys.csv"), &format!("{to}/keys.csv"));
        assert_ne!(text, other);
        fs::write(&config, other).expect("the configuration");
        assert!(daemon.reload().accepted, "{}", daemon.log());
        let told = || daemon.log().matches("leads through another directory").count() > round;
        wait_for("the other path", || told().then_some(()));
        // The source is compared once more when that is watched. A check comes after it, and is no
        // reload.
        let mut check = keyward();
        check.args(["check", "--daemon", "--admin-socket"]).arg(daemon.admin_socket());
        assert!(check.output().expect("runs").status.success());
        let key = format!("{to}-{round}");
        crate::support::replace_export(&source, &export(&key, ""));
        wait_for("the new keys", || (daemon.verdict(&key) == "ALLOWED").then_some(()));
    }
}

/// Spent, saved and restored between clocks that are a day apart.
#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn shifted_clock_of_a_time_namespace_refills_no_bucket() {
    let spent = |daemon: &Daemon| {
        let decision = daemon.client().verify(&Request::new("one").peek()).expect("an answer");
        decision.limit().expect("a limit").remaining == 0
    };
    let setup = Setup::new(&export("one", "864/d burst 10")).config("state.save_interval = '1h'");
    let mut daemon = setup.start();
    let decision = daemon.client().verify(&Request::new("one").cost(10)).expect("an answer");
    assert_eq!(decision.verdict().name(), "ALLOWED");
    for shift in ["86400", "172800", "0"] {
        daemon.signal(Signal::TERM);
        assert!(daemon.wait_for_exit().success(), "{}", daemon.log());
        let command = command_by(&daemon.setup, &["unshare", "--time", "--boottime", shift]);
        daemon = daemon.restart_with(command);
        assert!(spent(&daemon), "{shift}: {}", daemon.log());
    }
}
