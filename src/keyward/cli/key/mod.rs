//! `keyward key`: commands about keys that need no daemon.

use clap::Subcommand;

use super::exit::{CliError, Exit};
use super::streams::Streams;

mod check;
mod export;
mod hash;
mod header;
mod new;
mod pepper;
mod row;
mod rule;

/// Mint, hash and check keys, and print a gitleaks rule for them
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  keyward key new --key-id ci-1 --limits 100/s")]
pub(super) enum Key {
    New(Box<new::New>),
    Hash(hash::Hash),
    Check(check::Check),
    Rule(rule::Rule),
}

impl Key {
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<Exit, CliError> {
        match self {
            Self::New(new) => new.run(streams),
            Self::Hash(hash) => hash.run(streams),
            Self::Check(check) => check.run(streams),
            Self::Rule(rule) => rule.run(streams),
        }
    }
}
