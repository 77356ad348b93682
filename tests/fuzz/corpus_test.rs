//! Runs each target over its corpus, and over mutations of it, on a stable compiler.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use keyward_fuzz::{Mutator, Outcome, TARGETS, Target};

/// Mutations of the corpus of each target: some seconds for all targets together.
const MUTATIONS: u64 = 3_000;

/// Most bytes of the corpus of one target. libFuzzer finds the rest.
const MAX_CORPUS: u64 = 64 << 10;

fn directory(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn corpus(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(directory(target)).expect("a corpus");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).expect("a readable file"))).collect()
}

/// Runs an input; names it if the target fails.
fn run(target: Target, name: &str, input: &[u8]) -> Outcome {
    catch_unwind(|| (target.run)(input)).unwrap_or_else(|_| {
        panic!("{} fails on {name}: the bytes (hex) {}", target.name, const_hex::encode(input))
    })
}

/// The inputs of a target, and whether each is accepted.
fn replay(name: &str) {
    let target = keyward_fuzz::target(name).expect("a target");
    let corpus = corpus(target);
    let outcomes: Vec<Outcome> =
        corpus.iter().map(|(path, input)| run(target, &path.display().to_string(), input)).collect();
    for outcome in [Outcome::Accepted, Outcome::Refused] {
        // Any bytes are operations on the limiter. Most admit something.
        let is_possible = outcome == Outcome::Accepted || name != "limiter_operations";
        assert!(!is_possible || outcomes.contains(&outcome), "{name}: no input is {outcome:?}");
    }
    let bytes: u64 = corpus.iter().map(|(_, input)| input.len() as u64).sum();
    assert!(bytes <= MAX_CORPUS, "the corpus of {name} has {bytes} bytes");
    run(target, "no bytes", &[]);
    let mut mutator = Mutator::new(1);
    for number in 0..MUTATIONS {
        let (path, input) = &corpus[number as usize % corpus.len()];
        let (_, other) = &corpus[(number as usize / corpus.len()) % corpus.len()];
        let name = format!("mutation {number} of {}", path.display());
        run(target, &name, &mutator.mutate(input, other));
    }
}

macro_rules! replay {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

replay!(admin_messages balances compiled_snapshots configuration csv_exports equal_exports frames jsonl_exports limiter_operations revocations stream usage);

/// Each target has a test, a corpus, and a file and a binary for libFuzzer.
#[test]
fn targets_are_complete() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, REPLAYED);
    let names: BTreeSet<String> = names.into_iter().map(str::to_owned).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stems = |directory: &str| -> BTreeSet<String> {
        let files = fs::read_dir(root.join(directory)).expect("a directory");
        files
            .map(|file| file.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into())
            .collect()
    };
    assert_eq!(stems("corpus"), names);
    assert_eq!(stems("cargo-fuzz/targets"), names);
    let manifest = fs::read_to_string(root.join("cargo-fuzz/Cargo.toml")).expect("a manifest");
    for name in names {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} has no binary");
    }
}
