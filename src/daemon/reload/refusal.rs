//! Reasons of the guard to refuse a source.

use std::fmt;

use crate::revocation::LiftedRevocations;
use keyward_engine::record::{FieldSet, Quoted};
use keyward_engine::snapshot::{AccessChange, Share};

/// Why the guard refuses a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// Keys have restrictions that no row of the source has a value for.
    Lost(FieldSet),
    /// Revoked keys have other names, which are not revoked.
    LiftsRevocations(LiftedRevocations),
    /// A change applies to more keys than its setting allows.
    Exceeds {
        /// What changes for the keys.
        change: AccessChange,
        /// The keys that it applies to.
        share: Share,
        /// The setting that limits it.
        setting: &'static str,
        /// The setting's value.
        max: f64,
        /// The ids of the first of these keys.
        first: Vec<Box<str>>,
    },
}

impl Refusal {
    /// A code for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Lost(_) => "lost_restrictions",
            Self::LiftsRevocations(_) => "lifted_revocations",
            Self::Exceeds { change, .. } => match change {
                AccessChange::Stops => "shrunk",
                AccessChange::RevokedReturns
                | AccessChange::DisabledReturns
                | AccessChange::ExpiredReturns
                | AccessChange::WithheldReturns => "reactivated",
                AccessChange::LosesEnvironment
                | AccessChange::LosesNetworks
                | AccessChange::LosesOrigins
                | AccessChange::LosesLimits
                | AccessChange::ReplacesLimits
                | AccessChange::RaisesLimits
                | AccessChange::LosesExpiry
                | AccessChange::GainsScopes
                | AccessChange::GainsEnvironment => "loosened",
            },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(fields) => write!(
                f,
                "no row has a value for {fields} any more, and keys that are served are restricted by it \
                 (source.required lists columns that must be there)"
            ),
            Self::Exceeds { change, share: Share { count, of }, setting, max, first } => {
                let description = description(*change);
                let percent = max * 100.0;
                write!(f, "{count} of {of} {description}, more than source.{setting} ({percent} %) allows")?;
                write_examples(f, first, *count)
            }
            Self::LiftsRevocations(LiftedRevocations { count, first }) => {
                let are = if *count == 1 { "key that is revoked has" } else { "keys that are revoked have" };
                write!(f, "{count} {are} another key id or owner, which is not revoked")?;
                write_examples(f, first, *count)?;
                f.write_str(": correct it in the export; or revoke the one of the two that stays the same")
            }
        }
    }
}

/// The first of `count` key ids, in parentheses.
fn write_examples(f: &mut fmt::Formatter<'_>, first: &[Box<str>], count: usize) -> fmt::Result {
    let mut separator = " (";
    for key_id in first {
        write!(f, "{separator}{}", Quoted(key_id))?;
        separator = ", ";
    }
    match first.len() {
        0 => Ok(()),
        shown if shown < count => f.write_str(" and others)"),
        _ => f.write_str(")"),
    }
}

/// The change as it follows a number of keys.
fn description(change: AccessChange) -> &'static str {
    match change {
        AccessChange::Stops => "working keys would stop working",
        AccessChange::RevokedReturns => "revoked keys would work again",
        AccessChange::DisabledReturns => "disabled keys would work again",
        AccessChange::ExpiredReturns => "keys that have expired or are not valid yet would work",
        AccessChange::WithheldReturns => "keys that were set aside or taken away would work again",
        AccessChange::LosesEnvironment => "keys with an environment would lose it or get another one",
        AccessChange::LosesNetworks => "keys with allowed_ips would admit more addresses",
        AccessChange::LosesOrigins => "keys with allowed_origins would admit more origins",
        AccessChange::LosesLimits => "keys with limits would lose one",
        AccessChange::ReplacesLimits => {
            "keys with limits would get unspent ones in their place, of another kind or shared by other keys"
        }
        AccessChange::RaisesLimits => "keys with limits would be allowed more",
        AccessChange::LosesExpiry => "keys that expire would never expire",
        AccessChange::GainsScopes => "keys would gain scopes",
        AccessChange::GainsEnvironment => "keys would gain an environment",
    }
}

/// Displays refusals, separated by semicolons.
pub(super) struct RefusalList<'r>(pub(super) &'r [Refusal]);

impl fmt::Display for RefusalList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
