//! A report of a daemon, for tests.

use std::collections::BTreeMap;

use keyward_admin::message::{
    Answers, Connections, Histogram, Metrics, Process, Reloads, UsageMetrics, Version,
};

fn map<T>(label: &str, value: T) -> BTreeMap<String, T> {
    BTreeMap::from([(label.to_owned(), value)])
}

/// A report in which every value is there, and each one is another.
pub(crate) fn report() -> Metrics {
    let histogram = Histogram { sum: 0.5, buckets: vec![(0.1, 2), (1.0, 3)], above: 4 };
    Metrics {
        version: Version { keyward: "1.2.3".to_owned(), protocol: [1, 1] },
        ready: true,
        stale: false,
        generation: 11,
        answers: Answers {
            verdicts: map("ALLOWED", 12),
            refunds: 13,
            debits: 14,
            errors: 15,
            shadow_denials: 16,
            duration_s: histogram.clone(),
            batch_requests: histogram.clone(),
        },
        connections: Connections { open: 17, max: 18, accepted: 19, refused: map("limit", 20) },
        keys: map("active", 21),
        buckets: 22,
        snapshot_age_s: Some(23.5),
        source_age_s: Some(24.5),
        reloads: Reloads {
            last_successful: true,
            last_success_unix_s: Some(25.5),
            last_good_in_use: false,
            duration_s: map("refused", histogram),
        },
        rows_set_aside: 26,
        keys_taken_away: 27,
        revocations: 28,
        revocations_not_durable: 29,
        unwritten_s: map("usage.jsonl", 30.5),
        usage: UsageMetrics { lag_s: 31.5, dropped: 32 },
        log_lines_dropped: 33,
        socket_reachable: map("verify", false),
        calendar_ahead_s: 34,
        process: Some(Process {
            start_unix_s: 35.5,
            cpu_s: 36.5,
            resident_bytes: 37,
            virtual_bytes: 38,
            threads: 39,
            open_fds: 40,
            max_fds: 41,
        }),
    }
}
