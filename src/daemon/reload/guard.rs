//! The guard: which changes of a reload are more likely a broken export than a decision.
//!
//! It looks at what a new set of keys means for access ([`Impact`]), not at the number of rows: keys that
//! would stop working, keys that would start to, and keys that would lose a restriction. Each has a share
//! beyond which the reload is refused. A restriction that disappears from the whole source is always
//! refused. `keyward reload --force` overrules all of it.

use std::fmt;
use std::path::Path;

use crate::reload::ReloadError;
use keyward_engine::record::{FieldSet, Quoted};
use keyward_engine::snapshot::{AccessChange, Diff, Example, Impact, Share};

/// How far a reload may change access: shares of keys, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of the working keys: those that may stop working.
    pub max_shrink: f64,
    /// Of the revoked, the disabled, and the expired keys: those that may work again.
    pub max_reactivated: f64,
    /// Of the keys with a restriction: those that may lose it.
    pub max_loosened: f64,
}

/// Keys that are named in a message: enough to find out what they have in common.
const NAMED: usize = 3;

/// A share says nothing of very few keys: one key may change in any way, unless the share is zero.
const ALWAYS_STOP: usize = 1;

/// Of keys that start to work or lose a restriction, a tenth of all keys may, up to this many: three suspended
/// keys that work again are no sign of a wrong export.
const MAX_ALWAYS_WIDEN: usize = 10;

/// Changes that [`Tolerance::max_loosened`] bounds. Raised limits, and environments where there was none, are
/// counted only: a new price list is ordinary business.
const LOSSES: [AccessChange; 6] = [
    AccessChange::LosesEnvironment,
    AccessChange::LosesNetworks,
    AccessChange::LosesOrigins,
    AccessChange::LosesLimits,
    AccessChange::LosesExpiry,
    AccessChange::GainsScopes,
];

/// Changes that [`Tolerance::max_reactivated`] bounds. Keys that were withheld because of rows that could not be understood
/// are counted only: they return as soon as the export is mended.
const RETURNS: [AccessChange; 3] =
    [AccessChange::RevokedReturns, AccessChange::DisabledReturns, AccessChange::ExpiredReturns];

/// Why the guard refuses a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// Restrictions that keys have, and that no row of the source has a value for.
    Lost(FieldSet),
    /// A change that applies to more keys than its setting allows.
    Exceeds {
        /// What changes.
        change: AccessChange,
        /// For how many keys.
        share: Share,
        /// The setting that bounds it.
        setting: &'static str,
        /// Its value.
        max: f64,
        /// The first of the keys.
        first: Vec<Box<str>>,
    },
}

impl Tolerance {
    /// Everything that speaks against a source of `keys` keys that changes `diff`.
    pub(super) fn refusals(&self, diff: &Diff, keys_before: usize) -> Vec<Refusal> {
        let Diff { impact, examples, .. } = diff;
        let always_widen = (keys_before / 10).clamp(1, MAX_ALWAYS_WIDEN);
        let exceeding = |changes: &'static [AccessChange], always: usize, setting, max: f64, examples| {
            changes.iter().filter_map(move |change| {
                let share = impact.share(*change);
                exceeds(share, always, max).then_some(Refusal::Exceeds {
                    change: *change,
                    share,
                    setting,
                    max,
                    first: first(examples, *change),
                })
            })
        };
        let lost = Some(impact.lost).filter(|lost| !lost.is_empty()).map(Refusal::Lost);
        let stopping =
            exceeding(&[AccessChange::Stops], ALWAYS_STOP, "max_shrink", self.max_shrink, &examples.stopping);
        let starting =
            exceeding(&RETURNS, always_widen, "max_reactivated", self.max_reactivated, &examples.starting);
        let loosened =
            exceeding(&LOSSES, always_widen, "max_loosened", self.max_loosened, &examples.loosened);
        lost.into_iter().chain(stopping).chain(starting).chain(loosened).collect()
    }

    /// Why so many keys may not be taken out of force by an export that was refused.
    pub(super) fn refuses_takeaways(&self, share: Share) -> Option<Refusal> {
        let (change, setting, max) = (AccessChange::Stops, "max_shrink", self.max_shrink);
        exceeds(share, ALWAYS_STOP, max).then(|| Refusal::Exceeds {
            change,
            share,
            setting,
            max,
            first: Vec::new(),
        })
    }

    /// Whether the source, read from `path`, may take the place of `keys_before` keys.
    ///
    /// # Errors
    /// When it has no keys, or there are [refusals](Refusal).
    pub fn check(
        &self,
        path: &Path,
        diff: &Diff,
        keys_before: usize,
        keys_after: usize,
    ) -> Result<(), ReloadError> {
        if keys_after == 0 {
            return Err(ReloadError::Empty { path: path.to_path_buf() });
        }
        match self.refusals(diff, keys_before) {
            refusals if refusals.is_empty() => Ok(()),
            refusals => {
                Err(ReloadError::Guarded { path: path.to_path_buf(), diff: Box::new(diff.clone()), refusals })
            }
        }
    }
}

/// Whether a share is larger than `max`; so few as `always` are never, unless none may be.
fn exceeds(share: Share, always: usize, max: f64) -> bool {
    let few = if max > 0.0 { always } else { 0 };
    share.count > few && share.count as f64 > share.of as f64 * max
}

/// The first keys that `change` applies to. Examples are of several changes.
fn first(examples: &[Example], change: AccessChange) -> Vec<Box<str>> {
    let of_change = examples.iter().filter(|example| example.changes.has(change));
    of_change.take(NAMED).map(|example| example.key_id.clone()).collect()
}

impl Refusal {
    /// What it is, in a word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Lost(_) => "lost_restrictions",
            Self::Exceeds { setting: "max_shrink", .. } => "shrunk",
            Self::Exceeds { setting: "max_reactivated", .. } => "reactivated",
            Self::Exceeds { .. } => "loosened",
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
                let what = words(*change);
                let percent = max * 100.0;
                write!(f, "{count} of {of} {what}, more than source.{setting} ({percent} %) allows")?;
                let mut separator = " (";
                for key_id in first {
                    write!(f, "{separator}{}", Quoted(key_id))?;
                    separator = ", ";
                }
                match first.len() {
                    0 => Ok(()),
                    shown if shown < *count => f.write_str(" and others)"),
                    _ => f.write_str(")"),
                }
            }
        }
    }
}

fn words(change: AccessChange) -> &'static str {
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
        AccessChange::RaisesLimits => "keys with limits would be allowed more",
        AccessChange::LosesExpiry => "keys that expire would never expire",
        AccessChange::GainsScopes => "keys would gain scopes",
        AccessChange::GainsEnvironment => "keys would gain an environment",
    }
}

/// The reasons, one after another.
pub(super) struct Reasons<'r>(pub(super) &'r [Refusal]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// The three counts: as in `2 keys stop working, 1 starts working, 3 lose a restriction`; empty where all are zero.
pub fn counts(impact: &Impact) -> String {
    let counted = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {many}")),
    };
    let parts = [
        counted(impact.stopping(), "stops working", "stop working"),
        counted(impact.starting(), "starts working", "start working"),
        counted(impact.loosened(), "loses a restriction", "lose a restriction"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
