//! The house rules that a compiler does not check: imports point one way, files stay readable, the core touches nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module of the daemon may import. Leaves that hold no logic of their own to import from (`now`, `record`) stand
/// where the arrows end.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "admin",
            "bench",
            "clock",
            "config",
            "key_format",
            "lint",
            "log",
            "pepper",
            "record",
            "reload",
            "rules",
            "server",
            "snapshot",
            "source",
            "state",
            "limiter",
            "usage",
        ],
    ),
    (
        "server",
        &[
            "admin",
            "audit",
            "balances",
            "clock",
            "config",
            "connection",
            "limiter",
            "log",
            "memory",
            "publish",
            "record",
            "reload",
            "revocation",
            "snapshot",
            "source",
            "state",
            "systemd",
            "usage",
        ],
    ),
    ("admin", &["audit", "usage"]),
    ("audit", &["clock", "state"]),
    (
        "config",
        &[
            "key_format",
            "limiter",
            "pepper",
            "record",
            "reload",
            "revocation",
            "rules",
            "source",
            "state",
            "usage",
        ],
    ),
    ("connection", &["clock", "limiter", "publish", "rules", "snapshot", "usage", "verify"]),
    (
        "reload",
        &[
            "audit",
            "clock",
            "limiter",
            "memory",
            "publish",
            "record",
            "revocation",
            "rules",
            "snapshot",
            "source",
            "state",
            "systemd",
        ],
    ),
    ("bench", &[]),
    ("revocation", &["audit", "clock", "publish", "record", "snapshot", "state"]),
    ("publish", &["snapshot"]),
    ("verify", &["key_format", "limiter", "now", "pepper", "record", "rules", "snapshot"]),
    ("snapshot", &["limiter", "memory", "now", "record", "rules"]),
    ("limiter", &["memory", "sync"]),
    ("memory", &[]),
    ("sync", &["memory"]),
    ("lint", &["key_format", "record"]),
    ("log", &["clock"]),
    ("source", &["record"]),
    ("record", &["limiter"]),
    ("rules", &["key_format", "pepper"]),
    ("pepper", &["record"]),
    ("balances", &["clock", "limiter", "publish", "state"]),
    ("key_format", &["record"]),
    ("clock", &["limiter", "now"]),
    ("now", &[]),
    ("state", &[]),
    ("usage", &["clock", "memory", "snapshot", "state", "verify"]),
    ("systemd", &[]),
    ("lib", &[]),
    ("error", &[]),
];

/// The deciding half: time is an argument, and there is no file, no socket, no thread and no configuration.
const PURE: [&str; 4] = ["verify", "snapshot", "limiter", "now"];
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net::Tcp",
    "std::os::unix",
    "std::env",
    "tokio::",
    "Instant::now",
    "SystemTime",
    "clock_gettime",
    "rustix::",
];

/// A file that is longer has more than one idea; a file of tests may list more cases of one.
const MAX_LINES: usize = 500;
const MAX_TEST_LINES: usize = 600;

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&root.join(directory), &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("UTF-8");
            (path.strip_prefix(root).expect("inside").to_path_buf(), text)
        })
        .collect()
}

/// The module that a file of `src` belongs to.
fn module(path: &Path) -> String {
    let first = path.iter().nth(1).expect("src/…").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// The code of a file: without its tests and its comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut broken = Vec::new();
    for (path, text) in sources("src").iter().filter(|(path, _)| !is_test(path)) {
        let own = module(path);
        let may = allowed
            .get(own.as_str())
            .unwrap_or_else(|| panic!("{own} is not among the arrows: where does it stand?"));
        let code = code(text);
        let imported: BTreeSet<&str> = ["crate::", "keyward::"]
            .into_iter()
            .flat_map(|prefix| code.split(prefix).skip(1))
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
            .filter(|name| allowed.contains_key(name) && *name != own)
            .collect();
        broken.extend(
            imported
                .into_iter()
                .filter(|name| !may.contains(name))
                .map(|name| format!("{} -> {name}", path.display())),
        );
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_deciding_half_touches_nothing() {
    let mut broken = Vec::new();
    for (path, text) in
        sources("src").iter().filter(|(path, _)| !is_test(path) && PURE.contains(&module(path).as_str()))
    {
        let code = code(text);
        broken.extend(
            IMPURE
                .iter()
                .filter(|name| code.contains(**name))
                .map(|name| format!("{}: {name}", path.display())),
        );
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_file_has_one_idea_and_says_it_first() {
    let mut broken = Vec::new();
    for directory in ["src", "protocol", "tests", "benches"] {
        for (path, text) in sources(directory) {
            let lines = text.lines().count();
            if lines > if is_test(&path) { MAX_TEST_LINES } else { MAX_LINES } {
                broken.push(format!("{}: {lines} lines", path.display()));
            }
            if !text.starts_with("//!") {
                broken.push(format!("{}: does not say what it is about", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
