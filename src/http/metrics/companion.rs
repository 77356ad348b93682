//! The companion's own metrics.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use keyward_protocol::Verdict;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::outcome::Outcome;

/// Upper bounds of the time of a check, in seconds: from what a daemon on an idle host takes to more
/// than the usual deadline.
const CHECK_BOUNDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Outcomes that alerts watch, besides the verdicts.
const WATCHED: [&str; 3] = ["UNAVAILABLE", "FAILED_OPEN", "MISCONFIGURED"];

type Labels<const N: usize> = [(&'static str, String); N];

/// The metrics of all gateways. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct CompanionMetrics {
    requests: Family<Labels<2>, Counter>,
    failed_open: Family<Labels<2>, Counter>,
    check_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    connections: Family<Labels<1>, Gauge>,
    connections_max: Family<Labels<1>, Gauge>,
    accepted_connections: Family<Labels<1>, Counter>,
    repeated_checks: Family<Labels<1>, Counter>,
    unremembered_checks: Family<Labels<1>, Counter>,
    settlements: Family<Labels<2>, Counter>,
}

impl Default for CompanionMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            failed_open: Family::default(),
            check_duration: Family::new_with_constructor(|| Histogram::new(CHECK_BOUNDS)),
            connections: Family::default(),
            connections_max: Family::default(),
            accepted_connections: Family::default(),
            repeated_checks: Family::default(),
            unremembered_checks: Family::default(),
            settlements: Family::default(),
        }
    }
}

impl CompanionMetrics {
    /// Adds all metrics to a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        let version: Family<Labels<1>, Gauge> = Family::default();
        version.get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        registry.register("keyward_http_build_info", "The version of keyward http", version);
        registry.register(
            "keyward_http_requests",
            "Subrequests of gateways, by the verdict or what came before it",
            self.requests.clone(),
        );
        registry.register(
            "keyward_http_failed_open",
            "Requests that were let through without a check, because their route fails open",
            self.failed_open.clone(),
        );
        registry.register(
            "keyward_http_check_duration_seconds",
            "Time from the headers of a subrequest to its reply",
            self.check_duration.clone(),
        );
        registry.register(
            "keyward_http_connections",
            "Open connections of gateways",
            self.connections.clone(),
        );
        registry.register(
            "keyward_http_connections_max",
            "Maximum number of open connections",
            self.connections_max.clone(),
        );
        registry.register(
            "keyward_http_accepted_connections",
            "Connections of gateways that were accepted",
            self.accepted_connections.clone(),
        );
        registry.register(
            "keyward_http_repeated_checks",
            "Checks that were not charged, because they repeated one that was",
            self.repeated_checks.clone(),
        );
        registry.register(
            "keyward_http_unremembered_checks",
            "Checks whose repetition would be charged, because there are too many request ids",
            self.unremembered_checks.clone(),
        );
        registry.register(
            "keyward_http_settlements",
            "Requests to settle, by the verdict or what came before it",
            self.settlements.clone(),
        );
    }

    /// The counters of checks that `gateway` repeats.
    pub(crate) fn repetitions(&self, gateway: &str) -> RepetitionMetrics {
        let labels = [("gateway", gateway.to_owned())];
        RepetitionMetrics {
            repeated: self.repeated_checks.get_or_create_owned(&labels),
            unremembered: self.unremembered_checks.get_or_create_owned(&labels),
        }
    }

    /// Counts a request to settle.
    pub(crate) fn count_settlement(&self, operation: &'static str, outcome: &'static str) {
        let labels = [("operation", operation.to_owned()), ("outcome", outcome.to_owned())];
        self.settlements.get_or_create(&labels).inc();
    }

    /// The limit of the connections of `gateway`.
    pub(crate) fn set_connections_max(&self, gateway: &str, max: usize) {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.connections_max.get_or_create(&[("gateway", gateway.to_owned())]).set(max);
    }
}

/// The counters of the checks that one gateway repeats. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RepetitionMetrics {
    pub(crate) repeated: Counter,
    pub(crate) unremembered: Counter,
}

/// The metrics of one gateway, as one thread counts them.
pub(crate) struct GatewayMetrics {
    gateway: String,
    all: CompanionMetrics,
    /// The counters that this thread has used, so that counting needs no labels.
    requests: RefCell<HashMap<&'static str, Counter>>,
    check_duration: Histogram,
    connections: Gauge,
    accepted_connections: Counter,
}

impl GatewayMetrics {
    /// The metrics of `gateway`. `open_routes` are the names of routes that fail open.
    pub(crate) fn new<'r>(
        gateway: &str,
        open_routes: impl Iterator<Item = &'r str>,
        all: CompanionMetrics,
    ) -> Self {
        let labels = [("gateway", gateway.to_owned())];
        let metrics = Self {
            gateway: gateway.to_owned(),
            requests: RefCell::default(),
            check_duration: all.check_duration.get_or_create_owned(&labels),
            connections: all.connections.get_or_create_owned(&labels),
            accepted_connections: all.accepted_connections.get_or_create_owned(&labels),
            all,
        };
        // A counter that appears with its first event has no rate for that event.
        for name in Verdict::all().map(Verdict::name).chain(WATCHED) {
            metrics.requests(name);
        }
        for route in open_routes {
            metrics.failed_open(route);
        }
        metrics
    }

    /// Counts a subrequest. `route` is the name of the route that matched.
    pub(crate) fn count(&self, outcome: &Outcome, route: Option<&str>, took: Duration) {
        self.requests(outcome.name()).inc();
        if matches!(outcome, Outcome::FailedOpen(_)) {
            self.failed_open(route.unwrap_or_default()).inc();
        }
        self.check_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn connection_opened(&self) {
        self.accepted_connections.inc();
        self.connections.inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.dec();
    }

    fn requests(&self, outcome: &'static str) -> Counter {
        let create = || {
            let labels = [("gateway", self.gateway.clone()), ("outcome", outcome.to_owned())];
            self.all.requests.get_or_create_owned(&labels)
        };
        self.requests.borrow_mut().entry(outcome).or_insert_with(create).clone()
    }

    fn failed_open(&self, route: &str) -> Counter {
        let labels = [("gateway", self.gateway.clone()), ("route", route.to_owned())];
        self.all.failed_open.get_or_create_owned(&labels)
    }
}
