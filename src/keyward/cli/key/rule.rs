//! `keyward key rule`: the rule with which a scanner finds leaked keys.

use clap::Args;

use crate::cli::exit::{CliError, Exit};
use crate::cli::streams::Streams;
use keyward_engine::key_format::{Prefix, gitleaks};

const HELP: &str = "\
The rule is for gitleaks, in TOML. It finds every key that was minted with one of the prefixes, in files, URLs, JSON and logs.

Example:
  keyward key rule --prefix acme_live_ --prefix acme_test_ > keyward.toml && gitleaks dir --config keyward.toml .";

/// Print the gitleaks rule that finds minted keys
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct Rule {
    /// What minted keys begin with; may be repeated
    #[arg(long = "prefix", value_name = "PREFIX", default_value = "acme_live_")]
    prefixes: Vec<Prefix>,
}

impl Rule {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        let mut prefixes: Vec<Prefix> = Vec::with_capacity(self.prefixes.len());
        for prefix in &self.prefixes {
            if !prefixes.contains(prefix) {
                prefixes.push(prefix.clone());
            }
        }
        streams.print(gitleaks::rule(&prefixes).trim_end())?;
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Exit;
    use crate::cli::tests::run_with;

    #[test]
    fn rule_of_the_default_prefix_is_the_shipped_one() {
        let (exit, output, messages) = run_with(&["key", "rule"], b"");
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
        assert_eq!(output, include_str!("../../../engine/key_format/gitleaks.toml"));
    }

    #[test]
    fn repeated_prefix_is_used_once() {
        let prefixes = ["--prefix", "a_", "--prefix", "b_", "--prefix", "a_"];
        let (_, output, _) = run_with(&[&["key", "rule"], &prefixes[..]].concat(), b"");
        assert!(output.starts_with("# Made by: keyward key rule --prefix a_ --prefix b_\n"), "{output}");
        assert!(output.ends_with("keywords = [\"a_\", \"b_\"]\n"), "{output}");
    }
}
