//! The warnings of one export: all counted by kind, the first of each kind kept.

use std::fmt;

use super::Lint;

/// Warnings kept of each kind, and told of all: a screenful.
pub const MAX_WARNINGS: usize = 20;

/// The same of each kind, for people: what every row has is told by its number.
pub const FEW: usize = 3;

/// One warning.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// The line at which the row begins, counted from 1.
    pub line: u64,
    /// What kind it is.
    pub lint: Lint,
    /// What is suspicious, and why. It holds nothing of a hash.
    pub message: String,
}

/// What there is to say about an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    totals: [u64; Lint::ALL.len()],
    kept: [Vec<Warning>; Lint::ALL.len()],
    /// Key ids that were not compared with each other, because there are more than there is room for.
    pub ids_left_out: u64,
    /// The same of owners.
    pub owners_left_out: u64,
}

impl Report {
    /// Counts a warning. The message is written only if it is kept.
    pub(super) fn add(&mut self, line: u64, lint: Lint, message: impl fmt::Display) {
        self.totals[lint as usize] += 1;
        let kept = &mut self.kept[lint as usize];
        if kept.len() < MAX_WARNINGS {
            kept.push(Warning { line, lint, message: message.to_string() });
        }
    }

    /// Counts `total` warnings, the first of them at `lines`.
    pub(super) fn add_all(&mut self, total: u64, lines: &[u64], lint: Lint, message: &str) {
        lines.iter().for_each(|line| self.add(*line, lint, message));
        self.totals[lint as usize] += total - lines.len() as u64;
    }

    /// The kinds that occur, with how often each does.
    pub fn counts(&self) -> impl Iterator<Item = (Lint, u64)> + Clone {
        Lint::ALL.into_iter().zip(self.totals).filter(|(_, total)| *total > 0)
    }

    /// How many warnings there are; notes are none.
    pub fn warnings(&self) -> u64 {
        self.counts().filter(|(lint, _)| !lint.is_note()).map(|(_, total)| total).sum()
    }

    /// Warnings and notes, kept or not.
    pub fn total(&self) -> u64 {
        self.totals.iter().sum()
    }

    /// At most [`MAX_WARNINGS`] of all that are kept, and `most` of a kind, in the order of the export: first one of every kind, then
    /// another of each, so that what every row has does not hide what only one has.
    pub fn shown(&self, most: usize) -> Vec<&Warning> {
        let rounds = (0..most).flat_map(|round| self.kept.iter().filter_map(move |kept| kept.get(round)));
        let mut shown: Vec<_> = rounds.take(MAX_WARNINGS).collect();
        shown.sort_by_key(|warning| (warning.line, warning.lint));
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_row_has_does_not_hide_what_one_has() {
        let mut report = Report::default();
        for line in 1..=100 {
            report.add(line, Lint::NoExpiry, "none");
            report.add(line, Lint::WildcardEnding, "a note");
        }
        report.add(90, Lint::WeakHash, "weak");
        let counts: Vec<_> = report.counts().collect();
        assert_eq!(counts, [(Lint::WeakHash, 1), (Lint::NoExpiry, 100), (Lint::WildcardEnding, 100)]);
        assert_eq!((report.warnings(), report.total()), (101, 201));
        let few = report.shown(FEW);
        assert_eq!(few.len(), 2 * FEW + 1, "{few:?}");
        let shown = report.shown(MAX_WARNINGS);
        assert_eq!(shown.len(), MAX_WARNINGS);
        assert!(shown.iter().any(|warning| warning.lint == Lint::WeakHash), "{shown:?}");
        assert!(shown.is_sorted_by_key(|warning| warning.line));
    }

    #[test]
    fn kinds_are_numbered_in_their_order() {
        for (index, lint) in Lint::ALL.into_iter().enumerate() {
            assert_eq!(lint as usize, index);
            assert_eq!(serde_json::to_value(lint).expect("JSON"), lint.name());
        }
    }
}
