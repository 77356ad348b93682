//! Formats changes of a key, one line for each key.

use std::fmt;

use super::format::Word;
use keyward_admin::message::{ChangeCounts, Difference, Example};

/// Changes of access, for one key and for several.
pub(super) const STOP: [&str; 2] = ["stops working", "stop working"];
pub(super) const START: [&str; 2] = ["starts working", "start working"];
pub(super) const LOOSEN: [&str; 2] = ["loses a restriction", "lose a restriction"];

/// As in `; 2 stop working, 1 starts working`. Empty if access does not change.
pub(super) struct AccessCounts<'a>(pub(super) &'a ChangeCounts);

impl fmt::Display for AccessCounts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChangeCounts { stopping, starting, loosened, .. } = *self.0;
        let mut separator = "; ";
        for (count, [one, many]) in [(stopping, STOP), (starting, START), (loosened, LOOSEN)] {
            if count > 0 {
                write!(f, "{separator}{count} {}", if count == 1 { one } else { many })?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// As in `key_1 (01a2b3c4…): status active -> revoked, scopes`.
pub(super) struct KeyChange<'a>(pub(super) &'a Example);

impl fmt::Display for KeyChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Example { key_id, hash, differences, .. } = self.0;
        write!(f, "{} ({hash}…)", Word(key_id))?;
        for (index, difference) in differences.iter().enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{}", FieldChange(difference))?;
        }
        Ok(())
    }
}

/// As in `status active -> revoked`, or only the name of a field without values.
struct FieldChange<'a>(&'a Difference);

impl fmt::Display for FieldChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { field, before, after } = self.0;
        f.write_str(field)?;
        if let (Some(before), Some(after)) = (before, after) {
            write!(f, " {} -> {}", Value(before), Value(after))?;
        }
        Ok(())
    }
}

/// The value of a field.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { Word(self.0).fmt(f) }
    }
}
