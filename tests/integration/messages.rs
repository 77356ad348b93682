//! What goes wrong at the command line says where, and what to do.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Daemon, Setup, keyward, sha256_hex};

/// Runs a command in a directory; its exit code, and what it wrote to standard output and to standard error.
fn run(directory: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = keyward();
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    // Who does not read its input has gone.
    let _not_read = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

/// As [`run`], in the daemon's directory; its sockets are `keyward.sock` and `admin.sock`.
fn run_beside(daemon: &Daemon, arguments: &[&str], input: &str) -> (i32, String, String) {
    run(daemon.setup.dir.path(), arguments, input)
}

#[track_caller]
fn said((code, _, messages): (i32, String, String), expected: i32, parts: &[&str]) {
    assert_eq!(code, expected, "{messages}");
    for part in parts {
        assert!(messages.contains(part), "{part:?} is not in: {messages}");
    }
}

fn daemon() -> Daemon {
    Daemon::serving_text(&format!("key_hash,key_id\n{},a\n", sha256_hex("a")))
}

#[test]
fn a_daemon_that_is_elsewhere_can_be_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let status = run(dir.path(), &["status", "--socket", "no.sock"], "");
    said(
        status,
        69,
        &["admin.sock", "is the daemon running?", "--socket", "--admin-socket", "KEYWARD_SOCKET"],
    );
    let verify = run(dir.path(), &["verify", "--socket", "no.sock"], "key\n");
    said(verify, 69, &["no.sock", "is the daemon running", "--socket", "KEYWARD_SOCKET"]);
}

#[test]
fn the_admin_socket_is_recognised() {
    let daemon = daemon();
    let verify = run_beside(&daemon, &["verify", "--socket", "admin.sock"], "a\n");
    said(verify, 69, &["admin.sock", "is this the admin socket?"]);
}

#[test]
fn a_source_without_a_format_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    for source in [".", "keys.txt"] {
        let check = run(dir.path(), &["check", "--source", source], "");
        said(check, 78, &[&format!("--source: {source}: the name's extension tells no format")]);
    }
    fs::write(dir.path().join("k.toml"), "source.path = '/srv/keys.txt'\n").expect("writes");
    let check = run(dir.path(), &["check", "--config", "k.toml"], "");
    said(check, 78, &["source.path: /srv/keys.txt: the name's extension tells no format"]);
}

#[test]
fn a_key_file_that_cannot_be_read_is_named_like_one_that_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("keys")).expect("a directory");
    fs::write(dir.path().join("empty"), "").expect("writes");
    said(
        run(dir.path(), &["verify", "--key-file", "keys"], ""),
        2,
        &["--key-file: keys: ", "Is a directory"],
    );
    said(run(dir.path(), &["verify", "--key-file", "none"], ""), 2, &["--key-file: cannot open none: "]);
    let empty = run(dir.path(), &["verify", "--key-file", "empty"], "");
    said(empty, 2, &["--key-file: empty: there is no key in it"]);
}

#[test]
fn one_argument_too_many_is_told_by_what_the_command_takes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, _, messages) = run(dir.path(), &["compile", "a.jsonl", "extra", "--output", "x.kwc"], "");
    assert_eq!(code, 2);
    assert!(messages.contains("keyward compile keys.csv --output keys.kwc"), "{messages}");
    assert!(!messages.contains("read from standard input") && !messages.contains("extra"), "{messages}");
    let (_, _, messages) = run(dir.path(), &["verify", "S3cret"], "");
    assert!(messages.contains("Keys are read from standard input"), "{messages}");
}

#[test]
fn json_lines_under_the_name_of_csv_are_recognised() {
    let dir = tempfile::tempdir().expect("a directory");
    let row = format!("{{\"key_hash\":\"{}\",\"key_id\":\"a\",\"scopes\":[\"x\"]}}\n", sha256_hex("a"));
    fs::write(dir.path().join("k.csv"), row).expect("writes");
    let check = run(dir.path(), &["check", "--source", "k.csv"], "");
    said(check, 78, &["k.csv:1: this looks like JSON Lines", ".jsonl", "source.format"]);
}

#[test]
fn a_revocation_that_is_not_answered_in_time_may_still_come() {
    let daemon = daemon();
    daemon.pause();
    let revoke = ["revoke", "a", "--socket", "keyward.sock", "--deadline", "100ms"];
    let revoke = run_beside(&daemon, &revoke, "");
    daemon.resume();
    said(revoke, 69, &["within 100ms", "may still come into force", "keyward status"]);
}

#[test]
fn ids_and_owners_that_begin_with_a_hyphen_are_revoked() {
    let ids = ["-Vx9", "-hello", "-h", "--help", "-o"];
    let rows: String = ids.map(|id| format!("{},{id},\n", sha256_hex(id))).concat();
    let export = format!("key_hash,key_id,owner\n{rows}{},c,-hV\n", sha256_hex("c"));
    let daemon = Daemon::serving_text(&export);
    let order =
        |arguments: &[&str]| run_beside(&daemon, &[arguments, &["--socket", "keyward.sock"]].concat(), "");
    let (code, text, _) = order(&["revoke", "-Vx9"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("revoked -Vx9 (1 key)"), "{text}");
    assert!(order(&["revoke", "-hello"]).1.starts_with("revoked -hello (1 key)"));
    assert!(order(&["revoke", "--owner", "-hV"]).1.starts_with("revoked owner -hV (1 key)"));
    let behind = |id| run_beside(&daemon, &["revoke", "--socket", "keyward.sock", "--", id], "");
    for id in ["-h", "--help"] {
        assert!(behind(id).1.starts_with(&format!("revoked {id} (1 key)")), "{id}");
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
    assert!(order(&["unrevoke", "-Vx9"]).1.starts_with("unrevoked -Vx9 (1 key)"));
    assert_eq!(daemon.verdict("-Vx9"), "ALLOWED");
    let (code, text, _) = order(&["usage", "--key", "-Vx9"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("-Vx9: 1 allowed"), "{text}");
}

#[test]
fn texts_that_a_terminal_would_not_show_are_escaped() {
    let export = format!("key_hash,key_id,owner\n{},a\u{202e}b,\u{200b}acme\n", sha256_hex("a"));
    let daemon = Daemon::serving_text(&export);
    let shown = |arguments: &[&str], input| {
        let (_, text, messages) = run_beside(&daemon, arguments, input);
        assert!(!text.contains(['\u{202e}', '\u{200b}']), "{arguments:?}: {text}");
        assert!(!messages.contains(['\u{202e}', '\u{200b}']), "{arguments:?}: {messages}");
        text
    };
    let text = shown(&["verify", "--socket", "keyward.sock"], "a\n");
    assert!(text.contains(r#"key_id="a\u{202e}b"  owner="\u{200b}acme""#), "{text}");
    let text = shown(&["verify", "--socket", "keyward.sock", "--json"], "a\n");
    assert!(text.contains(r#""key_id":"a\u202eb""#), "{text}");
    shown(&["revoke", "a\u{202e}b", "--socket", "keyward.sock"], "");
    shown(&["revoke", "--owner", "\u{200b}acme", "--socket", "keyward.sock"], "");
    let text = shown(&["status", "--socket", "keyward.sock"], "");
    assert!(text.contains(r"a\u{202e}b"), "{text}");
    shown(&["usage", "--socket", "keyward.sock"], "");
    shown(&["check", "--daemon", "--socket", "keyward.sock"], "");
    let source = daemon.setup.source();
    shown(&["check", "--source", source.to_str().expect("UTF-8")], "");
}

#[test]
fn a_key_without_usage_is_said_to_have_none() {
    let daemon = daemon();
    let usage = |arguments: &[&str]| {
        run_beside(&daemon, &[&["usage", "--socket", "keyward.sock"], arguments].concat(), "")
    };
    let (code, text, _) = usage(&["--key", "nokey"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("no usage of the key nokey is recorded"), "{text}");
    let (_, text, _) = usage(&["--owner", "nobody here"]);
    assert!(text.starts_with("no usage of the owner \"nobody here\" is recorded"), "{text}");
    assert!(usage(&[]).1.starts_with("0 keys: "));
}

#[test]
fn the_most_keys_that_are_minted_at_once_are_in_the_help() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, help, _) = run(dir.path(), &["key", "new", "--help"], "");
    assert_eq!(code, 0);
    assert!(help.contains("at most 100000"), "{help}");
}

#[test]
fn what_every_row_has_is_told_a_few_times_only() {
    let setup = Setup::without_export();
    let rows: String = (0..100)
        .map(|number: u32| format!("{},k{number},1/s\n", sha256_hex(&format!("no guess {number}"))))
        .collect();
    let rare = format!("{},rare,\n", sha256_hex("no guess either"));
    fs::write(setup.path("k.csv"), format!("key_hash,key_id,limits\n{rows}{rare}")).expect("writes");
    let (_, _, messages) = run(setup.dir.path(), &["check", "--source", "k.csv"], "");
    assert_eq!(messages.matches("[no_expiry]").count(), 3, "{messages}");
    assert_eq!(messages.matches("[no_limit]").count(), 1, "{messages}");
    assert!(messages.ends_with("k.csv: 102 warnings: 1 no_limit, 101 no_expiry\n"), "{messages}");
    let (_, report, _) = run(setup.dir.path(), &["check", "--source", "k.csv", "--json"], "");
    assert_eq!(report.matches("\"lint\":\"no_expiry\"").count(), 19, "a machine reads on: {report}");
}

#[test]
fn a_row_is_made_for_the_file_that_it_is_appended_to() {
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

    said(new(&["--plan", "pro"]), 2, &["--like: k.csv has no column plan"]);
    said(new(&["--json"]), 2, &["--json"]);
    fs::write(&path, "key_id,limits\n").expect("writes");
    said(new(&[]), 2, &["--like: k.csv has no column key_hash"]);
    fs::write(&path, "{\"key_hash\":\"\"}\n").expect("writes");
    said(new(&[]), 2, &["--like: k.csv looks like JSON Lines", "--json"]);
    fs::remove_file(&path).expect("removed");
    said(new(&[]), 2, &["--like: cannot open k.csv: "]);
}
