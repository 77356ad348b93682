//! A refused reload changes nothing, and its error names the place and the reason.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{
    CommandOutput, Daemon, Export, Row, Setup, keyward, line, row, run, sha256_hex, wait_until,
};
use keyward_daemon::reload::{BadRowPolicy, ReloadError, SourceFile};
use keyward_source::Format;

/// The columns of every export here, so that literal lines have them in this order.
const COLUMNS: [&str; 4] = ["owner", "expires_at", "allowed_ips", "limits"];

fn export(rows: impl IntoIterator<Item = Row>) -> Export {
    Export::new([]).columns(COLUMNS).rows(rows)
}

/// Four keys, in the lines 2 to 5.
fn valid() -> Export {
    export((0..4).map(|number| {
        row(number.to_string())
            .id(format!("key-{number}"))
            .owner("acme")
            .expires_at("2099-01-01 00:00:00+00")
            .limits("100/s burst 200")
    }))
}

/// The valid export and another row, in line 6.
fn with_row(row: Row) -> Vec<u8> {
    valid().rows([row]).to_csv().into_bytes()
}

/// Replaces the source by any bytes.
fn replace_source(daemon: &Daemon, content: impl AsRef<[u8]>) {
    let new = daemon.setup.path("new.csv");
    fs::write(&new, content).expect("a file");
    fs::rename(&new, daemon.setup.source()).expect("renamed");
}

#[test]
fn refused_export_changes_nothing_and_is_reported_with_its_place() {
    let daemon = Daemon::serving_text(valid());
    let new = || row("new");
    let text = valid().to_csv();
    let without_end = |bytes: usize| text.as_bytes()[..text.len() - bytes].to_vec();
    let rotation = || new().id("key-1").owner("acme");
    let invalid_utf8 = [text.as_bytes(), sha256_hex("new").as_bytes(), b",n\xff,,,,\n"].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", Vec::new(), "keys.csv"),
        ("header only", export([]).to_csv().into(), "no keys"),
        ("cut inside a row", without_end(9), "keys.csv:5"),
        ("cut inside quotes", format!("{text}{},\"k", sha256_hex("new")).into(), "keys.csv:6"),
        ("duplicate hash", with_row(row("1").id("again")), "keys.csv:6: the same key_hash as in line 3"),
        ("invalid hash", with_row(new().hash("abc")), "keys.csv:6: column 1 (key_hash)"),
        ("invalid date", with_row(new().expires_at("2026-13-01")), "keys.csv:6: column 4 (expires_at)"),
        ("invalid network", with_row(new().allowed_ips("10.0.0.0/33")), "keys.csv:6: column 5 (allowed_ips)"),
        ("invalid limit", with_row(new().limits("fast")), "keys.csv:6: column 6 (limits)"),
        ("limit out of range", with_row(new().limits("1/365d burst 99")), "keys.csv:6: column 6 (limits)"),
        ("invalid UTF-8", invalid_utf8, "keys.csv:6"),
        ("too many columns", with_row(line(format!("{},new,,,,,surplus", sha256_hex("new")))), "keys.csv:6"),
        ("rotation with other limits", with_row(rotation().limits("5/s")), "keys.csv:6: line 3"),
        (
            "rotation with another owner",
            with_row(rotation().owner("other").limits("100/s burst 200")),
            "keys.csv:6: line 3",
        ),
        (
            "shrunk beyond the guard",
            export([row("1").id("key-1").owner("acme")]).to_csv().into(),
            "3 of 4 working keys would stop working",
        ),
    ];
    for (case, content, place) in cases {
        replace_source(&daemon, content);
        let outcome = daemon.reload();
        assert!(!outcome.accepted, "{case} was accepted");
        let error = outcome.error.expect("a reason");
        assert!(error.contains(place), "{case}: {error:?} does not say {place:?}");
        assert_eq!((outcome.generation, outcome.keys), (1, 4), "{case}");
        assert_eq!(daemon.verdict("1"), "ALLOWED", "{case}");
        let status = daemon.status();
        assert!(status.ready && !status.last_reload.expect("one").accepted, "{case}");
        assert_eq!(status.last_accepted.expect("one").generation, 1, "{case}");
    }
    // The command line reports it as well.
    let output = daemon.run_keyward(&["reload"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("source.max_shrink"), "{output:?}");
    let outcome = daemon.force_reload();
    assert!(outcome.accepted && outcome.keys == 1, "force overrides the guard: {:?}", outcome.error);
    assert!(daemon.publish(valid()).accepted);
}

/// A pipe or a directory is not opened, so it blocks no later reload.
#[test]
fn source_that_is_not_a_regular_file_is_refused() {
    let daemon = Daemon::serving_text(valid());
    let source = daemon.setup.source();
    fs::remove_file(&source).expect("removed");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &source, rustix::fs::FileType::Fifo, mode, 0).expect("a named pipe");
    let outcome = daemon.reload();
    assert!(outcome.error.is_some_and(|error| error.contains("not a regular file")));
    fs::remove_file(&source).expect("removed");
    fs::create_dir(&source).expect("a directory");
    let outcome = daemon.reload();
    assert!(outcome.error.is_some_and(|error| error.contains("not a regular file")));
    fs::remove_dir(&source).expect("removed");
    assert!(daemon.publish(valid()).accepted);
}

/// Neither the length of a sparse file nor the rows where the daemon samples it reserve memory for
/// rows that are not there.
#[test]
fn sparse_file_takes_memory_for_its_actual_rows_only() {
    const LENGTH: u64 = 1 << 30;
    let daemon = Daemon::serving_text(valid());
    let new = daemon.setup.path("sparse.csv");
    let file = fs::File::create(&new).expect("a file");
    file.set_len(LENGTH).expect("a length");
    let rows: String =
        (0..200).map(|number| format!("{},key-{number},acme,,,\n", sha256_hex("any"))).collect();
    for at in 0..16 {
        file.write_all_at(rows.as_bytes(), LENGTH / 16 * at).expect("writes");
    }
    file.write_all_at(export([]).to_csv().as_bytes(), 0).expect("writes");
    fs::rename(&new, daemon.setup.source()).expect("renamed");
    assert!(!daemon.reload().accepted);
    let peak = daemon.peak_bytes();
    assert!(peak < 128 << 20, "{peak} bytes for a sparse file");
    assert_eq!(daemon.verdict("1"), "ALLOWED");
}

#[test]
fn crlf_and_byte_order_mark_are_accepted() {
    let daemon = Daemon::serving_text(valid());
    let outcome = daemon.publish(format!("\u{feff}{}", valid().to_csv().replace('\n', "\r\n")));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(outcome.changes.expect("counts"), Default::default(), "the rows are the same");
}

#[test]
fn missing_source_is_refused() {
    let daemon = Daemon::serving_text(valid());
    fs::remove_file(daemon.setup.source()).expect("removed");
    let outcome = daemon.reload();
    assert!(outcome.error.is_some_and(|error| error.contains("No such file")));
    assert_eq!(daemon.verdict("1"), "ALLOWED");
}

#[test]
fn check_reports_repeated_errors_once_with_their_number() {
    let setup = Setup::text(export((0..30).map(|_| row("k").hash("abc"))));
    let CommandOutput { code, stderr, .. } = run(keyward().args(["check", "--source"]).arg(setup.source()));
    assert_eq!(code, Some(78), "{stderr}");
    assert_eq!(stderr.matches("column 1 (key_hash)").count(), 1, "{stderr}");
    assert!(stderr.contains("(and 29 more like it)"), "{stderr}");
}

fn load(path: &Path, format: Format) -> Result<usize, ReloadError> {
    let (mapping, plans) = Default::default();
    let source = SourceFile { path: path.into(), format, mapping, plans, on_bad_row: BadRowPolicy::Refuse };
    source.load(7).map(|loaded| loaded.keys.len())
}

/// Some file systems flush a file that is overwritten. Removing it first keeps the test from
/// waiting for thousands of flushes.
fn write_new_file(path: &Path, content: &[u8]) {
    // Fails if there is no such file.
    let _ = fs::remove_file(path);
    fs::write(path, content).expect("a file");
}

/// A truncated export is loaded only if it ends with a complete row, and no flipped bit causes a
/// panic.
#[test]
fn truncated_or_corrupted_export_is_refused_or_complete() {
    let json_lines = format!(
        "{{\"key_hash\":\"{}\",\"key_id\":\"a\",\"limits\":\"5/s\"}}\n{{\"key_hash\":\"{}\",\"key_id\":\"b\",\"scopes\":[\"x\"]}}\n",
        sha256_hex("a"),
        sha256_hex("b")
    );
    let quoted = Export::new([row("a").id("a\nb").metadata("{\"x\":\n1}")]);
    let directory = Setup::without_export();
    for (name, format, text) in [
        ("a.csv", Format::Csv, valid().to_csv()),
        ("b.csv", Format::Csv, quoted.to_csv()),
        ("c.jsonl", Format::JsonLines, json_lines),
    ] {
        let path = directory.path(name);
        let bytes = text.as_bytes();
        for end in 0..bytes.len() {
            write_new_file(&path, &bytes[..end]);
            let loaded = load(&path, format);
            let ends_a_row = bytes[..end].ends_with(b"\n");
            assert!(loaded.is_err() || ends_a_row, "{name}: the first {end} bytes were loaded");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            write_new_file(&path, &flipped);
            // It may be valid or not.
            let _ = load(&path, format);
        }
    }
}

#[test]
fn rows_of_a_rotation_share_a_bucket() {
    let rows = ["old", "new"].map(|key| row(key).id("k").limits("1/d burst 2"));
    let daemon = Setup::text(Export::new(rows).to_csv()).start();
    assert_eq!(
        daemon.verdicts(["old", "new", "old", "new"]),
        ["ALLOWED", "ALLOWED", "RATE_LIMITED", "RATE_LIMITED"]
    );
}

#[test]
fn columns_can_be_renamed_and_ignored() {
    let setup = Setup::text("")
        .config("[source]\nignore = [\"note\"]\n[source.columns]\nkey_hash = \"sha256\"\nkey_id = \"id\"\n");
    let export = Export::new([row("k").set("note", "x")]).to_csv();
    setup.write_export(export.replacen("key_hash,key_id", "sha256,id", 1));
    assert_eq!(setup.start().verdicts(["k"]), ["ALLOWED"]);
}

/// An unchanged configuration is not reported as refused together with an export.
#[test]
fn refused_export_does_not_refuse_an_unchanged_configuration() {
    let setup = Setup::text(valid()).config("plans.p.requests = '10/d'\n[source]\npoll = \"100ms\"\n");
    let daemon = setup.start();
    let bad = with_row(row("new").limits("fast"));
    let wait_for_watch = || {
        wait_until("the watch to reload the corrected export", || {
            daemon.status().last_reload.is_some_and(|last| last.accepted)
        });
    };
    replace_source(&daemon, &bad);
    assert!(!daemon.reload().accepted);
    assert_eq!(daemon.status().configuration_refused, None);
    replace_source(&daemon, valid().to_csv());
    wait_for_watch();
    assert_eq!(daemon.status().configuration_refused, None);
    let status = daemon.run_keyward(&["status"]).stdout;
    assert!(!status.contains("config "), "{status}");

    // A changed configuration does not take effect with a refused export.
    let config = daemon.setup.path("keyward.toml");
    let changed = fs::read_to_string(&config).expect("reads").replace("10/d", "20/d");
    fs::write(&config, changed).expect("writes");
    replace_source(&daemon, &bad);
    assert!(!daemon.reload().accepted);
    replace_source(&daemon, valid().to_csv());
    wait_for_watch();
    let refused = daemon.status().configuration_refused.expect("the plan is the old one");
    assert!(
        refused.contains("with a source that was refused") && refused.contains("keyward reload"),
        "{refused}"
    );
    assert!(daemon.reload().accepted);
    assert_eq!(daemon.status().configuration_refused, None);
}
