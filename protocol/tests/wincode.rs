//! A second implementation reads and writes the same bytes: wincode, with structs that mirror
//! SPEC.md's tables, agrees with the codec on every valid vector. This proves that the crate behind
//! the codec can be replaced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod support;

use keyward_protocol::{
    Adjustment, Answer, BalancesBuf, CostsBuf, Credential, ErrorFrame, Hello, LimitBalance, LimitKind,
    LimitState, Request, Response, ScopeMode, Scopes, Verdict, Verify, Welcome, adjustment_flag, answer_flag,
    error_flag, verify_flag,
};
use std::net::Ipv6Addr;
use support::{Frame, all_vectors, decode, valid_vectors};
use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaWrite, containers};

#[derive(SchemaRead, SchemaWrite)]
struct Header {
    length: u32,
    version: u8,
    kind: u8,
    flags: u16,
    request_id: u32,
}

#[derive(SchemaRead, SchemaWrite)]
struct Text8(#[wincode(with = "containers::Vec<u8, u8>")] Vec<u8>);

/// Also `bytes16`.
#[derive(SchemaRead, SchemaWrite)]
struct Text16(#[wincode(with = "containers::Vec<u8, u16>")] Vec<u8>);

#[derive(SchemaRead, SchemaWrite)]
struct HelloBody {
    min_version: u8,
    max_version: u8,
}

#[derive(SchemaRead, SchemaWrite)]
struct WelcomeBody {
    version: u8,
    min_version: u8,
    max_version: u8,
    credentials: u8,
    max_length: u32,
    idle_timeout_ms: u32,
    generation: u64,
    server: Text8,
}

#[derive(SchemaRead, SchemaWrite)]
struct AnswerBody {
    verdict: u8,
    generation: u64,
    limit: u32,
    remaining: u32,
    retry_after_ms: u32,
    reset_ms: u32,
    key_id: Text8,
    owner: Text8,
    environment: Text8,
    plan: Text8,
    limit_name: Text8,
}

#[derive(SchemaRead, SchemaWrite)]
struct Cost {
    name: Text8,
    cost: u32,
}

#[derive(SchemaRead, SchemaWrite)]
struct CostList(#[wincode(with = "containers::Vec<Cost, u8>")] Vec<Cost>);

#[derive(SchemaRead, SchemaWrite)]
struct Balance {
    name: Text8,
    kind: u8,
    limit: u64,
    charged: u32,
    balance: i64,
    reset_ms: u32,
}

#[derive(SchemaRead, SchemaWrite)]
struct BalanceList(#[wincode(with = "containers::Vec<Balance, u8>")] Vec<Balance>);

/// The fields of ANSWER that have a flag.
struct AnswerOptions {
    metadata: Option<Text16>,
    shadow_limit: Option<Text8>,
    balances: Option<BalanceList>,
    /// The balances as the codec's type.
    encoded_balances: Option<BalancesBuf>,
}

#[derive(SchemaRead, SchemaWrite)]
struct ErrorBody {
    code: u8,
    detail: u32,
    message: Text8,
}

/// The optional fields are read and written one by one, because flags decide about their presence.
struct VerifyBody {
    cost: u32,
    digest: Option<[u8; 32]>,
    key: Option<Text16>,
    scopes: Option<Text16>,
    ip: Option<[u8; 16]>,
    origin: Option<Text16>,
    environment: Option<Text8>,
    costs: Option<CostList>,
    /// The costs as the codec's type.
    encoded_costs: CostsBuf,
}

/// REFUND and DEBIT.
struct AdjustmentBody {
    cost: u32,
    digest: Option<[u8; 32]>,
    key: Option<Text16>,
    costs: Option<CostList>,
    /// The costs as the codec's type.
    encoded_costs: CostsBuf,
}

enum Body {
    Hello(HelloBody),
    Verify(VerifyBody),
    Refund(AdjustmentBody),
    Debit(AdjustmentBody),
    Welcome(WelcomeBody),
    Answer(AnswerBody, AnswerOptions),
    Error(ErrorBody),
}

#[test]
fn wincode_decodes_the_same_fields() {
    for (vector, _) in valid_vectors(&all_vectors()) {
        let (header, body) = read_frame(&vector.bytes.0);
        let (decoded, size) = decode(vector.sender, &vector.bytes.0).unwrap();
        assert_eq!(header.length as usize + 4, size, "{}", vector.name);
        assert_eq!(header.version, 1, "{}", vector.name);
        assert_eq!(to_frame(&header, &body), decoded, "{}", vector.name);
    }
}

#[test]
fn wincode_encodes_the_same_bytes() {
    for (vector, fields) in valid_vectors(&all_vectors()) {
        let (header, body) = read_frame(&vector.bytes.0);
        let written = write_frame(&header, &body);
        assert_eq!(
            const_hex::encode(&written),
            const_hex::encode(fields.to_frame().to_bytes()),
            "{}",
            vector.name
        );
    }
}

fn read_frame(mut bytes: &[u8]) -> (Header, Body) {
    let rest = &mut bytes;
    let header: Header = read(rest);
    let flags = header.flags;
    let body = match header.kind {
        0x01 => Body::Hello(read(rest)),
        0x02 => Body::Verify(read_verify(rest, flags)),
        0x81 => Body::Welcome(read(rest)),
        0x03 => Body::Refund(read_adjustment(rest, flags)),
        0x04 => Body::Debit(read_adjustment(rest, flags)),
        0x82 => {
            let body = read(rest);
            let metadata = read_if(flags & answer_flag::METADATA, rest);
            let shadow_limit = read_if(flags & answer_flag::SHADOW, rest);
            let balances: Option<BalanceList> = read_if(flags & answer_flag::BALANCES, rest);
            let encoded_balances = balances.as_ref().map(BalanceList::encoded);
            Body::Answer(body, AnswerOptions { metadata, shadow_limit, balances, encoded_balances })
        }
        0xff => Body::Error(read(rest)),
        other => panic!("unexpected kind {other}"),
    };
    assert!(rest.is_empty(), "trailing bytes: {rest:?}");
    (header, body)
}

fn read_verify(rest: &mut &[u8], flags: u16) -> VerifyBody {
    let mut verify = VerifyBody {
        cost: read(rest),
        digest: read_if(!flags & verify_flag::RAW_KEY, rest),
        key: read_if(flags & verify_flag::RAW_KEY, rest),
        scopes: read_if(flags & verify_flag::SCOPES, rest),
        ip: read_if(flags & verify_flag::IP, rest),
        origin: read_if(flags & verify_flag::ORIGIN, rest),
        environment: read_if(flags & verify_flag::ENVIRONMENT, rest),
        costs: read_if(flags & verify_flag::COSTS, rest),
        encoded_costs: CostsBuf::new(),
    };
    verify.encoded_costs = CostList::encoded(verify.costs.as_ref());
    verify
}

fn read_adjustment(rest: &mut &[u8], flags: u16) -> AdjustmentBody {
    let mut adjustment = AdjustmentBody {
        cost: read(rest),
        digest: read_if(!flags & adjustment_flag::RAW_KEY, rest),
        key: read_if(flags & adjustment_flag::RAW_KEY, rest),
        costs: read_if(flags & adjustment_flag::COSTS, rest),
        encoded_costs: CostsBuf::new(),
    };
    adjustment.encoded_costs = CostList::encoded(adjustment.costs.as_ref());
    adjustment
}

fn read<T: for<'de> SchemaRead<'de, DefaultConfig, Dst = T>>(rest: &mut &[u8]) -> T {
    wincode::deserialize_from(rest).unwrap()
}

fn read_if<T: for<'de> SchemaRead<'de, DefaultConfig, Dst = T>>(flag: u16, rest: &mut &[u8]) -> Option<T> {
    (flag != 0).then(|| read(rest))
}

fn write_frame(header: &Header, body: &Body) -> Vec<u8> {
    let mut out = Vec::new();
    write(header, &mut out);
    match body {
        Body::Hello(hello) => write(hello, &mut out),
        Body::Verify(verify) => {
            write(&verify.cost, &mut out);
            write_if(&verify.digest, &mut out);
            write_if(&verify.key, &mut out);
            write_if(&verify.scopes, &mut out);
            write_if(&verify.ip, &mut out);
            write_if(&verify.origin, &mut out);
            write_if(&verify.environment, &mut out);
            write_if(&verify.costs, &mut out);
        }
        Body::Refund(adjustment) | Body::Debit(adjustment) => {
            write(&adjustment.cost, &mut out);
            write_if(&adjustment.digest, &mut out);
            write_if(&adjustment.key, &mut out);
            write_if(&adjustment.costs, &mut out);
        }
        Body::Welcome(welcome) => write(welcome, &mut out),
        Body::Answer(answer, options) => {
            write(answer, &mut out);
            write_if(&options.metadata, &mut out);
            write_if(&options.shadow_limit, &mut out);
            write_if(&options.balances, &mut out);
        }
        Body::Error(error) => write(error, &mut out),
    }
    out
}

fn write<T: SchemaWrite<DefaultConfig, Src = T>>(value: &T, out: &mut Vec<u8>) {
    out.extend(wincode::serialize(value).unwrap());
}

fn write_if<T: SchemaWrite<DefaultConfig, Src = T>>(value: &Option<T>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        write(value, out);
    }
}

/// Converts what wincode read to the codec's type.
fn to_frame<'a>(header: &Header, body: &'a Body) -> Frame<'a> {
    let request_id = header.request_id;
    match body {
        Body::Hello(hello) => Frame::Request(Request::Hello(Hello {
            request_id,
            min_version: hello.min_version,
            max_version: hello.max_version,
        })),
        Body::Verify(verify) => Frame::Request(Request::Verify(verify.to_frame(header))),
        Body::Refund(refund) => Frame::Request(Request::Refund(refund.to_frame(header))),
        Body::Debit(debit) => Frame::Request(Request::Debit(debit.to_frame(header))),
        Body::Welcome(welcome) => Frame::Response(Response::Welcome(Welcome {
            request_id,
            version: welcome.version,
            min_version: welcome.min_version,
            max_version: welcome.max_version,
            credentials: welcome.credentials,
            max_length: welcome.max_length,
            idle_timeout_ms: welcome.idle_timeout_ms,
            generation: welcome.generation,
            server: welcome.server.text(),
        })),
        Body::Answer(answer, options) => Frame::Response(Response::Answer(Answer {
            request_id,
            verdict: Verdict::from_value(answer.verdict),
            generation: answer.generation,
            limit: LimitState {
                name: answer.limit_name.text(),
                limit: answer.limit,
                remaining: answer.remaining,
                retry_after_ms: answer.retry_after_ms,
                reset_ms: answer.reset_ms,
            },
            key_id: answer.key_id.text(),
            owner: answer.owner.text(),
            environment: answer.environment.text(),
            plan: answer.plan.text(),
            metadata: options.metadata.as_ref().map(Text16::text),
            shadow_limit: options.shadow_limit.as_ref().map(Text8::text),
            balances: options.encoded_balances.as_ref().map(BalancesBuf::as_balances),
        })),
        Body::Error(error) => Frame::Response(Response::Error(ErrorFrame {
            request_id,
            code: error.code,
            detail: error.detail,
            closing: header.flags & error_flag::CLOSING != 0,
            message: error.message.text(),
        })),
    }
}

impl VerifyBody {
    fn to_frame(&self, header: &Header) -> Verify<'_> {
        let any = header.flags & verify_flag::ANY_SCOPE != 0;
        let mode = if any { ScopeMode::Any } else { ScopeMode::All };
        Verify {
            request_id: header.request_id,
            cost: self.cost,
            credential: credential(self.digest, self.key.as_ref()),
            scopes: self.scopes.as_ref().map(|scopes| Scopes { names: scopes.text(), mode }),
            ip: self.ip.map(Ipv6Addr::from),
            origin: self.origin.as_ref().map(Text16::text),
            environment: self.environment.as_ref().map(Text8::text),
            costs: self.encoded_costs.as_costs(),
            want_metadata: header.flags & verify_flag::METADATA != 0,
            want_balances: header.flags & verify_flag::BALANCES != 0,
        }
    }
}

impl AdjustmentBody {
    fn to_frame<const KIND: u8>(&self, header: &Header) -> Adjustment<'_, KIND> {
        Adjustment {
            request_id: header.request_id,
            cost: self.cost,
            credential: credential(self.digest, self.key.as_ref()),
            costs: self.encoded_costs.as_costs(),
            want_balances: header.flags & adjustment_flag::BALANCES != 0,
        }
    }
}

impl CostList {
    fn encoded(list: Option<&Self>) -> CostsBuf {
        let mut costs = CostsBuf::new();
        for Cost { name, cost } in list.into_iter().flat_map(|list| &list.0) {
            costs.push(name.text(), *cost).unwrap();
        }
        costs
    }
}

impl BalanceList {
    fn encoded(&self) -> BalancesBuf {
        let mut balances = BalancesBuf::new();
        for limit in &self.0 {
            balances.push(&LimitBalance {
                name: limit.name.text(),
                kind: LimitKind::from_value(limit.kind),
                limit: limit.limit,
                charged: limit.charged,
                balance: limit.balance,
                reset_ms: limit.reset_ms,
            });
        }
        balances
    }
}

fn credential(digest: Option<[u8; 32]>, key: Option<&Text16>) -> Credential<'_> {
    match (digest, key) {
        (Some(digest), None) => Credential::Digest(digest),
        (None, Some(key)) => Credential::RawKey(&key.0),
        _ => panic!("a request has either a digest or a key"),
    }
}

impl Text8 {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap()
    }
}

impl Text16 {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap()
    }
}
