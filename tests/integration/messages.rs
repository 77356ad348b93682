//! Messages of the command line: an error names its place and the remedy.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::{
    CommandOutput, Daemon, Export, Setup, key_target, keyward, owner_target, row, sha256_hex,
};
use keyward_admin::message::Command;
use keyward_engine::record::is_invisible;

/// Runs a command in a directory. Returns its exit code, standard output and standard error.
fn run(directory: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = keyward();
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    // Fails if the command exits without reading its input.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

/// As [`run`], in the daemon's directory, which has the sockets `keyward.sock` and `admin.sock`.
fn run_in_daemon_dir(daemon: &Daemon, arguments: &[&str], input: &str) -> (i32, String, String) {
    run(daemon.setup.dir.path(), arguments, input)
}

#[track_caller]
fn assert_fails((code, _, messages): (i32, String, String), expected_code: i32, parts: &[&str]) {
    assert_eq!(code, expected_code, "{messages}");
    for part in parts {
        assert!(messages.contains(part), "{part:?} is not in: {messages}");
    }
}

fn daemon() -> Daemon {
    Daemon::serving_text(Export::of(["a"]))
}

#[test]
fn unreachable_socket_error_names_the_socket_options() {
    let dir = tempfile::tempdir().expect("a directory");
    let status = run(dir.path(), &["status", "--socket", "no.sock"], "");
    assert_fails(
        status,
        69,
        &["admin.sock", "is the daemon running?", "--socket", "--admin-socket", "KEYWARD_SOCKET"],
    );
    let verify = run(dir.path(), &["verify", "--socket", "no.sock"], "key\n");
    assert_fails(verify, 69, &["no.sock", "is the daemon running", "--socket", "KEYWARD_SOCKET"]);
}

#[test]
fn verify_on_the_admin_socket_is_diagnosed() {
    let daemon = daemon();
    let verify = run_in_daemon_dir(&daemon, &["verify", "--socket", "admin.sock"], "a\n");
    assert_fails(verify, 69, &["admin.sock", "is this the admin socket?"]);
}

#[test]
fn source_with_an_unknown_extension_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    for source in [".", "keys.txt"] {
        let check = run(dir.path(), &["check", "--state-dir", "state", "--source", source], "");
        assert_fails(
            check,
            78,
            &[&format!("--source: {source}: the extension of its name is not that of a format")],
        );
    }
    fs::write(dir.path().join("k.toml"), "source.path = '/srv/keys.txt'\n").expect("writes");
    let check = run(dir.path(), &["check", "--config", "k.toml"], "");
    assert_fails(
        check,
        78,
        &["source.path: /srv/keys.txt: the extension of its name is not that of a format"],
    );
}

#[test]
fn unreadable_missing_or_empty_key_file_is_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("keys")).expect("a directory");
    fs::write(dir.path().join("empty"), "").expect("writes");
    assert_fails(
        run(dir.path(), &["verify", "--key-file", "keys"], ""),
        2,
        &["--key-file: keys: ", "Is a directory"],
    );
    assert_fails(
        run(dir.path(), &["verify", "--key-file", "none"], ""),
        2,
        &["--key-file: cannot open none: "],
    );
    let empty = run(dir.path(), &["verify", "--key-file", "empty"], "");
    assert_fails(empty, 2, &["--key-file: empty: there is no key in it"]);
}

#[test]
fn surplus_argument_error_says_what_the_command_takes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, _, messages) = run(dir.path(), &["compile", "a.jsonl", "extra", "--output", "x.kwc"], "");
    assert_eq!(code, 2);
    assert!(messages.contains("keyward compile keys.csv --output keys.kwc"), "{messages}");
    assert!(!messages.contains("read from standard input") && !messages.contains("extra"), "{messages}");
    let (_, _, messages) = run(dir.path(), &["verify", "S3cret"], "");
    assert!(messages.contains("Keys are read from standard input"), "{messages}");
}

#[test]
fn json_lines_in_a_csv_file_are_diagnosed() {
    let dir = tempfile::tempdir().expect("a directory");
    let row = format!("{{\"key_hash\":\"{}\",\"key_id\":\"a\",\"scopes\":[\"x\"]}}\n", sha256_hex("a"));
    fs::write(dir.path().join("k.csv"), row).expect("writes");
    let check = run(dir.path(), &["check", "--state-dir", "state", "--source", "k.csv"], "");
    assert_fails(check, 78, &["k.csv:1: this looks like JSON Lines", ".jsonl", "source.format"]);
}

#[test]
fn revocation_timeout_says_that_it_may_still_take_effect() {
    let daemon = daemon();
    daemon.pause();
    let revoke = ["revoke", "a", "--socket", "keyward.sock", "--deadline", "100ms"];
    let revoke = run_in_daemon_dir(&daemon, &revoke, "");
    daemon.resume();
    assert_fails(revoke, 69, &["within 100ms", "may still come into force", "keyward status"]);
}

#[test]
fn ids_and_owners_with_a_leading_hyphen_are_accepted() {
    let ids = ["-Vx9", "-hello", "-h", "--help", "-o"];
    let daemon = Daemon::serving_text(Export::of(ids).rows([row("c").owner("-hV")]));
    let run = |arguments: &[&str]| {
        run_in_daemon_dir(&daemon, &[arguments, &["--socket", "keyward.sock"]].concat(), "")
    };
    let (code, text, _) = run(&["revoke", "-Vx9"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("revoked -Vx9 (1 key)"), "{text}");
    assert!(run(&["revoke", "-hello"]).1.starts_with("revoked -hello (1 key)"));
    assert!(run(&["revoke", "--owner", "-hV"]).1.starts_with("revoked owner -hV (1 key)"));
    let revoke_after_dashes =
        |id| run_in_daemon_dir(&daemon, &["revoke", "--socket", "keyward.sock", "--", id], "");
    for id in ["-h", "--help"] {
        assert!(revoke_after_dashes(id).1.starts_with(&format!("revoked {id} (1 key)")), "{id}");
    }
    for (key, verdict) in [
        ("-Vx9", "REVOKED"),
        ("-hello", "REVOKED"),
        ("-h", "REVOKED"),
        ("--help", "REVOKED"),
        ("c", "REVOKED"),
        ("-o", "ALLOWED"),
    ] {
        assert_eq!(daemon.verdict(key), verdict, "{key}");
    }
    assert!(run(&["unrevoke", "-Vx9"]).1.starts_with("unrevoked -Vx9 (1 key)"));
    assert_eq!(daemon.verdict("-Vx9"), "ALLOWED");
    let (code, text, _) = run(&["usage", "--key", "-Vx9"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("-Vx9: 1 allowed"), "{text}");
}

#[test]
fn invisible_characters_are_escaped_in_output() {
    let export = Export::new([row("a").id("a\u{202e}b").owner("\u{200b}acme")]);
    let daemon = Daemon::serving_text(export);
    let assert_escaped = |arguments: &[&str], input| {
        let (_, text, messages) = run_in_daemon_dir(&daemon, arguments, input);
        assert!(!text.contains(['\u{202e}', '\u{200b}']), "{arguments:?}: {text}");
        assert!(!messages.contains(['\u{202e}', '\u{200b}']), "{arguments:?}: {messages}");
        text
    };
    let text = assert_escaped(&["verify", "--socket", "keyward.sock"], "a\n");
    assert!(text.contains(r#"key_id="a\u{202e}b"  owner="\u{200b}acme""#), "{text}");
    let text = assert_escaped(&["verify", "--socket", "keyward.sock", "--json"], "a\n");
    assert!(text.contains(r#""key_id":"a\u202eb""#), "{text}");
    assert_escaped(&["revoke", "a\u{202e}b", "--socket", "keyward.sock"], "");
    assert_escaped(&["revoke", "--owner", "\u{200b}acme", "--socket", "keyward.sock"], "");
    let text = assert_escaped(&["status", "--socket", "keyward.sock"], "");
    assert!(text.contains(r"a\u{202e}b"), "{text}");
    assert_escaped(&["usage", "--socket", "keyward.sock"], "");
    assert_escaped(&["check", "--daemon", "--socket", "keyward.sock"], "");
    let source = daemon.setup.source();
    assert_escaped(&["check", "--source", source.to_str().expect("UTF-8")], "");
}

/// What a daemon logs about an export and commands that contain `hostile`, from start to end.
fn log_about(hostile: &str, format: &str) -> String {
    let text = |name: &str| format!("{name}{hostile}FORGED");
    let export = Export::new([row("a").id(text("a")).owner(text("acme"))]);
    // Loaded once: the number of lines must not depend on how often.
    let setup = Setup::text(export).config(&format!("log.format = '{format}'\nsource.poll = '1h'\n"));
    let mut daemon = setup.start();
    for target in [key_target(&text("a")), owner_target(&text("acme"))] {
        // Whether it is refused depends on the characters.
        let _ = daemon.send_command(&Command::Revoke(target.clone()));
        let _ = daemon.send_command(&Command::Unrevoke(target));
    }
    daemon.stop();
    // Each line of the audit trail is an object.
    assert!(!daemon.setup.audit_trail().is_empty());
    daemon.log()
}

#[test]
fn texts_of_exports_and_commands_forge_no_lines_of_the_log() {
    for format in ["text", "json"] {
        // A tab is as bad in a key id as a newline, and forges nothing.
        let expected = log_about("\t", format).lines().count();
        assert!(expected > 3, "the daemon logs what it does");
        for hostile in ["\n", "\r\n", "\u{1b}[2J\u{1b}[1;1H", "\u{85}", "\u{9b}2J", "\0"] {
            let log = log_about(hostile, format);
            assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "{hostile:?}: {log:?}");
            assert_eq!(log.lines().count(), expected, "{hostile:?}: {log}");
        }
        // Accepted, and escaped.
        let log = log_about("\u{2028}", format);
        assert!(!log.contains(['\u{2028}', '\u{202e}']), "{log}");
    }
}

/// Texts of the configuration that no message quotes on purpose.
#[test]
fn texts_of_the_configuration_are_escaped_in_output_and_in_the_log() {
    let hostile = "\u{1b}[31m\n\u{202e}\u{9b}2J\u{7f}";
    let quoted = serde_json::to_string(hostile).expect("JSON").replace('\u{7f}', "\\u007f");
    let tables = [
        format!("[plans.{quoted}]\na = '1/s'\n"),
        format!("[plans.pro]\n{quoted} = '1/s'\n"),
        format!("[plans.pro]\na = {quoted}\n"),
        format!("{quoted} = 1\n"),
        format!("[server]\n{quoted} = 1\n"),
        format!("[keys]\ndefault_plan = {quoted}\n"),
        format!("[keys]\npepper_file = {quoted}\n"),
        format!("[server]\nsocket_group = {quoted}\n"),
        format!("[source.columns]\nowner = {quoted}\n"),
        format!("[source.columns]\n{quoted} = 'x'\n"),
        format!("[log]\nlevel = {quoted}\n"),
    ];
    let assert_escaped = |text: &str| {
        assert!(!text.contains(|c| c != '\n' && is_invisible(c)), "{text:?}");
        // A newline in a text must not begin a line of its own.
        assert!(text.lines().all(|line| !line.starts_with(['\u{202e}', '\\'])), "{text}");
    };
    for format in ["text", "json"] {
        let settings = format!("log.format = '{format}'\nsource.poll = '1h'\n");
        let daemon = Setup::new(Export::new([row("a")])).config(&settings).start();
        let config = daemon.setup.path("keyward.toml");
        let before = fs::read_to_string(&config).expect("a file");
        for table in &tables {
            fs::write(&config, format!("{before}{table}")).expect("writes");
            let error = daemon.reload().error.unwrap_or_else(|| panic!("accepted: {table}"));
            let CommandOutput { stdout, stderr, .. } = daemon.run_keyward(&["reload"]);
            let status = daemon.run_keyward(&["status"]).stdout;
            let mut check = keyward();
            let other = daemon.setup.path("other.toml");
            fs::write(&other, table).expect("writes");
            let check = crate::support::run(check.args(["check", "--config"]).arg(other));
            for text in [&stdout, &stderr, &status, &check.stdout, &check.stderr, &daemon.log()] {
                assert_escaped(text);
            }
            assert!(stderr.contains("\\u{1b}") || !error.contains('\u{1b}'), "{table}: {stderr}");
        }
    }
}

#[test]
fn unused_key_has_no_recorded_usage() {
    let daemon = daemon();
    let usage = |arguments: &[&str]| {
        run_in_daemon_dir(&daemon, &[&["usage", "--socket", "keyward.sock"], arguments].concat(), "")
    };
    let (code, text, _) = usage(&["--key", "nokey"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("no usage of the key nokey is recorded"), "{text}");
    let (_, text, _) = usage(&["--owner", "not listed"]);
    assert!(text.starts_with("no usage of the owner \"not listed\" is recorded"), "{text}");
    assert!(usage(&[]).1.starts_with("0 keys: "));
}

#[test]
fn help_of_key_new_states_the_maximum_count() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, help, _) = run(dir.path(), &["key", "new", "--help"], "");
    assert_eq!(code, 0);
    assert!(help.contains("at most 100000"), "{help}");
}

#[test]
fn repeated_warnings_are_summarised() {
    let setup = Setup::without_export();
    let limited =
        (0..100).map(|number| row(format!("unguessable {number}")).id(format!("k{number}")).limits("1/s"));
    let export = Export::new(limited).rows([row("unguessable too").id("rare")]);
    fs::write(setup.path("k.csv"), export.to_csv()).expect("writes");
    let (_, _, messages) = run(setup.dir.path(), &["check", "--state-dir", "state", "--source", "k.csv"], "");
    assert_eq!(messages.matches("[no_expiry]").count(), 3, "{messages}");
    assert_eq!(messages.matches("[no_limit]").count(), 1, "{messages}");
    assert!(messages.ends_with("k.csv: 102 warnings: 1 no_limit, 101 no_expiry\n"), "{messages}");
    let (_, report, _) =
        run(setup.dir.path(), &["check", "--state-dir", "state", "--source", "k.csv", "--json"], "");
    assert_eq!(report.matches("\"lint\":\"no_expiry\"").count(), 19, "JSON lists more of them: {report}");
}

#[test]
fn key_new_like_prints_a_row_in_the_columns_of_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("k.csv");
    let header = "key_id,note,limits,key_hash,owner,expires_at\n";
    fs::write(&path, format!("{header}old,,1/s,{},acme,\n", sha256_hex("old"))).expect("writes");
    let new = |arguments: &[&str]| {
        run(dir.path(), &[&["key", "new", "--like", "k.csv", "--key-id", "new"], arguments].concat(), "")
    };
    let (code, text, messages) = new(&["--owner", "a, b"]);
    assert_eq!((code, messages.as_str()), (0, ""));
    let lines: Vec<&str> = text.lines().collect();
    let key = lines[2].trim();
    let row = format!("new,,,{},\"a, b\",", sha256_hex(key));
    assert_eq!(lines[3..], ["", "Its row for k.csv, to be appended to it, which is not secret:", "", &*row]);

    assert_fails(new(&["--plan", "pro"]), 2, &["--like: k.csv has no column plan"]);
    assert_fails(new(&["--json"]), 2, &["--json"]);
    fs::write(&path, "key_id,limits\n").expect("writes");
    assert_fails(new(&[]), 2, &["--like: k.csv has no column key_hash"]);
    fs::write(&path, "{\"key_hash\":\"\"}\n").expect("writes");
    assert_fails(new(&[]), 2, &["--like: k.csv looks like JSON Lines", "--json"]);
    fs::remove_file(&path).expect("removed");
    assert_fails(new(&[]), 2, &["--like: cannot open k.csv: "]);
}
