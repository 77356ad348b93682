//! The clients for other languages: their own tests, and servers that they guard.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::http_client::{Response, send};
use crate::support::{Daemon, Export, Process, free_port, key_target, row, wait_until};

/// The directory of a client.
fn client(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("protocol/clients").join(language)
}

/// Python with the client, its tests, and the packages that `tests/run` has installed.
pub(crate) fn python() -> Command {
    let client = client("python");
    let installed = std::env::var_os("KEYWARD_PYTHON").map(PathBuf::from);
    let paths = [client.join("src"), client.join("tests")].into_iter().chain(installed);
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", std::env::join_paths(paths).expect("no colon in a path"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(client);
    command
}

#[track_caller]
pub(crate) fn assert_succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    assert!(!stderr.contains("skipped"), "a package is missing: tests/run installs it\n{stderr}");
}

#[test]
#[ignore = "needs Python and packages of PyPI"]
fn python_client_passes_its_own_tests() {
    assert_succeeds(python().args([
        "-W",
        "error::ResourceWarning",
        "-m",
        "unittest",
        "discover",
        "-s",
        "tests",
    ]));
}

#[test]
#[ignore = "needs Python and packages of PyPI"]
fn python_client_is_typed() {
    let cache = TempDir::new().expect("a directory");
    let mypy = |arguments: &[&str]| {
        assert_succeeds(python().args(["-m", "mypy", "--cache-dir"]).arg(cache.path()).args(arguments));
    };
    mypy(&[]);
    // The oldest Python that it supports. The frameworks need newer ones.
    mypy(&["--python-version", "3.9", "--exclude", "fastapi|django"]);
}

/// Node.js with the packages that `tests/run` has installed.
fn node(program: &str) -> (Command, PathBuf) {
    let packages = PathBuf::from(std::env::var_os("KEYWARD_NODE").expect("tests/run sets it"));
    let mut command = Command::new(program);
    command.env("NODE_PATH", &packages).current_dir(client("node"));
    (command, packages)
}

#[test]
#[ignore = "needs Node.js and packages of npm"]
fn node_client_passes_its_own_tests() {
    let tests = ["frames", "faults", "http"].map(|name| format!("test/{name}.test.js"));
    let output = node("node").0.arg("--test").args(tests).output().expect("node runs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("\n# fail 0\n"), "{report}");
    assert!(report.contains("\n# skipped 0\n"), "a package is missing: tests/run installs it\n{report}");
}

#[test]
#[ignore = "needs Node.js and packages of npm"]
fn node_client_is_typed() {
    let (mut compiler, packages) = node("node");
    let directory = TempDir::new().expect("a directory");
    let client = client("node");
    let files = ["test/types.ts", "src/index.d.ts", "src/index.d.mts"].map(|file| client.join(file));
    let config = serde_json::json!({
        "extends": client.join("tsconfig.json"),
        "compilerOptions": {
            "typeRoots": [packages.join("@types")],
            "paths": {
                "keyward": [client.join("src/index.d.ts")],
                "*": [packages.join("@types/*"), packages.join("*")],
            },
        },
        "files": files,
    });
    let file = directory.path().join("tsconfig.json");
    std::fs::write(&file, config.to_string()).expect("writes");
    assert_succeeds(compiler.arg(packages.join("typescript/bin/tsc")).arg("-p").arg(file));
}

/// A server with the working directory of the Python client's applications.
fn serve(daemon: &Daemon, directory: &TempDir, arguments: &[&str]) -> (Process, u16) {
    let port = free_port();
    let bind = format!("127.0.0.1:{port}");
    let mut server = python();
    server.current_dir(client("python").join("tests/servers")).env("KEYWARD_SOCKET", daemon.socket());
    server.arg("-m").args(arguments);
    match arguments[0] {
        "gunicorn" => server.args(["--workers", "2", "--preload", "--bind", &bind]),
        _ => server.args(["--port", &port.to_string()]),
    };
    let process = Process::start(&mut server, &directory.path().join("server.log"));
    wait_until("the server", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (process, port)
}

fn get(port: u16, key: Option<&str>) -> Response {
    let header = key.map(|key| format!("Authorization: Bearer {key}"));
    send(port, "GET", "/", &header.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Real servers: processes that fork, threads and event loops.
#[test]
#[ignore = "needs Python and packages of PyPI"]
fn python_servers_are_guarded() {
    for arguments in [
        &["uvicorn", "with_fastapi:app"][..],
        &["gunicorn", "with_flask:app"],
        &["gunicorn", "--threads", "4", "with_django:app"],
        &["uvicorn", "with_django:asgi_app"],
    ] {
        let scopes = |key: &str| row(key).id(key).owner("acme").set("scopes", "orders:read");
        let daemon = Daemon::serving(Export::new([
            scopes("key"),
            scopes("once").limits("1/d"),
            row("poor").id("poor"),
        ]));
        let directory = TempDir::new().expect("a directory");
        let (_server, port) = serve(&daemon, &directory, arguments);
        let log = || std::fs::read_to_string(directory.path().join("server.log")).unwrap_or_default();
        for _ in 0..20 {
            let response = get(port, Some("key"));
            assert_eq!(
                (response.status, response.body.trim_matches('"')),
                (200, "acme"),
                "{arguments:?}: {}",
                log()
            );
        }
        assert_eq!(get(port, None).status, 401);
        assert_eq!(get(port, Some("unknown")).status, 401);
        assert_eq!(get(port, Some("poor")).status, 403);
        assert_eq!(get(port, Some("once")).status, 200);
        let limited = get(port, Some("once"));
        assert_eq!(limited.status, 429);
        assert!(limited.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok()));
        assert_eq!(limited.header("content-type"), Some("application/problem+json"));
        daemon.revoke(key_target("key"));
        for _ in 0..4 {
            assert_eq!(get(port, Some("key")).status, 401, "{arguments:?}");
        }
    }
}
