//! The socket files while the daemon runs: removed, replaced, or removed with their directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::serve_process::{ServeProcess, with_sockets};
use crate::support::{
    Daemon, Export, Received, Setup, TIMEOUT, encode_verify, keyward, remove_dir_in_use, wait_for, wait_until,
};
use keyward_admin::message::{Command as AdminCommand, SocketStatus, Status};
use keyward_client::blocking::Client;
use keyward_client::{Options, Request};
use rustix::process::Signal;

fn export() -> Export {
    Export::of(["a"])
}

fn status(admin: &Path) -> Option<Status> {
    keyward_admin::send_command(admin, &AdminCommand::Status).ok().and_then(|reply| reply.status)
}

fn socket_status(admin: &Path, name: &str) -> Option<SocketStatus> {
    status(admin).map(|status| status.sockets[name].clone())
}

fn is_served(path: &Path) -> bool {
    let mut client = Client::with_options(Options::new(path).deadline(TIMEOUT));
    client.verify(&Request::new("a")).is_ok_and(|decision| decision.is_allowed())
}

#[test]
fn removed_socket_files_are_recreated() {
    let daemon = Daemon::serving(export());
    let mut before = daemon.connect();
    before.send(&encode_verify(1, "a"));
    assert_eq!(before.receive(), Received::Answer { request_id: 1, verdict: "ALLOWED", generation: 1 });
    for (name, path) in [("verify", daemon.socket()), ("admin", daemon.admin_socket())] {
        assert!(socket_status(&daemon.admin_socket(), name).expect("a status").reachable);
        let mode = fs::metadata(&path).expect("a socket").mode();
        fs::remove_file(&path).expect("removed");
        wait_until("the socket's file", || path.exists());
        let status = wait_for("the status", || {
            socket_status(&daemon.admin_socket(), name).filter(|socket| socket.rebound == 1)
        });
        assert!(status.reachable && !status.adopted && status.problem.is_none(), "{status:?}");
        assert_eq!(fs::metadata(&path).expect("a socket").mode(), mode);
    }
    wait_until("answers", || is_served(&daemon.socket()));
    before.send(&encode_verify(2, "a"));
    assert_eq!(before.receive(), Received::Answer { request_id: 2, verdict: "ALLOWED", generation: 1 });
    daemon.assert_logged("the socket's file was removed; socket bound again");
}

#[test]
fn recreated_sockets_have_their_configured_modes() {
    for (config, verify, admin) in [
        ("", 0o660, 0o600),
        ("server.socket_mode = '0600'", 0o600, 0o600),
        ("server.socket_mode = '0666'\nserver.admin_uids = [7]", 0o666, 0o666),
        ("server.admin_read_uids = [7]", 0o660, 0o666),
    ] {
        let daemon = Setup::new(export()).config(config).start();
        let mode = |path: PathBuf| fs::metadata(path).expect("a socket").mode() & 0o777;
        let modes = || (mode(daemon.socket()), mode(daemon.admin_socket()));
        assert_eq!(modes(), (verify, admin), "{config}");
        for path in [daemon.socket(), daemon.admin_socket()] {
            fs::remove_file(path).expect("removed");
        }
        wait_until("the sockets to be recreated", || {
            let status = status(&daemon.admin_socket());
            status.is_some_and(|status| status.sockets.values().all(|socket| socket.rebound == 1))
        });
        assert_eq!(modes(), (verify, admin), "{config}, recreated");
    }
}

#[test]
fn mode_change_of_a_socket_file_does_not_recreate_it() {
    let daemon = Daemon::serving(export());
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).expect("set");
    // The daemon examines both files when it notices the removal of the admin socket's file.
    fs::remove_file(daemon.admin_socket()).expect("removed");
    wait_for("the admin socket", || {
        socket_status(&daemon.admin_socket(), "admin").filter(|socket| socket.rebound == 1)
    });
    let verify = socket_status(&daemon.admin_socket(), "verify").expect("a status");
    assert!(verify.reachable && verify.rebound == 0, "{verify:?}");
    assert_eq!(fs::metadata(daemon.socket()).expect("a socket").mode() & 0o777, 0o666);
}

#[test]
fn sockets_are_recreated_with_their_directory() {
    let setup = Setup::new(export());
    let run = setup.path("run");
    fs::create_dir(&run).expect("a directory");
    let (verify, admin) = (run.join("keyward.sock"), run.join("admin.sock"));
    let mut command = keyward();
    command.arg("serve").arg("--source").arg(setup.source()).arg("--socket").arg(&verify);
    command.arg("--state-dir").arg(setup.dir.path());
    command.stderr(fs::File::create(setup.path("log")).expect("a log"));
    let mut process = ServeProcess::start(command);
    wait_until("the keys", || is_served(&verify));
    remove_dir_in_use(&run);
    wait_until("the log", || {
        let log = fs::read_to_string(setup.path("log")).expect("a log");
        log.contains("there is no such directory")
    });
    fs::create_dir(&run).expect("a directory");
    wait_until("answers", || is_served(&verify));
    let again = wait_for("the status", || {
        status(&admin).filter(|status| status.sockets.values().all(|socket| socket.reachable))
    });
    assert!(again.sockets.values().all(|socket| socket.rebound == 1), "{:?}", again.sockets);
    process.signal(Signal::TERM);
    assert_eq!(process.wait_for_exit().code(), Some(0));
    assert!(!verify.exists() && !admin.exists());
}

/// Neither while the daemon runs, nor when it exits.
#[test]
fn socket_of_another_process_is_not_replaced() {
    let mut daemon = Daemon::serving(export());
    let path = daemon.socket();
    fs::remove_file(&path).expect("removed");
    let other = UnixListener::bind(&path).expect("binds");
    let inode = fs::metadata(&path).expect("a socket").ino();
    let verify = wait_for("the problem", || {
        socket_status(&daemon.admin_socket(), "verify").filter(|socket| !socket.reachable)
    });
    let problem = verify.problem.expect("a problem");
    assert!(problem.contains("another process is listening there"), "{problem}");
    assert_eq!(fs::metadata(&path).expect("a socket").ino(), inode);
    daemon.assert_logged("clients cannot connect");

    // The file of a closed socket is a leftover, and is replaced.
    drop(other);
    wait_until("answers", || is_served(&path));
    fs::remove_file(&path).expect("removed");
    let _other = UnixListener::bind(&path).expect("binds");
    daemon.stop();
    assert!(path.exists(), "the daemon removed the socket of another process");
}

#[test]
fn regular_file_in_place_of_a_socket_is_kept() {
    let daemon = Daemon::serving(export());
    fs::remove_file(daemon.socket()).expect("removed");
    fs::write(daemon.socket(), "precious").expect("writes");
    let verify = wait_for("the problem", || {
        socket_status(&daemon.admin_socket(), "verify").filter(|socket| !socket.reachable)
    });
    assert!(verify.problem.expect("a problem").contains("not a socket"));
    assert_eq!(fs::read_to_string(daemon.socket()).expect("a file"), "precious");
    fs::remove_file(daemon.socket()).expect("removed");
    wait_until("answers", || is_served(&daemon.socket()));
}

/// A socket inherited from systemd is not recreated, because systemd would not know the new one.
#[test]
fn removed_file_of_an_inherited_socket_is_only_reported() {
    let setup = Setup::new(export());
    let paths = ["keyward.sock", "admin.sock"].map(|name| setup.path(name));
    let listeners =
        [&paths[0], &paths[1]].map(|path: &PathBuf| UnixListener::bind(path).expect("binds").into());
    let _process = ServeProcess::start(with_sockets(&setup, listeners, "verify:admin"));
    wait_until("the keys", || is_served(&paths[0]));
    let verify = socket_status(&paths[1], "verify").expect("a status");
    assert!(verify.adopted && verify.reachable, "{verify:?}");
    // A file that is moved back is the same socket.
    let aside = setup.path("aside");
    fs::rename(&paths[0], &aside).expect("renames");
    wait_for("the problem", || socket_status(&paths[1], "verify").filter(|socket| !socket.reachable));
    fs::rename(&aside, &paths[0]).expect("renames");
    let verify = wait_for("the problem to end", || {
        socket_status(&paths[1], "verify").filter(|socket| socket.reachable)
    });
    assert!(verify.problem.is_none() && verify.rebound == 0, "{verify:?}");
    fs::remove_file(&paths[0]).expect("removed");
    let verify =
        wait_for("the problem", || socket_status(&paths[1], "verify").filter(|socket| !socket.reachable));
    let problem = verify.problem.expect("a problem");
    assert!(
        problem.contains("systemd owns the socket") && problem.contains("FileDescriptorName=verify"),
        "{problem}"
    );
    assert!(!paths[0].exists(), "the daemon replaced systemd's socket");
}
