//! Compiled snapshots through a daemon: served, reloaded, and refused where they are not whole.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use keyward_client::Request;
use support::{Setup, hex, keyward};

fn export(keys: &[&str]) -> String {
    let rows: String = keys.iter().map(|key| format!("{},id-{key},acme,pro\n", hex(key))).collect();
    format!("key_hash,key_id,owner,plan\n{rows}")
}

/// Compiles `export` into `file`.
fn compile(export: &str, directory: &Path, file: &Path) {
    let source = directory.join("export.csv");
    fs::write(&source, export).expect("writes");
    let mut command: Command = keyward();
    let output = command.arg("compile").arg(&source).arg("--output").arg(file).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_compiled_snapshot_is_served_and_reloaded_and_a_damaged_one_changes_nothing() {
    let setup = Setup::without_export();
    let (source, directory) = (setup.path("keys.kwc"), setup.dir.path().to_owned());
    let path = format!("source.path = '{}'", source.display());
    let setup = setup.config(&path).config("[plans.pro]\ndaily = \"7/d\"");
    compile(&export(&["a", "b", "c"]), &directory, &source);
    let daemon = setup.start();
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| daemon.verdict(key)),
        ["ALLOWED", "ALLOWED", "ALLOWED", "UNKNOWN_KEY"]
    );

    // Not by the watch: the reload that is asked for is the one that is looked at.
    compile(&export(&["a", "b", "d"]), &directory, &source);
    let reload = daemon.reload();
    assert!(reload.accepted, "{:?}", reload.error);
    assert_eq!(
        ["a", "b", "c", "d"].map(|key| daemon.verdict(key)),
        ["ALLOWED", "ALLOWED", "UNKNOWN_KEY", "ALLOWED"]
    );
    let decision = daemon.client().verify(&Request::new("a")).expect("an answer");
    let limit = decision.limit().map(|limit| (limit.name, limit.limit, limit.remaining));
    assert_eq!(limit, Some(("daily", 7, 4)), "the daemon's own plan, and one bucket through the reload");

    let mut bytes = fs::read(&source).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&source, bytes).expect("writes");
    let refused = daemon.reload();
    let error = refused.error.expect("a reason");
    assert!(!refused.accepted && error.contains("the checksum is wrong"), "{error}");
    assert_eq!(["a", "c", "d"].map(|key| daemon.verdict(key)), ["ALLOWED", "UNKNOWN_KEY", "ALLOWED"]);
}
