//! `keyward state`: decisions about the state directory while the daemon is stopped.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::exit::{CliError, Exit};
use super::streams::Streams;
use keyward_daemon::config::Config;
use keyward_state::{self as state, AcceptError, Acceptance};

const HELP: &str = "\
Example:
  keyward state accept lost-revocations";

const ACCEPT_HELP: &str = "\
The acceptance applies only to the next start of the daemon, within an hour. The start records it in the log and the audit
trail, with the user and the time. The command is refused while the daemon is running. Run it as root or as the daemon's
user.

  lost-revocations  The list of revocations is missing, empty, truncated, damaged or an older copy: start with the rest of
                    it. A key that was revoked only by `keyward revoke` is allowed again. Compare the list with the
                    events `revoke` and `unrevoke` in audit.jsonl, and repeat the missing revocations.
  source            Accept the source at the next start, whatever was served before.

Example:
  keyward state accept lost-revocations --state-dir /var/lib/keyward";

/// Decide about the state directory while the daemon is stopped
#[derive(Debug, Subcommand)]
#[command(after_help = HELP)]
pub(super) enum State {
    Accept(Accept),
}

/// Accept, for the next start only, what the daemon refuses to start with
#[derive(Debug, Args)]
#[command(after_help = ACCEPT_HELP)]
pub(super) struct Accept {
    /// What to accept
    #[arg(value_name = "WHAT")]
    what: What,

    /// Configuration file [default: /etc/keyward/keyward.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// The daemon's state directory; overrides server.state_dir [default: /var/lib/keyward]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    LostRevocations,
    LostBalances,
    Source,
}

impl State {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        match self {
            Self::Accept(accept) => accept.run(streams),
        }
    }
}

impl Accept {
    fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let what = match self.what {
            What::LostRevocations => Acceptance::LostRevocations,
            What::LostBalances => Acceptance::LostBalances,
            What::Source => Acceptance::Source,
        };
        let directory = Config::state_dir(self.config.as_deref(), self.state_dir.clone())?;
        state::accept(&directory, what).map_err(|error| match error {
            AcceptError::Missing { .. } => CliError::new(Exit::BadInput, error),
            AcceptError::Running { .. } | AcceptError::File(_) => CliError::new(Exit::Denied, error),
        })?;
        let (name, directory) = (what.name(), directory.display());
        streams.print(format_args!("accepted for the next start within an hour: {name}, in {directory}"))?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, run_with};
    use super::*;

    #[test]
    fn acceptance_is_written_to_the_configured_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("keyward.toml");
        // Without a source, which may be an option of the daemon.
        let text = format!("server.state_dir = '{}'\n", directory.path().display());
        std::fs::write(&file, text).expect("a configuration");
        let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
        let (file, state) = (path(&file), path(directory.path()));
        for options in [["--config", &file], ["--state-dir", &state]] {
            let (exit, output, messages) =
                run_with(&[&["state", "accept", "lost-revocations"], &options[..]].concat(), b"");
            assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
            assert!(output.starts_with("accepted for the next start"), "{output}");
            std::fs::remove_file(directory.path().join("accept-lost-revocations")).expect("there");
        }
    }

    #[test]
    fn missing_directory_and_unknown_acceptance_are_refused() {
        let (exit, _, messages) = run_with(&["state", "accept", "source", "--state-dir", "/missing"], b"");
        assert_eq!(exit, Exit::BadInput);
        assert!(messages.contains("/missing: there is no state directory"), "{messages}");
        assert!(parse(&["state", "accept", "everything"]).is_err());
        assert!(parse(&["state", "accept"]).is_err());
    }
}
