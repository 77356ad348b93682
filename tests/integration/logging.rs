//! Standard error that is full, closed or never read: the daemon still serves, obeys and stops, and
//! counts the lines that it drops.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    Daemon, Export, RawClient, SetOnDrop, Setup, encode_verify, key_target, keyward, run, wait_for,
    wait_until,
};
use keyward_admin::message::LogStatus;
use rustix::io::ioctl_fionbio;
use rustix::process::Signal;

/// Much less than a daemon that waits for its standard error takes, and much more than one that does
/// not.
const PROMPT: Duration = Duration::from_secs(8);

/// How long the load lasts: a second, or `KEYWARD_TEST_LOAD_S` seconds.
fn load_duration() -> Duration {
    let seconds = std::env::var("KEYWARD_TEST_LOAD_S").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

fn export() -> Export {
    Export::of(["a", "b"])
}

/// A full pipe. A write to it blocks.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("a pipe");
    ioctl_fionbio(&writer, true).expect("set");
    let chunk = [b'\n'; 4096];
    while writer.write(&chunk).is_ok_and(|written| written > 0) {}
    while writer.write(b"\n").is_ok_and(|written| written > 0) {}
    ioctl_fionbio(&writer, false).expect("set");
    (reader, writer)
}

/// Makes the daemon log a line, or drop it.
fn connect_and_close(daemon: &Daemon) {
    drop(UnixStream::connect(daemon.socket()).expect("the daemon accepts"));
}

/// Exercises everything that a daemon does for clients and operators.
fn exercise(daemon: &Daemon) {
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    assert!(daemon.reload().accepted);
    daemon.revoke(key_target("a"));
    assert_eq!(daemon.verdict("a"), "REVOKED");
    daemon.unrevoke(key_target("a"));
    assert_eq!(daemon.verdict("a"), "ALLOWED");
}

fn assert_prompt<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < PROMPT, "{what} took {:?}", start.elapsed());
    result
}

fn stop(mut daemon: Daemon) -> ExitStatus {
    daemon.signal(Signal::TERM);
    assert_prompt("the shutdown", || daemon.wait_for_exit())
}

/// A daemon that logs each connection to `stderr`.
fn serve(stderr: impl Into<Stdio>) -> Daemon {
    let setup = Setup::new(export()).config("[log]\nlevel = \"debug\"\n[source]\npoll = \"1h\"");
    let mut command = setup.command();
    command.stderr(stderr);
    setup.start_with(command)
}

fn wait_for_dropped_lines(daemon: &Daemon) -> LogStatus {
    wait_for("dropped lines", || {
        (0..200).for_each(|_| connect_and_close(daemon));
        Some(daemon.status().log).filter(|log| log.dropped > 0)
    })
}

#[test]
fn full_device_drops_log_lines_only() {
    let daemon = serve(File::options().write(true).open("/dev/full").expect("a device"));
    exercise(&daemon);
    let log = daemon.status().log;
    assert!(log.dropped > 0 && log.failing_since.is_some(), "{log:?}");
    assert!(log.error.is_some_and(|error| error.contains("No space left on device")));
    assert!(stop(daemon).success());
}

#[test]
fn pipe_without_a_reader_drops_log_lines_only() {
    let (reader, writer) = pipe().expect("a pipe");
    let daemon = serve(writer);
    drop(reader);
    exercise(&daemon);
    let log = daemon.status().log;
    assert!(log.dropped > 0 && log.error.is_some_and(|error| error.contains("Broken pipe")));
    assert!(stop(daemon).success());
}

#[test]
fn closed_standard_error_affects_nothing_else() {
    let setup = Setup::new(export());
    let serve = setup.command();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(serve.get_program()).args(serve.get_args());
    let daemon = setup.start_with(command);
    exercise(&daemon);
    assert!(stop(daemon).success());
}

#[test]
fn pipe_that_is_never_read_does_not_block_the_daemon() {
    let (_never_read, writer) = full_pipe();
    let daemon = serve(writer);
    exercise(&daemon);
    let log = wait_for_dropped_lines(&daemon);
    assert_eq!(log.error.as_deref(), Some("standard error is not being read"));
    exercise(&daemon);
    assert!(stop(daemon).success());
}

#[test]
fn dropped_lines_are_reported_once_the_pipe_is_read() {
    let (mut reader, writer) = full_pipe();
    let daemon = serve(writer);
    wait_for_dropped_lines(&daemon);
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the daemon's log");
        text
    });
    wait_until("the log's recovery", || daemon.status().log.failing_since.is_none());
    let dropped = daemon.status().log.dropped;
    exercise(&daemon);
    // The keys in force would be saved, and that logged, after "stopped".
    daemon.wait_until_saved();
    assert!(stop(daemon).success());
    let text = text.join().expect("no panic");
    let report = text.lines().find(|line| line.contains(" log lines were dropped since ")).expect(&text);
    assert!(report.contains("ERROR") && report.contains("since=20"), "{report}");
    // The queued lines are there, from the start to the end.
    assert!(text.contains("listening") && text.trim_end().ends_with("stopped"), "{text}");
    let reported: u64 = text
        .lines()
        .filter_map(|line| line.split("dropped=").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert!(reported >= dropped, "{reported} of {dropped} dropped lines are reported: {text}");
}

/// Refused connections are how a stranger can fill a log.
#[test]
fn blocked_log_does_not_affect_a_daemon_under_load() {
    let own_uid = rustix::process::geteuid().as_raw();
    for allow_uids in [String::new(), format!("allow_uids = [{}]", own_uid + 1)] {
        let (_never_read, writer) = full_pipe();
        let setup = Setup::new(export())
            .config(&format!("[log]\nlevel = \"debug\"\n[source]\npoll = \"1h\"\n[server]\n{allow_uids}"));
        let mut command = setup.command();
        command.stderr(writer);
        let daemon = setup.start_with(command);
        let (end, stop_load) = (Instant::now() + load_duration(), AtomicBool::new(false));
        thread::scope(|scope| {
            let _end = SetOnDrop(&stop_load);
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop_load.load(Ordering::Relaxed) {
                        let mut peer = RawClient::connect(&daemon.socket());
                        // Fails if the daemon has refused the connection already.
                        let _ = peer.stream.write_all(&encode_verify(1, "b"));
                        peer.receive();
                    }
                });
            }
            while Instant::now() < end {
                assert_prompt("a round of commands", || {
                    if allow_uids.is_empty() {
                        exercise(&daemon);
                    } else {
                        assert!(daemon.reload().accepted);
                    }
                    daemon.status();
                });
            }
        });
        assert!(stop(daemon).success());
    }
}

fn wait_for_exit(child: &mut Child) -> ExitStatus {
    assert_prompt("the exit", || wait_for("the daemon to exit", || child.try_wait().expect("a child")))
}

#[test]
fn failed_start_has_its_exit_code_and_message_with_any_standard_error() {
    let setup = Setup::new(export()).config("[server]\nworkers = 0");
    let mut command = setup.command();
    let output = run(command.stderr(Stdio::piped()));
    assert_eq!(output.code, Some(78));
    assert!(output.stderr.starts_with("keyward: "), "{output:?}");
    assert_eq!(output.stderr.matches("server.workers").count(), 1, "{output:?}");

    let (never_read, full) = full_pipe();
    let (reader, gone) = pipe().expect("a pipe");
    drop(reader);
    for stderr in [
        Stdio::from(File::options().write(true).open("/dev/full").expect("a device")),
        Stdio::from(full),
        Stdio::from(gone),
    ] {
        let mut child = setup.command().stderr(stderr).spawn().expect("starts");
        assert_eq!(wait_for_exit(&mut child).code(), Some(78));
    }
    drop(never_read);
}

#[test]
fn message_of_a_late_start_failure_follows_the_log() {
    let setup = Setup::new(export()).config("[log]\nlevel = \"debug\"");
    std::fs::write(setup.path("revocations.jsonl"), "nonsense\nnonsense\n").expect("writes");
    let output = run(setup.command().stderr(Stdio::piped()));
    assert_eq!(output.code, Some(78), "{output:?}");
    let last = output.stderr.lines().last().expect("a line");
    assert!(last.starts_with("keyward: ") && last.contains("revocations.jsonl:1"), "{output:?}");
}

#[test]
fn command_line_with_a_full_standard_error_returns_its_exit_codes() {
    let daemon = Daemon::serving(export());
    let exit_code = |arguments: &[&str]| {
        let mut command = keyward();
        command.args(arguments).arg("--admin-socket").arg(daemon.admin_socket()).stdin(Stdio::null());
        command
            .stdout(Stdio::null())
            .stderr(File::options().write(true).open("/dev/full").expect("a device"));
        command.status().expect("runs").code()
    };
    assert_eq!(exit_code(&["status"]), Some(0));
    assert_eq!(exit_code(&["revoke", "unknown"]), Some(1));
    assert_eq!(exit_code(&["nonsense"]), Some(2));
}
