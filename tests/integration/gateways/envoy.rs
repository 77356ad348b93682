//! Envoy with `ext_authz`, over HTTP and over gRPC.

use std::fs;
use std::process::Command;

use super::cases::{self, Traits};
use super::page::{blocks, unix_listener};
use super::stack::{Stack, program};
use crate::support::{Export, row, wait_until};

/// Starts everything with the configuration of a page. `further` follows the gateway's table in http.toml;
/// `configuration` makes one of the blocks for Envoy.
fn start(
    gateway: &str,
    export: Export,
    further: &str,
    configuration: impl FnOnce(Vec<String>) -> String,
) -> Stack {
    let table = |directory: &std::path::Path| unix_listener(gateway, "envoy", directory) + further;
    let mut stack = Stack::start(export, table, cases::ROUTES);
    let file_name = format!("{gateway}.sock");
    let [socket, log] = [&file_name, "access.log"].map(|name| stack.path(name).display().to_string());
    let configuration = configuration(blocks(
        gateway,
        "yaml",
        &[
            (&format!("/run/keyward-http/{file_name}"), &socket),
            ("port_value: 8080", &format!("port_value: {}", stack.upstream.port)),
            (
                "address: 0.0.0.0, port_value: 80 ",
                &format!("address: 127.0.0.1, port_value: {} ", stack.port),
            ),
            ("/var/log/envoy/access.log", &log),
        ],
    ));
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

/// The complete configuration, which a page has first.
fn complete(mut blocks: Vec<String>) -> String {
    blocks.swap_remove(0)
}

/// The complete configuration, with the routes of the second block.
fn with_other_routes(blocks: Vec<String>) -> String {
    let [complete, routes] = blocks.try_into().expect("two blocks");
    let (before, rest) = complete.split_once("                route_config:\n").expect("routes");
    let (_, after) = rest.split_once("                http_filters:\n").expect("filters");
    format!("{before}{routes}                http_filters:\n{after}")
}

#[test]
#[ignore = "needs Envoy"]
fn documented_configuration_checks_every_request() {
    let mut stack = start("envoy", cases::export(), "", complete);
    cases::all(&mut stack, Traits { replaces_errors: true, ..Traits::default() });
}

#[test]
#[ignore = "needs Envoy"]
fn documented_configuration_of_grpc_checks_every_request() {
    let mut stack = start("envoy-grpc", cases::export(), "", complete);
    cases::all(&mut stack, Traits::default());
    wait_until("the log to name verdicts and keys", || {
        let logs = stack.logs();
        ["GET 200 ALLOWED canary\n", "GET 429 RATE_LIMITED ", "GET 200 OPEN -\n", "GET 503 UNAVAILABLE -\n"]
            .iter()
            .all(|line| logs.contains(line))
    });
}

/// A key whose metadata names a tenant, and a header for it.
const METADATA: &str = "\n[identity]\nmetadata = { \"X-Tenant\" = \"tenant\" }\n";

fn assert_upstream_sees_the_tenant(stack: &Stack) {
    let forged = ["X-API-Key: reader", "X-Tenant: evil", "X-Tenant: evil"];
    let seen = stack.send("GET", "/other", &forged).body.to_lowercase();
    assert!(seen.contains("x-tenant: blue\r\n") && !seen.contains("evil"), "{seen}");
    let seen = stack.send("GET", "/other", &["X-API-Key: other", "X-Tenant: evil"]).body.to_lowercase();
    assert!(seen.contains("x-keyward-key-id: other\r\n") && !seen.contains("evil"), "{seen}");
}

fn readers() -> Export {
    let reader =
        row("reader").id("reader").set("metadata", r#"{"tenant":"blue"}"#).set("scopes", "reports:read");
    Export::new([reader.limits("requests=13/d"), row("other").id("other").limits("requests=13/d")])
}

#[test]
#[ignore = "needs Envoy"]
fn metadata_overwrites_what_a_client_has_forged() {
    let with_tenant = |blocks| {
        let last = "- exact: x-keyward-environment\n";
        let configuration = complete(blocks);
        let (before, after) = configuration.split_once(last).expect("headers");
        format!("{before}{last}                              - exact: x-tenant\n{after}")
    };
    assert_upstream_sees_the_tenant(&start("envoy", readers(), METADATA, with_tenant));
}

#[test]
#[ignore = "needs Envoy"]
fn context_extensions_add_to_what_a_route_needs() {
    let hints = "hints = { place = \"context\", kinds = [\"cost\", \"scopes\"] }\n";
    assert_eq!(blocks("envoy-grpc", "toml", &[])[1], hints);
    let further = format!("{hints}{METADATA}\n[credentials]\nquery = \"api_key\"\n");
    let stack = start("envoy-grpc", readers(), &further, with_other_routes);
    let remaining = |target: &str, key: &str| {
        let response = stack.send("GET", target, &[&format!("X-API-Key: {key}")]);
        let state = response.header("ratelimit").unwrap_or_default();
        (response.status, state.split(';').nth(1).map(str::to_owned))
    };
    assert_eq!(remaining("/reports/a", "reader"), (200, Some("r=8".to_owned())));
    assert_eq!(remaining("/other", "reader"), (200, Some("r=7".to_owned())));
    assert_eq!(remaining("/reports/a", "reader"), (200, Some("r=2".to_owned())));
    assert_eq!(remaining("/reports/a", "reader").0, 429);
    assert_eq!(remaining("/reports/a", "other").0, 403);
    assert_eq!(remaining("/other", "other"), (200, Some("r=12".to_owned())));
    assert_upstream_sees_the_tenant(&stack);
    // Envoy sorts the parameters of a query only if it removes one.
    for (target, expected) in
        [("/other?z=1&api_key=other&a", "/other?a=&z=1"), ("/other?z=1&api%5Fkey=other&a", "/other?a=&z=1")]
    {
        let response = stack.send("GET", target, &[]);
        assert!(response.body.starts_with(&format!("GET {expected} HTTP/1.1")), "{response:?}");
    }
    let response = stack.send("GET", "/other?z=1&a", &["X-API-Key: other"]);
    assert!(response.body.starts_with("GET /other?z=1&a HTTP/1.1"), "{response:?}");
}
