//! The client's request, as the gateway states it in its subrequest.

use bytes::Bytes;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, ORIGIN};
use http::request::Parts;
use http::{Method, Uri};

use crate::gateway::RequestSource;
use crate::header::{HeaderError, single};

/// The client's request.
#[derive(Debug)]
pub struct Original<'r> {
    /// Its method.
    pub method: Method,
    /// Its host, with a port if it has one. `None`: the gateway does not state it.
    pub host: Option<&'r str>,
    /// Its path and its query, as they stand in its first line.
    pub target: &'r str,
    /// Whether it is a CORS preflight request.
    pub is_preflight: bool,
}

/// What a message of Envoy states besides the headers of the client's request. It is in the extensions of
/// the [`Parts`] that are checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) method: Bytes,
    pub(crate) target: Bytes,
    pub(crate) context: Vec<(Bytes, Bytes)>,
}

impl Attributes {
    /// The values of a context extension. One that is set has exactly one.
    pub(crate) fn context(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let named = self.context.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_ref())
    }
}

/// Why the client's request is not known: the gateway is not configured as its page says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginalError {
    /// A header is missing.
    #[error("the gateway has not set the header {0}")]
    Missing(HeaderName),
    /// A header is there more than once, or not text.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The method is not one.
    #[error("the header {0} does not state a method")]
    Method(HeaderName),
    /// A message states no request of HTTP.
    #[error("the gateway has not stated a request of HTTP")]
    NoRequest,
    /// A message states a header that is not one.
    #[error("the gateway has stated a header with characters that none can have")]
    MalformedHeader,
    /// A message states a method that is not one, or none.
    #[error("the gateway has not stated a method")]
    InvalidMethod,
    /// A call of gRPC cannot be read.
    #[error("the gateway's call cannot be read: {0}")]
    Call(String),
    /// A message states a target that is not text.
    #[error("the target is not text")]
    Target,
    /// The path does not begin with the prefix that the gateway is said to put before every path.
    #[error("the path of the subrequest is not below `path_prefix`")]
    Prefix,
}

/// The client's request that the subrequest `parts` is about. `path_prefix` precedes its path if the
/// gateway forwards it under one, and does not end in a slash.
pub(crate) fn read<'r>(
    source: &RequestSource,
    path_prefix: &str,
    parts: &'r Parts,
) -> Result<Original<'r>, OriginalError> {
    let headers = &parts.headers;
    let (method, target, host) = match source {
        RequestSource::Itself => {
            // A target that is no path, such as that of OPTIONS *, follows the prefix as it is.
            let target = target_text(&parts.uri).strip_prefix(path_prefix).ok_or(OriginalError::Prefix)?;
            (parts.method.clone(), target, &HOST)
        }
        RequestSource::Attributes => {
            let Attributes { method, target, .. } = parts.extensions.get().ok_or(OriginalError::NoRequest)?;
            let method = Method::from_bytes(method).map_err(|_| OriginalError::InvalidMethod)?;
            (method, str::from_utf8(target).map_err(|_| OriginalError::Target)?, &HOST)
        }
        RequestSource::Headers { method, target, host } => {
            let name = required(headers, method)?;
            let parsed =
                Method::from_bytes(name.as_bytes()).map_err(|_| OriginalError::Method(method.clone()))?;
            (parsed, required(headers, target)?, host.as_ref().unwrap_or(&HOST))
        }
    };
    Ok(Original {
        is_preflight: method == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD),
        method,
        host: single(headers, host)?,
        target,
    })
}

fn target_text(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", |target| target.as_str())
}

/// The value of a header that has to be there once.
fn required<'r>(headers: &'r HeaderMap, name: &HeaderName) -> Result<&'r str, OriginalError> {
    single(headers, name)?.ok_or_else(|| OriginalError::Missing(name.clone()))
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;
    use crate::gateway::Gateway;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(Method::POST).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn read_from(gateway: Gateway, parts: &Parts) -> Result<Original<'_>, OriginalError> {
        read(&gateway.request_source(), "/check", parts)
    }

    #[test]
    fn each_gateway_states_the_request_in_its_own_way() {
        let nginx = parts("/", &[("host", "a"), ("x-original-method", "GET"), ("x-original-uri", "/b?c=d")]);
        let forward = parts(
            "/",
            &[
                ("host", "z"),
                ("x-forwarded-host", "a"),
                ("x-forwarded-method", "GET"),
                ("x-forwarded-uri", "/b?c=d"),
            ],
        );
        let mut envoy = parts("/check/b?c=d", &[("host", "a")]);
        envoy.method = Method::GET;
        for (gateway, parts) in [
            (Gateway::Nginx, &nginx),
            (Gateway::Traefik, &forward),
            (Gateway::Caddy, &forward),
            (Gateway::Apisix, &forward),
            (Gateway::Haproxy, &forward),
            (Gateway::Envoy, &envoy),
        ] {
            let original = read_from(gateway, parts).expect("it is stated");
            assert_eq!(original.method, Method::GET, "{gateway:?}");
            assert_eq!(original.host, Some("a"), "{gateway:?}");
            assert_eq!(original.target, "/b?c=d", "{gateway:?}");
            assert!(!original.is_preflight);
        }
    }

    #[test]
    fn request_that_the_gateway_does_not_state_is_refused() {
        let missing = |name| OriginalError::Missing(HeaderName::from_static(name));
        let repeated = |name| OriginalError::Header(HeaderError::Repeated(HeaderName::from_static(name)));
        let method = ("x-original-method", "GET");
        for (headers, expected) in [
            (&[method][..], missing("x-original-uri")),
            (&[("x-original-uri", "/")], missing("x-original-method")),
            // The name that another gateway sets does not count.
            (&[method, ("x-original-url", "/")], missing("x-original-uri")),
            (&[method, ("x-original-uri", "/"), ("x-original-uri", "/open")], repeated("x-original-uri")),
            (&[method, method, ("x-original-uri", "/")], repeated("x-original-method")),
            (&[method, ("x-original-uri", "/"), ("host", "a"), ("host", "b")], repeated("host")),
            (
                &[method, ("x-original-uri", "/\u{e4}")],
                OriginalError::Header(HeaderError::NotText(HeaderName::from_static("x-original-uri"))),
            ),
        ] {
            let parts = parts("/", headers);
            assert_eq!(
                read_from(Gateway::Nginx, &parts).expect_err("it is refused"),
                expected,
                "{headers:?}"
            );
        }
        for target in ["/", "/other"] {
            let parts = parts(target, &[]);
            assert_eq!(read_from(Gateway::Envoy, &parts).expect_err(target), OriginalError::Prefix);
        }
    }

    #[test]
    fn preflight_names_an_origin_and_a_method() {
        let headers = [
            ("x-original-method", "OPTIONS"),
            ("x-original-uri", "/"),
            ("origin", "https://app.example.com"),
            ("access-control-request-method", "POST"),
        ];
        let is_preflight = |headers: &[(&str, &str)]| {
            let parts = parts("/", headers);
            read_from(Gateway::Nginx, &parts).expect("it is stated").is_preflight
        };
        assert!(is_preflight(&headers));
        assert!(!is_preflight(&headers[..3]));
        assert!(!is_preflight(&[headers[0], headers[1], headers[3]]));
        assert!(!is_preflight(&[("x-original-method", "GET"), headers[1], headers[2], headers[3]]));
    }
}
