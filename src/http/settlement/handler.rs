//! Answers settlements, on one thread.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use keyward_client::{Client, Verdict};
use tracing::warn;

use super::SettlementRules;
use super::amounts::Amounts;
use super::reply::Settled;
use super::request::{RequestError, operation, read};
use super::settle::settle;
use crate::handler::{Handler, Peer};
use crate::limited_log::LimitedLog;
use crate::metrics::CompanionMetrics;
use crate::outcome::{Outcome, Refusal};

/// Settles, and logs what an operator has to know about.
pub(crate) struct SettlementHandler {
    rules: SettlementRules,
    client: Client,
    metrics: CompanionMetrics,
    refused_peers: LimitedLog,
    unavailable: LimitedLog,
    misconfigured: LimitedLog,
}

impl SettlementHandler {
    pub(crate) fn new(rules: SettlementRules, client: Client, metrics: CompanionMetrics) -> Self {
        Self {
            rules,
            client,
            metrics,
            refused_peers: LimitedLog::default(),
            unavailable: LimitedLog::default(),
            misconfigured: LimitedLog::default(),
        }
    }

    async fn settle(&self, peer: Option<Peer>, request: Request<Incoming>) -> Settled {
        if !self.expects(peer) {
            return Settled::PeerRefused;
        }
        self.settle_allowed(request).await.unwrap_or_else(Settled::Invalid)
    }

    async fn settle_allowed(&self, request: Request<Incoming>) -> Result<Settled, RequestError> {
        let (parts, body) = request.into_parts();
        let operation = operation(&parts)?;
        let credential = match self.rules.credentials.find(&parts.headers, parts.uri.query()) {
            Ok(credential) => credential,
            Err(error) => return Ok(Settled::Asked(operation, Outcome::Refused(error.into()))),
        };
        let amounts = Amounts::parse(&read(body).await?)?;
        let outcome = settle(&self.client, operation, &credential, &amounts).await;
        Ok(Settled::Asked(operation, outcome))
    }

    fn log(&self, peer: Option<Peer>, settled: &Settled) {
        let Peer { uid, pid } = peer.unwrap_or_default();
        match settled {
            Settled::PeerRefused => self.refused_peers.log(|requests| {
                warn!(uid, pid, requests, "refused: this user is not in settlement.uids");
            }),
            Settled::Asked(operation, Outcome::Unavailable(reason)) => self.unavailable.log(|requests| {
                let operation = operation.name();
                warn!(operation, requests, %reason, "not settled: keyward cannot be asked");
            }),
            Settled::Asked(operation, Outcome::Refused(reason @ Refusal::Invalid(_))) => {
                self.misconfigured.log(|requests| {
                    let operation = operation.name();
                    warn!(uid, operation, requests, %reason, "not settled: keyward refuses such requests");
                });
            }
            Settled::Asked(operation, Outcome::Denied(decision))
                if decision.verdict() == Verdict::UnknownLimit =>
            {
                self.misconfigured.log(|requests| {
                    let operation = operation.name();
                    warn!(
                        uid,
                        operation, requests, "not settled: a cost names a limit that no plan and no key has"
                    );
                });
            }
            _ => {}
        }
    }
}

impl Handler for SettlementHandler {
    type Body = Full<Bytes>;

    async fn handle(&self, peer: Option<Peer>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let settled = self.settle(peer, request).await;
        self.log(peer, &settled);
        self.metrics.count_settlement(settled.operation_name(), settled.name());
        settled.reply(&self.rules.credentials).map(Full::from)
    }

    fn expects(&self, peer: Option<Peer>) -> bool {
        peer.is_some_and(|peer| self.rules.uids.contains(&peer.uid))
    }

    /// Logs the requests that no line stands for yet.
    fn each_second(&self) {
        self.refused_peers.flush(|requests| {
            warn!(requests, "refused: more requests, of users that are not in settlement.uids");
        });
        self.unavailable.flush(|requests| {
            warn!(requests, "not settled: more requests, because keyward cannot be asked");
        });
        self.misconfigured.flush(|requests| {
            warn!(requests, "not settled: more requests, because of the configuration");
        });
    }
}
