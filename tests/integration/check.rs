//! A check by the running daemon reports what a reload would do, with the daemon's own
//! configuration, and changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{
    CommandOutput, Daemon, Export, Row, Setup, replace_export, row, run, sha256_hex, wait_until,
};
use keyward_admin::CommandError;
use keyward_admin::message::{Check, Command as AdminCommand};
use serde_json::Value;

/// Column names that only this daemon's configuration explains.
const CONFIG: &str =
    "[source.columns]\nkey_hash = \"sha256\"\n[source]\nignore = [\"note\"]\nmax_shrink = 0.5\n";

fn export(rows: impl IntoIterator<Item = Row>) -> String {
    let export = Export::new([]).columns(["note", "status", "limits"]).rows(rows);
    export.to_csv().replacen("key_hash", "sha256", 1)
}

/// The keys a to d, with one limit each.
fn four_keys() -> [Row; 4] {
    ["a", "b", "c", "d"].map(limited)
}

fn limited(key: &str) -> Row {
    row(key).limits("1/s")
}

fn start_daemon() -> Daemon {
    let daemon = Setup::text(export(four_keys())).config(CONFIG).start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

fn check(daemon: &Daemon, source: Option<&Path>) -> Check {
    let source = source.map(|path| path.to_str().expect("UTF-8").to_owned());
    daemon.send_command(&AdminCommand::Check { source }).expect("a reply").check.expect("a check")
}

/// Checks `new.csv` with the command line.
fn run_check(daemon: &Daemon, options: &[&str]) -> CommandOutput {
    daemon.run_keyward(&[&["check", "--daemon", "--source", "new.csv"], options].concat())
}

#[test]
fn check_reports_what_a_reload_would_change_and_changes_nothing() {
    let daemon = start_daemon();
    let new = daemon.setup.path("new.csv");
    let rows = [limited("a"), limited("b").status("revoked"), row("c").limits("2/s"), limited("e")];
    fs::write(&new, export(rows)).expect("writes");
    let output = run_check(&daemon, &[]);
    assert_eq!(output.code, Some(0), "{output:?}");
    let prefix = |key: &str| sha256_hex(key)[..8].to_owned();
    let expected = format!(
        "{}: 4 keys: ok\n4 -> 4 keys: 1 added, 1 removed, 2 changed; 2 stop working, 1 loses a restriction\n  + e ({}…)\n  - d ({}…)\n  \
         ~ b ({}…): status active -> revoked\n  ~ c ({}…): limits\n  stops working: b ({}…): status active -> \
         revoked\n  stops working: d ({}…)\n  loses a restriction: c ({}…): limits\na reload would accept it\n",
        new.display(),
        prefix("e"),
        prefix("d"),
        prefix("b"),
        prefix("c"),
        prefix("b"),
        prefix("d"),
        prefix("c")
    );
    assert_eq!(output.stdout, expected);

    let output = run_check(&daemon, &["--json"]);
    let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!((&report["ok"], &report["diff"]["generation"]), (&true.into(), &1.into()), "{report}");

    let status = daemon.status();
    assert_eq!((status.generation, status.keys), (1, 4));
    assert_eq!(daemon.verdicts(["b", "e"]), ["ALLOWED", "UNKNOWN_KEY"]);

    // The reload does what the check has reported.
    fs::rename(&new, daemon.setup.source()).expect("renamed");
    let diff = check(&daemon, None).diff;
    let changes = diff.as_ref().map(|diff| diff.changes);
    let reload = daemon.reload();
    // The watch may have reloaded it already.
    let outcome = if reload.unchanged { daemon.status().last_accepted.expect("one") } else { reload };
    assert_eq!(outcome.generation, daemon.status().generation);
    assert_eq!(daemon.verdict("b"), "REVOKED");
    let again = check(&daemon, None).diff.expect("a diff");
    assert!(again.unchanged && again.accepted, "{again:?} after {changes:?}");
}

#[test]
fn check_reports_errors_and_refusals_with_the_messages_of_a_reload() {
    let daemon = start_daemon();
    let new = daemon.setup.path("new.csv");
    fs::write(&new, export([limited("a")])).expect("writes");
    let checked = check(&daemon, Some(&new)).diff.expect("a diff");
    let reason = checked.refused.expect("a reason");
    assert!(!checked.accepted && reason.contains("3 of 4 working keys would stop working"), "{reason}");
    assert_eq!(run_check(&daemon, &[]).code, Some(1));

    let rows = [limited("a"), row("b").limits("fast"), row("c").limits("slow")];
    fs::write(&new, export(rows)).expect("writes");
    let checked = check(&daemon, Some(&new));
    let findings = checked.diagnostics.expect("findings");
    assert_eq!((findings.total, checked.diff), (2, None));
    let first = &findings.first[0];
    assert_eq!((first.line, first.column, first.name.as_deref()), (Some(3), Some(5), Some("limits")));
    let output = run_check(&daemon, &[]);
    assert_eq!(output.code, Some(78));
    let expected = format!("{}:3: column 5 (limits): \"fast\" is not", new.display());
    assert!(output.stderr.starts_with(&expected), "{output:?}");

    for (content, reason) in [("sha256,key_id\n", "no keys"), ("", "the file is empty")] {
        fs::write(&new, content).expect("writes");
        let checked = check(&daemon, Some(&new));
        let refused = checked.diff.and_then(|diff| diff.refused).or(checked.error).expect("a reason");
        assert!(refused.contains(reason), "{refused}");
    }
    fs::remove_file(&new).expect("removed");
    let checked = check(&daemon, Some(&new));
    assert!(checked.error.is_some_and(|error| error.contains("No such file")));

    let status = daemon.status();
    assert_eq!((status.generation, status.keys, daemon.verdict("a").as_str()), (1, 4, "ALLOWED"));
    assert!(status.last_reload.expect("one").accepted, "a check is not a reload");
}

#[test]
fn concurrent_checks_and_reloads_do_not_interfere() {
    let daemon = start_daemon();
    let new = daemon.setup.path("new.csv");
    let rows = (0..20_000).map(|number| limited(&format!("k{number}")));
    fs::write(&new, export(rows)).expect("writes");
    std::thread::scope(|scope| {
        let checks: Vec<_> = (0..8).map(|_| scope.spawn(|| check(&daemon, Some(&new)))).collect();
        for round in 0..10 {
            let rows = four_keys().map(|row| row.limits(format!("{}/s", round + 2)));
            replace_export(&daemon.setup.source(), export(rows));
            let outcome = daemon.reload();
            assert!(outcome.accepted, "{:?}", outcome.error);
        }
        for check in checks {
            let diff = check.join().expect("no panic").diff.expect("a diff");
            assert_eq!(
                (diff.keys, diff.serving, diff.changes.added, diff.changes.removed),
                (20_000, 4, 20_000, 4)
            );
            assert_eq!(diff.examples.added.len(), 20);
        }
    });
    assert_eq!(daemon.status().keys, 4);
}

#[test]
fn relative_path_is_refused() {
    let daemon = start_daemon();
    let check = AdminCommand::Check { source: Some("new.csv".to_owned()) };
    let error = daemon.send_command(&check).expect_err("refused");
    assert!(matches!(&error, CommandError::Refused(reason) if reason.contains("absolute")), "{error}");
}

/// Errors quote a file, and the daemon may read files that others may not.
#[test]
#[ignore = "needs root, to run as another user: tests/run runs it"]
fn other_users_cannot_make_the_daemon_read_a_file() {
    const NOBODY: u32 = 65_534;
    let config = format!("server.admin_uids = [{NOBODY}]\n{CONFIG}");
    let setup = Setup::text(export(four_keys())).config(&config);
    let secret = setup.path("secret.csv");
    fs::write(&secret, "sha256,key_id,hunter2\n").expect("writes");
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("permissions");
    };
    set_mode(setup.dir.path(), 0o755);
    set_mode(&secret, 0o600);
    // Other users may not read the binary's own directory.
    let binary = setup.path("keyward");
    fs::copy(env!("CARGO_BIN_EXE_keyward"), &binary).expect("copied");
    set_mode(&binary, 0o755);
    let daemon = setup.start();
    let check = |options: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(["check", "--daemon", "--admin-socket"]).arg(daemon.admin_socket()).args(options);
        run(command.uid(NOBODY).current_dir("/").env_remove("KEYWARD_SOCKET"))
    };
    let output = check(&["--source", secret.to_str().expect("UTF-8")]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("only root and the daemon's own user"), "{output:?}");
    assert!(!output.stderr.contains("hunter2"), "{output:?}");
    let output = check(&[]);
    assert_eq!(output.code, Some(0), "its own source may be checked: {output:?}");
}

#[test]
fn only_a_reload_warns_about_settings_that_need_a_restart() {
    let daemon = start_daemon();
    let config = daemon.setup.path("keyward.toml");
    let text = fs::read_to_string(&config).expect("reads");
    fs::write(&config, format!("{text}\n[audit]\nmax_file_size = \"1MiB\"\n")).expect("writes");
    let warning = "take effect at the next start only";
    check(&daemon, None);
    daemon.reload();
    wait_until("a warning", || daemon.log().contains(warning));
    let log = daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(warning)).collect();
    assert!(matches!(lines[..], [line] if line.contains("[audit]") && !line.contains("[server]")), "{log}");
}
