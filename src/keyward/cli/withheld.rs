//! Formats the effects of bad rows for people.

use std::fmt;

use super::format::Count;
use keyward_admin::message::{Diagnostic, Withheld};
use keyward_daemon::reload::NAMED_KEYS;
use keyward_engine::record::Quoted;
use keyward_source::RepeatCount;

/// One line for each effect: rows that are set aside, takeaways, and takeaways that were refused.
pub(super) fn lines(withheld: &Withheld) -> Vec<String> {
    let Withheld {
        bad_rows, unreadable_rows, set_aside, set_aside_keys, taken_away, taken_away_keys, ..
    } = withheld;
    let mut lines = Vec::new();
    if *bad_rows > 0 || *set_aside > 0 {
        let rows = match bad_rows {
            0 => String::new(),
            _ => format!("{} set aside, ", Count(*bad_rows, "row")),
        };
        let unreadable = match unreadable_rows {
            0 => String::new(),
            many => format!("; the hashes of {many} cannot be read"),
        };
        let keys = Count(*set_aside, "key");
        lines.push(format!("{rows}{keys} disabled{}{unreadable}", list_ids(set_aside_keys, *set_aside)));
    }
    if *taken_away > 0 {
        let keys = Count(*taken_away, "key");
        let ids = list_ids(taken_away_keys, *taken_away);
        lines.push(format!(
            "{keys}{ids} revoked, disabled or ending earlier by a refused source, until a source is accepted"
        ));
    }
    if let Some(reason) = &withheld.takeaways_not_durable {
        lines.push(format!(
            "NOT DURABLE: what refused sources have taken away is in force, but a restart gives it back, unless it can be \
             written before or the source takes it away again: {reason}"
        ));
    }
    if let Some(refused) = &withheld.takeaways_refused {
        lines.push(format!("the refused source takes no access away: {refused}"));
    }
    lines
}

/// As in ` (k1, k2 and others)`.
fn list_ids(ids: &[String], total: usize) -> String {
    let shown: Vec<String> = ids.iter().take(NAMED_KEYS).map(|key_id| Quoted(key_id).to_string()).collect();
    match shown.len() {
        0 => String::new(),
        few if few < total => format!(" ({} and others)", shown.join(", ")),
        _ => format!(" ({})", shown.join(", ")),
    }
}

/// A diagnostic without the name of the file, as in `2: column 3 (limits): …`.
pub(super) struct DiagnosticText<'a>(pub(super) &'a Diagnostic);

impl fmt::Display for DiagnosticText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { line, column, name, byte, message, count } = self.0;
        if let Some(line) = line {
            write!(f, "{line}:")?;
        }
        match (column, name, byte) {
            (Some(column), Some(name), _) => write!(f, " column {column} ({name}):")?,
            (Some(column), None, _) => write!(f, " column {column}:")?,
            (None, Some(name), _) => write!(f, " {name}:")?,
            (None, None, Some(byte)) => write!(f, " byte {byte}:")?,
            (None, None, None) => {}
        }
        write!(f, " {message}{}", RepeatCount(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_effect_has_a_line() {
        assert!(lines(&Withheld::default()).is_empty());
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let withheld = Withheld {
            bad_rows: 5,
            unreadable_rows: 1,
            set_aside: 4,
            set_aside_keys: ids(&["a", "b", "c", "d"]),
            taken_away: 1,
            taken_away_keys: ids(&["e"]),
            takeaways_not_durable: Some("the disk is full".to_owned()),
            takeaways_refused: Some("too many".to_owned()),
            ..Withheld::default()
        };
        assert_eq!(
            lines(&withheld),
            [
                "5 rows set aside, 4 keys disabled (\"a\", \"b\", \"c\" and others); the hashes of 1 cannot be read",
                "1 key (\"e\") revoked, disabled or ending earlier by a refused source, until a source is accepted",
                "NOT DURABLE: what refused sources have taken away is in force, but a restart gives it back, unless it can \
                 be written before or the source takes it away again: the disk is full",
                "the refused source takes no access away: too many",
            ]
        );
    }
}
