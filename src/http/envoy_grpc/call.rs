//! A call of the service: the path, framing and codec of gRPC.

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

use super::{CheckRequest, CheckResponse};

/// The only method of the service.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Answers a call with what `check` makes of its message, which has at most `max_message` bytes.
pub(crate) async fn answer<F: Future<Output = CheckResponse>>(
    call: Request<Incoming>,
    max_message: usize,
    check: impl Fn(CheckRequest) -> F,
) -> Response<Body> {
    if call.uri().path() != CHECK {
        return Status::unimplemented(format!("there is only {CHECK}")).into_http();
    }
    let method = Method(|message: tonic::Request<CheckRequest>| {
        let checked = check(message.into_inner());
        async { Ok(tonic::Response::new(checked.await)) }
    });
    let codec = ProstCodec::<CheckResponse, CheckRequest>::default();
    Grpc::new(codec).max_decoding_message_size(max_message).unary(method, call).await
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
