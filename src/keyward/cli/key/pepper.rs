//! `--pepper-file`, for commands that hash keys. The hashes must be made with the pepper of the
//! daemon.

use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::CliError;
use keyward_daemon::config;
use keyward_engine::key_format;
use keyward_engine::pepper::Pepper;
use keyward_engine::record::Digest;

/// The pepper of the daemon, if it has one.
#[derive(Debug, Args)]
pub(super) struct PepperFile {
    /// Hash with the secret in this file, as a daemon with keys.pepper_file does (HMAC-SHA256)
    #[arg(long, value_name = "PATH")]
    pepper_file: Option<PathBuf>,
}

/// Computes the `key_hash` of a key.
pub(super) struct Hasher(Option<Pepper>);

impl PepperFile {
    pub(super) fn hasher(&self) -> Result<Hasher, CliError> {
        Ok(Hasher(self.pepper_file.as_deref().map(config::read_pepper).transpose()?))
    }
}

impl Hasher {
    pub(super) fn hash(&self, key: &[u8]) -> Digest {
        match &self.0 {
            None => key_format::hash(key),
            Some(pepper) => pepper.hash(key),
        }
    }
}
