//! Promise 9: a source cannot quietly widen access. What a reload changes is weighed by what keys may do.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Daemon, Setup, keyward, replace_export, sha256_hex};
use keyward_daemon::admin::message::{ChangeCounts, Check, Command as AdminCommand, Target};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::now::Now;
use keyward_engine::record::KeyRecord;
use keyward_engine::snapshot::{Builder, CompareOptions, Diff, KeyTable, MAX_EXAMPLES, SnapshotMeta};
use keyward_engine::verify::Verifier;
use keyward_protocol::{Credential, ScopeMode, Scopes, Verdict, Verify};
use keyward_source::{BadRow, ColumnMapping, Diagnostics, Format, read};
use proptest::prelude::*;

const HEADER: &str = "key_hash,key_id,owner,environment,plan,status,not_before,expires_at,scopes,allowed_ips,allowed_origins,limits\n";

/// The Unix second at which the model weighs.
const AT: u32 = 1_800_000_000;

const OWNERS: [&str; 3] = ["", "acme", "bolt"];
const ENVIRONMENTS: [&str; 3] = ["", "live", "test"];
/// The last is none: such a row is set aside.
const STATUSES: [&str; 5] = ["", "active", "disabled", "revoked", "t"];
const STARTS: [&str; 3] = ["", "1790000000", "1810000000"];
const ENDS: [&str; 3] = ["", "1790000000", "1810000000"];
const SCOPES: [&str; 4] = ["", "a", "a b", "*"];
const NETWORKS: [&str; 5] = ["", "{}", "10.0.0.0/8", "10.0.0.0/9 10.128.0.0/9", "10.0.0.0/8 11.0.0.0/8"];
const ORIGINS: [&str; 4] = ["", "[]", "https://a.test", "https://*.test"];
const LIMITS: [&str; 5] =
    ["", "1/s burst 2", "1/s burst 4", "other=1/s burst 2", "1/s burst 2; other=1/s burst 4"];

/// A row by the positions of its texts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row([usize; 9]);

fn row() -> impl Strategy<Value = Row> {
    let lengths = [
        OWNERS.len(),
        ENVIRONMENTS.len(),
        STATUSES.len(),
        STARTS.len(),
        ENDS.len(),
        SCOPES.len(),
        NETWORKS.len(),
        ORIGINS.len(),
        LIMITS.len(),
    ];
    // Most fields are empty: one restriction alone is the interesting case.
    lengths.map(|length| prop_oneof![2 => Just(0), 1 => 0..length]).prop_map(Row)
}

impl Row {
    fn text(self, number: usize) -> String {
        let [owner, environment, status, start, end, scopes, networks, origins, limits] = self.0;
        format!(
            "{number:064x},k{number},{},{},,{},{},{},{},{},{},{}\n",
            OWNERS[owner],
            ENVIRONMENTS[environment],
            STATUSES[status],
            STARTS[start],
            ENDS[end],
            SCOPES[scopes],
            NETWORKS[networks],
            ORIGINS[origins],
            LIMITS[limits]
        )
    }
}

fn keys(rows: &[(usize, Row)]) -> KeyTable {
    let mut builder = Builder::new(7, 0);
    let mut diagnostics = Diagnostics::new("keys.csv").retaining_bad_rows(KEYS);
    let mut sink = |line: u64, record: &KeyRecord<'_>| builder.add(line, record).map_err(Into::into);
    let rows: String = rows.iter().map(|(number, row)| row.text(*number)).collect();
    let text = format!("{HEADER}{rows}");
    read(text.as_bytes(), Format::Csv, &ColumnMapping::default(), &mut sink, &mut diagnostics)
        .expect("reads");
    for BadRow { line, hash, key_id } in diagnostics.retained_bad_rows() {
        builder.set_aside(*line, hash.expect("readable"), key_id.as_deref()).expect("room");
    }
    builder.finish()
}

/// Every request that the restrictions above can tell apart.
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

/// Whether a full bucket admits each of the requests, for each of so many keys.
fn admitted(keys: KeyTable, count: usize) -> Vec<Vec<bool>> {
    let limiter = Limiter::new();
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(&limiter);
    let snapshot =
        keys.into_snapshot(&mut allocation, None, SnapshotMeta { generation: 1, ..SnapshotMeta::default() });
    let snapshot = snapshot.expect("room");
    let _nothing_before = allocation.commit();
    let global_policy = GlobalPolicy::default();
    // Long enough for every bucket to be full again.
    let mut ticks = 1 << 40;
    let mut admits = |number: usize, request: &Verify<'_>| {
        ticks += 1 << 40;
        let mut digest = [0; 32];
        digest[24..].copy_from_slice(&(number as u64).to_be_bytes());
        let request = Verify { credential: Credential::Digest(digest), ..*request };
        let now = Now { ticks, unix: AT };
        let verifier =
            Verifier { snapshot: Some(&snapshot), limiter: &limiter, global_policy: &global_policy, now };
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

fn compared(before: &[(usize, Row)], after: &[(usize, Row)]) -> Diff {
    keys(after).diff_from(Some(&keys(before)), CompareOptions { now: AT, by_key_id: false })
}

/// Few enough that every key is among the examples.
const KEYS: usize = 6;
const _: () = assert!(KEYS <= MAX_EXAMPLES);

type Rows = Vec<Option<Row>>;

fn listed(rows: &Rows) -> Vec<(usize, Row)> {
    (0..).zip(rows).filter_map(|(number, row)| Some((number, (*row)?))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever rows change, no key goes from denied to allowed without being counted, and a key that no
    /// longer admits anything at all is counted exactly if it did before.
    #[test]
    fn key_that_goes_from_denied_to_allowed_is_counted(
        rows in prop::collection::vec((prop::option::of(row()), prop::option::of(row())), KEYS)
    ) {
        // Half of the keys keep their row, so that a change of one field alone is common.
        let (before, mut after): (Rows, Rows) = rows.into_iter().unzip();
        for number in (0..KEYS).step_by(2) {
            after[number] = match (before[number], after[number]) {
                (Some(mut row), Some(other)) => {
                    row.0[number % 9] = other.0[number % 9];
                    row.0[(number + 5) % 9] = other.0[(number + 5) % 9];
                    Some(row)
                }
                _ => before[number],
            };
        }
        let (before, after) = (listed(&before), listed(&after));
        let diff = compared(&before, &after);
        let (was, is) = (admitted(keys(&before), KEYS), admitted(keys(&after), KEYS));
        let [added, starting, loosened, stopping] = [
            &diff.examples.added, &diff.examples.starting, &diff.examples.loosened, &diff.examples.stopping,
        ].map(|examples| ids(examples));
        prop_assert_eq!(diff.impact.starting(), starting.len());
        prop_assert_eq!(diff.impact.loosened(), loosened.len());
        prop_assert_eq!(diff.impact.stopping(), stopping.len());
        for number in 0..KEYS {
            let id = format!("k{number}");
            let widened = was[number].iter().zip(&is[number]).any(|(was, is)| !was && *is);
            let counted = added.contains(&id) || starting.contains(&id) || loosened.contains(&id);
            prop_assert!(!widened || counted, "{id} of {before:?} -> {after:?} is not counted");
            // A bare request tells whether a key with no restriction on it works at all.
            let any = |admits: &[bool]| admits.iter().any(|admits| *admits);
            if any(&was[number]) && !any(&is[number]) {
                let restricted = after.iter().any(|(other, _)| *other == number) && !stopping.contains(&id);
                prop_assert!(restricted || stopping.contains(&id), "{id} stops and is not counted");
            }
        }
    }
}

fn three_keys(header: &str, rows: [&str; 3]) -> String {
    let rows =
        ["a", "b", "c"].iter().zip(rows).map(|(key, rest)| format!("{key},{}{rest}\n", sha256_hex(key)));
    format!("{header}\n{}", rows.collect::<String>())
}

/// Three keys with restrictions: one revoked, one disabled, one for a network.
fn restricted() -> String {
    three_keys("key_id,key_hash,status,allowed_ips", [",revoked,", ",disabled,", ",active,10.0.0.0/8"])
}

fn check(daemon: &Daemon) -> Check {
    ask(daemon, &AdminCommand::Check { source: None }).check.expect("a check")
}

fn ask(daemon: &Daemon, command: &AdminCommand) -> keyward_daemon::admin::message::Reply {
    keyward_daemon::admin::send_command(&daemon.admin_socket(), command).expect("an answer")
}

fn changes(changes: Option<ChangeCounts>) -> [usize; 3] {
    let ChangeCounts { stopping, starting, loosened, .. } = changes.expect("changes");
    [stopping, starting, loosened]
}

#[test]
fn export_that_lost_its_restriction_columns_is_refused_until_it_is_forced() {
    let daemon = Daemon::serving(&restricted());
    assert_eq!(["a", "b", "c"].map(|key| daemon.verdict(key)), ["REVOKED", "DISABLED", "IP_NOT_ALLOWED"]);
    let bare = three_keys("key_id,key_hash", [""; 3]);
    let outcome = daemon.publish(&bare);
    assert!(!outcome.accepted, "{outcome:?}");
    let error = outcome.error.expect("a reason");
    for part in ["status, allowed_ips", "source.required", "reload with --force"] {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    assert_eq!(changes(outcome.changes), [0, 2, 1]);
    assert_eq!(["a", "b", "c"].map(|key| daemon.verdict(key)), ["REVOKED", "DISABLED", "IP_NOT_ALLOWED"]);

    let diff = check(&daemon).diff.expect("a comparison");
    assert!(!diff.accepted && diff.refused.is_some_and(|refused| refused.contains("status, allowed_ips")));
    assert_eq!(changes(Some(diff.changes)), [0, 2, 1]);
    // A compiled file has its keys in an order of its own.
    let named = |examples: &[keyward_daemon::admin::message::Example]| {
        examples.iter().map(|example| example.key_id.to_string()).collect::<BTreeSet<_>>()
    };
    let [starting, loosened] =
        [&["a", "b"][..], &["c"]].map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
    assert_eq!(named(&diff.examples.starting), starting);
    assert_eq!(named(&diff.examples.loosened), loosened);

    let outcome = daemon.force_reload();
    assert!(outcome.accepted, "{outcome:?}");
    assert_eq!(changes(outcome.changes), [0, 2, 1]);
    assert_eq!(named(&outcome.examples.starting), starting);
    assert_eq!(["a", "b", "c"].map(|key| daemon.verdict(key)), ["ALLOWED"; 3]);
    daemon.assert_logged("the source widens access: 2 start working, 1 loses a restriction");
    let trail = fs::read_to_string(daemon.setup.path("audit.jsonl")).expect("a trail");
    let refused = |starting: &str| {
        let access = r#""stopping":0,"starting":2,"loosened":1,"starting_keys""#;
        format!(r#"{access}:[{starting}],"loosened_keys":["c"],"reason":"lost_restrictions""#)
    };
    let orders = [r#""a","b""#, r#""b","a""#].map(refused);
    assert!(orders.iter().any(|order| trail.contains(order)), "{trail}");
    let forced = r#""force":true,"accepted":true,"keys":3"#;
    assert!(trail.contains(forced), "{trail}");
}

#[test]
fn json_lines_that_lost_a_restriction_in_every_row_are_refused() {
    let row = |key: &str, rest: &str| {
        format!("{{\"key_id\":\"{key}\",\"key_hash\":\"{}\"{rest}}}\n", sha256_hex(key))
    };
    let setup = Setup::without_export().text_source();
    let source = setup.path("keys.jsonl");
    let full = [
        row("a", ",\"status\":\"revoked\""),
        row("b", ",\"expires_at\":\"2020-01-01T00:00:00Z\""),
        row("c", ""),
    ];
    replace_export(&source, &full.concat());
    let setup = setup.config(&format!("source.path = \"{}\"\n", source.display()));
    let daemon = setup.start();
    for (rows, lost) in [
        ([row("a", ""), row("b", ""), row("c", "")], "status, expires_at"),
        (
            [
                row("a", ",\"status\":null"),
                row("b", ",\"expires_at\":\"2020-01-01T00:00:00Z\""),
                row("c", ""),
            ],
            "status",
        ),
        ([row("a", ",\"status\":\"revoked\""), row("b", ",\"expires_at\":null"), row("c", "")], "expires_at"),
    ] {
        replace_export(&source, &rows.concat());
        let outcome = daemon.reload();
        let error = outcome.error.expect("refused");
        assert!(error.contains(&format!("no row has a value for {lost} any more")), "{error}");
        assert_eq!(["a", "b", "c"].map(|key| daemon.verdict(key)), ["REVOKED", "EXPIRED", "ALLOWED"]);
    }
}

#[test]
fn compiled_source_that_lost_a_restriction_in_every_row_is_refused() {
    let setup = Setup::without_export();
    let (text, source) = (setup.path("export.csv"), setup.path("keys.kwc"));
    let compile = |rows: [&str; 3]| {
        fs::write(&text, three_keys("key_id,key_hash,status,expires_at,allowed_ips", rows)).expect("writes");
        let output = keyward().arg("compile").arg(&text).arg("--output").arg(&source).output().expect("runs");
        assert!(output.status.success(), "{output:?}");
    };
    let [revoked, expired, network] = [",revoked,,", ",,2020-01-01T00:00:00Z,", ",,,10.0.0.0/8"];
    compile([revoked, expired, network]);
    let daemon = setup.config(&format!("source.path = '{}'", source.display())).start();
    let verdicts = || ["a", "b", "c"].map(|key| daemon.verdict(key));
    assert_eq!(verdicts(), ["REVOKED", "EXPIRED", "IP_NOT_ALLOWED"]);
    for (rows, lost) in [
        ([",,,"; 3], "status, expires_at, allowed_ips"),
        ([",,,", expired, network], "status"),
        ([revoked, ",,,", network], "expires_at"),
        ([revoked, expired, ",,,"], "allowed_ips"),
    ] {
        compile(rows);
        let error = daemon.reload().error.expect("refused");
        assert!(error.contains(&format!("no row has a value for {lost} any more")), "{error}");
        assert_eq!(verdicts(), ["REVOKED", "EXPIRED", "IP_NOT_ALLOWED"]);
    }
}

fn rows(prefix: &str, count: usize, rest: &str) -> String {
    (0..count)
        .map(|number| format!("k{number},{}{rest}\n", sha256_hex(&format!("{prefix}{number}"))))
        .collect()
}

#[test]
fn export_in_which_every_hash_is_another_or_every_key_has_expired_is_refused() {
    let header = "key_id,key_hash,status,expires_at\n";
    let daemon = Daemon::serving(&format!("{header}{}", rows("a", 100, ",active,2099-01-01T00:00:00Z")));
    for export in [
        rows("b", 100, ",active,2099-01-01T00:00:00Z"),
        rows("a", 100, ",active,2020-01-01T00:00:00Z"),
        rows("a", 100, ",disabled,2099-01-01T00:00:00Z"),
        rows("a", 49, ",active,2099-01-01T00:00:00Z"),
    ] {
        let outcome = daemon.publish(&format!("{header}{export}"));
        let error = outcome.error.expect("refused");
        assert!(
            error.contains("working keys would stop working, more than source.max_shrink (50 %)"),
            "{error}"
        );
        assert_eq!(daemon.verdict("a99"), "ALLOWED");
    }
    let half = rows("a", 50, ",active,2099-01-01T00:00:00Z");
    let outcome = daemon.publish(&format!("{header}{half}"));
    assert_eq!((outcome.accepted, changes(outcome.changes)), (true, [50, 0, 0]));
}

#[test]
fn keys_that_come_back_or_lose_a_restriction_are_bounded_by_their_share() {
    let header = "key_id,key_hash,status,allowed_ips\n";
    let export = |restricted: usize, revoked: usize| {
        let rows = (0..200).map(|number| {
            let networks = if number < restricted { "10.0.0.0/8" } else { "" };
            let status = if number >= 200 - revoked { "revoked" } else { "active" };
            format!("k{number},{},{status},{networks}\n", sha256_hex(&number.to_string()))
        });
        format!("{header}{}", rows.collect::<String>())
    };
    let daemon = Daemon::serving(&export(60, 60));
    let refused = daemon.publish(&export(60, 14)).error.expect("refused");
    assert!(
        refused.contains("46 of 60 revoked keys would work again, more than source.max_reactivated (75 %)"),
        "{refused}"
    );
    let refused = daemon.publish(&export(14, 60)).error.expect("refused");
    assert!(
        refused.contains(
            "46 of 60 keys with allowed_ips would admit more addresses, more than source.max_loosened (75 %)"
        ),
        "{refused}"
    );
    // Ordinary business passes, and so do a few keys however large their share is.
    assert!(daemon.publish(&export(60, 15)).accepted);
    assert!(daemon.publish(&export(15, 15)).accepted);
    assert!(daemon.publish(&export(5, 5)).accepted);
}

#[test]
fn three_keys_may_change_one_at_a_time() {
    let header = "key_id,key_hash,status,owner";
    let daemon = Daemon::serving(&three_keys(header, [",active,o", ",disabled,o", ",revoked,o"]));
    assert!(daemon.publish(&three_keys(header, [",revoked,o", ",disabled,o", ",revoked,o"])).accepted);
    assert!(daemon.publish(&three_keys(header, [",revoked,o", ",active,o", ",revoked,o"])).accepted);
    let both = daemon.publish(&three_keys(header, [",active,o", ",active,o", ",active,o"]));
    assert!(both.error.expect("refused").contains("2 of 2 revoked keys would work again"));
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A key that an operator has revoked works neither before nor after a reload, whatever the source says of it.
#[test]
fn operators_revocations_count_as_no_change() {
    let header = "key_id,key_hash,status\n";
    let daemon = Daemon::serving(&format!("{header}{}", rows("a", 4, ",active")));
    for number in 0..3 {
        let target = Target { key_id: Some(format!("k{number}")), owner: None };
        ask(&daemon, &AdminCommand::Revoke(target));
    }
    let active = rows("a", 4, ",active");
    let gone = active.lines().last().expect("a row").to_owned() + "\n";
    for export in [active.clone(), rows("a", 4, ",active").replacen("active", "disabled", 3), gone, active] {
        let outcome = daemon.publish(&format!("{header}{export}"));
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(changes(outcome.changes), [0, 0, 0], "{export}");
    }
    assert_eq!(["a0", "a3"].map(|key| daemon.verdict(key)), ["REVOKED", "ALLOWED"]);
}

/// A plan that the configuration changes is an operator's decision. A key whose bucket is another one may do more.
#[test]
fn limits_are_compared_as_the_source_changes_them() {
    let header = "key_id,key_hash,plan,owner\n";
    let plans = |quota: &str| {
        format!(
            "[plans.pro]\nquota = {{ rate = '{quota}', per = 'owner' }}\n[plans.free]\nquota = '1/d'\n[plans.none]\n"
        )
    };
    let export = |rest: &str| format!("{header}{}", rows("a", 3, rest));
    let daemon = Setup::text(&export(",pro,acme")).config(&plans("10/d")).start();
    fs::write(daemon.setup.path("keyward.toml"), plans("100/d")).expect("writes");
    let loosened = [
        ("pro,acme", 0),
        ("pro,bolt", 3),
        ("free,bolt", 3),
        ("none,bolt", 3),
        ("free,bolt", 0),
        ("free,acme", 0),
    ];
    for (rest, loosened) in loosened {
        replace_export(&daemon.setup.source(), &export(&format!(",{rest}")));
        let outcome = daemon.force_reload();
        assert!(outcome.accepted, "{:?}", outcome.error);
        assert_eq!(changes(outcome.changes), [0, 0, loosened], "{rest}");
    }
}

/// Both sides are weighed at one instant: keys that have expired since the last reload are no change.
#[test]
fn natural_expiry_counts_as_nothing() {
    let header = "key_id,key_hash,expires_at\n";
    let soon = now() + 2;
    let export = format!("{header}{}", rows("a", 10, &format!(",{soon}")));
    let daemon = Daemon::serving(&export);
    crate::support::wait_for("the keys to expire", || (daemon.verdict("a0") == "EXPIRED").then_some(()));
    let outcome = daemon.publish(&export);
    assert_eq!((outcome.accepted, changes(outcome.changes)), (true, [0, 0, 0]));
    let renewed = format!("{header}{}", rows("a", 10, ",2099-01-01T00:00:00Z"));
    let refused = daemon.publish(&renewed).error.expect("refused");
    assert!(refused.contains("10 of 10 keys that have expired or are not valid yet would work"), "{refused}");
}

#[test]
fn required_field_that_is_not_there_is_refused_from_the_first_load_on() {
    let setup =
        Setup::text("key_id,key_hash\n").config("[source]\nrequired = [\"status\", \"allowed_ips\"]\n");
    let daemon = setup.start();
    let outcome = daemon.publish(&three_keys("key_id,key_hash,status", [","; 3]));
    let error = outcome.error.expect("refused");
    assert!(error.contains("there is no column \"allowed_ips\" in the header"), "{error}");
    assert_eq!(daemon.verdict("a"), "NOT_READY");
    assert!(daemon.publish(&three_keys("key_id,key_hash,status,allowed_ips", [",,"; 3])).accepted);
}
