//! Answers the checks of one gateway, on one thread.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use keyward_client::Client;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::warn;

use crate::charge_once::ChargedRequests;
use crate::check::{CheckRules, Checked};
use crate::envoy_grpc::call::CallLimits;
use crate::envoy_grpc::{CheckRequest, CheckResponse, attributes, call, response};
use crate::handler::{Handler, Peer, Protocol};
use crate::limited_log::LimitedLog;
use crate::limits::ServerLimits;
use crate::metrics::{CompanionMetrics, GatewayMetrics};
use crate::original::{Attributes, OriginalError};
use crate::outcome::{Outcome, Refusal, Unavailable};

/// Bytes of a message of gRPC for each byte that the headers of a request may have. A message states them,
/// and what the gateway knows besides.
const MESSAGE_FACTOR: usize = 2;

/// Checks requests, and logs what an operator has to know about.
pub(crate) struct GatewayHandler {
    name: String,
    rules: CheckRules,
    client: Client,
    charged: Option<Arc<ChargedRequests>>,
    limits: ServerLimits,
    /// One permit for each further call of gRPC that may be in progress. With HTTP/1.1, the number of
    /// connections is the bound.
    calls: Semaphore,
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
        limits: ServerLimits,
        metrics: CompanionMetrics,
    ) -> Self {
        let metrics = GatewayMetrics::new(&name, rules.routes.fail_open_names(), metrics);
        Self {
            name,
            rules,
            client,
            charged,
            limits,
            calls: Semaphore::new(limits.max_connections),
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
        let checked = if header_bytes(parts) > self.limits.max_header_bytes {
            Checked::refused(Refusal::HeadersTooLarge)
        } else {
            self.rules.check(&self.client, self.charged.as_ref(), parts).await
        };
        self.record(&checked, start);
        checked
    }

    /// Checks the request that a message is about.
    async fn check_message(&self, message: CheckRequest) -> CheckResponse {
        match attributes::read(message) {
            Ok(parts) => response::of(&self.rules, &self.check(&parts).await, &parts),
            Err(refusal) => {
                let (parts, ()) = Request::new(()).into_parts();
                response::of(&self.rules, &self.refuse(refusal), &parts)
            }
        }
    }

    /// Answers a call of gRPC. If too many are in progress, it is refused at once: calls that wait would keep
    /// the rest of those in progress on their connection from being received.
    async fn answer_call(&self, call: Request<Incoming>) -> Response<tonic::body::Body> {
        let Ok(_permit) = self.calls.try_acquire() else {
            let reason = Unavailable::Overloaded(self.limits.max_connections);
            let status = Status::unavailable(reason.to_string());
            self.record(&Checked::undecided(Outcome::Unavailable(reason)), Instant::now());
            return status.into_http();
        };
        let limits = CallLimits {
            message_bytes: self.limits.max_header_bytes.saturating_mul(MESSAGE_FACTOR),
            arrival: self.limits.idle_timeout,
        };
        let check = |message| self.check_message(message);
        call::answer(call, limits, check).await.unwrap_or_else(|status| {
            self.refuse(OriginalError::Call(status.message().to_owned()).into());
            status.into_http()
        })
    }

    /// Refuses a request that cannot be read.
    fn refuse(&self, refusal: Refusal) -> Checked<'_> {
        let checked = Checked::refused(refusal);
        self.record(&checked, Instant::now());
        checked
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
            Protocol::Http2 => self.answer_call(request).await.map(Either::Right),
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use hyper::body::Frame;
    use hyper::client::conn::http2::{self, SendRequest};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::duplex;
    use tokio::sync::watch;
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::sleep;

    use super::*;
    use crate::connection::Connection;
    use crate::credential::CredentialPlaces;
    use crate::gateway::Gateway;
    use crate::hint::{HintPlace, Hints};
    use crate::identity::IdentityHeaders;
    use crate::limits::UNREACHED;
    use crate::rate_limit::RateLimitHeaders;
    use crate::route::Routes;

    /// A body that has an empty message, or does not end.
    struct Body {
        ends: bool,
        is_sent: bool,
    }

    impl hyper::body::Body for Body {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match (self.is_sent, self.ends) {
                (false, _) => {
                    self.is_sent = true;
                    Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 5])))))
                }
                (true, true) => Poll::Ready(None),
                (true, false) => Poll::Pending,
            }
        }
    }

    fn handler() -> Rc<GatewayHandler> {
        let rules = CheckRules {
            gateway: Gateway::EnvoyGrpc,
            path_prefix: String::new(),
            credentials: CredentialPlaces::default(),
            client_address: None,
            hints: Hints { place: HintPlace::Context, kinds: Vec::new() },
            request_id: None,
            routes: Routes::new(Vec::new()),
            identity: IdentityHeaders::new(Vec::new()),
            rate_limits: RateLimitHeaders::default(),
        };
        let (client, metrics) = (Client::new("/nonexistent"), CompanionMetrics::default());
        Rc::new(GatewayHandler::new("g".to_owned(), rules, client, None, UNREACHED, metrics))
    }

    async fn connect(handler: &Rc<GatewayHandler>, stop: &watch::Sender<bool>) -> SendRequest<Body> {
        let (own, other) = duplex(1 << 10);
        let handler = Rc::clone(handler);
        let connection = Connection { peer: None, limits: UNREACHED, handler, stop: stop.subscribe() };
        spawn_local(connection.serve(other));
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(own)).await;
        let (sender, connection) = handshake.expect("a handshake");
        spawn_local(async { _ = connection.await });
        sender
    }

    fn call(ends: bool) -> Request<Body> {
        let uri = "http://h/envoy.service.auth.v3.Authorization/Check";
        let body = Body { ends, is_sent: false };
        Request::builder().method("POST").uri(uri).body(body).expect("a request")
    }

    /// It is refused at once. Waiting, it would keep those in progress from being received.
    #[test]
    fn call_beyond_the_limit_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (handler, (stop, _)) = (handler(), watch::channel(false));
            let permits = handler.calls.available_permits();
            let mut endless = connect(&handler, &stop).await;
            let calls: Vec<_> = (0..UNREACHED.max_connections)
                .map(|_| spawn_local(endless.send_request(call(false))))
                .collect();
            while handler.calls.available_permits() + UNREACHED.max_connections > permits {
                sleep(Duration::from_millis(1)).await;
            }
            let mut other = connect(&handler, &stop).await;
            let status = async |sender: &mut SendRequest<Body>| {
                let reply = sender.send_request(call(true)).await.expect("a reply");
                reply.headers().get("grpc-status").map(|status| status.as_bytes().to_vec())
            };
            assert_eq!(status(&mut other).await, Some(b"14".to_vec()));
            calls.iter().for_each(|call| call.abort());
            while handler.calls.available_permits() < permits {
                sleep(Duration::from_millis(1)).await;
            }
            // The status of a call that was answered follows its message.
            assert_eq!(status(&mut other).await, None);
        });
    }
}
