//! Limits and hashes of keys through a running daemon: plans, owner limits, shadow limits, refunds,
//! long quotas, rotation, peppers and configuration changes.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::mode::Mode;
use crate::support::{
    Daemon, Export, RawClient, Received, Row, Setup, encode_verify, row, sha256_hex, wait_until,
};
use keyward_client::{Decision, Refund, Request};
use keyward_engine::pepper::Pepper;

const OLD: &[u8] = b"the old pepper, 128 bits of it";
const NEW: &[u8] = b"the new pepper, 128 bits of it";

/// A row whose key is hashed with a pepper.
fn peppered_row(pepper: &[u8], key: &str) -> Row {
    let hash = Pepper::new(pepper).expect("a pepper").hash(key.as_bytes());
    row(key).hash(const_hex::encode(hash))
}

fn start<const N: usize>(config: &str, rows: [Row; N]) -> Daemon {
    let daemon = Setup::new(Export::new(rows)).config(config).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

fn verify(daemon: &Daemon, request: &Request<'_>) -> Decision {
    daemon.client().verify(request).expect("an answer")
}

fn spend(daemon: &Daemon, key: &str, cost: u32) -> String {
    verify(daemon, &Request::new(key).cost(cost)).verdict().name().to_owned()
}

fn refund(daemon: &Daemon, refund: Refund<'_>) -> Decision {
    daemon.client().refund(&refund).expect("an answer")
}

/// The name of the limit with the least remaining units, and their number.
fn balance(daemon: &Daemon, key: &str) -> (String, u32) {
    let peek = verify(daemon, &Request::new(key).peek());
    let limit = peek.limit().expect("a limit");
    (limit.name.to_owned(), limit.remaining)
}

fn remaining(daemon: &Daemon, key: &str) -> u32 {
    balance(daemon, key).1
}

#[test]
fn limits_of_a_plan_apply_to_its_keys() {
    let daemon = start(
        r#"
        keys.default_plan = "free"
        plans.free.requests = "10/d"
        plans.pro.requests = "1000/d"
        "#,
        [
            row("a"),
            row("b").plan("pro"),
            row("c").plan("pro").limits("requests=5/d"),
            row("d").plan("pro").limits("exports=3/d"),
        ],
    );
    let decision = verify(&daemon, &Request::new("a"));
    assert_eq!(decision.plan(), Some("free"), "a key without a plan has the default plan");
    assert_eq!(balance(&daemon, "a"), ("requests".into(), 9));
    assert_eq!(balance(&daemon, "b"), ("requests".into(), 1000));
    assert_eq!(
        balance(&daemon, "c"),
        ("requests".into(), 5),
        "a row's limit replaces the plan's limit of that name"
    );
    assert_eq!(balance(&daemon, "d"), ("exports".into(), 3), "a limit of another name is added");
    assert_eq!(spend(&daemon, "d", 3), "ALLOWED");
    assert_eq!(spend(&daemon, "d", 1), "RATE_LIMITED");
}

#[test]
fn export_with_an_undefined_plan_is_refused() {
    let daemon = start("plans.pro.requests = '10/d'", [row("a").plan("pro")]);
    let refused = daemon.publish(Export::new([row("a").plan("pro"), row("b").plan("por")]));
    let error = refused.error.expect("refused");
    let place = if Mode::current().compiled { "policies, block 0" } else { "keys.csv:3" };
    assert!(error.contains(&format!("{place}: the plan \"por\" is not in the configuration")), "{error}");
    assert_eq!(daemon.verdict("a"), "ALLOWED");
}

#[test]
fn owner_limit_is_shared_by_the_keys_of_the_owner() {
    let daemon = start(
        r#"
        [plans.team]
        each = "8/d"
        all = { limit = "10/d", per = "owner" }
        "#,
        [
            row("a").owner("acme").plan("team"),
            row("b").owner("acme").plan("team"),
            row("c").owner("other").plan("team"),
            row("d").plan("team"),
        ],
    );
    assert_eq!(spend(&daemon, "a", 7), "ALLOWED");
    assert_eq!(balance(&daemon, "b"), ("all".into(), 3), "acme has spent 7 of 10");
    let refused = verify(&daemon, &Request::new("b").cost(4));
    assert_eq!((refused.verdict().name(), refused.limit().expect("a limit").name), ("RATE_LIMITED", "all"));
    assert_eq!(spend(&daemon, "b", 3), "ALLOWED", "the denial charged neither limit");
    assert_eq!(spend(&daemon, "a", 1), "RATE_LIMITED");
    assert_eq!(balance(&daemon, "c"), ("each".into(), 8), "another owner has a bucket of its own");
    assert_eq!(spend(&daemon, "d", 8), "ALLOWED", "a key without an owner shares with no other key");
}

#[test]
fn plan_change_does_not_refill_an_owner_quota() {
    let plans = r#"
        plans.small.quota = { limit = "10/d", per = "owner" }
        plans.large.quota = { limit = "100/d", per = "owner" }
    "#;
    let daemon = start(plans, [row("a").owner("acme").plan("small"), row("b").owner("acme").plan("small")]);
    assert_eq!(spend(&daemon, "a", 8), "ALLOWED");
    daemon.publish(Export::new([row("a").owner("acme").plan("large"), row("b").owner("acme").plan("large")]));
    assert_eq!(remaining(&daemon, "a"), 2, "the balance moves with the owner");
    daemon.publish(Export::new([row("a").owner("acme").plan("small"), row("b").owner("acme").plan("small")]));
    assert_eq!(remaining(&daemon, "b"), 2, "and back again");
}

#[test]
fn shadow_limit_reports_but_does_not_deny() {
    let daemon = start(
        r#"
        [plans.trial]
        hard = "10/d"
        soft = { limit = "3/d", shadow = true }
        "#,
        [row("a").plan("trial"), row("b").plan("trial")],
    );
    for _ in 0..3 {
        let decision = verify(&daemon, &Request::new("a"));
        assert_eq!((decision.is_allowed(), decision.shadow_limit()), (true, None));
    }
    let decision = verify(&daemon, &Request::new("a"));
    assert!(decision.is_allowed());
    assert_eq!(decision.shadow_limit(), Some("soft"), "it would have denied the request");
    let limit = decision.limit().expect("a limit");
    assert_eq!((limit.name, limit.remaining), ("hard", 6), "the enforced limit is reported");
    let decision = verify(&daemon, &Request::new("b").cost(5));
    assert_eq!(
        (decision.is_allowed(), decision.shadow_limit()),
        (true, Some("soft")),
        "a cost over its burst"
    );
    assert_eq!(spend(&daemon, "a", 7), "RATE_LIMITED", "the enforced limit still applies");
}

#[test]
fn refund_returns_at_most_what_was_charged() {
    let daemon = start("", [row("a").limits("small=5/d;large=10/d"), row("b").limits("5/d")]);
    assert_eq!(spend(&daemon, "a", 4), "ALLOWED");
    let decision = refund(&daemon, Refund::new("a", 3));
    let limit = decision.limit().expect("a limit");
    assert_eq!((decision.verdict().name(), limit.name, limit.remaining), ("ALLOWED", "small", 4));
    refund(&daemon, Refund::new("a", 1000));
    assert_eq!(balance(&daemon, "a"), ("small".into(), 5), "never above the burst");
    assert_eq!(spend(&daemon, "a", 5), "ALLOWED");
    refund(&daemon, Refund::new("a", 0).cost_of("large", 5));
    assert_eq!(balance(&daemon, "a"), ("small".into(), 0), "only the named limit is refunded");
    let elsewhere = refund(&daemon, Refund::new("a", 0).cost_of("default", 5));
    assert!(elsewhere.is_allowed(), "a limit that another key has");
    let nowhere = refund(&daemon, Refund::new("a", 5).cost_of("other", 5));
    assert_eq!(nowhere.verdict().name(), "UNKNOWN_LIMIT", "a limit that no key has");
    assert_eq!(remaining(&daemon, "a"), 0);
    assert_eq!(remaining(&daemon, "b"), 5, "another key is unaffected");
    let unknown = refund(&daemon, Refund::new("unlisted", 1));
    assert_eq!(unknown.verdict().name(), "UNKNOWN_KEY");
}

#[test]
fn refunds_are_answered_in_request_order() {
    let daemon = start("", [row("a").limits("2/d")]);
    let encode_refund = |request_id| {
        let mut frame = Vec::new();
        let credential =
            keyward_protocol::Credential::Digest(const_hex::decode_to_array(sha256_hex("a")).expect("hex"));
        let refund = keyward_protocol::Refund::new(request_id, 1, credential);
        refund.encode(&mut frame).expect("within all limits");
        frame
    };
    let mut connection: RawClient = daemon.connect();
    let frames = [
        encode_verify(1, "a"),
        encode_verify(2, "a"),
        encode_verify(3, "a"),
        encode_refund(4),
        encode_verify(5, "a"),
        encode_verify(6, "a"),
        encode_refund(7),
    ];
    connection.send(&frames.concat());
    let answers: Vec<(u32, &str)> = (0..frames.len())
        .map(|_| match connection.receive() {
            Received::Answer { request_id, verdict, .. } => (request_id, verdict),
            other => panic!("{other:?}"),
        })
        .collect();
    let (allowed, limited) = ("ALLOWED", "RATE_LIMITED");
    assert_eq!(
        answers,
        [(1, allowed), (2, allowed), (3, limited), (4, allowed), (5, allowed), (6, limited), (7, allowed)]
    );
    assert_eq!(daemon.status().verdicts["ALLOWED"], 3, "a refund is not counted as a verdict");
}

#[test]
fn long_quota_is_exact() {
    let daemon = start("", [row("day").limits("10000/d"), row("month").limits("1000000/30d")]);
    assert_eq!(spend(&daemon, "day", 10_000), "ALLOWED", "the whole burst at once");
    let refused = verify(&daemon, &Request::new("day"));
    let limit = refused.limit().expect("a limit");
    assert_eq!((refused.verdict().name(), limit.limit, limit.remaining), ("RATE_LIMITED", 10_000, 0));
    let within = |got: Duration, exact: Duration| got <= exact && exact - got < Duration::from_secs(60);
    assert!(within(limit.retry_after, Duration::from_millis(8_640)), "one in 8.64 s: {limit:?}");
    assert!(within(limit.reset, Duration::from_secs(86_400)), "full after a day: {limit:?}");
    assert_eq!(spend(&daemon, "month", 999_999), "ALLOWED");
    assert_eq!(remaining(&daemon, "month"), 1);
    let decision = verify(&daemon, &Request::new("month").cost(1_000_001));
    assert_eq!(decision.verdict().name(), "COST_EXCEEDS_BURST", "waiting would not help");
    assert_eq!(remaining(&daemon, "month"), 1, "the denial charged nothing");
}

#[test]
fn rotated_key_overlaps_and_shares_one_bucket() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let daemon = start("", [row("old").id("k").limits("10/d")]);
    assert_eq!(spend(&daemon, "old", 4), "ALLOWED");
    let end = now() + 3;
    let old = row("old").id("k").limits("10/d").expires_at(end.to_string());
    // One connection for the whole rotation.
    let mut client = daemon.client();
    let mut peek = |key| client.verify(&Request::new(key).peek()).expect("an answer");
    assert!(peek("old").is_allowed());
    daemon.publish(Export::new([old, row("new").id("k").limits("10/d")]));
    for key in ["old", "new"] {
        let decision = peek(key);
        let remaining = decision.limit().expect("a limit").remaining;
        let answer = (decision.verdict().name(), decision.key_id(), remaining);
        assert_eq!(answer, ("ALLOWED", Some("k"), 6), "both spend from one bucket");
    }
    wait_until("the old row to expire without a reload", || {
        let before = now();
        let verdict = peek("old").verdict().name();
        match verdict {
            "ALLOWED" => assert!(before < end, "expires to the second"),
            "EXPIRED" => assert!(now() >= end, "expires to the second"),
            other => panic!("{other}"),
        }
        verdict == "EXPIRED"
    });
    assert_eq!(spend(&daemon, "new", 1), "ALLOWED", "the new row is unaffected");
}

#[test]
fn changed_limit_neither_refills_nor_resets_its_bucket() {
    let daemon = start("plans.p.requests = '10/d'", [row("a").plan("p")]);
    assert_eq!(spend(&daemon, "a", 4), "ALLOWED");
    let config = daemon.setup.path("keyward.toml");
    let change = |rate: &str| {
        fs::write(&config, format!("plans.p.requests = '{rate}'\n")).expect("the configuration");
        let reload = daemon.reload();
        assert!(reload.accepted, "{reload:?}");
    };
    change("100/d");
    assert_eq!(remaining(&daemon, "a"), 6, "a larger plan does not fill the bucket");
    change("3/d");
    assert_eq!(remaining(&daemon, "a"), 3, "a smaller plan clamps it");
    change("100/d");
    assert_eq!(remaining(&daemon, "a"), 3, "clamped units do not return");
}

#[test]
fn invalid_configuration_changes_nothing() {
    let daemon = start("plans.p.requests = '10/d'", [row("a").plan("p")]);
    fs::write(daemon.setup.path("keyward.toml"), "plans.p.requests = '10/y'\n").expect("the configuration");
    let reload = daemon.reload();
    let error = reload.error.expect("refused");
    assert!(error.contains("keyward.toml:1:20: plans.p.requests: \"y\" is not a period"), "{error}");
    assert_eq!(reload.generation, 1);
    assert_eq!(remaining(&daemon, "a"), 10);
}

#[test]
fn digests_are_refused_with_a_pepper() {
    let setup = Setup::without_export();
    let (old, new) = (setup.write_secret("old", OLD), setup.write_secret("new", NEW));
    setup.write_export(Export::new([peppered_row(OLD, "a"), peppered_row(NEW, "b"), row("plain")]));
    let both = format!("keys.pepper_file = '{new}'\nkeys.previous_pepper_file = '{old}'");
    let daemon = setup.config(&both).start();

    assert_eq!(daemon.verdict("a"), "ALLOWED", "hashed with the pepper that is being replaced");
    assert_eq!(daemon.verdict("b"), "ALLOWED", "hashed with the new one");
    assert_eq!(daemon.verdict("plain"), "UNKNOWN_KEY", "a plain hash does not match");
    let mut connection = daemon.connect();
    connection.send(&encode_verify(7, "plain"));
    let refused = Received::Error { request_id: 7, code: 10, detail: 2, closing: false };
    assert_eq!(
        connection.receive(),
        refused,
        "a digest is refused, and the error names the accepted credential"
    );

    fs::write(daemon.setup.path("keyward.toml"), format!("keys.pepper_file = '{new}'\n")).expect("writes");
    assert!(daemon.force_reload().accepted);
    assert_eq!(daemon.verdict("a"), "UNKNOWN_KEY", "the old pepper is gone");
    assert_eq!(daemon.verdict("b"), "ALLOWED");
    for file in ["log", "keyward.toml"] {
        let text = fs::read(daemon.setup.path(file)).expect("a file");
        assert!(!text.windows(NEW.len()).any(|part| part == NEW), "{file} holds the pepper");
    }
}

#[test]
fn pepper_change_that_strands_keys_is_refused_unless_forced() {
    let setup = Setup::without_export();
    let (old, new) = (setup.write_secret("old", OLD), setup.write_secret("new", NEW));
    setup.write_export(Export::new([peppered_row(OLD, "a")]));
    let daemon = setup.config(&format!("keys.pepper_file = '{old}'")).start();
    assert_eq!(daemon.verdict("a"), "ALLOWED");

    let configure = |text: String| fs::write(daemon.setup.path("keyward.toml"), text).expect("writes");
    for stranding in [format!("keys.pepper_file = '{new}'\n"), String::new()] {
        configure(stranding);
        let refused = daemon.reload().error.expect("refused");
        assert!(
            refused.contains("1 of 1 keys (\"a\") are served already, and were hashed with a pepper"),
            "{refused}"
        );
        assert_eq!(daemon.verdict("a"), "ALLOWED");
        let reported = daemon.status().configuration_refused.expect("reported until it is corrected");
        assert_eq!(reported, refused);
    }
    configure(format!("keys.pepper_file = '{new}'\nkeys.previous_pepper_file = '{old}'\n"));
    assert!(daemon.reload().accepted);
    assert_eq!((daemon.verdict("a").as_str(), daemon.status().configuration_refused), ("ALLOWED", None));
    configure(format!("keys.pepper_file = '{new}'\n"));
    assert!(daemon.force_reload().accepted, "forced by the operator");
    assert_eq!(daemon.verdict("a"), "UNKNOWN_KEY");
}

/// Only the raw key shows which of two peppers a row is hashed with, so a row whose key has not
/// been used yet may need either.
#[test]
fn previous_pepper_can_be_removed_when_no_row_may_need_it() {
    let setup = Setup::without_export();
    let (old, new) = (setup.write_secret("old", OLD), setup.write_secret("new", NEW));
    // Revoked and expired rows need no pepper.
    let export = |pepper_of_a: &[u8]| {
        Export::new([
            peppered_row(pepper_of_a, "a"),
            peppered_row(NEW, "b"),
            peppered_row(NEW, "c"),
            peppered_row(OLD, "gone").status("revoked"),
            peppered_row(OLD, "past").expires_at("1000000000"),
        ])
    };
    setup.write_export(export(OLD));
    let both = format!("keys.pepper_file = '{new}'\nkeys.previous_pepper_file = '{old}'\n");
    let only_new = format!("keys.pepper_file = '{new}'\n");
    let daemon = setup.config(&both).start();
    let configure = |text: &str| fs::write(daemon.setup.path("keyward.toml"), text).expect("writes");
    // A compiled export orders its rows differently, so the error may list the keys in any order.
    let assert_refused = |keys: &[&str], reason: &str| {
        let error = daemon.reload().error.expect("refused");
        let count = format!("{} of 5 keys (", keys.len());
        let names = |key: &&str| error.contains(&format!("\"{key}\""));
        assert!(error.contains(&count) && keys.iter().all(names) && error.contains(reason), "{error}");
        let check = daemon.run_keyward(&["check", "--daemon"]);
        assert!(check.code == Some(1) && check.stderr.contains(&error), "{check:?}");
    };

    configure(&only_new);
    assert_refused(&["a", "b", "c"], "may have been hashed with a pepper");
    assert_eq!(daemon.verdict("b"), "ALLOWED");
    assert_refused(&["a", "c"], "may have been hashed with a pepper");
    assert_eq!([daemon.verdict("c"), daemon.verdict("a")], ["ALLOWED"; 2]);
    assert_refused(&["a"], "are served already, and were hashed with a pepper");
    configure(&format!("keys.pepper_file = '{old}'\n"));
    assert_refused(&["b", "c"], "are served already, and were hashed with a pepper");

    configure(&both);
    assert!(daemon.publish(export(NEW)).accepted);
    configure(&only_new);
    assert_refused(&["a"], "may have been hashed with a pepper");
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    let reload = daemon.reload();
    assert!(reload.accepted, "{:?}", reload.error);
    assert_eq!(daemon.verdicts(["a", "b", "c"]), ["ALLOWED"; 3]);
}

/// What was found with the current pepper is found with the previous one afterwards.
#[test]
fn exchanged_peppers_forget_which_of_them_found_a_row() {
    let setup = Setup::without_export();
    let (old, new) = (setup.write_secret("old", OLD), setup.write_secret("new", NEW));
    setup.write_export(Export::new([peppered_row(OLD, "a"), peppered_row(NEW, "b")]));
    let config = |current: &str, previous: &str| {
        format!("keys.pepper_file = '{current}'\nkeys.previous_pepper_file = '{previous}'\n")
    };
    let daemon = setup.config(&config(&new, &old)).start();
    let configure = |text: &str| fs::write(daemon.setup.path("keyward.toml"), text).expect("writes");
    assert_eq!(daemon.verdicts(["a", "b"]), ["ALLOWED"; 2]);
    configure(&config(&old, &new));
    assert!(daemon.reload().accepted);
    configure(&format!("keys.pepper_file = '{old}'\n"));
    let error = daemon.reload().error.expect("refused");
    assert!(error.contains("\"b\"") && error.contains("may have been hashed with a pepper"), "{error}");
    configure(&config(&old, &new));
    assert_eq!(daemon.verdicts(["a", "b"]), ["ALLOWED"; 2]);
}

/// Also over a restart.
#[test]
fn moving_keys_between_plans_does_not_refill_an_owner_quota() {
    let plans = "[plans.a]\nquota = { limit = '5/d', per = 'owner' }\n[plans.b]\nquota = { limit = '5/d', per = 'owner' }\n\
                 [plans.c]\nquota = { limit = '7/d', per = 'owner' }\n";
    let on = |one: &str, two: &str| {
        Export::new([row("one").owner("acme").plan(one), row("two").owner("acme").plan(two)])
    };
    let mut daemon = start(plans, [row("one").owner("acme").plan("a"), row("two").owner("acme").plan("a")]);
    assert_eq!(spend(&daemon, "one", 5), "ALLOWED");
    for (one, two) in [("b", "b"), ("a", "b"), ("a", "a"), ("b", "c"), ("a", "c"), ("c", "c"), ("a", "a")] {
        assert!(daemon.publish(on(one, two)).accepted);
        for key in ["one", "two"] {
            assert_eq!(spend(&daemon, key, 1), "RATE_LIMITED", "{key}, with plans {one} and {two}");
        }
    }
    daemon.stop();
    daemon.setup.write_export(on("b", "b"));
    let daemon = daemon.kill_and_restart();
    assert_eq!(spend(&daemon, "one", 1), "RATE_LIMITED", "after a plan change during a restart");
}

/// Rows with the same `key_id` are charged under the plan of the first row.
#[test]
fn rotated_rows_on_two_plans_share_one_bucket() {
    let plans = "[plans.a]\nquota = { limit = '5/d', per = 'owner' }\n[plans.b]\nquota = { limit = '5/d', per = 'owner' }\n";
    let rows = |first: &str, second: &str| {
        Export::new([
            row("old").id("k").owner("acme").plan(first),
            row("new").id("k").owner("acme").plan(second),
        ])
    };
    let daemon = start(
        plans,
        [row("old").id("k").owner("acme").plan("a"), row("new").id("k").owner("acme").plan("a")],
    );
    assert_eq!(spend(&daemon, "old", 5), "ALLOWED");
    let buckets = daemon.status().buckets;
    for (first, second) in [("b", "a"), ("a", "b"), ("a", "a"), ("b", "a")] {
        assert!(daemon.publish(rows(first, second)).accepted);
        assert_eq!(spend(&daemon, "new", 1), "RATE_LIMITED", "plans {first} and {second}");
    }
    assert_eq!(daemon.status().buckets, buckets, "no bucket is leaked");
}

/// Two plans that define the same owner limit differently, and one without it.
const OWNER_PLANS: &str = "source.max_shrink = 1.0\nplans.p1.own = { limit = '30/d', per = 'owner' }\n\
                           plans.p2.own = { limit = '20/d', per = 'owner' }\nplans.p3.other = '1000/s'\n";

/// The keys `one` and `two` of one owner, on these plans. A key without a plan is not listed.
fn owner_export(plan_of_one: &str, plan_of_two: &str) -> Export {
    let keys = [("one", plan_of_one), ("two", plan_of_two)];
    let listed = keys.into_iter().filter(|(_, plan)| !plan.is_empty());
    Export::of(["unrelated"])
        .columns(["owner", "plan"])
        .rows(listed.map(|(key, plan)| row(key).owner("acme").plan(plan)))
}

fn start_owner(plan_of_one: &str, plan_of_two: &str) -> Daemon {
    Setup::new(owner_export(plan_of_one, plan_of_two)).config(OWNER_PLANS).start()
}

/// A daemon whose owner has spent the quota of both plans.
fn start_spent() -> Daemon {
    let daemon = start_owner("p1", "p2");
    assert_eq!([spend(&daemon, "one", 30), spend(&daemon, "two", 20)], ["ALLOWED"; 2]);
    daemon
}

#[test]
fn keys_returning_on_other_plans_do_not_refill_an_owner_quota() {
    // The plans in between, and those after them.
    for (between, then) in [(("p3", "p3"), ("p1", "p3")), (("", ""), ("p1", "")), (("", ""), ("", "p2"))] {
        let daemon = start_spent();
        daemon.publish(owner_export(between.0, between.1));
        daemon.publish(owner_export(then.0, then.1));
        let key = if then.1 == "p2" { "two" } else { "one" };
        assert_eq!(remaining(&daemon, key), 0, "{between:?}, then {then:?}");
    }
    let daemon = start_owner("p1", "");
    assert_eq!(spend(&daemon, "one", 30), "ALLOWED");
    daemon.publish(owner_export("p3", ""));
    daemon.publish(owner_export("p1", "p2"));
    assert_eq!((remaining(&daemon, "one"), remaining(&daemon, "two")), (0, 0), "two plans after one");
    // A balance that fills the smaller limit does not fill the larger one.
    let daemon = start_owner("p1", "");
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    for plan in ["p2", "p3", "p1"] {
        daemon.publish(owner_export(plan, ""));
    }
    assert_eq!(remaining(&daemon, "one"), 20, "by way of a smaller limit");
}

#[test]
fn plan_changes_while_the_daemon_is_down_do_not_refill_an_owner_quota() {
    let changed = |from: &str, to: &str| OWNER_PLANS.replace(from, to);
    let cases = [
        (owner_export("p1", ""), OWNER_PLANS.to_owned(), "a removed key"),
        (owner_export("p1", "p2"), changed("30/d", "31/d"), "another rate"),
        (owner_export("p1", "p2"), changed("30/d", "20/d"), "equal rates of both plans"),
        (owner_export("p1", "p2"), changed("30/d", "40/d burst 30"), "a faster refill"),
        (owner_export("p1", "p2"), OWNER_PLANS.to_owned(), "no change"),
    ];
    for (export, plans, what) in cases {
        let mut daemon = start_spent();
        daemon.stop();
        daemon.setup.write_export(&export);
        daemon.setup.replace_config(&plans);
        let daemon = daemon.kill_and_restart();
        assert_eq!(remaining(&daemon, "one"), 0, "{what}: {}", daemon.log());
        if export.to_csv().contains("p2") {
            assert_eq!(remaining(&daemon, "two"), 0, "{what}: {}", daemon.log());
        }
    }
}
