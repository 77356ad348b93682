//! Reads `vectors/vectors.json`, whose format `vectors/README.md` describes.
//!
//! [`Frame`] represents both directions of the protocol, so that a test can treat every vector in
//! the same way.

// Each test crate compiles this module and uses a part of it.
#![allow(dead_code, reason = "each program uses a part of it")]

use keyward_protocol::{
    Adjustment, Answer, BalancesBuf, CostsBuf, Credential, ErrorFrame, Hello, LimitBalance, LimitKind,
    LimitState, MAX_ANSWER_LENGTH, MAX_REQUEST_LENGTH, ParsedFrame, ProtocolError, Request, Response,
    ScopeMode, Scopes, Verdict, Verify, Welcome, parse_frame, truncated_frame,
};
use serde::Deserialize;

#[path = "../notation/mod.rs"]
mod notation;
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
        costs: Option<CostList>,
    },
    Refund(AdjustmentFields),
    Debit(AdjustmentFields),
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
        balances: Option<BalanceList>,
    },
    Error {
        request_id: u32,
        flags: Vec<String>,
        code: NameOrNumber,
        detail: u32,
        message: Text,
    },
}

/// The fields of REFUND and DEBIT.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdjustmentFields {
    request_id: u32,
    flags: Vec<String>,
    cost: u32,
    digest: Option<Bytes>,
    key: Option<Bytes>,
    costs: Option<CostList>,
}

/// The field `costs`.
#[derive(Debug, Deserialize)]
#[serde(from = "Vec<CostFields>")]
pub(crate) struct CostList(CostsBuf);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CostFields {
    name: Text,
    cost: u32,
}

impl From<Vec<CostFields>> for CostList {
    fn from(list: Vec<CostFields>) -> Self {
        let mut costs = CostsBuf::new();
        list.iter().for_each(|CostFields { name, cost }| costs.push(&name.0, *cost).expect("a valid cost"));
        Self(costs)
    }
}

/// The field `balances`.
#[derive(Debug, Deserialize)]
#[serde(from = "Vec<BalanceFields>")]
pub(crate) struct BalanceList(BalancesBuf);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalanceFields {
    name: Text,
    kind: NameOrNumber,
    limit: u64,
    charged: u32,
    balance: i64,
    reset_ms: u32,
}

impl From<Vec<BalanceFields>> for BalanceList {
    fn from(list: Vec<BalanceFields>) -> Self {
        let mut balances = BalancesBuf::new();
        for BalanceFields { name, kind, limit, charged, balance, reset_ms } in &list {
            let (limit, charged, balance, reset_ms) = (*limit, *charged, *balance, *reset_ms);
            let kind = kind.to_limit_kind();
            balances.push(&LimitBalance { name: &name.0, kind, limit, charged, balance, reset_ms });
        }
        Self(balances)
    }
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
        notation::parse_bytes(&text).map(Self)
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
            Self::Request(Request::Debit(debit)) => {
                debit.encode(out).expect("all fields are within their limits")
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
            | Self::Refund(AdjustmentFields { flags, .. })
            | Self::Debit(AdjustmentFields { flags, .. })
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
            Self::Verify {
                request_id, cost, digest, key, scopes, ip, origin, environment, costs, ..
            } => {
                let mode = if self.has_flag("ANY_SCOPE") { ScopeMode::Any } else { ScopeMode::All };
                Frame::Request(Request::Verify(Verify {
                    request_id: *request_id,
                    cost: *cost,
                    credential: credential(digest.as_ref(), key.as_ref()),
                    scopes: scopes.as_ref().map(|names| Scopes { names: &names.0, mode }),
                    ip: ip.map(to_ipv6),
                    origin: origin.as_ref().map(|origin| origin.0.as_str()),
                    environment: environment.as_ref().map(|environment| environment.0.as_str()),
                    costs: costs.as_ref().and_then(|costs| costs.0.as_costs()),
                    want_metadata: self.has_flag("METADATA"),
                    want_balances: self.has_flag("BALANCES"),
                }))
            }
            Self::Refund(fields) => Frame::Request(Request::Refund(fields.to_adjustment())),
            Self::Debit(fields) => Frame::Request(Request::Debit(fields.to_adjustment())),
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
                balances,
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
                balances: balances.as_ref().map(|balances| balances.0.as_balances()),
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

impl AdjustmentFields {
    fn to_adjustment<const KIND: u8>(&self) -> Adjustment<'_, KIND> {
        Adjustment {
            request_id: self.request_id,
            cost: self.cost,
            credential: credential(self.digest.as_ref(), self.key.as_ref()),
            costs: self.costs.as_ref().and_then(|costs| costs.0.as_costs()),
            want_balances: self.flags.iter().any(|flag| flag == "BALANCES"),
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

    fn to_limit_kind(&self) -> LimitKind {
        match self {
            Self::Name(name) => [LimitKind::Bucket, LimitKind::Window, LimitKind::Credits]
                .into_iter()
                .find(|kind| kind.name() == name)
                .expect("SPEC.md lists the kind of limit"),
            Self::Number(value) => LimitKind::from_value(*value),
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
