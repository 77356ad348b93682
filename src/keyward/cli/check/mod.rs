//! `keyward check`: validates the configuration and the source, warns about suspicious rows, and
//! shows what would change.
//!
//! By default the source is compared with the last good keys, if there are any. With `--against` it
//! is compared with another export. With `--daemon` a running daemon compares it with the keys that
//! it serves, using its own configuration.

use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{CliError, Exit};
use super::options::{ConfigOptions, SocketOptions};
use super::streams::Streams;
use keyward_admin::message::CheckDiff;
use keyward_admin::{message, send_command};
use keyward_daemon::clock::Clock;
use keyward_daemon::config::{Config, ConfigError, Overrides};
use keyward_daemon::reload::{self, Evaluation, LoadedSource, SourceFile, Stale};
use keyward_daemon::server;
use keyward_engine::record::{KeyRecord, Plans};
use keyward_engine::snapshot::{CompareOptions, KeyTable};
use keyward_source::Format;
use keyward_source::lint::Linter;

mod last_good;
mod outcome;
mod report;
mod start;

use outcome::CheckOutcome;
use report::{Report, TextReport};

const HELP: &str = "\
All errors in the source are reported with their lines and columns. Rows with the same kind of error are reported once,
with their number, and the first 20 kinds are shown. Warnings about suspicious rows follow, the first 3 of each kind (with
--json, 20 in all). Revoked keys cause no warnings. A pepper that this user may not read is left to the daemon.

If the state directory has last good keys, and this user may read them, the source is compared with them. A start of the
daemon makes the same comparison, and serves these keys if it refuses the source. --against and --daemon compare the
source with other keys.

The check also says whether a start on this host would fail: because of its list of revocations, its state directory, or the
group or directory of its socket, unless systemd passes the sockets. What this user may not see is reported as not known.
--against leaves this out.

The exit code is 78 if the configuration or the source is invalid. It is 1 if a start or a reload would refuse the source,
if a start would fail, if the source is older than max_staleness, or if there are warnings (--strict). A running daemon is
not affected; with --daemon it reads the source and goes on serving its keys.

Examples, before an export replaces the one that is served:
  keyward check --source new.csv && mv new.csv /etc/keyward/keys.csv
  keyward check --source new.csv --against /etc/keyward/keys.csv --strict
  keyward check --daemon --source new.csv";

/// Validate the configuration and the keys without serving them
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigOptions,

    /// Show what replacing this export by the source would change
    #[arg(long, value_name = "OLD", conflicts_with = "daemon")]
    against: Option<PathBuf>,

    /// Directory with the last good keys, if it is not the configuration's
    #[arg(long, value_name = "DIR", conflicts_with_all = ["daemon", "against"])]
    state_dir: Option<PathBuf>,

    /// Let the running daemon show what a reload would change; without --source, it reads its own
    /// source
    #[arg(long, conflicts_with = "strict")]
    daemon: bool,

    #[command(flatten)]
    sockets: SocketOptions,

    /// Let warnings fail the check
    #[arg(long)]
    strict: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let outcome = if self.daemon { self.check_by_daemon() } else { self.check_here() };
        match outcome {
            Ok(outcome) if self.json => {
                let exit = outcome.exit(self.strict);
                streams.print_json(&Report::new(&outcome, exit == Exit::Done))?;
                Ok(exit)
            }
            Ok(outcome) => {
                TextReport(streams).print(&outcome)?;
                Ok(outcome.exit(self.strict))
            }
            // The error is the result, so that the JSON on standard output contains it.
            Err(error) if self.json => {
                streams.print_json(&Report::failed(&error))?;
                Ok(error.exit)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends the check to the daemon.
    fn check_by_daemon(&self) -> Result<CheckOutcome, CliError> {
        let source = self.config.source.as_deref().map(absolute).transpose()?;
        let command = message::Command::Check { source };
        let reply = send_command(self.sockets.admin(self.config.config.as_deref())?.as_path(), &command)?;
        let check = reply.check.ok_or_else(|| CliError::missing_in_reply("check"))?;
        Ok(CheckOutcome {
            source: check.source,
            keys: check.diff.as_ref().map(|diff| diff.keys),
            // The diagnostics are reported one by one instead.
            error: check.error.filter(|_| check.diagnostics.is_none()),
            diagnostics: check.diagnostics,
            withheld: check.withheld,
            stale: check.diff.as_ref().and_then(|diff| diff.stale.clone()),
            diff: check.diff,
            ..CheckOutcome::default()
        })
    }

    /// Reads the source in this process, as a reload would.
    fn check_here(&self) -> Result<CheckOutcome, CliError> {
        let (source, state_dir) = (self.config.source.clone(), self.state_dir.clone());
        let [socket, admin_socket] = self.sockets.paths();
        let overrides = Overrides { source, state_dir, socket, admin_socket };
        let config = match Config::load(self.config.config.as_deref(), overrides) {
            Ok(config) => config,
            Err(error) => return Ok(CheckOutcome::misconfigured(&error)),
        };
        // The user of the daemon may be able to read a pepper that this user cannot read.
        let (global_policy, has_peppers) = match config.global_policy() {
            Ok(global_policy) => (global_policy, true),
            Err(ConfigError::Pepper { source, .. }) if source.is_permission_denied() => {
                (config.global_policy_without_peppers(), false)
            }
            Err(error) => return Ok(CheckOutcome::misconfigured(&error)),
        };
        let source = config.source_file();
        let plans = config.plans.as_ref();
        let is_limited = |record: &KeyRecord<'_>| is_limited(plans, record);
        let now = Clock::new().now().unix;
        let mut linter = Linter::new(now, &is_limited);
        let mut outcome =
            CheckOutcome { source: source.path.display().to_string(), ..CheckOutcome::default() };
        let revocations = match self.against {
            None => outcome.start.inspect(&config),
            Some(_) => None,
        };
        let LoadedSource { keys, state, written_at, set_aside, .. } =
            match load(&source, &mut |line, record| linter.check(line, record)) {
                Ok(loaded) => loaded,
                Err(failure) => return Ok(outcome.refused(&failure)),
            };
        // Before another export is read, to free the memory of the linter.
        let lints = linter.finish();
        if let Some(old) = &self.against {
            outcome.diff = Some(compare(&config, old, &keys)?);
        } else if keys.is_empty() {
            return Ok(outcome.refused(&reload::ReloadError::Empty { path: source.path.to_path_buf() }));
        } else {
            if let Some(loss) = outcome.start.balances(&keys) {
                let path = source.path.to_path_buf();
                return Ok(outcome.refused(&reload::ReloadError::LostBalances { path, loss }));
            }
            let policy = has_peppers.then_some(&global_policy);
            last_good::compare(&config, policy, (&keys, &state), revocations.as_ref(), &mut outcome);
        }
        outcome.stale = Stale::at(now, written_at, &global_policy).map(|stale| stale.to_string());
        outcome.keys = Some(keys.len());
        outcome.withheld = server::withheld(set_aside.as_ref(), None);
        outcome.summary = Some(keys.summary(now));
        outcome.lints = Some(lints);
        Ok(outcome)
    }
}

/// Whether any limit applies to the key, other than in shadow mode.
fn is_limited(plans: &Plans, record: &KeyRecord<'_>) -> bool {
    // An unknown plan has a diagnostic of its own.
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

/// Compares `new` with the export `old`.
fn compare(config: &Config, old: &Path, new: &KeyTable) -> Result<CheckDiff, CliError> {
    let source = config.source_file();
    let old = SourceFile {
        format: Format::from_path(old).unwrap_or(source.format),
        path: old.into(),
        ..source.clone()
    };
    let LoadedSource { keys: old, .. } = load(&old, &mut |_, _| {})
        .map_err(|failure| CliError::new(Exit::BadInput, format_args!("--against: {failure}")))?;
    // Two exports may be hashed with different peppers.
    let options =
        CompareOptions { now: Clock::new().now().unix, by_key_id: config.keys.pepper_file.is_some() };
    let evaluation = Evaluation::new(&config.reload_policy(), &source.path, new, &old, options, None);
    Ok(server::diff(&evaluation, 0, old.len()))
}

/// The absolute path, because the daemon has another working directory.
fn absolute(path: &Path) -> Result<String, CliError> {
    let refused =
        |problem: &dyn std::fmt::Display| CliError::new(Exit::Usage, format_args!("--source: {problem}"));
    let path = std::path::absolute(path).map_err(|error| refused(&error))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| refused(&"the path is not UTF-8, which the daemon's answer is"))
}

#[cfg(test)]
mod tests;
