//! Answers a monitoring system: metrics, and the health of the companion and the daemon.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use keyward_admin::message::{Command, Metrics};
use keyward_admin::{CommandError, send_command_within};
use keyward_settings::SocketPath;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::handler::{Handler, Peer};
use crate::metrics::{CompanionMetrics, DaemonMetrics, Format, encode};

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
    type Body = Full<Bytes>;

    async fn handle(&self, _: Option<Peer>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.respond(&request).await.map(Full::new)
    }
}

impl Monitor {
    async fn respond(&self, request: &Request<Incoming>) -> Response<Bytes> {
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener as AdminListener;
    use std::path::{Path, PathBuf};
    use std::thread;

    use keyward_admin::message::Reply;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::watch;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::limits::{MIN_HEADER_BYTES, ServerLimits};
    use crate::metrics::example::report;
    use crate::server::{Listener, serve};

    /// A daemon that answers each command with `reply`, one command for each connection.
    fn start_daemon(path: &Path, reply: String) {
        let listener = AdminListener::bind(path).expect("binds");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).expect("a command");
                assert_eq!(line, "{\"command\":\"metrics\"}\n");
                stream.write_all(reply.as_bytes()).expect("writes");
            }
        });
    }

    /// Serves a monitor of the daemon at `admin`, and returns its reply to `request`, a first line.
    fn reply_to(request: &str, admin: &Path) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path: PathBuf = directory.path().join("m.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let listener = Listener::Unix(UnixListener::bind(&path).expect("binds"));
            let admin = SocketPath::new(admin).expect("a path");
            let monitor = Monitor::new(CompanionMetrics::default(), admin);
            let long = Duration::from_secs(60);
            let limits = ServerLimits {
                max_connections: 2,
                max_header_bytes: MIN_HEADER_BYTES,
                idle_timeout: long,
                drain_timeout: long,
            };
            let (_stop, stopping) = watch::channel(false);
            spawn_local(serve(listener, limits, std::rc::Rc::new(monitor), stopping));
            let mut client = UnixStream::connect(&path).await.expect("connects");
            let request = format!("{request} HTTP/1.1\r\nconnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.expect("writes");
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.expect("reads");
            reply
        })
    }

    #[test]
    fn monitor_answers_its_paths_only() {
        let nothing = Path::new("/nonexistent/admin.sock");
        for (request, status) in [
            ("GET /healthz", "200 OK"),
            ("HEAD /healthz", "200 OK"),
            ("GET /metrics", "200 OK"),
            ("POST /metrics", "405 Method Not Allowed"),
            ("GET /", "404 Not Found"),
            ("GET /metrics/", "404 Not Found"),
        ] {
            let reply = reply_to(request, nothing);
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {reply}");
        }
        assert!(reply_to("GET /metrics", nothing).contains("\nkeyward_up 0.0\n"));
    }

    #[test]
    fn readiness_is_the_daemons() {
        let nothing = Path::new("/nonexistent/admin.sock");
        let reply = reply_to("GET /readyz", nothing);
        assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("is the daemon running?"), "{reply}");
        let directory = tempfile::tempdir().expect("a directory");
        let reporting = |metrics: Metrics| {
            let reply = serde_json::to_string(&Reply::from(metrics)).expect("JSON");
            format!("{reply}\n")
        };
        let without_keys = || Metrics { ready: false, ..report() };
        for (number, (answer, status, expected)) in [
            (reporting(report()), 200, "\r\n\r\nready\n"),
            (reporting(without_keys()), 503, "the daemon has no keys"),
            (reporting(Metrics { stale: true, ..without_keys() }), 503, "older than max_staleness"),
            (
                "{\"ok\":false,\"error\":\"not permitted\"}\n".to_owned(),
                503,
                "refused to report its metrics: not permitted",
            ),
            ("{\"ok\":true}\n".to_owned(), 503, "the daemon reports no metrics"),
        ]
        .into_iter()
        .enumerate()
        {
            let path = directory.path().join(number.to_string());
            start_daemon(&path, answer);
            let reply = reply_to("GET /readyz", &path);
            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")) && reply.contains(expected), "{reply}");
        }
    }
}
