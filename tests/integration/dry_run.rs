//! A running daemon says what a reload would do, by its own configuration, and goes on serving what it has.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use crate::support::{Daemon, Setup, keyward, replace_export, sha256_hex};
use keyward_daemon::admin::message::Check;
use keyward_daemon::admin::message::Command as AdminCommand;
use keyward_daemon::admin::{CommandError, send_command};
use serde_json::Value;

/// The daemon's own names for columns, which no other would understand.
const CONFIG: &str =
    "[source.columns]\nkey_hash = \"sha256\"\n[source]\nignore = [\"note\"]\nmax_shrink = 0.5\n";

fn export(rows: &[(&str, &str)]) -> String {
    rows.iter().fold("sha256,key_id,note,status,limits\n".to_owned(), |text, (key, rest)| {
        text + &format!("{},{key},,{rest}\n", sha256_hex(key))
    })
}

fn daemon(rows: &[(&str, &str)]) -> Daemon {
    let setup = Setup::text(&export(rows)).config(CONFIG);
    let daemon = setup.start();
    assert!(daemon.status().ready, "{}", daemon.log());
    daemon
}

fn check(daemon: &Daemon, source: Option<&Path>) -> Check {
    let source = source.map(|path| path.to_str().expect("UTF-8").to_owned());
    let reply = send_command(&daemon.admin_socket(), &AdminCommand::Check { source }).expect("an answer");
    reply.check.expect("a check")
}

fn run(daemon: &Daemon, options: &[&str]) -> Output {
    let mut command = keyward();
    command.args(["check", "--daemon", "--admin-socket"]).arg(daemon.admin_socket()).args(options);
    command.current_dir(daemon.setup.dir.path()).output().expect("runs")
}

const FOUR: [(&str, &str); 4] = [("a", ",1/s"), ("b", ",1/s"), ("c", ",1/s"), ("d", ",1/s")];

#[test]
fn a_check_tells_what_a_reload_would_do_and_does_nothing() {
    let daemon = daemon(&FOUR);
    let new = daemon.setup.path("new.csv");
    fs::write(&new, export(&[("a", ",1/s"), ("b", "revoked,1/s"), ("c", ",2/s"), ("e", ",1/s")]))
        .expect("writes");
    let output = run(&daemon, &["--source", "new.csv"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let stub = |key: &str| sha256_hex(key)[..8].to_owned();
    let expected = format!(
        "{}: 4 keys: ok\n4 -> 4 keys: 1 added, 1 removed, 2 changed; 2 stop working, 1 loses a restriction\n  + e ({}…)\n  - d ({}…)\n  \
         ~ b ({}…): status active -> revoked\n  ~ c ({}…): limits\n  stops working: b ({}…): status active -> \
         revoked\n  stops working: d ({}…)\n  loses a restriction: c ({}…): limits\na reload would accept it\n",
        new.display(),
        stub("e"),
        stub("d"),
        stub("b"),
        stub("c"),
        stub("b"),
        stub("d"),
        stub("c")
    );
    assert_eq!(text, expected);

    let output = run(&daemon, &["--source", "new.csv", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["ok"], &report["diff"]["generation"]), (&true.into(), &1.into()), "{report}");

    let status = daemon.status();
    assert_eq!((status.generation, status.keys), (1, 4));
    assert_eq!([daemon.verdict("b"), daemon.verdict("e")], ["ALLOWED", "UNKNOWN_KEY"]);

    // What was said is what happens.
    fs::rename(&new, daemon.setup.source()).expect("renamed");
    let diff = check(&daemon, None).diff;
    let changes = diff.as_ref().map(|diff| diff.changes);
    let reload = daemon.reload();
    // The watch may have been first.
    let outcome = if reload.unchanged { daemon.status().last_accepted.expect("one") } else { reload };
    assert_eq!(outcome.generation, daemon.status().generation);
    assert_eq!(daemon.verdict("b"), "REVOKED");
    let again = check(&daemon, None).diff.expect("a diff");
    assert!(again.unchanged && again.accepted, "{again:?} after {changes:?}");
}

#[test]
fn what_is_wrong_and_what_the_guard_would_refuse_is_said_in_the_words_of_a_reload() {
    let daemon = daemon(&FOUR);
    let new = daemon.setup.path("new.csv");
    fs::write(&new, export(&[("a", ",1/s")])).expect("writes");
    let checked = check(&daemon, Some(&new)).diff.expect("a diff");
    let said = checked.refused.expect("a reason");
    assert!(!checked.accepted && said.contains("3 of 4 working keys would stop working"), "{said}");
    assert_eq!(run(&daemon, &["--source", "new.csv"]).status.code(), Some(1));

    fs::write(&new, export(&[("a", ",1/s"), ("b", ",fast"), ("c", ",slow")])).expect("writes");
    let checked = check(&daemon, Some(&new));
    let findings = checked.diagnostics.expect("findings");
    assert_eq!((findings.total, checked.diff), (2, None));
    let first = &findings.first[0];
    assert_eq!((first.line, first.column, first.name.as_deref()), (Some(3), Some(5), Some("limits")));
    let output = run(&daemon, &["--source", "new.csv"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with(&format!("{}:3: column 5 (limits): \"fast\" is not", new.display())), "{said}");

    for (content, part) in [("sha256,key_id\n", "no keys"), ("", "the file is empty")] {
        fs::write(&new, content).expect("writes");
        let checked = check(&daemon, Some(&new));
        let refused = checked.diff.and_then(|diff| diff.refused).or(checked.error).expect("a reason");
        assert!(refused.contains(part), "{refused}");
    }
    fs::remove_file(&new).expect("removed");
    let checked = check(&daemon, Some(&new));
    assert!(checked.error.is_some_and(|error| error.contains("No such file")));

    let status = daemon.status();
    assert_eq!((status.generation, status.keys, daemon.verdict("a").as_str()), (1, 4, "ALLOWED"));
    assert!(status.last_reload.expect("one").accepted, "a check is no reload");
}

#[test]
fn checks_and_reloads_do_not_get_in_each_others_way() {
    let daemon = daemon(&FOUR);
    let new = daemon.setup.path("new.csv");
    let many: Vec<String> = (0..20_000).map(|number| format!("k{number}")).collect();
    let rows: Vec<_> = many.iter().map(|key| (key.as_str(), ",1/s")).collect();
    fs::write(&new, export(&rows)).expect("writes");
    std::thread::scope(|scope| {
        let checks: Vec<_> = (0..8).map(|_| scope.spawn(|| check(&daemon, Some(&new)))).collect();
        for round in 0..10 {
            let limit = format!(",{}/s", round + 2);
            let rows = FOUR.map(|(key, _)| (key, limit.as_str()));
            replace_export(&daemon.setup.source(), &export(&rows));
            let outcome = daemon.reload();
            assert!(outcome.accepted, "{:?}", outcome.error);
        }
        for check in checks {
            let diff = check.join().expect("answered").diff.expect("a diff");
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
fn a_relative_path_is_refused() {
    let daemon = daemon(&FOUR);
    let error =
        send_command(&daemon.admin_socket(), &AdminCommand::Check { source: Some("new.csv".to_owned()) })
            .expect_err("refused");
    assert!(matches!(&error, CommandError::Refused(said) if said.contains("absolute")), "{error}");
}

/// What is wrong with a file is told with parts of it, and the daemon may read what others may not.
#[test]
#[ignore = "needs root, to run as another user: tests/run runs it"]
fn who_is_neither_root_nor_the_daemon_cannot_have_it_read_any_file() {
    const NOBODY: u32 = 65_534;
    let setup = Setup::text(&export(&FOUR)).config(&format!("server.admin_uids = [{NOBODY}]\n{CONFIG}"));
    let secret = setup.path("secret.csv");
    fs::write(&secret, "sha256,key_id,hunter2\n").expect("writes");
    let open = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("permissions");
    };
    open(setup.dir.path(), 0o755);
    open(&secret, 0o600);
    // Where the binary is, others may not look.
    let binary = setup.path("keyward");
    fs::copy(env!("CARGO_BIN_EXE_keyward"), &binary).expect("copied");
    open(&binary, 0o755);
    let daemon = setup.start();
    let check = |options: &[&str]| {
        let mut command = std::process::Command::new(&binary);
        command.args(["check", "--daemon", "--admin-socket"]).arg(daemon.admin_socket()).args(options);
        command.uid(NOBODY).current_dir("/").env_remove("KEYWARD_SOCKET").output().expect("runs")
    };
    let output = check(&["--source", secret.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("only root and the daemon's own user") && !said.contains("hunter2"), "{said}");
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(0), "its own source, anyone who may ask: {output:?}");
}
