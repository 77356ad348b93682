//! Checks of valid, malformed and suspicious exports, and comparisons.

use super::super::tests::run_with;
use super::*;

const A: &str = "0123456789abcdeffedcba98765432100f1e2d3c4b5a69788796a5b4c3d2e1f0";
const B: &str = "f123456789abcdeffedcba98765432100f1e2d3c4b5a69788796a5b4c3d2e1f0";

const END: &str = "2099-01-01T00:00:00Z";

/// Checks an export, with `old` in `old.csv`. The name of the directory is removed from the output.
/// The state directory is empty: in the default one, a daemon of this machine may have stored keys.
fn compared(old: &str, export: &str, options: &[&str]) -> (Exit, String, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keys.csv");
    std::fs::write(&path, export).expect("writes");
    std::fs::write(dir.path().join("old.csv"), old).expect("writes");
    let path = path.to_str().expect("UTF-8");
    let old = path.replace("keys.csv", "old.csv");
    let config = dir.path().join("keyward.toml");
    std::fs::write(&config, format!("server.state_dir = '{}'\n", dir.path().display())).expect("writes");
    let config = config.to_str().expect("UTF-8");
    let options: Vec<_> = options.iter().map(|option| option.replace("old.csv", &old)).collect();
    let mut arguments = vec!["check", "--config", config, "--source", path];
    arguments.extend(options.iter().map(String::as_str));
    let (exit, output, messages) = run_with(&arguments, b"");
    let short = |text: String| text.replace(path, "keys.csv").replace(&old, "old.csv");
    (exit, short(output), short(messages))
}

fn check(export: &str, options: &[&str]) -> (Exit, String, String) {
    compared("", export, options)
}

fn json(output: &str) -> serde_json::Value {
    assert_eq!(output.lines().count(), 1, "{output}");
    serde_json::from_str(output).expect("JSON")
}

#[test]
fn valid_export_is_summarized() {
    let export = format!(
        "key_hash,key_id,owner,status,expires_at,limits\n{A},k1,acme,,{END},100/s\n{B},k1,acme,revoked,1000000000,100/s\n"
    );
    let (exit, output, messages) = check(&export, &[]);
    assert_eq!(
        output,
        "keys.csv: 2 keys (1 active, 1 revoked, 1 expired), 1 key id, 1 owner, 1 policy: ok\n"
    );
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let (exit, output, _) = check(&export, &["--json"]);
    assert_eq!(
        output,
        "{\"ok\":true,\"source\":\"keys.csv\",\"keys\":2,\"key_ids\":1,\"owners\":1,\"policies\":1,\
         \"active\":1,\"disabled\":0,\"revoked\":1,\"expired\":1,\"not_yet_valid\":0,\"without_limits\":0,\
         \"lints\":{\"warnings\":0,\"notes\":0,\"counts\":{},\"first\":[]}}\n"
    );
    assert_eq!(exit, Exit::Done);
    assert_eq!(check(&export, &["--strict"]).0, Exit::Done);
}

#[test]
fn each_diagnostic_has_its_location() {
    let export = format!("key_hash,key_id,limits\n{A},k1,100\n{A},k2,\n{A},k3,\n");
    let (exit, output, messages) = check(&export, &[]);
    assert_eq!((exit, output.as_str()), (Exit::BadInput, ""));
    assert_eq!(
        messages,
        "keys.csv:2: column 3 (limits): \"100\" has no period; write 100/s for a rate, or 100 credits \
         for a total that is never refilled\n\
         keys.csv:4: the same key_hash as in line 3; a key may be listed once\n"
    );
    let (exit, output, messages) = check(&export, &["--json"]);
    assert_eq!(
        output,
        "{\"ok\":false,\"source\":\"keys.csv\",\"total_findings\":2,\"findings\":[{\"line\":2,\
         \"column\":3,\"name\":\"limits\",\"message\":\"\\\"100\\\" has no period; write 100/s for a \
         rate, or 100 credits for a total that is never refilled\",\"count\":1},{\"line\":4,\"message\":\"the same key_hash as in line 3; a key may be \
         listed once\",\"count\":1}]}\n"
    );
    assert_eq!((exit, messages.as_str()), (Exit::BadInput, ""));
}

#[test]
fn diagnostics_of_one_kind_do_not_hide_another_kind() {
    let rows: String = (0..30).map(|n| format!("{A},k{n},t{n},\n")).collect();
    let export = format!("key_hash,key_id,status,limits\n{rows}{B},k,,fast\n");
    let (_, _, messages) = check(&export, &[]);
    assert_eq!(
        messages,
        "keys.csv:2: column 3 (status): \"t0\" is not a status; it is active, disabled or revoked (and 29 more like it)\n\
         keys.csv:32: column 4 (limits): \"fast\" is not a limit; write it as 100/s, 1000/h burst 50, \
         10000/month or 5000 credits\n"
    );
    let (_, output, _) = check(&export, &["--json"]);
    let report = json(&output);
    assert_eq!(report["total_findings"], 31);
    assert_eq!((&report["findings"][0]["count"], &report["findings"][1]["count"]), (&30.into(), &1.into()));
}

#[test]
fn first_twenty_diagnostics_are_shown_and_the_rest_counted() {
    let header: String = (0..30).map(|n| format!(",c{n}")).collect();
    let (_, _, messages) = check(&format!("key_hash,key_id{header}\n"), &[]);
    assert_eq!(messages.lines().count(), 21);
    assert!(messages.ends_with("keys.csv: and 10 more of other kinds\n"), "{messages}");
    let (_, output, _) = check(&format!("key_hash,key_id{header}\n"), &["--json"]);
    let report = json(&output);
    assert_eq!(report["total_findings"], 30);
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(20));
}

#[test]
fn export_without_keys_is_refused() {
    let (exit, _, messages) = check("key_hash,key_id\n", &[]);
    assert_eq!(exit, Exit::BadInput);
    assert!(messages.starts_with("keyward: keys.csv: no keys in it"), "{messages}");
    let (exit, output, _) = check("key_hash,key_id\n", &["--json"]);
    assert_eq!(exit, Exit::BadInput);
    assert!(output.starts_with("{\"ok\":false,\"source\":\"keys.csv\",\"error\":\"keys.csv: no"), "{output}");
}

#[test]
fn warnings_are_reported_and_fail_only_with_strict() {
    let export = format!("key_hash,key_id,expires_at,scopes\n{A},k1,{END},a:*\n{B},K1,,*\n");
    let (exit, output, messages) = check(&export, &[]);
    assert_eq!(exit, Exit::Done);
    assert!(output.ends_with(": ok\n"), "{output}");
    assert_eq!(
        messages,
        "keys.csv:2: warning: the key has no limit, neither in its row nor in its plan [no_limit]\n\
         keys.csv:2: note: the scope \"a:*\" also covers future scopes that begin like it [wildcard_ending]\n\
         keys.csv:3: warning: the scope * covers every scope, including future ones [wildcard_scope]\n\
         keys.csv:3: warning: the key has no limit, neither in its row nor in its plan [no_limit]\n\
         keys.csv:3: warning: the key never expires: without expires_at, a leaked key works for ever [no_expiry]\n\
         keys.csv:3: warning: the key_id \"K1\" is easily mistaken for that of line 2: they differ only in case, in \
         spaces, in - _ . or in characters that are invisible or look alike [near_duplicate]\n\
         keys.csv: 5 warnings: 1 wildcard_scope, 2 no_limit, 1 no_expiry, 1 near_duplicate\n\
         keys.csv: 1 note: 1 wildcard_ending\n"
    );
    assert_eq!(check(&export, &["--strict"]), (Exit::Denied, output, messages));
    let (exit, output, messages) = check(&export, &["--strict", "--json"]);
    assert_eq!((exit, messages.as_str()), (Exit::Denied, ""));
    let report = json(&output);
    assert_eq!((&report["ok"], &report["lints"]["warnings"]), (&false.into(), &5.into()));
    assert_eq!(report["lints"]["counts"]["no_limit"], 2);
    let first = serde_json::json!({
        "line": 2, "lint": "no_limit", "message": "the key has no limit, neither in its row nor in its plan"
    });
    assert_eq!(report["lints"]["first"][0], first);
    let note = format!("key_hash,key_id,expires_at,scopes,limits\n{A},k1,{END},a:*,1/s\n");
    assert_eq!(check(&note, &["--strict"]).0, Exit::Done, "a note is no warning");
}

#[test]
fn configuration_error_has_its_location() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keyward.toml");
    std::fs::write(&path, "[source]\npath = '/keys.csv'\npoll = 'soon'\n").expect("writes");
    let path = path.to_str().expect("UTF-8");
    let (exit, output, messages) = run_with(&["check", "--json", "--config", path], b"");
    assert_eq!((exit, messages.as_str()), (Exit::BadInput, ""));
    let report = json(&output);
    let place = serde_json::json!({"file": path, "line": 3, "column": 8, "setting": "source.poll"});
    assert_eq!((&report["ok"], &report["config"]), (&false.into(), &place), "{output}");
    assert!(report["error"].as_str().is_some_and(|error| error.contains("keyward.toml:3:8: source.poll")));
    let (exit, output, messages) = run_with(&["check", "--config", path], b"");
    assert_eq!((exit, output.as_str()), (Exit::BadInput, ""));
    assert!(messages.starts_with("keyward: ") && messages.contains("source.poll"), "{messages}");
}

#[test]
fn plan_in_shadow_mode_does_not_limit() {
    let dir = tempfile::tempdir().expect("a directory");
    let [source, config] = ["keys.csv", "keyward.toml"].map(|name| dir.path().join(name));
    std::fs::write(
        &source,
        format!("key_hash,key_id,expires_at,plan\n{A},k1,{END},pro\n{B},k2,{END},free\n"),
    )
    .expect("writes");
    let check = |limits: &str| {
        let (source, state) = (source.display(), dir.path().display());
        let text =
            format!("source.path = '{source}'\nserver.state_dir = '{state}'\n{limits}\n[plans.free]\n");
        std::fs::write(&config, text).expect("writes");
        let config = config.to_str().expect("UTF-8");
        let (exit, output, messages) = run_with(&["check", "--json", "--config", config], b"");
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""), "{output}");
        let report = json(&output);
        let lines = report["lints"]["first"].as_array().expect("a list").iter();
        lines.map(|warning| warning["line"].as_u64().expect("a line")).collect::<Vec<_>>()
    };
    assert_eq!(check("[plans.pro]\nrequests = '100/s'"), [3]);
    assert_eq!(check("[plans.pro]\nrequests = { limit = '100/s', shadow = true }"), [2, 3]);
}

#[test]
fn changes_are_shown_with_examples() {
    let header = "key_hash,key_id,owner,status,expires_at,limits\n";
    let row = |number: u32, rest: &str| format!("{number:08x}{},k{number},{rest}\n", &A[8..]);
    let same = format!(",,{END},1/s");
    let old: String = (1..=6).map(|number| row(number, &format!("acme{same}"))).collect();
    let new = [
        row(2, &format!("acme{same}")),
        row(3, &format!("acme,revoked,{END},1/s")),
        row(4, "acme,,2098-01-01T00:00:00Z,2/s"),
        row(5, &same),
        row(6, &format!("acme{same}")),
        row(7, &format!("acme{same}")),
    ];
    let (old, new) = (format!("{header}{old}"), format!("{header}{}", new.concat()));
    let (exit, output, messages) = compared(&old, &new, &["--against", "old.csv"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let lines: Vec<_> = output.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "6 -> 6 keys: 1 added, 1 removed, 3 changed; 2 stop working, 1 loses a restriction",
            "  + k7 (00000007…)",
            "  - k1 (00000001…)",
            "  ~ k3 (00000003…): status active -> revoked",
            "  ~ k4 (00000004…): expires_at 2099-01-01T00:00:00Z -> 2098-01-01T00:00:00Z, limits",
            "  ~ k5 (00000005…): owner acme -> none",
            "  stops working: k1 (00000001…)",
            "  stops working: k3 (00000003…): status active -> revoked",
            "  loses a restriction: k4 (00000004…): expires_at 2099-01-01T00:00:00Z -> 2098-01-01T00:00:00Z, limits",
            "a reload would accept it",
        ]
    );
    let (_, output, _) = compared(&old, &new, &["--against", "old.csv", "--json"]);
    let report = json(&output);
    assert_eq!(report["ok"], true);
    assert_eq!(report["diff"]["changes"]["changed"], 3);
    assert_eq!(
        report["diff"]["examples"]["changed"][0],
        serde_json::json!({
            "key_id": "k3", "hash": "00000003",
            "differences": [{"field": "status", "before": "active", "after": "revoked"}]
        })
    );
    assert!(!output.contains(&A[8..20]), "never a whole hash: {output}");
    let (exit, output, _) = compared(&old, &old, &["--against", "old.csv"]);
    assert_eq!(exit, Exit::Done);
    assert!(output.ends_with("6 keys: nothing would change\na reload would accept it\n"), "{output}");
}

#[test]
fn source_that_the_guard_would_refuse_fails() {
    let header = "key_hash,key_id,expires_at,limits\n";
    let rows = |count: u32| -> String {
        (0..count).map(|number| format!("{number:08x}{},k{number},{END},1/s\n", &A[8..])).collect()
    };
    let old = format!("{header}{}", rows(100));
    let (exit, output, messages) =
        compared(&old, &format!("{header}{}", rows(49)), &["--against", "old.csv"]);
    assert_eq!(exit, Exit::Denied);
    assert!(output.contains("100 -> 49 keys: 0 added, 51 removed"), "{output}");
    assert!(output.contains("  - and 31 more\n"), "{output}");
    let refused = "a reload would refuse it: keys.csv: 51 of 100 working keys would stop working, more than source.max_shrink (50 %) \
                   allows (\"k49\", \"k50\", \"k51\" and others)";
    assert!(messages.contains(refused), "{messages}");
    assert_eq!(compared(&old, &format!("{header}{}", rows(50)), &["--against", "old.csv"]).0, Exit::Done);
    let (exit, output, _) = compared(&old, header, &["--against", "old.csv", "--json"]);
    let report = json(&output);
    assert_eq!(
        (exit, &report["ok"], &report["diff"]["accepted"]),
        (Exit::Denied, &false.into(), &false.into())
    );
    let refused = report["diff"]["refused"].as_str().expect("a reason");
    assert!(refused.contains("no keys in it"), "{refused}");
    let (exit, _, messages) = compared("key_hash\n", &old, &["--against", "old.csv"]);
    assert_eq!(exit, Exit::BadInput);
    assert!(messages.contains("--against: old.csv"), "{messages}");
}

#[test]
fn missing_daemon_is_unreachable() {
    let (exit, _, messages) = run_with(&["check", "--daemon", "--admin-socket", "/nowhere/a.sock"], b"");
    assert_eq!(exit, Exit::Unavailable);
    assert!(messages.contains("is the daemon running?"), "{messages}");
    for options in [&["--daemon", "--strict"][..], &["--daemon", "--against", "a.csv"]] {
        assert!(super::super::tests::parse(&[&["check"], options].concat()).is_err(), "{options:?}");
    }
}
