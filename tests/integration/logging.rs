//! Standard error that is full, closed or never read: the daemon serves, obeys and stops as ever, and counts what is missing.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, RawClient, Setup, TIMEOUT, sha256_hex, wait_for};
use keyward_daemon::admin::message::{Command as AdminCommand, LogStatus, Target};
use keyward_daemon::admin::send_command_within;
use rustix::io::ioctl_fionbio;
use rustix::process::Signal;

/// Far less than a daemon would wait that waits for its standard error, and far more than one needs that does not.
const PROMPT: Duration = Duration::from_secs(8);

/// How long the load lasts; `KEYWARD_TEST_LOAD_S=60` for a longer dose.
fn load() -> Duration {
    let seconds = std::env::var("KEYWARD_TEST_LOAD_S").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

fn export() -> String {
    format!("key_hash,key_id\n{},a\n{},b\n", sha256_hex("a"), sha256_hex("b"))
}

/// A pipe that has no room left.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("a pipe");
    ioctl_fionbio(&writer, true).expect("set");
    let chunk = [b'\n'; 4096];
    while writer.write(&chunk).is_ok_and(|written| written > 0) {}
    while writer.write(b"\n").is_ok_and(|written| written > 0) {}
    // As an ordinary pipe is: a write to it blocks.
    ioctl_fionbio(&writer, false).expect("set");
    (reader, writer)
}

/// Has the daemon log a line, or drop it.
fn connect_and_leave(daemon: &Daemon) {
    drop(UnixStream::connect(daemon.socket()).expect("the daemon accepts"));
}

/// All that a daemon does for clients and operators.
fn exercise(daemon: &Daemon) {
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    assert!(daemon.reload().accepted);
    let target = Target { key_id: Some("a".to_owned()), owner: None };
    let give = |command| send_command_within(&daemon.admin_socket(), &command, TIMEOUT).expect("carried out");
    give(AdminCommand::Revoke(target.clone()));
    assert_eq!(daemon.verdict("a"), "REVOKED");
    give(AdminCommand::Unrevoke(target));
    assert_eq!(daemon.verdict("a"), "ALLOWED");
}

fn stop(mut daemon: Daemon) -> ExitStatus {
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.wait_for_exit();
    assert!(start.elapsed() < PROMPT, "it took {:?} to stop", start.elapsed());
    status
}

/// A daemon whose standard error is `stderr`, and that logs each connection.
fn serve(stderr: impl Into<Stdio>) -> Daemon {
    let setup = Setup::new(&export()).config("[log]\nlevel = \"debug\"\n[source]\npoll = \"1h\"");
    let mut command = setup.command();
    command.stderr(stderr);
    setup.start_with(command)
}

fn drop_lines(daemon: &Daemon) -> LogStatus {
    wait_for("dropped lines", || {
        (0..200).for_each(|_| connect_and_leave(daemon));
        Some(daemon.status().log).filter(|log| log.dropped > 0)
    })
}

#[test]
fn full_device_costs_log_lines_only() {
    let daemon = serve(File::options().write(true).open("/dev/full").expect("a device"));
    exercise(&daemon);
    let log = daemon.status().log;
    assert!(log.dropped > 0 && log.failing_since.is_some(), "{log:?}");
    assert!(log.error.is_some_and(|error| error.contains("No space left on device")));
    assert!(stop(daemon).success());
}

#[test]
fn pipe_whose_reader_is_gone_costs_log_lines_only() {
    let (reader, writer) = pipe().expect("a pipe");
    let daemon = serve(writer);
    drop(reader);
    exercise(&daemon);
    let log = daemon.status().log;
    assert!(log.dropped > 0 && log.error.is_some_and(|error| error.contains("Broken pipe")));
    assert!(stop(daemon).success());
}

#[test]
fn closed_standard_error_is_survived() {
    let setup = Setup::new(&export());
    let serve = setup.command();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(serve.get_program()).args(serve.get_args());
    let daemon = setup.start_with(command);
    exercise(&daemon);
    assert!(stop(daemon).success());
}

#[test]
fn pipe_that_is_never_read_blocks_nothing() {
    let (_never_read, writer) = full_pipe();
    let daemon = serve(writer);
    exercise(&daemon);
    let log = drop_lines(&daemon);
    assert_eq!(log.error.as_deref(), Some("standard error is not being read"));
    exercise(&daemon);
    assert!(stop(daemon).success());
}

#[test]
fn dropped_lines_are_reported_once_the_pipe_is_read() {
    let (mut reader, writer) = full_pipe();
    let daemon = serve(writer);
    drop_lines(&daemon);
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the daemon's log");
        text
    });
    wait_for("the log's recovery", || daemon.status().log.failing_since.is_none().then_some(()));
    let dropped = daemon.status().log.dropped;
    exercise(&daemon);
    assert!(stop(daemon).success());
    let text = text.join().expect("no panic");
    let report = text.lines().find(|line| line.contains(" log lines were dropped since ")).expect(&text);
    assert!(report.contains("ERROR") && report.contains("since=20"), "{report}");
    // All that the queue held is there, up to the end.
    assert!(text.contains("listening") && text.trim_end().ends_with("stopped"), "{text}");
    let reported: u64 = text
        .lines()
        .filter_map(|line| line.split("dropped=").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert!(reported >= dropped, "{reported} of {dropped} are reported");
}

/// Refused connections are what a stranger can fill a log with.
#[test]
fn load_and_refused_connections_beside_a_blocked_log() {
    let own = rustix::process::geteuid().as_raw();
    for clients in [String::new(), format!("allow_uids = [{}]", own + 1)] {
        let (_never_read, writer) = full_pipe();
        let setup = Setup::new(&export())
            .config(&format!("[log]\nlevel = \"debug\"\n[source]\npoll = \"1h\"\n[server]\n{clients}"));
        let mut command = setup.command();
        command.stderr(writer);
        let daemon = setup.start_with(command);
        let (end, stop_load) = (Instant::now() + load(), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop_load.load(Ordering::Relaxed) {
                        let mut peer = RawClient::connect(&daemon.socket());
                        let _refused_at_once = peer.stream.write_all(&crate::support::encode_verify(1, "b"));
                        peer.receive();
                    }
                });
            }
            while Instant::now() < end {
                let start = Instant::now();
                if clients.is_empty() {
                    exercise(&daemon);
                } else {
                    assert!(daemon.reload().accepted);
                }
                daemon.status();
                assert!(start.elapsed() < PROMPT, "it took {:?}", start.elapsed());
            }
            stop_load.store(true, Ordering::Relaxed);
        });
        assert!(stop(daemon).success());
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    let status = wait_for("the end", || child.try_wait().expect("a child"));
    assert!(start.elapsed() < PROMPT);
    status
}

/// The exit codes are kept, and so is the message where standard error takes it.
#[test]
fn failed_start_keeps_its_exit_code_whatever_its_standard_error_is() {
    let setup = Setup::new(&export()).config("[server]\nworkers = 0");
    let mut command = setup.command();
    let output = command.stderr(Stdio::piped()).output().expect("runs");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(78));
    assert!(text.starts_with("keyward: ") && text.contains("server.workers"), "{text}");
    assert_eq!(text.matches("server.workers").count(), 1, "{text}");

    let (never_read, full) = full_pipe();
    let (reader, gone) = pipe().expect("a pipe");
    drop(reader);
    for stderr in [
        Stdio::from(File::options().write(true).open("/dev/full").expect("a device")),
        Stdio::from(full),
        Stdio::from(gone),
    ] {
        let mut child = setup.command().stderr(stderr).spawn().expect("starts");
        assert_eq!(ended(&mut child).code(), Some(78));
    }
    drop(never_read);
}

/// A start that fails late: what was logged before comes first.
#[test]
fn message_of_a_failed_start_comes_after_the_log() {
    let setup = Setup::new(&export()).config("[log]\nlevel = \"debug\"");
    std::fs::write(setup.path("revocations.jsonl"), "nonsense\nnonsense\n").expect("writes");
    let output = setup.command().stderr(Stdio::piped()).output().expect("runs");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(78), "{text}");
    let last = text.lines().last().expect("a line");
    assert!(last.starts_with("keyward: ") && last.contains("revocations.jsonl:1"), "{text}");
}

/// A client of the command line ends as ever too.
#[test]
fn command_line_with_a_full_standard_error_keeps_its_exit_codes() {
    let daemon = Daemon::serving(&export());
    let code = |arguments: &[&str]| {
        let mut command = crate::support::keyward();
        command.args(arguments).arg("--admin-socket").arg(daemon.admin_socket()).stdin(Stdio::null());
        command
            .stdout(Stdio::null())
            .stderr(File::options().write(true).open("/dev/full").expect("a device"));
        command.status().expect("runs").code()
    };
    assert_eq!(code(&["status"]), Some(0));
    assert_eq!(code(&["revoke", "nobody"]), Some(1));
    assert_eq!(code(&["nonsense"]), Some(2));
}
