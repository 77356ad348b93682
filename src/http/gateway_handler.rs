//! Answers the subrequests of one gateway, on one thread.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use keyward_client::Client;
use tracing::warn;

use crate::charge_once::ChargedRequests;
use crate::check::{CheckRules, Checked};
use crate::limited_log::LimitedLog;
use crate::metrics::{CompanionMetrics, GatewayMetrics};
use crate::outcome::{Outcome, Refusal};
use crate::server::{Handler, Peer};

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

impl Handler for GatewayHandler {
    async fn handle(&self, _: Option<Peer>, request: Request<Incoming>) -> Response<Bytes> {
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
