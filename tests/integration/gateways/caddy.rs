//! Caddy with `forward_auth`.

use std::fs;
use std::process::Command;

use super::cases::{self, Traits};
use super::page::{block, unix_listener};
use super::stack::{Stack, program};

const SOCKET: &str = "/run/keyward-http/caddy.sock";

fn start() -> Stack {
    let mut stack =
        Stack::start(cases::export(), |directory| unix_listener("caddy", "caddy", directory), cases::ROUTES);
    let [socket, log] = ["caddy.sock", "access.log"].map(|name| stack.path(name).display().to_string());
    let configuration = block(
        "caddy",
        "caddyfile",
        &[
            (SOCKET, &socket),
            ("127.0.0.1:8080", &format!("127.0.0.1:{}", stack.upstream.port)),
            ("http://:80", &format!("http://:{}", stack.port)),
            ("/var/log/caddy/access.log", &log),
        ],
    );
    let file = stack.path("Caddyfile");
    fs::write(&file, configuration).expect("writes");
    let mut caddy = Command::new(program("caddy"));
    caddy.env("HOME", stack.path("")).args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
    stack.start_gateway(&mut caddy);
    stack
}

#[test]
#[ignore = "needs Caddy"]
fn documented_configuration_checks_every_request() {
    cases::all(&mut start(), Traits::default());
}
