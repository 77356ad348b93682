//! Starting, stopping, and starting beside another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;

use crate::support::{Daemon, Received, Setup, encode_verify, keyward, sha256_hex, wait_for};
use keyward_client::Request;
use rustix::process::Signal;

fn export() -> String {
    format!("key_hash,key_id\n{},a\n", sha256_hex("a"))
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused_clearly() {
    let daemon = Daemon::serving(&export());
    let mut second = keyward();
    second.arg("serve").arg("--source").arg(daemon.setup.source()).arg("--socket").arg(daemon.socket());
    let output = second.arg("--state-dir").arg(daemon.setup.dir.path()).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("another daemon"), "{error}");
    assert_eq!(daemon.verdict("a"), "ALLOWED", "and the first one did not notice");
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_not() {
    let daemon = Daemon::serving(&export());
    let socket = daemon.socket();
    let daemon = daemon.restart();
    assert_eq!(daemon.verdict("a"), "ALLOWED", "what kill -9 left behind was replaced");
    assert_eq!(fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o660);
    drop(daemon);

    for foreign in ["file", "socket"] {
        let setup = Setup::new(&export());
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
fn sigterm_answers_what_has_arrived_and_leaves_no_socket() {
    let mut daemon = Daemon::serving(&export());
    let mut idle = daemon.connect();
    let mut busy = daemon.connect();
    let requests: Vec<u8> = (0..500).flat_map(|id| encode_verify(id, "a")).collect();
    busy.send(&requests);
    daemon.signal(Signal::TERM);
    for id in 0..500 {
        assert_eq!(busy.receive(), Received::Answer { request_id: id, verdict: "ALLOWED", generation: 1 });
    }
    let goodbye = Received::Error { request_id: 0, code: 14, detail: 0, closing: true };
    assert_eq!((busy.receive(), busy.receive()), (goodbye.clone(), Received::Closed));
    assert_eq!((idle.receive(), idle.receive()), (goodbye, Received::Closed));
    assert!(daemon.wait_for_exit().success());
    assert!(!daemon.socket().exists() && !daemon.admin_socket().exists());
}

#[test]
fn sighup_reloads() {
    let daemon = Setup::new(&export()).config("[source]\npoll = \"1h\"").start();
    daemon.signal(Signal::HUP);
    wait_for("the second generation", || (daemon.status().generation >= 2).then_some(()));
}

/// A client that goes on through a restart sees failures while nobody is there, and never a wrong answer.
#[test]
fn a_client_outlives_the_daemon() {
    let daemon = Daemon::serving(&export());
    let mut client = daemon.client();
    assert!(client.verify(&Request::new("a")).expect("an answer").is_allowed());
    let daemon = daemon.restart();
    assert!(client.verify(&Request::new("a")).expect("an answer from the new daemon").is_allowed());
    assert_eq!(daemon.status().errors, 0);
}

#[test]
fn the_command_line_has_the_exit_codes_that_it_promises() {
    let setup = Setup::new(&export());
    let code = |args: &[&str]| {
        let mut command = keyward();
        command.args(args).stdin(std::process::Stdio::null());
        let output = command.output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let nowhere = setup.path("nowhere.sock");
    let nowhere = nowhere.to_str().expect("UTF-8");
    for unreachable in [&["status", "--admin-socket", nowhere][..], &["reload", "--admin-socket", nowhere]] {
        assert_eq!(code(unreachable).0, Some(69), "{unreachable:?}");
    }
    let key = setup.path("key");
    fs::write(&key, "a\n").expect("a key");
    let mut verify = keyward();
    verify.args(["verify", "--socket", nowhere]).stdin(fs::File::open(key).expect("a key"));
    assert_eq!(verify.output().expect("runs").status.code(), Some(69));
    assert_eq!(code(&["check", "--source", "/nonexistent/keys.csv"]).0, Some(78));
    assert_eq!(code(&["nonsense"]).0, Some(2));
    let source = setup.source();
    assert_eq!(code(&["check", "--source", source.to_str().expect("UTF-8")]).0, Some(0));
}

/// Promise 7 begins with the command line: there is no way to give a key as an argument, and the refusal does not repeat it.
#[test]
fn a_key_in_the_arguments_is_refused_and_not_echoed() {
    for arguments in [["verify", "acme_live_secret"], ["verify", "--key=acme_live_secret"]] {
        let output = keyward().args(arguments).output().expect("runs");
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

/// Acknowledgements do not wait for each other: reloads that are asked for together are answered together.
#[test]
fn reloads_that_are_asked_for_at_once_are_answered() {
    let daemon = Daemon::serving(&export());
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
