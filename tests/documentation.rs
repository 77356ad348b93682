//! The pages of the documentation: links resolve, and commands and settings that they name exist.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages, by their paths from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    collect(root(), &mut pages);
    assert!(pages.contains_key(Path::new("README.md")));
    pages
}

fn collect(directory: &Path, pages: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let is_skipped = path.ends_with("target") || path.ends_with(".git") || path.ends_with("node_modules");
        if path.is_dir() && !is_skipped {
            collect(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            let name = path.strip_prefix(root()).expect("inside of the root").to_path_buf();
            pages.insert(name, fs::read_to_string(&path).expect("UTF-8"));
        }
    }
}

/// The targets of inline links, outside of code.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

/// Resolves `link` from the directory of `page`, without leaving the root.
fn resolve(page: &Path, link: &str) -> Option<PathBuf> {
    let mut path = page.parent()?.to_path_buf();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => path.pop().then_some(())?,
            Component::Normal(name) => path.push(name),
            _ => return None,
        }
    }
    Some(path)
}

/// The anchors that GitHub gives to the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The inline code of a page.
fn code_spans(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn links_between_pages_resolve() {
    let pages = pages();
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for link in links(text).into_iter().filter(|link| !link.starts_with("http")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { Some(page.clone()) } else { resolve(page, path) };
            let exists = target.as_ref().is_some_and(|target| root().join(target).exists());
            let linked_page = target.and_then(|target| pages.get(&target));
            if !exists
                || linked_page.is_some_and(|text| !anchor.is_empty() && !anchors(text).contains(anchor))
            {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn paths_that_pages_name_exist() {
    const DIRECTORIES: [&str; 7] = ["src", "protocol", "benches", "tests", "systemd", ".ci", ".github"];
    let mut missing = Vec::new();
    for (page, text) in pages() {
        for span in code_spans(&text) {
            let path = span.split(' ').next().unwrap_or_default();
            let is_path = path.split_once('/').is_some_and(|(first, _)| DIRECTORIES.contains(&first));
            if is_path && !root().join(path).exists() {
                missing.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `F.rs::test` stands for the test in the file `F.rs` of tests/integration.
#[test]
fn tests_that_pages_name_exist() {
    let mut named = 0;
    for (page, text) in pages() {
        for span in code_spans(&text) {
            let Some((file, test)) = span.split_once("::").filter(|(file, _)| file.ends_with(".rs")) else {
                continue;
            };
            let source = fs::read_to_string(root().join("tests/integration").join(file));
            let exists = source.is_ok_and(|source| source.contains(&format!("fn {test}()")));
            assert!(exists, "{}: `{span}` is no test", page.display());
            named += 1;
        }
    }
    assert!(named > 10, "the threat model names its tests");
}

/// "`test` in `path.rs`" stands for a test in that file.
#[test]
fn tests_that_pages_name_with_their_file_exist() {
    let mut named = 0;
    for (page, text) in pages() {
        for (before, after) in
            text.match_indices("` in `").map(|(at, found)| (&text[..at], &text[at + found.len()..]))
        {
            let test = before.rsplit('`').next().unwrap_or_default();
            let path = after.split('`').next().unwrap_or_default();
            let is_name = test.contains('_') && test.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if is_name && path.ends_with(".rs") {
                let exists = fs::read_to_string(root().join(path))
                    .is_ok_and(|source| source.contains(&format!("fn {test}()")));
                assert!(exists, "{}: there is no test `{test}` in `{path}`", page.display());
                named += 1;
            }
        }
    }
    assert!(named > 5, "CONTRIBUTING.md names tests with their files");
}

#[test]
fn commands_are_documented_and_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_keyward")).arg("--help").output().expect("starts");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let commands: BTreeSet<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains("serve"), "{help}");

    let operation = read("systemd/OPERATION.md");
    for command in &commands {
        assert!(operation.contains(&format!("`keyward {command}")), "OPERATION.md lacks {command}");
    }
    for (page, text) in pages().iter().filter(|(page, _)| !page.ends_with("CHANGELOG.md")) {
        for span in code_spans(text) {
            let Some(command) = span.strip_prefix("keyward ").and_then(|rest| rest.split_whitespace().next())
            else {
                continue;
            };
            assert!(
                commands.contains(command) || command.starts_with("--"),
                "{}: `{span}` is no command",
                page.display()
            );
        }
    }
}

/// Settings of a configuration file as `section.name`, of those sections that have no names of their
/// own below them.
fn settings(file: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut settings = BTreeSet::new();
    for line in read(file).lines() {
        let line = line.trim_start_matches('#');
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
            settings.insert(section.clone());
        } else if let Some((name, _)) = line.split_once(" = ")
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            settings.insert(format!("{section}.{name}"));
        }
    }
    settings
}

#[test]
fn settings_that_pages_name_exist() {
    const OF_DAEMON: [&str; 9] =
        ["server", "uid_quotas", "source", "keys", "state", "revocation", "usage", "audit", "log"];
    const OF_HTTP: [&str; 6] = ["server", "credentials", "identity", "rate_limits", "settlement", "log"];
    const FILES: [&str; 3] = [".csv", ".jsonl", ".rs"];
    let [of_daemon, of_http] = ["systemd/keyward.toml", "systemd/http.toml"].map(settings);
    assert!(of_daemon.contains("source.max_shrink") && of_http.contains("server.deadline"));
    for (page, text) in pages() {
        let is_of_http = ["systemd/HTTP.md", "systemd/SETTLEMENT.md", "systemd/gateways"]
            .iter()
            .any(|of_http| page.starts_with(of_http));
        let (settings, sections) =
            if is_of_http { (&of_http, &OF_HTTP[..]) } else { (&of_daemon, &OF_DAEMON[..]) };
        for span in code_spans(&text) {
            let name = span.split(' ').next().unwrap_or_default();
            let is_setting = name.split_once('.').is_some_and(|(section, _)| sections.contains(&section));
            if is_setting && !FILES.iter().any(|extension| name.contains(extension)) {
                assert!(settings.contains(name), "{}: `{name}` is no setting", page.display());
            }
        }
    }
}

#[test]
fn plans_of_the_policy_page_are_valid() {
    let page = read("systemd/POLICY.md");
    let plans = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the plans");
    let directory = tempfile::tempdir().expect("a directory");
    let [config, source] = ["keyward.toml", "keys.csv"].map(|name| directory.path().join(name));
    fs::write(&config, plans).expect("writes");
    fs::write(&source, format!("key_hash,key_id,plan\n{},one,pro\n", "ab".repeat(32))).expect("writes");

    let check = Command::new(env!("CARGO_BIN_EXE_keyward"))
        .arg("check")
        .args([Path::new("--config"), &config, Path::new("--source"), &source])
        .args([Path::new("--state-dir"), directory.path()])
        .output()
        .expect("starts");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn readme_names_the_two_commands_of_a_first_visit() {
    let readme = read("README.md");
    for command in ["$ cargo run --release -- demo", "$ tests/run"] {
        assert!(readme.lines().any(|line| line == command), "{command}");
    }
}
