//! Rules of the source that neither the compiler nor a lint checks.

#![allow(clippy::expect_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The engine reads no file, socket, environment or clock, and starts no thread. Its manifest keeps
/// tokio and rustix out; this keeps the standard library's out.
const IMPURE: [&str; 11] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime",
    "thread::spawn",
    "thread::scope",
    "thread::Builder",
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

/// The modules of a crate that a module imports, by name; both are files or directories of the
/// crate's root.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn imports(crate_root: &str) -> Imports {
    let is_test = |path: &Path| path.iter().any(|part| part == "tests" || part == "tests.rs");
    let modules: Vec<(String, String)> = sources(crate_root)
        .into_iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| {
            let inside = path.strip_prefix(crate_root).expect("inside").with_extension("");
            let module = inside.iter().next().expect("a name").to_string_lossy().into_owned();
            (module, code(&text))
        })
        .collect();
    let names: BTreeSet<&str> = modules.iter().map(|(module, _)| module.as_str()).collect();
    let mut imports = Imports::new();
    for (module, code) in modules.iter().filter(|(module, _)| module != "lib" && module != "main") {
        let imported = imports.entry(module.clone()).or_default();
        for path in code.split("crate::").skip(1) {
            // `crate::{a, b}` names several modules, at the beginning of each path in the braces.
            let paths = match path.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
                None => vec![path],
            };
            let first_name = |path: &str| {
                let end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                path.trim().split(end).next().unwrap_or_default().to_owned()
            };
            let others = paths.into_iter().map(first_name).filter(|name| name != module);
            imported.extend(others.filter(|name| names.contains(name.as_str())));
        }
    }
    imports
}

/// Removes the modules that import none of the others until only modules that import each other in
/// a circle, or such modules, are left.
fn circular(mut imports: Imports) -> Imports {
    loop {
        let leaves: BTreeSet<String> = imports
            .iter()
            .filter(|(_, imported)| imported.is_empty())
            .map(|(module, _)| module.clone())
            .collect();
        if leaves.is_empty() {
            return imports;
        }
        imports.retain(|module, _| !leaves.contains(module));
        imports.values_mut().for_each(|imported| imported.retain(|module| !leaves.contains(module)));
    }
}

#[test]
fn modules_do_not_import_each_other_in_a_circle() {
    for crate_root in [
        "src/memory",
        "src/engine",
        "src/source",
        "src/state",
        "src/daemon",
        "src/http",
        "protocol/src",
        "protocol/clients/rust/src",
    ] {
        let imports = imports(crate_root);
        assert!(imports.len() > 1, "no modules found in {crate_root}");
        let circular = circular(imports);
        assert!(circular.is_empty(), "{crate_root}: {circular:#?}");
    }
}

/// An entry of tests/defects, as far as it is checked here.
#[derive(serde::Deserialize)]
struct Defect {
    name: String,
    file: String,
    old: String,
    new: String,
    package: String,
    target: String,
    test: String,
}

#[derive(serde::Deserialize)]
struct Defects {
    defect: Vec<Defect>,
}

/// The directory with the sources of a test binary, from the workspace.
fn directory_of(package: &str, target: &str) -> Option<&'static str> {
    Some(match (package, target) {
        ("keyward", "--test engine") => "tests/engine",
        ("keyward", "--test integration") => "tests/integration",
        ("keyward-client", "--lib") => "protocol/clients/rust/src",
        ("keyward-client", "--test shared_behavior") => "protocol/clients/rust/tests",
        ("keyward-daemon", "--lib") => "src/daemon",
        ("keyward-engine", "--lib") => "src/engine",
        ("keyward-model", "--test model") => "tests/model",
        ("keyward-protocol", "--lib") => "protocol/src",
        ("keyward-protocol", "--test vectors") => "protocol/tests",
        ("keyward-schedules", "--test model") => "tests/schedules/model",
        ("keyward-http", "--lib") => "src/http",
        ("keyward-service", "--lib") => "src/service",
        ("keyward-source", "--lib") => "src/source",
        ("keyward-state", "--lib") => "src/state",
        _ => return None,
    })
}

/// Whether one of `sources` contains the test `a::b::name`: a function of that name, in the file of
/// its modules or in modules that are written out in a file of the outer ones. `root` is the name of
/// the test binary.
fn has_test(sources: &[(PathBuf, String)], directory: &str, root: &str, test: &str) -> bool {
    let modules: Vec<&str> = test.split("::").collect();
    let Some((name, modules)) = modules.split_last() else { return false };
    let contains_test = |path: &Path, text: &str| {
        let path = path.strip_prefix(directory).expect("inside").with_extension("");
        let mut of_file: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        // These files have no module of their name.
        of_file.pop_if(|last| ["lib", "main", "mod", root].contains(&&**last));
        let Some(inline) = modules.get(of_file.len()..) else { return false };
        of_file.iter().zip(modules).all(|(found, module)| found == module)
            && inline.iter().all(|module| text.contains(&format!("mod {module} {{")))
            && text.contains(&format!("fn {name}("))
    };
    sources.iter().any(|(path, text)| contains_test(path, text))
}

/// `tests/defects/run` takes hours, so a change that an entry no longer fits is noticed here.
#[test]
fn defects_fit_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut problems = Vec::new();
    let mut by_directory: BTreeMap<&str, Vec<(PathBuf, String)>> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root.join("tests/defects")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("UTF-8");
        let defects: Defects = toml::from_str(&text).expect("a list of defects");
        for Defect { name, file, old, new, package, target, test } in defects.defect {
            let occurrences =
                fs::read_to_string(root.join(&file)).map_or(0, |text| text.matches(&old).count());
            if occurrences != 1 || old == new {
                problems.push(format!("{name}: its text occurs {occurrences} times in {file}"));
            }
            match directory_of(&package, &target) {
                None => problems.push(format!("{name}: no known directory of {package} {target}")),
                Some(directory) => {
                    let found = by_directory.entry(directory).or_insert_with(|| sources(directory));
                    let root = target.split(' ').next_back().unwrap_or_default();
                    if !has_test(found, directory, root, &test) {
                        problems.push(format!("{name}: no test {test} in {directory}"));
                    }
                }
            }
            if !names.insert(name.clone()) {
                problems.push(format!("{name}: the name of two defects"));
            }
        }
    }
    assert!(names.len() > 200, "{} defects were found", names.len());
    assert!(problems.is_empty(), "{problems:#?}");
}
