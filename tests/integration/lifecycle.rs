//! Start, stop and restart of a daemon, beside other daemons, and exit codes of the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::thread;

use crate::support::{
    CommandOutput, Daemon, Export, Received, Setup, encode_verify, keyward, run, wait_until,
};
use keyward_client::Request;
use rustix::process::Signal;

fn export() -> Export {
    Export::of(["a"])
}

#[test]
fn second_daemon_on_the_same_socket_is_refused() {
    let daemon = Daemon::serving(export());
    let mut second = keyward();
    second.arg("serve").arg("--source").arg(daemon.setup.source()).arg("--socket").arg(daemon.socket());
    let output = run(second.arg("--state-dir").arg(daemon.setup.dir.path()));
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains("another process is listening there"), "{output:?}");
    assert_eq!(daemon.verdict("a"), "ALLOWED", "the first daemon is not affected");
}

#[test]
fn leftover_socket_is_replaced() {
    let daemon = Daemon::serving(export());
    let socket = daemon.socket();
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    assert_eq!(fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o660);
}

#[test]
fn foreign_file_or_socket_is_not_replaced() {
    for foreign in ["file", "socket"] {
        let setup = Setup::new(export());
        let path = setup.path("keyward.sock");
        let _listening = match foreign {
            "file" => fs::write(&path, "precious").map(|()| None).expect("a file"),
            _ => Some(UnixListener::bind(&path).expect("a socket")),
        };
        let status = setup.command().status().expect("runs");
        assert!(!status.success(), "{foreign}");
        assert!(path.exists(), "the {foreign} is still there");
    }
}

#[test]
fn sigterm_answers_received_requests_and_removes_the_sockets() {
    let mut daemon = Daemon::serving(export());
    let mut idle = daemon.connect();
    let mut busy = daemon.connect();
    let requests: Vec<u8> = (0..500).flat_map(|id| encode_verify(id, "a")).collect();
    busy.send(&requests);
    daemon.signal(Signal::TERM);
    for id in 0..500 {
        assert_eq!(busy.receive(), Received::Answer { request_id: id, verdict: "ALLOWED", generation: 1 });
    }
    let shutting_down = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };
    assert_eq!((busy.receive(), busy.receive()), (shutting_down.clone(), Received::Closed));
    assert_eq!((idle.receive(), idle.receive()), (shutting_down, Received::Closed));
    assert!(daemon.wait_for_exit().success());
    assert!(!daemon.socket().exists() && !daemon.admin_socket().exists());
}

#[test]
fn sighup_reloads() {
    let daemon = Setup::new(export()).config("[source]\npoll = \"1h\"").start();
    daemon.signal(Signal::HUP);
    wait_until("the second generation", || daemon.status().generation >= 2);
}

#[test]
fn client_reconnects_after_a_restart() {
    let daemon = Daemon::serving(export());
    let mut client = daemon.client();
    assert!(client.verify(&Request::new("a")).expect("an answer").is_allowed());
    let daemon = daemon.kill_and_restart();
    assert!(client.verify(&Request::new("a")).expect("an answer of the new daemon").is_allowed());
    assert_eq!(daemon.status().errors, 0);
}

#[test]
fn command_line_returns_the_documented_exit_codes() {
    let setup = Setup::new(export());
    let exit_code = |args: &[&str]| {
        let mut command = keyward();
        run(command.args(args).stdin(Stdio::null())).code
    };
    let missing = setup.path("missing.sock");
    let missing = missing.to_str().expect("UTF-8");
    for unreachable in [["status", "--admin-socket", missing], ["reload", "--admin-socket", missing]] {
        assert_eq!(exit_code(&unreachable), Some(69), "{unreachable:?}");
    }
    let key = setup.path("key");
    fs::write(&key, "a\n").expect("a key");
    let mut verify = keyward();
    verify.args(["verify", "--socket", missing]).stdin(fs::File::open(key).expect("a key"));
    assert_eq!(run(&mut verify).code, Some(69));
    assert_eq!(exit_code(&["check", "--source", "/nonexistent/keys.csv"]), Some(78));
    assert_eq!(exit_code(&["nonsense"]), Some(2));
    let source = setup.source();
    // A daemon of this host may use the default state directory.
    let state = setup.path("state");
    let [source, state] = [&source, &state].map(|path| path.to_str().expect("UTF-8"));
    assert_eq!(exit_code(&["check", "--state-dir", state, "--source", source]), Some(0));
}

/// No raw key in the process list: a key cannot be an argument, and the error does not repeat it.
#[test]
fn key_in_the_arguments_is_refused_and_not_echoed() {
    for arguments in [["verify", "acme_live_secret"], ["verify", "--key=acme_live_secret"]] {
        let CommandOutput { code, stdout, stderr } = run(keyward().args(arguments));
        assert_eq!(code, Some(2), "{stdout}{stderr}");
        assert!(!stdout.contains("secret") && !stderr.contains("secret"), "{stdout}{stderr}");
    }
}

#[test]
fn concurrent_reloads_are_all_acknowledged() {
    let daemon = Daemon::serving(export());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert!(daemon.reload().accepted);
                }
            });
        }
    });
    assert!(daemon.status().generation <= 1 + 16 * 5);
}
