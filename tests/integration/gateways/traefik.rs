//! Traefik with `ForwardAuth`.

use std::fs;
use std::process::Command;

use super::cases::{self, Traits};
use super::page::{block, blocks};
use super::stack::{Stack, program};
use crate::support::free_port;

fn start() -> Stack {
    let address = format!("127.0.0.1:{}", free_port());
    let listener = |_: &std::path::Path| block("traefik", "toml", &[("127.0.0.1:9180", &address)]);
    let mut stack = Stack::start(cases::export(), listener, cases::ROUTES);
    let [fixed, dynamic] = ["traefik.yaml", "dynamic.yaml"].map(|name| stack.path(name));
    let texts = blocks(
        "traefik",
        "yaml",
        &[
            ("127.0.0.1:9180", &address),
            ("http://127.0.0.1:8080", &format!("http://127.0.0.1:{}", stack.upstream.port)),
            ("\":80\"", &format!("\"127.0.0.1:{}\"", stack.port)),
            ("/etc/traefik/dynamic.yaml", &dynamic.display().to_string()),
            ("/var/log/traefik/access.log", &stack.path("access.log").display().to_string()),
        ],
    );
    let [fixed_text, dynamic_text] = &*texts else { panic!("two blocks") };
    fs::write(&fixed, fixed_text).expect("writes");
    fs::write(&dynamic, dynamic_text).expect("writes");
    stack.start_gateway(Command::new(program("traefik")).arg("--configFile").arg(&fixed));
    stack
}

#[test]
#[ignore = "needs Traefik"]
fn documented_configuration_checks_every_request() {
    cases::all(&mut start(), Traits { resolves_paths: true, hides_limits: true, ..Traits::default() });
}
