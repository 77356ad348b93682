//! Serving one listener, with a bound on its connections.
//!
//! Bodies are left to the handler. hyper closes a connection whose request has more of a body than was
//! read or received already.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use keyward_service::log_limit::LogLimit;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tracing::warn;

use crate::connection::{Connection, stopped};
use crate::handler::{Handler, Peer};
use crate::limits::ServerLimits;

/// Pause after a connection could not be accepted, usually for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Idle timeout of a peer that is refused whatever it requests. It must not keep others from connecting.
const UNEXPECTED_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP socket, on the loopback interface.
    Tcp(TcpListener),
}

/// Serves connections until `stop` is true or its sender is gone, and then lets the requests in
/// progress end. Has to run in a [`LocalRuntime`](tokio::runtime::LocalRuntime).
pub async fn serve(
    listener: Listener,
    limits: ServerLimits,
    handler: Rc<impl Handler>,
    stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut stopping = pin!(stopped(stop.clone()));
    let log_limit = LogLimit::default();
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = &mut stopping => break,
            Some(_) = connections.join_next() => {}
            _ = seconds.tick() => handler.each_second(),
            accepted = listener.accept(), if connections.len() < limits.max_connections => match accepted {
                Ok(accepted) => {
                    let handler = Rc::clone(&handler);
                    let connection = Connection { peer: None, limits, handler, stop: stop.clone() };
                    connections.spawn_local(accepted.serve(connection));
                }
                Err(error) => {
                    if log_limit.may_log() {
                        warn!(%error, "a connection cannot be accepted");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // No connection is accepted and then reset.
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain_timeout, drained).await.is_err() {
        warn!("connections that did not end in time were closed");
    }
    handler.each_second();
}

enum Accepted {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // A reply is one small write.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

impl Accepted {
    async fn serve(self, mut connection: Connection<impl Handler>) {
        let _open = OpenConnection::new(Rc::clone(&connection.handler));
        match self {
            Self::Unix(stream) => {
                let credentials = stream.peer_cred().ok();
                connection.peer = credentials.map(|peer| Peer { uid: peer.uid(), pid: peer.pid() });
                if !connection.handler.expects(connection.peer) {
                    let idle_timeout = &mut connection.limits.idle_timeout;
                    *idle_timeout = UNEXPECTED_IDLE_TIMEOUT.min(*idle_timeout);
                }
                connection.serve(stream).await;
            }
            Self::Tcp(stream) => connection.serve(stream).await,
        }
    }
}

/// A connection, as its handler counts it. It ends on drop, because the server may end before it.
struct OpenConnection<H: Handler>(Rc<H>);

impl<H: Handler> OpenConnection<H> {
    fn new(handler: Rc<H>) -> Self {
        handler.connection_opened();
        Self(handler)
    }
}

impl<H: Handler> Drop for OpenConnection<H> {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::{Path, PathBuf};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::{JoinHandle, LocalSet, spawn_local};

    use super::*;
    use crate::limits::{MAX_HEADERS, MIN_HEADER_BYTES, UNREACHED};

    const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK";
    /// Answers with the path of the request; `/slow` only when it is allowed to end.
    #[derive(Default)]
    struct Echo {
        requests: Cell<usize>,
        may_end: tokio::sync::Notify,
    }

    impl Handler for Echo {
        type Body = Full<Bytes>;

        async fn handle(&self, _: Option<Peer>, request: Request<Incoming>) -> Response<Full<Bytes>> {
            self.requests.set(self.requests.get() + 1);
            if request.uri().path() == "/slow" {
                self.may_end.notified().await;
            }
            Response::new(Full::new(Bytes::copy_from_slice(request.uri().path().as_bytes())))
        }
    }

    struct Server {
        path: PathBuf,
        echo: Rc<Echo>,
        stop: watch::Sender<bool>,
        ended: JoinHandle<()>,
        _directory: tempfile::TempDir,
    }

    fn start(limits: ServerLimits) -> Server {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("http.sock");
        let listener = Listener::Unix(UnixListener::bind(&path).expect("binds"));
        let echo = Rc::new(Echo::default());
        let (stop, stopping) = watch::channel(false);
        let ended = spawn_local(serve(listener, limits, Rc::clone(&echo), stopping));
        Server { path, echo, stop, ended, _directory: directory }
    }

    async fn connect(path: &Path) -> UnixStream {
        UnixStream::connect(path).await.expect("connects")
    }

    /// The next reply, which has to be shorter than a read.
    async fn reply(stream: &mut UnixStream) -> String {
        let mut bytes = [0; 4096];
        let length =
            timeout(UNREACHED.idle_timeout, stream.read(&mut bytes)).await.expect("in time").expect("reads");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// Everything up to the end of the connection.
    async fn rest(stream: &mut UnixStream) -> String {
        let mut bytes = Vec::new();
        // A connection that is closed before all of a request was read may be reset.
        let _ = timeout(UNREACHED.idle_timeout, stream.read_to_end(&mut bytes)).await.expect("in time");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn connection_carries_several_requests() {
        run(async {
            let server = start(UNREACHED);
            let mut client = connect(&server.path).await;
            for _ in 0..2 {
                client.write_all(GET).await.expect("writes");
                let reply = reply(&mut client).await;
                assert!(reply.starts_with(OK) && reply.ends_with("\r\n\r\n/a"), "{reply}");
            }
            assert_eq!(server.echo.requests.get(), 2);
        });
    }

    #[test]
    fn malformed_or_oversized_request_is_refused_and_the_server_continues() {
        run(async {
            let server = start(UNREACHED);
            let oversized = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(2 * MIN_HEADER_BYTES));
            let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(MAX_HEADERS + 1));
            for (request, expected) in [
                (&b"\x00\xff\xfe\r\n\r\n"[..], "HTTP/1.1 400"),
                (b"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400"),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
                (b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "HTTP/1.1 400"),
                (b"GET / HTTP/1.1\r\ntransfer-encoding: x\r\n\r\n", "HTTP/1.1 400"),
                (oversized.as_bytes(), "HTTP/1.1 431"),
                (many.as_bytes(), "HTTP/1.1 431"),
            ] {
                let mut client = connect(&server.path).await;
                client.write_all(request).await.expect("writes");
                let text = rest(&mut client).await;
                assert!(text.starts_with(expected), "{}: {text}", String::from_utf8_lossy(request));
            }
            assert_eq!(server.echo.requests.get(), 0);
            let mut client = connect(&server.path).await;
            client.write_all(GET).await.expect("writes");
            assert!(reply(&mut client).await.starts_with(OK));
        });
    }

    #[test]
    fn body_is_not_read() {
        run(async {
            let server = start(UNREACHED);
            let mut client = connect(&server.path).await;
            client
                .write_all(b"POST /a HTTP/1.1\r\ncontent-length: 1000000000\r\n\r\nabc")
                .await
                .expect("writes");
            let text = rest(&mut client).await;
            assert!(text.starts_with(OK), "{text}");
        });
    }

    #[test]
    fn headers_that_do_not_arrive_in_time_end_the_connection() {
        run(async {
            let server = start(ServerLimits { idle_timeout: Duration::from_millis(50), ..UNREACHED });
            for beginning in [&b""[..], b"GET / HTTP/1.1\r\nx: "] {
                let mut client = connect(&server.path).await;
                client.write_all(beginning).await.expect("writes");
                rest(&mut client).await;
            }
            assert_eq!(server.echo.requests.get(), 0);
        });
    }

    #[test]
    fn connections_beyond_the_limit_wait() {
        run(async {
            let server = start(UNREACHED);
            let mut clients = Vec::new();
            for _ in 0..UNREACHED.max_connections + 1 {
                let mut client = connect(&server.path).await;
                client.write_all(GET).await.expect("writes");
                clients.push(client);
            }
            let mut last = clients.pop().expect("a client");
            for client in &mut clients {
                assert!(reply(client).await.starts_with(OK));
            }
            assert_eq!(server.echo.requests.get(), UNREACHED.max_connections, "the last one waits");
            clients.pop();
            assert!(reply(&mut last).await.starts_with(OK));
        });
    }

    #[test]
    fn stop_lets_requests_in_progress_end() {
        run(async {
            let server = start(UNREACHED);
            let (mut busy, mut idle) = (connect(&server.path).await, connect(&server.path).await);
            busy.write_all(b"GET /slow HTTP/1.1\r\n\r\n").await.expect("writes");
            idle.write_all(GET).await.expect("writes");
            assert!(reply(&mut idle).await.starts_with(OK));
            while server.echo.requests.get() < 2 {
                tokio::task::yield_now().await;
            }
            server.stop.send(true).expect("the server listens");
            assert_eq!(rest(&mut idle).await, "", "an idle connection ends at once");
            assert!(UnixStream::connect(&server.path).await.is_err(), "nothing is accepted any more");
            server.echo.may_end.notify_one();
            assert!(rest(&mut busy).await.ends_with("/slow"));
            server.ended.await.expect("the server has ended");
        });
    }

    #[test]
    fn stop_ends_after_the_drain_timeout() {
        run(async {
            let server = start(ServerLimits { drain_timeout: Duration::from_millis(50), ..UNREACHED });
            let mut busy = connect(&server.path).await;
            busy.write_all(b"GET /slow HTTP/1.1\r\n\r\n").await.expect("writes");
            while server.echo.requests.get() < 1 {
                tokio::task::yield_now().await;
            }
            drop(server.stop);
            server.ended.await.expect("the server has ended");
            assert_eq!(rest(&mut busy).await, "");
        });
    }
}
