//! Differences between two sets of keys.

use serde::{Deserialize, Serialize};

pub use keyward_engine::snapshot::{ChangeCounts, Difference, Example, Examples};

/// The first keys whose access changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessExamples {
    /// Keys that stop working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopping: Vec<Example>,
    /// Keys that start working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<Example>,
    /// Keys that lose a restriction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<Example>,
}

impl AccessExamples {
    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.stopping.is_empty() && self.starting.is_empty() && self.loosened.is_empty()
    }
}
