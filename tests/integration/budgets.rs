//! Several costs in one request, debits, credits and calendar quotas, through the socket.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::serve_process::ServeProcess;
use crate::support::{Daemon, Export, Row, Setup, keyward, replace_export, row, run};
use keyward_client::{Debit, Decision, Refund, Request};

/// Limits that do not refill during a test.
const GATEWAY: &str = "requests=1000/d;tokens=10000/d overdraft 500;credits=100";

fn start(rows: impl IntoIterator<Item = Row>) -> Daemon {
    Setup::new(Export::new(rows)).config("state.save_interval = '1h'").start()
}

fn verify(daemon: &Daemon, request: Request<'_>) -> Decision {
    daemon.client().verify(&request.balances()).expect("an answer")
}

fn debit(daemon: &Daemon, debit: Debit<'_>) -> Decision {
    daemon.client().debit(&debit.balances()).expect("an answer")
}

fn refund(daemon: &Daemon, refund: Refund<'_>) -> Decision {
    daemon.client().refund(&refund.balances()).expect("an answer")
}

/// What was charged on each limit, and its balance.
fn amounts(decision: &Decision) -> Vec<(String, u32, i64)> {
    decision.balances().map(|limit| (limit.name.to_owned(), limit.charged, limit.balance)).collect()
}

fn expected(amounts: &[(&str, u32, i64)]) -> Vec<(String, u32, i64)> {
    amounts.iter().map(|(name, charged, balance)| ((*name).to_owned(), *charged, *balance)).collect()
}

#[test]
fn request_costs_each_limit_its_own_amount_or_none() {
    let daemon = start([row("a").limits(GATEWAY), row("b").limits("other=5/d")]);
    let request = || Request::new("a").cost_of("tokens", 1_500).cost_of("credits", 0);
    let first = verify(&daemon, request());
    assert!(first.is_allowed());
    let amounts_of =
        |tokens, requests| [("requests", 1, requests), ("tokens", 1_500, tokens), ("credits", 0, 100)];
    assert_eq!(amounts(&first), expected(&amounts_of(8_500, 999)));
    for tokens in [7_000, 5_500, 4_000, 2_500, 1_000] {
        assert_eq!(amounts(&verify(&daemon, request()))[1], ("tokens".to_owned(), 1_500, tokens));
    }
    let refused = verify(&daemon, request());
    assert_eq!(
        (refused.verdict().name(), refused.limit().expect("a limit").name),
        ("RATE_LIMITED", "tokens")
    );
    let unchanged = [("requests", 0, 994), ("tokens", 0, 1_000), ("credits", 0, 100)];
    assert_eq!(amounts(&refused), expected(&unchanged), "all or nothing");
    let elsewhere = verify(&daemon, request().cost(0).cost_of("other", 7));
    assert_eq!(elsewhere.verdict().name(), "RATE_LIMITED", "another key has that limit");
    let nowhere = verify(&daemon, Request::new("a").cost_of("tokesn", 1));
    assert_eq!(nowhere.verdict().name(), "UNKNOWN_LIMIT", "a typing error is not unlimited");
    assert_eq!(amounts(&nowhere), expected(&unchanged));
    let never = verify(&daemon, Request::new("a").cost_of("tokens", 10_001).cost_of("credits", 101));
    assert_eq!(
        (never.verdict().name(), never.limit().expect("a limit").name),
        ("COST_EXCEEDS_BURST", "tokens")
    );
    let no_credit = verify(&daemon, Request::new("a").cost_of("tokens", 1_001).cost_of("credits", 101));
    assert_eq!(
        (no_credit.verdict().name(), no_credit.limit().expect("a limit").name),
        ("OUT_OF_CREDIT", "credits")
    );
    assert!(no_credit.limit().expect("a limit").retry_after.is_zero(), "waiting does not help");
}

/// Reserve with an estimate, settle by the difference.
#[test]
fn debit_charges_what_is_left_down_to_the_floor() {
    let daemon = start([row("a").limits(GATEWAY), row("b")]);
    assert!(verify(&daemon, Request::new("a").cost_of("tokens", 9_000).cost_of("credits", 90)).is_allowed());
    let settled = refund(&daemon, Refund::new("a", 0).cost_of("tokens", 1_000));
    assert_eq!(
        amounts(&settled),
        expected(&[("requests", 0, 999), ("tokens", 1_000, 2_000), ("credits", 0, 10)])
    );
    let debited = debit(&daemon, Debit::new("a", 0).cost_of("tokens", 2_300).cost_of("credits", 25));
    assert!(debited.is_allowed());
    let floor = [("requests", 0, 999), ("tokens", 2_300, -300), ("credits", 10, 0)];
    assert_eq!(amounts(&debited), expected(&floor), "credits have no overdraft");
    let again = debit(&daemon, Debit::new("a", 0).cost_of("tokens", 1_000));
    assert_eq!(amounts(&again)[1], ("tokens".to_owned(), 200, -500), "the floor");
    let refused = verify(&daemon, Request::new("a").cost_of("credits", 0));
    assert_eq!(refused.verdict().name(), "RATE_LIMITED");
    // 501 of 10,000 tokens a day refill in 4,328.64 seconds.
    let wait = refused.limit().expect("a limit").retry_after.as_secs();
    assert!((4_320..=4_329).contains(&wait), "{wait}");
    assert_eq!(verify(&daemon, Request::new("a").cost_of("credits", 1)).verdict().name(), "OUT_OF_CREDIT");
    let peek = verify(&daemon, Request::new("a").cost(0));
    assert!(peek.is_allowed(), "a peek charges nothing");
    let unlimited = debit(&daemon, Debit::new("b", 5));
    assert_eq!((unlimited.is_allowed(), amounts(&unlimited)), (true, Vec::new()));
    let unknown = daemon.client().debit(&Debit::new("nobody", 5)).expect("an answer");
    assert_eq!(unknown.verdict().name(), "UNKNOWN_KEY");
    let typing_error = debit(&daemon, Debit::new("a", 1).cost_of("tokesn", 5));
    assert_eq!(typing_error.verdict().name(), "UNKNOWN_LIMIT");
    assert_eq!(amounts(&typing_error)[0], ("requests".to_owned(), 0, 999), "nothing is charged");
}

#[test]
fn response_of_a_revoked_or_expired_key_is_debited() {
    let daemon = start([row("a").limits("5 credits"), row("b").limits("x=5 credits")]);
    assert_eq!(daemon.run_keyward(&["revoke", "a"]).code, Some(0));
    assert_eq!(verify(&daemon, Request::new("a")).verdict().name(), "REVOKED");
    let debited = debit(&daemon, Debit::new("a", 3));
    assert_eq!((debited.is_allowed(), amounts(&debited)), (true, expected(&[("default", 3, 2)])));
}

fn with_credits(key: &str, granted: u32) -> Row {
    row(key).limits(format!("credits={granted}"))
}

fn credits(daemon: &Daemon, key: &str) -> i64 {
    let peek = verify(daemon, Request::new(key).cost(0));
    amounts(&peek).first().expect("a limit").2
}

#[test]
fn credits_are_refilled_by_a_larger_grant_only() {
    let mut daemon = start([with_credits("a", 100), row("b")]);
    assert!(verify(&daemon, Request::new("a").cost(70)).is_allowed());
    assert_eq!(verify(&daemon, Request::new("a").cost(31)).verdict().name(), "OUT_OF_CREDIT");
    daemon.publish(Export::new([with_credits("a", 150), row("b")]));
    assert_eq!(credits(&daemon, "a"), 80, "topped up");
    daemon.publish(Export::new([with_credits("a", 50), row("b")]));
    assert_eq!(credits(&daemon, "a"), -20, "taken away");
    daemon.publish(Export::new([row("b")]));
    daemon.publish(Export::new([with_credits("a", 100), row("b")]));
    assert_eq!(credits(&daemon, "a"), 30, "absent in between");
    daemon.stop();
    let mut daemon = daemon.kill_and_restart();
    assert_eq!(credits(&daemon, "a"), 30, "restarted in between");
    daemon.stop();
    replace_export(&daemon.setup.source(), Export::new([row("b")]));
    let mut daemon = daemon.kill_and_restart();
    daemon.stop();
    replace_export(&daemon.setup.source(), Export::new([with_credits("a", 100), row("b")]));
    let daemon = daemon.kill_and_restart();
    assert_eq!(credits(&daemon, "a"), 30, "absent over a restart");
}

#[test]
fn credits_of_an_owner_are_shared_whatever_each_row_grants() {
    let of_acme =
        |key: &str, granted: u32| row(key).owner("acme").limits(format!("credits={granted} per owner"));
    let daemon = start([of_acme("a", 100), of_acme("b", 60), row("c").limits("credits=100")]);
    assert!(verify(&daemon, Request::new("a").cost(50)).is_allowed());
    assert_eq!((credits(&daemon, "a"), credits(&daemon, "b"), credits(&daemon, "c")), (50, 10, 100));
    assert_eq!(verify(&daemon, Request::new("b").cost(11)).verdict().name(), "OUT_OF_CREDIT");
}

/// The window ends months after the test, except at the end of a year.
#[test]
fn calendar_quota_admits_its_count_and_survives_a_restart() {
    let mut daemon = start([row("a").limits("monthly=3/month")]);
    for left in [2, 1, 0] {
        let decision = verify(&daemon, Request::new("a"));
        assert_eq!((decision.is_allowed(), amounts(&decision)[0].2), (true, left));
    }
    let refused = verify(&daemon, Request::new("a"));
    assert_eq!(refused.verdict().name(), "RATE_LIMITED");
    let limit = refused.limit().expect("a limit");
    let wait = limit.retry_after.as_secs();
    assert!((1..=31 * 86_400).contains(&wait) && limit.remaining == 0, "{wait}");
    daemon.publish(Export::new([row("a").limits("monthly=5/month")]));
    assert_eq!(amounts(&verify(&daemon, Request::new("a")))[0].2, 1, "a larger count adds the difference");
    daemon.publish(Export::new([row("a").limits("monthly=5/day")]));
    assert_eq!(
        amounts(&verify(&daemon, Request::new("a").cost(0)))[0].2,
        1,
        "another period refills nothing"
    );
    daemon.publish(Export::new([row("a").limits("monthly=5/month")]));
    daemon.stop();
    let daemon = daemon.kill_and_restart();
    assert_eq!(amounts(&verify(&daemon, Request::new("a").cost(0)))[0].2, 1);
}

#[test]
fn lost_balances_do_not_refill_credits_quietly() {
    for damage in [false, true] {
        let mut daemon = start([with_credits("a", 100), row("b").limits("5/d")]);
        assert!(verify(&daemon, Request::new("a").cost(70)).is_allowed());
        daemon.stop();
        let balances = daemon.setup.path("balances");
        if damage {
            fs::write(&balances, "damaged").expect("writes");
        } else {
            fs::remove_file(&balances).expect("removes");
        }
        let state_dir = daemon.setup.dir.path().to_owned();
        let mut check = keyward();
        check.args(["check", "--config"]).arg(daemon.setup.path("keyward.toml"));
        let checked =
            run(check.arg("--source").arg(daemon.setup.source()).arg("--state-dir").arg(&state_dir));
        let text = checked.stdout + &checked.stderr;
        assert!(text.contains("keyward state accept lost-balances"), "predicted: {text}");
        let daemon = daemon.kill_and_restart();
        assert_eq!(daemon.verdict("a"), "NOT_READY", "{}", daemon.log());
        daemon.assert_logged("what was spent of them is lost");
        let mut daemon = daemon;
        daemon.stop();
        // Still lost at the next start.
        let mut daemon = daemon.kill_and_restart();
        assert_eq!(daemon.verdict("a"), "NOT_READY", "{}", daemon.log());
        daemon.stop();
        let mut accept = keyward();
        accept.args(["state", "accept", "lost-balances", "--state-dir"]).arg(&state_dir);
        assert_eq!(run(&mut accept).code, Some(0));
        let mut daemon = daemon.kill_and_restart();
        assert_eq!(credits(&daemon, "a"), 100, "an operator has accepted it");
        assert_eq!(daemon.setup.audit_events("lost_balances_accepted").len(), 1);
        assert!(verify(&daemon, Request::new("a").cost(10)).is_allowed());
        daemon.stop();
        let daemon = daemon.kill_and_restart();
        assert_eq!(credits(&daemon, "a"), 90);
    }
    // Token buckets refill anyway.
    let mut daemon = start([row("b").limits("5/d")]);
    daemon.stop();
    fs::remove_file(daemon.setup.path("balances")).expect("removes");
    assert_eq!(daemon.kill_and_restart().verdict("b"), "ALLOWED");
}

/// A disk that is not mounted yet, say. The daemon has not saved anything meanwhile.
#[test]
fn balances_that_are_back_at_the_next_start_are_not_lost() {
    let mut daemon = start([with_credits("a", 100)]);
    assert!(verify(&daemon, Request::new("a").cost(70)).is_allowed());
    daemon.stop();
    let [balances, away, record] = ["balances", "away", "lost_balances"].map(|name| daemon.setup.path(name));
    fs::rename(&balances, &away).expect("renames");
    for kill in [false, true] {
        let mut unmounted = daemon.kill_and_restart();
        assert_eq!(unmounted.verdict("a"), "NOT_READY", "{}", unmounted.log());
        if kill {
            unmounted.kill();
        } else {
            unmounted.stop();
        }
        assert!(!balances.exists() && !record.exists());
        daemon = unmounted;
    }
    fs::rename(&away, &balances).expect("renames");
    assert_eq!(credits(&daemon.kill_and_restart(), "a"), 30);
}

/// Neither a source without credits nor an acceptance of the source accepts a loss of balances.
#[test]
fn loss_of_balances_is_remembered_until_an_operator_accepts_it() {
    let with = || Export::new([with_credits("a", 100), row("b").limits("5/d")]);
    let mut daemon = start([with_credits("a", 100), row("b").limits("5/d")]);
    assert!(verify(&daemon, Request::new("a").cost(70)).is_allowed());
    daemon.stop();
    fs::remove_file(daemon.setup.path("balances")).expect("removes");
    replace_export(&daemon.setup.source(), Export::new([row("b").limits("5/d")]));
    let mut daemon = daemon.kill_and_restart();
    assert!(verify(&daemon, Request::new("b").cost(4)).is_allowed(), "{}", daemon.log());
    let refused = daemon.publish(with()).error.expect("refused");
    assert!(refused.contains("what was spent of them is lost"), "{refused}");

    // Other balances have been saved since.
    daemon.stop();
    assert!(daemon.setup.path("balances").exists() && daemon.setup.path("lost_balances").exists());
    let mut daemon = daemon.kill_and_restart();
    assert_ne!(daemon.verdict("a"), "ALLOWED", "{}", daemon.log());
    daemon.stop();
    let mut accept = keyward();
    accept.args(["state", "accept", "source", "--state-dir"]).arg(daemon.setup.dir.path());
    assert_eq!(run(&mut accept).code, Some(0));
    let daemon = daemon.kill_and_restart();
    assert_ne!(daemon.verdict("a"), "ALLOWED", "{}", daemon.log());
    assert_eq!(daemon.setup.audit_events("lost_balances_accepted").len(), 0);

    let forced = daemon.force_reload();
    assert!(forced.accepted, "{:?}", forced.error);
    assert_eq!(credits(&daemon, "a"), 100, "an operator has accepted it");
    assert_eq!(amounts(&verify(&daemon, Request::new("b").cost(0))), expected(&[("default", 0, 1)]));
    assert_eq!(daemon.setup.audit_events("lost_balances_accepted").len(), 1);
    assert!(verify(&daemon, Request::new("a").cost(10)).is_allowed());
    let mut daemon = daemon;
    daemon.stop();
    assert!(!daemon.setup.path("lost_balances").exists());
    assert_eq!(credits(&daemon.kill_and_restart(), "a"), 90);
}

/// A daemon that is killed before its first save has lost nothing that it could have saved.
#[test]
fn daemon_killed_before_its_first_save_starts_again() {
    let mut daemon = start([with_credits("a", 100)]);
    daemon.kill();
    let daemon = daemon.kill_and_restart();
    assert_eq!(credits(&daemon, "a"), 100, "{}", daemon.log());
}

/// The slots of the limits are in the order in which they were first listed.
#[test]
fn balances_are_in_the_order_of_the_limits() {
    let daemon = start([row("a").limits("x=5/d;y=6/d;z=7 credits")]);
    assert!(daemon.publish(Export::new([row("a").limits("z=7 credits;y=6/d;x=5/d")])).accepted);
    let reversed = expected(&[("z", 1, 6), ("y", 1, 5), ("x", 1, 4)]);
    assert_eq!(amounts(&verify(&daemon, Request::new("a"))), reversed);
    let refunded = expected(&[("z", 0, 6), ("y", 0, 5), ("x", 1, 5)]);
    assert_eq!(amounts(&refund(&daemon, Refund::new("a", 0).cost_of("x", 1))), refunded);
}

/// The end of the day is twelve hours away from that in UTC. A window that is in use when the zone
/// changes is not refilled.
#[test]
fn calendar_quota_follows_the_configured_time_zone() {
    const DAY: u64 = 86_400;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let assert_ends_at_midnight = |decision: &Decision, hours_behind: u64| {
        let limit = decision.balances().next().expect("a limit");
        let end = now() + limit.reset.as_secs();
        let off = (end - hours_behind * 3_600 + DAY / 2) % DAY;
        assert!(off.abs_diff(DAY / 2) < 300, "{end} is no midnight");
    };
    let daemon = Setup::new(Export::new([row("a").limits("daily=5/day")]))
        .config("keys.time_zone = 'Etc/GMT+12'")
        .start();
    let first = verify(&daemon, Request::new("a"));
    assert!(first.is_allowed());
    assert_ends_at_midnight(&first, 12);
    fs::write(daemon.setup.path("keyward.toml"), "keys.time_zone = 'UTC'\n").expect("writes");
    assert!(daemon.reload().accepted);
    let second = verify(&daemon, Request::new("a"));
    assert_ends_at_midnight(&second, 0);
    assert_eq!(amounts(&second), expected(&[("daily", 1, 3)]));
}

/// The message of a start that is refused names the file and the command.
#[test]
fn unknown_time_zone_is_refused() {
    let setup = Setup::new(Export::new([row("a")])).config("keys.time_zone = 'Europe/Atlantis'");
    let mut refused = ServeProcess::start(setup.command());
    assert_eq!(refused.wait_for_exit().code(), Some(78));
}
