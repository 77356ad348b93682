//! What a set of keys consists of, for who looks it through before it is served.

use std::fmt;

use crate::record::Status;
use crate::snapshot::Keys;

/// How many keys of each kind there are. A key is counted under every heading that is true of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// All of them: rows of the export.
    pub keys: usize,
    /// Different key ids; fewer than keys where some are in rotation.
    pub key_ids: usize,
    /// Different owners.
    pub owners: usize,
    /// Different combinations of environment, plan, scopes, networks, origins and limits.
    pub policies: usize,
    /// Keys in force, their times apart.
    pub active: usize,
    /// Keys switched off.
    pub disabled: usize,
    /// Keys withdrawn for good.
    pub revoked: usize,
    /// Keys whose time has passed.
    pub expired: usize,
    /// Keys whose time has not come.
    pub not_yet_valid: usize,
    /// Keys that nothing limits.
    pub without_limits: usize,
}

impl Keys {
    /// What there is, as of the Unix second `now`.
    pub fn summary(&self, now: u32) -> Summary {
        let mut summary = Summary {
            keys: self.len(),
            key_ids: self.ids.len(),
            // The first is nobody.
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
            summary.without_limits += usize::from(self.policies[entry.policy as usize].limits().is_empty());
        }
        summary
    }
}

/// One line; what there is none of is left out.
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
