//! The outcome of a check, and its exit code.

use std::path::Path;

use serde::Serialize;

use super::start::StartPreview;
use crate::cli::exit::Exit;
use keyward_admin::message::{CheckDiff, Diagnostics, Withheld};
use keyward_daemon::config::ConfigError;
use keyward_daemon::{reload, server};
use keyward_engine::snapshot::Summary;
use keyward_settings::file::FileError;
use keyward_source::lint;

/// The outcome of a check. Parts that do not apply are absent.
#[derive(Default)]
pub(super) struct CheckOutcome {
    pub(super) source: String,
    pub(super) keys: Option<usize>,
    pub(super) summary: Option<Summary>,
    /// The error in the configuration or the source as a whole.
    pub(super) error: Option<String>,
    /// The message that the source is too old to be served.
    pub(super) stale: Option<String>,
    /// The location of the error in the configuration.
    pub(super) setting: Option<Setting>,
    /// The errors in the rows.
    pub(super) diagnostics: Option<Diagnostics>,
    /// Keys that a reload would disable or restrict because of bad rows.
    pub(super) withheld: Option<Withheld>,
    pub(super) lints: Option<lint::LintReport>,
    pub(super) diff: Option<CheckDiff>,
    /// The last good keys, if the source was compared with them.
    pub(super) last_good: Option<LastGood>,
    /// Why the source was not compared with the last good keys, although there are some.
    pub(super) not_compared: Option<NotCompared>,
    /// What a start would find, apart from the source.
    pub(super) start: StartPreview,
}

/// The location of an error: in the configuration file, or a command line option.
#[derive(Default, Serialize)]
pub(super) struct Setting {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    setting: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    option: Option<&'static str>,
}

impl Setting {
    pub(super) fn of(error: &ConfigError) -> Option<Self> {
        let name = |file: &Path| Some(file.display().to_string());
        match error {
            ConfigError::File(FileError::Setting { file, position, setting, .. }) => Some(Self {
                file: name(file),
                line: position.map(|position| position.line),
                column: position.map(|position| position.column),
                setting: setting.clone(),
                option: None,
            }),
            ConfigError::Option { option, .. } => Some(Self { option: Some(option), ..Self::default() }),
            ConfigError::File(FileError::Unreadable { file, .. } | FileError::TooLarge { file }) => {
                Some(Self { file: name(file), ..Self::default() })
            }
            _ => None,
        }
    }
}

impl CheckOutcome {
    /// The configuration is invalid, so the source is not known.
    pub(super) fn misconfigured(error: &ConfigError) -> Self {
        Self { error: Some(error.to_string()), setting: Setting::of(error), ..Self::default() }
    }

    /// The source is refused.
    pub(super) fn refused(self, failure: &reload::ReloadError) -> Self {
        // The diagnostics are reported one by one instead.
        Self {
            diagnostics: failure.diagnostics().map(server::diagnostics),
            error: failure.message_beside_diagnostics(),
            ..self
        }
    }

    pub(super) fn exit(&self, strict: bool) -> Exit {
        let warnings = self.lints.as_ref().map_or(0, lint::LintReport::warnings);
        let is_accepted = self.last_good.as_ref().is_some_and(|last_good| last_good.source_accepted);
        if self.error.is_some() || self.diagnostics.is_some() {
            Exit::BadInput
        } else if self.stale.is_some()
            || !self.start.failures.is_empty()
            || self.not_compared.as_ref().is_some_and(|not_compared| not_compared.start_refuses)
            || self.diff.as_ref().is_some_and(|diff| !(diff.accepted || is_accepted))
            || (strict && (warnings > 0 || self.withheld.is_some()))
        {
            Exit::Denied
        } else {
            Exit::Done
        }
    }
}

/// Why the source was not compared with the last good keys.
pub(super) struct NotCompared {
    pub(super) why: String,
    /// Whether a start refuses the source for this reason.
    pub(super) start_refuses: bool,
}

/// The last good keys that the source was compared with.
#[derive(Serialize)]
pub(super) struct LastGood {
    /// The generation that they were accepted as.
    pub(super) generation: u64,
    /// When they came into force, in UTC.
    pub(super) accepted_at: String,
    /// The path of their source.
    pub(super) source: String,
    /// Whether they would be served if the source were refused. `None`: this user may not read the
    /// peppers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usable: Option<bool>,
    /// Why they would not be served if the source were refused, apart from `usable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_served: Option<String>,
    /// Whether the next start accepts the source regardless, because of `keyward state accept
    /// source`.
    pub(super) source_accepted: bool,
}
