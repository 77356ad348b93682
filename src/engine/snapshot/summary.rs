//! Counts of what a table contains, for a check before it is served.

use std::fmt;

use crate::record::Status;
use crate::snapshot::KeyTable;

/// Counts of rows by kind. A row is counted once for each kind that applies to it. The field names
/// are those of the status report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// All rows of the source.
    pub keys: usize,
    /// Distinct key ids: fewer than rows if some keys are in rotation.
    pub key_ids: usize,
    /// Distinct owners.
    pub owners: usize,
    /// Distinct combinations of environment, plan, scopes, networks, origins and limits.
    pub policies: usize,
    /// Active rows, whether or not they are valid at this time.
    pub active: usize,
    /// Disabled rows.
    pub disabled: usize,
    /// Revoked rows.
    pub revoked: usize,
    /// Rows that have expired.
    pub expired: usize,
    /// Rows that are not valid yet.
    pub not_yet_valid: usize,
    /// Rows without limits.
    pub without_limits: usize,
}

impl KeyTable {
    /// Counts the rows as of the Unix second `now`.
    pub fn summary(&self, now: u32) -> Summary {
        let mut summary = Summary {
            keys: self.len(),
            key_ids: self.key_id_index.len(),
            // Number 0 stands for no owner.
            owners: self.owners.len() - 1,
            policies: self.policies.len(),
            ..Summary::default()
        };
        for entry in &self.entries {
            let of_status = match entry.status.of_row() {
                Status::Active => &mut summary.active,
                Status::Disabled => &mut summary.disabled,
                Status::Revoked => &mut summary.revoked,
            };
            *of_status += 1;
            summary.expired += usize::from(entry.expires_at.get() <= now);
            summary.not_yet_valid += usize::from(entry.not_before > now);
            summary.without_limits += usize::from(self.policies.limits_of(entry.policy).is_empty());
        }
        summary
    }
}

/// One line. Kinds with a count of 0 are left out.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, key_ids, owners, policies, active, disabled, revoked, .. } = *self;
        let counted =
            |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        write!(f, "{} (", counted(keys, "key", "keys"))?;
        let mut separator = "";
        let headings = [
            (active, "active"),
            (disabled, "disabled"),
            (revoked, "revoked"),
            (self.expired, "expired"),
            (self.not_yet_valid, "not yet valid"),
            (self.without_limits, "without limits"),
        ];
        for (count, heading) in headings.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {heading}")?;
            separator = ", ";
        }
        let [key_ids, owners, policies] = [
            counted(key_ids, "key id", "key ids"),
            counted(owners, "owner", "owners"),
            counted(policies, "policy", "policies"),
        ];
        write!(f, "), {key_ids}, {owners}, {policies}")
    }
}
