//! The part of the configuration that a reload can change.

use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use crate::audit::{Audit, Event};
use crate::config::{self, Config, ConfigError};
use crate::reload::{ConfigLoader, Purpose, Settings};
use crate::server::LoadConfig;

/// The settings that a reload can change.
pub(super) fn settings(config: &Config) -> Result<Settings, ConfigError> {
    Ok(Settings {
        source: config.source_file(),
        policy: config.reload_policy(),
        global_policy: Arc::new(config.global_policy()?),
        revocation_retention: config.revocation_retention,
    })
}

/// Reads the configuration again for a reload. Settings outside of [`Settings`] need a restart; if
/// one of them has changed at a reload, the log names its section.
pub(super) fn config_loader(started_with: Config, load_config: LoadConfig, audit: Audit) -> ConfigLoader {
    Box::new(move |purpose| {
        let loaded = config::refuse_pipe(started_with.file.as_deref())
            .and_then(|()| load_config())
            .and_then(|config| Ok((settings(&config)?, config)));
        if purpose == Purpose::Reload {
            audit.record(&configuration_event(started_with.file.as_deref(), loaded.as_ref().err()));
        }
        let (settings, config) = loaded?;
        let sections = restart_only_changes(&started_with, &config);
        if purpose == Purpose::Reload && !sections.is_empty() {
            warn!(
                sections = sections.join(", "),
                "the configuration has changes in sections that take effect at the next start only"
            );
        }
        Ok(settings)
    })
}

/// The sections with changes that need a restart.
fn restart_only_changes(before: &Config, after: &Config) -> Vec<&'static str> {
    let state = |config: &Config| (config.save_interval, config.keep_snapshot);
    let uid_quotas = |config: &Config| (config.max_connections_per_uid, config.uid_quotas);
    let sections = [
        ("[server]", before.server != after.server),
        ("[uid_quotas]", uid_quotas(before) != uid_quotas(after)),
        ("[state]", state(before) != state(after)),
        ("[usage]", before.usage != after.usage),
        ("[audit]", before.audit != after.audit),
        ("[log]", before.log != after.log),
    ];
    sections.into_iter().filter(|(_, has_changed)| *has_changed).map(|(name, _)| name).collect()
}

/// The audit event of a configuration that was read. It omits the text of the error, which may
/// quote a setting.
pub(super) fn configuration_event(file: Option<&Path>, error: Option<&ConfigError>) -> Event<'static> {
    let position = error.and_then(ConfigError::position);
    let count = |number: usize| u64::try_from(number).ok();
    Event::Configuration {
        file: file.map(|file| file.display().to_string()),
        valid: error.is_none(),
        line: position.and_then(|position| count(position.line)),
        column: position.and_then(|position| count(position.column)),
    }
}
