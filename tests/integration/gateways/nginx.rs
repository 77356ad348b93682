//! nginx with `auth_request`.

use std::fs;
use std::process::Command;

use super::cases::{self, Traits};
use super::page::{block, unix_listener};
use super::stack::Stack;
use crate::support::Export;

pub(super) fn start(export: Export, routes: &str) -> Stack {
    let mut stack = Stack::start(export, |directory| unix_listener("nginx", "www-data", directory), routes);
    let [socket, log] = ["nginx.sock", "access.log"].map(|name| stack.path(name).display().to_string());
    let configuration = block(
        "nginx",
        "nginx",
        &[
            ("/run/keyward-http/nginx.sock", &socket),
            ("127.0.0.1:8080", &format!("127.0.0.1:{}", stack.upstream.port)),
            ("listen 80;", &format!("listen 127.0.0.1:{};", stack.port)),
            ("/var/log/nginx/access.log", &log),
        ],
    );
    let file = stack.path("nginx.conf");
    fs::write(&file, configuration).expect("writes");
    let directives = format!("daemon off; pid {};", stack.path("nginx.pid").display());
    let mut nginx = Command::new("nginx");
    nginx.arg("-c").arg(&file).arg("-p").arg(stack.path("")).arg("-e").arg(stack.path("error.log"));
    stack.start_gateway(nginx.arg("-g").arg(directives));
    stack
}

#[test]
#[ignore = "needs nginx"]
fn documented_configuration_checks_every_request() {
    cases::all(&mut start(cases::export(), cases::ROUTES), Traits::default());
}
