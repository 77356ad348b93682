//! `--pepper-file`, for the commands that hash keys: with the daemon's pepper, or nobody finds them.

use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::Failure;
use keyward_daemon::config;
use keyward_engine::key_format;
use keyward_engine::pepper::Pepper;
use keyward_engine::record::Digest;

/// Where the secret is that the daemon hashes keys with, if it does.
#[derive(Debug, Args)]
pub(super) struct PepperFile {
    /// Hash with the secret in this file, as a daemon with keys.pepper_file does (HMAC-SHA256)
    #[arg(long, value_name = "PATH")]
    pepper_file: Option<PathBuf>,
}

/// What makes a `key_hash` of a key.
pub(super) struct Hasher(Option<Pepper>);

impl PepperFile {
    pub(super) fn hasher(&self) -> Result<Hasher, Failure> {
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
