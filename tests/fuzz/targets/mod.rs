//! The targets, by name.

pub(crate) mod admin_messages;
pub(crate) mod balances;
pub(crate) mod compiled_snapshots;
pub(crate) mod configuration;
pub(crate) mod csv_exports;
pub(crate) mod equal_exports;
pub(crate) mod export;
pub(crate) mod frames;
pub(crate) mod jsonl_exports;
pub(crate) mod limiter_operations;
pub(crate) mod revocations;
pub(crate) mod scratch;
pub(crate) mod stream;
pub(crate) mod usage;

/// How far an input got. A corpus must have inputs that are accepted, and have a content: otherwise
/// its target checks little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// keyward accepted the input, and its result, which is not empty, was checked.
    Accepted,
    /// keyward refused the input, or there was nothing in it.
    Refused,
}

impl Outcome {
    pub(crate) fn accepted_if(is_accepted: bool) -> Self {
        if is_accepted { Self::Accepted } else { Self::Refused }
    }
}

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its module, of its corpus, and of its file in `cargo-fuzz`.
    pub name: &'static str,
    /// Runs it. Panics if a property does not hold.
    pub run: fn(&[u8]) -> Outcome,
}

/// All targets.
pub const TARGETS: [Target; 12] = [
    Target { name: "admin_messages", run: admin_messages::run },
    Target { name: "balances", run: balances::run },
    Target { name: "compiled_snapshots", run: compiled_snapshots::run },
    Target { name: "configuration", run: configuration::run },
    Target { name: "csv_exports", run: csv_exports::run },
    Target { name: "equal_exports", run: equal_exports::run },
    Target { name: "frames", run: frames::run },
    Target { name: "jsonl_exports", run: jsonl_exports::run },
    Target { name: "limiter_operations", run: limiter_operations::run },
    Target { name: "revocations", run: revocations::run },
    Target { name: "stream", run: stream::run },
    Target { name: "usage", run: usage::run },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
