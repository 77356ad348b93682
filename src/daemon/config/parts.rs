//! The configuration as the daemon's parts take it, so that none of them has to know the configuration.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::reload::{ReloadPolicy, SourceFile, Tolerance};
use keyward_engine::pepper::{Pepper, Peppers};
use keyward_engine::rules::GlobalPolicy;

use super::{Config, ConfigError, Keys, Source, pepper};

impl Config {
    /// What [`verify`](keyward_engine::verify) has to keep to. Reads the peppers.
    ///
    /// # Errors
    /// When a pepper's file cannot be read, or can be read by others.
    pub fn global_policy(&self) -> Result<GlobalPolicy, ConfigError> {
        Ok(GlobalPolicy { peppers: self.keys.peppers()?, ..self.global_policy_without_peppers() })
    }

    /// The same as far as they are in the configuration's own file.
    pub fn global_policy_without_peppers(&self) -> GlobalPolicy {
        let seconds = |age: Duration| u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        GlobalPolicy {
            minted_prefixes: self.keys.minted_prefixes.clone(),
            max_staleness: self.source.max_staleness.map(seconds),
            peppers: None,
        }
    }
}

impl Keys {
    fn peppers(&self) -> Result<Option<Peppers>, ConfigError> {
        let Some(current) = &self.pepper_file else {
            return Ok(None);
        };
        let current = read_pepper(current)?;
        let previous = self.previous_pepper_file.as_deref().map(read_pepper).transpose()?;
        Ok(Some(Peppers { current, previous }))
    }
}

/// The pepper in `file`.
///
/// # Errors
/// When it cannot be read, can be read by others, or holds no pepper.
pub fn read_pepper(file: &Path) -> Result<Pepper, ConfigError> {
    pepper::read(file).map_err(|error| ConfigError::Pepper {
        file: file.to_owned(),
        problem: error.to_string(),
        forbidden: error.is_forbidden(),
    })
}

impl Config {
    /// Where [`reload`](crate::reload) reads keys.
    pub fn file(&self) -> SourceFile {
        SourceFile {
            path: self.source.path.as_path().into(),
            format: self.source.format,
            mapping: self.source.mapping.clone(),
            plans: Arc::clone(&self.plans),
            on_bad_row: self.source.on_bad_row,
        }
    }

    /// When it does, and what it believes.
    pub fn policy(&self) -> ReloadPolicy {
        let Source {
            poll,
            settle,
            max_shrink,
            max_reactivated,
            max_loosened,
            apply_takeaways_of_refused,
            ..
        } = &self.source;
        ReloadPolicy {
            poll: *poll,
            settle: *settle,
            tolerance: Tolerance {
                max_shrink: max_shrink.get(),
                max_reactivated: max_reactivated.get(),
                max_loosened: max_loosened.get(),
            },
            apply_takeaways: *apply_takeaways_of_refused,
        }
    }
}
