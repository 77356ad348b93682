//! One connection: HTTP/1.1 or HTTP/2, with bounds on headers, time, and requests at the same moment.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Executor, Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_io_timeout::TimeoutStream;
use tracing::debug;

use crate::handler::{Handler, Peer, Protocol};
use crate::limits::{MAX_HEADERS, MIN_HEADER_BYTES, ServerLimits};

/// Requests at the same moment on a connection of HTTP/2. A gateway opens another one beyond it.
const MAX_STREAMS: u32 = 256;

/// Bytes of the headers of a request of gRPC, which come from the gateway. Those of the client are in
/// the body.
const MAX_GRPC_HEADER_BYTES: u32 = 16 << 10;

/// Bytes of the bodies of a connection that are received before they are read.
const WINDOW: u32 = 64 << 10;

/// A connection, and what it shares with the others of its listener.
pub(crate) struct Connection<H> {
    pub(crate) peer: Option<Peer>,
    pub(crate) limits: ServerLimits,
    pub(crate) handler: Rc<H>,
    pub(crate) stop: watch::Receiver<bool>,
}

type Ended = Result<(), Box<dyn Error + Send + Sync>>;

impl<H: Handler> Connection<H> {
    /// Serves the connection until it ends, or `stop` is true and its requests have ended.
    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + 'static) {
        let mut stream = TimeoutStream::new(stream);
        // A peer that does not read replies would keep its place for ever.
        stream.set_write_timeout(Some(self.limits.idle_timeout));
        let stream = TokioIo::new(Box::pin(stream));
        let ended = match self.handler.protocol() {
            Protocol::Http1 => self.serve_http1(stream).await,
            Protocol::Http2 => self.serve_http2(stream).await,
        };
        if let Err(error) = ended {
            debug!(error = &*error, "a connection ended with an error");
        }
    }

    async fn serve_http1(self, stream: impl Read + Write + Unpin + 'static) -> Ended {
        let Self { peer, limits, handler, stop, .. } = self;
        let service = service_fn(|request| {
            let handler = Rc::clone(&handler);
            async move { Ok::<_, Infallible>(handler.handle(peer, request).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.idle_timeout)
            .max_buf_size(limits.max_header_bytes.max(MIN_HEADER_BYTES))
            .max_headers(MAX_HEADERS);
        let mut connection = pin!(http.serve_connection(stream, service));
        tokio::select! {
            ended = connection.as_mut() => ended?,
            () = stopped(stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await?;
            }
        }
        Ok(())
    }

    async fn serve_http2(self, stream: impl Read + Write + Unpin + 'static) -> Ended {
        let Self { peer, limits, handler, stop } = self;
        let activity = Rc::new(Activity::default());
        let service = service_fn(|request: Request<Incoming>| {
            let handler = Rc::clone(&handler);
            let in_progress = activity.begin();
            async move {
                let _in_progress = in_progress;
                Ok::<_, Infallible>(handler.handle(peer, request).await)
            }
        });
        let mut http = http2::Builder::new(LocalExecutor);
        http.timer(TokioTimer::new())
            .max_concurrent_streams(
                MAX_STREAMS.min(u32::try_from(limits.max_connections).unwrap_or(u32::MAX)),
            )
            .max_header_list_size(MAX_GRPC_HEADER_BYTES)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let mut connection = pin!(http.serve_connection(stream, service));
        tokio::select! {
            ended = connection.as_mut() => ended?,
            () = stopped(stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await?;
            }
            () = activity.idle(limits.idle_timeout) => {
                connection.as_mut().graceful_shutdown();
                // A peer that does not take its leave is not waited for.
                timeout(limits.idle_timeout, connection).await??;
            }
        }
        Ok(())
    }
}

/// Waits until the server stops.
pub(crate) async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error says that the sender is gone.
    let _ = stop.wait_for(|is_stopping| *is_stopping).await;
}

/// Runs the requests of a connection on its thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, work: F) {
        spawn_local(work);
    }
}

/// Whether a connection is in use.
struct Activity {
    /// Requests in progress.
    in_progress: Cell<usize>,
    /// When the last request began or ended.
    last: Cell<Instant>,
}

/// A request in progress. It ends on drop.
struct InProgress(Rc<Activity>);

impl Default for Activity {
    fn default() -> Self {
        Self { in_progress: Cell::new(0), last: Cell::new(Instant::now()) }
    }
}

impl Activity {
    fn begin(self: &Rc<Self>) -> InProgress {
        self.in_progress.set(self.in_progress.get() + 1);
        self.last.set(Instant::now());
        InProgress(Rc::clone(self))
    }

    /// Waits until there has been no request for this time.
    async fn idle(&self, time: Duration) {
        let mut since = self.last.get();
        loop {
            sleep_until(since + time).await;
            let is_busy = self.in_progress.get() > 0;
            let last = if is_busy { Instant::now() } else { self.last.get() };
            if last == since {
                return;
            }
            since = last;
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.in_progress.set(self.0.in_progress.get() - 1);
        self.0.last.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http2::{self as client, SendRequest};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::{JoinHandle, LocalSet};

    use super::*;
    use crate::limits::UNREACHED;

    const SHORT: Duration = Duration::from_millis(50);

    /// Answers with the body of the request; `/slow` only when it is allowed to end, and `/large` with
    /// more than a peer has room for.
    struct Echo {
        protocol: Protocol,
        /// Requests that it has begun to handle.
        handled: Cell<usize>,
        may_end: tokio::sync::Notify,
    }

    impl Handler for Echo {
        type Body = Full<Bytes>;

        async fn handle(&self, _: Option<Peer>, request: Request<Incoming>) -> Response<Full<Bytes>> {
            self.handled.set(self.handled.get() + 1);
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            match path.as_str() {
                "/slow" => self.may_end.notified().await,
                "/large" => return Response::new(Full::from(vec![0; 1 << 20])),
                _ => {}
            }
            Response::new(Full::new(body))
        }

        fn protocol(&self) -> Protocol {
            self.protocol
        }
    }

    struct Connected {
        echo: Rc<Echo>,
        stop: watch::Sender<bool>,
        ended: JoinHandle<()>,
    }

    fn connect(protocol: Protocol, limits: ServerLimits) -> (DuplexStream, Connected) {
        let (own, other) = duplex(1 << 10);
        let echo = Rc::new(Echo { protocol, handled: Cell::new(0), may_end: tokio::sync::Notify::new() });
        let (stop, stopping) = watch::channel(false);
        let connection = super::Connection { peer: None, limits, handler: Rc::clone(&echo), stop: stopping };
        let ended = spawn_local(connection.serve(other));
        (own, Connected { echo, stop, ended })
    }

    type Sender<B> = SendRequest<B>;

    async fn handshake<B>(stream: DuplexStream) -> Sender<B>
    where
        B: hyper::body::Body<Data = Bytes, Error = Infallible> + Unpin + 'static,
    {
        let (sender, connection) =
            client::handshake(LocalExecutor, TokioIo::new(stream)).await.expect("a handshake");
        spawn_local(async { _ = connection.await });
        sender
    }

    fn request<B>(path: &str, body: B) -> Request<B> {
        Request::builder().uri(format!("http://h{path}")).body(body).expect("a request")
    }

    async fn body(response: Response<Incoming>) -> Bytes {
        response.into_body().collect().await.expect("a body").to_bytes()
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let within = async { timeout(UNREACHED.idle_timeout, test).await.expect("in time") };
        LocalSet::new().block_on(&runtime, within);
    }

    #[test]
    fn requests_of_http2_do_not_wait_for_each_other() {
        run(async {
            let (stream, connection) = connect(Protocol::Http2, UNREACHED);
            let mut sender = handshake(stream).await;
            let slow = sender.send_request(request("/slow", Full::from("a")));
            let slow = spawn_local(async { body(slow.await.expect("a reply")).await });
            let fast = sender.send_request(request("/", Full::from("b"))).await.expect("a reply");
            assert_eq!(body(fast).await, "b");
            connection.echo.may_end.notify_one();
            assert_eq!(slow.await.expect("it ends"), "a");
        });
    }

    #[test]
    fn idle_connection_of_http2_ends() {
        run(async {
            let limits = ServerLimits { idle_timeout: SHORT, ..UNREACHED };
            // It takes its leave.
            let (stream, connection) = connect(Protocol::Http2, limits);
            let mut sender = handshake(stream).await;
            let reply = sender.send_request(request("/", Full::from("a"))).await.expect("a reply");
            assert_eq!(body(reply).await, "a");
            connection.ended.await.expect("it ends");
            // It sends nothing, not even the preface.
            let (silent, connection) = connect(Protocol::Http2, limits);
            connection.ended.await.expect("it ends");
            drop(silent);
        });
    }

    #[test]
    fn request_of_http2_in_progress_keeps_the_connection() {
        run(async {
            let (stream, connection) =
                connect(Protocol::Http2, ServerLimits { idle_timeout: SHORT, ..UNREACHED });
            let mut sender = handshake(stream).await;
            let slow = sender.send_request(request("/slow", Full::from("a")));
            let slow = spawn_local(async { body(slow.await.expect("a reply")).await });
            tokio::time::sleep(10 * SHORT).await;
            assert!(!connection.ended.is_finished());
            connection.echo.may_end.notify_one();
            assert_eq!(slow.await.expect("it ends"), "a");
            connection.ended.await.expect("it ends");
        });
    }

    #[test]
    fn stop_lets_requests_of_http2_end() {
        run(async {
            let (stream, connection) = connect(Protocol::Http2, UNREACHED);
            let mut sender = handshake(stream).await;
            let slow = sender.send_request(request("/slow", Full::from("a")));
            let slow = spawn_local(async { body(slow.await.expect("a reply")).await });
            tokio::time::sleep(SHORT).await;
            connection.stop.send(true).expect("it listens");
            tokio::time::sleep(SHORT).await;
            assert!(!connection.ended.is_finished());
            connection.echo.may_end.notify_one();
            assert_eq!(slow.await.expect("it ends"), "a");
            connection.ended.await.expect("it ends");
        });
    }

    #[test]
    fn other_protocol_than_http2_is_refused() {
        run(async {
            let (mut stream, connection) = connect(Protocol::Http2, UNREACHED);
            stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("writes");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(!rest.starts_with(b"HTTP/1.1 200"));
            connection.ended.await.expect("it ends");
        });
    }

    #[test]
    fn peer_that_does_not_read_loses_its_connection() {
        run(async {
            let limits = ServerLimits { idle_timeout: SHORT, ..UNREACHED };
            let (mut stream, connection) = connect(Protocol::Http1, limits);
            stream.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("writes");
            connection.ended.await.expect("it ends");
        });
    }
}
