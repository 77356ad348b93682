//! The identity of a key, in headers for the upstream.
//!
//! Over HTTP, all of these headers are always sent, empty if there is nothing to state: the gateway
//! copies them over those that a client may have forged.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use keyward_client::Decision;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value};

/// Characters that a value cannot have as they are: all but visible ASCII, and the percent sign.
const ENCODED: AsciiSet = CONTROLS.add(b' ').add(b'%');

/// The headers that state who the key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityHeaders {
    key_id: HeaderName,
    owner: HeaderName,
    plan: HeaderName,
    environment: HeaderName,
    metadata: Vec<MetadataHeader>,
}

/// A field of the metadata that is sent in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataHeader {
    /// The header.
    pub header: HeaderName,
    /// The name of the field, on the first level.
    pub field: String,
}

impl IdentityHeaders {
    /// The headers with the key's fields, and those of the metadata.
    pub fn new(metadata: Vec<MetadataHeader>) -> Self {
        Self {
            key_id: HeaderName::from_static("x-keyward-key-id"),
            owner: HeaderName::from_static("x-keyward-owner"),
            plan: HeaderName::from_static("x-keyward-plan"),
            environment: HeaderName::from_static("x-keyward-environment"),
            metadata,
        }
    }

    /// Whether the metadata of a key has to be asked for.
    pub fn needs_metadata(&self) -> bool {
        !self.metadata.is_empty()
    }

    /// All headers, in their order.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        let fields = [&self.key_id, &self.owner, &self.plan, &self.environment];
        fields.into_iter().chain(self.metadata.iter().map(|metadata| &metadata.header))
    }

    /// Adds all headers to `headers`, with the identity of the key that was allowed. `None`: no key
    /// was asked for.
    pub fn add(&self, decision: Option<&Decision>, headers: &mut HeaderMap) {
        let fields = [
            (&self.key_id, decision.and_then(Decision::key_id)),
            (&self.owner, decision.and_then(Decision::owner)),
            (&self.plan, decision.and_then(Decision::plan)),
            (&self.environment, decision.and_then(Decision::environment)),
        ];
        for (name, text) in fields {
            headers.insert(name, value(text.unwrap_or_default()));
        }
        for (header, text) in self.metadata.iter().map(|field| &field.header).zip(self.texts(decision)) {
            headers.insert(header, value(&text));
        }
    }

    /// The fields of the metadata that the upstream gets to know, and their values.
    pub(crate) fn metadata(&self, decision: Option<&Decision>) -> Vec<(&str, String)> {
        let fields = self.metadata.iter().map(|field| field.field.as_str());
        fields.zip(self.texts(decision)).collect()
    }

    /// The value of each field of the metadata, empty if the key has none.
    fn texts(&self, decision: Option<&Decision>) -> Vec<String> {
        if self.metadata.is_empty() {
            return Vec::new();
        }
        let metadata = decision.and_then(Decision::metadata);
        // The daemon checks metadata when it loads keys: what is not an object has no fields.
        let object: Map<String, Value> =
            metadata.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let text = |MetadataHeader { field, .. }: &MetadataHeader| match object.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        self.metadata.iter().map(text).collect()
    }
}

/// Visible ASCII stays as it is; everything else is percent-encoded, as UTF-8.
pub(crate) fn value(text: &str) -> HeaderValue {
    // Most texts need no encoding, and are copied once.
    let encoded = Cow::from(utf8_percent_encode(text, &ENCODED));
    // Visible ASCII is a value.
    HeaderValue::from_str(&encoded).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use keyward_protocol::{Answer, Verdict};

    use super::*;

    fn identity() -> IdentityHeaders {
        let metadata = [("x-tenant", "tenant"), ("x-seats", "seats"), ("x-none", "none"), ("x-null", "null")];
        let metadata = metadata.map(|(header, field)| MetadataHeader {
            header: HeaderName::from_static(header),
            field: field.to_owned(),
        });
        IdentityHeaders::new(metadata.to_vec())
    }

    fn added(decision: Option<&Decision>) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        identity().add(decision, &mut headers);
        let text = |value: &HeaderValue| value.to_str().expect("visible ASCII").to_owned();
        identity().names().map(|name| (name.to_string(), text(&headers[name]))).collect()
    }

    #[test]
    fn every_header_is_sent_and_overwrites() {
        let answer = Answer {
            key_id: "k 1",
            owner: "M\u{fc}ller\r\nX: 100%",
            plan: "",
            environment: "live",
            metadata: Some(r#"{"tenant":"a\tb","seats":5,"null":null,"other":1}"#),
            ..Answer::without_key(1, Verdict::Allowed, 1)
        };
        let values = added(Some(&Decision::from(&answer)));
        let expected = [
            ("x-keyward-key-id", "k%201"),
            ("x-keyward-owner", "M%C3%BCller%0D%0AX:%20100%25"),
            ("x-keyward-plan", ""),
            ("x-keyward-environment", "live"),
            ("x-tenant", "a%09b"),
            ("x-seats", "5"),
            ("x-none", ""),
            ("x-null", ""),
        ];
        assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(added(None).iter().all(|(_, value)| value.is_empty()));
    }
}
