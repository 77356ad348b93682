//! A daemon in Linux namespaces, as in a container: a bind-mounted source, a source that cannot be
//! watched, and a time namespace with a shifted clock.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{Daemon, Export, Setup, mode, replace_export, row, wait_for, wait_until};
use keyward_client::Request;
use rustix::process::Signal;

/// Runs the daemon of `setup` through `program`, which gets the daemon's command line as its last
/// arguments.
fn wrap_command(setup: &Setup, program: &[&str]) -> Command {
    let command = setup.command();
    let log = fs::File::create(setup.path("log"));
    let mut wrapped = Command::new(program[0]);
    wrapped.args(&program[1..]).arg(command.get_program()).args(command.get_args());
    wrapped.stdout(Stdio::null()).stderr(log.expect("the log"));
    wrapped
}

/// A source file that is bind-mounted over an empty file, as in a container.
struct MountedSource {
    host: PathBuf,
    setup: Setup,
}

impl MountedSource {
    fn new() -> Self {
        let setup = Setup::without_export();
        let (host, container) = (setup.path("host.csv"), setup.path("container.csv"));
        fs::write(&host, mode::encode_export(&host, &Export::of(["one"]).to_csv())).expect("an export");
        fs::write(&container, "").expect("a file");
        let config = format!("source.path = '{}'\nsource.poll = '100ms'", container.display());
        Self { host, setup: setup.config(&config) }
    }

    /// Starts the daemon in a new mount namespace, after running the shell command `prepare` there.
    fn start(self, prepare: &str) -> Daemon {
        let (host, container) = (self.host.display().to_string(), self.setup.path("container.csv"));
        let script = format!("mount --bind '{host}' '{}' && {prepare} && exec \"$@\"", container.display());
        let program = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
        let command = wrap_command(&self.setup, &program);
        self.setup.start_with(command)
    }
}

const REPLACED: &str = "deleted, or replaced by another, behind the mount";

#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn file_replaced_behind_its_mount_is_reported_once_and_its_keys_stay_in_force() {
    let mounted = MountedSource::new();
    let host = mounted.host.clone();
    let daemon = mounted.start("true");
    assert_eq!(daemon.verdict("one"), "ALLOWED", "{}", daemon.log());
    assert!(daemon.reload().accepted, "a bind mount alone is no fault");

    replace_export(&host, Export::of(["two"]));
    let refused = || daemon.status().last_reload.filter(|last| !last.accepted && last.age_s >= 2);
    let last = wait_for("a poll that detects it, and two seconds without another", refused);
    assert!(last.error.is_some_and(|error| error.contains(REPLACED) && error.contains("subPath")));
    assert_eq!(daemon.log().matches(REPLACED).count(), 1, "{}", daemon.log());

    let outcome = daemon.reload();
    assert!(outcome.error.is_some_and(|error| error.contains(REPLACED)), "a command reports it too");
    daemon.signal(Signal::HUP);
    wait_until("the signal's reload", || daemon.log().matches(REPLACED).count() == 3);
    let check = daemon.run_keyward(&["check", "--daemon"]);
    assert!(check.code != Some(0) && check.stderr.contains(REPLACED), "{check:?}");
    assert_eq!((daemon.verdict("one"), daemon.verdict("two")), ("ALLOWED".into(), "UNKNOWN_KEY".into()));
}

#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn file_replaced_behind_its_mount_before_the_start_is_refused() {
    let mounted = MountedSource::new();
    let new = mounted.setup.path("new.csv");
    fs::write(&new, Export::of(["two"]).to_csv()).expect("an export");
    let replace = format!("mv '{}' '{}'", new.display(), mounted.host.display());
    let daemon = mounted.start(&replace);
    assert!(!daemon.status().ready);
    daemon.assert_logged(REPLACED);
}

/// The user may be out of inotify instances or out of watches.
#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn unwatchable_source_is_polled_after_one_warning() {
    for (limit, setting) in [("instances", "max_user_instances"), ("watches", "max_user_watches")] {
        let setup = Setup::new(Export::of(["one"])).config("source.poll = '100ms'");
        let script = format!("echo 0 > /proc/sys/user/max_inotify_{limit} && exec \"$@\"");
        let command =
            wrap_command(&setup, &["unshare", "--user", "--map-root-user", "sh", "-c", &script, "sh"]);
        let daemon = setup.start_with(command);
        for key in ["two", "three"] {
            replace_export(&daemon.setup.source(), Export::of([key]));
            wait_until("the poll", || daemon.verdict(key) == "ALLOWED");
        }
        let log = daemon.log();
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("cannot watch")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(setting), "{limit}: {log}");
    }
}

/// One inode has one watch, whichever path leads to it. The poll interval of an hour detects
/// nothing.
#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn directory_reached_through_another_mount_is_watched() {
    let setup = Setup::without_export();
    let (one, two) = (setup.path("one"), setup.path("two"));
    fs::create_dir(&one).and_then(|()| fs::create_dir(&two)).expect("directories");
    let source = one.join("keys.csv");
    fs::write(&source, mode::encode_export(&source, &Export::of(["first"]).to_csv())).expect("an export");
    let setup = setup.config(&format!("source.path = '{}'\nsource.poll = '1h'", source.display()));
    let script = format!("mount --bind '{}' '{}' && exec \"$@\"", one.display(), two.display());
    let program = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
    let command = wrap_command(&setup, &program);
    let daemon = setup.start_with(command);
    let config = daemon.setup.path("keyward.toml");
    for (round, (from, to)) in [("one", "two"), ("two", "one"), ("one", "two")].into_iter().enumerate() {
        let text = fs::read_to_string(&config).expect("the configuration");
        let other = text.replace(&format!("{from}/keys.csv"), &format!("{to}/keys.csv"));
        assert_ne!(text, other);
        fs::write(&config, other).expect("the configuration");
        assert!(daemon.reload().accepted, "{}", daemon.log());
        let is_noticed = || daemon.log().matches("leads through another directory").count() > round;
        wait_until("the other path", is_noticed);
        // The daemon compares the source once more after it has moved the watch. A check runs after
        // that, and does not reload.
        assert_eq!(daemon.run_keyward(&["check", "--daemon"]).code, Some(0));
        let key = format!("{to}-{round}");
        replace_export(&source, Export::of([key.clone()]));
        wait_until("the new keys", || daemon.verdict(&key) == "ALLOWED");
    }
}

/// A spent bucket is saved and restored between clocks that are a day apart.
#[test]
#[ignore = "needs root and unshare: tests/run runs it"]
fn clock_shift_of_a_time_namespace_refills_no_bucket() {
    let is_spent = |daemon: &Daemon| {
        let decision = daemon.client().verify(&Request::new("one").peek()).expect("an answer");
        decision.limit().expect("a limit").remaining == 0
    };
    let setup =
        Setup::new(Export::new([row("one").limits("864/d burst 10")])).config("state.save_interval = '1h'");
    let mut daemon = setup.start();
    let decision = daemon.client().verify(&Request::new("one").cost(10)).expect("an answer");
    assert_eq!(decision.verdict().name(), "ALLOWED");
    for shift in ["86400", "172800", "0"] {
        daemon.stop();
        let command = wrap_command(&daemon.setup, &["unshare", "--time", "--boottime", shift]);
        daemon = daemon.kill_and_restart_with(command);
        assert!(is_spent(&daemon), "{shift}: {}", daemon.log());
    }
}
