//! Promise 3: a bad reload changes nothing, and says what is wrong and where.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{Daemon, Setup, keyward, sha256_hex, wait_for};
use keyward_daemon::reload::{BadRowPolicy, ReloadError, SourceFile};
use keyward_source::Format;

const HEADER: &str = "key_hash,key_id,owner,expires_at,allowed_ips,limits\n";

fn good() -> String {
    (0..4).fold(HEADER.to_owned(), |text, number| {
        text + &format!(
            "{},key-{number},acme,2099-01-01 00:00:00+00,,100/s burst 200\n",
            sha256_hex(&number.to_string())
        )
    })
}

fn with_row(row: &str) -> Vec<u8> {
    format!("{}{row}\n", good()).into_bytes()
}

#[test]
fn each_kind_of_bad_export_is_refused_with_its_place_and_the_old_one_serves_on() {
    let daemon = Daemon::serving_text(&good());
    let hash = sha256_hex("new");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", Vec::new(), "keys.csv"),
        ("header only", HEADER.into(), "no keys"),
        ("cut in a row", good().trim_end().as_bytes()[..good().len() - 9].to_vec(), "keys.csv:5"),
        ("cut in quotes", format!("{}{hash},\"k", good()).into(), "keys.csv:6"),
        (
            "duplicate hash",
            with_row(&format!("{},again,,,,", sha256_hex("1"))),
            "keys.csv:6: the same key_hash as in line 3",
        ),
        ("bad hash", with_row("abc,new,,,,"), "keys.csv:6: column 1 (key_hash)"),
        ("bad date", with_row(&format!("{hash},new,,2026-13-01,,")), "keys.csv:6: column 4 (expires_at)"),
        (
            "bad network",
            with_row(&format!("{hash},new,,,10.0.0.0/33,")),
            "keys.csv:6: column 5 (allowed_ips)",
        ),
        ("bad limit", with_row(&format!("{hash},new,,,,fast")), "keys.csv:6: column 6 (limits)"),
        (
            "limit out of range",
            with_row(&format!("{hash},new,,,,1/365d burst 99")),
            "keys.csv:6: column 6 (limits)",
        ),
        (
            "bad UTF-8",
            [with_row(&format!("{hash},n"))[..].strip_suffix(b"\n").unwrap(), b"\xff,,,,\n"].concat(),
            "keys.csv:6",
        ),
        ("too many columns", with_row(&format!("{hash},new,,,,,surplus")), "keys.csv:6"),
        ("other limits in a rotation", with_row(&format!("{hash},key-1,acme,,,5/s")), "keys.csv:6: line 3"),
        (
            "another owner in a rotation",
            with_row(&format!("{hash},key-1,else,,,100/s burst 200")),
            "keys.csv:6: line 3",
        ),
        (
            "shrunk past the guard",
            format!("{HEADER}{},key-1,acme,,,\n", sha256_hex("1")).into(),
            "3 of 4 working keys would stop working",
        ),
    ];
    for (case, content, place) in cases {
        let new = daemon.setup.path("bad.csv");
        fs::write(&new, content).expect("a file");
        fs::rename(&new, daemon.setup.source()).expect("renamed");
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
    // The command line says it too.
    let output =
        keyward().arg("reload").arg("--admin-socket").arg(daemon.admin_socket()).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("source.max_shrink"), "{output:?}");
    let outcome = daemon.force_reload();
    assert!(outcome.accepted && outcome.keys == 1, "the guard can be overruled: {:?}", outcome.error);
    assert!(daemon.publish(&good()).accepted);
}

/// What is no file is said to be none, and does not hold up what comes after it.
#[test]
fn a_directory_or_a_pipe_in_the_place_of_the_export_is_refused() {
    let daemon = Daemon::serving_text(&good());
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
    assert!(daemon.publish(&good()).accepted);
}

/// A length costs nobody anything, and neither do a few rows where they are looked for.
#[test]
fn a_file_that_seems_to_have_many_rows_takes_the_memory_of_those_that_it_has() {
    const LENGTH: u64 = 1 << 30;
    let daemon = Daemon::serving_text(&good());
    let new = daemon.setup.path("sparse.csv");
    let file = fs::File::create(&new).expect("a file");
    file.set_len(LENGTH).expect("a length");
    let rows: String =
        (0..200).map(|number| format!("{},key-{number},acme,,,\n", sha256_hex("any"))).collect();
    for at in 0..16 {
        file.write_all_at(rows.as_bytes(), LENGTH / 16 * at).expect("writes");
    }
    file.write_all_at(HEADER.as_bytes(), 0).expect("writes");
    fs::rename(&new, daemon.setup.source()).expect("renamed");
    assert!(!daemon.reload().accepted);
    let peak = daemon.peak_bytes();
    assert!(peak < 128 << 20, "{peak} bytes for a file of holes");
    assert_eq!(daemon.verdict("1"), "ALLOWED");
}

#[test]
fn crlf_and_a_byte_order_mark_are_accepted() {
    let daemon = Daemon::serving_text(&good());
    let outcome = daemon.publish(&format!("\u{feff}{}", good().replace('\n', "\r\n")));
    assert!(outcome.accepted, "{:?}", outcome.error);
    assert_eq!(outcome.changes.expect("counts"), Default::default(), "it says the same");
    fs::remove_file(daemon.setup.source()).expect("removed");
    let outcome = daemon.reload();
    assert!(outcome.error.is_some_and(|error| error.contains("No such file")));
    assert_eq!(daemon.verdict("1"), "ALLOWED");
}

#[test]
fn check_tells_rows_that_are_wrong_in_the_same_way_once_with_their_number() {
    let setup = Setup::text(&(0..30).fold(HEADER.to_owned(), |text, _| text + "abc,k,,,,\n"));
    let output = keyward().arg("check").arg("--source").arg(setup.source()).output().expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{errors}");
    assert_eq!(errors.matches("column 1 (key_hash)").count(), 1, "{errors}");
    assert!(errors.contains("(and 29 more like it)"), "{errors}");
}

fn load(path: &Path, format: Format) -> Result<usize, ReloadError> {
    let (mapping, plans) = Default::default();
    let source = SourceFile { path: path.into(), format, mapping, plans, on_bad_row: BadRowPolicy::Refuse };
    source.load(7).map(|loaded| loaded.keys.len())
}

/// Some file systems put every file that is written over straight to disk; thousands of them would be all that the test
/// waits for.
fn write_anew(path: &Path, content: &[u8]) {
    let _not_there_yet = fs::remove_file(path);
    fs::write(path, content).expect("a file");
}

/// Whatever happens to the bytes, a table is built of a whole export or not at all.
#[test]
fn an_export_cut_or_flipped_anywhere_never_panics_and_never_passes_for_whole_unless_it_ends_a_row() {
    let jsonl = format!(
        "{{\"key_hash\":\"{}\",\"key_id\":\"a\",\"limits\":\"5/s\"}}\n{{\"key_hash\":\"{}\",\"key_id\":\"b\",\"scopes\":[\"x\"]}}\n",
        sha256_hex("a"),
        sha256_hex("b")
    );
    let quoted = format!("key_hash,key_id,metadata\n{},\"a\nb\",\"{{\"\"x\"\":\n1}}\"\n", sha256_hex("a"));
    let directory = Setup::without_export();
    for (name, format, text) in [
        ("a.csv", Format::Csv, good()),
        ("b.csv", Format::Csv, quoted),
        ("c.jsonl", Format::JsonLines, jsonl),
    ] {
        let path = directory.path(name);
        let bytes = text.as_bytes();
        for end in 0..bytes.len() {
            write_anew(&path, &bytes[..end]);
            let loaded = load(&path, format);
            let ends_a_row = bytes[..end].ends_with(b"\n");
            assert!(loaded.is_err() || ends_a_row, "{name} cut at {end} passed for whole");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            write_anew(&path, &flipped);
            let _either_way = load(&path, format);
        }
    }
}

#[test]
fn rotation_shares_the_balance_and_metadata_columns_can_be_mapped() {
    let setup = Setup::text("")
        .config("[source]\nignore = [\"note\"]\n[source.columns]\nkey_hash = \"sha256\"\nkey_id = \"id\"\n");
    let rows = format!(
        "sha256,id,note,limits\n{},k,old,1/d burst 2\n{},k,new,1/d burst 2\n",
        sha256_hex("old"),
        sha256_hex("new")
    );
    fs::write(setup.source(), rows).expect("an export");
    let daemon = setup.start();
    let verdicts: Vec<String> = ["old", "new", "old", "new"].iter().map(|key| daemon.verdict(key)).collect();
    assert_eq!(verdicts, ["ALLOWED", "ALLOWED", "RATE_LIMITED", "RATE_LIMITED"]);
}

/// A configuration that says what it said before is not refused with the export that was read by it.
#[test]
fn a_bad_export_is_not_blamed_on_the_configuration() {
    let setup = Setup::text(&good()).config("plans.p.requests = '10/d'\n[source]\npoll = \"100ms\"\n");
    let daemon = setup.start();
    let bad = with_row(&format!("{},new,,,,fast", sha256_hex("new")));
    let publish = |content: &[u8]| {
        let new = daemon.setup.path("new.csv");
        fs::write(&new, content).expect("a file");
        fs::rename(&new, daemon.setup.source()).expect("renamed");
    };
    let taken_up = || {
        wait_for("the daemon to take up the mended export by itself", || {
            daemon.status().last_reload.is_some_and(|last| last.accepted).then_some(())
        });
    };
    publish(&bad);
    assert!(!daemon.reload().accepted);
    assert_eq!(daemon.status().configuration_refused, None, "it is the export that is wrong");
    publish(good().as_bytes());
    taken_up();
    assert_eq!(daemon.status().configuration_refused, None);
    let output =
        keyward().arg("status").arg("--admin-socket").arg(daemon.admin_socket()).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("config "), "{text}");

    // One that says something else has not come into force with it.
    let config = daemon.setup.path("keyward.toml");
    let changed = fs::read_to_string(&config).expect("reads").replace("10/d", "20/d");
    fs::write(&config, changed).expect("writes");
    publish(&bad);
    assert!(!daemon.reload().accepted);
    publish(good().as_bytes());
    taken_up();
    let told = daemon.status().configuration_refused.expect("the plan is the old one");
    assert!(told.contains("with a source that was refused") && told.contains("keyward reload"), "{told}");
    assert!(daemon.reload().accepted);
    assert_eq!(daemon.status().configuration_refused, None);
}
