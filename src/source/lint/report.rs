//! The warnings about one export: all are counted by kind, and the first of each kind are retained.

use std::fmt;

use super::Lint;

/// Maximum number of warnings retained of each kind, and of warnings shown in all: a screenful.
pub const MAX_WARNINGS: usize = 20;

/// Maximum number of warnings of each kind in output for people. The count shows how common a kind
/// is.
pub const MAX_SHOWN_PER_LINT: usize = 3;

/// One warning.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// The line at which the row begins, counted from 1.
    pub line: u64,
    /// The kind.
    pub lint: Lint,
    /// What is suspicious, and why. It contains no part of a digest.
    pub message: String,
}

/// The warnings about one export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LintReport {
    totals: [u64; Lint::ALL.len()],
    retained: [Vec<Warning>; Lint::ALL.len()],
    /// Number of rows whose key ids were not added to the table, because it was full.
    pub ids_left_out: u64,
    /// The same for owners.
    pub owners_left_out: u64,
}

impl LintReport {
    /// Counts a warning. Formats the message only if the warning is retained.
    pub(super) fn add(&mut self, line: u64, lint: Lint, message: impl fmt::Display) {
        self.totals[lint as usize] += 1;
        let retained = &mut self.retained[lint as usize];
        if retained.len() < MAX_WARNINGS {
            retained.push(Warning { line, lint, message: message.to_string() });
        }
    }

    /// Counts `total` warnings, of which the first are at `lines`.
    pub(super) fn add_all(&mut self, total: u64, lines: &[u64], lint: Lint, message: &str) {
        lines.iter().for_each(|line| self.add(*line, lint, message));
        self.totals[lint as usize] += total - lines.len() as u64;
    }

    /// The kinds that occur, with their counts.
    pub fn counts(&self) -> impl Iterator<Item = (Lint, u64)> + Clone {
        Lint::ALL.into_iter().zip(self.totals).filter(|(_, total)| *total > 0)
    }

    /// Number of warnings, without notes.
    pub fn warnings(&self) -> u64 {
        self.counts().filter(|(lint, _)| !lint.is_note()).map(|(_, total)| total).sum()
    }

    /// Number of warnings and notes.
    pub fn total(&self) -> u64 {
        self.totals.iter().sum()
    }

    /// Selects at most [`MAX_WARNINGS`] of the retained warnings, and at most `max_per_lint` of
    /// each kind, in the order of the export. The kinds take turns, so that a frequent kind does
    /// not hide a rare one.
    pub fn select(&self, max_per_lint: usize) -> Vec<&Warning> {
        let rounds = (0..max_per_lint)
            .flat_map(|round| self.retained.iter().filter_map(move |retained| retained.get(round)));
        let mut selected: Vec<_> = rounds.take(MAX_WARNINGS).collect();
        selected.sort_by_key(|warning| (warning.line, warning.lint));
        selected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_kind_does_not_hide_a_rare_one() {
        let mut report = LintReport::default();
        for line in 1..=100 {
            report.add(line, Lint::NoExpiry, "none");
            report.add(line, Lint::WildcardEnding, "a note");
        }
        report.add(90, Lint::WeakHash, "weak");
        let counts: Vec<_> = report.counts().collect();
        assert_eq!(counts, [(Lint::WeakHash, 1), (Lint::NoExpiry, 100), (Lint::WildcardEnding, 100)]);
        assert_eq!((report.warnings(), report.total()), (101, 201));
        let few = report.select(MAX_SHOWN_PER_LINT);
        assert_eq!(few.len(), 2 * MAX_SHOWN_PER_LINT + 1, "{few:?}");
        let shown = report.select(MAX_WARNINGS);
        assert_eq!(shown.len(), MAX_WARNINGS);
        assert!(shown.iter().any(|warning| warning.lint == Lint::WeakHash), "{shown:?}");
        assert!(shown.is_sorted_by_key(|warning| warning.line));
    }

    #[test]
    fn discriminants_follow_the_order_of_all() {
        for (index, lint) in Lint::ALL.into_iter().enumerate() {
            assert_eq!(lint as usize, index);
            assert_eq!(serde_json::to_value(lint).expect("JSON"), lint.name());
        }
    }
}
