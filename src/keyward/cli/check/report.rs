//! Reports the outcome of a check, as text or as JSON.
//!
//! The text of the result goes to standard output, errors and warnings go to standard error.

use std::collections::BTreeMap;

use serde::Serialize;

use super::outcome::{CheckOutcome, LastGood, NotCompared, Setting};
use super::start::StartPreview;
use crate::cli::exit::CliError;
use crate::cli::format::Count;
use crate::cli::key_change::{self, AccessCounts, KeyChange};
use crate::cli::streams::Streams;
use crate::cli::withheld::{self, DiagnosticText};
use keyward_admin::message::{CheckDiff, Diagnostics, Example, Withheld};
use keyward_engine::snapshot::Summary;
use keyward_source::lint::{self, Warning};

/// The report as JSON.
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
    /// The location of an error in the configuration.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<&'a StartPreview>,
}

#[derive(Serialize)]
struct Lints<'a> {
    warnings: u64,
    notes: u64,
    counts: BTreeMap<&'static str, u64>,
    first: Vec<&'a Warning>,
}

impl<'a> Report<'a> {
    pub(super) fn new(outcome: &'a CheckOutcome, ok: bool) -> Self {
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
            last_good_not_compared: outcome.not_compared.as_ref().map(|not_compared| &*not_compared.why),
            start: Some(&outcome.start).filter(|start| !start.is_empty()),
        }
    }

    pub(super) fn failed(failure: &'a CliError) -> Self {
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

/// The report as text.
pub(super) struct TextReport<'s, 'io>(pub(super) &'s mut Streams<'io>);

impl TextReport<'_, '_> {
    pub(super) fn print(&mut self, outcome: &CheckOutcome) -> Result<(), CliError> {
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
        if let Some(NotCompared { why, start_refuses }) = &outcome.not_compared {
            self.0.note(format_args!("{source}: not compared with the last good keys: {why}"));
            if *start_refuses {
                self.0.note(format_args!(
                    "{source}: a start would refuse it for this reason, unless keyward state accept source precedes it"
                ));
            }
        }
        let mut action = "a reload";
        if let Some(LastGood { generation, accepted_at, source: from, usable, not_served, .. }) =
            &outcome.last_good
        {
            action = "a start";
            self.0.print(format_args!(
                "compared with the last good keys: generation {generation}, accepted {accepted_at}, from {from}"
            ))?;
            if *usable == Some(false) {
                self.0.note(format_args!(
                    "{source}: a start could not serve the last good keys: they were hashed with another pepper"
                ));
            }
            if let Some(why) = not_served {
                self.0.note(format_args!("{source}: a start could not serve the last good keys: {why}"));
            }
        }
        if let Some(diff) = &outcome.diff {
            self.diff(diff, action)?;
        }
        if let Some(LastGood { source_accepted: true, .. }) = &outcome.last_good {
            self.0.print(
                "an operator has accepted the source for the next start: the guard is not asked then",
            )?;
        }
        let StartPreview { failures, notes, .. } = &outcome.start;
        for failure in failures {
            self.0.note(format_args!("keyward: a start would fail: {failure}"));
        }
        notes.iter().for_each(|note| self.0.note(format_args!("keyward: {note}")));
        Ok(())
    }

    fn diagnostics(&mut self, source: &str, diagnostics: &Diagnostics) {
        for diagnostic in &diagnostics.first {
            self.0.note(format_args!("{source}:{}", DiagnosticText(diagnostic)));
        }
        let kept: u64 = diagnostics.first.iter().map(|diagnostic| diagnostic.count).sum();
        let more = diagnostics.total.saturating_sub(kept);
        if more > 0 {
            self.0.note(format_args!("{source}: and {more} more of other kinds"));
        }
    }

    /// In the same words as `keyward reload`.
    fn withheld(&mut self, source: &str, withheld: &Withheld) {
        for diagnostic in &withheld.diagnostics {
            self.0.note(format_args!("{source}:{}", DiagnosticText(diagnostic)));
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

    fn diff(&mut self, diff: &CheckDiff, action: &str) -> Result<(), CliError> {
        let CheckDiff { serving, keys, changes, examples, .. } = diff;
        if diff.unchanged {
            self.0.print(format_args!("{}: nothing would change", Count(*serving, "key")))?;
        } else {
            self.0.print(format_args!(
                "{serving} -> {}: {} added, {} removed, {} changed{}",
                Count(*keys, "key"),
                changes.added,
                changes.removed,
                changes.changed,
                AccessCounts(changes)
            ))?;
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
            Some(refused) => self.0.note(format_args!("{action} would refuse it: {refused}")),
            None => self.0.print(format_args!("{action} would accept it"))?,
        }
        Ok(())
    }

    fn examples(&mut self, sign: &str, total: usize, examples: &[Example]) -> Result<(), CliError> {
        for example in examples {
            self.0.print(format_args!("  {sign} {}", KeyChange(example)))?;
        }
        match total.saturating_sub(examples.len()) {
            0 => Ok(()),
            more => self.0.print(format_args!("  {sign} and {more} more")),
        }
    }
}
