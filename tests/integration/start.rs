//! The start: signals during it, sockets inherited from systemd, and files in the place of the
//! lock.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::serve_process::{ServeProcess, with_sockets};
use crate::support::{Export, RawClient, Received, Setup, encode_verify, row, wait_for, wait_until};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use rustix::process::Signal;

/// Longer than an exit takes on a busy machine, and shorter than the start waits for the state
/// directory.
const PROMPT: Duration = Duration::from_secs(4);

fn export() -> Export {
    Export::of(["a"])
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a named pipe");
}

/// A daemon whose start waits for its configuration, and the text of that configuration.
fn start_blocked_on_configuration(setup: &Setup) -> (ServeProcess, Vec<u8>) {
    let command = setup.command();
    let path = setup.path("keyward.toml");
    let configuration = fs::read(&path).expect("the configuration");
    fs::remove_file(&path).expect("removed");
    make_fifo(&path);
    let process = ServeProcess::start(command);
    process.wait_for_signal_handlers();
    (process, configuration)
}

/// A daemon whose start waits for the lock of the state directory, with its sockets bound.
fn start_blocked_on_state(setup: &Setup) -> (ServeProcess, File) {
    let lock = File::create(setup.path("lock")).expect("the lock");
    flock(&lock, FlockOperation::LockExclusive).expect("locked");
    let process = ServeProcess::start(setup.command());
    wait_until("the sockets", || setup.path("admin.sock").exists());
    (process, lock)
}

/// A client that has written a request, and one that has not.
fn connect_to_blocked(setup: &Setup) -> [RawClient; 2] {
    let mut clients = [(); 2].map(|()| RawClient::connect(&setup.path("keyward.sock")));
    clients[0].send(&encode_verify(1, "a"));
    clients
}

fn assert_dismissed(clients: [RawClient; 2]) {
    for mut client in clients {
        let error = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };
        assert_eq!([client.receive(), client.receive()], [error, Received::Closed]);
    }
}

fn generation(setup: &Setup) -> u64 {
    let status =
        keyward_admin::send_command(&setup.path("admin.sock"), &keyward_admin::message::Command::Status);
    status.ok().and_then(|reply| reply.status).map_or(0, |status| status.generation)
}

#[test]
fn sighup_before_the_configuration_is_read_causes_a_reload() {
    let setup = Setup::new(export()).config("[source]\npoll = \"1h\"");
    let (mut process, configuration) = start_blocked_on_configuration(&setup);
    process.signal(Signal::HUP);
    let path = setup.path("keyward.toml");
    let mut pipe = File::options().write(true).open(&path).expect("the daemon reads it");
    // The reload reads a regular file in place of the pipe.
    fs::write(setup.path("next"), &configuration).expect("writes");
    fs::rename(setup.path("next"), &path).expect("renamed");
    pipe.write_all(&configuration).expect("the daemon reads it");
    drop(pipe);
    wait_until("the reload", || generation(&setup) == 2);
    process.signal(Signal::TERM);
    assert_eq!(process.wait_for_exit().code(), Some(0));
}

#[test]
fn sighup_while_waiting_for_the_state_directory_causes_a_reload() {
    let setup = Setup::new(export()).config("[source]\npoll = \"1h\"");
    let (process, lock) = start_blocked_on_state(&setup);
    process.signal(Signal::HUP);
    drop(lock);
    wait_until("the reload", || generation(&setup) == 2);
}

#[test]
fn sigterm_or_sigint_before_the_configuration_is_read_exits_promptly() {
    for signal in [Signal::TERM, Signal::INT] {
        let setup = Setup::new(export());
        let (mut process, _) = start_blocked_on_configuration(&setup);
        let start = Instant::now();
        process.signal(signal);
        assert_eq!(process.wait_for_exit().code(), Some(0));
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    }
}

#[test]
fn sigterm_or_sigint_while_waiting_for_the_state_directory_exits_promptly() {
    for signal in [Signal::TERM, Signal::INT] {
        let setup = Setup::new(export());
        let (mut process, _lock) = start_blocked_on_state(&setup);
        let waiting = connect_to_blocked(&setup);
        let start = Instant::now();
        process.signal(signal);
        assert_eq!(process.wait_for_exit().code(), Some(0));
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        assert_dismissed(waiting);
        assert!(!setup.path("keyward.sock").exists() && !setup.path("admin.sock").exists());
        let log = fs::read_to_string(setup.path("log")).expect("a log");
        assert!(log.contains("stopped during the start"), "{log}");
    }
}

#[test]
fn clients_of_a_failed_start_are_told() {
    let setup = Setup::new(export());
    let (mut process, _lock) = start_blocked_on_state(&setup);
    let waiting = connect_to_blocked(&setup);
    assert!(!process.wait_for_exit().success());
    assert_dismissed(waiting);
}

/// At moments throughout the start, with balances to restore, SIGHUP does not end it and SIGTERM
/// always exits with code 0.
#[test]
fn sigterm_at_any_moment_of_the_start_exits_with_success() {
    const KEYS: usize = 20_000;
    let setup = Setup::new(Export::new((0..KEYS).map(|key| row(format!("k{key}")).limits("10/h"))));
    let mut daemon = setup.start();
    let mut peer = daemon.connect();
    for keys in (0..KEYS).collect::<Vec<_>>().chunks(500) {
        let requests: Vec<u8> = keys.iter().flat_map(|key| encode_verify(1, &format!("k{key}"))).collect();
        peer.send(&requests);
        for _ in keys {
            assert!(matches!(peer.receive(), Received::Answer { verdict: "ALLOWED", .. }));
        }
    }
    daemon.stop();
    assert!(fs::metadata(daemon.setup.path("balances")).expect("saved").len() > KEYS as u64);

    for step in 0..20_u32 {
        let offset = Duration::from_millis(100) * step / 20;
        let mut process = ServeProcess::start(daemon.setup.command());
        wait_until("the signal handlers", || {
            let is_bound = daemon.setup.path("keyward.sock").exists();
            let handles_signals = process.handles_signals();
            assert!(handles_signals || !is_bound, "sockets were bound before signals were handled");
            handles_signals
        });
        std::thread::sleep(offset);
        process.signal(Signal::HUP);
        process.signal(Signal::TERM);
        assert_eq!(process.wait_for_exit().code(), Some(0), "{offset:?}");
        let sockets = ["keyward.sock", "admin.sock"].map(|name| daemon.setup.path(name).exists());
        assert_eq!(sockets, [false; 2], "{offset:?}");
    }
    let daemon = daemon.respawn();
    wait_for("the keys", || daemon.try_status().filter(|status| status.ready));
}

#[test]
fn unexpected_inherited_sockets_are_refused() {
    let setup = Setup::new(export());
    let listener = |name: &str| -> OwnedFd {
        let path = setup.path(name);
        // Fails if there is no such file.
        let _ = fs::remove_file(&path);
        UnixListener::bind(path).expect("binds").into()
    };
    let datagram = || -> OwnedFd {
        // Fails if there is no such file.
        let _ = fs::remove_file(setup.path("datagram"));
        UnixDatagram::bind(setup.path("datagram")).expect("binds").into()
    };
    let connected = || -> OwnedFd { UnixStream::pair().expect("a pair").0.into() };
    let tcp = || -> OwnedFd { std::net::TcpListener::bind("127.0.0.1:0").expect("binds").into() };
    let file = || -> OwnedFd { File::open("/dev/null").expect("a device").into() };
    let own = ["own-verify", "own-admin"].map(|name| setup.path(name).display().to_string());
    for (sockets, names, reason) in [
        ([listener("own-verify"), listener("own-admin")], "keyward.socket:keyward-admin.socket", &*own[0]),
        ([listener("own-verify"), listener("own-admin")], "verify", "none is named admin"),
        ([listener("own-admin"), listener("own-verify")], "admin", "none is named verify"),
        ([listener("own-verify"), listener("own-admin")], "verify:verify", "more than one \"verify\""),
        ([datagram(), listener("own-admin")], "verify:admin", "\"verify\" is a Unix datagram socket"),
        ([connected(), listener("own-admin")], "verify:admin", "a Unix stream socket that does not listen"),
        ([tcp(), listener("own-admin")], "verify:admin", "\"verify\" is a TCP socket"),
        ([listener("own-verify"), file()], "verify:admin", "\"admin\" is not a socket that listens"),
    ] {
        let mut process = ServeProcess::start(with_sockets(&setup, sockets, names));
        let code = process.wait_for_exit().code();
        let text = fs::read_to_string(setup.path("log")).expect("a log");
        assert_eq!(code, Some(78), "{names}: {text}");
        assert!(text.contains(reason) && text.contains("FileDescriptorName="), "{names}: {text}");
        let bound = ["keyward.sock", "admin.sock"].map(|name| setup.path(name).exists());
        assert_eq!(bound, [false; 2], "{names}: the daemon bound sockets of its own");
    }
}

#[test]
fn socket_names_without_sockets_are_refused() {
    let setup = Setup::new(export());
    let serve = setup.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=verify exec \"$0\" \"$@\""])
        .arg(serve.get_program())
        .args(serve.get_args());
    command.stderr(File::create(setup.path("log")).expect("a log"));
    let mut process = ServeProcess::start(command);
    let code = process.wait_for_exit().code();
    let text = fs::read_to_string(setup.path("log")).expect("a log");
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("LISTEN_FDNAMES"), "{text}");
}

#[test]
fn lock_that_is_not_a_regular_file_is_refused() {
    for kind in ["dangling link", "link", "pipe", "directory", "device"] {
        let setup = Setup::new(export());
        let (lock, target) = (setup.path("keyward.sock.lock"), setup.path("target"));
        match kind {
            "dangling link" => symlink(&target, &lock).expect("a link"),
            "link" => {
                fs::write(&target, "precious").expect("writes");
                symlink(&target, &lock).expect("a link");
            }
            "pipe" => make_fifo(&lock),
            "directory" => fs::create_dir(&lock).expect("a directory"),
            _ => symlink("/dev/null", &lock).expect("a link"),
        }
        let mut process = ServeProcess::start(setup.command());
        let start = Instant::now();
        assert_eq!(process.wait_for_exit().code(), Some(1), "{kind}");
        assert!(start.elapsed() < PROMPT, "{kind}");
        let log = fs::read_to_string(setup.path("log")).expect("a log");
        assert!(
            log.contains("keyward.sock.lock: the lock beside the socket must be a regular file"),
            "{kind}: {log}"
        );
        match kind {
            "dangling link" => assert!(!target.exists(), "the link's target was created"),
            "link" => assert_eq!(fs::read_to_string(&target).expect("there"), "precious"),
            _ => {}
        }
    }
}

/// A listening socket with a full backlog is in use. Probing it must not block.
#[test]
fn socket_with_a_full_backlog_is_in_use() {
    let setup = Setup::new(export());
    let path = setup.path("keyward.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    rustix::net::listen(&listener, 0).expect("listens");
    let _queued = UnixStream::connect(&path).expect("the only place in the backlog");
    let mut process = ServeProcess::start(setup.command());
    let start = Instant::now();
    assert_eq!(process.wait_for_exit().code(), Some(1));
    assert!(start.elapsed() < PROMPT);
    let log = fs::read_to_string(setup.path("log")).expect("a log");
    assert!(log.contains("another process is listening there"), "{log}");
}
