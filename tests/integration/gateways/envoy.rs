//! Envoy with `ext_authz` over HTTP.

use std::fs;
use std::process::Command;

use super::cases::{self, Traits};
use super::page::{block, unix_listener};
use super::stack::{Stack, program};

const SOCKET: &str = "/run/keyward-http/envoy.sock";

fn start() -> Stack {
    let mut stack =
        Stack::start(cases::export(), |directory| unix_listener("envoy", "envoy", directory), cases::ROUTES);
    let [socket, log] = ["envoy.sock", "access.log"].map(|name| stack.path(name).display().to_string());
    let configuration = block(
        "envoy",
        "yaml",
        &[
            (SOCKET, &socket),
            ("port_value: 8080", &format!("port_value: {}", stack.upstream.port)),
            (
                "address: 0.0.0.0, port_value: 80 ",
                &format!("address: 127.0.0.1, port_value: {} ", stack.port),
            ),
            ("/var/log/envoy/access.log", &log),
        ],
    );
    let file = stack.path("envoy.yaml");
    fs::write(&file, configuration).expect("writes");
    let mut envoy = Command::new(program("envoy"));
    envoy
        .args([
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--file-flush-interval-msec",
            "100",
            "--log-level",
            "warning",
            "-c",
        ])
        .arg(&file);
    stack.start_gateway(&mut envoy);
    stack
}

#[test]
#[ignore = "needs Envoy"]
fn documented_configuration_checks_every_request() {
    cases::all(&mut start(), Traits { replaces_errors: true, ..Traits::default() });
}
