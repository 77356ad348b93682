//! The directory, export and configuration that a daemon is started with.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::daemon::Daemon;
use super::mode::{self, Mode};
use super::programs::{keyward, without_settings};

/// A temporary directory with an export, sockets, state and log of one daemon.
pub(crate) struct Setup {
    pub(crate) dir: TempDir,
    config: String,
    mode: Mode,
    state_dir: Option<PathBuf>,
}

impl Setup {
    /// A setup with an export, compiled if the mode says so.
    pub(crate) fn new(export: impl Into<String>) -> Self {
        let setup = Self::without_export();
        setup.write_export(export);
        setup
    }

    /// As [`Setup::new`], for tests of text exports: never compiled.
    pub(crate) fn text(export: impl Into<String>) -> Self {
        let setup = Self::without_export().text_source();
        setup.write_export(export);
        setup
    }

    /// As [`Setup::new`], for tests of compiled exports: always compiled.
    pub(crate) fn compiled(export: impl Into<String>) -> Self {
        let mut setup = Self::without_export();
        setup.mode.compiled = true;
        setup.write_export(export);
        setup
    }

    pub(crate) fn without_export() -> Self {
        let dir = TempDir::new().expect("a directory");
        Self { dir, config: String::new(), mode: Mode::current().clone(), state_dir: None }
    }

    /// Makes [`Setup::source`] a text file in every mode.
    pub(crate) fn text_source(mut self) -> Self {
        self.mode.compiled = false;
        self
    }

    /// Writes the export in place.
    pub(crate) fn write_export(&self, export: impl Into<String>) {
        fs::write(self.source(), mode::encode_export(&self.source(), &export.into())).expect("the export");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only its owner may read. Returns its path.
    pub(crate) fn write_secret(&self, name: &str, secret: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, secret).expect("a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// The path of the export. Its extension says whether it is text or compiled.
    pub(crate) fn source(&self) -> PathBuf {
        self.path(if self.mode.compiled { "keys.kwc" } else { "keys.csv" })
    }

    /// Moves the state directory away from the export.
    pub(crate) fn state_dir(mut self, path: &Path) -> Self {
        self.state_dir = Some(path.to_owned());
        self
    }

    /// Appends lines to the configuration file.
    pub(crate) fn config(mut self, text: &str) -> Self {
        self.config += text;
        self.config.push('\n');
        self
    }

    /// Replaces the configuration. It takes effect at the next start.
    pub(crate) fn replace_config(&mut self, text: &str) {
        self.config = text.to_owned();
    }

    /// The command `keyward serve` of this setup.
    pub(crate) fn command(&self) -> Command {
        self.command_of(None)
    }

    /// As [`Setup::command`], with another binary.
    pub(crate) fn command_of(&self, binary: Option<&OsStr>) -> Command {
        let config = self.path("keyward.toml");
        fs::write(&config, self.mode.configure(&self.config)).expect("the configuration");
        let mut command = binary.map_or_else(keyward, without_settings);
        command.arg("serve").arg("--config").arg(config);
        if !self.config.contains("source.path") {
            command.arg("--source").arg(self.source());
        }
        command.arg("--socket").arg(self.path("keyward.sock")).arg("--state-dir");
        command.arg(self.state_dir.as_deref().unwrap_or(self.dir.path()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(self.path("log")).expect("the log");
        command.stderr(log);
        command
    }

    /// Starts the daemon and waits until it has tried to load its source.
    pub(crate) fn start(self) -> Daemon {
        let command = self.command();
        self.start_with(command)
    }

    /// As [`Setup::start`], with a command of the test's own.
    pub(crate) fn start_with(self, command: Command) -> Daemon {
        Daemon::spawn(self, command)
    }

    /// The events in the audit trail, in order.
    pub(crate) fn audit_trail(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
    }

    /// The events with one name in the audit trail, in order.
    pub(crate) fn audit_events(&self, name: &str) -> Vec<serde_json::Value> {
        let mut events = self.audit_trail();
        events.retain(|event| event["event"] == name);
        events
    }
}

/// Replaces an export atomically: writes a new file beside it and renames it.
pub(crate) fn replace_export(path: &Path, export: impl Into<String>) {
    let new = path.with_extension("new");
    fs::write(&new, mode::encode_export(path, &export.into())).expect("a new file");
    fs::rename(&new, path).expect("renamed");
}
