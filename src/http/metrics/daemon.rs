//! The daemon's metrics, as its admin socket reports them.

use std::fmt;

use keyward_admin::message::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::process;
use super::writer::Writer;

/// The metrics of a daemon. `None`: it did not report them.
#[derive(Debug)]
pub(crate) struct DaemonMetrics(pub(crate) Option<Metrics>);

impl Collector for DaemonMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer::new(encoder);
        writer.flag("keyward_up", "Whether the daemon answered this scrape", self.0.is_some())?;
        self.0.as_ref().map_or(Ok(()), |metrics| write(metrics, &mut writer))
    }
}

/// The items of a map from texts.
macro_rules! items {
    ($map:expr, $convert:expr) => {
        $map.iter().map(|(label, value)| (label.as_str(), $convert(*value)))
    };
}

fn write(metrics: &Metrics, writer: &mut Writer<'_>) -> fmt::Result {
    let version = metrics.version.keyward.as_str();
    writer.gauges(("keyward_build_info", "version"), "The version of the daemon", [(version, 1.0)])?;
    writer.flag("keyward_ready", "Whether there are keys in force that are not stale", metrics.ready)?;
    writer.flag("keyward_stale", "Whether the source is older than max_staleness", metrics.stale)?;
    writer.gauge("keyward_generation", "The generation that answers carry", metrics.generation as f64)?;
    write_answers(metrics, writer)?;
    write_connections(metrics, writer)?;
    write_keys(metrics, writer)?;
    write_reloads(metrics, writer)?;
    write_state(metrics, writer)?;
    metrics.process.as_ref().map_or(Ok(()), |process| process::write(process, "keyward_process", writer))
}

fn write_answers(metrics: &Metrics, writer: &mut Writer<'_>) -> fmt::Result {
    let answers = &metrics.answers;
    writer.counters(
        ("keyward_verdicts", "verdict"),
        "Answers to VERIFY",
        items!(answers.verdicts, u64::from),
    )?;
    writer.counter("keyward_refunds", "REFUNDs answered", answers.refunds)?;
    writer.counter("keyward_debits", "DEBITs answered", answers.debits)?;
    writer.counter("keyward_errors", "ERROR frames sent", answers.errors)?;
    writer.counter(
        "keyward_shadow_denials",
        "Requests that a limit in shadow mode would have refused",
        answers.shadow_denials,
    )?;
    writer.histogram(
        "keyward_request_duration_seconds",
        "Time from reading requests to having written their answers, of a sample of the batches",
        &answers.duration_s,
    )?;
    writer.histogram(
        "keyward_batch_requests",
        "Requests that were read together, of the same sample",
        &answers.batch_requests,
    )
}

fn write_connections(metrics: &Metrics, writer: &mut Writer<'_>) -> fmt::Result {
    let connections = &metrics.connections;
    writer.gauge("keyward_connections", "Open connections", connections.open as f64)?;
    writer.gauge("keyward_connections_max", "Maximum number of open connections", connections.max as f64)?;
    writer.counter("keyward_accepted_connections", "Connections accepted", connections.accepted)?;
    writer.counters(
        ("keyward_refused_connections", "reason"),
        "Connections refused",
        items!(connections.refused, u64::from),
    )?;
    writer.gauges(
        ("keyward_socket_reachable", "socket"),
        "Whether clients can connect by the file of the socket",
        items!(metrics.socket_reachable, |is_reachable| f64::from(u8::from(is_reachable))),
    )
}

fn write_keys(metrics: &Metrics, writer: &mut Writer<'_>) -> fmt::Result {
    writer.gauges(
        ("keyward_keys", "status"),
        "Keys by status",
        items!(metrics.keys, |count| count as f64),
    )?;
    writer.gauge("keyward_buckets", "Balances in memory", metrics.buckets as f64)?;
    writer.known_gauge(
        "keyward_snapshot_age_seconds",
        "Time since the keys in force were accepted",
        metrics.snapshot_age_s,
    )?;
    writer.known_gauge(
        "keyward_source_age_seconds",
        "Time since the source of the keys in force was written",
        metrics.source_age_s,
    )?;
    writer.gauge(
        "keyward_rows_set_aside",
        "Bad rows whose keys are disabled",
        metrics.rows_set_aside as f64,
    )?;
    writer.gauge(
        "keyward_keys_taken_away",
        "Keys that a refused source has revoked, disabled or let expire",
        metrics.keys_taken_away as f64,
    )?;
    writer.gauge("keyward_revocations", "Entries in the list of revocations", metrics.revocations as f64)?;
    writer.gauge(
        "keyward_revocations_not_durable",
        "Revocations that a restart would forget",
        metrics.revocations_not_durable as f64,
    )
}

fn write_reloads(metrics: &Metrics, writer: &mut Writer<'_>) -> fmt::Result {
    let reloads = &metrics.reloads;
    writer.flag(
        "keyward_config_last_reload_successful",
        "Whether the latest reload was accepted, and the configuration is in force",
        reloads.last_successful,
    )?;
    writer.known_gauge(
        "keyward_config_last_reload_success_timestamp_seconds",
        "When a reload was last accepted",
        reloads.last_success_unix_s,
    )?;
    writer.flag(
        "keyward_last_good_in_use",
        "Whether last good keys are served, because the source was refused at the start",
        reloads.last_good_in_use,
    )?;
    let counts = reloads.duration_s.iter().map(|(result, duration)| {
        let count = duration.buckets.iter().map(|(_, count)| count).sum::<u64>() + duration.above;
        (result.as_str(), count)
    });
    writer.counters(("keyward_reloads", "result"), "Reloads since the start", counts)?;
    writer.histograms(
        ("keyward_reload_duration_seconds", "result"),
        "How long reloads took",
        reloads.duration_s.iter().map(|(result, duration)| (result.as_str(), duration)),
    )
}

fn write_state(metrics: &Metrics, writer: &mut Writer<'_>) -> fmt::Result {
    writer.gauge(
        "keyward_unwritten_files",
        "Files of the state directory that cannot be written",
        metrics.unwritten_s.len() as f64,
    )?;
    writer.gauges(
        ("keyward_unwritten_seconds", "file"),
        "How long a file could not be written",
        items!(metrics.unwritten_s, f64::from),
    )?;
    writer.gauge(
        "keyward_usage_lag_seconds",
        "Age of the oldest usage that is not written",
        metrics.usage.lag_s,
    )?;
    writer.counter(
        "keyward_usage_dropped",
        "Lines of usage that were dropped, because they could not be written",
        metrics.usage.dropped,
    )?;
    writer.counter(
        "keyward_log_lines_dropped",
        "Log lines that standard error did not take",
        metrics.log_lines_dropped,
    )?;
    writer.gauge(
        "keyward_calendar_ahead_seconds",
        "How far the calendar of quotas is ahead of the clock",
        metrics.calendar_ahead_s.into(),
    )
}
