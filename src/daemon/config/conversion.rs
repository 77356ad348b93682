//! Converts the configuration into the types of the modules that use it, so that these do not
//! depend on [`Config`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::reload::{ReloadPolicy, SourceFile, Tolerance};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::pepper::{Pepper, Peppers};

use super::{Config, ConfigError, Keys, Source, pepper_file};

impl Config {
    /// The policy of [`verify`](keyward_engine::verify). Reads the peppers.
    ///
    /// # Errors
    /// When a pepper cannot be read, or can be read by other users.
    pub fn global_policy(&self) -> Result<GlobalPolicy, ConfigError> {
        Ok(GlobalPolicy { peppers: self.keys.peppers()?, ..self.global_policy_without_peppers() })
    }

    /// As [`global_policy`](Self::global_policy), without reading the peppers.
    pub fn global_policy_without_peppers(&self) -> GlobalPolicy {
        let seconds = |age: Duration| u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        GlobalPolicy {
            minted_prefixes: self.keys.minted_prefixes.clone(),
            max_staleness: self.source.max_staleness.map(seconds),
            peppers: None,
            time_zone: self.keys.time_zone.clone(),
            plans: Arc::clone(&self.plans),
        }
    }

    /// The source that [`reload`](crate::reload) reads.
    pub fn source_file(&self) -> SourceFile {
        SourceFile {
            path: self.source.path.as_path().into(),
            format: self.source.format,
            mapping: self.source.mapping.clone(),
            plans: Arc::clone(&self.plans),
            on_bad_row: self.source.on_bad_row,
        }
    }

    /// When the source is read, and which changes are accepted.
    pub fn reload_policy(&self) -> ReloadPolicy {
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

/// Reads the pepper in `file`.
///
/// # Errors
/// When it cannot be read, can be read by other users, or contains no pepper.
pub fn read_pepper(file: &Path) -> Result<Pepper, ConfigError> {
    pepper_file::read(file).map_err(|source| ConfigError::Pepper { file: file.to_owned(), source })
}
