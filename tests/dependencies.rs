//! Every dependency of the binary has been looked at in the version that is built.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// The list of reviews.
const REVIEWED: &str = ".cargo/reviewed.toml";

/// What may pass through a crate.
const SEEN: [&str; 10] = [
    "raw keys",
    "pepper",
    "hashes",
    "requests",
    "export",
    "configuration",
    "admin commands",
    "arguments",
    "log lines",
    "nothing",
];

#[derive(Deserialize)]
struct Reviews {
    #[serde(rename = "crate")]
    crates: Vec<Review>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Review {
    name: String,
    version: String,
    publisher: String,
    sees: Vec<String>,
    #[serde(rename = "use")]
    use_: String,
    #[serde(rename = "unsafe")]
    _unsafe_count: u32,
    looked_at: String,
    verdict: String,
}

fn reviews() -> Vec<Review> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(REVIEWED);
    let text = fs::read_to_string(path).expect("the list of reviews");
    toml::from_str::<Reviews>(&text).unwrap_or_else(|error| panic!("{REVIEWED}: {error}")).crates
}

/// Names and versions of all crates from the registry that are in the binary or run while it is
/// built.
fn dependencies() -> BTreeSet<(String, String)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["tree", "--locked", "--offline", "--package", "keyward", "--edges", "normal,build"]);
    cargo.args(["--prefix", "none", "--no-dedupe", "--format", "{p}"]);
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let from_registry = text.lines().filter(|line| !line.contains("(/"));
    let package = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some((name.to_owned(), version.to_owned()))
    };
    from_registry.filter_map(package).collect()
}

#[test]
fn every_dependency_is_reviewed_in_its_version() {
    let dependencies = dependencies();
    assert!(dependencies.len() > 50, "{dependencies:?}");
    let reviewed: BTreeSet<_> = reviews().into_iter().map(|review| (review.name, review.version)).collect();
    let missing: Vec<_> = dependencies.difference(&reviewed).collect();
    assert!(missing.is_empty(), "look at these, and add them to {REVIEWED}: {missing:?}");
    let unused: Vec<_> = reviewed.difference(&dependencies).collect();
    assert!(unused.is_empty(), "remove these from {REVIEWED}: {unused:?}");
}

#[test]
fn reviews_are_complete() {
    for Review { name, publisher, sees, use_, looked_at, verdict, .. } in reviews() {
        assert!([&publisher, &use_, &looked_at].iter().all(|text| !text.is_empty()), "{name}");
        assert!(
            !sees.is_empty() && sees.iter().all(|seen| SEEN.contains(&seen.as_str())),
            "{name}: {sees:?}"
        );
        assert_eq!(verdict, "accepted", "{name}");
    }
}
