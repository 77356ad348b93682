//! Revocations: what is revoked, the outcome of a change, and the list.

use serde::{Deserialize, Serialize};

/// Maximum number of revocations in a status.
pub const LATEST_REVOCATIONS: usize = 100;

/// Maximum number of revocations in a page of the list: some 100 KB.
pub const REVOCATIONS_PER_PAGE: usize = 1_000;

/// A key or an owner. Exactly one of the fields is present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// All rows with this key id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// All rows of this owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// The outcome of `revoke` or `unrevoke`, in force on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The target of the command.
    #[serde(flatten)]
    pub target: Target,
    /// Whether the list was in the requested state before.
    pub already: bool,
    /// The number of rows with this key id or owner. 0 if no keys are loaded yet.
    pub keys: usize,
    /// How many of these rows are revoked now, whether by this command, by another one or by the
    /// source.
    pub revoked: usize,
    /// The generation from which the change is in force. 0: there is no snapshot yet.
    pub generation: u64,
    /// Whether the change survives a restart.
    pub durable: bool,
    /// Why the change would not survive a restart. The daemon retries the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_durable: Option<String>,
}

/// An entry of the list of revocations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// What is revoked.
    #[serde(flatten)]
    pub target: Target,
    /// When it was revoked, in UTC and the format of RFC 3339.
    pub when: String,
    /// The user that revoked it.
    pub by_uid: u32,
    /// Whether the revocation survives a restart.
    pub durable: bool,
    /// Since when the source has had the keys as revoked too, without interruption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed_since: Option<String>,
    /// Since when the source has had a key as active again, after it had it as revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict_since: Option<String>,
}

/// A page of the list of revocations: owners, then keys, each in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// The number of entries in the whole list.
    pub total: usize,
    /// The entries of this page.
    pub entries: Vec<Revoked>,
    /// Whether another page follows.
    pub more: bool,
}
