//! `keyward check`: whether a daemon would start with this configuration and serve this source, what is suspicious about
//! it, and what would change.
//!
//! The source is compared with the last good keys, if there are any; with `--against` with another export; with `--daemon` a running daemon compares it with what it
//! serves, by its own configuration. What is wrong is an error, what is only suspicious a warning.

use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{Exit, Failure};
use super::options::{AdminSocket, Origin};
use super::reload::missing;
use super::streams::Streams;
use keyward_daemon::admin::message::{CheckDiff, Diagnostics};
use keyward_daemon::admin::{self, message};
use keyward_daemon::clock::Clock;
use keyward_daemon::config::{Config, ConfigError, Overrides};
use keyward_daemon::reload::{self, Evaluation, LoadedSource, SourceFile, Stale};
use keyward_daemon::server;
use keyward_engine::record::{KeyRecord, Plans};
use keyward_engine::snapshot::{CompareOptions, KeyTable};
use keyward_source::Format;
use keyward_source::lint::Linter;

mod last_good;
mod report;

use report::{Lines, Outcome, Report, Setting};

const HELP: &str = "\
Everything that is wrong with the source is reported with its line and column: rows that are wrong in the same way are
one finding, with their number, and the first 20 findings are shown; then what is suspicious about it, the first 3 of each
kind (with --json, 20 of all). Revoked keys are not suspicious. A pepper that this user may not read is left to the daemon.

If the state directory has last good keys, and this user may read them, the source is compared with them: they are what a
start of the daemon compares it with, and serves if it is refused. --against and --daemon compare it with something else.

The exit code is 78 if the configuration or the source is wrong, 1 if a start or a reload would refuse the source, if it is
older than max_staleness, or if there are warnings (--strict). A running daemon is not touched; with --daemon it reads the source, takes
its time for it, and goes on serving what it has.

Examples, before an export replaces the one that is served:
  keyward check --source new.csv && mv new.csv /etc/keyward/keys.csv
  keyward check --source new.csv --against /etc/keyward/keys.csv --strict
  keyward check --daemon --source new.csv";

/// Validate the configuration and the keys without serving them
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Check {
    #[command(flatten)]
    origin: Origin,

    /// Say what replacing this export by the source would change
    #[arg(long, value_name = "OLD", conflicts_with = "daemon")]
    against: Option<PathBuf>,

    /// Directory with the last good keys, if it is not the configuration's
    #[arg(long, value_name = "DIR", conflicts_with_all = ["daemon", "against"])]
    state_dir: Option<PathBuf>,

    /// Have the running daemon say what a reload would change; without --source, of its own source
    #[arg(long, conflicts_with = "strict")]
    daemon: bool,

    #[command(flatten)]
    socket: AdminSocket,

    /// Let warnings fail the check
    #[arg(long)]
    strict: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, Failure> {
        let outcome = if self.daemon { self.ask() } else { self.read() };
        match outcome {
            Ok(outcome) if self.json => {
                let exit = outcome.exit(self.strict);
                streams.print_json(&Report::new(&outcome, exit == Exit::Done))?;
                Ok(exit)
            }
            Ok(outcome) => {
                Lines(streams).print(&outcome)?;
                Ok(outcome.exit(self.strict))
            }
            // The failure is the result: for a machine, it is on standard output.
            Err(failure) if self.json => {
                streams.print_json(&Report::failed(&failure))?;
                Ok(failure.exit)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Asks the daemon.
    fn ask(&self) -> Result<Outcome, Failure> {
        let source = self.origin.source.as_deref().map(absolute).transpose()?;
        let command = message::Command::Check { source };
        let reply = admin::send_command(self.socket.path()?.as_path(), &command)?;
        let check = reply.check.ok_or_else(|| missing("check"))?;
        Ok(Outcome {
            source: check.source,
            keys: check.diff.as_ref().map(|diff| diff.keys),
            // The diagnostics are reported one by one instead.
            error: check.error.filter(|_| check.diagnostics.is_none()),
            diagnostics: check.diagnostics,
            withheld: check.withheld,
            stale: check.diff.as_ref().and_then(|diff| diff.stale.clone()),
            diff: check.diff,
            ..Outcome::default()
        })
    }

    /// Reads the source here, as a reload would.
    fn read(&self) -> Result<Outcome, Failure> {
        let (source, state_dir) = (self.origin.source.clone(), self.state_dir.clone());
        let overrides = Overrides { source, state_dir, ..Overrides::default() };
        let config = match Config::load(self.origin.config.as_deref(), overrides) {
            Ok(config) => config,
            Err(error) => return Ok(Outcome::misconfigured(&error)),
        };
        // What this user may not read, the daemon's may.
        let (global_policy, has_peppers) = match config.global_policy() {
            Ok(global_policy) => (global_policy, true),
            Err(ConfigError::Pepper { source, .. }) if source.is_permission_denied() => {
                (config.global_policy_without_peppers(), false)
            }
            Err(error) => return Ok(Outcome::misconfigured(&error)),
        };
        let source = config.source_file();
        let plans = config.plans.as_ref();
        let is_limited = |record: &KeyRecord<'_>| is_limited(plans, record);
        let now = Clock::new().now().unix;
        let mut linter = Linter::new(now, &is_limited);
        let mut outcome = Outcome { source: source.path.display().to_string(), ..Outcome::default() };
        let LoadedSource { keys, written_at, set_aside, .. } =
            match load(&source, &mut |line, record| linter.check(line, record)) {
                Ok(loaded) => loaded,
                Err(failure) => return Ok(outcome.refused(&failure)),
            };
        // Before another export is read: what the lints remember is as large as a part of it.
        let lints = linter.finish();
        if let Some(old) = &self.against {
            outcome.diff = Some(compare(&config, old, &keys)?);
        } else if keys.is_empty() {
            return Ok(outcome.refused(&reload::ReloadError::Empty { path: source.path.to_path_buf() }));
        } else {
            last_good::compare(&config, has_peppers.then_some(&global_policy), &keys, &mut outcome);
        }
        outcome.stale = Stale::at(now, written_at, &global_policy).map(|stale| stale.to_string());
        outcome.keys = Some(keys.len());
        outcome.withheld = server::withheld(set_aside.as_ref(), None);
        outcome.summary = Some(keys.summary(now));
        outcome.lints = Some(lints);
        Ok(outcome)
    }
}

impl Outcome {
    /// There is no telling where the source would be.
    fn misconfigured(error: &ConfigError) -> Self {
        Self { error: Some(error.to_string()), setting: Setting::of(error), ..Self::default() }
    }

    /// The source is of no use.
    fn refused(self, failure: &reload::ReloadError) -> Self {
        // The diagnostics are reported one by one instead.
        Self {
            diagnostics: failure.diagnostics().map(Diagnostics::from),
            error: failure.message_beside_diagnostics(),
            ..self
        }
    }
}

/// Whether anything refuses a request of the key: a limit in shadow mode does not.
fn is_limited(plans: &Plans, record: &KeyRecord<'_>) -> bool {
    // A plan that is not there is a finding.
    let of_plan = plans.resolve(record.plan).map_or(&[][..], |(_, limits)| limits);
    let replaced = |name: &str| record.limits.iter().any(|own| *own.name == *name);
    record.limits.iter().any(|limit| !limit.shadow)
        || of_plan.iter().any(|limit| !limit.shadow && !replaced(&limit.name))
}

fn load(
    source: &SourceFile,
    see: &mut dyn FnMut(u64, &KeyRecord<'_>),
) -> Result<LoadedSource, reload::ReloadError> {
    let seed = getrandom::u64().map_err(reload::ReloadError::Random)?;
    source.load_observed(seed, see)
}

/// What putting `new` in the place of the export `old` would do.
fn compare(config: &Config, old: &Path, new: &KeyTable) -> Result<CheckDiff, Failure> {
    let source = config.source_file();
    let old = SourceFile {
        format: Format::from_path(old).unwrap_or(source.format),
        path: old.into(),
        ..source.clone()
    };
    let LoadedSource { keys: old, .. } = load(&old, &mut |_, _| {})
        .map_err(|failure| Failure::new(Exit::BadInput, format_args!("--against: {failure}")))?;
    // Two exports may be hashed with different peppers.
    let options =
        CompareOptions { now: Clock::new().now().unix, by_key_id: config.keys.pepper_file.is_some() };
    let evaluation = Evaluation::new(&config.reload_policy(), &source.path, new, Some(&old), options);
    Ok(server::diff(&evaluation, 0, old.len()))
}

/// The daemon has another working directory.
fn absolute(path: &Path) -> Result<String, Failure> {
    let refused =
        |problem: &dyn std::fmt::Display| Failure::new(Exit::Usage, format_args!("--source: {problem}"));
    let path = std::path::absolute(path).map_err(|error| refused(&error))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| refused(&"the path is not UTF-8, which the daemon's answer is"))
}

#[cfg(test)]
mod tests;
