//! Answers the subrequests of one gateway, on one thread.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::HeaderMap;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use keyward_client::Client;
use tracing::warn;

use crate::charge_once::ChargedRequests;
use crate::check::{CheckRules, Checked};
use crate::connection::Protocol;
use crate::envoy_grpc::attributes::{self, Attributes};
use crate::envoy_grpc::{CheckRequest, CheckResponse, call, response};
use crate::limited_log::LimitedLog;
use crate::metrics::{CompanionMetrics, GatewayMetrics};
use crate::outcome::{Outcome, Refusal};
use crate::server::{Handler, Peer};

/// Bytes of a message of gRPC for each byte that the headers of a request may have. A message states them,
/// and what the gateway knows besides.
const MESSAGE_FACTOR: usize = 2;

/// Checks requests, and logs what an operator has to know about.
pub(crate) struct GatewayHandler {
    name: String,
    rules: CheckRules,
    client: Client,
    charged: Option<Arc<ChargedRequests>>,
    max_header_bytes: usize,
    metrics: GatewayMetrics,
    failed_open: LimitedLog,
    unavailable: LimitedLog,
    misconfigured: LimitedLog,
}

impl GatewayHandler {
    /// `charged` are the charged requests of the gateway, which its handlers on all threads share. The
    /// headers of a request have at most `max_header_bytes`.
    pub(crate) fn new(
        name: String,
        rules: CheckRules,
        client: Client,
        charged: Option<Arc<ChargedRequests>>,
        max_header_bytes: usize,
        metrics: CompanionMetrics,
    ) -> Self {
        let metrics = GatewayMetrics::new(&name, rules.routes.fail_open_names(), metrics);
        Self {
            name,
            rules,
            client,
            charged,
            max_header_bytes,
            metrics,
            failed_open: LimitedLog::default(),
            unavailable: LimitedLog::default(),
            misconfigured: LimitedLog::default(),
        }
    }

    /// Checks the request that a subrequest is about.
    async fn check(&self, parts: &Parts) -> Checked<'_> {
        let start = Instant::now();
        // hyper refuses only what does not fit into its buffer, which may be twice as much.
        let checked = if header_bytes(parts) > self.max_header_bytes {
            Checked::refused(Refusal::HeadersTooLarge)
        } else {
            self.rules.check(&self.client, self.charged.as_ref(), parts).await
        };
        self.record(&checked, start);
        checked
    }

    /// Checks the request that a message is about.
    async fn check_message(&self, message: CheckRequest) -> CheckResponse {
        let start = Instant::now();
        match attributes::read(message) {
            Ok(parts) => response::of(&self.rules, &self.check(&parts).await, &parts.headers),
            Err(refusal) => {
                let checked = Checked::refused(refusal);
                self.record(&checked, start);
                response::of(&self.rules, &checked, &HeaderMap::new())
            }
        }
    }

    /// Counts a check, and logs it if an operator has to know about it.
    fn record(&self, checked: &Checked<'_>, start: Instant) {
        self.log(checked);
        let route = checked.route.map(|route| route.name.as_str());
        self.metrics.count(&checked.outcome, route, start.elapsed());
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

/// Bytes of the target and the headers of a request, with those that separate them.
fn header_bytes(parts: &Parts) -> usize {
    let own_target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let stated_target = parts.extensions.get().map_or(0, |stated: &Attributes| stated.target.len());
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    own_target + stated_target + headers.sum::<usize>()
}

impl Handler for GatewayHandler {
    type Body = Either<Full<Bytes>, tonic::body::Body>;

    async fn handle(&self, _: Option<Peer>, request: Request<Incoming>) -> Response<Self::Body> {
        match self.protocol() {
            Protocol::Http1 => {
                // Dropping the body leaves it unread.
                let (parts, _) = request.into_parts();
                let checked = self.check(&parts).await;
                self.rules.reply(&checked, &parts.headers).map(|body| Either::Left(Full::from(body)))
            }
            Protocol::Http2 => {
                let check = |message| self.check_message(message);
                let max_message = self.max_header_bytes.saturating_mul(MESSAGE_FACTOR);
                call::answer(request, max_message, check).await.map(Either::Right)
            }
        }
    }

    fn protocol(&self) -> Protocol {
        self.rules.gateway.protocol()
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
