//! What holds through every gateway.

use rustix::process::Signal;

use super::stack::Stack;
use crate::support::http_client::Response;
use crate::support::{Export, key_target, row, wait_until};

/// A key that is looked for in logs, and in what the upstream receives.
const KEY: &str = "canary-key-0123456789";

/// The routes of the tests.
pub(super) const ROUTES: &str = r#"
[[routes]]
path = "/open"
access = "open"

[[routes]]
path = "/closed/**"
access = "closed"

[[routes]]
path = "/browser"
methods = ["POST"]
cors_preflight = true

[[routes]]
path = "/scoped"
scopes = ["invoices:read", "orders:write"]

[[routes]]
path = "/test"
environment = "test"

[[routes]]
path = "/costly"
cost = 5

[[routes]]
path = "/typo"
costs = { tokns = 1 }

[[routes]]
path = "/fragile"
fail_open = true

[[routes]]
path = "/**"
"#;

pub(super) fn export() -> Export {
    Export::new([
        row(KEY)
            .id("canary")
            .owner("M\u{fc}ller & Co")
            .environment("live")
            .set("scopes", "invoices:read")
            .limits("requests=1000/d"),
        row("revoked").status("revoked"),
        row("disabled").status("disabled"),
        row("later").set("not_before", "2099-01-01T00:00:00Z"),
        row("expired").expires_at("2001-01-01 00:00:00+00"),
        row("elsewhere").allowed_ips("203.0.113.0/24"),
        // Denied if no address is stated. Which one depends on the gateway: Envoy states one of the host
        // for a client on the loopback interface.
        row("anywhere").allowed_ips("0.0.0.0/0,::/0"),
        row("page").set("allowed_origins", "https://app.example.com"),
        row("once").limits("requests=1/d"),
        row("small").limits("requests=2/d"),
        row("prepaid").limits("credits=1"),
        row("going"),
    ])
}

fn with_key(stack: &Stack, target: &str, key: &str) -> Response {
    stack.send("GET", target, &[&format!("Authorization: Bearer {key}")])
}

fn code(response: &Response) -> String {
    let body: serde_json::Value =
        serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{response:?}"));
    assert_eq!(body["status"], response.status, "{response:?}");
    body["code"].as_str().expect("a code").to_owned()
}

/// What a gateway does differently from others.
#[derive(Clone, Copy, Default)]
pub(super) struct Traits {
    /// It resolves paths before it asks.
    pub(super) resolves_paths: bool,
    /// The client of a request that is let through does not see its limits.
    pub(super) hides_limits: bool,
    /// It takes a reply of 5xx for a failure, and responds with 503 and without a body.
    pub(super) replaces_errors: bool,
}

/// All cases.
pub(super) fn all(stack: &mut Stack, traits: Traits) {
    verdicts_have_their_statuses(stack, traits);
    upstream_sees_the_identity_and_not_the_key(stack, traits);
    browser_requests_are_bound_to_origins(stack);
    revocation_holds_at_once(stack);
    failure_refuses_requests(stack, traits);
    logs_have_no_key(stack);
}

/// Every verdict has its status, its headers and its body.
fn verdicts_have_their_statuses(stack: &Stack, traits: Traits) {
    let before = stack.upstream.requests();
    let spent = with_key(stack, "/", "once");
    assert_eq!((spent.status, with_key(stack, "/", "prepaid").status), (200, 200));
    for (target, key, status, expected) in [
        ("/", "unknown", 401, "UNKNOWN_KEY"),
        ("/", "revoked", 401, "REVOKED"),
        ("/", "disabled", 401, "DISABLED"),
        ("/", "later", 401, "NOT_YET_VALID"),
        ("/", "expired", 401, "EXPIRED"),
        ("/test", KEY, 401, "WRONG_ENVIRONMENT"),
        ("/", "elsewhere", 403, "IP_NOT_ALLOWED"),
        ("/", "page", 403, "ORIGIN_NOT_ALLOWED"),
        ("/scoped", KEY, 403, "MISSING_SCOPE"),
        ("/typo", KEY, 500, "UNKNOWN_LIMIT"),
        ("/costly", "small", 403, "COST_EXCEEDS_BURST"),
        ("/", "prepaid", 402, "OUT_OF_CREDIT"),
        ("/", "once", 429, "RATE_LIMITED"),
        ("/", "a,b", 400, "INVALID_CREDENTIAL"),
        ("/closed/a", KEY, 403, "CLOSED_ROUTE"),
        ("/a//b", KEY, 400, "AMBIGUOUS_PATH"),
        ("/open/../scoped", KEY, 400, "AMBIGUOUS_PATH"),
    ] {
        if expected == "AMBIGUOUS_PATH" && traits.resolves_paths {
            continue;
        }
        if status >= 500 && traits.replaces_errors {
            assert_eq!(with_key(stack, target, key).status, 503);
            continue;
        }
        let response = with_key(stack, target, key);
        assert_eq!(
            (response.status, code(&response).as_str()),
            (status, expected),
            "{target} {key}: {response:?}"
        );
        let challenge = match expected {
            "MISSING_SCOPE" => {
                Some(r#"Bearer error="insufficient_scope", scope="invoices:read orders:write""#)
            }
            "INVALID_CREDENTIAL" => Some(r#"Bearer error="invalid_request""#),
            _ => (status == 401).then_some(r#"Bearer error="invalid_token""#),
        };
        assert_eq!(response.header("www-authenticate"), challenge, "{expected}: {response:?}");
        let retry_after = response.header("retry-after").map(|text| text.parse::<u32>().expect("seconds"));
        assert_eq!(retry_after.is_some_and(|seconds| seconds > 80_000), status == 429, "{response:?}");
    }
    // At some size the check is too large for the gateway, although the request is not.
    for size in (2_000..16_000).step_by(200) {
        let (target, accept) = (format!("/?{}", "a".repeat(size)), format!("Accept: {}", "a".repeat(600)));
        let response = stack.send("GET", &target, &[&accept]);
        assert!(response.status >= 400, "{size}: {response:?}");
    }
    let no_key = stack.send("GET", "/", &[]);
    assert_eq!((no_key.status, code(&no_key).as_str()), (401, "NO_KEY"));
    assert_eq!(no_key.header("www-authenticate"), Some("Bearer"));
    assert_eq!(stack.upstream.requests(), before + 2, "nothing that was refused has reached the upstream");
}

const IDENTITY: [&str; 4] =
    ["X-Keyward-Key-Id", "X-Keyward-Owner", "X-Keyward-Plan", "X-Keyward-Environment"];

/// Every spelling of a header with underscores for some of its hyphens. Some upstreams take all of them for
/// the same name.
fn underscored(name: &str) -> Vec<String> {
    let hyphens: Vec<usize> = name.match_indices('-').map(|(index, _)| index).collect();
    (1..1_usize << hyphens.len())
        .map(|chosen| {
            let mut spelled = name.to_owned();
            for (number, index) in hyphens.iter().enumerate() {
                if chosen >> number & 1 == 1 {
                    spelled.replace_range(*index..=*index, "_");
                }
            }
            spelled
        })
        .collect()
}

/// The upstream gets the identity, and nothing that the client has forged.
fn upstream_sees_the_identity_and_not_the_key(stack: &Stack, traits: Traits) {
    let lower_case = |response: &Response| response.body.to_lowercase();
    for key_header in [format!("Authorization: Bearer {KEY}"), format!("X-API-Key: {KEY}")] {
        let forged = [
            "X-Keyward-Owner: evil",
            "x-keyward-plan: evil",
            "X-Keyward-Key-Id: evil",
            "Connection: X-Keyward-Owner",
        ];
        let underscored: Vec<String> = IDENTITY.iter().flat_map(|name| underscored(name)).collect();
        let underscored: Vec<String> = underscored.iter().map(|name| format!("{name}: evil")).collect();
        let underscored: Vec<&str> = underscored.iter().map(String::as_str).collect();
        let headers = [&[key_header.as_str()], &forged[..], &underscored].concat();
        let response = stack.send("GET", "/a?b=c", &headers);
        assert_eq!(response.status, 200, "{response:?}");
        let seen = lower_case(&response);
        assert!(seen.contains("x-keyward-key-id: canary"), "{seen}");
        assert!(seen.contains("x-keyward-owner: m%c3%bcller%20&%20co"), "{seen}");
        assert!(seen.contains("x-keyward-environment: live"), "{seen}");
        assert!(seen.starts_with("get /a?b=c http/1."), "{seen}");
        assert!(!seen.contains("evil") && !seen.contains(KEY), "{seen}");
        if !traits.hides_limits {
            assert_eq!(response.header("ratelimit-policy"), Some("\"requests\";q=1000"));
            let state = response.header("ratelimit").unwrap_or_default();
            assert!(state.starts_with("\"requests\";r=99"), "{response:?}");
        }
    }
    let open = stack.send("GET", "/open", &["X-Keyward-Owner: evil"]);
    assert_eq!(open.status, 200);
    assert!(!lower_case(&open).contains("evil"), "{open:?}");
    let stated = with_key(stack, "/", "anywhere");
    assert_eq!(stated.status, 200, "the gateway states the address of the client: {stated:?}");
    let forged = ["X-API-Key: elsewhere", "X-Forwarded-For: 203.0.113.7", "X-Real-IP: 203.0.113.7"];
    assert_eq!(code(&stack.send("GET", "/", &forged)), "IP_NOT_ALLOWED");
}

/// A browser's page: allowed from its origin, refused from another, preflight let through.
fn browser_requests_are_bound_to_origins(stack: &Stack) {
    let key = "Authorization: Bearer page";
    let from = |origin: &str| stack.send("POST", "/browser", &[key, origin, "Content-Length: 0"]).status;
    assert_eq!(
        (from("Origin: https://app.example.com"), from("Origin: https://evil.example.com")),
        (200, 403)
    );
    let origin = "Origin: https://app.example.com";
    let preflight = stack.send("OPTIONS", "/browser", &[origin, "Access-Control-Request-Method: POST"]);
    assert_eq!(preflight.status, 200, "{preflight:?}");
    assert_eq!(stack.send("OPTIONS", "/browser", &[origin]).status, 401);
}

/// A revocation that is acknowledged holds for the next request.
fn revocation_holds_at_once(stack: &Stack) {
    assert_eq!(with_key(stack, "/", "going").status, 200);
    stack.daemon.revoke(key_target("going"));
    let response = with_key(stack, "/", "going");
    assert_eq!((response.status, code(&response).as_str()), (401, "REVOKED"));
}

/// Without the daemon, or without `keyward http`, nothing gets through.
fn failure_refuses_requests(stack: &mut Stack, traits: Traits) {
    stack.daemon.signal(Signal::KILL);
    let response = with_key(stack, "/", KEY);
    assert_eq!(response.status, 503, "{response:?}");
    assert!(traits.replaces_errors || code(&response) == "UNAVAILABLE", "{response:?}");
    let open = with_key(stack, "/fragile", KEY);
    assert_eq!(open.status, 200, "the route fails open: {open:?}");
    stack.companion.end(Signal::KILL);
    let before = stack.upstream.requests();
    for target in ["/", "/fragile", "/open"] {
        let response = with_key(stack, target, KEY);
        assert!((500..600).contains(&response.status), "{response:?}");
    }
    assert_eq!(stack.upstream.requests(), before);
}

/// No log has a key.
fn logs_have_no_key(stack: &Stack) {
    wait_until("the gateway to log a refusal", || stack.logs().contains("429"));
    let logs = stack.logs();
    assert!(!logs.contains(KEY), "{logs}");
}
