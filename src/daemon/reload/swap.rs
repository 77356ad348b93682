//! Puts keys in force, and queues them to be stored for the next start.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use tracing::warn;

use crate::audit;
use crate::balances::report_evicted;
use crate::reload::last_good;
use crate::reload::memory_limits::MemoryLimits;
use crate::reload::{
    AcceptedReload, FileState, LoadedFrom, Refusal, ReloadError, ReloadLoop, Reloader, Settings, Stale,
};
use keyward_engine::snapshot::{Diff, KeyTable, RowMap, RowPolicies, Snapshot, SnapshotMeta};
use keyward_source::Format;

/// Seconds by which a source may appear to be from the future without a warning: clocks of hosts
/// differ.
const CLOCK_SKEW: u32 = 5;

impl ReloadLoop {
    /// Records the accepted source, and queues the keys in force to be stored for the next start.
    /// `takes_away`: keys that were in force may do less now.
    pub(super) fn store_last_good(
        &self,
        settings: &Settings,
        state: FileState,
        file: File,
        policies: RowPolicies,
        takes_away: bool,
    ) {
        if let Some((last_good, snapshot)) = self.reloader.last_good.as_ref().zip(self.current.as_ref()) {
            let (source, policy) = (&settings.source, &settings.global_policy);
            last_good.record_accepted(self.table_generation, state, source, policy, takes_away);
            last_good.enqueue(last_good::Job {
                snapshot: Arc::clone(snapshot),
                policies,
                compiled: (source.format == Format::Compiled).then_some(file),
                source: source.path.display().to_string(),
                state,
                parse_settings: last_good::parse_settings_digest(source),
                accepted_at: self.reloader.clock.now().unix,
            });
        }
    }

    /// Puts `keys` in force, on every connection: steps 4 to 7 of
    /// [a reload](crate::reload#the-order-of-a-reload).
    pub(super) fn put_in_force(
        &mut self,
        settings: &Settings,
        keys: KeyTable,
        written_at: u32,
        diff: Diff,
        row_map: &RowMap<'_>,
        loaded_from: LoadedFrom,
    ) -> Result<AcceptedReload, ReloadError> {
        let needed = keys.publishing_bytes(&diff, self.current.as_deref());
        let path = || settings.source.path.to_path_buf();
        MemoryLimits::new()
            .require(needed, keys.publishing_heap_bytes())
            .map_err(|limit| ReloadError::Memory { path: path(), limit })?;
        let has_counted_limits = keys.has_counted_limits();
        let mut accepted_loss = None;
        if let Some(loss) = self.reloader.pending_loss.get().filter(|_| has_counted_limits) {
            let LoadedFrom::Source { loss_accepted_by: Some(by_uid), .. } = loaded_from else {
                return Err(ReloadError::LostBalances { path: path(), loss });
            };
            accepted_loss = Some((by_uid, loss));
        }
        self.reloader.revocations.generations().reserve();
        let Reloader {
            limiter, allocator, publisher, revocations, audit, runtime, clock, pending_loss, ..
        } = &mut self.reloader;
        // Reading a source of the same time again makes it no younger.
        let first_loaded = match self.current.as_deref().map(Snapshot::meta) {
            Some(before) if before.source_time == written_at => before.first_loaded,
            _ => clock.now().nanoseconds,
        };
        let ahead_s = written_at.saturating_sub(clock.now().unix);
        if settings.global_policy.max_staleness.is_some() && ahead_s > CLOCK_SKEW {
            warn!(
                ahead_s,
                "the source was written in the future: is a clock wrong? For max_staleness its age is counted from now"
            );
        }
        // Locked until the migration is complete, so that a save of the balances sees no bucket
        // between two slots.
        let mut allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let mut allocation = allocator.begin(limiter);
        let mut snapshot = keys
            .into_snapshot_with(
                &mut allocation,
                row_map,
                SnapshotMeta {
                    // Set when it comes into force.
                    generation: 0,
                    source_time: written_at,
                    first_loaded,
                    global_policy: Arc::clone(&settings.global_policy),
                },
            )
            .map_err(|error| ReloadError::Buckets { path: path(), error })?;
        let stale = Stale::of(snapshot.meta().source_age(clock.now()), &settings.global_policy);
        let mut accepted = AcceptedReload {
            generation: 0,
            keys: snapshot.len(),
            diff,
            revocations_confirmed: 0,
            revocations_conflicting: 0,
            stale,
            set_aside: None,
        };

        if matches!(loaded_from, LoadedFrom::LastGood) {
            snapshot.apply_takeaways(
                self.applied_takeaways.keys.iter().map(|(hash, takeaway)| (*hash, *takeaway)),
            );
        }
        let swap = revocations.mark_for_swap(&snapshot);
        if let (LoadedFrom::Source { guarded: Some(options), .. }, Some(old)) = (loaded_from, &self.current) {
            let lifted = swap.lifted_by(snapshot.table(), old.table(), options);
            if lifted.count > 0 {
                return Err(ReloadError::Guarded {
                    path: path(),
                    diff: Box::new(accepted.diff),
                    refusals: vec![Refusal::LiftsRevocations(lifted)],
                });
            }
        }
        // Nothing refuses the keys from here on.
        limiter.set_time_zone(settings.global_policy.time_zone.clone());
        let pending = allocation.commit();
        accepted.generation = swap.generation();
        snapshot.set_table_generation(accepted.generation);
        let snapshot = Arc::new(snapshot);
        let epoch = swap.finish(Arc::clone(&snapshot));
        if let Some((by_uid, loss)) = accepted_loss {
            pending_loss.accept();
            warn!(
                loss = loss.to_string(),
                "calendar quotas and credits begin unspent, because an operator forces it"
            );
            let at = Timestamp::from_second(clock.now().unix.into()).unwrap_or_default();
            audit.record(&audit::Event::LostBalancesAccepted { by_uid, at: at.to_string() });
        }
        self.table_generation = accepted.generation;
        let previous = self.current.replace(Arc::clone(&snapshot));
        // When this returns, no answer of the previous snapshot can leave any more.
        runtime.block_on(publisher.epochs().wait_passed(epoch));
        audit.set_generation(accepted.generation);
        // The last good keys were compared with the list of revocations when they were accepted.
        if matches!(loaded_from, LoadedFrom::Source { .. }) {
            let reconciliation = revocations.reconcile(&snapshot, settings.revocation_retention, audit);
            accepted.revocations_confirmed = reconciliation.dropped;
            accepted.revocations_conflicting = reconciliation.conflicts;
        }

        let buckets = previous.iter().flat_map(|previous| previous.buckets());
        report_evicted(allocator.reclaim(limiter, pending, buckets, clock.now()));
        self.retired = previous;
        Ok(accepted)
    }
}
