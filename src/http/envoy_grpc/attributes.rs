//! Reads the client's request from a message.

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::messages::{AttributeContext, CheckRequest, Entry, HttpRequest};
use crate::limits::MAX_HEADERS;
use crate::original::{Attributes, OriginalError};
use crate::outcome::Refusal;

/// The request that a message is about.
///
/// # Errors
/// If the message has no request, or a header that cannot be read.
pub(crate) fn read(message: CheckRequest) -> Result<Parts, Refusal> {
    let AttributeContext { request, context_extensions } = message.attributes.unwrap_or_default();
    let http = request.and_then(|request| request.http).ok_or(Refusal::Original(OriginalError::NoRequest))?;
    let HttpRequest { method, headers, path, host, header_map } = http;
    let (mut parts, ()) = http::Request::new(()).into_parts();
    let raw = header_map.map(|map| map.headers).unwrap_or_default();
    let values = headers.into_iter().map(|Entry { key, value, .. }| (key, value));
    let raw_values = raw
        .into_iter()
        .map(|Entry { key, value, raw_value }| (key, if raw_value.is_empty() { value } else { raw_value }));
    // Pseudo-headers are stated by fields of their own.
    for (key, value) in values.chain(raw_values).filter(|(key, _)| !key.starts_with(b":")) {
        add(&mut parts.headers, &key, value)?;
    }
    if !host.is_empty() {
        add(&mut parts.headers, HOST.as_str().as_bytes(), host)?;
    }
    let context = context_extensions.into_iter().map(|Entry { key, value, .. }| (key, value)).collect();
    parts.extensions.insert(Attributes { method, target: path, context });
    Ok(parts)
}

/// Adds a header. One that cannot be read refuses the request: it might be the one that counts.
fn add(headers: &mut HeaderMap, name: &[u8], value: Bytes) -> Result<(), Refusal> {
    if headers.len() >= MAX_HEADERS {
        return Err(Refusal::HeadersTooLarge);
    }
    let malformed = || Refusal::Original(OriginalError::MalformedHeader);
    let name = HeaderName::from_bytes(name).map_err(|_| malformed())?;
    let value = HeaderValue::from_maybe_shared(value).map_err(|_| malformed())?;
    // It is far below the size that a map can have.
    headers.try_append(name, value).map_err(|_| Refusal::HeadersTooLarge)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::super::messages::{HeaderMap as RawHeaders, Request};
    use super::*;

    fn entry(key: &'static str, value: &'static str) -> Entry {
        Entry { key: key.into(), value: value.into(), ..Entry::default() }
    }

    fn raw_entry(key: &'static str, raw_value: &'static [u8]) -> Entry {
        Entry { key: key.into(), raw_value: raw_value.into(), ..Entry::default() }
    }

    fn message(http: HttpRequest) -> CheckRequest {
        let request = Some(Request { http: Some(http) });
        let context_extensions = vec![entry("scopes", "a"), entry("cost", "2")];
        CheckRequest { attributes: Some(AttributeContext { request, context_extensions }) }
    }

    fn http(headers: Vec<Entry>) -> HttpRequest {
        HttpRequest {
            method: "GET".into(),
            headers,
            path: "/a?b".into(),
            host: "api.example.com".into(),
            header_map: None,
        }
    }

    fn lines(parts: &Parts) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        parts.headers.iter().map(line).collect()
    }

    /// Encoded, as it is received.
    fn read_encoded(message: &CheckRequest) -> Result<Parts, Refusal> {
        let encoded = Bytes::from(message.encode_to_vec());
        read(CheckRequest::decode(encoded).expect("a message"))
    }

    #[test]
    fn message_states_the_request() {
        let headers = vec![entry(":path", "/forged"), entry("x-api-key", "k"), entry(":method", "POST")];
        let parts = read_encoded(&message(http(headers))).expect("a request");
        assert_eq!(lines(&parts), ["x-api-key: k", "host: api.example.com"]);
        let attributes: &Attributes = parts.extensions.get().expect("attributes");
        assert_eq!((&attributes.method[..], &attributes.target[..]), (&b"GET"[..], &b"/a?b"[..]));
        assert_eq!(attributes.context("cost").collect::<Vec<_>>(), [b"2"]);
        assert_eq!(attributes.context("costs").count(), 0);
    }

    /// `encode_raw_headers` keeps repeated headers apart, and bytes that are not UTF-8.
    #[test]
    fn raw_headers_are_read() {
        let headers = vec![
            raw_entry("x-api-key", b"k\xff"),
            raw_entry("x-api-key", b"l"),
            entry("accept", "text/html"),
            raw_entry("empty", b""),
        ];
        let http = HttpRequest { header_map: Some(RawHeaders { headers }), ..http(Vec::new()) };
        let parts = read_encoded(&message(http)).expect("a request");
        let expected =
            ["x-api-key: k\u{fffd}", "x-api-key: l", "accept: text/html", "empty: ", "host: api.example.com"];
        assert_eq!(lines(&parts), expected);
    }

    #[test]
    fn message_that_cannot_be_read_is_refused() {
        let malformed = Refusal::Original(OriginalError::MalformedHeader);
        let none = Refusal::Original(OriginalError::NoRequest);
        for (message, expected) in [
            (CheckRequest::default(), none.clone()),
            (CheckRequest { attributes: Some(AttributeContext::default()) }, none),
            (message(http(vec![entry("a b", "c")])), malformed.clone()),
            (message(http(vec![entry("", "c")])), malformed.clone()),
            (message(http(vec![entry("a", "b\nc")])), malformed.clone()),
            (message(HttpRequest { host: "a\0b".into(), ..http(Vec::new()) }), malformed),
            (message(http(vec![entry("a", "b"); MAX_HEADERS + 1])), Refusal::HeadersTooLarge),
            (message(http(vec![entry("a", "b"); MAX_HEADERS])), Refusal::HeadersTooLarge),
        ] {
            assert_eq!(read_encoded(&message).expect_err("it is refused"), expected);
        }
    }

    proptest! {
        #[test]
        fn no_message_causes_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = CheckRequest::decode(Bytes::from(bytes)).map(read);
        }

        /// Malformed in its values, and not in its framing.
        #[test]
        fn no_value_causes_a_panic(
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 8),
        ) {
            let mut texts = texts.into_iter().map(Bytes::from);
            let mut next = || texts.next().unwrap_or_default();
            let header = Entry { key: next(), value: next(), raw_value: next() };
            let http = HttpRequest {
                method: next(),
                headers: vec![header.clone()],
                path: next(),
                host: next(),
                header_map: Some(RawHeaders { headers: vec![header] }),
            };
            let _ = read_encoded(&message(http));
        }
    }
}
