//! The exposition: all metrics as text, in the format that the collector asks for.

use std::fmt;

use http::HeaderMap;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use super::process::OwnProcess;
use super::{CompanionMetrics, DaemonMetrics};
use crate::accept::Accept;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, which every collector reads.
    Prometheus,
}

impl Format {
    /// OpenMetrics if the client names it, unless it prefers plain text.
    pub(crate) fn preferred(headers: &HeaderMap) -> Self {
        let accept = Accept::of(headers);
        let open_metrics = accept.weight(&["application/openmetrics-text"]);
        if open_metrics > 0 && open_metrics >= accept.weight(&["text/plain"]) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The value of Content-Type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// All metrics as text.
pub(crate) fn encode(
    companion: &CompanionMetrics,
    daemon: DaemonMetrics,
    format: Format,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(daemon));
    registry.register_collector(Box::new(OwnProcess));
    companion.register(&mut registry);
    let mut exposition = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut exposition, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut exposition, &registry)?,
    }
    Ok(exposition)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use http::HeaderValue;
    use http::header::ACCEPT;
    use keyward_admin::message::Metrics;
    use keyward_client::Error;

    use super::*;
    use crate::metrics::GatewayMetrics;
    use crate::metrics::example::report;
    use crate::outcome::{Outcome, Refusal, Unavailable};

    const PAGE: &str = include_str!("../../../systemd/METRICS.md");

    /// A companion whose gateway "edge" has seen each kind of request.
    fn companion() -> CompanionMetrics {
        let metrics = CompanionMetrics::default();
        metrics.set_connections_max("edge", 7);
        let gateway = GatewayMetrics::new("edge", ["open"].into_iter(), metrics.clone());
        gateway.connection_opened();
        gateway.connection_opened();
        gateway.connection_closed();
        let took = Duration::from_millis(2);
        gateway.count(&Outcome::Open, Some("r"), took);
        gateway.count(&Outcome::Refused(Refusal::NoRoute), None, took);
        let unavailable = || Unavailable::NoAnswer(Error::NoRuntime);
        gateway.count(&Outcome::Unavailable(unavailable()), Some("r"), took);
        gateway.count(&Outcome::FailedOpen(unavailable()), Some("open"), took);
        let repetitions = metrics.repetitions("edge");
        repetitions.repeated.inc_by(2);
        repetitions.unremembered.inc_by(3);
        metrics.count_settlement("debit", "ALLOWED");
        metrics
    }

    fn prometheus(report: Option<Metrics>) -> String {
        encode(&companion(), DaemonMetrics(report), Format::Prometheus).expect("a text")
    }

    /// The names of the families in an exposition.
    fn families(exposition: &str) -> BTreeSet<&str> {
        let lines = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        lines.map(|line| line.split(' ').next().expect("a name")).collect()
    }

    #[test]
    fn page_lists_every_metric_once() {
        let exposition = prometheus(Some(report()));
        let cells = PAGE.lines().filter(|line| line.starts_with("| `")).flat_map(|line| {
            let cell = line.split('|').nth(1).expect("a cell");
            cell.split('`').skip(1).step_by(2)
        });
        let listed: Vec<&str> = cells.filter(|name| name.starts_with("keyward_")).collect();
        let names: BTreeSet<&str> = listed.iter().copied().collect();
        assert_eq!(names.len(), listed.len(), "a name is listed twice");
        let (own_process, exposed): (BTreeSet<&str>, BTreeSet<&str>) =
            families(&exposition).into_iter().partition(|name| name.starts_with("process_"));
        let row = PAGE.lines().find(|line| line.starts_with("| `process_*`")).expect("a row");
        let suffixes: BTreeSet<&str> = row.split('`').skip(3).step_by(2).skip(1).collect();
        let suffix = |name: &&str| name["process_".len()..].to_owned();
        assert_eq!(
            own_process.iter().map(suffix).collect::<BTreeSet<_>>(),
            suffixes.into_iter().map(str::to_owned).collect()
        );
        assert_eq!(exposed, names);
    }

    #[test]
    fn every_value_is_exposed() {
        let exposition = prometheus(Some(report()));
        for line in [
            "keyward_up 1.0",
            "keyward_build_info{version=\"1.2.3\"} 1.0",
            "keyward_ready 1.0",
            "keyward_stale 0.0",
            "keyward_generation 11.0",
            "keyward_verdicts_total{verdict=\"ALLOWED\"} 12",
            "keyward_refunds_total 13",
            "keyward_debits_total 14",
            "keyward_errors_total 15",
            "keyward_shadow_denials_total 16",
            "keyward_request_duration_seconds_sum 0.5",
            "keyward_request_duration_seconds_count 9",
            "keyward_request_duration_seconds_bucket{le=\"1\"} 5",
            "keyward_request_duration_seconds_bucket{le=\"+Inf\"} 9",
            "keyward_batch_requests_count 9",
            "keyward_connections 17.0",
            "keyward_connections_max 18.0",
            "keyward_accepted_connections_total 19",
            "keyward_refused_connections_total{reason=\"limit\"} 20",
            "keyward_keys{status=\"active\"} 21.0",
            "keyward_buckets 22.0",
            "keyward_snapshot_age_seconds 23.5",
            "keyward_source_age_seconds 24.5",
            "keyward_config_last_reload_successful 1.0",
            "keyward_config_last_reload_success_timestamp_seconds 25.5",
            "keyward_last_good_in_use 0.0",
            "keyward_reloads_total{result=\"refused\"} 9",
            "keyward_reload_duration_seconds_count{result=\"refused\"} 9",
            "keyward_rows_set_aside 26.0",
            "keyward_keys_taken_away 27.0",
            "keyward_revocations 28.0",
            "keyward_revocations_not_durable 29.0",
            "keyward_unwritten_files 1.0",
            "keyward_unwritten_seconds{file=\"usage.jsonl\"} 30.5",
            "keyward_usage_lag_seconds 31.5",
            "keyward_usage_dropped_total 32",
            "keyward_log_lines_dropped_total 33",
            "keyward_socket_reachable{socket=\"verify\"} 0.0",
            "keyward_calendar_ahead_seconds 34.0",
            "keyward_process_start_time_seconds 35.5",
            "keyward_process_cpu_seconds_total 36.5",
            "keyward_process_resident_memory_bytes 37.0",
            "keyward_process_virtual_memory_bytes 38.0",
            "keyward_process_threads 39.0",
            "keyward_process_open_fds 40.0",
            "keyward_process_max_fds 41.0",
            "keyward_http_requests_total{gateway=\"edge\",outcome=\"OPEN\"} 1",
            "keyward_http_requests_total{gateway=\"edge\",outcome=\"NO_ROUTE\"} 1",
            "keyward_http_requests_total{gateway=\"edge\",outcome=\"UNAVAILABLE\"} 1",
            "keyward_http_requests_total{gateway=\"edge\",outcome=\"FAILED_OPEN\"} 1",
            "keyward_http_requests_total{gateway=\"edge\",outcome=\"MISCONFIGURED\"} 0",
            "keyward_http_failed_open_total{gateway=\"edge\",route=\"open\"} 1",
            "keyward_http_check_duration_seconds_bucket{gateway=\"edge\",le=\"0.0025\"} 4",
            "keyward_http_connections{gateway=\"edge\"} 1",
            "keyward_http_connections_max{gateway=\"edge\"} 7",
            "keyward_http_accepted_connections_total{gateway=\"edge\"} 2",
            "keyward_http_repeated_checks_total{gateway=\"edge\"} 2",
            "keyward_http_unremembered_checks_total{gateway=\"edge\"} 3",
            "keyward_http_settlements_total{operation=\"debit\",outcome=\"ALLOWED\"} 1",
        ] {
            assert!(exposition.lines().any(|exposed| exposed == line), "{line} is missing:\n{exposition}");
        }
    }

    #[test]
    fn silent_daemon_is_down_and_has_no_other_metrics() {
        let exposition = prometheus(None);
        let of_daemon: Vec<&str> = families(&exposition)
            .into_iter()
            .filter(|name| name.starts_with("keyward_") && !name.starts_with("keyward_http_"))
            .collect();
        assert_eq!(of_daemon, ["keyward_up"]);
        assert!(exposition.lines().any(|line| line == "keyward_up 0.0"), "{exposition}");
    }

    #[test]
    fn unknown_ages_are_absent() {
        let unknown = Metrics { snapshot_age_s: None, source_age_s: None, ..report() };
        let exposition = prometheus(Some(unknown));
        assert!(!exposition.contains("age_seconds"), "{exposition}");
    }

    #[test]
    fn format_is_the_one_that_the_client_prefers() {
        for (accept, expected) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/plain;version=0.0.4"), Format::Prometheus),
            (Some("application/openmetrics-text;version=1.0.0"), Format::OpenMetrics),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ),
                Format::OpenMetrics,
            ),
            (Some("application/openmetrics-text;q=0.1,text/plain;q=0.5"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
        ] {
            let headers = accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept)));
            assert_eq!(Format::preferred(&headers.into_iter().collect()), expected, "{accept:?}");
        }
        let text = encode(&companion(), DaemonMetrics(Some(report())), Format::OpenMetrics);
        let text = text.expect("a text");
        assert!(text.ends_with("# EOF\n") && text.contains("# TYPE keyward_verdicts counter\n"), "{text}");
    }
}
