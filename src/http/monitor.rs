//! Answers a monitoring system: metrics, and the health of the companion and the daemon.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use keyward_admin::message::{Command, Metrics};
use keyward_admin::{CommandError, send_command_within};
use keyward_settings::SocketPath;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::metrics::{CompanionMetrics, DaemonMetrics, Format, encode};
use crate::server::Handler;

/// How long the daemon may take to report its metrics. Prometheus waits ten seconds by default.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers the requests of one listener.
pub(crate) struct Monitor {
    companion: CompanionMetrics,
    admin: SocketPath,
    /// One report at a time: any number of requests is one connection to the daemon.
    reporting: Arc<Mutex<()>>,
    /// Why the daemon's metrics could not be read last.
    problem: RefCell<Option<String>>,
}

impl Monitor {
    /// A monitor that asks the daemon at the admin socket `admin`.
    pub(crate) fn new(companion: CompanionMetrics, admin: SocketPath) -> Self {
        Self { companion, admin, reporting: Arc::default(), problem: RefCell::default() }
    }

    async fn metrics(&self, headers: &HeaderMap) -> Response<Bytes> {
        let format = Format::preferred(headers);
        let daemon = DaemonMetrics(self.report().await.ok());
        match encode(&self.companion, daemon, format) {
            Ok(text) => reply(StatusCode::OK, format.content_type(), text),
            // A String takes everything.
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn readiness(&self) -> Response<Bytes> {
        let problem = match self.report().await {
            Ok(metrics) if metrics.ready => return plain(StatusCode::OK, "ready\n"),
            Ok(metrics) if metrics.stale => {
                "the source of the daemon's keys is older than max_staleness".to_owned()
            }
            Ok(_) => "the daemon has no keys".to_owned(),
            Err(problem) => problem,
        };
        plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {problem}\n"))
    }

    /// The daemon's metrics, or why there are none. A change of that is logged.
    async fn report(&self) -> Result<Metrics, String> {
        let (reporting, admin) = (Arc::clone(&self.reporting), self.admin.clone());
        let report = async {
            let turn = reporting.lock_owned().await;
            let report = spawn_blocking(move || {
                // Held until the daemon has answered, even if this request has ended.
                let _turn = turn;
                send_command_within(admin.as_path(), &Command::Metrics, REPORT_TIMEOUT)
            });
            report.await.map_err(|_| "the process is stopping".to_owned())?.map_err(describe)
        };
        let report = timeout(REPORT_TIMEOUT, report).await.unwrap_or_else(|_| {
            Err(format!("the daemon did not report its metrics within {REPORT_TIMEOUT:?}"))
        });
        let metrics =
            report.and_then(|reply| reply.metrics.ok_or("the daemon reports no metrics".to_owned()));
        self.log(metrics.as_ref().err());
        metrics
    }

    fn log(&self, problem: Option<&String>) {
        let before = self.problem.replace(problem.cloned());
        match (before.as_ref(), problem) {
            (before, Some(problem)) if before != Some(problem) => {
                warn!(problem, "the daemon's metrics cannot be read");
            }
            (Some(_), None) => info!("the daemon's metrics can be read again"),
            _ => {}
        }
    }
}

/// What an operator has to know about an error.
fn describe(error: CommandError) -> String {
    match error {
        CommandError::Refused(refusal) => format!("the daemon refused to report its metrics: {refusal}"),
        error => error.to_string(),
    }
}

impl Handler for Monitor {
    async fn handle(&self, request: Request<Incoming>) -> Response<Bytes> {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
            return plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut reply = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are allowed\n");
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        match path {
            "/metrics" => self.metrics(request.headers()).await,
            "/readyz" => self.readiness().await,
            _ => plain(StatusCode::OK, "ok\n"),
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Bytes> {
    reply(status, "text/plain; charset=utf-8", text)
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut reply = Response::new(body.into());
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
