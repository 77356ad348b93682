//! Answers the subrequests of one gateway, on one thread.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use keyward_client::Client;
use keyward_service::log_limit::LogLimit;
use tracing::warn;

use crate::charge_once::ChargedRequests;
use crate::check::{CheckRules, Checked};
use crate::metrics::{CompanionMetrics, GatewayMetrics};
use crate::outcome::{Outcome, Refusal};
use crate::server::Handler;

/// Checks requests, and logs what an operator has to know about.
pub(crate) struct GatewayHandler {
    name: String,
    rules: CheckRules,
    client: Client,
    charged: Option<Arc<ChargedRequests>>,
    metrics: GatewayMetrics,
    failed_open: LimitedLog,
    unavailable: LimitedLog,
    misconfigured: LimitedLog,
}

/// A line that is logged at most once a second, with the number of requests that it stands for.
#[derive(Default)]
struct LimitedLog {
    limit: LogLimit,
    count: Cell<u64>,
}

impl GatewayHandler {
    /// `charged` are the charged requests of the gateway, which its handlers on all threads share.
    pub(crate) fn new(
        name: String,
        rules: CheckRules,
        client: Client,
        charged: Option<Arc<ChargedRequests>>,
        metrics: CompanionMetrics,
    ) -> Self {
        let metrics = GatewayMetrics::new(&name, rules.routes.fail_open_names(), metrics);
        Self {
            name,
            rules,
            client,
            charged,
            metrics,
            failed_open: LimitedLog::default(),
            unavailable: LimitedLog::default(),
            misconfigured: LimitedLog::default(),
        }
    }

    fn log(&self, checked: &Checked<'_>) {
        let gateway = self.name.as_str();
        let route = checked.route.map(|route| route.name.as_str());
        match &checked.outcome {
            Outcome::FailedOpen(reason) => self.failed_open.log(|requests| {
                warn!(gateway, route, requests, %reason, "LET THROUGH WITHOUT A CHECK: the route fails open");
            }),
            Outcome::Unavailable(reason) => self.unavailable.log(|requests| {
                warn!(gateway, route, requests, %reason, "refused: keys cannot be checked");
            }),
            Outcome::Refused(reason @ (Refusal::Original(_) | Refusal::Hint(_) | Refusal::Invalid(_))) => {
                self.misconfigured.log(|requests| {
                    warn!(gateway, route, requests, %reason, "refused: the gateway or the route is not configured correctly");
                });
            }
            Outcome::Denied(decision) if decision.verdict() == keyward_client::Verdict::UnknownLimit => {
                self.misconfigured.log(|requests| {
                    warn!(
                        gateway,
                        route, requests, "refused: a cost names a limit that no plan and no key has"
                    );
                });
            }
            _ => {}
        }
    }
}

impl LimitedLog {
    fn log(&self, line: impl FnOnce(u64)) {
        self.count.set(self.count.get() + 1);
        if self.limit.may_log() {
            line(self.count.take());
        }
    }

    fn flush(&self, line: impl FnOnce(u64)) {
        if self.count.get() > 0 {
            line(self.count.take());
        }
    }
}

impl Handler for GatewayHandler {
    async fn handle(&self, request: Request<Incoming>) -> Response<Bytes> {
        let start = Instant::now();
        // Dropping the body leaves it unread.
        let (parts, _) = request.into_parts();
        let checked = self.rules.check(&self.client, self.charged.as_ref(), &parts).await;
        self.log(&checked);
        let reply = self.rules.reply(&checked, &parts.headers).map(Bytes::from);
        let route = checked.route.map(|route| route.name.as_str());
        self.metrics.count(&checked.outcome, route, start.elapsed());
        reply
    }

    fn connection_opened(&self) {
        self.metrics.connection_opened();
    }

    fn connection_closed(&self) {
        self.metrics.connection_closed();
    }

    /// Logs the requests that no line stands for yet.
    fn each_second(&self) {
        let gateway = self.name.as_str();
        self.failed_open.flush(|requests| {
            warn!(gateway, requests, "LET THROUGH WITHOUT A CHECK: more requests, on routes that fail open");
        });
        self.unavailable.flush(|requests| {
            warn!(gateway, requests, "refused: more requests, because keys cannot be checked");
        });
        self.misconfigured.flush(|requests| {
            warn!(gateway, requests, "refused: more requests, because of the configuration");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_counted_in_one_line() {
        let log = LimitedLog::default();
        let lines = Cell::new((0, 0));
        let line = |requests| {
            let (count, total) = lines.get();
            lines.set((count + 1, total + requests));
        };
        (0..1000).for_each(|_| log.log(line));
        log.flush(line);
        log.flush(line);
        let (count, total) = lines.get();
        assert_eq!(total, 1000);
        assert!((2..100).contains(&count), "{count} lines");
    }
}
