//! The mode that a test's daemons run in: every test holds in every mode (`tests/matrix` goes through them).
//!
//! `KEYWARD_TEST_MODE` says which, as in `workers=1 busy_poll=50us huge_pages=off source=compiled`; what it leaves out is as the
//! daemon's defaults have it, and `source=text`. A setting that a test makes itself stays as the test made it.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

/// Names the mode.
pub(crate) const VARIABLE: &str = "KEYWARD_TEST_MODE";

/// What a compiled export is called, so that the daemon takes it for one.
pub(crate) const COMPILED: &str = "kwc";

/// What is in force besides the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Settings of `[server]`, and their values in TOML.
    pub(crate) server: Vec<(&'static str, String)>,
    /// Whether exports are compiled before the daemon sees them.
    pub(crate) compiled: bool,
}

impl Mode {
    /// That of this process.
    pub(crate) fn current() -> &'static Self {
        static CURRENT: OnceLock<Mode> = OnceLock::new();
        CURRENT.get_or_init(|| Self::parse(&std::env::var(VARIABLE).unwrap_or_default()))
    }

    /// Panics where it is no mode: a typing error must not pass for a mode in which all tests hold.
    pub(crate) fn parse(text: &str) -> Self {
        let mut mode = Self::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("workers", count)) => {
                    let count: u32 = count.parse().expect("a number of workers");
                    mode.server.push(("workers", count.to_string()));
                }
                Some(("busy_poll", time)) => mode.server.push(("busy_poll", format!("\"{time}\""))),
                Some(("huge_pages", "on")) => mode.server.push(("huge_pages", "true".into())),
                Some(("huge_pages", "off")) => mode.server.push(("huge_pages", "false".into())),
                Some(("source", "text")) => mode.compiled = false,
                Some(("source", "compiled")) => mode.compiled = true,
                _ => panic!("{VARIABLE}: {word:?} is none of workers, busy_poll, huge_pages, source"),
            }
        }
        mode
    }

    /// A test's configuration with the mode's settings in it: where `[server]` is, or one is made, so that the lines of
    /// everything else move as little as they can.
    pub(crate) fn configure(&self, config: &str) -> String {
        let own = |name: &str| {
            config.lines().any(|line| {
                let setting = line.trim_start().trim_start_matches("server.");
                setting.split('=').next().is_some_and(|word| word.trim() == name)
            })
        };
        let lines = |prefix: &str| -> String {
            let missing = self.server.iter().filter(|(name, _)| !own(name));
            missing.map(|(name, value)| format!("{prefix}{name} = {value}\n")).collect()
        };
        if lines("").is_empty() {
            return config.to_owned();
        }
        if let Some((before, after)) = config.split_once("[server]\n") {
            return format!("{before}[server]\n{}{after}", lines(""));
        }
        // A table that has been made by dotted names cannot be opened by its header.
        match config.lines().any(|line| line.starts_with("server.")) {
            true => lines("server.") + config,
            false => format!("{config}\n[server]\n{}", lines("")),
        }
    }
}

/// The bytes of an export that goes to `path`: compiled, where its name says so. What cannot be compiled goes as it is: the
/// daemon has to refuse it as well.
pub(crate) fn form(path: &Path, export: &str) -> Vec<u8> {
    if path.extension().is_none_or(|extension| extension != COMPILED) {
        return export.into();
    }
    let directory = tempfile::tempdir().expect("a directory");
    let [source, output] = ["export.csv", "export.kwc"].map(|name| directory.path().join(name));
    fs::write(&source, export).expect("an export");
    let mut compile = super::keyward();
    compile.arg("compile").arg(&source).arg("--output").arg(&output).args(["--config", "/dev/null"]);
    let status = compile.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("keyward runs");
    match status.success() {
        true => fs::read(&output).expect("a compiled snapshot"),
        false => export.into(),
    }
}
