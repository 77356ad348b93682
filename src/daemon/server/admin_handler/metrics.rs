//! The report of `metrics`.

use std::collections::BTreeMap;
use std::time::Instant;

use keyward_protocol::Verdict;

use super::{AdminHandler, shutting_down};
use crate::connection::Samples;
use crate::server::worker::Worker;
use keyward_admin::message::{
    Answers, Connections, LastGood, Metrics, Process, Reloads, Reply, UsageMetrics, Version,
};
use keyward_engine::snapshot::StatusCounts;
use keyward_service::process;

/// What takes too long for the thread that accepts connections.
struct Slow {
    keys: Option<StatusCounts>,
    revocations: usize,
    revocations_not_durable: usize,
    process: Option<Process>,
}

impl AdminHandler {
    pub(super) async fn metrics(&self) -> Reply {
        let Ok(keys) = self.key_counts.current(&self.snapshots, &self.clock).await else {
            return shutting_down();
        };
        let slow = self.read_revocations(move |revocations| Slow {
            keys,
            revocations: revocations.latest(0).0,
            revocations_not_durable: revocations.not_durable(),
            process: process(),
        });
        match slow.await {
            Ok(slow) => self.metrics_with(slow).into(),
            Err(error) => error,
        }
    }

    fn metrics_with(&self, slow: Slow) -> Metrics {
        let published = self.snapshots.published();
        let meta = published.as_ref().map(|published| published.snapshot().meta());
        let now = self.clock.now();
        let stale = meta.is_some_and(|meta| meta.is_stale(now));
        let last_good: Option<LastGood> = self.last_good.as_ref().map(|last_good| last_good.status().into());
        let (usage_lag, usage_dropped) = self.usage.unwritten();
        Metrics {
            version: Version::current(),
            ready: meta.is_some() && !stale,
            stale,
            generation: published.as_ref().map_or(0, |published| published.generation()),
            answers: self.answers(),
            connections: self.connections(),
            keys: slow.keys.map(by_name).unwrap_or_default(),
            buckets: self.history.buckets(),
            snapshot_age_s: published.as_ref().and_then(|_| self.snapshot_age_s(last_good.as_ref())),
            source_age_s: meta.map(|meta| meta.source_age(now).into()),
            reloads: self.reloads(last_good.as_ref()),
            rows_set_aside: self.history.set_aside().map_or(0, |set_aside| set_aside.rows),
            keys_taken_away: self.history.takeaways().map_or(0, |takeaways| takeaways.total as u64),
            revocations: slow.revocations as u64,
            revocations_not_durable: slow.revocations_not_durable as u64,
            unwritten_s: self
                .health
                .unwritten()
                .into_iter()
                .map(|unwritten| (unwritten.file.into(), unwritten.lasting.as_secs_f64()))
                .collect(),
            usage: UsageMetrics { lag_s: usage_lag.as_secs_f64(), dropped: usage_dropped },
            log_lines_dropped: self.log.health().dropped,
            socket_reachable: self
                .sockets
                .iter()
                .map(|socket| (socket.name().to_owned(), socket.status().reachable))
                .collect(),
            calendar_ahead_s: self.balances.calendar_ahead_s(),
            process: slow.process,
        }
    }

    fn answers(&self) -> Answers {
        let sum = |count: fn(&Worker) -> u64| self.workers.iter().map(count).sum();
        let (duration_s, batch_requests) =
            Samples::total(self.workers.iter().map(|worker| worker.counters.samples()));
        Answers {
            verdicts: self.verdicts(),
            refunds: sum(|worker| worker.counters.refunds()),
            debits: sum(|worker| worker.counters.debits()),
            errors: sum(|worker| worker.counters.errors()),
            shadow_denials: sum(|worker| worker.counters.shadow_denials()),
            duration_s,
            batch_requests,
        }
    }

    /// Answers since the start, by verdict.
    pub(super) fn verdicts(&self) -> BTreeMap<String, u64> {
        let of_all = |verdict| self.workers.iter().map(|worker| worker.counters.verdicts(verdict)).sum();
        Verdict::all().map(|verdict| (verdict.name().to_owned(), of_all(verdict))).collect()
    }

    fn connections(&self) -> Connections {
        Connections {
            open: self.workers.iter().map(|worker| worker.open_connections() as u64).sum(),
            max: self.max_connections as u64,
            accepted: self.workers.iter().map(|worker| worker.counters.connections()).sum(),
            refused: self.refusals.by_reason(),
        }
    }

    fn reloads(&self, last_good: Option<&LastGood>) -> Reloads {
        let is_accepted = self.history.last().is_some_and(|outcome| outcome.result.is_ok());
        Reloads {
            last_successful: is_accepted && self.history.configuration_refused().is_none(),
            last_success_unix_s: self.history.last_accepted_unix_s(),
            last_good_in_use: last_good.is_some_and(|last_good| last_good.in_use),
            duration_s: self.history.durations(),
        }
    }

    /// Seconds since the keys in force were accepted: by a reload, or before the start.
    fn snapshot_age_s(&self, last_good: Option<&LastGood>) -> Option<f64> {
        match self.history.last_accepted() {
            Some(outcome) => Some(Instant::now().saturating_duration_since(outcome.at).as_secs_f64()),
            None => last_good?.accepted_age_s.map(|age| age as f64),
        }
    }
}

fn by_name(counts: StatusCounts) -> BTreeMap<String, u64> {
    let StatusCounts { active, disabled, revoked, not_yet_valid, expired } = counts;
    let all = [
        ("active", active),
        ("disabled", disabled),
        ("revoked", revoked),
        ("not_yet_valid", not_yet_valid),
        ("expired", expired),
    ];
    all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// `None` if `/proc` is not mounted.
fn process() -> Option<Process> {
    let process = process::Process::read().ok()?;
    let process::Process { start_unix_s, cpu_s, resident_bytes, virtual_bytes, threads, open_fds, max_fds } =
        process;
    Some(Process { start_unix_s, cpu_s, resident_bytes, virtual_bytes, threads, open_fds, max_fds })
}
