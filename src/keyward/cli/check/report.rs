//! What a check found, for people and for machines.
//!
//! For people the result is on standard output; what is wrong, or suspicious, is on standard error.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::last_good::LastGood;
use crate::cli::exit::{Exit, Failure};
use crate::cli::key_change::{self, AccessCounts, KeyChange};
use crate::cli::streams::Streams;
use crate::cli::withheld::{self, Place};
use crate::cli::words::Count;
use keyward_daemon::admin::message::{CheckDiff, Diagnostics, Example, Withheld};
use keyward_daemon::config::ConfigError;
use keyward_engine::snapshot::Summary;
use keyward_source::lint::{self, Warning};

/// What a check found. What does not apply is left out.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) source: String,
    pub(super) keys: Option<usize>,
    pub(super) summary: Option<Summary>,
    /// What is wrong with the whole.
    pub(super) error: Option<String>,
    /// That it is too old to be served.
    pub(super) stale: Option<String>,
    /// Where in the configuration that is.
    pub(super) setting: Option<Setting>,
    /// What is wrong with rows.
    pub(super) diagnostics: Option<Diagnostics>,
    /// Keys that a reload would disable or restrict because of rows that cannot be understood.
    pub(super) withheld: Option<Withheld>,
    pub(super) lints: Option<lint::LintReport>,
    pub(super) diff: Option<CheckDiff>,
    /// The last good keys, if the source was compared with them.
    pub(super) last_good: Option<LastGood>,
    /// Why the source was not compared with the last good keys, although there are some.
    pub(super) not_compared: Option<String>,
}

/// A place in the configuration, or an option; what is not known is left out.
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
            ConfigError::Setting { file, position, setting, .. } => Some(Self {
                file: name(file),
                line: position.map(|position| position.line),
                column: position.map(|position| position.column),
                setting: setting.clone(),
                option: None,
            }),
            ConfigError::Option { option, .. } => Some(Self { option: Some(option), ..Self::default() }),
            ConfigError::Unreadable { file, .. } | ConfigError::TooLarge { file } => {
                Some(Self { file: name(file), ..Self::default() })
            }
            _ => None,
        }
    }
}

impl Outcome {
    pub(super) fn exit(&self, strict: bool) -> Exit {
        let warnings = self.lints.as_ref().map_or(0, lint::LintReport::warnings);
        let is_accepted = self.last_good.as_ref().is_some_and(|last_good| last_good.source_accepted);
        if self.error.is_some() || self.diagnostics.is_some() {
            Exit::BadInput
        } else if self.stale.is_some()
            || self.diff.as_ref().is_some_and(|diff| !(diff.accepted || is_accepted))
            || (strict && (warnings > 0 || self.withheld.is_some()))
        {
            Exit::Denied
        } else {
            Exit::Done
        }
    }
}

/// For machines.
#[derive(Default, Serialize)]
pub(super) struct Report<'a> {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(flatten)]
    summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<&'a str>,
    /// Where in the configuration the error is.
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a Setting>,
    #[serde(flatten)]
    diagnostics: Option<&'a Diagnostics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    withheld: Option<&'a Withheld>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lints: Option<Lints<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'a CheckDiff>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_good: Option<&'a LastGood>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_good_not_compared: Option<&'a str>,
}

#[derive(Serialize)]
struct Lints<'a> {
    warnings: u64,
    notes: u64,
    counts: BTreeMap<&'static str, u64>,
    first: Vec<&'a Warning>,
}

impl<'a> Report<'a> {
    pub(super) fn new(outcome: &'a Outcome, ok: bool) -> Self {
        Self {
            ok,
            source: Some(outcome.source.as_str()).filter(|source| !source.is_empty()),
            summary: outcome.summary,
            error: outcome.error.as_deref(),
            stale: outcome.stale.as_deref(),
            config: outcome.setting.as_ref(),
            diagnostics: outcome.diagnostics.as_ref(),
            withheld: outcome.withheld.as_ref(),
            lints: outcome.lints.as_ref().map(Lints::from),
            diff: outcome.diff.as_ref(),
            last_good: outcome.last_good.as_ref(),
            last_good_not_compared: outcome.not_compared.as_deref(),
        }
    }

    pub(super) fn failed(failure: &'a Failure) -> Self {
        Self { error: Some(&failure.message), ..Self::default() }
    }
}

impl<'a> From<&'a lint::LintReport> for Lints<'a> {
    fn from(report: &'a lint::LintReport) -> Self {
        Self {
            warnings: report.warnings(),
            notes: report.total() - report.warnings(),
            counts: report.counts().map(|(lint, total)| (lint.name(), total)).collect(),
            first: report.select(lint::MAX_WARNINGS),
        }
    }
}

/// For people.
pub(super) struct Lines<'s, 'io>(pub(super) &'s mut Streams<'io>);

impl Lines<'_, '_> {
    pub(super) fn print(&mut self, outcome: &Outcome) -> Result<(), Failure> {
        let source = &outcome.source;
        if let Some(diagnostics) = &outcome.diagnostics {
            self.diagnostics(source, diagnostics);
        }
        if let Some(withheld) = &outcome.withheld {
            self.withheld(source, withheld);
        }
        if let Some(error) = &outcome.error {
            self.0.note(format_args!("keyward: {error}"));
        }
        if let Some(stale) = &outcome.stale {
            self.0.note(format_args!("keyward: {stale}"));
        }
        if let Some(lints) = &outcome.lints {
            self.lints(source, lints);
        }
        match (outcome.summary, outcome.keys) {
            (Some(summary), _) => self.0.print(format_args!("{source}: {summary}: ok"))?,
            (None, Some(keys)) => self.0.print(format_args!("{source}: {}: ok", Count(keys, "key")))?,
            (None, None) => {}
        }
        if let Some(why) = &outcome.not_compared {
            self.0.note(format_args!("{source}: not compared with the last good keys: {why}"));
        }
        let mut judge = "a reload";
        if let Some(LastGood { generation, accepted_at, source: from, usable, .. }) = &outcome.last_good {
            judge = "a start";
            self.0.print(format_args!(
                "compared with the last good keys: generation {generation}, accepted {accepted_at}, from {from}"
            ))?;
            if *usable == Some(false) {
                self.0.note(format_args!(
                    "{source}: a start could not serve the last good keys: they were hashed with another pepper"
                ));
            }
        }
        if let Some(diff) = &outcome.diff {
            self.diff(diff, judge)?;
        }
        match &outcome.last_good {
            Some(LastGood { source_accepted: true, .. }) => self
                .0
                .print("an operator has accepted the source for the next start: the guard is not asked then"),
            _ => Ok(()),
        }
    }

    fn diagnostics(&mut self, source: &str, diagnostics: &Diagnostics) {
        for finding in &diagnostics.first {
            self.0.note(format_args!("{source}:{}", Place(finding)));
        }
        let kept: u64 = diagnostics.first.iter().map(|finding| finding.count).sum();
        let more = diagnostics.total.saturating_sub(kept);
        if more > 0 {
            self.0.note(format_args!("{source}: and {more} more of other kinds"));
        }
    }

    /// In the words of `keyward reload`.
    fn withheld(&mut self, source: &str, withheld: &Withheld) {
        for finding in &withheld.diagnostics {
            self.0.note(format_args!("{source}:{}", Place(finding)));
        }
        let lines = withheld::lines(withheld);
        lines.into_iter().for_each(|line| self.0.note(format_args!("{source}: after a reload: {line}")));
    }

    fn lints(&mut self, source: &str, lints: &lint::LintReport) {
        for Warning { line, lint, message } in lints.select(lint::MAX_SHOWN_PER_LINT) {
            let level = if lint.is_note() { "note" } else { "warning" };
            self.0.note(format_args!("{source}:{line}: {level}: {message} [{}]", lint.name()));
        }
        let notes = lints.total() - lints.warnings();
        for (total, level, is_note) in [(lints.warnings(), "warning", false), (notes, "note", true)] {
            let kinds = lints.counts().filter(|(lint, _)| lint.is_note() == is_note);
            let kinds: Vec<_> = kinds.map(|(lint, total)| format!("{total} {}", lint.name())).collect();
            if total > 0 {
                self.0.note(format_args!("{source}: {}: {}", Count(total, level), kinds.join(", ")));
            }
        }
        for (left_out, what) in [(lints.ids_left_out, "key ids"), (lints.owners_left_out, "owners")] {
            if left_out > 0 {
                let rows = Count(left_out, "row");
                self.0.note(format_args!(
                    "{source}: the {what} of {rows} were not compared: there are too many"
                ));
            }
        }
    }

    fn diff(&mut self, diff: &CheckDiff, judge: &str) -> Result<(), Failure> {
        let CheckDiff { serving, keys, changes, examples, .. } = diff;
        match diff.unchanged {
            true => self.0.print(format_args!("{}: nothing would change", Count(*serving, "key")))?,
            false => self.0.print(format_args!(
                "{serving} -> {}: {} added, {} removed, {} changed{}",
                Count(*keys, "key"),
                changes.added,
                changes.removed,
                changes.changed,
                AccessCounts(changes)
            ))?,
        }
        self.examples("+", changes.added, &examples.added)?;
        self.examples("-", changes.removed, &examples.removed)?;
        self.examples("~", changes.changed, &examples.changed)?;
        for (count, [what, _], examples) in [
            (changes.stopping, key_change::STOP, &examples.stopping),
            (changes.starting, key_change::START, &examples.starting),
            (changes.loosened, key_change::LOOSEN, &examples.loosened),
        ] {
            self.examples(&format!("{what}:"), count, examples)?;
        }
        match &diff.refused {
            Some(refused) => self.0.note(format_args!("{judge} would refuse it: {refused}")),
            None => self.0.print(format_args!("{judge} would accept it"))?,
        }
        Ok(())
    }

    fn examples(&mut self, sign: &str, total: usize, examples: &[Example]) -> Result<(), Failure> {
        for example in examples {
            self.0.print(format_args!("  {sign} {}", KeyChange(example)))?;
        }
        match total.saturating_sub(examples.len()) {
            0 => Ok(()),
            more => self.0.print(format_args!("  {sign} and {more} more")),
        }
    }
}
