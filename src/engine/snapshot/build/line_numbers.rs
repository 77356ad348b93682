//! The line number of each row, for errors that name two rows.
//!
//! Only jumps are stored: a million rows of one line each cost nothing.

/// Line numbers by entry.
#[derive(Debug, Default)]
pub(in crate::snapshot) struct LineNumbers {
    /// (entry, line) of the entries whose line does not follow the line of the entry before;
    /// ascending.
    jumps: Vec<(u32, u64)>,
    next: u64,
}

impl LineNumbers {
    /// Adds the line of the next entry, which has the number `entry`.
    pub(in crate::snapshot) fn push(&mut self, entry: u32, line: u64) {
        if line != self.next || self.jumps.is_empty() {
            self.jumps.push((entry, line));
        }
        self.next = line.saturating_add(1);
    }

    /// The line of an entry; 0 if none was added.
    pub(super) fn of(&self, entry: u32) -> u64 {
        let after = self.jumps.partition_point(|(first, _)| *first <= entry);
        let jump = after.checked_sub(1).and_then(|at| self.jumps.get(at));
        jump.map_or(0, |(first, line)| line.saturating_add(u64::from(entry - first)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_found_and_consecutive_lines_share_a_jump() {
        let rows = [2, 3, 4, 9, 10, 30, 32, 33];
        let mut lines = LineNumbers::default();
        rows.iter().zip(0..).for_each(|(line, entry)| lines.push(entry, *line));
        assert_eq!((0..8).map(|entry| lines.of(entry)).collect::<Vec<_>>(), rows);
        assert_eq!(lines.jumps.len(), 4);
        assert_eq!(LineNumbers::default().of(3), 0);
    }
}
