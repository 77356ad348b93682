//! Takeaways of refused sources.
//!
//! A source may be refused for some of its rows. With `source.apply_takeaways_of_refused`, what its
//! other rows revoke, disable or let expire earlier still applies to the current keys.

use std::collections::BTreeSet;

use crate::reload::{REPORTED_KEYS, ReloadLoop, Settings};
use keyward_engine::record::Digest;
use keyward_engine::snapshot::{KeyTable, Snapshot, Takeaways};

/// Maximum number of keys that refused sources may take access from until a source is accepted. All
/// of them are kept in memory and in one small file. A source that takes access from more keys
/// needs correction.
const MAX_KEYS: usize = 100_000;

/// A report of takeaways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakeawayReport {
    /// Keys that a takeaway applies to for the first time.
    pub added: usize,
    /// All keys that takeaways have applied to since a source was accepted.
    pub total: usize,
    /// The ids of the first of all these keys, in order.
    pub first: Vec<Box<str>>,
    /// Why the takeaways of the latest source are not applied.
    pub refused: Option<String>,
}

impl ReloadLoop {
    /// Applies the takeaways of the source that this reload has refused, if the settings ask for
    /// it. When this returns, they are in force on every connection, and on disk unless the write
    /// failed.
    pub(super) fn apply_takeaways(&mut self, settings: &Settings, force: bool) -> Option<TakeawayReport> {
        let (rows, current) = (self.refused_rows.take()?, self.current.clone()?);
        let (takeaways, report) = self.evaluate_takeaways(settings, &rows, &current, force);
        drop(rows);
        if report.refused.is_none() && !takeaways.keys.is_empty() {
            let epochs = self.reloader.publisher.epochs();
            let epoch = self.reloader.revocations.publish_takeaways(&takeaways.keys);
            self.reloader.runtime.block_on(epochs.wait_passed(epoch));
            self.reloader.revocations.mark_takeaways(&takeaways.keys);
            if let Some(published) = self.reloader.publisher.reader().published() {
                self.reloader.audit.set_generation(published.generation());
            }
            self.applied_takeaways.extend(takeaways.keys);
            if let Some(last_good) = &self.reloader.last_good {
                last_good.store_takeaways(self.table_generation, &self.applied_takeaways);
            }
        }
        Some(report)
    }

    /// The takeaways of the rows of a refused source from the current keys, and the report, which
    /// says whether they are to be applied.
    pub(super) fn evaluate_takeaways(
        &self,
        settings: &Settings,
        rows: &KeyTable,
        current: &Snapshot,
        force: bool,
    ) -> (Takeaways, TakeawayReport) {
        let applied = &self.applied_takeaways.keys;
        // The comparison reads the marks of acknowledged revocations.
        self.reloader.revocations.mark_passed();
        let takeaways = rows.takeaways(current, self.reloader.clock.now().unix, MAX_KEYS);
        let added = takeaways.keys.iter().filter(|(hash, _)| !applied.contains_key(hash)).count();
        let total = applied.len() + added;
        let refused = if total > MAX_KEYS {
            Some(format!(
                "refused sources would have taken access from {total} keys or more, and may from {MAX_KEYS} at most"
            ))
        } else if force || takeaways.keys.is_empty() {
            None
        } else {
            let refusal = settings.policy.tolerance.refuses_takeaways(takeaways.share);
            refusal.map(|refusal| format!("{refusal}. If that is meant, reload with --force"))
        };
        let report = if refused.is_none() {
            let hashes = applied.keys().chain(takeaways.keys.iter().map(|(hash, _)| hash));
            TakeawayReport { added, total, first: first_ids(current, hashes), refused }
        } else {
            let first = first_ids(current, applied.keys());
            TakeawayReport { added: 0, total: applied.len(), first, refused }
        };
        (takeaways, report)
    }

    /// All takeaways since a source was accepted, for `keyward status`.
    pub(super) fn report_takeaways(&self, latest: Option<&TakeawayReport>) -> Option<TakeawayReport> {
        let (keys, current) = (&self.applied_takeaways.keys, self.current.as_ref()?);
        let refused = latest.and_then(|report| report.refused.clone());
        let first = first_ids(current, keys.keys());
        let report = TakeawayReport { added: 0, total: keys.len(), first, refused };
        (report != TakeawayReport::default()).then_some(report)
    }

    /// Forgets all takeaways: the accepted source replaces them. The file of takeaways is cleared
    /// when the keys of that source are stored.
    pub(super) fn clear_takeaways(&mut self) {
        self.applied_takeaways.keys.clear();
    }
}

/// The first key ids in alphabetical order: the keys themselves are in no order.
fn first_ids<'h>(current: &Snapshot, hashes: impl Iterator<Item = &'h Digest>) -> Vec<Box<str>> {
    let ids: BTreeSet<&str> = hashes.filter_map(|hash| Some(current.find(hash)?.key_id())).collect();
    ids.into_iter().take(REPORTED_KEYS).map(Into::into).collect()
}
