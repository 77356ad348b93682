//! What a key may carry, through the real socket: plans, limits of owners, limits on trial, refunds, long quotas, rotation,
//! peppers, and a configuration that changes. Each test is the rule that it is named for, told as an operator would tell it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::mode::Mode;
use crate::support::{Daemon, RawClient, Received, Setup, encode_verify, keyward, sha256_hex, wait_for};
use keyward_client::{Decision, Refund, Request};
use keyward_engine::pepper::Pepper;

/// An export from rows such as `key=key_id owner=acme plan=pro`: what is not said is empty.
fn export(rows: &[&str]) -> String {
    const FIELDS: [&str; 8] =
        ["key_hash", "key_id", "owner", "plan", "status", "expires_at", "environment", "limits"];
    let mut text = FIELDS.join(",") + "\n";
    for row in rows {
        let of = |field: &str| {
            let value = row.split(' ').find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
            value.unwrap_or_default().replace('~', " ")
        };
        let (key, key_id) = row.split(' ').next().and_then(|word| word.split_once('=')).expect("key=id");
        let rest = FIELDS[2..].iter().map(|field| of(field));
        text += &[sha256_hex(key), key_id.to_owned()].into_iter().chain(rest).collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    text
}

fn serve(config: &str, rows: &[&str]) -> Daemon {
    let daemon = Setup::new(&export(rows)).config(config).start();
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

/// What is left of the limit with the least remaining, and its name.
fn balance(daemon: &Daemon, key: &str) -> (String, u32) {
    let peek = verify(daemon, &Request::new(key).peek());
    let limit = peek.limit().expect("a limit");
    (limit.name.to_owned(), limit.remaining)
}

fn left(daemon: &Daemon, key: &str) -> u32 {
    balance(daemon, key).1
}

#[test]
fn a_plan_gives_its_limits_to_its_keys() {
    let daemon = serve(
        r#"
        keys.default_plan = "free"
        plans.free.requests = "10/d"
        plans.pro.requests = "1000/d"
        "#,
        &["a=a", "b=b plan=pro", "c=c plan=pro limits=requests=5/d", "d=d plan=pro limits=exports=3/d"],
    );
    let decision = verify(&daemon, &Request::new("a"));
    assert_eq!(decision.plan(), Some("free"), "who is on no plan is on the default one");
    assert_eq!(balance(&daemon, "a"), ("requests".into(), 9));
    assert_eq!(balance(&daemon, "b"), ("requests".into(), 1000));
    assert_eq!(balance(&daemon, "c"), ("requests".into(), 5), "a row's own limit takes the plan's place");
    assert_eq!(balance(&daemon, "d"), ("exports".into(), 3), "one of another name comes on top");
    assert_eq!(spend(&daemon, "d", 3), "ALLOWED");
    assert_eq!(spend(&daemon, "d", 1), "RATE_LIMITED");
}

#[test]
fn a_plan_that_nobody_defined_is_a_bad_export() {
    let daemon = serve("plans.pro.requests = '10/d'", &["a=a plan=pro"]);
    let refused = daemon.publish(&export(&["a=a plan=pro", "b=b plan=por"]));
    let error = refused.error.expect("refused");
    let place = if Mode::current().compiled { "policies, block 0" } else { "keys.csv:3" };
    assert!(error.contains(&format!("{place}: the plan \"por\" is not in the configuration")), "{error}");
    assert_eq!(daemon.verdict("a"), "ALLOWED");
}

#[test]
fn the_keys_of_an_owner_share_a_limit() {
    let daemon = serve(
        r#"
        [plans.team]
        each = "8/d"
        all = { rate = "10/d", per = "owner" }
        "#,
        &[
            "a=a owner=acme plan=team",
            "b=b owner=acme plan=team",
            "c=c owner=other plan=team",
            "d=d plan=team",
        ],
    );
    assert_eq!(spend(&daemon, "a", 7), "ALLOWED");
    assert_eq!(balance(&daemon, "b"), ("all".into(), 3), "acme has spent 7 of 10");
    let refused = verify(&daemon, &Request::new("b").cost(4));
    assert_eq!((refused.verdict().name(), refused.limit().expect("a limit").name), ("RATE_LIMITED", "all"));
    assert_eq!(spend(&daemon, "b", 3), "ALLOWED", "the refusal has charged neither limit");
    assert_eq!(spend(&daemon, "a", 1), "RATE_LIMITED");
    assert_eq!(balance(&daemon, "c"), ("each".into(), 8), "another owner has its own");
    assert_eq!(spend(&daemon, "d", 8), "ALLOWED", "a key without an owner is an owner of its own");
}

#[test]
fn an_owner_who_changes_plans_is_not_given_a_quota_again() {
    let plans = r#"
        plans.small.quota = { rate = "10/d", per = "owner" }
        plans.large.quota = { rate = "100/d", per = "owner" }
    "#;
    let daemon = serve(plans, &["a=a owner=acme plan=small", "b=b owner=acme plan=small"]);
    assert_eq!(spend(&daemon, "a", 8), "ALLOWED");
    daemon.publish(&export(&["a=a owner=acme plan=large", "b=b owner=acme plan=large"]));
    assert_eq!(left(&daemon, "a"), 2, "the level moves with the owner");
    daemon.publish(&export(&["a=a owner=acme plan=small", "b=b owner=acme plan=small"]));
    assert_eq!(left(&daemon, "b"), 2, "and back again");
}

#[test]
fn a_limit_in_shadow_reports_and_refuses_nobody() {
    let daemon = serve(
        r#"
        [plans.trial]
        hard = "10/d"
        soft = { rate = "3/d", shadow = true }
        "#,
        &["a=a plan=trial", "b=b plan=trial"],
    );
    for _ in 0..3 {
        let decision = verify(&daemon, &Request::new("a"));
        assert_eq!((decision.is_allowed(), decision.shadow_limit()), (true, None));
    }
    let decision = verify(&daemon, &Request::new("a"));
    assert!(decision.is_allowed());
    assert_eq!(decision.shadow_limit(), Some("soft"), "it would have refused");
    let limit = decision.limit().expect("a limit");
    assert_eq!((limit.name, limit.remaining), ("hard", 6), "the enforced one is the one that is named");
    let decision = verify(&daemon, &Request::new("b").cost(5));
    assert_eq!(
        (decision.is_allowed(), decision.shadow_limit()),
        (true, Some("soft")),
        "a cost over its burst"
    );
    assert_eq!(spend(&daemon, "a", 7), "RATE_LIMITED", "it hides no enforced one");
}

#[test]
fn a_refund_gives_back_what_was_charged_and_no_more() {
    let daemon = serve("", &["a=a limits=small=5/d;large=10/d", "b=b limits=5/d"]);
    assert_eq!(spend(&daemon, "a", 4), "ALLOWED");
    let decision = refund(&daemon, Refund::new("a", 3));
    let limit = decision.limit().expect("a limit");
    assert_eq!((decision.verdict().name(), limit.name, limit.remaining), ("ALLOWED", "small", 4));
    refund(&daemon, Refund::new("a", 1000));
    assert_eq!(balance(&daemon, "a"), ("small".into(), 5), "never above the burst");
    assert_eq!(spend(&daemon, "a", 5), "ALLOWED");
    refund(&daemon, Refund::new("a", 5).limit("large"));
    assert_eq!(balance(&daemon, "a"), ("small".into(), 0), "only the limit that is named");
    let nowhere = refund(&daemon, Refund::new("a", 5).limit("other"));
    assert_eq!((nowhere.is_allowed(), nowhere.limit()), (true, None), "a limit that it does not have");
    assert_eq!(left(&daemon, "a"), 0);
    assert_eq!(left(&daemon, "b"), 5, "another key has nothing to do with it");
    let unknown = refund(&daemon, Refund::new("nobody", 1));
    assert_eq!(unknown.verdict().name(), "UNKNOWN_KEY");
}

#[test]
fn refunds_are_answered_in_the_order_of_the_requests_around_them() {
    let daemon = serve("", &["a=a limits=2/d"]);
    let give_back = |request_id| {
        let mut frame = Vec::new();
        let credential =
            keyward_protocol::Credential::Digest(const_hex::decode_to_array(sha256_hex("a")).expect("hex"));
        let refund = keyward_protocol::Refund { request_id, cost: 1, credential, limit: None };
        refund.encode(&mut frame).expect("within all limits");
        frame
    };
    let mut connection: RawClient = daemon.connect();
    let frames = [
        encode_verify(1, "a"),
        encode_verify(2, "a"),
        encode_verify(3, "a"),
        give_back(4),
        encode_verify(5, "a"),
        encode_verify(6, "a"),
        give_back(7),
    ];
    connection.send(&frames.concat());
    let said: Vec<(u32, &str)> = (0..frames.len())
        .map(|_| match connection.receive() {
            Received::Answer { request_id, verdict, .. } => (request_id, verdict),
            other => panic!("{other:?}"),
        })
        .collect();
    let (allowed, limited) = ("ALLOWED", "RATE_LIMITED");
    assert_eq!(
        said,
        [(1, allowed), (2, allowed), (3, limited), (4, allowed), (5, allowed), (6, limited), (7, allowed)]
    );
    assert_eq!(daemon.status().verdicts["ALLOWED"], 3, "a refund is no verdict");
}

#[test]
fn a_long_quota_is_exact() {
    let daemon = serve("", &["day=day limits=10000/d", "month=month limits=1000000/30d"]);
    assert_eq!(spend(&daemon, "day", 10_000), "ALLOWED", "all of it at once");
    let refused = verify(&daemon, &Request::new("day"));
    let limit = refused.limit().expect("a limit");
    assert_eq!((refused.verdict().name(), limit.limit, limit.remaining), ("RATE_LIMITED", 10_000, 0));
    let within = |got: Duration, exact: Duration| got <= exact && exact - got < Duration::from_secs(60);
    assert!(within(limit.retry_after, Duration::from_millis(8_640)), "one in 8.64 s: {limit:?}");
    assert!(within(limit.reset, Duration::from_secs(86_400)), "full after a day: {limit:?}");
    assert_eq!(spend(&daemon, "month", 999_999), "ALLOWED");
    assert_eq!(left(&daemon, "month"), 1);
    let decision = verify(&daemon, &Request::new("month").cost(1_000_001));
    assert_eq!(decision.verdict().name(), "COST_EXCEEDS_BURST", "waiting would be of no use");
    assert_eq!(left(&daemon, "month"), 1, "and it has charged nothing");
}

#[test]
fn a_key_is_rotated_with_overlap_and_without_a_new_quota() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let daemon = serve("", &["old=k limits=10/d"]);
    assert_eq!(spend(&daemon, "old", 4), "ALLOWED");
    let end = now() + 3;
    let old = format!("old=k limits=10/d expires_at={end}");
    // Connected before anything changes.
    let mut client = daemon.client();
    let mut peek = |key| client.verify(&Request::new(key).peek()).expect("an answer");
    assert!(peek("old").is_allowed());
    daemon.publish(&export(&[&old, "new=k limits=10/d"]));
    for key in ["old", "new"] {
        let decision = peek(key);
        let left = decision.limit().expect("a limit").remaining;
        let said = (decision.verdict().name(), decision.key_id(), left);
        assert_eq!(said, ("ALLOWED", Some("k"), 6), "both spend from one bucket");
    }
    wait_for("the old one's end, which needs no reload", || {
        let before = now();
        let verdict = peek("old").verdict().name();
        match verdict {
            "ALLOWED" => assert!(before < end, "to the second"),
            "EXPIRED" => assert!(now() >= end, "to the second"),
            other => panic!("{other}"),
        }
        (verdict == "EXPIRED").then_some(())
    });
    assert_eq!(spend(&daemon, "new", 1), "ALLOWED", "the new one goes on");
}

#[test]
fn changed_limits_neither_refill_nor_reset() {
    let daemon = serve("plans.p.requests = '10/d'", &["a=a plan=p"]);
    assert_eq!(spend(&daemon, "a", 4), "ALLOWED");
    let config = daemon.setup.path("keyward.toml");
    let change = |rate: &str| {
        fs::write(&config, format!("plans.p.requests = '{rate}'\n")).expect("the configuration");
        let reload = daemon.reload();
        assert!(reload.accepted, "{reload:?}");
    };
    change("100/d");
    assert_eq!(left(&daemon, "a"), 6, "a larger plan does not fill the bucket");
    change("3/d");
    assert_eq!(left(&daemon, "a"), 3, "a smaller one clamps it");
    change("100/d");
    assert_eq!(left(&daemon, "a"), 3, "and what was clamped does not come back");
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing() {
    let daemon = serve("plans.p.requests = '10/d'", &["a=a plan=p"]);
    fs::write(daemon.setup.path("keyward.toml"), "plans.p.requests = '10/y'\n").expect("the configuration");
    let reload = daemon.reload();
    let error = reload.error.expect("refused");
    assert!(error.contains("keyward.toml:1:20: plans.p.requests: \"y\" is not a period"), "{error}");
    assert_eq!(reload.generation, 1);
    assert_eq!(left(&daemon, "a"), 10);
}

#[test]
fn with_a_pepper_a_leaked_export_is_of_no_use() {
    const OLD: &[u8] = b"the old pepper, 128 bits of it";
    const NEW: &[u8] = b"the new pepper, 128 bits of it";
    let setup = Setup::without_export();
    let secret = |name: &str, secret: &[u8]| {
        let path = setup.path(name);
        fs::write(&path, secret).expect("a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path.display().to_string()
    };
    let (old, new) = (secret("old", OLD), secret("new", NEW));
    let row = |pepper: &[u8], key: &str| {
        let hash = Pepper::new(pepper).expect("a pepper").hash(key.as_bytes());
        format!("{},{key}\n", const_hex::encode(hash))
    };
    let rows = row(OLD, "a") + &row(NEW, "b") + &format!("{},plain\n", sha256_hex("plain"));
    setup.write_export(&format!("key_hash,key_id\n{rows}"));
    let both = format!("keys.pepper_file = '{new}'\nkeys.previous_pepper_file = '{old}'");
    let daemon = setup.config(&both).start();

    assert_eq!(daemon.verdict("a"), "ALLOWED", "hashed with the pepper that is being replaced");
    assert_eq!(daemon.verdict("b"), "ALLOWED", "hashed with the new one");
    assert_eq!(daemon.verdict("plain"), "UNKNOWN_KEY", "a plain hash in the export opens nothing");
    let mut connection = daemon.connect();
    connection.send(&encode_verify(7, "plain"));
    let refused = Received::Error { request_id: 7, code: 10, detail: 2, closing: false };
    assert_eq!(connection.receive(), refused, "a digest is refused, and the answer says what is wanted");

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
fn another_pepper_does_not_strand_the_keys_of_the_old_one() {
    let setup = Setup::without_export();
    let secret = |name: &str| {
        let path = setup.path(name);
        fs::write(&path, format!("the {name} pepper, 128 bits of it")).expect("a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path.display().to_string()
    };
    let (old, new) = (secret("old"), secret("new"));
    let hash = Pepper::new(b"the old pepper, 128 bits of it").expect("a pepper").hash(b"a");
    setup.write_export(&format!("key_hash,key_id\n{},a\n", const_hex::encode(hash)));
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
        let told = daemon.status().configuration_refused.expect("told until it is mended");
        assert_eq!(told, refused);
    }
    configure(format!("keys.pepper_file = '{new}'\nkeys.previous_pepper_file = '{old}'\n"));
    assert!(daemon.reload().accepted);
    assert_eq!((daemon.verdict("a").as_str(), daemon.status().configuration_refused), ("ALLOWED", None));
    configure(format!("keys.pepper_file = '{new}'\n"));
    assert!(daemon.force_reload().accepted, "where it is meant");
    assert_eq!(daemon.verdict("a"), "UNKNOWN_KEY");
}

/// Which of two peppers a row is hashed with nothing tells but the key: so what has not been asked for yet may need either.
#[test]
fn the_previous_pepper_goes_when_no_key_can_need_it_any_more() {
    let setup = Setup::without_export();
    let secret = |name: &str| {
        let path = setup.path(name);
        fs::write(&path, format!("the {name} pepper, 128 bits of it")).expect("a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path.display().to_string()
    };
    let (old, new) = (secret("old"), secret("new"));
    let rows = |rows: &[(&str, &str, &str)]| {
        rows.iter().fold("key_hash,key_id,status,expires_at\n".to_owned(), |text, (pepper, key, rest)| {
            let pepper = Pepper::new(format!("the {pepper} pepper, 128 bits of it").as_bytes());
            let hash = const_hex::encode(pepper.expect("a pepper").hash(key.as_bytes()));
            text + &format!("{hash},{key},{rest}\n")
        })
    };
    // What is never allowed again does not hold a pepper back.
    let others =
        [("new", "b", ","), ("new", "c", ","), ("old", "gone", "revoked,"), ("old", "past", ",1000000000")];
    setup.write_export(&rows(&[&[("old", "a", ",")], &others[..]].concat()));
    let both = format!("keys.pepper_file = '{new}'\nkeys.previous_pepper_file = '{old}'\n");
    let only_new = format!("keys.pepper_file = '{new}'\n");
    let daemon = setup.config(&both).start();
    let configure = |text: &str| fs::write(daemon.setup.path("keyward.toml"), text).expect("writes");
    // A compiled export has its rows in an order of its own.
    let refused = |keys: &[&str], what: &str| {
        let error = daemon.reload().error.expect("refused");
        let count = format!("{} of 5 keys (", keys.len());
        let names = |key: &&str| error.contains(&format!("\"{key}\""));
        assert!(error.contains(&count) && keys.iter().all(names) && error.contains(what), "{error}");
        let mut check = keyward();
        let output = check.args(["check", "--daemon", "--admin-socket"]).arg(daemon.admin_socket()).output();
        let output = output.expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(&error), "{said}");
    };

    configure(&only_new);
    refused(&["a", "b", "c"], "may have been hashed with a pepper");
    assert_eq!(daemon.verdict("b"), "ALLOWED");
    refused(&["a", "c"], "may have been hashed with a pepper");
    assert_eq!([daemon.verdict("c"), daemon.verdict("a")], ["ALLOWED"; 2]);
    refused(&["a"], "are served already, and were hashed with a pepper");
    configure(&format!("keys.pepper_file = '{old}'\n"));
    refused(&["b", "c"], "are served already, and were hashed with a pepper");

    configure(&both);
    assert!(daemon.publish(&rows(&[&[("new", "a", ",")], &others[..]].concat())).accepted);
    configure(&only_new);
    refused(&["a"], "may have been hashed with a pepper");
    assert_eq!(daemon.verdict("a"), "ALLOWED");
    let reload = daemon.reload();
    assert!(reload.accepted, "{:?}", reload.error);
    assert_eq!(["a", "b", "c"].map(|key| daemon.verdict(key)), ["ALLOWED"; 3]);
}

/// However an owner's keys are moved between plans, and wherever the daemon is restarted meanwhile, what was spent stays spent.
#[test]
fn moving_keys_between_plans_gives_an_owner_no_quota_again() {
    let plans = "[plans.a]\nquota = { rate = '5/d', per = 'owner' }\n[plans.b]\nquota = { rate = '5/d', per = 'owner' }\n\
                 [plans.c]\nquota = { rate = '7/d', per = 'owner' }\n";
    let on = |one: &str, two: &str| {
        export(&[&format!("one=one owner=acme plan={one}"), &format!("two=two owner=acme plan={two}")])
    };
    let mut daemon = serve(plans, &["one=one owner=acme plan=a", "two=two owner=acme plan=a"]);
    assert_eq!(spend(&daemon, "one", 5), "ALLOWED");
    for (one, two) in [("b", "b"), ("a", "b"), ("a", "a"), ("b", "c"), ("a", "c"), ("c", "c"), ("a", "a")] {
        assert!(daemon.publish(&on(one, two)).accepted);
        for key in ["one", "two"] {
            assert_eq!(spend(&daemon, key, 1), "RATE_LIMITED", "{key}, with plans {one} and {two}");
        }
    }
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.wait_for_exit().success());
    daemon.setup.write_export(&on("b", "b"));
    let daemon = daemon.restart();
    assert_eq!(
        spend(&daemon, "one", 1),
        "RATE_LIMITED",
        "nor does a plan that changed while the daemon was away"
    );
}

/// Rows in rotation are charged as the first of them is, whatever plan the others name.
#[test]
fn rows_in_rotation_on_two_plans_share_what_is_left() {
    let plans = "[plans.a]\nquota = { rate = '5/d', per = 'owner' }\n[plans.b]\nquota = { rate = '5/d', per = 'owner' }\n";
    let rows = |first: &str, second: &str| {
        export(&[&format!("old=k owner=acme plan={first}"), &format!("new=k owner=acme plan={second}")])
    };
    let daemon = serve(plans, &["old=k owner=acme plan=a", "new=k owner=acme plan=a"]);
    assert_eq!(spend(&daemon, "old", 5), "ALLOWED");
    let buckets = daemon.status().buckets;
    for (first, second) in [("b", "a"), ("a", "b"), ("a", "a"), ("b", "a")] {
        assert!(daemon.publish(&rows(first, second)).accepted);
        assert_eq!(spend(&daemon, "new", 1), "RATE_LIMITED", "plans {first} and {second}");
    }
    assert_eq!(daemon.status().buckets, buckets, "no bucket is left behind");
}

/// Plans that define the owner's limit differently, and one without it; two keys, of which one may be away.
const OWN: &str = "source.max_shrink = 1.0\nplans.p1.own = { rate = '30/d', per = 'owner' }\n\
                   plans.p2.own = { rate = '20/d', per = 'owner' }\nplans.p3.other = '1000/s'\n";

/// The rows of key `one`, and of key `two`, on these plans: an empty one stands for a key that is away.
fn owned(one: &str, two: &str) -> String {
    let row =
        |key: &str, plan: &str| (!plan.is_empty()).then(|| format!("{key}={key} owner=acme plan={plan}"));
    let rows: Vec<String> = [row("one", one), row("two", two)].into_iter().flatten().collect();
    export(&[&["pad=pad".to_owned()][..], &rows].concat().iter().map(String::as_str).collect::<Vec<_>>())
}

/// A daemon whose owner has spent everything, under both plans.
fn spent() -> Daemon {
    let daemon = Setup::new(&owned("p1", "p2")).config(OWN).start();
    assert_eq!((spend(&daemon, "one", 30), spend(&daemon, "two", 20)), ("ALLOWED".into(), "ALLOWED".into()));
    daemon
}

#[test]
fn an_owner_whose_keys_come_back_to_other_plans_is_not_given_a_quota_again() {
    // What comes between, and what then is asked for.
    for (between, then) in [(("p3", "p3"), ("p1", "p3")), (("", ""), ("p1", "")), (("", ""), ("", "p2"))] {
        let daemon = spent();
        daemon.publish(&owned(between.0, between.1));
        daemon.publish(&owned(then.0, then.1));
        let key = if then.1 == "p2" { "two" } else { "one" };
        assert_eq!(left(&daemon, key), 0, "{between:?}, then {then:?}");
    }
    let daemon = Setup::new(&owned("p1", "")).config(OWN).start();
    assert_eq!(spend(&daemon, "one", 30), "ALLOWED");
    daemon.publish(&owned("p3", ""));
    daemon.publish(&owned("p1", "p2"));
    assert_eq!((left(&daemon, "one"), left(&daemon, "two")), (0, 0), "two plans after one");
    // What fills the smaller limit is not all that the larger one had.
    let daemon = Setup::new(&owned("p1", "")).config(OWN).start();
    assert_eq!(spend(&daemon, "one", 10), "ALLOWED");
    for plan in ["p2", "p3", "p1"] {
        daemon.publish(&owned(plan, ""));
    }
    assert_eq!(left(&daemon, "one"), 20, "by way of a smaller limit");
}

#[test]
fn an_owner_whose_plans_change_while_the_daemon_is_down_is_not_given_a_quota_again() {
    let changed = |from: &str, to: &str| OWN.replace(from, to);
    let cases = [
        (owned("p1", ""), OWN.to_owned(), "a key that is gone"),
        (owned("p1", "p2"), changed("30/d", "31/d"), "another rate"),
        (owned("p1", "p2"), changed("30/d", "20/d"), "the rates of two plans have become one"),
        (owned("p1", "p2"), changed("30/d", "40/d burst 30"), "a rate that refills faster"),
        (owned("p1", "p2"), OWN.to_owned(), "nothing"),
    ];
    for (rows, plans, what) in cases {
        let mut daemon = spent();
        daemon.signal(rustix::process::Signal::TERM);
        assert!(daemon.wait_for_exit().success());
        daemon.setup.write_export(&rows);
        daemon.setup.replace_config(&plans);
        let daemon = daemon.restart();
        assert_eq!(left(&daemon, "one"), 0, "{what} has changed: {}", daemon.log());
        if rows.contains("p2") {
            assert_eq!(left(&daemon, "two"), 0, "{what} has changed: {}", daemon.log());
        }
    }
}
