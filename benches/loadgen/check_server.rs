//! The checkers that `keyward http` is compared with behind a gateway. They are minimal: a server of
//! hyper on one thread, as `keyward http` is, that lets every request through.
//!
//! Two decide nothing, over HTTP/1.1 and over gRPC, which shows what the check itself costs a gateway.
//! A third takes the SHA-256 of the key and charges its token bucket in Redis by a Lua script, on one
//! connection to Redis for each of the gateway's.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::Mutex;
use tokio::task::spawn_local;

use crate::target::redis::{BucketCommand, Reply, parse_reply};

/// Longest reply of Redis.
const MAX_REPLY: usize = 256;

/// The configuration of a checker.
#[derive(Clone, Debug)]
pub(crate) struct CheckServer {
    /// The status of every reply. nginx allows on 204, Envoy on 200 only.
    pub(crate) status: StatusCode,
    /// Whether it speaks gRPC. Then the status is that of the service, which is always OK.
    pub(crate) grpc: bool,
    /// The socket of a Redis server that decides.
    pub(crate) redis: Option<PathBuf>,
}

impl CheckServer {
    /// Serves at `path`, and at `tcp` if it is given, until the process ends.
    ///
    /// # Errors
    /// When it cannot listen there, or accepting fails.
    pub(crate) fn serve(self, path: &Path, tcp: Option<SocketAddr>) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(async {
            let server = Rc::new(self);
            let unix = UnixListener::bind(path)?;
            if let Some(address) = tcp {
                let (tcp, server) = (TcpListener::bind(address).await?, Rc::clone(&server));
                spawn_local(async move {
                    while let Ok((stream, _)) = tcp.accept().await {
                        let _ = stream.set_nodelay(true);
                        spawn_local(Rc::clone(&server).serve_connection(stream));
                    }
                });
            }
            loop {
                let (stream, _) = unix.accept().await?;
                spawn_local(Rc::clone(&server).serve_connection(stream));
            }
        })
    }

    async fn serve_connection(self: Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        if self.grpc {
            let service = service_fn(|call| async { Ok::<_, Infallible>(allow(call).await) });
            let connection =
                http2::Builder::new(LocalExecutor).serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
            return;
        }
        let bucket = match &self.redis {
            Some(path) => Bucket::connect(path).await.ok().map(Rc::new),
            None => None,
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, bucket) = (Rc::clone(&self), bucket.clone());
            async move { Ok::<_, Infallible>(server.check(&request, bucket.as_deref()).await) }
        });
        let connection =
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        // The gateway closes it.
        let _ = connection.await;
    }

    async fn check(&self, request: &Request<Incoming>, bucket: Option<&Bucket>) -> Response<Empty<Bytes>> {
        let is_allowed = match (bucket, &self.redis) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(bucket), Some(_)) => {
                let key = request.headers().get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
                bucket.charge(key).await.unwrap_or(false)
            }
        };
        let mut response = Response::new(Empty::new());
        *response.status_mut() = if is_allowed { self.status } else { StatusCode::FORBIDDEN };
        response
    }
}

/// A message of gRPC: a prefix, and a `CheckResponse` whose status is OK.
const OK_RESPONSE: &[u8] = &[0, 0, 0, 0, 2, 10, 0];

async fn allow(call: Request<Incoming>) -> Response<impl Body<Data = Bytes, Error = Infallible>> {
    // A client that has sent part of a call only is not answered by this server.
    let _ = call.into_body().collect().await;
    let trailers = async {
        Some(Ok(HeaderMap::from_iter([(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )])))
    };
    let mut response = Response::new(Full::new(Bytes::from_static(OK_RESPONSE)).with_trailers(trailers));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Runs the calls of a connection on its thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, work: F) {
        spawn_local(work);
    }
}

/// A connection to Redis, which charges buckets one at a time.
struct Bucket {
    stream: Mutex<UnixStream>,
    command: BucketCommand,
}

impl Bucket {
    async fn connect(path: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path).await?;
        let load = BucketCommand::load();
        let sha = round_trip(&mut stream, &load, |reply| match reply {
            Reply::Bulk(Some(sha)) => Some(sha.to_vec()),
            _ => None,
        });
        let command = BucketCommand::new(sha.await?);
        Ok(Self { stream: Mutex::new(stream), command })
    }

    async fn charge(&self, key: &[u8]) -> io::Result<bool> {
        let mut command = Vec::new();
        self.command.encode(&Sha256::digest(key), &mut command);
        let mut stream = self.stream.lock().await;
        round_trip(&mut stream, &command, |reply| match reply {
            Reply::Pair(allowed) => Some(*allowed == 1),
            _ => None,
        })
        .await
    }
}

/// Sends a command, and takes what is expected from its reply.
async fn round_trip<T>(
    stream: &mut UnixStream,
    command: &[u8],
    take: impl Fn(&Reply<'_>) -> Option<T>,
) -> io::Result<T> {
    let unexpected = || io::Error::other("Redis has sent another reply than expected");
    stream.write_all(command).await?;
    let (mut reply, mut length) = ([0; MAX_REPLY], 0);
    loop {
        match stream.read(&mut reply[length..]).await? {
            0 => return Err(unexpected()),
            count => length += count,
        }
        if let Some((reply, _)) = parse_reply(&reply[..length]).map_err(|_| unexpected())? {
            return take(&reply).ok_or_else(unexpected);
        }
    }
}
