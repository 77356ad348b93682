//! `--config` and `--pepper-file`, for commands that hash keys. The hashes must be made with the
//! pepper of the daemon.

use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::CliError;
use keyward_daemon::config::{self, Config};
use keyward_engine::key_format;
use keyward_engine::pepper::Pepper;
use keyward_engine::record::Digest;

/// The configuration of the daemon, and its pepper.
#[derive(Debug, Args)]
pub(super) struct PepperOptions {
    /// The daemon's configuration file: its keys.pepper_file is used
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Hash with the secret in this file, as a daemon with keys.pepper_file does (HMAC-SHA256);
    /// overrides the configuration's
    #[arg(long, value_name = "PATH")]
    pepper_file: Option<PathBuf>,
}

/// Computes the `key_hash` of a key.
pub(super) struct Hasher(Option<Pepper>);

impl PepperOptions {
    /// The configuration, if one is named.
    pub(super) fn config(&self) -> Result<Option<Config>, CliError> {
        let load = |file| Config::load_without_source(file, None);
        Ok(self.config.as_deref().map(load).transpose()?)
    }

    pub(super) fn hasher(&self, config: Option<&Config>) -> Result<Hasher, CliError> {
        let configured = config.and_then(|config| config.keys.pepper_file.as_deref());
        let file = self.pepper_file.as_deref().or(configured);
        Ok(Hasher(file.map(config::read_pepper).transpose()?))
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
