//! The report of a reload.

use serde::{Deserialize, Serialize};

use super::diff::{AccessExamples, ChangeCounts};
use super::withheld::Withheld;

/// The outcome of a reload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether a new snapshot is in force.
    pub accepted: bool,
    /// If it was accepted, the generation in which its keys came into force: answers carry it, or a
    /// later one. Otherwise the generation in force at the time of the report. 0: there is no
    /// snapshot yet.
    pub generation: u64,
    /// The number of keys in force.
    pub keys: usize,
    /// What an accepted reload has changed, or what a reload that the guard refused would have
    /// changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangeCounts>,
    /// The first keys whose access changes.
    #[serde(default, skip_serializing_if = "AccessExamples::is_empty")]
    pub examples: AccessExamples,
    /// Keys that were disabled or restricted because of bad rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// Why the reload was refused, as text: one line for each diagnostic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why none of the keys of an accepted reload is served: the source is older than
    /// `max_staleness`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// Whether the source has the same content as the previous one.
    #[serde(default)]
    pub unchanged: bool,
    /// Revocations that were removed from the list because the source now contains them.
    #[serde(default)]
    pub revocations_agreed: usize,
    /// Revocations that the source contradicts: it had the key as revoked, and now has it as
    /// active. They stay in force.
    #[serde(default)]
    pub revocations_conflicting: usize,
    /// Whether a restart keeps what took access away: this reload, or takeaways of refused sources.
    /// `true` too if no last good keys are kept, because then a restart has no older keys to serve.
    pub durable: bool,
    /// Why not. The keys are in force; a restart with a source that is refused would serve older
    /// ones. The daemon retries the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_durable: Option<String>,
    /// How long the reload took.
    pub took_ms: u64,
    /// Seconds since the reload ended.
    pub age_s: u64,
}
