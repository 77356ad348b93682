//! A call of the service: the path, framing and codec of gRPC.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

use super::{CheckRequest, CheckResponse};

/// The only method of the service.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallLimits {
    /// Bytes of its message.
    pub(crate) message_bytes: usize,
    /// Time within which it has to arrive.
    pub(crate) arrival: Duration,
}

/// Answers a call with what `check` makes of its message.
///
/// # Errors
/// If the call cannot be read. The status says why.
pub(crate) async fn answer<B, F>(
    call: Request<B>,
    limits: CallLimits,
    check: impl Fn(CheckRequest) -> F,
) -> Result<Response<Body>, Status>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    F: Future<Output = CheckResponse>,
{
    if call.uri().path() != CHECK {
        return Err(Status::unimplemented(format!("there is only {CHECK}")));
    }
    let (parts, body) = call.into_parts();
    let max = limits.message_bytes.saturating_add(PREFIX);
    let received = timeout(limits.arrival, Limited::new(body, max).collect()).await;
    let received = received.map_err(|_| Status::deadline_exceeded("the call has not arrived in time"))?;
    let received = received.map_err(|error| {
        Status::out_of_range(format!("the call was broken off, or has more than {max} bytes: {error}"))
    })?;
    let method = Method(|message: tonic::Request<CheckRequest>| {
        let checked = check(message.into_inner());
        async { Ok(tonic::Response::new(checked.await)) }
    });
    let codec = ProstCodec::<CheckResponse, CheckRequest>::default();
    let call = Request::from_parts(parts, Full::new(received.to_bytes()));
    let response = Grpc::new(codec).max_decoding_message_size(limits.message_bytes).unary(method, call).await;
    // A call that was answered states its status after the message.
    Status::from_header_map(response.headers()).map_or(Ok(response), Err)
}

/// A function as the method of a service.
struct Method<M>(M);

impl<M, F> UnaryService<CheckRequest> for Method<M>
where
    M: Fn(tonic::Request<CheckRequest>) -> F,
    F: Future<Output = Result<tonic::Response<CheckResponse>, Status>>,
{
    type Response = CheckResponse;
    type Future = F;

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> F {
        (self.0)(request)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;

    const LIMITS: CallLimits = CallLimits { message_bytes: 100, arrival: Duration::from_secs(20) };

    /// A body of which nothing arrives.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    async fn answered<B>(path: &str, body: B, limits: CallLimits) -> Result<Bytes, Code>
    where
        B: hyper::body::Body<Data = Bytes, Error = Infallible>,
    {
        let call = Request::builder().uri(path).body(body).expect("a request");
        let check = |_| async { CheckResponse::default() };
        let response = answer(call, limits, check).await.map_err(|status| status.code())?;
        Ok(response.into_body().collect().await.expect("a body").to_bytes())
    }

    fn prefixed(length: usize, message: &[u8]) -> Full<Bytes> {
        Full::from([&[0], &(length as u32).to_be_bytes()[..], message].concat())
    }

    #[tokio::test]
    async fn call_is_answered_with_a_message() {
        assert_eq!(answered(CHECK, prefixed(0, b""), LIMITS).await, Ok(Bytes::from_static(&[0; 5])));
        // A field that is not used.
        assert!(answered(CHECK, prefixed(3, &[0x3a, 1, b'a']), LIMITS).await.is_ok());
    }

    #[tokio::test]
    async fn call_that_cannot_be_read_has_a_status() {
        let compressed = Full::from(vec![1, 0, 0, 0, 0]);
        for (path, body, expected) in [
            ("/envoy.service.auth.v2.Authorization/Check", prefixed(0, b""), Code::Unimplemented),
            (CHECK, Full::from(""), Code::Internal),
            (CHECK, prefixed(5, b"abc"), Code::Internal),
            (CHECK, prefixed(3, b"abc"), Code::Internal),
            (CHECK, prefixed(200, &[0; 200]), Code::OutOfRange),
            (CHECK, compressed, Code::Internal),
        ] {
            assert_eq!(answered(path, body, LIMITS).await, Err(expected), "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_that_does_not_arrive_ends() {
        let started = Instant::now();
        assert_eq!(answered(CHECK, Never, LIMITS).await, Err(Code::DeadlineExceeded));
        assert!(started.elapsed() < 2 * LIMITS.arrival);
    }
}
