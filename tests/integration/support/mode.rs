//! The mode in which a run starts its daemons. Every test holds in every mode; `tests/matrix` runs
//! them all.
//!
//! `KEYWARD_TEST_MODE` sets it, as in `workers=1 busy_poll=50us huge_pages=off source=compiled`.
//! What it leaves out has the daemon's default, and `source=text`. A setting that a test makes
//! itself takes precedence.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

/// The environment variable with the mode.
pub(crate) const VARIABLE: &str = "KEYWARD_TEST_MODE";

/// The extension by which the daemon recognises a compiled export.
pub(crate) const COMPILED_EXTENSION: &str = "kwc";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Settings of `[server]` and their values in TOML.
    pub(crate) server: Vec<(&'static str, String)>,
    /// Whether exports are compiled before the daemon reads them.
    pub(crate) compiled: bool,
}

impl Mode {
    /// The mode of this process.
    pub(crate) fn current() -> &'static Self {
        static CURRENT: OnceLock<Mode> = OnceLock::new();
        CURRENT.get_or_init(|| Self::parse(&std::env::var(VARIABLE).unwrap_or_default()))
    }

    /// Panics on an unknown setting: a misspelled mode must not pass as one in which all tests
    /// hold.
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

    /// Adds the mode's settings to a test's configuration: into its `[server]` table, or into a new
    /// one at the end, so that line numbers before it stay the same.
    pub(crate) fn configure(&self, config: &str) -> String {
        let is_set = |name: &str| {
            config.lines().any(|line| {
                let setting = line.trim_start().trim_start_matches("server.");
                setting.split('=').next().is_some_and(|word| word.trim() == name)
            })
        };
        let lines = |prefix: &str| -> String {
            let missing = self.server.iter().filter(|(name, _)| !is_set(name));
            missing.map(|(name, value)| format!("{prefix}{name} = {value}\n")).collect()
        };
        if lines("").is_empty() {
            return config.to_owned();
        }
        if let Some((before, after)) = config.split_once("[server]\n") {
            return format!("{before}[server]\n{}{after}", lines(""));
        }
        // TOML does not allow a header for a table that dotted names have created.
        if config.lines().any(|line| line.starts_with("server.")) {
            lines("server.") + config
        } else {
            format!("{config}\n[server]\n{}", lines(""))
        }
    }
}

/// The bytes of an export for the file `path`: compiled if its extension says so. An export that
/// cannot be compiled stays text, because the daemon has to refuse that as well.
pub(crate) fn encode_export(path: &Path, export: &str) -> Vec<u8> {
    if path.extension().is_none_or(|extension| extension != COMPILED_EXTENSION) {
        return export.into();
    }
    let directory = tempfile::tempdir().expect("a directory");
    let [source, output] = ["export.csv", "export.kwc"].map(|name| directory.path().join(name));
    fs::write(&source, export).expect("an export");
    let mut compile = super::keyward();
    compile.arg("compile").arg(&source).arg("--output").arg(&output).args(["--config", "/dev/null"]);
    let status = compile.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("keyward runs");
    if status.success() { fs::read(&output).expect("a compiled snapshot") } else { export.into() }
}
