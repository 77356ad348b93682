//! Rules of the source that neither the compiler nor a lint checks.

#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The engine reads no file, socket, environment or clock, and starts no thread. Its manifest keeps
/// tokio and rustix out; this keeps the standard library's out.
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime",
    "thread::spawn",
];

/// The Rust sources below `directory`, with paths relative to the workspace.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    collect(&root.join(directory), &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("UTF-8");
            (path.strip_prefix(root).expect("inside").to_path_buf(), text)
        })
        .collect()
}

/// The code of a file, without its unit tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn engine_has_no_input_output_or_clock() {
    let is_test = |path: &Path| path.iter().any(|part| part == "tests" || part == "tests.rs");
    let impure: Vec<String> = sources("src/engine")
        .iter()
        .filter(|(path, _)| !is_test(path))
        .flat_map(|(path, text)| {
            let code = code(text);
            let names: Vec<_> = IMPURE.iter().filter(|name| code.contains(**name)).collect();
            names.into_iter().map(|name| format!("{}: {name}", path.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(impure.is_empty(), "{impure:#?}");
}

#[test]
fn every_file_begins_with_its_purpose() {
    let silent: Vec<PathBuf> = ["src", "protocol", "tests", "benches"]
        .into_iter()
        .flat_map(sources)
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}
