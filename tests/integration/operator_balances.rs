//! `keyward balance`: balances as an operator sees and resets them, and the calendar.

use std::fs::File;
use std::io::BufReader;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use keyward_admin::message::{Command as AdminCommand, Reply};
use keyward_admin::message::{KeyBalances, LimitKind};
use keyward_client::{Debit, Request};
use keyward_engine::limiter::persist::{SavedLimit, decode, encode};
use keyward_engine::limiter::{Rule, SavedBalance};
use serde_json::Value;

use crate::support::{CommandOutput, Daemon, Export, Row, Setup, key_target, row};

const DAY: u32 = 86_400;

fn start(rows: impl IntoIterator<Item = Row>) -> Daemon {
    Setup::new(Export::new(rows)).config("state.save_interval = '1h'").start()
}

fn charge(daemon: &Daemon, key: &str, cost: u32) -> bool {
    daemon.client().verify(&Request::new(key).cost(cost)).expect("an answer").is_allowed()
}

fn balances(reply: Result<Reply, keyward_admin::CommandError>) -> KeyBalances {
    reply.expect("an answer").balances.expect("balances")
}

fn of_key(daemon: &Daemon, key_id: &str) -> KeyBalances {
    balances(daemon.send_command(&AdminCommand::Balance { key_id: key_id.to_owned() }))
}

/// The names and balances of a key's limits.
fn amounts(daemon: &Daemon, key_id: &str) -> Vec<(String, i64)> {
    of_key(daemon, key_id).limits.into_iter().map(|limit| (limit.name, limit.balance)).collect()
}

fn assert_failed(output: &CommandOutput, message: &str) {
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert_eq!((output.stdout.as_str(), output.stderr.trim_end()), ("", message));
}

const LIMITS: &str =
    "requests=1000/30d;tokens=10000/300d overdraft 500;monthly=50/month per owner;credits=100";

#[test]
fn balances_of_a_key_are_shown_and_reset() {
    let mut daemon = start([
        row("a").owner("acme").limits(LIMITS),
        row("a2").id("a").owner("acme").limits(LIMITS),
        row("b").owner("acme").limits("monthly=20/month per owner"),
        row("c"),
    ]);
    assert!(charge(&daemon, "a", 20));
    let debit = Debit::new("a2", 0).cost_of("tokens", 10_300).cost_of("credits", 10);
    assert!(daemon.client().debit(&debit).expect("an answer").is_allowed(), "the rows share the balances");
    let shown = of_key(&daemon, "a");
    let [requests, tokens, monthly, credits] = &shown.limits[..] else { panic!("{shown:?}") };
    assert_eq!((requests.kind, requests.limit, requests.balance), (LimitKind::TokenBucket, 1_000, 980));
    assert!((1..=30 * 20 * 86_400).contains(&requests.reset_ms.expect("a time")), "{requests:?}");
    assert_eq!((tokens.balance, tokens.overdraft), (-320, 500));
    assert_eq!(
        (monthly.kind, monthly.balance, monthly.owner.as_deref()),
        (LimitKind::CalendarQuota, 30, Some("acme"))
    );
    assert_eq!((credits.kind, credits.balance, credits.reset_ms), (LimitKind::Credits, 70, None));
    assert_eq!(amounts(&daemon, "b"), [("monthly".to_owned(), 0)]);
    assert_eq!(of_key(&daemon, "c").limits, []);

    let text = daemon.run_keyward(&["balance", "a"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    for part in
        ["a: 4 limits", "tokens (token bucket): -320 of 10000, full in ", "shared by all keys of owner acme"]
    {
        assert!(text.stdout.contains(part), "{part}: {}", text.stdout);
    }
    let reset = daemon.run_keyward(&["balance", "a", "--reset", "--limit", "tokens"]);
    assert_eq!(
        reset.stdout,
        "a: 1 limit\n  tokens (token bucket): 10000 of 10000, overdraft 500; RESET, it was -320\n"
    );
    assert!(charge(&daemon, "a", 1), "in force");
    let expected = |balances: [i64; 4]| {
        ["requests", "tokens", "monthly", "credits"]
            .map(str::to_owned)
            .into_iter()
            .zip(balances)
            .collect::<Vec<_>>()
    };
    assert_eq!(amounts(&daemon, "a"), expected([979, 9_999, 29, 69]));
    let reset = daemon.run_keyward(&["balance", "a", "--reset", "--json"]);
    let reset: KeyBalances = serde_json::from_str(&reset.stdout).expect("JSON");
    assert_eq!(
        reset.limits.iter().map(|limit| limit.before).collect::<Vec<_>>(),
        [979, 9_999, 29, 69].map(Some)
    );
    assert_eq!(amounts(&daemon, "a"), expected([1_000, 10_000, 50, 100]));
    assert_eq!(amounts(&daemon, "b"), [("monthly".to_owned(), 20)], "the owner's limit, for all keys");

    let recorded = daemon.setup.audit_events("balance_reset");
    let own_uid = u64::from(rustix::process::geteuid().as_raw());
    assert!(recorded.iter().all(|event| event["key_id"] == "a" && event["uid"] == own_uid), "{recorded:?}");
    let what = recorded.iter().map(|event| (event["limit"].as_str(), event["balance"].as_i64()));
    let named = |name: &'static str, balance| (Some(name), Some(balance));
    assert_eq!(
        what.collect::<Vec<_>>(),
        [
            named("tokens", -320),
            named("requests", 979),
            named("tokens", 9_999),
            named("monthly", 29),
            named("credits", 69)
        ]
    );
    assert_eq!((&recorded[3]["owner"], &recorded[1]["owner"]), (&Value::from("acme"), &Value::Null));

    daemon.stop();
    let daemon = daemon.kill_and_restart();
    assert_eq!(amounts(&daemon, "a"), expected([1_000, 10_000, 50, 100]), "saved");
}

#[test]
fn unknown_key_or_limit_is_an_error() {
    let daemon = start([row("a").limits("x=5/d;y=6/d"), row("b")]);
    let not_found = "keyward: no key in force has this id (an id, never the key itself)";
    assert_failed(&daemon.run_keyward(&["balance", "acme_live_nobody"]), not_found);
    assert_failed(&daemon.run_keyward(&["balance", "nobody", "--reset"]), not_found);
    let no_limit = "keyward: the key has no limit of this name; it has: x, y";
    assert_failed(&daemon.run_keyward(&["balance", "a", "--reset", "--limit", "z"]), no_limit);
    let none = "keyward: the key has no limit of this name; it has no limits";
    assert_failed(&daemon.run_keyward(&["balance", "b", "--reset", "--limit", "x"]), none);
    assert!(daemon.setup.audit_events("balance_reset").is_empty());
    assert_eq!(daemon.run_keyward(&["balance"]).code, Some(2));
    // A key that was revoked is still shown.
    daemon.revoke(key_target("a"));
    assert_eq!(amounts(&daemon, "a").len(), 2);
}

/// A reset applies to the snapshot in force: while reloads change the rates, exactly what the resets
/// have found spent is admitted again.
#[test]
fn resets_during_reloads_admit_exactly_what_was_spent() {
    const GRANTED: u64 = 500;
    // Another plan on every reload: the bucket moves to a new slot, and credits stay in theirs.
    let export = |reload: usize| {
        let burst = if reload.is_multiple_of(2) { "100000" } else { "200000" };
        Export::new([row("a").limits(format!("rate={burst}/d;credits={GRANTED}")), row("b")])
    };
    let daemon = Setup::new(export(0)).config("source.poll = '1h'\nstate.save_interval = '100ms'").start();
    let (admitted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut spent = 0;
    let credits = |balances: &KeyBalances| balances.limits[1].clone();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = daemon.client();
                while !stop.load(Ordering::Relaxed) {
                    if client.verify(&Request::new("a")).expect("an answer").is_allowed() {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let resets = scope.spawn(|| {
            let mut spent = 0;
            while !stop.load(Ordering::Relaxed) {
                let reset = AdminCommand::ResetBalance { key_id: "a".to_owned(), limit: None };
                let before = credits(&balances(daemon.send_command(&reset))).before.expect("it was reset");
                spent += GRANTED - u64::try_from(before).expect("not below zero");
            }
            spent
        });
        for reload in 1..=12 {
            daemon.publish(export(reload));
        }
        stop.store(true, Ordering::Relaxed);
        spent = resets.join().expect("ends");
    });
    let left = credits(&of_key(&daemon, "a")).balance;
    spent += GRANTED - u64::try_from(left).expect("not below zero");
    assert_eq!(admitted.into_inner(), spent);
}

/// Moves the calendar of a stopped daemon forward, and the windows in use with it: as if its clock had
/// been ahead by that time.
fn advance_saved_calendar(daemon: &Daemon, seconds: u32) {
    let path = daemon.setup.path("balances");
    let saved = decode(&mut BufReader::new(File::open(&path).expect("a file"))).expect("balances");
    let moved = saved.limits.iter().map(|limit| match limit.balance {
        SavedBalance::Window { start, spent } => {
            SavedLimit { balance: SavedBalance::Window { start: start + seconds / 900, spent }, ..*limit }
        }
        _ => *limit,
    });
    assert!(saved.limits.iter().any(|limit| matches!(limit.rule, Rule::Window { .. })));
    let mut file = File::create(&path).expect("a file");
    encode(&saved.saved_at, saved.calendar + seconds, moved.collect::<Vec<_>>().into_iter(), &mut file)
        .expect("writes");
}

#[test]
fn calendar_that_is_ahead_is_reported_and_set_back() {
    let mut daemon = start([row("a").limits("daily=10/day"), row("b").limits("5/d")]);
    assert!(charge(&daemon, "a", 7));
    assert_eq!(daemon.status().calendar_ahead_s, 0);
    let unchanged = daemon.run_keyward(&["balance", "--reset-calendar"]);
    assert_eq!(unchanged.stdout, "the calendar is not ahead of the system's clock; nothing was changed\n");
    daemon.stop();
    advance_saved_calendar(&daemon, 40 * DAY);
    let daemon = daemon.kill_and_restart();
    let ahead = daemon.status().calendar_ahead_s;
    assert!((39 * DAY..=40 * DAY).contains(&ahead), "{ahead}");
    assert!(daemon.run_keyward(&["status"]).stdout.contains("calendar     AHEAD of the system's clock by "));
    let day_ms = u64::from(DAY) * 1_000;
    let waits = |daemon: &Daemon| of_key(daemon, "a").limits[0].reset_ms.expect("a time");
    assert!(waits(&daemon) > 39 * day_ms);
    let reset = daemon.run_keyward(&["balance", "--reset-calendar"]);
    assert!(
        reset.stdout.ends_with(
            "ahead of the system's clock, and is set back; 1 balance moved to the current windows\n"
        ),
        "{}",
        reset.stdout
    );
    assert_eq!((daemon.status().calendar_ahead_s, amounts(&daemon, "a")), (0, vec![("daily".to_owned(), 3)]));
    assert!(waits(&daemon) <= day_ms);
    assert!(charge(&daemon, "a", 3) && !charge(&daemon, "a", 1), "nothing is refilled");
    let recorded = daemon.setup.audit_events("calendar_reset");
    let own_uid = u64::from(rustix::process::geteuid().as_raw());
    assert_eq!(recorded.len(), 1);
    assert_eq!((recorded[0]["moved"].as_u64(), recorded[0]["uid"].as_u64()), (Some(1), Some(own_uid)));
}
