//! Answers the subrequests of one gateway, on one thread.

use std::cell::Cell;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use keyward_client::Client;
use keyward_service::log_limit::LogLimit;
use tracing::warn;

use crate::check::{CheckRules, Checked};
use crate::outcome::{Outcome, Refusal};
use crate::server::{Handler, Peer};

/// Checks requests, and logs what an operator has to know about.
pub(crate) struct GatewayHandler {
    name: String,
    rules: CheckRules,
    client: Client,
    failed_open: LimitedLog,
    unavailable: LimitedLog,
    misconfigured: LimitedLog,
}

/// A line that is logged at most once a second, with the number of times that it stands for.
#[derive(Default)]
struct LimitedLog {
    limit: LogLimit,
    count: Cell<u64>,
}

impl GatewayHandler {
    pub(crate) fn new(name: String, rules: CheckRules, client: Client) -> Self {
        Self {
            name,
            rules,
            client,
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
}

impl Handler for GatewayHandler {
    async fn handle(&self, request: Request<Incoming>, _: Peer) -> Response<Bytes> {
        // Dropping the body leaves it unread.
        let (parts, _) = request.into_parts();
        let checked = self.rules.check(&self.client, &parts).await;
        self.log(&checked);
        self.rules.reply(&checked, &parts.headers).map(Bytes::from)
    }
}
