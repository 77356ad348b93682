//! HAProxy with the Lua action.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::cases::{self, Traits};
use super::page::{block, unix_listener};
use super::stack::Stack;

const SOCKET: &str = "/run/keyward-http/haproxy.sock";

fn start() -> Stack {
    let mut stack = Stack::start(
        cases::export(),
        |directory| unix_listener("haproxy", "haproxy", directory),
        cases::ROUTES,
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/gateways/keyward.lua");
    let configuration = block(
        "haproxy",
        "haproxy",
        &[
            (SOCKET, &stack.path("haproxy.sock").display().to_string()),
            ("127.0.0.1:8080", &format!("127.0.0.1:{}", stack.upstream.port)),
            ("bind :80", &format!("bind 127.0.0.1:{}", stack.port)),
            ("/etc/haproxy/keyward.lua", &script.display().to_string()),
        ],
    );
    let file = stack.path("haproxy.cfg");
    fs::write(&file, configuration).expect("writes");
    stack.start_gateway(Command::new("haproxy").arg("-db").arg("-f").arg(&file));
    stack
}

#[test]
#[ignore = "needs HAProxy"]
fn documented_configuration_checks_every_request() {
    cases::all(&mut start(), Traits::default());
}
