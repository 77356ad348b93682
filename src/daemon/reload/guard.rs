//! The guard: which changes of a reload are more likely a broken export than a decision.
//!
//! It evaluates what a new set of keys means for access ([`Impact`]), not the number of rows: keys
//! that would stop working, keys that would start working, and keys that would lose a restriction.
//! For each there is a share beyond which the reload is refused. A restriction that disappears from
//! the whole source is always refused, and so are other names for revoked keys that would
//! [lift](crate::revocation::LiftedRevocations) their revocation. `keyward reload --force` overrides
//! the guard.

use std::path::Path;

use crate::reload::NAMED_KEYS;
use crate::reload::ReloadError;
use crate::reload::refusal::Refusal;
use crate::revocation::LiftedRevocations;
use keyward_engine::snapshot::{AccessChange, Diff, Example, Impact, Share};

/// How far a reload may change access: shares of keys, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The share of working keys that may stop working.
    pub max_shrink: f64,
    /// The share of the revoked, the disabled, and the expired keys that may work again.
    pub max_reactivated: f64,
    /// The share of the keys with a restriction that may lose it.
    pub max_loosened: f64,
}

/// What a source would change.
#[derive(Clone, Debug)]
pub struct Changes<'c> {
    /// The difference from the keys before.
    pub diff: &'c Diff,
    /// The revocations that it would lift.
    pub lifted: LiftedRevocations,
}

impl<'c> Changes<'c> {
    /// Changes that lift no revocation.
    pub fn of(diff: &'c Diff) -> Self {
        Self { diff, lifted: LiftedRevocations::default() }
    }
}

/// Keys that may always stop working, unless the share is zero: a share says little about very few
/// keys.
const ALWAYS_STOP: usize = 1;

/// A tenth of all keys, up to this many, may always start to work or lose a restriction: three
/// suspended keys that work again do not indicate a wrong export.
const MAX_ALWAYS_WIDEN: usize = 10;

/// The changes of `AccessChange::LOOSENS` that [`Tolerance::max_loosened`] limits. Raised limits,
/// and environments where there was none, are only counted: a new price list is ordinary business.
const CHECKED_LOOSENS: [AccessChange; 7] = [
    AccessChange::LosesEnvironment,
    AccessChange::LosesNetworks,
    AccessChange::LosesOrigins,
    AccessChange::LosesLimits,
    AccessChange::ReplacesLimits,
    AccessChange::LosesExpiry,
    AccessChange::GainsScopes,
];

/// The changes of [`AccessChange::STARTS`] that [`Tolerance::max_reactivated`] limits. Keys whose
/// access was withheld because of bad rows are only counted: they return as soon as the export is
/// corrected.
const CHECKED_STARTS: [AccessChange; 3] =
    [AccessChange::RevokedReturns, AccessChange::DisabledReturns, AccessChange::ExpiredReturns];

impl Tolerance {
    /// The refusals of a source that makes `changes`, compared with `keys_before` keys.
    pub(super) fn refusals(&self, changes: &Changes<'_>, keys_before: usize) -> Vec<Refusal> {
        let Changes { diff: Diff { impact, examples, .. }, lifted } = changes;
        let always_widen = (keys_before / 10).clamp(1, MAX_ALWAYS_WIDEN);
        let exceeding = |changes: &'static [AccessChange], always: usize, setting, max: f64, examples| {
            changes.iter().filter_map(move |change| {
                let share = impact.share(*change);
                exceeds(share, always, max).then_some(Refusal::Exceeds {
                    change: *change,
                    share,
                    setting,
                    max,
                    first: first_ids(examples, *change),
                })
            })
        };
        let lost = Some(impact.lost).filter(|lost| !lost.is_empty()).map(Refusal::Lost);
        let stopping =
            exceeding(&[AccessChange::Stops], ALWAYS_STOP, "max_shrink", self.max_shrink, &examples.stopping);
        let starting = exceeding(
            &CHECKED_STARTS,
            always_widen,
            "max_reactivated",
            self.max_reactivated,
            &examples.starting,
        );
        let loosened =
            exceeding(&CHECKED_LOOSENS, always_widen, "max_loosened", self.max_loosened, &examples.loosened);
        let lifted = Some(lifted).filter(|lifted| lifted.count > 0).cloned().map(Refusal::LiftsRevocations);
        lost.into_iter().chain(lifted).chain(stopping).chain(starting).chain(loosened).collect()
    }

    /// The refusal of takeaways from this share of the keys, if it is too large.
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

    /// Checks whether the source at `path`, which makes `changes`, may replace `keys_before` keys.
    ///
    /// # Errors
    /// When the source has no keys, or there are [refusals](Refusal).
    pub fn check(
        &self,
        path: &Path,
        changes: &Changes<'_>,
        keys_before: usize,
        keys_after: usize,
    ) -> Result<(), ReloadError> {
        if keys_after == 0 {
            return Err(ReloadError::Empty { path: path.to_path_buf() });
        }
        let refusals = self.refusals(changes, keys_before);
        if refusals.is_empty() {
            return Ok(());
        }
        Err(ReloadError::Guarded { path: path.to_path_buf(), diff: Box::new(changes.diff.clone()), refusals })
    }
}

/// Whether a share is larger than `max`. Up to `always` keys never are, unless `max` is zero.
fn exceeds(share: Share, always: usize, max: f64) -> bool {
    let allowed = if max > 0.0 { always } else { 0 };
    share.count > allowed && share.count as f64 > share.of as f64 * max
}

/// The ids of the first examples that `change` applies to.
fn first_ids(examples: &[Example], change: AccessChange) -> Vec<Box<str>> {
    let of_change = examples.iter().filter(|example| example.changes.has(change));
    of_change.take(NAMED_KEYS).map(|example| example.key_id.clone()).collect()
}

/// The three counts, as in `2 keys stop working, 1 starts working, 3 lose a restriction`; empty if
/// all are zero.
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
