//! The request of a settlement: its first line, its headers, and its body within bounds.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use tokio::time::timeout;

use super::Operation;
use super::amounts::AmountsError;
use crate::header::single;

/// Maximum size of a body. Sixteen names of 64 bytes and their amounts have less than 2 KiB.
pub(super) const MAX_BODY: usize = 4 << 10;

/// Time within which a body has to arrive, over a socket of this host. Together with the default
/// `settlement.deadline` it is shorter than the default `server.drain_timeout`, so that a stop cuts no
/// settlement off.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request is not a settlement.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("there is nothing at this path: it is /debit or /refund")]
    Path,
    #[error("the method is not POST")]
    Method,
    #[error("Content-Type is not application/json")]
    ContentType,
    #[error("the body has more than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs())]
    Timeout,
    #[error("the body ended before its length, or is not framed correctly")]
    Incomplete,
    #[error(transparent)]
    Amounts(#[from] AmountsError),
}

/// What a request asks for, by everything but its body.
pub(super) fn operation(parts: &Parts) -> Result<Operation, RequestError> {
    let operation = match parts.uri.path() {
        "/debit" => Operation::Debit,
        "/refund" => Operation::Refund,
        _ => return Err(RequestError::Path),
    };
    if parts.method != Method::POST {
        return Err(RequestError::Method);
    }
    if is_json(&parts.headers) { Ok(operation) } else { Err(RequestError::ContentType) }
}

/// Whether the body is stated to be JSON, in whatever case and with whatever parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Ok(Some(value)) = single(headers, &CONTENT_TYPE) else { return false };
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

/// Reads a body.
pub(super) async fn read<B: Body<Error: std::error::Error + Send + Sync + 'static>>(
    body: B,
) -> Result<Bytes, RequestError> {
    // A length that is stated is refused before the first byte is read.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(RequestError::TooLarge);
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Err(_) => Err(RequestError::Timeout),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(RequestError::TooLarge),
        Ok(Err(_)) => Err(RequestError::Incomplete),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn parts(method: &str, target: &str, content_type: &[&str]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        for value in content_type {
            request = request.header(CONTENT_TYPE, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn path_method_and_type_are_exact() {
        let json = &["application/json"][..];
        for (method, target, content_type, expected) in [
            ("POST", "/debit", json, "Ok(Debit)"),
            ("POST", "/refund?api_key=k", json, "Ok(Refund)"),
            ("POST", "/debit", &["Application/JSON; charset=utf-8"], "Ok(Debit)"),
            ("POST", "/", json, "Err(Path)"),
            ("POST", "/debit/", json, "Err(Path)"),
            ("POST", "/Debit", json, "Err(Path)"),
            ("GET", "/debits", json, "Err(Path)"),
            ("GET", "/debit", json, "Err(Method)"),
            ("PUT", "/refund", json, "Err(Method)"),
            ("post", "/refund", json, "Err(Method)"),
            ("POST", "/debit", &[], "Err(ContentType)"),
            ("POST", "/debit", &["text/json"], "Err(ContentType)"),
            ("POST", "/debit", &["application/json", "application/json"], "Err(ContentType)"),
        ] {
            let found = format!("{:?}", operation(&parts(method, target, content_type)));
            assert_eq!(found, expected, "{method} {target} {content_type:?}");
        }
    }

    /// A body of so many KiB that does not end.
    struct Unfinished(usize);

    impl Body for Unfinished {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            if self.0 == 0 {
                return std::task::Poll::Pending;
            }
            self.0 -= 1;
            std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from_static(&[b' '; 1024])))))
        }
    }

    #[test]
    fn body_is_read_within_bounds() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let full = |size| Full::new(Bytes::from(vec![b' '; size]));
            assert_eq!(read(full(MAX_BODY)).await.expect("fits").len(), MAX_BODY);
            assert!(matches!(read(full(MAX_BODY + 1)).await, Err(RequestError::TooLarge)));
            assert!(matches!(read(Unfinished(64)).await, Err(RequestError::TooLarge)));
            let began = std::time::Instant::now();
            assert!(matches!(read(Unfinished(1)).await, Err(RequestError::Timeout)));
            assert!((BODY_TIMEOUT..2 * BODY_TIMEOUT).contains(&began.elapsed()));
        });
    }
}
