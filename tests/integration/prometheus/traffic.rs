//! A daemon that has every kind of metric, and traffic that counts in them.

use keyward_client::{Debit, Refund, Request};

use super::stack::Stack;
use crate::support::http_client::send;
use crate::support::{Daemon, Export, Setup, key_target, row};

/// Serves keys of every status, and a plan with limits of every kind.
pub(super) fn daemon() -> Daemon {
    let export = Export::new([
        row("free"),
        row("key").plan("plan"),
        row("once").limits("requests=1/d"),
        row("going"),
        row("disabled").status("disabled"),
        row("revoked").status("revoked"),
        row("later").set("not_before", "2099-01-01T00:00:00Z"),
        row("expired").expires_at("2001-01-01 00:00:00+00"),
    ]);
    let plan = "[plans.plan]\nrequests = \"1000/d\"\nmonthly = \"100000/month\"\ncredits = \"10000 credits\"\n\
                shadow = { limit = \"1/d\", shadow = true }";
    Setup::text(export).config(plan).start()
}

/// Requests of every kind, straight to the daemon and through `keyward http`.
pub(super) fn send_all(stack: &Stack) {
    let mut client = stack.daemon.client();
    for key in ["key", "once", "disabled", "revoked", "later", "expired", "unknown"] {
        // Times are measured for one batch in 64.
        for _ in 0..64 {
            client.verify(&Request::new(key)).expect("an answer");
        }
        for target in ["/", "/status", "/open", "/a//b"] {
            stack.check(target, key);
        }
    }
    for path in ["/debit", "/refund"] {
        assert_eq!(stack.settle(path, "key").status, 200);
    }
    let request =
        ["X-Original-Method: GET", "X-Original-URI: /", "Authorization: Bearer key", "X-Request-Id: 1"];
    for _ in 0..2 {
        assert_eq!(send(stack.gateway, "GET", "/", &request).status, 200);
    }
    client.debit(&Debit::new("key", 1)).expect("an answer");
    client.refund(&Refund::new("key", 1)).expect("an answer");
    stack.daemon.connect().send(b"no frame of the protocol");
    send(stack.gateway, "GET", "/", &["X-Original-Method: GET", "X-Original-URI: /"]);
    send(stack.gateway, "GET", "/", &[]);
    stack.daemon.revoke(key_target("going"));
    stack.daemon.reload();
    stack.daemon.force_reload();
}
