//! Reads `vectors/vectors.json`, whose format `vectors/README.md` describes.
//!
//! [`Frame`] represents both directions of the protocol, so that a test can treat every vector in
//! the same way.

// Each test crate compiles this module and uses a part of it.
#![allow(dead_code, reason = "each program uses a part of it")]

use keyward_protocol::{
    Answer, Credential, ErrorFrame, Hello, LimitState, MAX_ANSWER_LENGTH, MAX_REQUEST_LENGTH, ParsedFrame,
    ProtocolError, Refund, Request, Response, ScopeMode, Scopes, Verdict, Verify, Welcome, parse_frame,
    truncated_frame,
};
use serde::Deserialize;
use std::net::{IpAddr, Ipv6Addr};

const FILE: &str = include_str!("../../vectors/vectors.json");

/// The side that sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sender {
    Client,
    Daemon,
}

/// One vector: the bytes of a frame, and either its fields or its error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) group: String,
    #[serde(rename = "from")]
    pub(crate) sender: Sender,
    pub(crate) note: Option<String>,
    pub(crate) bytes: Bytes,
    pub(crate) fields: Option<Fields>,
    pub(crate) error: Option<ExpectedError>,
}

/// The error of a malformed vector.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedError {
    pub(crate) code: String,
    pub(crate) detail: u32,
    pub(crate) request_id: u32,
    /// Absent if the daemon sent the frame, because a client sends no ERROR.
    pub(crate) closes: Option<bool>,
}

/// The fields of a valid vector, under SPEC.md's names.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "UPPERCASE", deny_unknown_fields)]
pub(crate) enum Fields {
    Hello {
        request_id: u32,
        flags: Vec<String>,
        min_version: u8,
        max_version: u8,
    },
    Verify {
        request_id: u32,
        flags: Vec<String>,
        cost: u32,
        digest: Option<Bytes>,
        key: Option<Bytes>,
        scopes: Option<Text>,
        ip: Option<IpAddr>,
        origin: Option<Text>,
        environment: Option<Text>,
    },
    Refund {
        request_id: u32,
        flags: Vec<String>,
        cost: u32,
        digest: Option<Bytes>,
        key: Option<Bytes>,
        limit: Option<Text>,
    },
    Welcome {
        request_id: u32,
        flags: Vec<String>,
        version: u8,
        min_version: u8,
        max_version: u8,
        credentials: u8,
        max_length: u32,
        idle_timeout_ms: u32,
        generation: u64,
        server: Text,
    },
    Answer {
        request_id: u32,
        flags: Vec<String>,
        verdict: NameOrNumber,
        generation: u64,
        limit: u32,
        remaining: u32,
        retry_after_ms: u32,
        reset_ms: u32,
        key_id: Text,
        owner: Text,
        environment: Text,
        plan: Text,
        limit_name: Text,
        metadata: Option<Text>,
        shadow_limit: Option<Text>,
    },
    Error {
        request_id: u32,
        flags: Vec<String>,
        code: NameOrNumber,
        detail: u32,
        message: Text,
    },
}

/// The name of a value, or the number of a value that SPEC.md does not name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum NameOrNumber {
    Name(String),
    Number(u8),
}

/// Bytes in the file's notation: hex, `|` and spaces as separators, `61*1024` for a repetition.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = Vec::new();
        for token in text.split([' ', '|']) {
            let (hex, times) = token.split_once('*').unwrap_or((token, "1"));
            let unit = const_hex::decode(hex).map_err(|error| format!("{token}: {error}"))?;
            let times = times.parse().map_err(|error| format!("{token}: {error}"))?;
            bytes.extend(unit.repeat(times));
        }
        Ok(Self(bytes))
    }
}

/// A text, given as a string or as a list of its parts.
#[derive(Debug, Deserialize)]
#[serde(from = "TextForm")]
pub(crate) struct Text(pub(crate) String);

#[derive(Deserialize)]
#[serde(untagged)]
enum TextForm {
    Plain(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Plain(String),
    Repeated { repeat: String, times: usize },
}

impl From<TextForm> for Text {
    fn from(form: TextForm) -> Self {
        let part = |part: &Part| match part {
            Part::Plain(text) => text.clone(),
            Part::Repeated { repeat, times } => repeat.repeat(*times),
        };
        match form {
            TextForm::Plain(text) => Self(text),
            TextForm::Parts(parts) => Self(parts.iter().map(part).collect()),
        }
    }
}

/// A frame of either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Request(Request<'a>),
    Response(Response<'a>),
}

/// All vectors of the file.
pub(crate) fn all_vectors() -> Vec<Vector> {
    serde_json::from_str(FILE).expect("vectors.json has the format that its README.md describes")
}

/// The valid vectors, with their fields.
pub(crate) fn valid_vectors(vectors: &[Vector]) -> impl Iterator<Item = (&Vector, &Fields)> {
    vectors.iter().filter_map(|vector| Some((vector, vector.fields.as_ref()?)))
}

impl Sender {
    /// The largest `length` that this side may send.
    pub(crate) fn max_length(self) -> u32 {
        match self {
            Self::Client => MAX_REQUEST_LENGTH,
            Self::Daemon => MAX_ANSWER_LENGTH,
        }
    }
}

/// Decodes the frame at the front of `bytes` and returns it with its size. The stream ends after
/// `bytes`.
pub(crate) fn decode(sender: Sender, bytes: &[u8]) -> Result<(Frame<'_>, usize), ProtocolError> {
    match (parse_frame(bytes, sender.max_length()), sender) {
        (ParsedFrame::Complete { header, body, size }, Sender::Client) => {
            Ok((Frame::Request(Request::decode(&header, body)?), size))
        }
        (ParsedFrame::Complete { header, body, size }, Sender::Daemon) => {
            Ok((Frame::Response(Response::decode(&header, body)?), size))
        }
        (ParsedFrame::Incomplete, _) => Err(truncated_frame(bytes)),
        (ParsedFrame::Invalid(error), _) => Err(error),
    }
}

impl Frame<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Request(Request::Hello(hello)) => hello.encode(out),
            Self::Request(Request::Verify(verify)) => {
                verify.encode(out).expect("all fields are within their limits")
            }
            Self::Request(Request::Refund(refund)) => {
                refund.encode(out).expect("all fields are within their limits")
            }
            Self::Response(Response::Welcome(welcome)) => welcome.encode(out),
            Self::Response(Response::Answer(answer)) => answer.encode(out),
            Self::Response(Response::Error(error)) => error.encode(out),
        }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

impl Fields {
    pub(crate) fn flags(&self) -> &[String] {
        match self {
            Self::Hello { flags, .. }
            | Self::Verify { flags, .. }
            | Self::Refund { flags, .. }
            | Self::Welcome { flags, .. }
            | Self::Answer { flags, .. }
            | Self::Error { flags, .. } => flags,
        }
    }

    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags().iter().any(|name| name == flag)
    }

    /// Converts the fields to the codec's type.
    pub(crate) fn to_frame(&self) -> Frame<'_> {
        match self {
            Self::Hello { request_id, min_version, max_version, .. } => {
                let (request_id, min_version, max_version) = (*request_id, *min_version, *max_version);
                Frame::Request(Request::Hello(Hello { request_id, min_version, max_version }))
            }
            Self::Verify { request_id, cost, digest, key, scopes, ip, origin, environment, .. } => {
                let mode = if self.has_flag("ANY_SCOPE") { ScopeMode::Any } else { ScopeMode::All };
                Frame::Request(Request::Verify(Verify {
                    request_id: *request_id,
                    cost: *cost,
                    credential: credential(digest.as_ref(), key.as_ref()),
                    scopes: scopes.as_ref().map(|names| Scopes { names: &names.0, mode }),
                    ip: ip.map(to_ipv6),
                    origin: origin.as_ref().map(|origin| origin.0.as_str()),
                    environment: environment.as_ref().map(|environment| environment.0.as_str()),
                    want_metadata: self.has_flag("METADATA"),
                }))
            }
            Self::Refund { request_id, cost, digest, key, limit, .. } => {
                Frame::Request(Request::Refund(Refund {
                    request_id: *request_id,
                    cost: *cost,
                    credential: credential(digest.as_ref(), key.as_ref()),
                    limit: limit.as_ref().map(|limit| limit.0.as_str()),
                }))
            }
            Self::Welcome {
                request_id,
                version,
                min_version,
                max_version,
                credentials,
                max_length,
                idle_timeout_ms,
                generation,
                server,
                ..
            } => Frame::Response(Response::Welcome(Welcome {
                request_id: *request_id,
                version: *version,
                min_version: *min_version,
                max_version: *max_version,
                credentials: *credentials,
                max_length: *max_length,
                idle_timeout_ms: *idle_timeout_ms,
                generation: *generation,
                server: &server.0,
            })),
            Self::Answer {
                request_id,
                verdict,
                generation,
                limit,
                remaining,
                retry_after_ms,
                reset_ms,
                key_id,
                owner,
                environment,
                plan,
                limit_name,
                metadata,
                shadow_limit,
                ..
            } => Frame::Response(Response::Answer(Answer {
                request_id: *request_id,
                verdict: verdict.to_verdict(),
                generation: *generation,
                limit: LimitState {
                    name: &limit_name.0,
                    limit: *limit,
                    remaining: *remaining,
                    retry_after_ms: *retry_after_ms,
                    reset_ms: *reset_ms,
                },
                key_id: &key_id.0,
                owner: &owner.0,
                environment: &environment.0,
                plan: &plan.0,
                metadata: metadata.as_ref().map(|metadata| metadata.0.as_str()),
                shadow_limit: shadow_limit.as_ref().map(|name| name.0.as_str()),
            })),
            Self::Error { request_id, code, detail, message, .. } => {
                Frame::Response(Response::Error(ErrorFrame {
                    request_id: *request_id,
                    code: code.to_error_code(),
                    detail: *detail,
                    closing: self.has_flag("CLOSING"),
                    message: &message.0,
                }))
            }
        }
    }
}

fn credential<'a>(digest: Option<&Bytes>, key: Option<&'a Bytes>) -> Credential<'a> {
    match (digest, key) {
        (Some(digest), None) => Credential::Digest(digest.0[..].try_into().expect("32 bytes")),
        (None, Some(key)) => Credential::RawKey(&key.0),
        _ => panic!("a request has either a digest or a key"),
    }
}

fn to_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl NameOrNumber {
    fn to_verdict(&self) -> Verdict {
        match self {
            Self::Name(name) => {
                Verdict::all().find(|verdict| verdict.name() == name).expect("SPEC.md lists the verdict")
            }
            Self::Number(value) => Verdict::from_value(*value),
        }
    }

    fn to_error_code(&self) -> u8 {
        let named = |name: &String| {
            keyward_protocol::ErrorCode::ALL
                .into_iter()
                .find(|code| code.name() == name)
                .map(|code| code as u8)
        };
        match self {
            Self::Name(name) => named(name).expect("SPEC.md lists the code"),
            Self::Number(value) => *value,
        }
    }
}
