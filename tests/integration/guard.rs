//! A source cannot widen access unnoticed. The guard evaluates a reload by how it changes the
//! access of each key.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Daemon, Export, Row, Setup, key_target, replace_export, row, wait_until};
use keyward_admin::message::{ChangeCounts, Check, Command as AdminCommand};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::{Builder, CompareOptions, Diff, KeyTable, MAX_EXAMPLES, SnapshotMeta, View};
use keyward_engine::verify::Verifier;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verdict, Verify};
use keyward_source::{BadRow, ColumnMapping, Diagnostics, Format, read};
use proptest::prelude::*;

/// The Unix second at which the model evaluates keys.
const NOW: u32 = 1_800_000_000;

/// Values of the columns of the model. Most rows have the first one.
const OWNERS: [&str; 3] = ["", "acme", "bolt"];
const ENVIRONMENTS: [&str; 3] = ["", "live", "test"];
/// The last one is invalid: such a row is set aside.
const STATUSES: [&str; 5] = ["", "active", "disabled", "revoked", "t"];
const STARTS: [&str; 3] = ["", "1790000000", "1810000000"];
const ENDS: [&str; 3] = ["", "1790000000", "1810000000"];
const SCOPES: [&str; 4] = ["", "a", "a b", "*"];
const NETWORKS: [&str; 5] = ["", "{}", "10.0.0.0/8", "10.0.0.0/9 10.128.0.0/9", "10.0.0.0/8 11.0.0.0/8"];
const ORIGINS: [&str; 4] = ["", "[]", "https://a.test", "https://*.test"];
const LIMITS: [&str; 5] =
    ["", "1/s burst 2", "1/s burst 4", "other=1/s burst 2", "1/s burst 2; other=1/s burst 4"];

const COLUMNS: [(&str, &[&str]); 9] = [
    ("owner", &OWNERS),
    ("environment", &ENVIRONMENTS),
    ("status", &STATUSES),
    ("not_before", &STARTS),
    ("expires_at", &ENDS),
    ("scopes", &SCOPES),
    ("allowed_ips", &NETWORKS),
    ("allowed_origins", &ORIGINS),
    ("limits", &LIMITS),
];

/// A row of the model: per column, the position of its value.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice([usize; 9]);

fn choice() -> impl Strategy<Value = Choice> {
    // Most fields are empty: a single restriction is the interesting case.
    COLUMNS.map(|(_, values)| prop_oneof![2 => Just(0), 1 => 0..values.len()]).prop_map(Choice)
}

impl Choice {
    fn to_row(self, number: usize) -> Row {
        let key = row(format!("k{number}")).hash(format!("{number:064x}"));
        COLUMNS
            .iter()
            .zip(self.0)
            .fold(key, |row, ((column, values), position)| row.set(column, values[position]))
    }
}

fn build_table(choices: &[(usize, Choice)]) -> KeyTable {
    let mut builder = Builder::new(7, 0);
    let mut diagnostics = Diagnostics::new("keys.csv").retaining_bad_rows(KEYS);
    let mut sink = |line: u64, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
    let export = Export::new([]).columns(COLUMNS.map(|(column, _)| column));
    let text = export.rows(choices.iter().map(|(number, choice)| choice.to_row(*number))).to_csv();
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("reads");
    for BadRow { line, hash, key_id } in diagnostics.retained_bad_rows() {
        builder.set_aside(*line, hash.expect("readable"), key_id.as_deref()).expect("room");
    }
    builder.finish()
}

/// Requests that distinguish all restrictions of the model.
fn requests() -> Vec<Verify<'static>> {
    let mut requests = Vec::new();
    for cost in [1, 3, 5] {
        for names in [None, Some("a"), Some("b"), Some("c")] {
            for environment in [None, Some("live"), Some("test")] {
                for ip in [None, Some("::ffff:10.1.1.1"), Some("::ffff:11.1.1.1"), Some("::1")] {
                    for origin in [None, Some("https://a.test"), Some("https://b.test")] {
                        requests.push(Verify {
                            cost,
                            scopes: names.map(|names| Scopes { names, mode: ScopeMode::All }),
                            environment,
                            ip: ip.map(|ip| ip.parse().expect("an address")),
                            origin,
                            ..Verify::new(1, Credential::Digest([0; 32]))
                        });
                    }
                }
            }
        }
    }
    requests
}

/// For each of `count` keys: which of the requests are admitted when all buckets are full.
fn admitted_requests(keys: KeyTable, count: usize) -> Vec<Vec<bool>> {
    let limiter = Limiter::new();
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(&limiter);
    let snapshot =
        keys.into_snapshot(&mut allocation, None, SnapshotMeta { generation: 1, ..SnapshotMeta::default() });
    let snapshot = snapshot.expect("room");
    // There was no snapshot before.
    let _ = allocation.commit();
    let global_policy = GlobalPolicy::default();
    // Each step is long enough to refill every bucket.
    let mut nanoseconds = 1 << 40;
    let mut admits = |number: usize, request: &Verify<'_>| {
        nanoseconds += 1 << 40;
        let mut digest = [0; 32];
        digest[24..].copy_from_slice(&(number as u64).to_be_bytes());
        let request = Verify { credential: Credential::Digest(digest), ..*request };
        let now = Now { nanoseconds, unix: NOW, millisecond: 0 };
        let verifier = Verifier {
            view: Some(View::of(&snapshot)),
            limiter: &limiter,
            global_policy: &global_policy,
            now,
        };
        let mut verdict = None;
        verifier.verify(&[request], |decision| verdict = Some(decision.verdict()));
        verdict == Some(Verdict::Allowed)
    };
    let requests = requests();
    (0..count).map(|number| requests.iter().map(|request| admits(number, request)).collect()).collect()
}

fn ids(examples: &[keyward_engine::snapshot::Example]) -> BTreeSet<String> {
    examples.iter().map(|example| example.key_id.to_string()).collect()
}

fn diff(before: &[(usize, Choice)], after: &[(usize, Choice)]) -> Diff {
    build_table(after).diff_from(Some(&build_table(before)), CompareOptions { now: NOW, by_key_id: false })
}

/// Keys of the model: few enough that the examples contain all of them.
const KEYS: usize = 6;
const _: () = assert!(KEYS <= MAX_EXAMPLES);

/// Per key: its row, if it has one.
type Choices = Vec<Option<Choice>>;

fn listed(choices: &Choices) -> Vec<(usize, Choice)> {
    (0..).zip(choices).filter_map(|(number, choice)| Some((number, (*choice)?))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// A key that goes from denied to allowed is counted in the diff. A key that admits nothing any
    /// more is counted exactly if it admitted something before.
    #[test]
    fn key_that_goes_from_denied_to_allowed_is_counted(
        pairs in prop::collection::vec((prop::option::of(choice()), prop::option::of(choice())), KEYS)
    ) {
        // Half of the keys keep most of their row, so that changes of one or two fields are common.
        let (before, mut after): (Choices, Choices) = pairs.into_iter().unzip();
        for number in (0..KEYS).step_by(2) {
            after[number] = match (before[number], after[number]) {
                (Some(mut choice), Some(other)) => {
                    choice.0[number % 9] = other.0[number % 9];
                    choice.0[(number + 5) % 9] = other.0[(number + 5) % 9];
                    Some(choice)
                }
                _ => before[number],
            };
        }
        let (before, after) = (listed(&before), listed(&after));
        let diff = diff(&before, &after);
        let (admitted_before, admitted_after) =
            (admitted_requests(build_table(&before), KEYS), admitted_requests(build_table(&after), KEYS));
        let [added, starting, loosened, stopping] = [
            &diff.examples.added, &diff.examples.starting, &diff.examples.loosened, &diff.examples.stopping,
        ].map(|examples| ids(examples));
        prop_assert_eq!(diff.impact.starting(), starting.len());
        prop_assert_eq!(diff.impact.loosened(), loosened.len());
        prop_assert_eq!(diff.impact.stopping(), stopping.len());
        for number in 0..KEYS {
            let id = format!("k{number}");
            let (before_key, after_key) = (&admitted_before[number], &admitted_after[number]);
            let is_widened = before_key.iter().zip(after_key).any(|(before, after)| !before && *after);
            let is_counted = added.contains(&id) || starting.contains(&id) || loosened.contains(&id);
            prop_assert!(!is_widened || is_counted, "{id} of {before:?} -> {after:?} is not counted");
            let admits_any = |admitted: &[bool]| admitted.contains(&true);
            if admits_any(before_key) && !admits_any(after_key) {
                // A key that is still listed may admit only requests that the model does not send.
                let is_listed = after.iter().any(|(other, _)| *other == number);
                prop_assert!(is_listed || stopping.contains(&id), "{id} stops and is not counted");
            }
        }
    }
}

fn check(daemon: &Daemon) -> Check {
    let check = AdminCommand::Check { source: None };
    daemon.send_command(&check).expect("a reply").check.expect("a check")
}

/// Keys that stop working, that start working, and that lose a restriction.
fn impact(changes: Option<ChangeCounts>) -> [usize; 3] {
    let ChangeCounts { stopping, starting, loosened, .. } = changes.expect("changes");
    [stopping, starting, loosened]
}

#[test]
fn export_without_its_restriction_columns_is_refused_until_forced() {
    let daemon = Daemon::serving(Export::new([
        row("a").status("revoked"),
        row("b").status("disabled"),
        row("c").status("active").allowed_ips("10.0.0.0/8"),
    ]));
    let verdicts = || daemon.verdicts(["a", "b", "c"]);
    let restricted = ["REVOKED", "DISABLED", "IP_NOT_ALLOWED"];
    assert_eq!(verdicts(), restricted);
    let outcome = daemon.publish(Export::of(["a", "b", "c"]));
    assert!(!outcome.accepted, "{outcome:?}");
    let error = outcome.error.expect("a reason");
    for part in ["status, allowed_ips", "source.required", "reload with --force"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert_eq!(impact(outcome.changes), [0, 2, 1]);
    assert_eq!(verdicts(), restricted);

    let diff = check(&daemon).diff.expect("a diff");
    assert!(!diff.accepted && diff.refused.is_some_and(|refused| refused.contains("status, allowed_ips")));
    assert_eq!(impact(Some(diff.changes)), [0, 2, 1]);
    // A compiled file does not keep the order of the keys.
    let ids = |examples: &[keyward_admin::message::Example]| {
        examples.iter().map(|example| example.key_id.clone()).collect::<BTreeSet<_>>()
    };
    let [starting, loosened] =
        [&["a", "b"][..], &["c"]].map(|ids| ids.iter().map(|id| Box::from(*id)).collect());
    assert_eq!(ids(&diff.examples.starting), starting);
    assert_eq!(ids(&diff.examples.loosened), loosened);

    let outcome = daemon.force_reload();
    assert!(outcome.accepted, "{outcome:?}");
    assert_eq!(impact(outcome.changes), [0, 2, 1]);
    assert_eq!(ids(&outcome.examples.starting), starting);
    assert_eq!(verdicts(), ["ALLOWED"; 3]);
    daemon.assert_logged("the source widens access: 2 start working, 1 loses a restriction");
    let reloads = daemon.setup.audit_events("reload");
    let [.., refused, forced] = &reloads[..] else { panic!("{reloads:?}") };
    let counts = ["stopping", "starting", "loosened"].map(|count| refused[count].as_u64());
    assert_eq!(counts, [Some(0), Some(2), Some(1)]);
    let names = |list: &str| -> BTreeSet<String> {
        let keys = refused[list].as_array().expect("a list").iter();
        keys.filter_map(serde_json::Value::as_str).map(str::to_owned).collect()
    };
    assert_eq!(names("starting_keys"), BTreeSet::from(["a", "b"].map(str::to_owned)));
    assert_eq!(names("loosened_keys"), BTreeSet::from(["c".to_owned()]));
    assert_eq!(refused["reason"], "lost_restrictions");
    assert_eq!(
        (&forced["force"], &forced["accepted"], &forced["keys"]),
        (&true.into(), &true.into(), &3.into())
    );
}

#[test]
fn json_lines_without_any_value_of_a_restriction_are_refused() {
    const EXPIRED: &str = "2020-01-01T00:00:00Z";
    let setup = Setup::without_export().text_source();
    let source = setup.path("keys.jsonl");
    let publish = |rows: [Row; 3]| replace_export(&source, Export::new(rows).to_json_lines());
    let (revoked, expired) = (row("a").status("revoked"), row("b").expires_at(EXPIRED));
    publish([revoked.clone(), expired.clone(), row("c")]);
    let daemon = setup.config(&format!("source.path = \"{}\"\n", source.display())).start();
    // An empty field is null.
    for (rows, lost) in [
        ([row("a"), row("b"), row("c")], "status, expires_at"),
        ([row("a").status(""), expired, row("c")], "status"),
        ([revoked, row("b").expires_at(""), row("c")], "expires_at"),
    ] {
        publish(rows);
        let outcome = daemon.reload();
        let error = outcome.error.expect("refused");
        assert!(error.contains(&format!("no row has a value for {lost} any more")), "{error}");
        assert_eq!(daemon.verdicts(["a", "b", "c"]), ["REVOKED", "EXPIRED", "ALLOWED"]);
    }
}

#[test]
fn compiled_source_without_any_value_of_a_restriction_is_refused() {
    let setup = Setup::without_export();
    let source = setup.path("keys.kwc");
    let compile = |rows: [Row; 3]| {
        let columns = ["status", "expires_at", "allowed_ips"];
        replace_export(&source, Export::new(rows).columns(columns));
    };
    let revoked = || row("a").status("revoked");
    let expired = || row("b").expires_at("2020-01-01T00:00:00Z");
    let network = || row("c").allowed_ips("10.0.0.0/8");
    compile([revoked(), expired(), network()]);
    let daemon = setup.config(&format!("source.path = '{}'", source.display())).start();
    let verdicts = || daemon.verdicts(["a", "b", "c"]);
    assert_eq!(verdicts(), ["REVOKED", "EXPIRED", "IP_NOT_ALLOWED"]);
    for (rows, lost) in [
        ([row("a"), row("b"), row("c")], "status, expires_at, allowed_ips"),
        ([row("a"), expired(), network()], "status"),
        ([revoked(), row("b"), network()], "expires_at"),
        ([revoked(), expired(), row("c")], "allowed_ips"),
    ] {
        compile(rows);
        let error = daemon.reload().error.expect("refused");
        assert!(error.contains(&format!("no row has a value for {lost} any more")), "{error}");
        assert_eq!(verdicts(), ["REVOKED", "EXPIRED", "IP_NOT_ALLOWED"]);
    }
}

/// Rows with the ids `k0` and so on, whose raw keys begin with `prefix`.
fn rows(prefix: &str, count: usize) -> impl Iterator<Item = Row> {
    (0..count).map(move |number| row(format!("{prefix}{number}")).id(format!("k{number}")))
}

#[test]
fn export_in_which_most_keys_stop_working_is_refused() {
    let export = |prefix: &'static str, count, status: &'static str, expiry: &'static str| {
        Export::new(rows(prefix, count).map(|row| row.status(status).expires_at(expiry)))
    };
    let (past, future) = ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
    let daemon = Daemon::serving(export("a", 100, "active", future));
    for refused in [
        export("b", 100, "active", future),
        export("a", 100, "active", past),
        export("a", 100, "disabled", future),
        export("a", 49, "active", future),
    ] {
        let error = daemon.publish(refused).error.expect("refused");
        assert!(
            error.contains("working keys would stop working, more than source.max_shrink (50 %)"),
            "{error}"
        );
        assert_eq!(daemon.verdict("a99"), "ALLOWED");
    }
    let outcome = daemon.publish(export("a", 50, "active", future));
    assert_eq!((outcome.accepted, impact(outcome.changes)), (true, [50, 0, 0]));
}

#[test]
fn shares_of_keys_that_return_or_lose_a_restriction_are_bounded() {
    let export = |restricted: usize, revoked: usize| {
        Export::new((0..200).map(|number| {
            let networks = if number < restricted { "10.0.0.0/8" } else { "" };
            let status = if number >= 200 - revoked { "revoked" } else { "active" };
            row(format!("k{number}")).status(status).allowed_ips(networks)
        }))
    };
    let daemon = Daemon::serving(export(60, 60));
    let refused = daemon.publish(export(60, 14)).error.expect("refused");
    assert!(
        refused.contains("46 of 60 revoked keys would work again, more than source.max_reactivated (75 %)"),
        "{refused}"
    );
    let refused = daemon.publish(export(14, 60)).error.expect("refused");
    assert!(
        refused.contains(
            "46 of 60 keys with allowed_ips would admit more addresses, more than source.max_loosened (75 %)"
        ),
        "{refused}"
    );
    // Smaller shares are accepted, and so are a few keys even if their share is large.
    assert!(daemon.publish(export(60, 15)).accepted);
    assert!(daemon.publish(export(15, 15)).accepted);
    assert!(daemon.publish(export(5, 5)).accepted);
}

#[test]
fn three_keys_may_change_one_at_a_time() {
    let export = |statuses: [&str; 3]| {
        let rows = ["a", "b", "c"].into_iter().zip(statuses);
        Export::new(rows.map(|(key, status)| row(key).status(status).owner("o")))
    };
    let daemon = Daemon::serving(export(["active", "disabled", "revoked"]));
    assert!(daemon.publish(export(["revoked", "disabled", "revoked"])).accepted);
    assert!(daemon.publish(export(["revoked", "active", "revoked"])).accepted);
    let both = daemon.publish(export(["active", "active", "active"]));
    assert!(both.error.expect("refused").contains("2 of 2 revoked keys would work again"));
}

/// A key that an operator has revoked works neither before nor after a reload, with any source.
#[test]
fn keys_revoked_by_an_operator_count_as_unchanged() {
    let active = Export::new(rows("a", 4).map(|row| row.status("active")));
    let first_three_disabled = Export::new(
        rows("a", 4)
            .zip(["disabled", "disabled", "disabled", "active"])
            .map(|(row, status)| row.status(status)),
    );
    let first_three_removed = Export::new(rows("a", 4).skip(3).map(|row| row.status("active")));
    let daemon = Daemon::serving(&active);
    for key_id in ["k0", "k1", "k2"] {
        daemon.revoke(key_target(key_id));
    }
    for export in [&active, &first_three_disabled, &first_three_removed, &active] {
        let outcome = daemon.publish(export);
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(impact(outcome.changes), [0, 0, 0], "{export:?}");
    }
    assert_eq!(daemon.verdicts(["a0", "a3"]), ["REVOKED", "ALLOWED"]);
}

/// A change of a plan in the configuration is an operator's decision and does not count. A key that
/// moves to another bucket may do more, and counts.
#[test]
fn limits_are_compared_as_the_source_changes_them() {
    let plans = |quota: &str| {
        format!(
            "[plans.pro]\nquota = {{ limit = '{quota}', per = 'owner' }}\n[plans.free]\nquota = '1/d'\n\
             [plans.shadow]\nquota = {{ limit = '1/d', shadow = true }}\n[plans.none]\n"
        )
    };
    let export = |plan: &'static str, owner: &'static str| {
        Export::new(rows("a", 3).map(move |row| row.plan(plan).owner(owner)))
    };
    let daemon = Setup::text(export("pro", "acme")).config(&plans("10/d")).start();
    fs::write(daemon.setup.path("keyward.toml"), plans("100/d")).expect("writes");
    for (plan, owner, loosened) in [
        ("pro", "acme", 0),
        ("pro", "bolt", 3),
        ("free", "bolt", 3),
        ("none", "bolt", 3),
        ("free", "bolt", 0),
        ("shadow", "bolt", 3),
        ("free", "bolt", 0),
        ("free", "acme", 0),
    ] {
        replace_export(&daemon.setup.source(), export(plan, owner));
        let outcome = daemon.force_reload();
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(impact(outcome.changes), [0, 0, loosened], "{plan}, {owner}");
    }
}

#[test]
fn limits_of_another_kind_or_period_are_loosened() {
    let export = |limit: &'static str| Export::new(rows("a", 3).map(move |row| row.limits(limit)));
    let daemon = Setup::text(export("5/day")).start();
    for (limit, loosened) in [
        ("4/day", 0),
        ("4/hour", 3),
        ("4/month", 3),
        ("4/d", 3),
        ("4 credits", 3),
        ("40 credits", 0),
        ("3 credits overdraft 1", 3),
        ("4/d", 3),
        ("4/d overdraft 5", 3),
        ("4/d overdraft 4", 3),
        ("3/d overdraft 4", 0),
    ] {
        replace_export(&daemon.setup.source(), export(limit));
        let outcome = daemon.force_reload();
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(impact(outcome.changes), [0, 0, loosened], "{limit}");
    }
}

/// A limit of another kind has spent nothing, so an export that changes the kind of many limits would
/// grant them again.
#[test]
fn export_in_which_most_limits_are_of_another_kind_is_refused_until_forced() {
    let export = |limit: &'static str| Export::new(rows("a", 20).map(move |row| row.limits(limit)));
    let daemon = Setup::text(export("1/month")).start();
    assert_eq!(daemon.verdicts(["a0", "a0"]), ["ALLOWED", "RATE_LIMITED"]);
    for limit in ["1/30d", "1 credits", "1/month per owner"] {
        let expected = "20 of 20 keys with limits would get unspent ones in their place, of another kind or \
                        shared by other keys, more than source.max_loosened (75 %)";
        let outcome = daemon.publish(export(limit));
        assert_eq!(impact(outcome.changes), [0, 0, 20], "{limit}");
        let error = outcome.error.expect("refused");
        assert!(error.contains(expected), "{limit}: {error}");
        let diff = check(&daemon).diff.expect("a diff");
        assert_eq!(impact(Some(diff.changes)), [0, 0, 20], "{limit}");
        assert!(diff.refused.is_some_and(|refused| refused.contains(expected)), "{limit}");
        assert_eq!(daemon.verdict("a0"), "RATE_LIMITED", "{limit}");
    }
    replace_export(&daemon.setup.source(), export("1/30d"));
    assert!(daemon.force_reload().accepted);
    assert_eq!(daemon.verdict("a0"), "ALLOWED", "the new limit is unspent");
}

/// Both sides are evaluated at the same time: a key that has expired since the last reload is
/// unchanged.
#[test]
fn natural_expiry_counts_as_unchanged() {
    let export = |expiry: &str| Export::new(rows("a", 10).map(|row| row.expires_at(expiry)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let expiring = export(&(now + 2).to_string());
    let daemon = Daemon::serving(&expiring);
    wait_until("the keys to expire", || daemon.verdict("a0") == "EXPIRED");
    let outcome = daemon.publish(&expiring);
    assert_eq!((outcome.accepted, impact(outcome.changes)), (true, [0, 0, 0]));
    let refused = daemon.publish(export("2099-01-01T00:00:00Z")).error.expect("refused");
    assert!(refused.contains("10 of 10 keys that have expired or are not valid yet would work"), "{refused}");
}

#[test]
fn export_without_a_required_column_is_refused_at_the_first_load() {
    let config = "[source]\nrequired = [\"status\", \"allowed_ips\"]\n";
    let daemon = Setup::text(Export::new([])).config(config).start();
    let export = Export::of(["a", "b", "c"]).columns(["status"]);
    let outcome = daemon.publish(&export);
    let error = outcome.error.expect("refused");
    assert!(error.contains("there is no column \"allowed_ips\" in the header"), "{error}");
    assert_eq!(daemon.verdict("a"), "NOT_READY");
    assert!(daemon.publish(export.columns(["allowed_ips"])).accepted);
}
